"""Tensors by their headers: which hold NaN, infinity or numbers that are too large."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapters.errors import InvalidAdapterError
from adapters.lint.tensors import TensorHeader, find_larger, read_headers

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BAD = st.sampled_from([float("nan"), float("inf"), float("-inf")])


def not_finite(path: Path, headers: Sequence[TensorHeader], items: int = 1 << 16) -> set[str]:
    return set(find_larger(path, [(header, math.inf) for header in headers], items=items))


@st.composite
def files(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Tensors of several types and sizes, empty ones among them; the names of those that are bad somewhere."""
    made, bad = {}, set()
    for number in range(draw(st.integers(1, 6))):
        name, size = f"t{number}", draw(st.integers(0, 40))
        made[name] = torch.linspace(-3, 3, size).to(draw(st.sampled_from(DTYPES)))
        if size and draw(st.booleans()):
            made[name][draw(st.integers(0, size - 1))] = draw(BAD)
            bad.add(name)
    return made, bad


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files(), st.sampled_from([1, 7, 1 << 16]))
def test_exactly_the_tensors_with_nan_or_infinity_are_found(
    tmp_path: Path, file: tuple[dict[str, torch.Tensor], set[str]], items: int
) -> None:
    made, bad = file
    path = tmp_path / "any.safetensors"
    save_file(made, path)
    headers = list(read_headers(path).values())
    assert not_finite(path, headers, items) == bad
    some = headers[::2]
    assert not_finite(path, some, items) == bad & {header.name for header in some}


def test_the_largest_finite_numbers_are_finite(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_file({str(t): torch.tensor([torch.finfo(t).max, torch.finfo(t).min], dtype=t) for t in DTYPES}, path)
    assert not_finite(path, list(read_headers(path).values())) == set()


@pytest.mark.parametrize("dtype", DTYPES)
@given(limit=st.floats(1e-3, 6e4), values=st.lists(st.floats(-7e4, 7e4), min_size=1, max_size=9))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tensor_that_reaches_its_limit_is_found(
    tmp_path: Path, dtype: torch.dtype, limit: float, values: list[float]
) -> None:
    path, tensor = tmp_path / "any.safetensors", torch.tensor(values).to(dtype)
    save_file({"a": torch.zeros(3, dtype=dtype), "t": tensor}, path)
    headers = read_headers(path)
    largest = tensor.abs().max().item()
    found = find_larger(path, [(headers["a"], limit), (headers["t"], limit)])
    assert found == ({"t": largest} if largest >= limit else {})


def test_a_file_that_is_cut_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(100)}, path)
    headers = list(read_headers(path).values())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidAdapterError, match=r"'cut.safetensors' ends in the middle of a tensor"):
        not_finite(path, headers)
