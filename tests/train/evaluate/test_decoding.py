"""Evaluation answers as requests are answered: sampled, or held to a schema, where the domain says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from config.dataset import DatasetManifest, DatasetRow, read_split
from config.domain import AnswerConfig, DefaultsConfig, EvaluationConfig
from config.home import Home
from tests.tiny_llama import (
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    tiny_tokenizer,
    write_colour_data,
    write_tiny_llama,
)
from train.base.quantize import load_causal_lm
from train.data.build import build_dataset
from train.data.encode import encode_prompt
from train.errors import DataError
from train.evaluate.decoding import Sampling, check_format
from train.evaluate.local import generate

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()
SCHEMA = {"type": "object", "required": ["c"], "additionalProperties": False, "properties": {"c": {"enum": ["a", "b"]}}}
HELD = {
    "answer": AnswerConfig(json_schema=SCHEMA),
    "evaluation": EvaluationConfig(max_new_tokens=40),
    "defaults": DefaultsConfig(response_format="json_schema"),
}


class Untrained:
    """A tiny model with random weights, which answers anything, and a data set."""

    def __init__(self, root: Path) -> None:
        home = Home(root / "var")
        prepare_tiny_base(home, write_tiny_llama(root / "model"))
        self.dataset: DatasetManifest = build_dataset(tiny_domain(write_colour_data(root / "c.jsonl")), home)
        self.rows: list[DatasetRow] = read_split(home.datasets / "colours", "test")
        torch.manual_seed(1)
        config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        base = load_causal_lm(home.bases / "tiny")
        self.model: Any = get_peft_model(base, config, autocast_adapter_dtype=False).eval()

    def answers(self, **changes: Any) -> list[str]:
        prompts = [encode_prompt(TOKENIZER, row.prompt, RENDERED_AT) for row in self.rows]
        dataset = self.dataset.model_copy(update=changes)
        return [answer.text for answer in generate(self.model, TOKENIZER, prompts, dataset)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Untrained:
    return Untrained(tmp_path_factory.mktemp("decoding"))


def test_sampled_answers_differ_from_greedy_ones_and_are_the_same_each_time(untrained: Untrained) -> None:
    warm = {"defaults": DefaultsConfig(temperature=1.5)}
    torch.manual_seed(1)
    first = untrained.answers(**warm)
    torch.manual_seed(2)
    assert untrained.answers(**warm) == first
    assert untrained.answers() != first


@pytest.mark.parametrize(
    ("temperature", "top_p", "shares"),
    [
        (1.0, None, (0.5, 0.3, 0.2)),
        (0.5, None, (0.658, 0.237, 0.105)),  # squares, made to sum to 1
        (1.0, 0.7, (0.625, 0.375, 0.0)),
        (1.0, 0.5, (1.0, 0.0, 0.0)),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(
    temperature: float, top_p: float | None, shares: tuple[float, ...]
) -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20_000, 1)
    drawn = Sampling(temperature, top_p)(logits, [])
    assert (drawn.bincount(minlength=3) / 20_000).tolist() == pytest.approx(shares, abs=0.015)


def test_top_p_narrows_the_choice_to_the_greedy_one(untrained: Untrained) -> None:
    narrow = DefaultsConfig(temperature=1.5, top_p=1e-6)
    assert untrained.answers(defaults=narrow) == untrained.answers()


def test_even_random_weights_keep_to_the_schema(untrained: Untrained) -> None:
    # JSON may have white space without end, and random weights write much of it.
    texts = ["".join(text.split()) for text in untrained.answers(**HELD)]
    assert all('{"c":"a"}'.startswith(text) or '{"c":"b"}'.startswith(text) for text in texts)
    assert any(text.endswith("}") for text in texts)


def test_a_stop_string_may_end_a_row_in_the_middle_of_the_schema(untrained: Untrained) -> None:
    stopped = HELD | {"evaluation": EvaluationConfig(max_new_tokens=40, stop=('"',))}
    assert {text.strip()[-1] for text in untrained.answers(**stopped)} == {'"'}


def test_a_schema_that_no_grammar_follows_is_told_of_before_training(untrained: Untrained) -> None:
    broken = HELD | {"answer": AnswerConfig(json_schema={"type": "object", "properties": {"c": {"type": "colour"}}})}
    with pytest.raises(DataError, match=r"`answer.json_schema` of 'colours' cannot be compiled to a grammar"):
        check_format(untrained.dataset.model_copy(update=broken))
    check_format(untrained.dataset.model_copy(update=HELD))
    check_format(untrained.dataset)
