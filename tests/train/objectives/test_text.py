from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.fingerprint import read_fingerprint
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from tests.objective_domains import objective_domain
from tests.tiny_llama import prepare_tiny_base, write_tiny_llama
from train.attention import grouped_attention_of
from train.data.documents import Piece, packed
from train.evaluate.perplexity import perplexity_score
from train.objectives.packing import packed_batch
from train.pipeline import train_and_publish


def as_row(pieces: tuple[Piece, ...]) -> dict[str, Any]:
    tokens: Piece = sum(pieces, ())
    return {"input_ids": tokens, "labels": tokens, "seq_lengths": list(map(len, pieces))}


def test_a_document_has_the_same_loss_packed_and_alone(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_tiny_llama(tmp_path / "model"), dtype=torch.float32).eval()
    documents = [tuple(range(start, start + length)) for start, length in ((10, 20), (50, 12), (90, 9), (130, 30))]
    rows = packed(documents, 48)
    assert [len(row.pieces) for row in rows] == [2, 2]
    flat = [as_row(row.pieces) for row in rows]

    def summed(pieces: list[dict[str, Any]]) -> torch.Tensor:
        batch = packed_batch(pieces)
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        labels = batch["labels"][:, 1:]
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )

    with torch.inference_mode(), grouped_attention_of(model):
        alone = sum(summed([as_row((piece,))]) for piece in documents)
        torch.testing.assert_close(summed(flat), alone, rtol=1e-5, atol=1e-4)


def test_perplexity_is_that_of_the_mean_token() -> None:
    score = perplexity_score([(2.0, 2), (6.0, 2)])
    assert score.value == pytest.approx(torch.tensor(2.0).exp().item())
    assert score.ci_low < score.value < score.ci_high


@pytest.mark.slow
def test_a_text_version_is_published_with_its_perplexity(tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    manifest = train_and_publish(objective_domain(tmp_path, {"name": "text"}, name="notes"), home).manifest
    score = manifest.scores["perplexity"]
    assert score.base is not None
    assert score.adapter.value < score.base.value
    assert manifest.evaluation is None
    fingerprint = read_fingerprint(AdapterStore(home.adapters).folder(Target("notes", 1)))
    assert fingerprint is not None
    assert len(fingerprint.prompts) == 6
    more = objective_domain(tmp_path, {"name": "sft"}, name="stacked", **{"from": "notes@1"})
    assert train_and_publish(more, home).manifest.started_from is not None
