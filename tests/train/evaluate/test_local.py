import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from adapters.store.manifest import BaseManifest
from config.dataset import DatasetManifest, DatasetRow, read_split
from config.domain import AnswerConfig, EvaluationConfig
from config.home import Home
from tests.tiny_llama import (
    CHAT_TEMPLATE,
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    tiny_tokenizer,
    write_colour_data,
    write_tiny_llama,
)
from train.base.quantize import load_causal_lm
from train.data.build import build_dataset
from train.data.encode import encode, encode_prompt
from train.evaluate.base_answers import BaseAnswers
from train.evaluate.fingerprint import answer_logprobs, golden_rows, make_fingerprint, stop_token_ids
from train.evaluate.generation import Continuation
from train.evaluate.local import (
    AnsweredRows,
    EvaluatedAnswer,
    _answer,
    evaluate,
    exact_match,
    generate,
    measure_forgetting,
    quality_baseline,
    valid_format,
    without_adapter,
)
from train.evaluate.stops import ends_answer

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()


class Trained:
    """A tiny model with a random adapter that changes much, and a data set."""

    def __init__(self, root: Path) -> None:
        home = Home(root / "var")
        self.base: BaseManifest = prepare_tiny_base(home, write_tiny_llama(root / "model"))
        self.dataset: DatasetManifest = build_dataset(tiny_domain(write_colour_data(root / "c.jsonl")), home)
        self.rows: list[DatasetRow] = read_split(home.datasets / "colours", "test")
        torch.manual_seed(1)
        config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        self.model: PeftModel = get_peft_model(
            load_causal_lm(home.bases / "tiny"), config, autocast_adapter_dtype=False
        ).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("evaluate"))


def answer(text: str) -> EvaluatedAnswer:
    return EvaluatedAnswer(text, (1,), (2,), -0.1)


def test_batched_answers_come_in_the_order_of_the_prompts(trained: Trained) -> None:
    prompts = [encode_prompt(TOKENIZER, row.prompt, RENDERED_AT) for row in trained.rows]
    prompts[0] += prompts[1]  # a much longer one, which is left-padded against
    together = generate(trained.model, TOKENIZER, prompts, trained.dataset)
    first = generate(trained.model, TOKENIZER, prompts[:1], trained.dataset)
    assert together[0].prompt_token_ids == prompts[0]
    assert together[0].text == first[0].text


def test_generation_ends_at_a_stop_string_and_keeps_it(trained: Trained) -> None:
    prompts = [encode_prompt(TOKENIZER, row.prompt, RENDERED_AT) for row in trained.rows]
    free = generate(trained.model, TOKENIZER, prompts, trained.dataset)[0].text
    stop = free[1]
    dataset = trained.dataset.model_copy(update={"evaluation": EvaluationConfig(max_new_tokens=4, stop=(stop,))})
    stopped = generate(trained.model, TOKENIZER, prompts, dataset)[0]
    assert stopped.text == free[: free.index(stop) + 1]
    assert TOKENIZER.decode(list(stopped.token_ids)) == stopped.text  # nothing of the padding after it


def test_an_answer_that_ends_by_itself_keeps_its_end_token() -> None:
    end = TOKENIZER.eos_token_id
    assert isinstance(end, int)
    red = TOKENIZER.encode("red", add_special_tokens=False)
    is_finished = ends_answer(TOKENIZER, stop=())
    assert [is_finished(red), is_finished([*red, end])] == [False, True]
    whole = _answer(TOKENIZER, (1, 2), Continuation(0, [*red, end], [-0.5] * 4), stop=())
    assert (whole.text, whole.token_ids, whole.mean_logprob) == ("red", (*red, end), -0.5)


def test_a_stop_string_is_found_whatever_tokens_spell_it() -> None:
    spelt = TOKENIZER.encode('{"a": "é"}', add_special_tokens=False)
    is_finished = ends_answer(TOKENIZER, stop=('é"}',))
    assert [is_finished(spelt[:-1]), is_finished(spelt)] == [False, True]
    cut = _answer(TOKENIZER, (1,), Continuation(0, spelt, [-0.5] * len(spelt)), stop=('"é',))
    assert cut.text == '{"a": "é'


def test_base_and_adapter_are_scored_on_the_same_rows(trained: Trained) -> None:
    answered = evaluate(trained.model, TOKENIZER, trained.dataset, trained.rows, RENDERED_AT)
    evaluation, baseline = answered.evaluation, quality_baseline(answered.adapter)
    assert evaluation.base.n == evaluation.adapter.n == baseline.n == 8
    assert evaluation.adapter.ci_low <= evaluation.adapter.value <= evaluation.adapter.ci_high
    assert baseline.mean_token_logprob < 0


