"""The program that `grammars.py` runs: it compiles each grammar in a process of its own, whose time is limited.

Standard input: the tokenizer in a line of JSON, then `{"id", "kind", "spec", "cpu_s"}` a line. Standard output: a line
when it is ready, then for each grammar `{"id", "error"}`, in any order; `error` is null for a good one. It ends with
its input. Nothing here imports vLLM: this process is a copy of what it has imported, for every grammar.
"""

import json
import os
import re
import resource
import select
import signal
import time
from typing import Any

import numpy as np
import xgrammar

_MASK_LIMIT_S = 0.1
_MEAN_MASK_LIMIT_S = 0.02
"""Processor time of a token's mask, seconds: ordinary ones take less than a millisecond."""

_TRIED_TOKENS = 128
_FEW_TOKENS = 16  # the first masks may cost more than all others
_WHERE_IN_XGRAMMAR = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
_MORE_MEMORY_BYTES = 2 << 30
_WALL_TIMES_CPU = 2
"""A process that gets little of the processor may take so much longer."""
_NICENESS = 5  # the engine goes first


def main() -> None:
    os.nice(_NICENESS)
    lines = _Lines(0)
    info = xgrammar.TokenizerInfo.deserialize_json(json.loads(lines.wait())["tokenizer"])
    _say({"ready": True})
    jobs: dict[int, tuple[int, int]] = {}  # by the pipe that its result comes through: id, process
    while True:
        readable, _, _ = select.select([0, *jobs], [], [])
        for pipe in readable:
            if pipe != 0:
                _say(_result(pipe, *jobs.pop(pipe)))
        if 0 in readable:
            found = lines.read()
            if found is None:
                return
            for line in found:
                job = json.loads(line)
                pipe, process = _start(job, info)
                jobs[pipe] = job["id"], process


class _Lines:
    """The lines of a file descriptor, without waiting for more than there is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def read(self) -> list[bytes] | None:
        """Those that are there; None at the end."""
        content = os.read(self._descriptor, 1 << 16)
        if not content:
            return None
        *lines, self._rest = (self._rest + content).split(b"\n")
        return lines

    def wait(self) -> bytes:
        """The first."""
        while (lines := self.read()) == []:
            pass
        if lines is None:
            raise SystemExit
        return lines[0]


def _start(job: dict[str, Any], info: Any) -> tuple[int, int]:
    """A process for a grammar: the pipe that its result comes through, and its id."""
    pipe, end = os.pipe()
    process = os.fork()
    if process:
        os.close(end)
        return pipe, process
    status = 1
    try:
        _limit(job["cpu_s"])
        os.write(end, json.dumps({"error": _compile(job["kind"], job["spec"], info)}).encode())
        status = 0
    except MemoryError:
        os.write(end, json.dumps({"error": "it takes too much memory"}).encode())
    finally:
        os._exit(status)


def _limit(cpu_s: float) -> None:
    """The kernel ends this process when its time is up, whatever it is doing then."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, cpu_s * _WALL_TIMES_CPU)
    with open("/proc/self/statm") as file:
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    most = used_bytes + _MORE_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _result(pipe: int, job_id: int, process: int) -> dict[str, Any]:
    content = os.read(pipe, 1 << 16)  # smaller than a pipe's buffer: written at once
    os.close(pipe)
    _, status = os.waitpid(process, 0)
    if content:
        return {"id": job_id, **json.loads(content)}
    is_late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
    return {"id": job_id, "error": None, "is_late": True} if is_late else {"id": job_id, "error": "its compiler failed"}


def _compile(kind: str, spec: str, info: Any) -> str | None:
    """What speaks against a grammar."""
    # With its cache, as vLLM's engine does: xgrammar 0.2.8 compiles some repetitions only without it.
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=True)
    try:
        compiled = _compiled(compiler, kind, spec)
    except Exception as error:  # whatever xgrammar and its parsers raise: the client is told
        if "per_rule_fsm_hashes" in str(error):
            return "it repeats something more than 127 times, as {1,200}, beside other rules; write a smaller number"
        return _WHERE_IN_XGRAMMAR.sub("", str(error)).strip().rstrip(".")[:1000] or type(error).__name__
    return _why_too_slow(compiled, info)


def _compiled(compiler: Any, kind: str, spec: str) -> Any:
    """As vLLM's backend_xgrammar.py does."""
    if kind == "json":
        return compiler.compile_json_schema(spec, any_whitespace=True)
    if kind == "regex":
        return compiler.compile_regex(spec)
    if kind == "lark":
        return compiler.compile_lark(spec)
    if kind == "grammar":
        return compiler.compile_grammar(spec)
    tag = json.loads(spec)
    if "structures" not in tag:
        return compiler.compile_structural_tag(spec)
    items = [
        xgrammar.StructuralTagItem(begin=each["begin"], schema=json.dumps(each["schema"]), end=each["end"])
        for each in tag["structures"]
    ]
    return compiler.compile_structural_tag(items, tag["triggers"])


def _why_too_slow(compiled: Any, info: Any) -> str | None:
    """Fill the masks of some tokens; the reason if they cost too much time, else None.

    The same token is repeated where allowed: where a text can be parsed in many ways, each mask then costs more.
    """
    matcher, mask = xgrammar.GrammarMatcher(compiled), xgrammar.allocate_token_bitmask(1, info.vocab_size)
    stops = set(matcher.stop_token_ids)
    token, total_s = -1, 0.0
    for number in range(1, _TRIED_TOKENS + 1):
        start_s = time.process_time()
        matcher.fill_next_token_bitmask(mask, 0)
        allowed = np.unpackbits(mask[0].numpy().view(np.uint8), bitorder="little")
        if token < 0 or not allowed[token]:
            choices = (int(choice) for choice in np.flatnonzero(allowed) if choice not in stops)
            token = next(choices, -1)
        if token < 0 or not matcher.accept_token(token):
            return None
        took_s = time.process_time() - start_s
        total_s += took_s
        if took_s > _MASK_LIMIT_S or (number > _FEW_TOKENS and total_s > number * _MEAN_MASK_LIMIT_S):
            return f"it costs {max(took_s, total_s / number) * 1000:.0f} ms a token; ordinary ones cost less than 1 ms"
    return None


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
