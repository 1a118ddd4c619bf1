"""The overhead over vLLM's own server: how both are started, and what is said of them."""

import re
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from config.home import Home
from config.schema import ServeConfig
from loadtest.bench.cli import BENCHES
from loadtest.bench.options import BenchOptions
from loadtest.bench.overhead import (
    Pair,
    bench_overhead,
    compare,
    kept_logs,
    thread_settings,
    tokens_per_s,
    ttft_p50_ms,
    vllm_command,
    vllm_environment,
)
from loadtest.bench.synthetic import Delays, synthetic_server
from loadtest.errors import TargetError
from loadtest.server import free_port, running_command
from lorikeet import app
from serve.engine.cpu import set_cpu_environment
from tests.tracked_files import ROOT

CONFIG = ServeConfig(base="tiny", served_model_name="tiny-base", max_loras=2, max_num_seqs=16, kv_cache_bytes=1 << 28)
ARGUMENTS = ROOT / "serve" / "engine" / "arguments.py"
PAIR = Pair("ours", "vllm", {"base": "b"})
HEALTHY = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/health", "/who") else 404)
        self.end_headers()
        self.wfile.write(os.environ.get("WHO", "").encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    return BenchOptions(Home(tmp_path), rounds=3, pause_s=0)


@pytest.fixture
def temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is kept goes in the end, too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


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


def command(*, is_stock: bool = False, config: ServeConfig = CONFIG) -> list[str]:
    return vllm_command(config, Path("/bases/tiny"), 8001, {"medical@1": Path("/store/medical/1")}, is_stock=is_stock)


def fail_with_logs(folder: Path) -> None:
    (folder / "lorikeet.log").write_text("ours\n")
    (folder / "vllm.log").write_text("theirs\n")
    raise TargetError("500: no")


def test_the_command_is_vllms_own_server_on_our_engine_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    assert command() == [
        *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--host", "127.0.0.1", "--port", "8001", "--uvicorn-log-level", "warning"),
        *("--model", "/bases/tiny", "--served-model-name", "tiny-base", "--dtype", "bfloat16"),
        *("--max-model-len", "2048", "--max-num-seqs", "16", "--max-num-batched-tokens", "2048"),
        *("--max-loras", "2", "--max-cpu-loras", "16", "--max-lora-rank", "16"),
        *("--kv-cache-memory-bytes", str(1 << 28), "--scheduling-policy", "priority"),
        *("--worker-extension-cls", "serve.engine.worker.AdapterInspection", "--tool-call-parser", "hermes"),
        *("--disable-uvicorn-access-log", "--enable-lora", "--enable-prompt-tokens-details"),
        *("--enable-auto-tool-choice", "--lora-modules", '{"name": "medical@1", "path": "/store/medical/1"}'),
    ]


def test_every_setting_of_our_engine_is_given_to_vllm_too() -> None:
    ours = set(re.findall(r'"(--[a-z-]+)"', ARGUMENTS.read_text()))
    either = {"--kv-cache-memory-bytes", "--gpu-memory-utilization"}
    assert ours - either - set(command()) == set()
    assert either & set(command())


def test_a_machine_with_a_gpu_shares_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = command()
    assert words[words.index("--gpu-memory-utilization") + 1] == str(CONFIG.gpu_memory_utilization)
    assert "--kv-cache-memory-bytes" not in words


def test_without_a_parser_tools_are_off_in_both() -> None:
    words = command(config=CONFIG.model_copy(update={"tool_call_parser": None}))
    assert {"--tool-call-parser", "--enable-auto-tool-choice"} & set(words) == set()


def test_stock_vllm_has_nothing_of_ours() -> None:
    words, environment = command(is_stock=True), vllm_environment({}, is_stock=True)
    assert [word for word in words if "serve." in word] == []
    assert "lorikeet" not in environment["VLLM_PLUGINS"].split(",")
    assert "VLLM_PLUGINS" not in vllm_environment({}, is_stock=False)


def test_vllm_asks_no_hub_and_sends_no_statistics() -> None:
    environment = vllm_environment({"PATH": "/bin"}, is_stock=False)
    wanted = {"PATH": "/bin", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    assert wanted.items() <= environment.items()


def test_threads_are_set_as_our_own_server_sets_them() -> None:
    ours: dict[str, str] = {}
    set_cpu_environment(ours)
    assert thread_settings({"PATH": "/bin"}) == ours


@pytest.mark.parametrize("given", [{"VLLM_CPU_OMP_THREADS_BIND": "0"}, {"LD_PRELOAD": "/lib/libgomp.so"}])
def test_threads_that_somebody_has_set_stay(given: dict[str, str]) -> None:
    assert thread_settings(given | {"PATH": "/bin"}) == given


def test_a_server_that_costs_little_reaches_both_targets(options: BenchOptions) -> None:
    throughput = Figures(ours=[0, 99, 100, 98], vllm=[0, 100, 100, 100])
    ttft = Figures(ours=[51, 52, 53], vllm=[50, 50, 50])
    streams, alone, added = compare(PAIR, options, throughput, ttft)
    assert (streams.value, streams.baseline, streams.ratio, streams.is_pass) == (99, 100, 0.99, True)
    assert (alone.value, alone.baseline, alone.ratio, alone.is_pass) == (52, 50, 1.04, None)
    assert (added.value, added.unit, added.is_pass) == (2, "ms", True)
    assert streams.ratio_interval == (0.98, 1.0)


def test_a_slower_server_misses_both_targets(options: BenchOptions) -> None:
    throughput = Figures(ours=[0, 90, 97, 99], vllm=[0, 100, 100, 100])
    streams, _, added = compare(PAIR, options, throughput, Figures(ours=[52, 53, 54], vllm=[50, 50, 50]))
    assert (streams.is_pass, streams.target) == (False, "ratio at least 0.98")
    assert (added.is_pass, added.target) == (False, "below 3 ms")


def test_rounds_ask_other_questions_and_both_servers_the_same(options: BenchOptions) -> None:
    throughput, ttft = Figures([1.0] * 4, [1.0] * 4), Figures([1.0] * 3, [1.0] * 3)
    compare(PAIR, options, throughput, ttft)
    assert throughput.seeds("ours") == throughput.seeds("vllm")
    assert ttft.seeds("ours") == ttft.seeds("vllm")
    assert len({*throughput.seeds("ours"), *ttft.seeds("ours")}) == 4 + 3
    assert [url for url, _ in ttft.asked] == ["vllm", "ours", "ours", "vllm", "vllm", "ours"]


@pytest.mark.slow
def test_two_servers_are_measured_for_the_base_and_for_an_adapter(tmp_path: Path) -> None:
    said: list[str] = []
    options, delays = BenchOptions(Home(tmp_path), rounds=1, pause_s=0, say=said.append), Delays(0.005, 0.001)
    with synthetic_server(delays) as ours, synthetic_server(delays) as vllm:
        pair = Pair(f"{ours.url}/v1", f"{vllm.url}/v1", {"base": "b", "one adapter": "a@1"})
        results = compare(pair, options, tokens_per_s, ttft_p50_ms)
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


def test_a_request_that_fails_fails_the_bench(options: BenchOptions) -> None:
    with synthetic_server(Delays()) as server, pytest.raises(TargetError, match="'unknown' does not exist"):
        compare(Pair(f"{server.url}/v1", f"{server.url}/v1", {"base": "unknown"}), options, tokens_per_s, ttft_p50_ms)


def test_any_server_runs_in_its_environment_until_the_block_ends(tmp_path: Path) -> None:
    port = free_port()
    url, words = f"http://127.0.0.1:{port}", [sys.executable, "-c", HEALTHY, str(port)]
    with running_command(words, url, "/health", tmp_path / "log", environment={"WHO": "vllm"}) as server:
        assert httpx.get(f"{server.url}/who").text == "vllm"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.usefixtures("temporary_folders")
def test_logs_go_when_all_went_well() -> None:
    with kept_logs() as folder:
        (folder / "vllm.log").write_text("fine\n")
    assert not folder.exists()


@pytest.mark.usefixtures("temporary_folders")
def test_logs_of_both_servers_stay_and_are_quoted_where_a_request_failed() -> None:
    expected = r"^500: no\nlorikeet.log:\nours\nvllm.log:\ntheirs\nThe logs are kept in "
    with pytest.raises(TargetError, match=expected) as failed, kept_logs() as folder:
        fail_with_logs(folder)
    assert str(folder) in str(failed.value)
    assert sorted(path.name for path in folder.iterdir()) == ["lorikeet.log", "vllm.log"]


@pytest.mark.usefixtures("temporary_folders")
def test_the_log_of_a_server_that_did_not_start_stays_and_is_quoted_once() -> None:
    words, expected = [sys.executable, "-c", "import sys; sys.exit('no memory')"], r"1\.\nno memory\nThe logs are kept"
    with (
        pytest.raises(TargetError, match=expected),
        kept_logs() as folder,
        running_command(words, "http://127.0.0.1:9", "/health", folder / "vllm.log"),
    ):
        pass
    assert (folder / "vllm.log").read_text() == "no memory\n"


@pytest.mark.usefixtures("temporary_folders")
def test_a_bug_leaves_no_folder() -> None:
    with pytest.raises(ZeroDivisionError), kept_logs() as folder:
        raise ZeroDivisionError
    assert not folder.exists()


def test_a_server_of_the_users_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="starts both servers itself"):
        bench_overhead(BenchOptions(Home(tmp_path), url="http://test/v1"))


def test_only_this_benchmark_knows_stock_vllm() -> None:
    assert "overhead" in BENCHES
    refused = CliRunner().invoke(app, ["bench", "generator", "--stock"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert refused.exit_code == 2
    assert "Only `overhead` takes it" in refused.output
