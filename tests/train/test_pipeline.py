import sys
from pathlib import Path

import pytest

from adapters.bases import read_base
from adapters.errors import BaseNotFoundError, InvalidBaseError
from adapters.fingerprint import read_fingerprint
from adapters.reference import Target
from adapters.store.manifest import MANIFEST_FILE, QualityRules, RequestDefaults
from adapters.store.store import AdapterStore
from config.dataset import read_dataset, read_split
from config.domain import AnswerConfig, DomainConfig, EvaluationConfig, GatesConfig, QualityConfig
from config.forgetting import ForgettingConfig, OverfittingConfig
from config.home import Home
from quality.errors import MetricError
from quality.evaluated import read_evaluated
from quality.held_out import read_held_out
from tests.tiny_llama import (
    NO_PROBES,
    RENDERED_AT,
    prepare_tiny_base,
    tiny_domain,
    tiny_tokenizer,
    write_colour_data,
    write_tiny_llama,
)
from train.data.encode import encode_prompt
from train.errors import RecipeError
from train.pipeline import train_and_publish
from train.publication import TrainingOutcome


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("pipeline")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    return home


@pytest.fixture
def domain(tmp_path: Path) -> DomainConfig:
    return with_refusal(tmp_path)


def with_refusal(folder: Path) -> DomainConfig:
    domain = tiny_domain(write_colour_data(folder / "colours.jsonl"), max_steps=1)
    return domain.model_copy(update={"answer": AnswerConfig(refusal="none of these")})


