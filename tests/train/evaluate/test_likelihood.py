from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from tests.tiny_llama import tiny_tokenizer, write_tiny_llama
from train.base.quantize import load_causal_lm
from train.evaluate.likelihood import ending_logprobs, mean_nats, token_nats

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    model = load_causal_lm(write_tiny_llama(Path(tmp_path_factory.mktemp("model")), initializer_range=0.2))
    model.eval()
    return model


def test_endings_of_different_lengths_are_scored_as_alone(model: PreTrainedModel) -> None:
    pairs = [("The day is", "warm"), ("It", "rains all day long"), ("The day is", "cold, says the old man")]
    together = ending_logprobs(model, TOKENIZER, pairs)
    for (beginning, ending), found in zip(pairs, together, strict=True):
        nats = token_nats(model, TOKENIZER(f"{beginning} {ending}")["input_ids"])
        assert found == pytest.approx(-sum(nats[len(beginning) - 1 :]), abs=0.5)


def test_a_mean_over_tokens_counts_each_token_once() -> None:
    score = mean_nats([1.0, 2.0, 3.0])
    assert (score.value, score.n) == (2.0, 3)
    assert mean_nats([float(n) for n in range(100)]).value == 49.5


@pytest.mark.slow
def test_intervals_of_texts_hold_the_truth_though_neighbours_are_alike() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        noise = rng.normal(size=321)
        held += (found := mean_nats(list(3 + noise[1:] + 0.6 * noise[:-1]))).ci_low <= 3 <= found.ci_high
    assert 920 <= held <= 980


def test_equal_values_have_an_interval_of_no_width() -> None:
    score = mean_nats([2.0] * 64)
    assert (score.ci_low, score.ci_high) == (2.0, 2.0)
