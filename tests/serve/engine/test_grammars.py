"""Grammars are compiled in a process of their own, once each, within a limit of time."""

import asyncio
import json
from pathlib import Path

import pytest
import xgrammar

from serve.engine.grammars import GrammarChecks
from serve.errors import GrammarError, NotReadyError, RateLimitedError

pytestmark = pytest.mark.anyio

CPU_S = 1.0
ASSERTED_S = 60.0
"""For a compiler that never answers: no test waits so long."""


def tokenizer() -> str:
    """Of all bytes that are ASCII, and an end."""
    vocabulary: list[str] = ["</s>", *(chr(code) for code in range(1, 128))]
    return str(xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[0]).serialize_json())


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Of the module, as the compiler is."""
    return "asyncio"


@pytest.fixture(scope="module")
async def real():
    """One for all tests: its start takes most of their time, and it starts again where a test has ended it."""
    checks = GrammarChecks(tokenizer, CPU_S)
    yield checks
    await checks.stop()


def schema(**properties: object) -> tuple[str, str]:
    return "json", json.dumps({"type": "object", "properties": properties})


async def refusal(checks: GrammarChecks, grammar: tuple[str, str]) -> str:
    with pytest.raises(GrammarError) as refused:
        await checks.check(grammar)
    return str(refused.value)


@pytest.mark.slow
async def test_a_repetition_that_the_engine_cannot_compile_is_refused(real: GrammarChecks) -> None:
    score = {"enum": [1, 2]}
    await real.check(schema(reason={"type": "string", "pattern": "^[a-z]{1,120}$"}, score=score))
    told = await refusal(real, schema(reason={"type": "string", "pattern": "^[a-z]{1,200}$"}, score=score))
    assert "more than 127 times" in told


@pytest.mark.slow
async def test_grammars_of_every_kind_pass(real: GrammarChecks) -> None:
    tag = {"structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}], "triggers": ["<f>"]}
    for grammar in (
        schema(a={"type": "string", "pattern": "[a-z]{3}"}),
        ("regex", "[a-z]+(-[a-z]+)*"),
        ("grammar", 'root ::= "yes" | "no"'),
        ("lark", 'start: "yes" | "no"'),
        ("structural_tag", json.dumps(tag)),
    ):
        await real.check(grammar)


@pytest.mark.slow
async def test_a_grammar_that_takes_too_long_is_ended_and_others_are_not(real: GrammarChecks) -> None:
    bomb = schema(**{f"p{number}": {"type": "string", "pattern": ".{0,2000}"} for number in range(20)})
    refused, _ = await asyncio.gather(refusal(real, bomb), real.check(schema(a={"type": "string"})))
    assert "more than 1 s of processor time" in refused


@pytest.mark.slow
async def test_a_grammar_whose_masks_cost_more_and_more_is_refused(real: GrammarChecks) -> None:
    refused = await refusal(real, ("regex", "(a?a?a?a?a?a?a?a?){0,100}b"))
    assert "ms a token" in refused or "to compile" in refused  # on a slow CPU the time to compile is over first


@pytest.mark.slow
async def test_what_is_no_grammar_is_refused_with_the_reason(real: GrammarChecks) -> None:
    assert 'Unsupported type "strin"' in await refusal(real, ("json", '{"type": "strin"}'))
    assert "/project" not in await refusal(real, ("regex", "(a"))


def program(tmp_path: Path, answer: str) -> Path:
    """A compiler of a few lines; it writes what it was asked to `asked`, and answers as told."""
    path = tmp_path / "compiler.py"
    path.write_text(
        "import json, sys\n"
        "sys.stdin.readline()\n"
        "print('{}', flush=True)\n"
        "for line in sys.stdin:\n"
        "    job = json.loads(line)\n"
        f"    open({str(tmp_path / 'asked')!r}, 'a').write(job['spec'] + '\\n')\n"
        f"    {answer}\n"
    )
    return path


SAYS_YES = "print(json.dumps({'id': job['id'], 'error': None}), flush=True)"


async def test_a_grammar_is_compiled_once_for_all_who_ask(tmp_path: Path) -> None:
    checks = GrammarChecks(lambda: "", CPU_S, program(tmp_path, SAYS_YES))
    await asyncio.gather(*(checks.check(("json", "a")) for _ in range(50)))
    await checks.check(("json", "a"))
    await checks.check(("json", "b"))
    await checks.stop()
    assert (tmp_path / "asked").read_text() == "a\nb\n"


async def test_a_refusal_is_kept_too(tmp_path: Path) -> None:
    says_no = "print(json.dumps({'id': job['id'], 'error': 'no'}), flush=True)"
    checks = GrammarChecks(lambda: "", CPU_S, program(tmp_path, says_no))
    assert [await refusal(checks, ("regex", "x")) for _ in range(2)] == [
        "The grammar of this request is refused: no."
    ] * 2
    await checks.stop()
    assert (tmp_path / "asked").read_text() == "x\n"


async def test_one_who_leaves_takes_the_answer_from_nobody(tmp_path: Path) -> None:
    checks = GrammarChecks(lambda: "", CPU_S, program(tmp_path, SAYS_YES))
    first, second = (asyncio.create_task(checks.check(("json", "a"))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    await checks.stop()
    assert first.cancelled()


async def flood(checks: GrammarChecks, tenant: str, number: int) -> list["asyncio.Task[None]"]:
    """So many new grammars of a tenant, none of which is answered."""
    tasks = [asyncio.create_task(checks.check(("json", f"{tenant}{each}"), tenant)) for each in range(number)]
    await asyncio.sleep(0)
    return tasks


async def test_a_flood_of_new_grammars_is_told_to_wait(tmp_path: Path) -> None:
    checks = GrammarChecks(lambda: "", CPU_S, program(tmp_path, "pass"))
    waiting = [await flood(checks, tenant, number) for tenant, number in (("a", 20), ("b", 6), ("c", 6))]
    await checks.started()
    await checks.stop()
    ended = [await asyncio.gather(*tasks, return_exceptions=True) for tasks in waiting]
    assert [sum(isinstance(error, RateLimitedError) for error in errors) for errors in ended] == [12, 0, 4]


async def test_the_grammars_of_one_tenant_leave_room_for_anothers(tmp_path: Path) -> None:
    answers_b = f"{SAYS_YES} if job['spec'].startswith('b') else None"
    checks = GrammarChecks(lambda: "", CPU_S, program(tmp_path, answers_b))
    stuck = await flood(checks, "a", 8)
    await asyncio.gather(*await flood(checks, "b", 8))
    await checks.stop()
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_compiler_that_ends_starts_again(tmp_path: Path) -> None:
    flag = tmp_path / "ended"
    ends = f"import os; {SAYS_YES} if os.path.exists({str(flag)!r}) else (open({str(flag)!r}, 'w'), os._exit(1))"
    checks = GrammarChecks(lambda: "", CPU_S, program(tmp_path, ends))
    with pytest.raises(NotReadyError, match="starts again"):
        await checks.check(("json", "a"))
    await checks.check(("json", "a"))
    await checks.stop()


@pytest.mark.slow
async def test_the_compiler_ends_with_its_parent(real: GrammarChecks) -> None:
    """Its input ends, whatever killed the parent."""
    await real.check(schema())
    process = await real.started()
    assert process.stdin is not None
    process.stdin.close()
    async with asyncio.timeout(ASSERTED_S):
        code = await process.wait()
    assert code in (0, 255)  # 255 where another thread of asyncio's has asked for it first: Python 3.11