@pytest.fixture(scope="module")
def published(home: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[DomainConfig, TrainingOutcome]:
    """A domain, and its first version, of which everything is measured."""
    domain = with_refusal(tmp_path_factory.mktemp("published"))
    everything = {"forgetting": ForgettingConfig(), "overfitting": OverfittingConfig()}
    domain = domain.model_copy(update={"evaluation": domain.evaluation.model_copy(update=everything)})
    return domain, train_and_publish(domain, home)


@pytest.mark.slow
def test_a_version_is_published_with_all_that_is_known_of_it_and_promoted(
    home: Home, published: tuple[DomainConfig, TrainingOutcome]
) -> None:
    domain, outcome = published
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
    keys = {figure.key for figure in manifest.figures}
    assert {"forgetting[prose]", "forgetting[cloze]", "overfitting[train rows gap]"} <= keys
    assert manifest.training is not None
    assert manifest.training.losses is not None
    assert len(manifest.training.losses.train) == len(manifest.training.losses.held_out) == 1
    assert manifest.quality == QualityRules(refusal="none of these")
    system, max_tokens = domain.chat.system, domain.evaluation.max_new_tokens
    stop = domain.evaluation.stop
    assert manifest.defaults == RequestDefaults(system=system, temperature=0.0, max_tokens=max_tokens, stop=stop)
    assert f"- temperature: `0.0`\n- max_tokens: `{max_tokens}`" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_a_version_carries_its_held_out_examples_and_what_its_answers_looked_like(
    home: Home, published: tuple[DomainConfig, TrainingOutcome]
) -> None:
    version = published[1].manifest.version
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
    items = read_evaluated(AdapterStore(home.adapters).folder(Target("colours", version)))
    assert [item.expected for item in items] == [row.output for row in rows]
    assert {name for item in items for name in item.scores} == {"exact_match", "valid_format"}


@pytest.mark.slow
def test_a_domain_may_keep_its_held_out_examples_to_itself(home: Home, domain: DomainConfig) -> None:
    private = domain.model_copy(update={"name": "private", "quality": QualityConfig(publish_held_out=False)})
    version = train_and_publish(private, home).manifest.version
    held_out = read_held_out(AdapterStore(home.adapters).folder(Target("private", version)))
    assert held_out is not None
    assert (held_out.questions, held_out.baseline) == ((), ())
    items = (AdapterStore(home.adapters).folder(Target("private", version)) / "evaluation.jsonl").read_text()
    assert not any(colour in items for colour in ("red", "green", "blue"))
    assert held_out.general is not None


@pytest.mark.slow
def test_a_version_that_fails_its_gates_is_published_but_not_promoted(home: Home, domain: DomainConfig) -> None:
    strict = domain.model_copy(update={"name": "strict", "gates": GatesConfig(min_gain=1.0)})
    outcome = train_and_publish(strict, home)
    assert not outcome.is_promoted
    assert "below min_gain +1.000" in outcome.reason
    assert AdapterStore(home.adapters).aliases("strict") == {}


@pytest.mark.slow
def test_a_version_has_the_figures_of_perturbed_questions(home: Home, domain: DomainConfig) -> None:
    robustness = {"perturbations": ["casing", "out_of_scope"], "num_questions": 3}
    evaluation = EvaluationConfig.model_validate({"robustness": robustness, "max_new_tokens": 4, **NO_PROBES})
    outcome = train_and_publish(domain.model_copy(update={"name": "robust", "evaluation": evaluation}), home)
    figures = {record.key: record for record in outcome.manifest.figures if record.kind == "robustness"}
    assert list(figures) == ["robustness[unperturbed]", "robustness[casing]", "robustness[out_of_scope]"]
    assert {record.adapter.n for record in figures.values()} == {3}


@pytest.mark.slow
def test_an_adapter_that_learnt_nothing_is_not_promoted(home: Home, domain: DomainConfig) -> None:
    """Without gates of its own, and as the first version."""
    plain = domain.model_copy(update={"name": "plain", "gates": GatesConfig()})
    outcome = train_and_publish(plain, home)
    assert not outcome.is_promoted
    assert outcome.reason.startswith("gates failed: gain of exact_match")
    assert outcome.manifest.unmet_gates[0].endswith("not above zero beyond chance (p 1.000)")
    assert AdapterStore(home.adapters).aliases("plain") == {}


@pytest.mark.slow
def test_force_promotes_and_the_history_says_so(home: Home, domain: DomainConfig) -> None:
    forced = domain.model_copy(update={"name": "forced", "gates": GatesConfig(min_gain=1.0)})
    outcome = train_and_publish(forced, home, force=True)
    store = AdapterStore(home.adapters)
    assert store.resolve("forced") == Target("forced", 1)
    assert store.history("forced")[-1].reason == outcome.reason
    assert outcome.reason.startswith("forced: gates failed: gain of exact_match")


def test_a_missing_base_is_told_before_any_work(tmp_path: Path, domain: DomainConfig) -> None:
    with pytest.raises(BaseNotFoundError, match=r"no base 'tiny'.*lorikeet base prepare"):
        train_and_publish(domain, Home(tmp_path / "var"))
    assert not (tmp_path / "var").exists()


def test_an_unservable_recipe_is_told_before_any_work(tmp_path: Path, domain: DomainConfig) -> None:
    refused = domain.model_copy(update={"method": domain.method.model_copy(update={"init_lora_weights": "loftq"})})
    with pytest.raises(RecipeError, match="loftq"):
        train_and_publish(refused, Home(tmp_path / "var"))


def test_a_base_that_could_not_be_served_is_not_trained(
    tmp_path: Path, domain: DomainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    manifest = read_base(home.bases / "tiny").model_copy(update={"storage": "bitsandbytes"})
    (home.bases / "tiny" / MANIFEST_FILE).write_text(manifest.model_dump_json())
    monkeypatch.setitem(sys.modules, "vllm_bnb_plugin", None)  # as Python hides a module
    with pytest.raises(InvalidBaseError, match="pip install --no-deps vllm-bnb-plugin"):
        train_and_publish(domain, home)
    assert not home.datasets.exists()


def test_a_metric_that_no_server_can_score_by_is_refused_before_training(home: Home, domain: DomainConfig) -> None:
    by_bleu = domain.model_copy(update={"evaluation": EvaluationConfig.model_validate({"metrics": ["bleu"]})})
    with pytest.raises(MetricError, match="`bleu` cannot score held-out questions on a server"):
        train_and_publish(by_bleu, home)
    assert not (home.runs / by_bleu.name).exists()
