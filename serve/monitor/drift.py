"""Drift of live traffic: windows of each version's requests, compared with its baseline at publication.

The event loop only appends to a window; a full one is looked at in a thread. Token ids stay in memory: what is stored
of a drift check are its figures.
"""

import asyncio
import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from adapters.fingerprint import Fingerprint, read_fingerprint
from adapters.reference import Target
from quality.drift import MIN_BASELINE_EXCHANGES, DriftBaseline, DriftReport, Exchange
from quality.held_out import read_held_out
from quality.samples.records import DriftCheck
from quality.samples.store import QualityStore
from quality.signals import mean_logprob
from serve.clock import steady_time
from serve.monitor.embedding import Embedder
from serve.monitor.protocol import FindTime, MonitorMetrics, TimeInPrompt
from serve.records import GenerationRecord, Source

logger = logging.getLogger(__name__)

MAX_TOKENS = 512
"""Of a prompt, and of an answer; longer ones are cut, in the baseline too."""

# So many windows are kept, of the versions used last: at most 40 MB of windows of 100.
_MAX_VERSIONS = 64
_MAX_WAITING = 8

# Of a window, and of a baseline, half of which is the yardstick: an embedding is worth some milliseconds of CPU time.
_MAX_EMBEDDED = 40
_MAX_EMBEDDED_AT_PUBLISH = 120


class CompactExchange(NamedTuple):
    """An exchange in compact arrays: 4 bytes per token, and 4 per log-probability."""

    prompt: "array[int]"
    answer: "array[int]"
    logprobs: "array[float]"


PromptOf = Callable[[Sequence[int | str]], tuple[int | str, ...]]
"""Selects the prompt tokens to compare."""


@dataclass(frozen=True)
class DriftReference:
    """Baseline that windows of a version are compared with."""

    baseline: DriftBaseline
    stop_token_ids: frozenset[int]
    prompt_of: PromptOf


@dataclass
class _Version:
    """`yardstick` is None where it was not read yet, or, once `is_read`, where the version has none."""

    target: Target
    seen: list[CompactExchange] = field(default_factory=list)
    is_read: bool = False
    yardstick: DriftReference | None = None
    is_drift: bool = False


