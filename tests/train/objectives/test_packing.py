"""`recipe.packing`: the same loss and gradient as each example alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from config.home import Home
from config.token_methods import PromptTuningMethod
from config.training import RecipeConfig, TrainingConfig
from tests.objective_domains import objective_domain
from tests.tiny_llama import prepare_tiny_base, write_tiny_llama
from train.attention import grouped_attention_of
from train.data.encode import Encoded
from train.errors import RecipeError
from train.methods.virtual_tokens import VirtualTokens
from train.objectives.packing import packed_batch, packed_examples
from train.pipeline import train_and_publish

EXAMPLES = [
    Encoded(tuple(range(start, start + length)), tuple(range(200, 200 + answer)))
    for start, length, answer in ((10, 20, 3), (50, 12, 1), (90, 9, 5), (130, 30, 2), (60, 4, 4))
]


@pytest.mark.slow
@pytest.mark.parametrize("is_grouped", [True, False], ids=["our attention", "torch's"])
def test_examples_have_the_same_loss_and_gradient_packed_and_alone(tmp_path: Path, is_grouped: bool) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(write_tiny_llama(tmp_path / "model"), dtype=torch.float32).eval()
    whole = packed_examples(EXAMPLES, 48)
    assert sorted(map(len, whole["seq_lengths"])) == [2, 3]

    def gradient(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        batch = packed_batch(rows)
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        loss.backward()
        return loss.detach(), model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    with grouped_attention_of(model) if is_grouped else torch.enable_grad():
        alone = [gradient([packed_examples([example], 48)[0]]) for example in EXAMPLES]
        loss, grad = gradient(list(whole))
    torch.testing.assert_close(loss, sum(each[0] for each in alone), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grad, sum(each[1] for each in alone), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_packed_run_learns_what_an_unpacked_one_learns(tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    losses = {}
    for packing in (False, True):
        domain = objective_domain(tmp_path, {"name": "sft"}, name=f"packed-{packing}".lower())
        recipe = domain.recipe.model_copy(update={"packing": packing, "max_length": 256, "learning_rate": 1e-9})
        manifest = train_and_publish(domain.model_copy(update={"recipe": recipe}), home).manifest
        assert manifest.training is not None
        assert manifest.training.arguments["packing"] is packing
        losses[packing] = manifest.training.metrics["eval_loss"]
    assert losses[True] == pytest.approx(losses[False], abs=0.01)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"objective": {"name": "dpo"}}, "`recipe.packing` acts with `objective: sft` only"),
        ({"recipe": {"packing": True, "label_smoothing_factor": 0.1}}, "`recipe.packing` does not go with"),
    ],
)
def test_packing_is_refused_where_it_cannot_be_used(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TrainingConfig.model_validate({"recipe": {"packing": True}} | fields)


def test_virtual_tokens_take_no_packed_rows() -> None:
    with pytest.raises(RecipeError, match="before the first one only"):
        VirtualTokens().check_recipe(PromptTuningMethod(), RecipeConfig(packing=True))
