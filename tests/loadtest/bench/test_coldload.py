"""What a cold load does to running streams, and to the first token of who waits for it."""

import asyncio
import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest

from loadtest.bench.coldload import (
    FirstToken,
    Loads,
    Subject,
    Watcher,
    first_token,
    first_token_results,
    itl_results,
    load_on_ours,
    load_on_stock,
)
from loadtest.bench.cost import ComparedServer
from loadtest.bench.streams import Stretch, gaps_between, streams_of, watch_streams
from loadtest.bench.synthetic import Delays, SyntheticServer, synthetic_server
from loadtest.errors import TargetError
from tests.runs import request


async def no_loads(_: httpx.AsyncClient) -> None:
    return


def subject(url: str = "http://test/v1", loads: Loads = no_loads) -> Subject:
    return Subject("rank 16", ComparedServer(url, os.getpid()), "a@1", 200, loads)


@pytest.fixture(scope="module")
def server() -> Iterator[SyntheticServer]:
    with synthetic_server(Delays(ttft_s=0.01, itl_s=0.005)) as server:
        yield server


class Streams:
    """What streams see: so many milliseconds at p99, with loads and without."""

    def __init__(self, without_ms: float, with_ms: float) -> None:
        self._itl_ms = {False: without_ms, True: with_ms}
        self.asked: list[tuple[bool, int]] = []

    def __call__(self, _: Subject, is_loading: bool, seed: int) -> Stretch:
        self.asked.append((is_loading, seed))
        return Stretch(self._itl_ms[is_loading] / 1000, 2.0 + is_loading, 6.0)


