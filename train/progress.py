"""Progress of a trainer: steps, loss and held-out loss, or reward and held-out reward."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from config.progress import Progress

_SHOWN = {"loss": "loss", "eval_loss": "held-out loss", "reward": "reward", "eval_reward": "held-out reward"}


class TrainingProgress(TrainerCallback):
    """Reports the trainer's steps to a progress display."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.begin(state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.done = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for key, value in (logs or {}).items():
            if key in _SHOWN:
                self._progress.details[_SHOWN[key]] = f"{value:.3f}"
