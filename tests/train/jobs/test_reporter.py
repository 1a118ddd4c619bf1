"""What a job tells while it trains, with a trainer's calls in their order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from adapters.jobs.records import Job
from tests.clock import FakeClock
from tests.jobs_on_disk import JobsOnDisk, jobs_on_disk
from train.jobs.reporter import JobReporter, is_kept
from train.jobs.stop import STOPPED, StopRequest

TOTAL, SAVE_EVERY = 8, 2


@dataclass
class FakeYielding:
    """Clients need the machine at some steps."""

    steps: set[int] = field(default_factory=set)
    waited: int = 0
    step: int = 0
    while_waiting: Callable[[], None] = lambda: None

    def is_needed(self) -> bool:
        return self.step in self.steps

    def wait(self, is_stopped: Callable[[], bool]) -> None:
        self.waited += 1
        self.while_waiting()


@dataclass
class Run:
    """A trainer of eight steps that calls a reporter, and keeps the steps at which it saved."""

    disk: JobsOnDisk
    job: Job
    reporter: JobReporter
    yielding: FakeYielding
    arguments: TrainingArguments
    saved: list[int] = field(default_factory=list)
    published: list[int] = field(default_factory=list)

    def train(self, first: int = 0, last: int = TOTAL, log_history: list[dict[str, float]] | None = None) -> None:
        state = TrainerState(max_steps=TOTAL, global_step=first, log_history=log_history or [])
        control, arguments = TrainerControl(), self.arguments
        rows = [{"input_ids": [1] * 10, "labels": [1] * 10}] * 3
        self.reporter.on_train_begin(arguments, state, control, train_dataloader=Loader(rows))
        for step in range(first + 1, last + 1):
            self.reporter.on_step_begin(arguments, state, control)
            state.global_step = self.yielding.step = step
            control.should_save = False
            self.reporter.on_step_end(arguments, state, control)
            self.reporter.on_log(arguments, state, control, logs={"loss": 1 / step, "grad_norm": 1.0})
            if step % SAVE_EVERY == 0:
                self.reporter.on_evaluate(arguments, state, control, metrics={"eval_loss": 2 / step})
            if step % SAVE_EVERY == 0 or control.should_save:
                self.saved.append(step)
                self.reporter.on_save(arguments, state, control, model=None)
        if last == TOTAL:
            self.reporter.on_train_end(arguments, state, control)


@dataclass
class Loader:
    dataset: list[dict[str, list[int]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    disk, yielding = jobs_on_disk(tmp_path), FakeYielding()
    job = disk.submit()
    disk.queue.claim("me")
    arguments = TrainingArguments(str(tmp_path), save_steps=SAVE_EVERY, per_device_train_batch_size=4, use_cpu=True)
    reporter = JobReporter(disk.queue, job.id, "me", StopRequest(), yielding, None, clock=FakeClock())
    run = Run(disk, job, reporter, yielding, arguments)

    def publish(step: int, model: object, metrics: Mapping[str, float | None]) -> None:
        run.published.append(step)

    reporter.publish = publish
    return run


def test_each_step_is_told_with_its_losses(run: Run) -> None:
    run.train()
    assert run.disk.steps(run.job) == list(range(1, TOTAL + 1))
    events = [event for event in run.disk.events(run.job) if event.type == "metrics"]
    assert [event.message for event in events[:2]] == [
        "Step 1/8: training loss=1.00",
        "Step 2/8: training loss=0.50, validation loss=1.00",
    ]
    assert events[1].data == {"step": 2, "total_steps": 8, "train_loss": 0.5, "valid_loss": 1.0}


def test_steps_after_a_checkpoint_are_told_once(run: Run) -> None:
    run.train(last=7)  # killed there
    run.train(first=6)
    assert run.disk.steps(run.job) == list(range(1, TOTAL + 1))


def test_a_checkpoint_that_was_not_told_is_told_after_a_restart(run: Run) -> None:
    run.train(first=4, log_history=[{"step": 3, "loss": 9.0}, {"step": 4, "loss": 0.25}, {"step": 4, "eval_loss": 0.5}])
    assert run.disk.steps(run.job) == [4, 5, 6, 7, 8]
    assert run.published == [4, 6]
    told = next(event for event in run.disk.events(run.job) if event.type == "metrics")
    assert told.message == "Step 4/8: training loss=0.25, validation loss=0.50"


def test_tokens_and_the_end_are_estimated(run: Run) -> None:
    run.train()
    job = run.disk.queue.get(None, run.job.id)
    assert job.trained_tokens == TOTAL * 4 * 10
    assert job.estimated_finish == 1000


def test_a_loss_that_is_no_number_is_null(run: Run) -> None:
    state, control = TrainerState(max_steps=1, global_step=1), TrainerControl()
    run.reporter.on_log(run.arguments, state, control, logs={"loss": float("nan")})
    run.reporter.on_train_end(run.arguments, state, control)
    assert run.disk.events(run.job)[-1].data == {"step": 1, "total_steps": 1, "train_loss": None}


def test_a_stop_waits_for_a_checkpoint_of_its_own(run: Run) -> None:
    run.reporter.stop.is_training = True
    run.reporter.stop.request()
    with pytest.raises(SystemExit) as ended:
        run.train()
    assert ended.value.code == STOPPED
    assert run.saved == [1]
    assert run.published == []
    assert run.disk.steps(run.job) == [1]


def test_a_stop_outside_of_training_is_immediate() -> None:
    stop = StopRequest()
    with pytest.raises(SystemExit) as ended:
        stop.request()
    assert ended.value.code == STOPPED


def test_clients_are_given_way_at_a_checkpoint(run: Run) -> None:
    run.yielding.steps = {3}
    run.train()
    assert run.saved == [2, 3, 4, 6, 8]
    assert run.yielding.waited == 1
    messages = run.disk.messages(run.job)
    waits = messages.index("Training waits at step 3: clients' inter-token latency is too high")
    assert messages[waits + 1] == "Training continues"


def test_a_waiting_training_can_be_stopped(run: Run) -> None:
    run.yielding.steps = {3}
    run.yielding.while_waiting = run.reporter.stop.request
    with pytest.raises(SystemExit):
        run.train()
    assert run.saved == [2, 3]


def test_the_last_checkpoint_is_the_result_itself(run: Run) -> None:
    run.train()
    assert run.published == [2, 4, 6]


@pytest.mark.parametrize(
    ("max_steps", "save_steps", "kept"),
    [(20, 5, [5, 10, 15]), (100, 5, [20, 40, 60, 80]), (10, 4, [4, 8]), (3, 3, []), (22, 2, [6, 12, 18])],
)
def test_at_most_five_checkpoints_are_kept(max_steps: int, save_steps: int, kept: list[int]) -> None:
    saved = range(save_steps, max_steps + 1, save_steps)
    assert [step for step in saved if is_kept(step, max_steps, save_steps)] == kept
