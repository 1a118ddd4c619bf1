"""Lint of an adapter's values: finite in the stored dtype and in the one they are served in."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adapters.lint.config import LintFinding, scaling_of
from adapters.lint.peft_folder import LoraModule
from adapters.lint.tensors import TensorHeader, find_larger
from adapters.lint.words import broken, examples

SERVED_TYPE = "bfloat16"  # what the engine makes of A, and of B times the scaling
OVERFLOWS_AT = 2.0**128 - 2.0**119  # halfway between the largest bfloat16 and the number after it: rounded to infinity
_UNLIKELY = 100.0
"""Far above any value of A, or of B times the scaling, that training produces."""


def check_magnitudes(path: Path, modules: Sequence[LoraModule], config: dict[str, Any] | None) -> Iterator[LintFinding]:
    """Errors on NaN or infinity, as stored or as served, and warnings on implausibly large values.

    Args:
        path: The weights file; all tensors must be floats.
        config: PEFT's configuration, or None if it gives no scaling.
    """
    scalings = [each for module in modules for each in _scalings(module, config)]
    largest = find_larger(path, [(header, _limit(scaling)) for header, scaling in scalings])
    magnitudes = [module.magnitude for module in modules if module.magnitude is not None]
    largest |= find_larger(path, [(header, math.inf) for header in magnitudes])
    scaling_of_tensor = {header.name: abs(scaling) for header, scaling in scalings}
    scaling_of_tensor |= {header.name: 1.0 for header in magnitudes}
    # Of a scaling below one, the number itself must be finite too: vLLM's own way to load multiplies later.
    served = {name: value * max(1.0, scaling_of_tensor[name]) for name, value in largest.items()}
    if bad := [name for name, value in largest.items() if not math.isfinite(value)]:
        yield broken("not-finite", f"{len(bad)} tensors hold NaN or infinity", bad)
    if bad := [name for name in largest if math.isfinite(largest[name]) and served[name] >= OVERFLOWS_AT]:
        shown = examples([f"{name} ({largest[name]:.3g} times {scaling_of_tensor[name]:g})" for name in bad])
        yield LintFinding(
            "error",
            "overflow",
            f"{len(bad)} tensors times their scaling overflow {SERVED_TYPE}, the type they are served in: {shown}.",
            "Train it again, with a lower learning rate or lora_alpha; these values cannot be used.",
        )
    if far := [name for name in largest if served[name] < OVERFLOWS_AT]:
        shown = examples([f"{name} ({largest[name] * scaling_of_tensor[name]:.3g})" for name in far])
        yield LintFinding(
            "warning",
            "large-weights",
            f"{len(far)} tensors hold values of {_UNLIKELY:g} or more after scaling, far above what training "
            f"produces: {shown}.",
            "They may overflow in inference; check how the adapter was trained or converted.",
        )


def _scalings(module: LoraModule, config: dict[str, Any] | None) -> Iterator[tuple[TensorHeader, float]]:
    """The tensors of each pair with the factor applied before serving."""
    yield module.lora_a, 1.0
    yield module.lora_b, 1.0 if config is None else scaling_of(module.name, config)


def _limit(scaling: float) -> float:
    """Magnitude from which on a tensor gets a finding."""
    return min(_UNLIKELY / abs(scaling), OVERFLOWS_AT) if scaling else OVERFLOWS_AT
