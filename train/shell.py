"""What every command of training shares: quiet libraries, our log, and errors in one line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from adapters.errors import AdapterError
from config.errors import ConfigError, DatasetError
from config.signals import exit_code_of, interrupted_by_sigterm
from config.terminal import log_handler, make_console, print_error
from quality.errors import QualityError
from train.errors import TrainError

console = make_console()


def quiet_libraries() -> None:
    """Set what libraries read when they are imported."""
    # Threads that wait for each other sleep: spinning, they wait a scheduler's turn for each one that another process
    # has displaced, thousands of times a step. Beside a busy core that takes minutes a step instead of seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Their bars and advice would drown ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for noisy in ("bitsandbytes", "httpx", "httpx2", "datasets", "accelerate", "gguf", "sentence_transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


@contextmanager
def shell() -> Iterator[None]:
    """Silence libraries, enable our log, and print errors as one line instead of a traceback."""
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[log_handler(console)])
    try:
        yield
    except (TrainError, AdapterError, ConfigError, DatasetError, QualityError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno is None:  # a library's own, not the system's
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print_error(f"{where}{error.strerror}. Give another path, or make room or access there.")
        raise typer.Exit(1) from None


@contextmanager
def continued_by(command: str) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, say that the same command continues, then exit."""
    try:
        with interrupted_by_sigterm():
            yield
    except KeyboardInterrupt as interrupt:
        console.print(f"\ninterrupted; run the same `lorikeet {command}` again to continue", soft_wrap=True)
        raise typer.Exit(exit_code_of(interrupt)) from None
