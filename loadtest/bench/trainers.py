"""Trainers in processes of their own (`train/bench_worker.py`), which take a step when told to."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from loadtest.bench.children import child
from loadtest.bench.options import BenchOptions
from loadtest.errors import TargetError

BASE = "smollm2-135m-nf4"
BNB_BASE = "smollm2-135m-nf4-bitsandbytes"
"""The same base in bitsandbytes' own 4-bit tensors."""
INT8_BASE = "smollm2-135m-int8-bitsandbytes"


@dataclass(frozen=True)
class MeasuredStep:
    """One training step; `peak_bytes` is the process's until then."""

    seconds: float
    num_tokens: int
    loss: float
    peak_bytes: int

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


@dataclass(frozen=True)
class Floor:
    """The matrix products of our last step alone."""

    seconds: float
    gflop: float


class TrainerProcess(Protocol):
    """A trainer in a process of its own."""

    def step(self) -> MeasuredStep: ...

    def floor(self) -> Floor: ...


class WorkerSide:
    """`train/bench_worker.py`, driven line by line; it ends with its standard input.

    Raises:
        TargetError: It ended without an answer. Its log says why.
    """

    def __init__(self, kind: str, base: Path, data: str, batch_size: int, log: Path, environment: dict[str, str]):
        self._name = f"{kind}, {data}"
        self.is_bf16 = False
        self._command = [sys.executable, "-P", "-m", "train.bench_worker", kind, str(base), data, str(batch_size)]
        self._log, self._environment = log, environment
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            log = stack.enter_context(self._log.open("w"))
            self._process = stack.enter_context(
                child(self._command, output=log, is_asked=True, environment=self._environment)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                self._process.communicate()

    def wait_until_ready(self) -> str:
        """How it computes."""
        answer = self._read()
        self.is_bf16 = bool(answer["is_bf16"])
        return f"{self._name}: {answer['computes']}"

    def step(self) -> MeasuredStep:
        return MeasuredStep(**self._ask("step"))

    def floor(self) -> Floor:
        return Floor(**self._ask("floor"))

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{what}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_read` finds the end of its output
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # Libraries write lines of their own.
        for line in self._process.stdout:
            if line.startswith(b"{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise TargetError(f"The trainer ({self._name}) ended without an answer.")


def prepared_base(options: BenchOptions, name: str, quantization: str, storage: str, logs: Path) -> Path:
    """A base of the home, prepared by `lorikeet base prepare` in a process of its own if it is not there."""
    folder = options.home.bases / name
    if folder.is_dir():
        return folder
    options.say(f"preparing the base {name}")
    words = "base", "prepare", "smollm2-135m", "--name", name, "--quantization", quantization, "--storage", storage
    log = logs / f"{name}.log"
    command = [sys.executable, "-P", "-m", "lorikeet", *words, "--home", str(options.home.root)]
    with log.open("w") as file, child(command, output=file, environment=options.environment) as process:
        code = process.wait()
    if code != 0:
        raise TargetError(f"The base {name!r} could not be prepared.")
    return folder


@contextmanager
def workers(
    options: BenchOptions,
    kinds: Sequence[tuple[str, Path]],
    data: str,
    logs: Path,
    batch_size: int,
) -> Iterator[list[WorkerSide]]:
    with ExitStack() as stack:
        sides = []
        for kind, base in kinds:
            log = logs / f"{kind}-{data}-{batch_size}.log"
            side = stack.enter_context(WorkerSide(kind, base, data, batch_size, log, dict(options.environment)))
            # One after the other: ours measures what to compute in while it starts.
            options.say(side.wait_until_ready())
            sides.append(side)
        yield sides
