"""What a run of any objective gets: an order of examples, watchers, and the losses of its record."""

from collections.abc import Sequence, Sized
from dataclasses import replace
from math import isfinite
from statistics import fmean

from transformers import Trainer, TrainerState

from adapters.store.manifest import LossCurves
from train.data_order import EpochOrder, fix_order
from train.divergence import DivergenceCheck, StopDivergence
from train.objectives.objective import Objective, Task
from train.objectives.rewards import reward_curve
from train.validation_score import ValidationScore

_MAX_POINTS = 200
"""Of a curve in the manifest."""


def watch_run(trainer: Trainer, task: Task, objective: Objective) -> None:
    """Fix the order of examples, and add callbacks; the domain's metric comes first, as early stopping reads it."""
    fix_order(trainer)
    recipe = task.config.recipe
    if recipe.metric_for_best_model != "eval_loss":
        rows = objective.questions(replace(task, rows={"test": task.rows["validation"]}))
        score = ValidationScore(task.tokenizer, task.dataset, rows, task.template_time)
        trainer.callback_handler.callbacks.insert(0, score)
    trainer.add_callback(StopDivergence(DivergenceCheck(task.config.name, recipe)))


def metrics_of(state: TrainerState) -> dict[str, float]:
    """Mean loss of all steps, also those before a resume, and what the kept weights reached on the validation split."""
    losses = [log["loss"] for log in state.log_history if "loss" in log]
    best = state.best_global_step
    kept = {
        key: value
        for log in state.log_history
        if log["step"] == best
        for key, value in log.items()
        if key in ("eval_loss", "eval_exact_match", "eval_reward")
    }
    nan = float("nan")
    if not kept:
        kept = {"eval_loss": nan}
    return {
        "train_loss": round(fmean(losses), 4) if losses else nan,
        **{key: round(value, 4) for key, value in kept.items()},
        "steps": float(state.global_step),
    } | reward_curve(state.log_history)


def loss_curves(state: TrainerState) -> LossCurves:
    """The run's losses; of many steps, means of equal spans."""
    train = [(int(log["step"]), float(log["loss"])) for log in state.log_history if "loss" in log]
    held_out = [(int(log["step"]), float(log["eval_loss"])) for log in state.log_history if "eval_loss" in log]
    return LossCurves(train=_thinned(train), held_out=_thinned(held_out), kept_step=state.best_global_step)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    finite = [(step, value) for step, value in points if isfinite(value)]
    span = -(-len(finite) // _MAX_POINTS) or 1
    groups = [finite[start : start + span] for start in range(0, len(finite), span)]
    return tuple((group[-1][0], round(fmean(value for _, value in group), 4)) for group in groups)


def rows_seen(trainer: Trainer, num_rows: int, num_replay: int = 0) -> tuple[int, ...] | None:
    """Numbers of the training rows that the kept weights have seen; None: not known.

    It is known where each row is one sequence of the trainer, and the order depends on seed and epoch alone. From the
    second epoch on, all rows were seen.

    Args:
        num_rows: Of the training split, which the trainer's sequences begin with.
        num_replay: General rows after them.
    """
    data, args, steps = trainer.train_dataset, trainer.args, trainer.state.best_global_step or trainer.state.global_step
    num_seen = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    num_sequences = len(data) if isinstance(data, Sized) else 0
    if num_seen >= num_sequences:
        return tuple(range(num_rows))
    sampler = trainer._get_train_sampler(trainer.train_dataset)
    if num_sequences != num_rows + num_replay or not isinstance(sampler, EpochOrder):
        return None
    return tuple(number for number in list(sampler)[:num_seen] if number < num_rows)
