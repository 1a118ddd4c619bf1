"""What every command of training shares: quiet libraries, our log, and errors in one line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from adapters.errors import AdapterError
from config.errors import ConfigError, DatasetError
from config.terminal import log_handler, make_console, print_error
from train.errors import TrainError

console = make_console()


@contextmanager
def shell() -> Iterator[None]:
    """Silence libraries, enable our log, and print errors as one line instead of a traceback."""
    # Threads that wait for each other sleep: spinning, they wait a scheduler's turn for each one that another process
    # has displaced, thousands of times a step. Beside a busy core that takes minutes a step instead of seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Their bars and advice would drown ours; they read these when they are imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[log_handler(console)])
    for noisy in ("bitsandbytes", "httpx", "datasets", "accelerate", "gguf", "sentence_transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        yield
    except (TrainError, AdapterError, ConfigError, DatasetError) as error:
        print_error(error)
        raise typer.Exit(1) from None
