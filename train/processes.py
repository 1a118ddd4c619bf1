"""Several processes of one training, as `accelerate launch` starts them; the first alone writes and publishes."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState


def num_processes() -> int:
    """As launchers tell it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    return num_processes() == 1 or _state().is_main_process


@contextmanager
def first_in_turn() -> Iterator[None]:
    """The first process runs the block, then the others."""
    if num_processes() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def end_other_processes() -> None:
    """Raises:
    SystemExit: With 0, in every process but the first.
    """
    if not is_first_process():
        raise SystemExit(0)


def quiet_other_processes() -> None:
    """Leave progress to the first process."""
    if not is_first_process():
        logging.getLogger("train").setLevel(logging.WARNING)


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available())
