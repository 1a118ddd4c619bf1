"""Ours takes the place of vLLM's method only where that is what ours was written for."""

import logging
import types
from typing import Any

import pytest

from serve.engine import replace
from serve.engine.patches import CHANGES, change_at
from serve.engine.replace import PatchError, Replacement, install, place_of, replace_method, require_unchanged, skipped

OPTIONAL = "vllm.v1.worker.cpu_worker:CPUWorker.execute_model"
REQUIRED = "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager._apply_adapters"


def other_class(place: str, *more: str) -> Any:
    """A class of vLLM's as a later release may have it: by its name, with other source."""
    module, _, path = place.partition(":")
    owner, _, name = path.partition(".")

    def theirs(self: object) -> str:
        return "theirs"

    return type(owner, (), {"__module__": module, **dict.fromkeys((name, *more), theirs)})


def ours(stock: Any, self: object) -> str:
    return f"ours, not {stock(self)}"


def ours_too(stock: Any, self: object) -> str:
    return f"ours, too, not {stock(self)}"


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    """What this process has skipped before is not of these tests."""
    before = set(replace._skipped)
    replace._skipped.clear()
    yield
    replace._skipped.clear()
    replace._skipped.update(before)


def test_what_does_not_match_stays_vllms_own_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    owner = other_class(OPTIONAL)
    for _ in range(2):
        assert not install(Replacement(owner, "execute_model", ours))
    assert owner().execute_model() == "theirs"
    assert skipped() == {OPTIONAL}
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert OPTIONAL in line
    assert change_at(OPTIONAL).why in line


def test_none_of_several_is_made_where_one_does_not_match() -> None:
    class Other:
        def say(self) -> str:
            return "theirs"

    owner = other_class(OPTIONAL)
    assert not install(Replacement(Other, "say", ours), Replacement(owner, "execute_model", ours))
    assert Other().say() == "theirs"


def test_what_answers_depend_on_ends_the_start_with_the_reason() -> None:
    owner = other_class(REQUIRED)
    with pytest.raises(PatchError, match=r"LRUCacheWorkerLoRAManager\._apply_adapters differs from that of vLLM 0\.32"):
        install(Replacement(owner, "_apply_adapters", ours))
    assert owner()._apply_adapters() == "theirs"


def test_an_overridden_method_that_differs_ends_the_start() -> None:
    owner = other_class("vllm.v1.core.sched.scheduler:Scheduler.schedule")
    with pytest.raises(PatchError, match=r"Scheduler\.schedule differs"):
        require_unchanged(owner, "schedule")


def test_a_place_that_is_gone_does_not_match() -> None:
    module = types.ModuleType("vllm.model_executor.layers.utils")
    assert not install(Replacement(module, "dispatch_cpu_unquantized_gemm", ours))
    assert skipped() == {"vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm"}


def test_a_change_to_vllm_without_an_entry_is_an_error() -> None:
    owner = other_class("vllm.v1.worker.cpu_worker:CPUWorker.undeclared")
    with pytest.raises(LookupError, match=r"CPUWorker\.undeclared has 0 entries"):
        install(Replacement(owner, "undeclared", ours))


def test_two_patches_of_one_method_are_an_error() -> None:
    class Other:
        def say(self) -> str:
            return "theirs"

    replace_method(Other, "say", ours)
    replace_method(Other, "say", ours)
    with pytest.raises(PatchError, match=r"Two patches of Other\.say: .*:ours and .*:ours_too"):
        replace_method(Other, "say", ours_too)
    assert Other().say() == "ours, not theirs"


def test_a_second_patch_of_a_place_in_the_table_is_an_error_too() -> None:
    owner = other_class(OPTIONAL)
    replace_method(owner, "execute_model", ours)
    assert install(Replacement(owner, "execute_model", ours))
    with pytest.raises(PatchError, match="Two patches of CPUWorker"):
        install(Replacement(owner, "execute_model", ours_too))


def test_a_class_method_stays_one() -> None:
    class Other:
        @classmethod
        def name(cls) -> str:
            return cls.__name__

    replace_method(Other, "name", ours)
    assert Other.name() == Other().name() == "ours, not Other"


def test_every_place_is_named_as_a_replacement_names_it() -> None:
    owner = other_class(OPTIONAL)
    assert place_of(owner, "execute_model") == OPTIONAL
    assert all(":" in place for change in CHANGES for place in change.sources)