def test_the_base_is_evaluated_once(trained: Trained, tmp_path: Path) -> None:
    def evaluated(on_answers: Callable[[int], None] = lambda count: None) -> AnsweredRows:
        known = BaseAnswers(tmp_path, "tiny")
        return evaluate(trained.model, TOKENIZER, trained.dataset, trained.rows, RENDERED_AT, on_answers, known)

    counts: list[int] = []
    first = evaluated(counts.append)
    assert evaluated(counts.append) == first
    assert sum(counts) == 4 * len(trained.rows)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps([["red", [1], -1.0]] * len(trained.rows)))
    third = evaluated()
    assert {answer.text for answer in third.base} == {"red"}
    assert third.adapter == first.adapter


def test_evaluation_counts_the_answers_of_base_and_adapter(trained: Trained) -> None:
    counts: list[int] = []
    evaluate(trained.model, TOKENIZER, trained.dataset, trained.rows, RENDERED_AT, counts.append)
    assert sum(counts) == 2 * len(trained.rows)


def test_exact_match_and_valid_format_are_counted(trained: Trained) -> None:
    answers = [answer(row.output) for row in trained.rows[:6]] + [answer("wrong"), answer("")]
    assert exact_match(answers, trained.rows).value == 0.75
    assert valid_format(answers, trained.dataset).value == 7 / 8


def test_a_schema_decides_what_is_valid(trained: Trained) -> None:
    schema = AnswerConfig(json_schema={"type": "object", "required": ["a"]})
    dataset = trained.dataset.model_copy(update={"answer": schema})
    assert valid_format([answer('{"a": 1}'), answer("{}")], dataset).value == 0.5


def test_forgetting_is_measured_with_and_without_the_adapter(trained: Trained) -> None:
    forgetting = measure_forgetting(
        trained.model, TOKENIZER, text="Bread rises slowly in winter, and too quickly in July."
    )
    assert forgetting.adapter_nll > forgetting.base_nll > 0


def test_the_fingerprint_holds_what_the_training_stack_computes(trained: Trained) -> None:
    fingerprint = make_fingerprint(trained.model, TOKENIZER, trained.base, trained.rows, RENDERED_AT)
    golden = fingerprint.prompts[0]
    assert golden.prompt_token_ids == encode_prompt(TOKENIZER, golden_rows(trained.rows)[0].prompt, RENDERED_AT)
    assert len(golden.adapter_logprobs) == len(golden.base_logprobs) == len(golden.answer_token_ids)
    assert fingerprint.adapter_effect_nats > 0.01
    assert fingerprint.base_digest == trained.base.digest
    assert fingerprint.stop_token_ids == (TOKENIZER.eos_token_id,)


def test_golden_prompts_have_the_tools_of_their_rows(trained: Trained) -> None:
    tokenizer = tiny_tokenizer("{{ tools | tojson if tools }}" + CHAT_TEMPLATE)
    tools = ({"type": "function", "function": {"name": "look"}},)
    row = trained.rows[0].model_copy(update={"tools": tools})
    (golden,) = make_fingerprint(trained.model, tokenizer, trained.base, [row], RENDERED_AT).prompts
    assert golden.tools == tools
    assert '"name": "look"' in str(tokenizer.decode(list(golden.prompt_token_ids)))


def test_the_fingerprint_names_every_adapted_layer_of_the_base(trained: Trained) -> None:
    modules = make_fingerprint(trained.model, TOKENIZER, trained.base, trained.rows, RENDERED_AT).modules
    assert len(modules) == 14
    assert "model.layers.0.self_attn.q_proj" in modules


def test_golden_prompts_cover_different_answers_first(trained: Trained) -> None:
    answers = {row.output for row in trained.rows}
    assert {row.output for row in golden_rows(trained.rows, wanted=len(answers))} == answers


def test_base_log_probabilities_are_those_of_the_base_alone(trained: Trained) -> None:
    encoded = encode(TOKENIZER, trained.rows[0].messages, RENDERED_AT)
    with without_adapter(trained.model), torch.inference_mode():
        logits = trained.model(input_ids=torch.tensor([encoded.input_ids])).logits[0].float()
        got = answer_logprobs(trained.model, encoded)
    last = torch.log_softmax(logits[-2], -1)[encoded.answer_ids[-1]]
    assert got[-1] == pytest.approx(float(last), abs=1e-4)
    assert all(value < 0 for value in got)


def test_a_generation_configuration_adds_its_stop_tokens(trained: Trained) -> None:
    trained.model.generation_config.eos_token_id = [2, 0]
    assert stop_token_ids(trained.model, TOKENIZER) == (0, 2)
    trained.model.generation_config.eos_token_id = 2
