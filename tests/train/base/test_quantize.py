from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from config.home import Home
from tests.tiny_architectures import write_tiny_model
from tests.tiny_llama import write_tiny_llama
from train.base.prepare import prepare_base
from train.base.quantize import keep_gradient_flow, load_causal_lm

IDS = torch.arange(3, 35).unsqueeze(0)


@pytest.fixture(scope="module")
def nf4_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nf4")
    prepare_base(str(write_tiny_llama(root / "model")), "tiny", "nf4", "bitsandbytes", home=Home(root / "var"))
    return root / "var" / "bases" / "tiny"


def embedding_gradient(model: PreTrainedModel) -> torch.Tensor:
    """Gradient that reaches the embeddings through every 4-bit layer, after a forward under `eval()`."""
    with torch.inference_mode():
        model.eval()(IDS)
    model.train()
    embeddings: torch.Tensor = model.get_input_embeddings()(IDS).detach().requires_grad_()
    hidden = model.get_decoder()(inputs_embeds=embeddings).last_hidden_state
    hidden[:, -1].float().sum().backward()
    assert embeddings.grad is not None
    return embeddings.grad[:, :-1].float()


@pytest.mark.slow
def test_gradient_flows_through_4_bit_layers_after_an_evaluation(nf4_base: Path) -> None:
    # On a CPU with AVX512-BF16, bitsandbytes alone repacks its layers at the evaluation, and their gradient is lost.
    evaluated = embedding_gradient(load_causal_lm(nf4_base))
    assert evaluated.abs().sum() > 0
    assert torch.isfinite(evaluated).all()


def test_every_4_bit_layer_is_guarded(nf4_base: Path) -> None:
    model = load_causal_lm(nf4_base)
    assert keep_gradient_flow(model) == 14
    guarded = [m for m in model.modules() if getattr(m, "support_avx512bf16_for_cpu", None) is False]
    assert len(guarded) == 14


@pytest.mark.slow
def test_gemma2s_cap_on_attention_scores_is_kept(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "gemma2")
    with torch.inference_mode():
        capped = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(IDS).logits
        uncapped = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")(IDS).logits
        ours = load_causal_lm(folder)(IDS).logits
    assert torch.equal(ours, capped)
    assert (ours - uncapped).abs().max() > 0.1
