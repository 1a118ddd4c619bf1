"""Every test has a time limit, and one that starts an engine or trains has a longer one."""

import pytest

from tests.conftest import LONG_TEST_TIMEOUT_S


@pytest.mark.slow
def test_a_slow_test_has_the_long_limit(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("timeout").args == (LONG_TEST_TIMEOUT_S,)


def test_any_other_test_has_the_limit_of_the_project(request: pytest.FixtureRequest) -> None:
    assert 0 < float(request.config.getini("timeout")) < LONG_TEST_TIMEOUT_S
    assert request.node.get_closest_marker("timeout") is None
