"""A grammar that costs too much is ended by itself; other requests of the step get their masks."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from serve.engine import masks
from serve.engine.masks import ALLOWANCE_S, PER_TOKEN_S, Allowances, Ended

ALLOWED = 5  # what an ordinary grammar of these tests writes into its row


class Grammar:
    """Writes its row, at once or when it is let go."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.may_go.set()
        self.began = threading.Event()

    def is_terminated(self) -> bool:
        return False

    def fill_bitmask(self, bitmask: Any, index: int) -> None:
        self.began.set()
        self.may_go.wait(30)  # not for ever, where nobody leaves it behind
        bitmask[index].fill_(ALLOWED)


class Stuck(Grammar):
    def __init__(self) -> None:
        super().__init__()
        self.may_go.clear()


def manager() -> Any:
    """vLLM's, of which the guard uses this much."""
    return SimpleNamespace(_grammar_bitmask=None, _full_mask=torch.tensor(-1, dtype=torch.int32))


def stock(manager: Any, requests: Any, ids: list[str], drafts: Any) -> Any:
    """As vLLM fills a step's masks one by one."""
    if manager._grammar_bitmask is None:
        manager._grammar_bitmask = torch.zeros(8, 2, dtype=torch.int32)
    for index, each in enumerate(ids):
        masks._fill_bitmasks(None, manager, [(requests[each].structured_output_request.grammar, index, True)])
    return manager._grammar_bitmask[: len(ids)].numpy()


def requests_of(**grammars: Any) -> dict[str, Any]:
    return {
        name: SimpleNamespace(
            request_id=name, use_structured_output=True, structured_output_request=SimpleNamespace(grammar=grammar)
        )
        for name, grammar in grammars.items()
    }


def step(manager: Any, requests: dict[str, Any]) -> Any:
    return masks._grammar_bitmask(stock, manager, requests, list(requests), {})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "SLOWEST_S", 0.01)
    monkeypatch.setattr(masks, "_LOOK_S", 0.01)


def test_ordinary_grammars_get_their_rows() -> None:
    rows = step(manager(), requests_of(a=Grammar(), b=Grammar(), c=Ended()))
    assert rows.tolist() == [[ALLOWED] * 2, [ALLOWED] * 2, [-1, -1]]


@pytest.mark.usefixtures("impatient")
def test_a_stuck_grammar_is_ended_and_the_others_get_their_rows() -> None:
    stuck, engine = Stuck(), manager()
    requests = requests_of(a=Grammar(), b=stuck, c=Grammar())
    rows = step(engine, requests)
    assert rows.tolist() == [[ALLOWED] * 2, [-1, -1], [ALLOWED] * 2]
    assert masks._guard(engine).ended == {"b"}
    stuck.may_go.set()


@pytest.mark.usefixtures("impatient")
def test_what_a_stuck_grammar_writes_later_reaches_nobody() -> None:
    stuck, engine = Stuck(), manager()
    requests = requests_of(a=stuck, b=Grammar())
    step(engine, requests)
    late = [thread for thread in threading.enumerate() if thread.name == "lorikeet-masks"]
    kept = engine._grammar_bitmask.clone()
    stuck.may_go.set()
    for thread in late:
        thread.join()
    assert torch.equal(engine._grammar_bitmask, kept)


def test_an_error_of_a_grammar_is_the_engines() -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        masks._grammar_bitmask(broken, manager(), requests_of(a=Grammar()), ["a"], {})


def test_an_allowance_grows_with_each_token_and_ends() -> None:
    allowances = Allowances()
    assert not any(allowances.charge("cheap", PER_TOKEN_S) for _ in range(10_000))
    assert allowances.charge("dear at once", ALLOWANCE_S + 2 * PER_TOKEN_S)
    used_up = [allowances.charge("dear", 3 * PER_TOKEN_S) for _ in range(100)]
    assert used_up.index(True) == pytest.approx(ALLOWANCE_S / (2 * PER_TOKEN_S), abs=2)


def test_allowances_of_ended_requests_are_forgotten() -> None:
    allowances = Allowances()
    for number in range(1000):
        allowances.charge(str(number), 0.5)
        allowances.keep({str(number)}, 1)
    assert len(allowances._left_s) < 100


def test_the_replacements_are_there_and_done_once() -> None:
    from vllm.v1.structured_output import StructuredOutputManager

    masks.end_costly_grammars()
    first = StructuredOutputManager.grammar_bitmask
    masks.end_costly_grammars()
    assert StructuredOutputManager.grammar_bitmask == first


def test_vllms_own_manager_fills_masks_through_the_guard() -> None:
    """With a real tokenizer of bytes and a real grammar."""
    import xgrammar
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

    masks.end_costly_grammars()
    info = xgrammar.TokenizerInfo([chr(code) for code in range(1, 65)], stop_token_ids=[0])
    compiled = xgrammar.GrammarCompiler(info).compile_grammar('root ::= "0"')
    grammar = XgrammarGrammar(vocab_size=64, matcher=xgrammar.GrammarMatcher(compiled), ctx=compiled)
    real: Any = StructuredOutputManager.__new__(StructuredOutputManager)
    real.__dict__ |= vars(manager()) | {
        "fill_bitmask_parallel_threshold": 128,
        "enable_in_reasoning": True,
        "backend": SimpleNamespace(allocate_token_bitmask=lambda rows: xgrammar.allocate_token_bitmask(rows, 64)),
        "vllm_config": SimpleNamespace(
            num_speculative_tokens=0,
            scheduler_config=SimpleNamespace(max_num_seqs=2),
            model_config=SimpleNamespace(is_diffusion=False),
        ),
    }
    (row,) = real.grammar_bitmask(requests_of(a=grammar), ["a"], {})
    assert np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist() == [ord("0") - 1]
