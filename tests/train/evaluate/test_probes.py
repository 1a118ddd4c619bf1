"""Forgetting and overfitting of a tiny Llama whose adapter changes much."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    get_peft_model,
)

from config.dataset import DatasetManifest, DatasetRow, Message, read_split
from config.errors import DatasetError
from config.forgetting import ForgettingConfig
from config.home import Home
from config.rows import TextRow
from quality.metrics.answers import exact_match
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
from train.evaluate.base_answers import BaseAnswers
from train.evaluate.forgetting.measure import forgetting_probes, other_domains
from train.evaluate.forgetting.texts import TEXTS
from train.evaluate.local import Decoding, measure_forgetting
from train.evaluate.overfitting import document_probes, plain_items, question_probes, sampled, verbatim
from train.evaluate.probes import ChoiceProbe, TextProbe, answered, run_probes

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()


class TinyHome:
    def __init__(self, root: Path) -> None:
        self.home = Home(root / "var")
        prepare_tiny_base(self.home, write_tiny_llama(root / "model", initializer_range=0.2))
        self.dataset: DatasetManifest = build_dataset(tiny_domain(write_colour_data(root / "c.jsonl")), self.home)
        torch.manual_seed(1)
        config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        base = load_causal_lm(self.home.bases / "tiny")
        self.model: PeftModel = get_peft_model(base, config, autocast_adapter_dtype=False).eval()

    def rows(self, split: str) -> list[DatasetRow]:
        return read_split(self.home.datasets / "colours", split)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyHome:
    return TinyHome(tmp_path_factory.mktemp("probes"))


def test_each_text_task_and_domain_has_its_figure(made: TinyHome) -> None:
    config = ForgettingConfig(num_questions=3)
    others = other_domains(config, "medical", made.home.datasets)
    figures = run_probes(made.model, forgetting_probes(config, TOKENIZER, RENDERED_AT, others))
    assert [figure.key for figure in figures] == [
        *(f"forgetting[{name}]" for name in TEXTS),
        *(f"forgetting[{name}]" for name in ("arithmetic", "cloze", "instructions", "domain: colours")),
    ]
    assert all(figure.base and figure.difference and figure.adapter.n >= 3 for figure in figures)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["prompt_tuning", "prefix_tuning"],
)
def test_virtual_tokens_are_asked_as_layers_are(made: TinyHome, config: PromptLearningConfig) -> None:
    model = get_peft_model(load_causal_lm(made.home.bases / "tiny"), config).eval()
    asked = ForgettingConfig(texts=("news",), num_questions=2)
    figures = run_probes(model, forgetting_probes(asked, TOKENIZER, RENDERED_AT, ()))
    assert [figure.part for figure in figures] == ["news", "arithmetic", "cloze", "instructions"]
    assert figures[0].base is not None
    assert figures[0].adapter.value != figures[0].base.value


def test_the_base_is_not_asked_again(made: TinyHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ForgettingConfig(texts=("news",), num_questions=3)
    probes = forgetting_probes(config, TOKENIZER, RENDERED_AT, other_domains(config, "medical", made.home.datasets))
    counts: list[int] = []
    known = BaseAnswers(tmp_path, "tiny")
    first = run_probes(made.model, probes, counts.append, known)
    monkeypatch.setattr("train.evaluate.probes.without_adapter", lambda model: nullcontext())  # asks the adapter twice
    assert run_probes(made.model, probes, counts.append, known) == first
    assert run_probes(made.model, probes) != first
    assert sum(counts) == 4 * sum(probe.num_asked for probe in probes)


def test_a_text_is_measured_as_general_text_is(made: TinyHome) -> None:
    ids = tuple(TOKENIZER(TEXTS["prose"])["input_ids"])
    (figure,) = run_probes(made.model, [TextProbe("prose", ids)])
    earlier = measure_forgetting(made.model, TOKENIZER)
    assert figure.base is not None
    assert figure.difference is not None
    assert (round(figure.base.value, 3), round(figure.adapter.value, 3)) == (
        round(earlier.base_nll, 3),
        round(earlier.adapter_nll, 3),
    )
    assert figure.difference.value == pytest.approx(figure.adapter.value - figure.base.value)
    assert figure.difference.ci_low > 0
    assert not figure.higher_is_better


def test_the_most_likely_word_is_chosen(made: TinyHome) -> None:
    probe = ChoiceProbe("cloze", TOKENIZER, [("a", ("b", "c")), ("a", ("c", "b"))])
    first, second = probe.ask(made.model)
    assert first == second
    (figure,) = run_probes(made.model, [probe])
    assert (figure.chance, figure.adapter.value, figure.adapter.n) == (0.5, 0.5, 2)


def test_a_model_that_guesses_is_said_to(made: TinyHome) -> None:
    config = ForgettingConfig(texts=(), tasks=("arithmetic",), other_domains="none", num_questions=5)
    (figure,) = run_probes(made.model, forgetting_probes(config, TOKENIZER, RENDERED_AT, ()))
    assert figure.chance is not None
    assert figure.chance > 0
    assert figure.is_base_at_chance


def test_named_domains_must_be_there(made: TinyHome) -> None:
    with pytest.raises(DatasetError, match="legal"):
        other_domains(ForgettingConfig(other_domains=("legal",)), "medical", made.home.datasets)
    assert other_domains(ForgettingConfig(other_domains=("colours",)), "colours", made.home.datasets) == []
    assert other_domains(ForgettingConfig(), "colours", made.home.datasets) == []
    assert other_domains(ForgettingConfig(), "medical", made.home.root / "nothing") == []


def test_questions_that_are_too_long_are_not_asked(made: TinyHome) -> None:
    rows = made.rows("test")
    messages = (
        *rows[0].messages[:1],
        rows[0].messages[1].model_copy(update={"content": "a " * 600}),
        rows[0].messages[2],
    )
    long = rows[0].model_copy(update={"messages": messages, "input": "a " * 600})
    config = ForgettingConfig(texts=(), tasks=())
    (probe,) = forgetting_probes(config, TOKENIZER, RENDERED_AT, [(made.dataset, [rows[1], long])])
    assert probe.num_asked == 1
    assert forgetting_probes(config, TOKENIZER, RENDERED_AT, [(made.dataset, [long])]) == []


def test_a_text_without_finite_likelihood_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert TextProbe("news", (1, 2)).figures([1.0], [float("nan")]) == ()
    assert "'news' is not finite" in caplog.text


def test_no_gap_without_scores_on_both_sides(made: TinyHome) -> None:
    rows = sampled(made.rows("train"), 2)
    probes = question_probes(rows, [], ([], []), exact_match(), Decoding(4), TOKENIZER, RENDERED_AT)
    keys = [figure.key for figure in run_probes(made.model, probes)]
    assert keys == ["overfitting[train rows]", "overfitting[memorisation]"]


def test_a_damaged_data_set_is_passed_over(made: TinyHome, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert other_domains(ForgettingConfig(), "medical", tmp_path) == []


def test_training_rows_are_compared_with_held_out_rows(made: TinyHome) -> None:
    train, test = sampled(made.rows("train"), 6), made.rows("test")
    items = plain_items(test)
    known = (answered(items, [""] * 8), answered(items, [row.output for row in test]))
    decoding = Decoding(4)
    probes = question_probes(train, test[:6], known, exact_match(), decoding, TOKENIZER, RENDERED_AT)
    figures = {figure.key: figure for figure in run_probes(made.model, probes)}
    assert list(figures) == [
        f"overfitting[{part}]" for name in ("train rows", "memorisation", "verbatim") for part in (name, f"{name} gap")
    ]
    gap = figures["overfitting[train rows gap]"]
    assert gap.base is not None
    assert gap.base.value == 0  # the base answers neither
    assert gap.adapter.value == figures["overfitting[train rows]"].adapter.value - 1
    assert gap.adapter.value == gap.adapter.ci_low < gap.adapter.ci_high < 0
    assert not gap.higher_is_better


def test_half_a_question_is_asked(made: TinyHome) -> None:
    rows = sampled(made.rows("train"), 6)
    probes = question_probes(rows, rows, ([], []), exact_match(), Decoding(4), TOKENIZER, RENDERED_AT)
    prompts = [TOKENIZER.decode(list(prompt)) for prompt in probes[1].train.prompts]  # type: ignore[attr-defined]
    assert all("\nitem " in prompt and " is " not in prompt for prompt in prompts)
    continued = [str(TOKENIZER.decode(list(prompt))) for prompt in probes[2].train.prompts]  # type: ignore[attr-defined]
    assert all(prompt.endswith(f"item {row.input.split()[1]}") for prompt, row in zip(continued, rows, strict=True))
    assert probes[2].train.items[0].expected == f" is {rows[0].output}"  # type: ignore[attr-defined]


def test_questions_of_one_word_have_no_half(made: TinyHome) -> None:
    messages = (Message(role="user", content="red"), Message(role="assistant", content="red"))
    rows = [DatasetRow(messages=messages, input="red", output="red")] * 2
    probes = question_probes(rows, rows, ([], []), exact_match(), Decoding(4), TOKENIZER, RENDERED_AT)
    assert [probe.part for probe in probes] == ["train rows"]  # type: ignore[attr-defined]


def test_documents_are_continued(made: TinyHome) -> None:
    rows = [TextRow(text="One two three four five six"), TextRow(text="seven eight nine ten")]
    (probe,) = document_probes(rows, rows, 2, TOKENIZER)
    figures = run_probes(made.model, [probe])
    assert [figure.adapter.n for figure in figures] == [2, 2]


@pytest.mark.parametrize(
    ("expected", "answer", "share"),
    [("a b c d", "a b x d", 0.5), ("a b", "a b c", 1.0), ("a b", "b a", 0.0), ("a b c d", "a", 0.25)],
)
def test_verbatim_words_count_from_the_first_one(expected: str, answer: str, share: float) -> None:
    from quality.metrics.item import Item

    assert verbatim().scores([Item("1", "", expected, answer)]) == [share]
