"""What a job tells of its training, step by step, and where it stops: at a checkpoint, when it is asked to."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adapters.jobs.queue import JobQueue
from train.jobs.stop import STOPPED, StopRequest
from train.methods.method import Trainable

_MAX_STEP_EVENTS = 100
_PROGRESS_EVERY_S = 2.0
_MAX_CHECKPOINTS = 5
_SAMPLED_ROWS = 2000
_SHOWN = {"loss": "training loss", "reward": "training reward", "eval_loss": "validation loss"}
_SHOWN |= {"eval_reward": "validation reward", "eval_exact_match": "validation exact match"}
_OPENAI = {"loss": "train_loss", "eval_loss": "valid_loss"}
"""Names of OpenAI's, by the trainer's; the others keep theirs."""

logger = logging.getLogger(__name__)

PublishCheckpoint = Callable[[int, Trainable, Mapping[str, float | None]], None]


class Yielding(Protocol):
    """Whether training must wait for clients."""

    def is_needed(self) -> bool: ...

    def wait(self, is_stopped: Callable[[], bool]) -> None:
        """Return when they do not need it any more, or `is_stopped`."""
        ...


@dataclass
class JobReporter(TrainerCallback):
    """Writes events, checkpoints and progress of a run.

    Attributes:
        publish: Makes a checkpoint a model that can be asked; None: those of this method cannot be.
    """

    queue: JobQueue
    job_id: str
    worker: str
    stop: StopRequest
    yielding: Yielding
    publish: PublishCheckpoint | None
    clock: Callable[[], float] = time.time
    metrics: dict[str, float] = field(default_factory=dict)
    _step: int = 0
    _started: tuple[float, int] = (0.0, 0)
    _tokens_per_step: float = 0.0
    _progress_at: float = 0.0
    _is_yielding: bool = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stop.is_training = True
        self._started = (self.clock(), state.global_step)
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._tokens_per_step = rows * tokens_per_row(getattr(kwargs.get("train_dataloader"), "dataset", None))
        if state.global_step:
            self._tell_checkpoint(args, state, kwargs.get("model"))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._report_step(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._report_progress(state)
        self._is_yielding = self.yielding.is_needed()
        if self.stop.is_set or self._is_yielding:
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._note(state, logs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._note(state, metrics)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._tell_checkpoint(args, state, kwargs.get("model"))
        if self.stop.is_set:
            raise SystemExit(STOPPED)
        if self._is_yielding:
            self._wait(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._report_step(state)
        self._report_progress(state, is_last=True)
        self.stop.is_training = False
        if self.stop.is_set:
            raise SystemExit(STOPPED)

    def _tell_checkpoint(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """The step of a checkpoint, and its model; once more after a restart, as the process may have died before."""
        for entry in state.log_history:
            if entry["step"] == state.global_step:
                self._note(state, entry)
        metrics = named_metrics(self.metrics)
        self._report_step(state)
        if self.publish is not None and is_kept(state.global_step, state.max_steps, int(args.save_steps)):
            self.publish(state.global_step, model, metrics)

    def _wait(self, step: int) -> None:
        message = f"Training waits at step {step}: clients' inter-token latency is too high"
        self.queue.add_event(self.job_id, message, worker=self.worker, key=f"wait {step}")
        self.yielding.wait(lambda: self.stop.is_set)
        if self.stop.is_set:
            raise SystemExit(STOPPED)
        self.queue.add_event(self.job_id, "Training continues", worker=self.worker, key=f"wait {step} over")

    def _note(self, state: TrainerState, figures: Mapping[str, float] | None) -> None:
        if self._step != state.global_step:
            self.metrics, self._step = {}, state.global_step
        self.metrics |= {key: value for key, value in (figures or {}).items() if key in _SHOWN}

    def _report_step(self, state: TrainerState) -> None:
        """Add one event per step, or about a hundred per run."""
        metrics, step, total = self.metrics, self._step, state.max_steps
        self.metrics = {}
        has_evaluation = any(key.startswith("eval_") for key in metrics)
        if not metrics or step == 0 or (step % max(total // _MAX_STEP_EVENTS, 1) and not has_evaluation):
            return
        figures_text = ", ".join(f"{_SHOWN[key]}={value:.2f}" for key, value in metrics.items())
        figures = {"step": step, "total_steps": total} | named_metrics(metrics)
        self.queue.add_event(
            self.job_id,
            f"Step {step}/{total}: {figures_text}",
            worker=self.worker,
            type="metrics",
            data=figures,
            key=f"step {step}",
        )

    def _report_progress(self, state: TrainerState, *, is_last: bool = False) -> None:
        now = self.clock()
        if not is_last and now - self._progress_at < _PROGRESS_EVERY_S:
            return
        self._progress_at = now
        (since, first), step = self._started, state.global_step
        left_s = (now - since) / max(step - first, 1) * max(state.max_steps - step, 0)
        tokens = state.num_input_tokens_seen or step * self._tokens_per_step
        self.queue.progress(
            self.job_id, self.worker, trained_tokens=round(tokens), estimated_finish=round(now + left_s)
        )


def named_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics by OpenAI's names; a loss that is not finite is None, as JSON has no NaN."""
    return {_OPENAI.get(key, key): round(value, 6) if math.isfinite(value) else None for key, value in metrics.items()}


def is_kept(step: int, max_steps: int, save_steps: int) -> bool:
    """Whether a checkpoint becomes a model: at most five of a run, evenly spread; the last one is the result itself."""
    every = save_steps * max(math.ceil(max_steps / save_steps / _MAX_CHECKPOINTS), 1)
    return step % every == 0 and step < max_steps


def tokens_per_row(dataset: Any) -> float:
    """Mean tokens of a trainer's row, all its sequences together; 0 if it has none yet."""
    try:
        rows = [dataset[number] for number in range(min(len(dataset), _SAMPLED_ROWS))]
    except TypeError:  # a stream
        return 0.0
    lengths = [_num_tokens(row) for row in rows if isinstance(row, Mapping)]
    return sum(lengths) / len(lengths) if lengths else 0.0


def _num_tokens(row: Mapping[str, Any]) -> int:
    ids = {key: value for key, value in row.items() if key.endswith("ids") or key == "prompt"}
    return sum(len(value) for value in ids.values() if isinstance(value, list | tuple))
