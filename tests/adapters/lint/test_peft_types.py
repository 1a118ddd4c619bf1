import pytest

from adapters.lint.config import check_adapter_config


@pytest.mark.parametrize(
    ("peft_type", "next_step"),
    [
        ("VERA", "convert_to_lora, or train `method: vera`"),
        ("LOKR", "convert_to_lora, or train `method: lokr`"),
        ("OFT", "merge_and_unload"),
        ("PeftType.IA3", "merge_and_unload"),
        ("ADALORA", "merge_and_unload"),
        ("BOTTLENECK", "base's layers only"),
        ("POLY", "Train `method: lora`"),
    ],
)
def test_each_method_is_refused_with_how_it_can_be_served(peft_type: str, next_step: str) -> None:
    (finding,) = check_adapter_config({"peft_type": peft_type}, max_lora_rank=16)
    assert finding.is_unsupported
    assert next_step in finding.fix


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "lora_ga", "loftq"])
def test_an_initialisation_that_changes_the_base_is_refused(init: str) -> None:
    (finding,) = check_adapter_config({"init_lora_weights": init}, max_lora_rank=16)
    assert "changes the base's weights" in finding.message
