"""A seeded request whose prompt is cut must not end the engine, and draws as if it had not been cut."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from serve.engine.cpu.seeds import _bookkeeping_sync


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stock(runner: Any) -> str:
    """As in vLLM: a CPU generator has no offset."""
    for index in np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]:
        generator = runner.input_batch.generators.get(int(index))
        if generator is not None:
            generator.set_offset(generator.get_offset() - 4)
    return "done"


def runner_of(generators: dict[int, torch.Generator], discarded: list[bool]) -> Any:
    batch = SimpleNamespace(generators=generators, num_reqs=len(discarded))
    return SimpleNamespace(input_batch=batch, discard_request_mask=SimpleNamespace(np=np.array(discarded)))


def test_a_cut_prompts_seed_starts_again_and_others_go_on() -> None:
    generators = {0: seeded(7), 2: seeded(7)}
    for generator in generators.values():
        torch.rand(3, generator=generator)
    runner = runner_of(dict(generators), [True, True, False])
    with pytest.raises(RuntimeError, match="offset"):
        stock(runner)
    assert _bookkeeping_sync(stock, runner) == "done"
    assert runner.input_batch.generators == generators
    drawn = torch.rand(4, generator=seeded(7))
    assert torch.equal(torch.rand(4, generator=generators[0]), drawn)
    assert torch.equal(torch.rand(1, generator=generators[2]), drawn[3:])


def test_an_error_of_vllm_loses_no_generator() -> None:
    def failing(runner: Any) -> None:
        raise ValueError("as vLLM")

    runner = runner_of({0: seeded(1)}, [True])
    with pytest.raises(ValueError, match="as vLLM"):
        _bookkeeping_sync(failing, runner)
    assert list(runner.input_batch.generators) == [0]
