"""One simulated server: continuous batching, adapter places, cold loads. Times in seconds.

A step computes one token of each running sequence, and the prompts of those that join. Its length is linear in both, as
measured (`loadtest.simulate.calibration`). Steps without a newcomer are alike, so they are one event: to the next
answer that ends, or to the step after the next arrival.
"""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from math import floor

_WINDOW = 512
"""Requests after which the counts of all adapters are halved."""


@dataclass(frozen=True)
class ServerModel:
    """A server's speed and limits.

    Attributes:
        step_s: Of a step, whatever it computes; `sequence_s` more for each running sequence.
        prompt_token_s: For each token of a prompt in the step that computes it.
        overhead_s: Outside the engine, for each request.
        load_s: Until an adapter that is not in memory answers.
        max_running: Sequences in a batch (`max_num_seqs`).
        max_loras: Adapters in a batch.
        max_adapters: Adapters in memory (`max_cpu_loras`).
        max_waiting: Of more requests that wait, the newest is refused.
    """

    step_s: float
    sequence_s: float
    prompt_token_s: float
    overhead_s: float
    load_s: float
    max_running: int = 32
    max_loras: int = 16
    max_adapters: int = 64
    max_waiting: int = 256


@dataclass
class SimulatedRequest:
    """One request, and what became of it.

    Attributes:
        adapter: None is the base.
        is_cold: Whether it had to wait for a load.
        is_refused: Whether too many waited already.
    """

    at_s: float
    adapter: int | None
    prompt_tokens: int
    answer_tokens: int
    first_token_s: float = 0.0
    end_s: float = 0.0
    is_cold: bool = False
    is_refused: bool = False
    num_left: int = 0

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.at_s


@dataclass
class SimulatedReplica:
    """A server's state; the caller keeps the clock and calls `wake` at `next_s`."""

    model: ServerModel
    running: list[SimulatedRequest] = field(default_factory=list)
    waiting: deque[SimulatedRequest] = field(default_factory=deque)
    resident: "OrderedDict[int, float]" = field(default_factory=OrderedDict)
    """Adapters in memory, least recently used first, and from when on they answer."""
    next_s: float = float("inf")
    num_requests: int = 0
    num_loads: int = 0
    _joined: list[SimulatedRequest] = field(default_factory=list)
    _started_s: float = 0.0
    _step_s: float = 0.0
    _num_steps: int = 0
    _in_use: dict[int, int] = field(default_factory=dict)
    _asked: Counter[int] = field(default_factory=Counter)
    _num_asked: int = 0

    def arrive(self, request: SimulatedRequest, now_s: float) -> None:
        """Take a request, or refuse it; `next_s` changes."""
        if len(self.waiting) >= self.model.max_waiting:
            request.is_refused = True
            return
        self.num_requests += 1
        if request.adapter is not None:
            self._in_use[request.adapter] = self._in_use.get(request.adapter, 0) + 1
            self._count(request.adapter)
            self._available_s(request, now_s)  # its load starts at once
        self.waiting.append(request)
        if self._num_steps == 0:
            self._start(now_s)
        elif self._num_steps > 1:
            # The batch goes on to the end of the step that is under way.
            self._num_steps = min(self._num_steps, floor((now_s - self._started_s) / self._step_s) + 1)
            self.next_s = self._started_s + self._num_steps * self._step_s

    def wake(self, now_s: float) -> list[SimulatedRequest]:
        """What happens at `next_s`: tokens come, answers end, the next steps start.

        Returns:
            The answers that have ended.
        """
        ended = []
        if self._num_steps:
            for request in self._joined:
                request.first_token_s = now_s + self.model.overhead_s
                self.running.append(request)
            left = []
            for request in self.running:
                request.num_left -= self._num_steps
                if request.num_left > 0:
                    left.append(request)
                else:
                    request.end_s = now_s + self.model.overhead_s
                    ended.append(request)
            self.running = left
            for request in ended:
                self._leave(request)
        self._start(now_s)
        return ended

    def num_requests_for(self, adapter: int) -> int:
        """Waiting and running."""
        return self._in_use.get(adapter, 0)

    def _leave(self, request: SimulatedRequest) -> None:
        self.num_requests -= 1
        if request.adapter is not None:
            self._in_use[request.adapter] -= 1
            if not self._in_use[request.adapter]:
                del self._in_use[request.adapter]

    def _start(self, now_s: float) -> None:
        """Admit whom the batch has room for, and start the next steps; without any, wait for a load."""
        self._joined, self._num_steps, ready_s = [], 0, float("inf")
        adapters = {request.adapter for request in self.running} - {None}
        kept: deque[SimulatedRequest] = deque()
        while self.waiting and len(self.running) + len(self._joined) < self.model.max_running:
            request = self.waiting.popleft()
            at_s = self._available_s(request, now_s)
            fits = request.adapter is None or request.adapter in adapters or len(adapters) < self.model.max_loras
            if at_s <= now_s and fits:
                adapters |= {request.adapter} - {None}
                request.num_left = request.answer_tokens
                self._joined.append(request)
            else:
                kept.append(request)
                if at_s > now_s:
                    ready_s = min(ready_s, at_s)
        self.waiting = kept + self.waiting
        self._started_s = now_s
        num_sequences = len(self.running) + len(self._joined)
        if not num_sequences:
            self.next_s = ready_s
            return
        prompt_s = self.model.prompt_token_s * sum(request.prompt_tokens for request in self._joined)
        self._step_s = self.model.step_s + self.model.sequence_s * num_sequences + prompt_s
        self._num_steps = 1
        if not self._joined:
            self._num_steps = min(request.num_left for request in self.running)
            if ready_s < float("inf"):  # a load ends before
                self._num_steps = max(1, min(self._num_steps, floor((ready_s - now_s) / self._step_s) + 1))
        self.next_s = now_s + self._num_steps * self._step_s

    def _available_s(self, request: SimulatedRequest, now_s: float) -> float:
        """From when on its adapter answers; starts its load. Infinite if every adapter in memory is in use."""
        if request.adapter is None:
            return now_s
        if request.adapter not in self.resident:
            request.is_cold = True
            if len(self.resident) >= self.model.max_adapters and not self._evict():
                return float("inf")
            self.num_loads += 1
            self.resident[request.adapter] = now_s + self.model.load_s
        self.resident.move_to_end(request.adapter)
        at_s = self.resident[request.adapter]
        if at_s > now_s:
            request.is_cold = True
        return at_s

    def _count(self, adapter: int) -> None:
        self._asked[adapter] += 2  # even, so that one halving loses nothing
        self._num_asked += 1
        if self._num_asked % _WINDOW == 0:
            self._asked = Counter({own: count // 2 for own, count in self._asked.items() if count > 1})

    def _evict(self) -> bool:
        """Unload the idle adapter that was least asked for, as `serve/residency/eviction.py` does."""
        idle = [adapter for adapter in self.resident if adapter not in self._in_use]
        if idle:
            del self.resident[min(idle, key=lambda adapter: self._asked[adapter])]
        return bool(idle)
