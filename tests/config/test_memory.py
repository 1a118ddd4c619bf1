"""Memory that a process may still take, in a container and outside of one."""

from pathlib import Path

import psutil
import pytest

from config.memory import free_memory_bytes


@pytest.mark.parametrize(("limit", "expected"), [("1000000", 600000), ("max", None), ("100", 0)])
def test_a_container_may_take_what_its_limit_leaves(tmp_path: Path, limit: str, expected: int | None) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("400000\n")
    free = free_memory_bytes(tmp_path)
    assert free == (pytest.approx(psutil.virtual_memory().available, rel=0.2) if expected is None else expected)


def test_where_nothing_limits_it_the_system_tells(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
