"""Out of memory is told in one line, with settings and values."""

import pytest
import torch

from tests.tiny_llama import tiny_domain
from train.errors import TrainingMemoryError
from train.out_of_memory import memory_errors_named


def allocate_too_much() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "fail",
    [
        allocate_too_much,
        lambda: raise_(MemoryError()),
        lambda: raise_(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
        lambda: raise_(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    ],
)
def test_what_to_lower_is_named_with_values(fail, tmp_path) -> None:
    domain = tiny_domain(tmp_path / "none.jsonl", per_device_train_batch_size=16, gradient_accumulation_steps=2)
    with pytest.raises(TrainingMemoryError) as raised, memory_errors_named(domain):
        fail()
    text = str(raised.value)
    assert "\n" not in text
    assert "`recipe.per_device_train_batch_size` 16 to 8 with `gradient_accumulation_steps` 2 to 4" in text
    assert "`recipe.gradient_checkpointing` to true" in text
    assert "`recipe.max_length` 128 to 64" in text


def test_what_is_set_already_is_not_advised(tmp_path) -> None:
    domain = tiny_domain(tmp_path / "none.jsonl", per_device_train_batch_size=1, gradient_checkpointing=True)
    with pytest.raises(TrainingMemoryError, match=r"Set `recipe\.max_length`"), memory_errors_named(domain):
        raise MemoryError


def test_another_error_passes_as_it_is(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_errors_named(tiny_domain(tmp_path)):
        raise RuntimeError("shapes differ")
