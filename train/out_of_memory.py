"""Out of memory in training: one line that names the settings to lower, with values."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from config.domain import DomainConfig
from train.errors import TrainingMemoryError

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "cublas_status_alloc_failed")
"""What torch and CUDA write into a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@contextmanager
def memory_errors_named(config: DomainConfig) -> Iterator[None]:
    """Raises:
    TrainingMemoryError: The block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingMemoryError(f"{config.name!r} ran out of memory in training. {advice(config)}") from error


def advice(config: DomainConfig) -> str:
    """What to set, in the order of what it costs: first what changes nothing but time."""
    recipe = config.recipe
    steps = []
    if (batch := recipe.per_device_train_batch_size) > 1:
        accumulation = recipe.gradient_accumulation_steps
        steps.append(
            f"`recipe.per_device_train_batch_size` {batch} to {batch // 2} with `gradient_accumulation_steps` "
            f"{accumulation} to {2 * accumulation}, which trains the same"
        )
    if recipe.gradient_checkpointing is not True:
        steps.append("`recipe.gradient_checkpointing` to true")
    steps.append(f"`recipe.max_length` {recipe.max_length} to {max(recipe.max_length // 2, 16)}")
    return f"Set {'; or '.join(steps)}; or use a smaller base than {config.base!r}."
