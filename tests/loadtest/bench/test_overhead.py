"""The overhead over vLLM's own server: what is measured, and what is said of it."""

from pathlib import Path

import pytest

from config.home import Home
from loadtest.bench.options import BenchOptions
from loadtest.bench.overhead import ServerPair, bench_overhead, compare
from loadtest.bench.synthetic import Delays, synthetic_server
from loadtest.bench.two_servers import NUM_TOKENS, TokenCounts, tokens_of_a_request, tokens_per_s, ttft_p50_ms
from loadtest.errors import TargetError

PAIR = ServerPair("ours", "vllm", {"base": "b"})


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    return BenchOptions(Home(tmp_path), rounds=3, pause_s=0)


class Figures:
    """Both servers' figures, round after round; the first one of a server is its warm-up."""

    def __init__(self, ours: list[float], vllm: list[float]) -> None:
        self._figures = {"ours": iter(ours), "vllm": iter(vllm)}
        self.asked: list[tuple[str, int]] = []

    def __call__(self, url: str, model: str, seed: int) -> float:
        self.asked.append((url, seed))
        return next(self._figures[url])

    def seeds(self, url: str) -> list[int]:
        return [seed for asked, seed in self.asked if asked == url]


def equal(url: str, model: str) -> TokenCounts:
    return TokenCounts(78, 32)


@pytest.mark.slow
def test_the_tokens_of_a_request_are_as_the_server_counts_them() -> None:
    with synthetic_server(Delays()) as server:
        assert tokens_of_a_request(f"{server.url}/v1", "b") == TokenCounts(9, NUM_TOKENS)


def test_a_server_that_costs_little_reaches_both_targets(options: BenchOptions) -> None:
    throughput = Figures(ours=[0, 99, 100, 98], vllm=[0, 100, 100, 100])
    ttft = Figures(ours=[51, 52, 53], vllm=[50, 50, 50])
    streams, alone, added = compare(PAIR, options, throughput, ttft, equal)
    assert (streams.value, streams.baseline, streams.ratio, streams.is_pass) == (99, 100, 0.99, True)
    assert (alone.value, alone.baseline, alone.ratio, alone.is_pass) == (52, 50, 1.04, None)
    assert (added.value, added.unit, added.is_pass) == (2, "ms", True)
    assert streams.ratio_interval == (0.98, 1.0)


def test_a_slower_server_misses_both_targets(options: BenchOptions) -> None:
    throughput = Figures(ours=[0, 90, 97, 99], vllm=[0, 100, 100, 100])
    streams, _, added = compare(PAIR, options, throughput, Figures(ours=[52, 53, 54], vllm=[50, 50, 50]), equal)
    assert (streams.is_pass, streams.target) == (False, "ratio at least 0.98")
    assert (added.is_pass, added.target) == (False, "below 3 ms")


def test_rounds_ask_other_questions_and_both_servers_the_same(options: BenchOptions) -> None:
    throughput, ttft = Figures([1.0] * 4, [1.0] * 4), Figures([1.0] * 3, [1.0] * 3)
    compare(PAIR, options, throughput, ttft, equal)
    assert throughput.seeds("ours") == throughput.seeds("vllm")
    assert ttft.seeds("ours") == ttft.seeds("vllm")
    assert len({*throughput.seeds("ours"), *ttft.seeds("ours")}) == 4 + 3
    assert [url for url, _ in ttft.asked] == ["vllm", "ours", "ours", "vllm", "vllm", "ours"]


@pytest.mark.slow
def test_two_servers_are_measured_for_the_base_and_for_an_adapter(tmp_path: Path) -> None:
    said: list[str] = []
    options, delays = BenchOptions(Home(tmp_path), rounds=1, pause_s=0, say=said.append), Delays(0.005, 0.001)
    with synthetic_server(delays) as ours, synthetic_server(delays) as vllm:
        pair = ServerPair(f"{ours.url}/v1", f"{vllm.url}/v1", {"base": "b", "one adapter": "a@1"})
        results = compare(pair, options, tokens_per_s, ttft_p50_ms, tokens_of_a_request)
    assert [result.name for result in results] == [
        "base: 16 streams (baseline: vLLM's own server)",
        "base: TTFT p50, one stream (baseline: vLLM's own server)",
        "base: TTFT p50 added",
        "one adapter: 16 streams (baseline: vLLM's own server)",
        "one adapter: TTFT p50, one stream (baseline: vLLM's own server)",
        "one adapter: TTFT p50 added",
    ]
    assert [result.unit for result in results[:3]] == ["tok/s", "ms", "ms"]
    assert all(result.value > 0 for result in (results[0], results[1]))
    assert [line.partition(":")[0] for line in said] == ["base", "one adapter"]


@pytest.mark.parametrize("ours", [TokenCounts(82, 32), TokenCounts(78, 9)], ids=["a longer prompt", "a shorter answer"])
def test_servers_with_unequal_work_are_not_compared(options: BenchOptions, ours: TokenCounts) -> None:
    made, nothing = {"ours": ours, "vllm": TokenCounts(78, 32)}, Figures([], [])
    with pytest.raises(TargetError, match=f"'b': of the same request our server made {ours}, vLLM's own 78 prompt"):
        compare(PAIR, options, nothing, nothing, lambda url, _: made[url])


def test_a_request_that_fails_fails_the_bench(options: BenchOptions) -> None:
    with synthetic_server(Delays()) as server:
        pair = ServerPair(f"{server.url}/v1", f"{server.url}/v1", {"base": "unknown"})
        with pytest.raises(TargetError, match="'unknown' does not exist"):
            compare(pair, options, tokens_per_s, ttft_p50_ms, tokens_of_a_request)


def test_a_server_of_the_users_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="starts its servers itself"):
        bench_overhead(BenchOptions(Home(tmp_path), url="http://test/v1"))
