from pathlib import Path

import pytest

from adapters.errors import BaseNotFoundError
from adapters.fingerprint import read_fingerprint
from adapters.reference import Target
from adapters.scores import Score
from adapters.store.manifest import Evaluation, QualityRules, RequestDefaults
from adapters.store.store import AdapterStore
from config.dataset import read_dataset, read_split
from config.domain import AnswerConfig, DomainConfig, GatesConfig, QualityConfig
from config.home import Home
from quality.held_out import read_held_out
from tests.tiny_llama import (
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    tiny_tokenizer,
    write_colour_data,
    write_tiny_llama,
)
from train.data.encode import encode_prompt
from train.errors import RecipeError
from train.pipeline import judge_gates, train_and_publish


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("pipeline")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    return home


@pytest.fixture
def domain(tmp_path: Path) -> DomainConfig:
    domain = tiny_domain(write_colour_data(tmp_path / "colours.jsonl"), max_steps=1)
    return domain.model_copy(update={"answer": AnswerConfig(refusal="none of these")})


def score(value: float) -> Score:
    return Score(value=value, ci_low=0, ci_high=1, n=200)


def evaluation(base: float, adapter: float, valid: float) -> Evaluation:
    return Evaluation(
        metric="exact_match",
        base=score(base),
        adapter=score(adapter),
        base_valid_format=score(0),
        valid_format=score(valid),
    )


@pytest.mark.slow
def test_a_version_is_published_with_all_that_is_known_of_it_and_promoted(home: Home, domain: DomainConfig) -> None:
    outcome = train_and_publish(domain, home)
    store = AdapterStore(home.adapters)
    assert outcome.is_promoted
    assert store.resolve("colours") == Target("colours", outcome.manifest.version)
    manifest = store.verify(Target("colours", outcome.manifest.version))
    assert manifest.dataset is not None
    assert manifest.dataset.num_test == 8
    assert manifest.dataset.digest == read_dataset(home.datasets / "colours").digest
    assert [file.name for file in manifest.dataset.files] == ["colours.jsonl"]
    assert manifest.lora.num_modules == 14
    folder = store.folder(Target("colours", manifest.version))
    fingerprint = read_fingerprint(folder)
    assert fingerprint is not None
    assert len(fingerprint.prompts) == 6
    assert "8 held-out examples" in (folder / "README.md").read_text()
    assert manifest.quality == QualityRules(refusal="none of these")
    system, max_tokens = domain.chat.system, domain.evaluation.max_new_tokens
    stop = domain.evaluation.stop
    assert manifest.defaults == RequestDefaults(system=system, temperature=0.0, max_tokens=max_tokens, stop=stop)
    assert f"- temperature: `0.0`\n- max_tokens: `{max_tokens}`" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_a_version_carries_its_held_out_examples_and_what_its_answers_looked_like(
    home: Home, domain: DomainConfig
) -> None:
    version = train_and_publish(domain, home).manifest.version
    held_out = read_held_out(AdapterStore(home.adapters).folder(Target("colours", version)))
    rows = read_split(home.datasets / "colours", "test")
    assert held_out is not None
    assert [question.expected for question in held_out.questions] == [row.output for row in rows]
    tokenizer = tiny_tokenizer()
    rendered = {encode_prompt(tokenizer, row.prompt, RENDERED_AT) for row in rows}
    assert {exchange.prompt_tokens for exchange in held_out.baseline} == rendered
    assert all(1 <= len(exchange.completion_tokens) <= 4 for exchange in held_out.baseline)
    assert held_out.general is not None
    assert held_out.general.base_nll > 0


@pytest.mark.slow
def test_a_domain_may_keep_its_held_out_examples_to_itself(home: Home, domain: DomainConfig) -> None:
    private = domain.model_copy(update={"name": "private", "quality": QualityConfig(publish_held_out=False)})
    version = train_and_publish(private, home).manifest.version
    held_out = read_held_out(AdapterStore(home.adapters).folder(Target("private", version)))
    assert held_out is not None
    assert (held_out.questions, held_out.baseline) == ((), ())
    assert held_out.general is not None


@pytest.mark.slow
def test_a_version_that_fails_its_gates_is_published_but_not_promoted(home: Home, domain: DomainConfig) -> None:
    strict = domain.model_copy(update={"name": "strict", "gates": GatesConfig(min_gain=1.0)})
    outcome = train_and_publish(strict, home)
    assert not outcome.is_promoted
    assert "below min_gain +1.000" in outcome.reason
    assert AdapterStore(home.adapters).aliases("strict") == {}


def test_gates_look_at_the_gain_and_the_format() -> None:
    gates = GatesConfig(min_gain=0.3, min_valid_format=0.9)
    assert judge_gates(evaluation(0.0, 0.5, 0.95), gates)[0]
    assert judge_gates(evaluation(0.3, 0.5, 0.95), gates) == (
        False,
        "gates failed: gain +0.200 is below min_gain +0.300",
    )
    assert "valid format 0.500" in judge_gates(evaluation(0.0, 0.5, 0.5), gates)[1]


def test_a_missing_base_is_told_before_any_work(tmp_path: Path, domain: DomainConfig) -> None:
    with pytest.raises(BaseNotFoundError, match=r"no base 'tiny'.*lorikeet base prepare"):
        train_and_publish(domain, Home(tmp_path / "var"))
    assert not (tmp_path / "var").exists()


def test_an_unservable_recipe_is_told_before_any_work(tmp_path: Path, domain: DomainConfig) -> None:
    refused = domain.model_copy(update={"recipe": domain.recipe.model_copy(update={"init_lora_weights": "pissa"})})
    with pytest.raises(RecipeError, match="pissa"):
        train_and_publish(refused, Home(tmp_path / "var"))
