"""The plan of a run: requests, models and times. Pure: the same configuration gives the same requests."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from config.dataset import Message
from config.loadtest import ClosedArrival, LoadtestConfig, TraceArrival
from loadtest.load.arrivals import intended_times
from loadtest.load.mix import models_of
from loadtest.load.prompts import Prompt, PromptSource, prompt_source
from loadtest.load.trace import TraceEvent, read_trace


@dataclass(frozen=True)
class PlannedRequest:
    """One request, ready to send.

    `intended_s` is when it is due, in seconds since the start of the run; in a closed loop, where nothing is due, 0.
    """

    index: int
    intended_s: float
    model: str
    prompt: Prompt
    ignore_eos: bool
    return_token_ids: bool = False

    @property
    def body(self) -> bytes:
        """Body of the POST to `chat/completions`: greedy and streaming, with token counts at the end."""
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [message.for_request() for message in self.prompt.messages],
            "max_tokens": self.prompt.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.prompt.stop:
            fields["stop"] = list(self.prompt.stop)
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if self.return_token_ids:
            fields["return_token_ids"] = True
        return json.dumps(fields, ensure_ascii=False).encode()


def plan(config: LoadtestConfig, datasets: Path) -> Iterator[PlannedRequest]:
    """The requests of a run, sorted by time; at most `num_requests`, none after `duration_s`.

    Reads the data sets or the trace that the configuration names before it returns.

    Raises:
        DatasetError: A data set is not built.
        TraceError: The trace cannot be read.
    """
    events = read_trace(config.arrival.path) if isinstance(config.arrival, TraceArrival) else ()
    named = (*config.mix.models, config.mix.base, *(event.model for event in events))
    source = prompt_source(config, {model for model in named if model}, datasets)
    return islice(_requests(config, source, _due(config, events)), config.num_requests)


def _due(config: LoadtestConfig, events: tuple[TraceEvent, ...]) -> Iterator[TraceEvent]:
    """Due times, and the trace's fields if any."""
    arrival = config.arrival
    if isinstance(arrival, ClosedArrival):
        return repeat(TraceEvent(time_s=0.0))
    if isinstance(arrival, TraceArrival):
        timed = (event.model_copy(update={"time_s": event.time_s / arrival.speed}) for event in events)
        return (event for event in timed if event.time_s < config.duration_s)
    return (TraceEvent(time_s=due_s) for due_s in intended_times(arrival, config.duration_s, config.seed))


def _requests(config: LoadtestConfig, source: PromptSource, events: Iterator[TraceEvent]) -> Iterator[PlannedRequest]:
    models, rng = models_of(config.mix, config.seed), random.Random(f"prompts {config.seed}")
    for index, event in enumerate(events):
        model = event.model or next(models, None)
        if model is None:
            return
        prompt = _prompt(event, source, model, rng)
        ignore_eos = config.ignore_eos and not prompt.is_natural_end
        yield PlannedRequest(index, event.time_s, model, prompt, ignore_eos, config.return_token_ids)


def _prompt(event: TraceEvent, source: PromptSource, model: str, rng: random.Random) -> Prompt:
    """The source's prompt, overridden by the trace's fields."""
    prompt = source.draw(model, rng)
    if event.prompt is not None:
        prompt = replace(prompt, messages=(Message(role="user", content=event.prompt),))
    return prompt if event.max_tokens is None else replace(prompt, max_tokens=event.max_tokens)
