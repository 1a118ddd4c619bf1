"""Stops a run that diverges: a loss or gradient that is not finite, or gradients that grow out of all proportion."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from config.training import RecipeConfig
from train.errors import DivergenceError

MAX_NORM_RATIO = 100.0
"""Times the median gradient norm of the steps before."""
MIN_NORM_RATIO = 10.0
"""Times `max_grad_norm`: smaller gradients are no divergence, whatever they were before."""
PATIENCE = 5
"""Steps in a row with such gradients."""
_WINDOW = 100


@dataclass(frozen=True)
class StepLosses:
    """Loss and gradient norm (before clipping) of one step; None where the trainer tells none."""

    step: int
    loss: float
    grad_norm: float | None

    def __str__(self) -> str:
        norm = "" if self.grad_norm is None else f", gradient norm {self.grad_norm:.3g}"
        return f"step {self.step}: loss {self.loss:.4g}{norm}"

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and (self.grad_norm is None or math.isfinite(self.grad_norm))


class DivergenceCheck:
    """Decides from the log of each step."""

    def __init__(self, name: str, recipe: RecipeConfig) -> None:
        self._name, self._recipe = name, recipe
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._last_good: StepLosses | None = None
        self._growing: list[StepLosses] = []

    def add(self, log: StepLosses) -> None:
        """Raises:
        DivergenceError: The run diverges with this step.
        """
        if not log.is_finite:
            what = "loss" if not math.isfinite(log.loss) else "gradient"
            raise self._error(f"the {what} is not finite since step {log.step} ({log})")
        if self._is_excessive(log.grad_norm):
            self._growing.append(log)
            if len(self._growing) == PATIENCE:
                raise self._error(
                    f"the gradient norm is over {MAX_NORM_RATIO:g} times that of the steps before since step "
                    f"{self._growing[0].step} ({log})"
                )
            return
        self._growing.clear()
        self._last_good = log
        if log.grad_norm is not None:
            self._norms.append(log.grad_norm)

    def add_held_out(self, step: int, loss: float) -> None:
        """Raises:
        DivergenceError: The held-out loss is not finite.
        """
        if not math.isfinite(loss):
            raise self._error(f"the held-out loss is not finite at step {step}")

    def _is_excessive(self, norm: float | None) -> bool:
        if norm is None or len(self._norms) < PATIENCE:
            return False
        return norm > max(MAX_NORM_RATIO * median(self._norms), MIN_NORM_RATIO * self._recipe.max_grad_norm)

    def _error(self, what: str) -> DivergenceError:
        recipe = self._recipe
        before = f"Last good {self._last_good}" if self._last_good else "There was no good step before"
        return DivergenceError(
            f"{self._name!r} diverges: {what}. {before}. Nothing was published. Lower `recipe.learning_rate` "
            f"({recipe.learning_rate:g}; try {min(recipe.learning_rate / 3, 1e-3):.2g}) or `recipe.max_grad_norm` "
            f"({recipe.max_grad_norm:g}), or raise `recipe.warmup_steps` ({recipe.warmup_steps:g}); then train again "
            "without `--resume`."
        )


class StopDivergence(TrainerCallback):
    """Passes the trainer's logs to a check; requires `logging_steps` 1 and no filter of NaN."""

    def __init__(self, check: DivergenceCheck) -> None:
        self._check = check

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._check.add(StepLosses(state.global_step, logs["loss"], logs.get("grad_norm")))
        if "eval_loss" in logs:
            self._check.add_held_out(state.global_step, logs["eval_loss"])
