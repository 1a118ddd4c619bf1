"""Fixtures that tests of several packages share."""

import asyncio
import gc
import importlib.metadata
import logging
import os
import shutil
import socketserver
import ssl
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import _pytest.logging
import pytest
import typer.main
import typer.testing
import uvicorn
from hypothesis import settings

from adapters.store.store import AdapterStore

# `make test-fast` looks at fewer examples of each property; `make test` at all.
settings.register_profile("whole", deadline=None)
settings.register_profile("fast", max_examples=10, deadline=None)
settings.load_profile("whole")

# Around the judge's loop, the server of the session, and a remote store. They import torch, which takes seconds, so
# neither they nor the fixtures below are imported in the process of `pytest -n` that only hands out the tests.
FIXTURES = ("tests.judge_bench", "tests.live_server", "tests.remote_stores")

# For a test that starts an engine or trains, with its fixtures; pyproject.toml has the limit of all others.
LONG_TEST_TIMEOUT_S = 1200


def _fsync_nothing(fd: Any) -> None:
    os.fstat(fd if isinstance(fd, int) else fd.fileno())  # refuses a closed one, too


# A store waits for the disk a dozen times a version; what tests write need not survive a power failure.
os.fsync = _fsync_nothing

# A client of HTTP reads the certificates of all authorities, and a `CliRunner` builds all commands, each time that one
# is made or called, for more than ten milliseconds.
vars(ssl)["create_default_context"] = cache(ssl.create_default_context)
vars(typer.testing)["_get_command"] = cache(typer.main.get_command)

# transformers and trl read the lists of files of all installed packages, for almost a second each.
vars(importlib.metadata)["packages_distributions"] = cache(importlib.metadata.packages_distributions)

# A server of the standard library polls twice a second whether it must stop, and uvicorn ten times a second; each test
# that starts one would wait for that.
socketserver.BaseServer.serve_forever.__defaults__ = (0.01,)


class _ShortSleeps:
    """Replaces `asyncio` in uvicorn's server."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(delay: float) -> None:
        await asyncio.sleep(min(delay, 0.01))


vars(uvicorn.server)["asyncio"] = _ShortSleeps()

# The imported libraries are more than a million objects: looking for garbage among them as often as Python does by
# default takes a fifth of the tests' time. `pytest_collection_modifyitems` enables it again.
gc.disable()
gc.set_threshold(200_000, 20, 100)


class _RootLogs(_pytest.logging.catching_logs[Any]):
    """pytest's handlers, on the root alone.

    pytest itself looks through all loggers, six times a test, for those that do not propagate: the libraries have
    thousands, and that took a tenth of the tests' time.
    """

    def __enter__(self) -> Any:
        root = logging.getLogger()
        root.addHandler(self.handler)
        self.attached_loggers.append(root)
        if self.level is not None:
            self.handler.setLevel(self.level)
            self.orig_level = root.level
            root.setLevel(min(self.orig_level, self.level))
        return self.handler


vars(_pytest.logging)["catching_logs"] = _RootLogs

# Readline sets them for the processes of `pytest -n`, and a rich console keeps the width that it was made with.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    """A tiny valid PEFT folder: rank 2, four modules."""
    from tests.peft_folders import write_peft_folder

    return write_peft_folder(tmp_path / "peft")


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A prepared base that `peft_folder` fits."""
    from tests.peft_folders import write_base_folder

    return write_base_folder(tmp_path / "bases" / "tiny")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """An empty adapter store whose clock stands still."""
    return AdapterStore(tmp_path / "adapters", clock=lambda: datetime(2026, 11, 21, tzinfo=UTC))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Find the shared fixtures, where tests run. Coverage, which begins with the session, counts what they import."""
    config = session.config
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    for name in () if hands_out else FIXTURES:
        if name in sys.modules:  # the conftest.py of a folder that was named on the command line has imported it
            config.pluginmanager.register(sys.modules[name], name)
        else:
            config.pluginmanager.import_plugin(name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import tests that start an engine where none of them is to run."""
    is_left_out = "not engine" in config.getoption("markexpr") and collection_path == Path(__file__).parent / "engine"
    return True if is_left_out else None


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without freeing more than a million objects, which takes seconds, where pytest-xdist has all results.

    Elsewhere let Python free all; libraries that count their objects print those that were not.
    """
    if hasattr(config, "workerinput"):
        os._exit(0)
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the engine's tests last, and last of these the one that ends the shared server; give long tests more time.

    Tests marked `gpu` are skipped where there is no GPU.
    """
    import torch

    has_gpu = shutil.which("nvidia-smi") is not None
    # For models as tiny as the tests' own: two threads would wait for each other far longer than they compute, and on
    # a machine that is busy for minutes.
    torch.set_num_threads(1)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True  # to the root, which is what `_RootLogs` listens to
    gc.freeze()  # what is imported by now stays until the end
    gc.enable()
    marks = {item: {mark.name for mark in item.iter_markers()} for item in items}
    for item, names in marks.items():
        if names & {"engine", "slow", "gpu"}:
            item.add_marker(pytest.mark.timeout(LONG_TEST_TIMEOUT_S))
        if "gpu" in names and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; nvidia-smi is not here"))
    items.sort(key=lambda item: [name in marks[item] for name in ("engine", "ends_live_server")])
