"""The servers under comparison: how they are started, on which threads, and where their logs go."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from config.home import Home
from config.serve import ServeConfig
from loadtest.bench.options import BenchOptions
from loadtest.bench.server import free_port, running_command
from loadtest.bench.servers import kept_logs, serve_config, thread_settings, vllm_command, vllm_environment
from loadtest.errors import TargetError
from serve.engine.cpu.threads import set_cpu_environment
from serve.engine.plugin import ENGINE_VARIABLE
from tests.tracked_files import ROOT

CONFIG = ServeConfig(
    base="tiny", served_model_name="tiny-base", max_loras=2, max_cpu_loras=16, max_num_seqs=16, kv_cache_bytes=1 << 28
)
ARGUMENTS = ROOT / "serve" / "engine" / "arguments.py"
HEALTHY = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/health", "/who") else 404)
        self.end_headers()
        self.wfile.write(os.environ.get("WHO", "").encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


HOLDER = """
import sys, time
from pathlib import Path
from loadtest.bench.server import running_command
*command, log = sys.argv[1:]
with running_command(command, f"http://127.0.0.1:{command[-1]}", "/health", Path(log)):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is kept goes in the end, too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def command(*, is_stock: bool = False, config: ServeConfig = CONFIG) -> list[str]:
    return vllm_command(config, Path("/bases/tiny"), 8001, {"medical@1": Path("/store/medical/1")}, is_stock=is_stock)


def without_adapters() -> list[str]:
    return vllm_command(CONFIG, Path("/bases/tiny"), 8001, {}, is_stock=True)


def fail_with_logs(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
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
        *("--worker-extension-cls", "serve.engine.worker.AdapterInspection"),
        *("--scheduler-cls", "serve.engine.scheduler.LorikeetScheduler"),
        *("--structured-outputs-config", '{"backend": "xgrammar"}', "--tool-call-parser", "hermes"),
        *("--disable-uvicorn-access-log", "--enable-prompt-tokens-details", "--enable-lora"),
        *("--enable-auto-tool-choice", "--lora-modules", '{"name": "medical@1", "path": "/store/medical/1"}'),
    ]


def test_every_setting_of_our_engine_is_given_to_vllm_too() -> None:
    ours = set(re.findall(r'"(--[a-z-]+)"', ARGUMENTS.read_text()))
    either = {"--kv-cache-memory-bytes", "--gpu-memory-utilization"}
    words = set(command(config=CONFIG.model_copy(update={"cpu_compile": False})))
    assert ours - either - words == set()
    assert either & words


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
    assert ENGINE_VARIABLE not in environment
    assert vllm_environment({}, is_stock=False)[ENGINE_VARIABLE] == "1"


def test_without_adapters_lora_is_off() -> None:
    assert [word for word in without_adapters() if "lora" in word] == []
    kept = {word for word in command(is_stock=True) if word.startswith("--") and "lora" not in word}
    assert kept <= set(without_adapters())


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


def test_any_server_runs_in_its_environment_until_the_block_ends(tmp_path: Path) -> None:
    port = free_port()
    url, words = f"http://127.0.0.1:{port}", [sys.executable, "-c", HEALTHY, str(port)]
    with running_command(words, url, "/health", tmp_path / "log", environment={"WHO": "vllm"}) as server:
        assert httpx.get(f"{server.url}/who").text == "vllm"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.slow
def test_who_is_told_to_end_ends_its_server_first(tmp_path: Path) -> None:
    port = free_port()
    words = [sys.executable, "-c", HOLDER, sys.executable, "-c", HEALTHY, str(port), str(tmp_path / "log")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        holder.terminate()
    assert holder.returncode != 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}")


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
def test_logs_in_folders_of_the_folder_are_quoted_too() -> None:
    with pytest.raises(TargetError, match=r"vllm.log:\ntheirs"), kept_logs() as folder:
        fail_with_logs(folder / "rank-16")


@pytest.mark.slow
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


@pytest.fixture
def serve_file(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text("base: tiny\ngolden_replay: true\nmax_loras: 4\n")
    return path


def test_the_configuration_is_the_given_one_without_what_would_disturb(serve_file: Path) -> None:
    config = serve_config(BenchOptions(Home(serve_file.parent), serve_file), max_lora_rank=128)
    assert (config.base, config.max_loras, config.max_lora_rank) == ("tiny", 4, 128)
    assert (config.golden_replay, config.quality.enabled) == (False, False)


def test_changes_of_the_configuration_are_validated(serve_file: Path) -> None:
    with pytest.raises(ValidationError, match="max_cpu_loras 64 must be at least max_loras 65"):
        serve_config(BenchOptions(Home(serve_file.parent), serve_file), max_loras=65, max_cpu_loras=64)


def test_defaults_follow_the_changes_of_the_configuration(serve_file: Path) -> None:
    assert serve_config(BenchOptions(Home(serve_file.parent), serve_file), max_loras=65).max_cpu_loras == 65


def test_between_two_servers_the_rest_is_twice_as_long(tmp_path: Path) -> None:
    assert BenchOptions(Home(tmp_path), pause_s=1.0).rest_s == 2.0
