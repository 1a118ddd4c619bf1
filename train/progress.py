"""A line in the terminal while a model trains: steps, loss, held-out loss, time left."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingProgress(TrainerCallback):
    """A rich progress bar fed by the trainer; a context manager, so that it also ends on an error."""

    def __init__(self, console: Console, title: str) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  held-out {task.fields[eval_loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._console, self._title = console, title
        self._task = self._progress.add_task(title, total=None, loss="…", eval_loss="…")

    def __enter__(self) -> "TrainingProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = {key: f"{value:.3f}" for key, value in (logs or {}).items() if key in ("loss", "eval_loss")}
        self._progress.update(self._task, **shown)  # type: ignore[arg-type]  # rich's extra fields
        # A log file gets lines instead of a bar.
        if "eval_loss" in shown and not self._console.is_terminal:
            self._console.print(
                f"{self._title}: step {state.global_step}/{state.max_steps}, held-out loss {shown['eval_loss']}"
            )
