from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear

from train.lora_linear import FusedLoraLinear, fuse_lora


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return output


def adapted(**lora: Any) -> PeftModel:
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["first", "second"], init_lora_weights=False, **lora)
    model = get_peft_model(Two(), config)
    assert isinstance(model, PeftModel)
    return model


def output_and_gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(2)
    x = torch.randn(2, 3, 6, requires_grad=True)
    output = model(x)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [output, *torch.autograd.grad((output**2).sum(), [x, *weights])]


def test_output_and_gradients_equal_pefts() -> None:
    model = adapted()
    pefts = output_and_gradients(model)
    assert fuse_lora(model) == 2
    torch.testing.assert_close(output_and_gradients(model), pefts)


def test_autocast_keeps_float32_gradients_of_the_adapter() -> None:
    model = adapted()
    fuse_lora(model)
    with torch.autocast("cpu", torch.bfloat16):
        output, *gradients = output_and_gradients(model)
    assert output.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize(
    "lora", [{"lora_dropout": 0.5}, {"use_dora": True}, {"use_rslora": True, "lora_dropout": 0.1}], ids=str
)
def test_what_is_not_plain_lora_goes_pefts_way(lora: dict[str, object]) -> None:
    model = adapted(**lora)
    pefts = output_and_gradients(model)
    fuse_lora(model)
    torch.testing.assert_close(output_and_gradients(model), pefts)


def test_a_disabled_adapter_leaves_the_base_alone() -> None:
    model = adapted()
    fuse_lora(model)
    x = torch.randn(4, 6)
    with model.disable_adapter():
        alone = model(x)
    assert not torch.allclose(alone, model(x))


def test_a_fused_layer_is_still_pefts() -> None:
    model = adapted()
    fuse_lora(model)
    assert all(isinstance(module, FusedLoraLinear) for module in model.modules() if isinstance(module, Linear))
