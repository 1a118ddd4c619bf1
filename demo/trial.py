"""One canary trial of the quality demo: traffic for both versions, and the server's statistics meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from adapters.reference import Target
from adapters.store.history import Event
from adapters.store.store import AdapterStore
from demo.figures import TrialFigures
from quality.held_out import HeldOutSet

CONCURRENCY = 8
WEIGHT = 0.5
MOST_REQUESTS = 4000
_LOOK_EVERY_S = 3.0
_COMPARISONS = ("score", "error rate", "slow share")


class NoVerdictError(Exception):
    """The traffic of the demo ended before the verdict."""


@dataclass
class Traffic:
    """Sends held-out questions without a user, each routed independently, until the verdict or the limit."""

    client: httpx.AsyncClient
    name: str
    held_out: HeldOutSet
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """One client of several."""
        while not self.is_over.is_set() and self.sent < MOST_REQUESTS:
            number, self.sent = self.sent, self.sent + 1
            question = self.held_out.questions[number % len(self.held_out.questions)]
            body = {
                "model": self.name,
                "messages": [message.model_dump() for message in question.messages],
                "temperature": 0.0,
                "max_tokens": self.held_out.max_tokens,
                "stop": list(self.held_out.stop),
                "include_stop_str_in_output": True,
            }
            response = await self.client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            self.answers[response.headers["x-lorikeet-adapter"]] += 1


async def try_canary(
    url: str, store: AdapterStore, canary: Target, what: str, held_out: HeldOutSet, say: Callable[[str], None]
) -> TrialFigures:
    """Give the canary half of the traffic until the server's own verdict moves an alias.

    Raises:
        NoVerdictError: No verdict after `MOST_REQUESTS`.
        httpx.HTTPError: A request failed.
    """
    num_before = len(store.history(canary.name)) + 2  # the canary's alias, and the split
    start = time.perf_counter()
    store.set_aliases(canary.name, {"canary": canary.version}, canary_weight=WEIGHT, reason=what)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        traffic = Traffic(client, canary.name, held_out)
        clients = [asyncio.create_task(traffic.run()) for _ in range(CONCURRENCY)]
        try:
            event = await _watch(traffic, clients, lambda: store.history(canary.name)[num_before:], canary, say)
        finally:
            traffic.is_over.set()
            await asyncio.gather(*clients)
    figures = event.figures or {}
    return TrialFigures(
        what=what,
        canary=str(canary),
        decision=event.kind,
        reason=event.reason,
        num_requests=traffic.sent,
        num_canary_requests=traffic.answers[str(canary)],
        num_questions=int(figures.get("score_pairs", 0)),
        seconds=round(time.perf_counter() - start, 1),
        figures=figures,
    )


async def _watch(
    traffic: Traffic,
    clients: Sequence["asyncio.Task[None]"],
    new_events: Callable[[], Sequence[Event]],
    canary: Target,
    say: Callable[[str], None],
) -> Event:
    """Print the server's statistics every few seconds until an event ends the trial."""
    while True:
        events = [event for event in new_events() if event.kind in ("promoted", "rolled_back")]
        if events:
            return events[0]
        if all(task.done() for task in clients):
            for task in clients:
                task.result()
            raise NoVerdictError(f"No verdict on {canary} after {traffic.sent} requests.")
        say(f"{traffic.sent:5d} requests  " + await seen_so_far(traffic.client, canary))
        await asyncio.sleep(_LOOK_EVERY_S)


async def seen_so_far(client: httpx.AsyncClient, canary: Target) -> str:
    """`score -0.21 [-0.40, -0.02] of 57 pairs   ...`: the canary's mean minus stable's, from /metrics."""
    values: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name.startswith("lorikeet_trial_") and labels.get("version") == str(canary.version):
                values[sample.name.removeprefix("lorikeet_trial_"), labels["comparison"]] = sample.value
    parts = []
    for comparison in _COMPARISONS:
        if not values.get(("pairs", comparison)):
            parts.append(f"{comparison}: nothing yet")
            continue
        pairs, difference, low, high = (
            values[name, comparison] for name in ("pairs", "difference", "difference_ci_low", "difference_ci_high")
        )
        parts.append(f"{comparison} {difference:+.3f} [{low:+.3f}, {high:+.3f}] of {pairs:.0f} pairs")
    return "   ".join(parts)
