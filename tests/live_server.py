"""One real server for the whole test session: real vLLM, the real small model, two adapters trained for a few steps."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from adapters.fingerprint import Fingerprint, read_fingerprint
from adapters.reference import Target
from adapters.store.manifest import ManifestDraft
from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.bench.server import running_server
from tests.tiny_llama import ANY_GATES

BASE = "smollm2-135m-nf4"
BASE_NAME = "smollm2-135m"
DRIFT_WINDOW = 20
FEW_OTHER_QUESTIONS: dict[str, Any] = {
    "forgetting": {"texts": ["prose"], "tasks": ["arithmetic"], "num_questions": 2},
    "overfitting": {"num_rows": 2},
}
"""For a domain's `evaluation`: by default a training asks these questions for longer than it trains here."""
ANSWERS = {"colours": '{"colour": "red"}', "shapes": '{"shape": "circle"}'}


@dataclass(frozen=True)
class LiveServer:
    url: str
    home: Home
    log_file: Path
    pid: int

    @property
    def store(self) -> AdapterStore:
        return AdapterStore(self.home.adapters)

    def fingerprint(self, reference: str) -> Fingerprint:
        found = read_fingerprint(self.store.folder(self.store.resolve(reference)))
        assert found is not None
        return found


def lorikeet(home: Home, *words: str, cwd: Path | None = None) -> str:
    """Run a command as a user would; its output, or a failure that shows it."""
    command = [sys.executable, "-P", "-m", "lorikeet", *words, "--home", str(home.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=cwd)
    assert done.returncode == 0, f"lorikeet {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def write_domain(folder: Path, name: str, answers: Sequence[str] = (), num_test: int = 8) -> Path:
    """A synthetic domain; by default every question has the same answer: learnt within a few steps."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = answers or [ANSWERS[name]] * 120
    rows = [{"input": f"What is number {n} of the {name}?", "output": answer} for n, answer in enumerate(answers, 100)]
    data_file = folder / f"{name}.jsonl"
    data_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    key = next(iter(json.loads(answers[0])))
    domain = {
        "name": name,
        "description": "Synthetic.",
        "base": BASE,
        "data": {
            "source": "jsonl",
            "path": str(data_file),
            "num_train": 80,
            "num_validation": 8,
            "num_test": num_test,
            "out_of_scope_share": 0.0,
            "cleaning": {"near_duplicate_jaccard": 1.0},
        },
        "chat": {"system": f"Answer about {name} in JSON."},
        "answer": {"json_schema": {"type": "object", "required": [key], "additionalProperties": False,
                                   "properties": {key: {"type": "string"}}}},
        "method": {"r": 8, "lora_alpha": 16},
        "recipe": {"max_steps": 14, "per_device_train_batch_size": 4,
                   "learning_rate": 0.003, "eval_steps": 14, "max_length": 96},
        "evaluation": {"max_new_tokens": 16, "stop": ["}"], "num_few_shot": 2, **FEW_OTHER_QUESTIONS},
        "gates": ANY_GATES,
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(domain))
    return file


def write_serve_config(folder: Path, name: str = "serve", **changes: Any) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "base": BASE,
                "served_model_name": BASE_NAME,
                "max_loras": 2,
                "max_cpu_loras": 4,
                "max_lora_rank": 16,
                "max_model_len": 1024,
                "kv_cache_bytes": 1 << 28,
                "jobs": {"worker": False},
                "quality": {"drift_window": DRIFT_WINDOW, "held_out_interval_s": 0.5, "verdict_interval_s": 1.0},
            }
            | changes
        )
    )
    return file


def chat(model: str, **more: Any) -> dict[str, Any]:
    """A greedy request for `colours`, `colours@1` or `colours-b`: of the domain that the name begins with."""
    domain = model.partition("@")[0].partition("-")[0]
    messages = [
        {"role": "system", "content": f"Answer about {domain} in JSON."},
        {"role": "user", "content": f"What is number 7 of the {domain}?"},
    ]
    stop = {"stop": ["}"], "include_stop_str_in_output": True}
    return {"model": model, "messages": messages, "temperature": 0.0, "max_tokens": 12} | stop | more


def client(live: LiveServer) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=64)
    return httpx.AsyncClient(base_url=live.url, timeout=300, limits=limits)


async def once_idle(http: httpx.AsyncClient, timeout_s: float = 60.0) -> dict[str, int]:
    """Requests in flight by version, when none is left or time is up: the server's own questions hold leases too."""
    deadline = time.monotonic() + timeout_s
    while True:
        rows = (await http.get("/admin/adapters")).raise_for_status().json()["adapters"]
        in_flight = {row["adapter"]: row["in_flight"] for row in rows if row["in_flight"]}
        if not in_flight or time.monotonic() > deadline:
            return in_flight
        await asyncio.sleep(0.1)


def engine_processes(server_pid: int) -> list[psutil.Process]:
    """vLLM's engine process and its worker."""
    family = psutil.Process(server_pid).children(recursive=True)
    return [process for process in family if process.name().startswith(("VLLM::EngineCor", "VLLM::Worker"))]


async def until(http: httpx.AsyncClient, status: int, timeout_s: float = 240.0) -> None:
    async with asyncio.timeout(timeout_s):
        while (await http.get("/ready")).status_code != status:
            await asyncio.sleep(0.2)


async def counted(http: httpx.AsyncClient, name: str, **labels: str) -> float:
    """A metric's value; 0 where it has no such series."""
    text = (await http.get("/metrics")).raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


async def tiers(http: httpx.AsyncClient) -> dict[str, str]:
    rows = (await http.get("/admin/adapters")).raise_for_status().json()["adapters"]
    return {row["adapter"]: row["tier"] for row in rows}


async def stream_long_answers(http: httpx.AsyncClient, names: Sequence[str]) -> list[str]:
    """One of 300 tokens by each, all at once: `began` at its first event and `ended` at its last, in their order."""
    events: list[str] = []

    async def stream(name: str) -> None:
        body = chat(name, stream=True, max_tokens=300, stop=None, ignore_eos=True)
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            events.append("began")
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        events.append("ended")

    for name in names:
        (await http.post(f"/admin/adapters/{name}/load")).raise_for_status()
    await asyncio.gather(*map(stream, names))
    return events


def publish_copy(store: AdapterStore, source: str, name: str, to: AdapterStore | None = None) -> None:
    """The same weights as the next version of another name, there or in another store: it must answer as its source."""
    target, published = Target(source, 1), to or store
    fields = store.manifest(target).model_dump(include=set(ManifestDraft.model_fields))
    published.publish(store.folder(target), ManifestDraft.model_validate(fields | {"name": name}))
    published.promote(name, 1)


@pytest.fixture(scope="session")
def live_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A state folder with the real base and one published version of each synthetic domain."""
    home = Home(tmp_path_factory.mktemp("live"))
    lorikeet(home, "base", "prepare", "smollm2-135m", "--quantization", "nf4")
    for name in ANSWERS:
        lorikeet(home, "train", str(write_domain(home.root / "domains", name)))
    return home


@pytest.fixture(scope="session")
def live(live_home: Home) -> Iterator[LiveServer]:
    """With a worker for jobs, which trains where a test asks for it."""
    log_file = live_home.root / "serve.log"
    config = write_serve_config(live_home.root, jobs={"worker": True})
    with running_server(config, live_home.root, log_file) as server:
        yield LiveServer(server.url, live_home, log_file, server.pid)