class Asked:
    """A server that notes what it is asked, and answers with one status."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._status = status

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.url.path, json.loads(request.content or b"{}")))
        return httpx.Response(self._status, text="no room")


@pytest.mark.parametrize(("with_ms", "most", "expected"), [(115, 1.2, True), (130, 1.2, False), (130, None, None)])
def test_the_ratio_of_itl_p99_is_judged(with_ms: float, most: float | None, expected: bool | None) -> None:
    itl, cpu, load = itl_results(subject(), Streams(100, with_ms), 3, 0, most)
    assert itl.value == pytest.approx(with_ms)
    assert (itl.baseline, itl.is_pass) == (100, expected)
    assert itl.ratio == pytest.approx(with_ms / 100)
    assert (cpu.value, cpu.baseline, cpu.ratio) == (3, 2, 1.5)
    assert (load.value, load.unit) == (200, "ms")


def test_streams_are_watched_by_turns_after_one_warm_up_with_loads() -> None:
    streams = Streams(100, 100)
    itl_results(subject(), streams, 3, 0, None)
    assert [is_loading for is_loading, _ in streams.asked] == [True, False, True, True, False, False, True]
    assert [seed for is_loading, seed in streams.asked if is_loading] == [0, 1, 2, 3]
    assert [seed for is_loading, seed in streams.asked if not is_loading] == [1, 2, 3]


def test_gaps_are_within_one_stream_and_within_the_time() -> None:
    records = (request(ttft_s=1, itl_s=2, num_tokens=4), request(ttft_s=3.5, itl_s=1.5, num_tokens=2))
    assert list(gaps_between(records, 3.0, 5.0)) == [2.0, 1.5]


@pytest.mark.slow
def test_streams_run_as_long_as_something_else_does(server: SyntheticServer) -> None:
    side = ComparedServer(f"{server.url}/v1", os.getpid())
    stretch = asyncio.run(
        watch_streams(streams_of(side, "a", 8, 200, 1), side.pid, lambda: asyncio.sleep(0.4), settle_s=0.2)
    )
    assert 0.004 < stretch.itl_p99_s < 0.1
    assert 0.4 <= stretch.duration_s < 0.6
    assert 0 < stretch.cpu_ms_per_token < 20


@pytest.mark.slow
def test_streams_of_a_server_that_refuses_fail(server: SyntheticServer) -> None:
    side = ComparedServer(f"{server.url}/v1", os.getpid())
    streams = streams_of(side, "unknown", 2, 200, 1)
    with pytest.raises(TargetError, match="'unknown' does not exist"):
        asyncio.run(watch_streams(streams, side.pid, lambda: asyncio.sleep(0), settle_s=0.1))


@pytest.mark.slow
def test_a_load_that_fails_ends_the_streams(server: SyntheticServer) -> None:
    async def refused() -> None:
        raise TargetError("no room")

    side = ComparedServer(f"{server.url}/v1", os.getpid())
    with pytest.raises(TargetError, match="no room"):
        asyncio.run(watch_streams(streams_of(side, "a", 2, 200, 1), side.pid, refused, settle_s=0.1))


@pytest.mark.slow
def test_streams_left_alone_are_watched_as_long_as_the_loads_took(server: SyntheticServer) -> None:
    async def loads(_: httpx.AsyncClient) -> None:
        await asyncio.sleep(0.7)

    watcher, one = Watcher(), subject(f"{server.url}/v1", loads)
    loading, alone = watcher(one, True, 1), watcher(one, False, 1)
    assert alone.duration_s == pytest.approx(loading.duration_s, abs=0.1)


async def run_with(server: Asked, loads: Loads) -> None:
    async with server.client() as client:
        await loads(client)


def test_our_server_unloads_and_loads_each() -> None:
    server = Asked()
    asyncio.run(run_with(server, lambda client: load_on_ours("http://test", ["a", "b@2"], client)))
    assert [path for path, _ in server.requests] == [
        "/admin/adapters/a/unload",
        "/admin/adapters/a/load",
        "/admin/adapters/b@2/unload",
        "/admin/adapters/b@2/load",
    ]


def test_stock_gets_a_new_name_each_time() -> None:
    server, numbers = Asked(), count()
    asyncio.run(
        run_with(server, lambda client: load_on_stock("http://test", [Path("/a"), Path("/b")], numbers, client))
    )
    asyncio.run(run_with(server, lambda client: load_on_stock("http://test", [Path("/a")], numbers, client)))
    paths = [path for path, _ in server.requests]
    assert paths == ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] * 3
    assert [body for _, body in server.requests[::2]] == [
        {"lora_name": f"cold-{number}", "lora_path": path} for number, path in enumerate(("/a", "/b", "/a"))
    ]
    assert [body["lora_name"] for _, body in server.requests[1::2]] == ["cold-0", "cold-1", "cold-2"]


def test_a_load_that_is_refused_is_told() -> None:
    with pytest.raises(TargetError, match=r"adapters/a/unload: 409: no room"):
        asyncio.run(run_with(Asked(409), lambda client: load_on_ours("http://test", ["a"], client)))


@pytest.mark.parametrize(("cold_ms", "expected"), [(149.0, True), (151.0, False)])
def test_a_cold_first_token_may_come_a_tenth_of_a_second_later(cold_ms: float, expected: bool) -> None:
    def measure(is_cold: bool, seed: int) -> FirstToken:
        return FirstToken(cold_ms if is_cold else 50.0, 20.0)

    pair, added, cpu = first_token_results(measure, 9)
    assert (pair.value, pair.baseline) == (cold_ms, 50)
    assert (added.value, added.target, added.is_pass) == (cold_ms - 50, "below 100 ms", expected)
    assert cpu.ratio == 1


def test_first_tokens_are_measured_often_enough() -> None:
    seeds: dict[bool, list[int]] = {True: [], False: []}

    def measure(is_cold: bool, seed: int) -> FirstToken:
        seeds[is_cold].append(seed)
        return FirstToken(1.0, 1.0)

    first_token_results(measure, 3)
    assert seeds[True] == seeds[False] == list(range(1, 21))


def test_an_adapter_that_cannot_be_unloaded_is_told(server: SyntheticServer) -> None:
    with pytest.raises(TargetError, match=r"adapters/a/unload: 404: .*There is no /admin"):
        first_token(ComparedServer(f"{server.url}/v1", os.getpid()), "a", 0, True, 1)
