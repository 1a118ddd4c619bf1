from typing import Any

import pytest
from transformers import Trainer, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler

from train.data_order import EpochOrder
from train.watch import loss_curves, rows_seen


class FakeArguments:
    train_batch_size, gradient_accumulation_steps, world_size = 2, 2, 1


class FakeTrainer:
    """What `rows_seen` reads of a trainer."""

    args = FakeArguments()

    def __init__(self, num_rows: int, best_step: int | None, sampler: Any) -> None:
        self.train_dataset = [None] * num_rows
        self.state = TrainerState(global_step=5, best_global_step=best_step)
        self._sampler = sampler

    def _get_train_sampler(self, dataset: Any) -> Any:
        return self._sampler


def order(num_rows: int) -> EpochOrder:
    return EpochOrder(LengthGroupedSampler(2, lengths=list(range(num_rows))), seed=3)


def seen(num_rows: int, best_step: int | None, sampler: Any, given: int | None = None) -> tuple[int, ...] | None:
    trainer = FakeTrainer(num_rows, best_step, sampler)
    return rows_seen(trainer, num_rows if given is None else given)  # type: ignore[arg-type]


def test_rows_seen_are_the_first_of_the_order_until_the_kept_step() -> None:
    assert seen(40, 2, order(40)) == tuple(order(40))[:8]
    assert seen(40, None, order(40)) == tuple(order(40))[:20]


def test_after_one_epoch_all_rows_were_seen() -> None:
    assert seen(20, 5, order(20)) == tuple(range(20))


@pytest.mark.parametrize(("sampler", "given"), [(range(40), 40), (order(40), 30)], ids=["other order", "cut rows"])
def test_rows_seen_may_be_unknown(sampler: Any, given: int) -> None:
    assert seen(40, 2, sampler, given) is None


def test_curves_have_all_losses_of_a_short_run() -> None:
    log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}, {"step": 3, "loss": 1.0}]
    curves = loss_curves(TrainerState(log_history=log, best_global_step=2))
    assert curves.train == ((1, 3.0), (2, 2.0), (3, 1.0))
    assert curves.held_out == ((2, 2.5),)
    assert curves.kept_step == 2


def test_curves_of_a_long_run_are_means_of_spans() -> None:
    log = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    curves = loss_curves(TrainerState(log_history=log))
    assert len(curves.train) == 200
    assert curves.train[0] == (5, 3.0)
    assert curves.train[-1] == (1000, 998.0)


def test_a_loss_that_is_no_number_is_left_out() -> None:
    assert loss_curves(TrainerState(log_history=[{"step": 1, "loss": float("nan")}])).train == ()


def test_the_trainer_has_what_is_read_of_it() -> None:
    assert hasattr(Trainer, "_get_train_sampler")
