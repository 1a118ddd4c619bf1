"""Lint of DoRA's magnitudes: each linear layer has one per output, and no other layer any."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapters.lint.base_modules import Shape
from adapters.lint.config import DORA_LAYER, LintFinding
from adapters.lint.peft_folder import MAGNITUDE, LoraModule
from adapters.lint.vocabulary import is_vocabulary
from adapters.lint.words import broken, examples


def check_dora_tensors(
    modules: Sequence[LoraModule], config: Mapping[str, Any], base: Mapping[str, Shape | None]
) -> Iterator[LintFinding]:
    """Findings on magnitudes.

    Args:
        base: Shapes of the base's layers; empty if the base is unknown.
    """
    has_magnitude = [module.name for module in modules if module.magnitude is not None]
    if not config.get("use_dora"):
        if has_magnitude:
            yield LintFinding(
                "error",
                "dora-magnitude",
                f"{len(has_magnitude)} modules have {MAGNITUDE}, but use_dora is not true: {examples(has_magnitude)}.",
                "Set use_dora: true if it was trained as DoRA, or save it again without magnitudes.",
            )
        return
    if lacking := [module.name for module in modules if module.magnitude is None]:
        yield broken("dora-magnitude", f"use_dora is true, but {len(lacking)} modules have no {MAGNITUDE}", lacking)
    if other := [module.name for module in modules if not _is_linear(module, base)]:
        yield LintFinding(
            "error",
            DORA_LAYER,
            f"DoRA is served on linear layers only, not on {examples(other)}.",
            "Train with use_dora: true on linear layers only, or set use_dora: false.",
            is_unsupported=True,
        )
    if wrong := [
        f"{module.name} has {module.magnitude.shape} for {module.lora_b.shape[0]} outputs"
        for module in modules
        if module.magnitude is not None and module.magnitude.shape != module.lora_b.shape[:1]
    ]:
        yield broken("dora-magnitude", f"{len(wrong)} magnitudes do not have one number per output", wrong)


def _is_linear(module: LoraModule, base: Mapping[str, Shape | None]) -> bool:
    """Whether it is a linear layer other than the head: not an embedding, convolution or fused expert layer."""
    shape = base.get(module.name)
    if module.is_embedding or is_vocabulary(module.name):
        return False
    return len(module.lora_a.shape) == len(module.lora_b.shape) == 2 and (shape is None or len(shape) == 2)
