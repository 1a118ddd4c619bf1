"""The one table of HTTP statuses: what the module draws is what its classes answer."""

import re

import pytest

from adapters import errors as adapter_errors
from adapters.errors import (
    AdapterError,
    AdapterInUseError,
    AdapterNotFoundError,
    InvalidReferenceError,
    InvalidSplitError,
    StoreDiskError,
)
from serve import errors as serve_errors
from serve.errors import ServeError, answer_of_store

DRAWN = dict(re.findall(r"^[│├└─ ]*(\w+Error) .*?  (\d{3}|as vLLM says)", serve_errors.__doc__ or "", re.MULTILINE))


def kinds_of(parent: type[ServeError]) -> list[type[ServeError]]:
    return [parent, *(kind for child in parent.__subclasses__() for kind in kinds_of(child))]


@pytest.mark.parametrize("kind", [kind for kind in kinds_of(ServeError) if kind.__module__ == "serve.errors"])
def test_an_error_answers_with_the_status_that_is_drawn(kind: type[ServeError]) -> None:
    assert DRAWN[kind.__name__] in (str(kind.status), "as vLLM says")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AdapterNotFoundError("x"), 404),
        (InvalidReferenceError("x"), 404),
        (InvalidSplitError("x"), 409),
        (AdapterInUseError("x"), 409),
        (StoreDiskError("x"), 507),
    ],
)
def test_the_stores_refusals_have_a_status(error: AdapterError, status: int) -> None:
    answer = answer_of_store(error)
    assert (answer.status, str(answer)) == (status, "x")


def test_the_store_names_no_status_itself() -> None:
    assert not re.search(r"\b[45]\d\d\b", adapter_errors.__doc__ or "")