class DriftMonitor:
    """An observer of generations, and the loop that checks full windows.

    Args:
        folder_of: Where a version lies.
        window: Exchanges of one drift check.
        find_time: Tells what of a prompt is the date.
        alpha: Probability of ever calling a version drifting that is not.
        embedder: Makes embeddings of exchanges; without it what they are about is not looked at.
    """

    def __init__(
        self,
        folder_of: Callable[[Target], Path],
        store: QualityStore,
        metrics: MonitorMetrics,
        find_time: FindTime,
        *,
        window: int,
        alpha: float,
        embedder: Embedder | None = None,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._folder_of = folder_of
        self._store = store
        self._metrics = metrics
        self._find_time = find_time
        self._window = window
        self._alpha = alpha
        self._embedder = embedder
        self._clock = clock
        self._versions: OrderedDict[str, _Version] = OrderedDict()
        self._full: asyncio.Queue[tuple[_Version, list[CompactExchange]]] = asyncio.Queue(_MAX_WAITING)

    def generation_started(self, lora_name: str | None, source: Source) -> None:
        """No action is needed."""

    def generation_finished(self, record: GenerationRecord) -> None:
        """Add a client's whole answer to its version's window."""
        if record.lora_name is None or record.source not in ("client", "batch") or record.outcome != "ok":
            return
        version = self._version(record.lora_name)
        if version.is_read and version.yardstick is None:
            return
        version.seen.append(_compact(record))
        if len(version.seen) == self._window:
            window, version.seen = version.seen, []
            try:
                self._full.put_nowait((version, window))
            except asyncio.QueueFull:
                logger.warning("%s: %d exchanges are dropped; drift checks are late", version.target, self._window)

    async def run(self) -> None:
        """Check full windows until cancelled."""
        while True:
            version, window = await self._full.get()
            try:
                await self._look(version, window)
            except Exception as error:  # boundary of a loop: another version's window must not wait for this one
                self._metrics.failures.note("drift_monitor", error, f"Checking {version.target} for drift failed")

    async def _look(self, version: _Version, window: Sequence[CompactExchange]) -> None:
        if not version.is_read:
            version.yardstick = await self._read_yardstick(version.target)
            version.is_drift = await asyncio.to_thread(self._was_drift, version.target)
            version.is_read = True
        if version.yardstick is None:
            version.seen = []
            return
        report = await asyncio.to_thread(self._compare, version.target, version.yardstick, window)
        self._metrics.quality.drift_checked(version.target, report)
        if report.is_drift and not version.is_drift:
            logger.warning("%s has drifted (drift check %d): %s", version.target, report.look, report.reason)
        version.is_drift = report.is_drift

    def _version(self, lora_name: str) -> _Version:
        version = self._versions.get(lora_name)
        if version is None:
            name, _, number = lora_name.partition("@")
            version = self._versions[lora_name] = _Version(Target(name, int(number)))
            if len(self._versions) > _MAX_VERSIONS:
                self._versions.popitem(last=False)
        self._versions.move_to_end(lora_name)
        return version

    async def _read_yardstick(self, target: Target) -> DriftReference | None:
        folder = self._folder_of(target)
        held_out = await asyncio.to_thread(read_held_out, folder)
        fingerprint = await asyncio.to_thread(read_fingerprint, folder)
        if held_out is None or len(held_out.baseline) < MIN_BASELINE_EXCHANGES:
            logger.info("Drift of %s is not measured: it was published without a baseline", target)
            return None
        stop = frozenset(fingerprint.stop_token_ids if fingerprint else ())
        prompt_of = self._prompt_of(target, fingerprint)
        return await asyncio.to_thread(self._yardstick, held_out.baseline, stop, prompt_of)

    def _yardstick(
        self, baseline: Sequence[Exchange], stop_token_ids: frozenset[int], prompt_of: PromptOf
    ) -> DriftReference:
        exchanges = [_cut(seen, stop_token_ids, prompt_of) for seen in baseline]
        return DriftReference(
            DriftBaseline(self._embedded(exchanges, _MAX_EMBEDDED_AT_PUBLISH)), stop_token_ids, prompt_of
        )

    def _prompt_of(self, target: Target, fingerprint: Fingerprint | None) -> PromptOf:
        """Prompts without the date, where the chat template writes one: it moves at midnight, whatever clients ask."""
        try:
            found = self._find_time([prompt.messages for prompt in fingerprint.prompts] if fingerprint else [])
        except ValueError as error:
            logger.warning(
                "Drift of %s is measured in answers only, because the date moves its prompts: %s", target, error
            )
            return _no_prompt
        if found is None:
            return tuple
        logger.info("Drift of %s ignores the prompt tokens that the chat template writes for the date", target)
        return partial(_prompt_without, found)

    def _embedded(self, exchanges: Sequence[Exchange], most: int) -> Sequence[Exchange]:
        if self._embedder is None:
            return exchanges
        try:
            return self._embedder.embedded(exchanges, most)
        except Exception:  # boundary: a hub, a model's own code; the other features need none of it
            logger.exception("Drift is measured without embeddings from now on")
            self._embedder = None
            return exchanges

    def _was_drift(self, target: Target) -> bool:
        """At the last drift check, which may be of a process before this one."""
        return any(check.is_drift for check in self._store.drift_checks(target.name, target.version, limit=1))

    def _compare(self, target: Target, yardstick: DriftReference, window: Sequence[CompactExchange]) -> DriftReport:
        """Check a window, and store the drift check: its number counts in all later ones, also of another process."""
        exchanges = [_exchange(seen, yardstick) for seen in window]
        number = self._store.last_drift_check(target.name, target.version) + 1
        report = yardstick.baseline.look(self._embedded(exchanges, _MAX_EMBEDDED), number, self._alpha)
        self._store.add_drift_check(
            DriftCheck(
                at_s=self._clock(),
                adapter=target.name,
                version=target.version,
                number=number,
                num_exchanges=report.num_exchanges,
                is_drift=report.is_drift,
                reason=report.reason,
                figures=_figures(report),
            )
        )
        return report


def _compact(record: GenerationRecord) -> CompactExchange:
    return CompactExchange(
        array("I", record.prompt_token_ids[:MAX_TOKENS]),
        array("I", record.token_ids[:MAX_TOKENS]),
        array("f", record.token_logprobs[:MAX_TOKENS]),
    )


def _exchange(seen: CompactExchange, yardstick: DriftReference) -> Exchange:
    length = _length(seen.answer, yardstick.stop_token_ids)
    return Exchange(
        prompt_tokens=yardstick.prompt_of(seen.prompt),
        completion_tokens=tuple(seen.answer[:length]),
        mean_logprob=mean_logprob(seen.logprobs[:length]),
    )


def _cut(seen: Exchange, stop_token_ids: frozenset[int], prompt_of: PromptOf) -> Exchange:
    """An exchange of the baseline, as one of the traffic would be kept."""
    answer = seen.completion_tokens[:MAX_TOKENS]
    return Exchange(
        prompt_tokens=prompt_of(seen.prompt_tokens[:MAX_TOKENS]),
        completion_tokens=answer[: _length(answer, stop_token_ids)],
        mean_logprob=seen.mean_logprob,
    )


def _prompt_without(found: TimeInPrompt, tokens: Sequence[int | str]) -> tuple[int | str, ...]:
    """Remove the date's tokens and cut the prompt to a constant length."""
    return found.cut(tokens)[: MAX_TOKENS - found.longest]


def _no_prompt(tokens: Sequence[int | str]) -> tuple[int | str, ...]:
    return ()


def _length(answer: Sequence[int | str], stop_token_ids: frozenset[int]) -> int:
    """Without the model's own end: where a client's stop string comes first it is missing, and that is no drift."""
    length = len(answer)
    while length and answer[length - 1] in stop_token_ids:
        length -= 1
    return length


def _figures(report: DriftReport) -> dict[str, float]:
    figures = {}
    for feature in report.features:
        figures[f"{feature.name}: p"] = feature.p_value
        figures[f"{feature.name}: mean"] = feature.window_mean
        figures[f"{feature.name}: mean at publish"] = feature.baseline_mean
        figures[f"{feature.name}: PSI"] = feature.psi
    for name, value in (("prompt", report.prompt_divergence), ("answer", report.completion_divergence)):
        if value is not None:
            figures[f"{name} tokens: divergence"] = value
    if report.embedding_mmd2 is not None:
        figures["embeddings: MMD²"] = report.embedding_mmd2
    return figures
