"""Which adapters `VllmEngine` lists: those that vLLM's worker has, also where a removal failed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vllm is not installed")

from vllm.v1.engine.exceptions import EngineDeadError

from adapters.reference import Target
from config.serve import ServeConfig
from serve.engine.engine import VllmEngine
from serve.errors import NotReadyError
from serve.records import Observers
from tests.peft_folders import write_soft_prompt

pytestmark = pytest.mark.anyio
MEDICAL = Target("medical", 1)


class Worker:
    """As much of vLLM's engine as loads and removes adapters."""

    errored = False

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.error: Exception | None = None
        self.virtual_tokens: dict[str, int] = {}

    async def add_lora(self, request: Any) -> None:
        self.held.add(request.lora_int_id)

    async def remove_lora(self, number: int) -> None:
        if self.error is not None:
            raise self.error
        self.held.discard(number)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def engine(worker: Any) -> VllmEngine:
    made = VllmEngine(ServeConfig(base="tiny"), Path("tiny"), Observers())
    made._llm, made._serving.openai_serving_chat = worker, object()
    made._serving.openai_serving_models = SimpleNamespace(lora_requests={})
    return made


async def test_an_engine_that_does_not_run_has_no_adapters() -> None:
    assert VllmEngine(ServeConfig(base="tiny"), Path("tiny"), Observers()).resident == set()


async def test_an_adapter_is_listed_until_it_is_removed(engine: VllmEngine, worker: Worker, tmp_path: Path) -> None:
    await engine.load(MEDICAL, tmp_path)
    worker.error = EngineDeadError()
    with pytest.raises(NotReadyError):
        await engine.unload(MEDICAL)
    assert engine.resident == {"medical@1"}
    worker.error = None
    await engine.unload(MEDICAL)
    assert (engine.resident, worker.held) == (set(), set())


async def test_a_soft_prompts_placeholders_stay_while_its_slot_may(
    engine: VllmEngine, worker: Worker, tmp_path: Path
) -> None:
    await engine.load(MEDICAL, write_soft_prompt(tmp_path / "soft", torch.ones(3, 8)))
    worker.error = EngineDeadError()
    with pytest.raises(NotReadyError):
        await engine.unload(MEDICAL)
    assert worker.virtual_tokens == {"medical@1": 3}  # without them the first real tokens would be overwritten
    worker.error = None
    await engine.unload(MEDICAL)
    assert worker.virtual_tokens == {}


async def test_another_load_replaces_what_could_not_be_removed(
    engine: VllmEngine, worker: Worker, tmp_path: Path
) -> None:
    for _ in range(2):
        await engine.load(MEDICAL, tmp_path)
    assert (engine.resident, len(worker.held)) == ({"medical@1"}, 1)
