"""Faults seeded into a real server: what sees each of them, and after how many requests; a healthy version stays quiet.

Run with `pytest -s` to see it. The statistics over long streams are those of quality/test_faults.py: these adapters
are sure of one answer, and their windows are short.
"""

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from adapters.fingerprint import FINGERPRINT_FILE
from adapters.lint.peft_folder import WEIGHTS_FILE
from adapters.reference import Target
from adapters.store.manifest import ManifestDraft
from adapters.store.version_files import MAX_BYTES
from quality.drift import Exchange
from quality.held_out import HeldOutMessage, HeldOutQuestion, HeldOutSet, write_held_out
from tests.live_server import ANSWERS, DRIFT_WINDOW, LiveServer, chat, client

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

NUM_HELD_OUT = 60
NUM_QUESTIONS = 24
MOST_WINDOWS = 3
WAIT_S = 400
RIGHT = ANSWERS["colours"]
NOISE, WEAK_NOISE = 8.0, 4.0
"""Standard deviation of what is added to each tensor, in units of its own. With the weak one all answers stay right."""


@pytest.fixture(scope="module")
def held_out(live: LiveServer) -> HeldOutSet:
    """Held-out questions on colours, and how the healthy version answers them."""
    numbers = random.Random(3).sample(range(100, 220), NUM_HELD_OUT)
    extra = {"model": "colours@1", "return_token_ids": True, "logprobs": True}
    with httpx.Client(base_url=live.url, timeout=300) as http:
        answers = [http.post("/v1/chat/completions", json=question(number) | extra).json() for number in numbers]
    return HeldOutSet(
        max_tokens=12,
        stop=("}",),
        questions=tuple(
            HeldOutQuestion(
                messages=tuple(map(HeldOutMessage.model_validate, question(number)["messages"])), expected=RIGHT
            )
            for number in numbers[:NUM_QUESTIONS]
        ),
        baseline=tuple(map(exchange, answers)),
    )


def exchange(answer: dict[str, Any]) -> Exchange:
    (choice,) = answer["choices"]
    logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
    return Exchange(
        prompt_tokens=answer["prompt_token_ids"],
        completion_tokens=choice["token_ids"],
        mean_logprob=sum(logprobs) / len(logprobs),
    )


def publish(
    live: LiveServer,
    name: str,
    held_out: HeldOutSet,
    *,
    weights: str = "colours",
    noise: float = 0.0,
    golden: Callable[[Any], Any] | None = None,
) -> None:
    """A version that says it is `colours`, with its held-out questions and baseline; other weights if so told.

    Args:
        golden: What becomes of the fingerprint; None leaves it out, for it would have the version refused.
    """
    colours, source = (live.store.folder(Target(domain, 1)) for domain in ("colours", weights))
    folder = Path(tempfile.mkdtemp(dir=live.home.root))
    for file in MAX_BYTES:
        if (colours / file).exists():
            shutil.copyfile(colours / file, folder / file)
    write_held_out(held_out, folder)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        key: tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for key, tensor in load_file(source / WEIGHTS_FILE).items()
    }
    save_file(tensors, folder / WEIGHTS_FILE)
    fingerprint = folder / FINGERPRINT_FILE
    if golden is None:
        fingerprint.unlink()
    else:
        fingerprint.write_text(json.dumps(golden(json.loads(fingerprint.read_text()))))
    fields = live.store.manifest(Target("colours", 1)).model_dump(include=set(ManifestDraft.model_fields))
    live.store.publish(folder, ManifestDraft.model_validate(fields | {"name": name}))


def question(number: int, domain: str = "colours") -> dict[str, Any]:
    """One of those that the held-out split was drawn from."""
    body = chat(domain)
    body["messages"][1]["content"] = f"What is number {number} of the {domain}?"
    return body


def plain(number: int) -> dict[str, Any]:
    """A colours question in a template that is not the model's own."""
    body = question(number)
    system, user = (message["content"] for message in body.pop("messages"))
    return body | {"prompt": f"{system}\n\nUser: {user}\nAssistant: "}


def mixed(number: int) -> dict[str, Any]:
    """Every other question is another domain's."""
    return question(number, ("colours", "shapes")[number % 2])


async def ask(http: httpx.AsyncClient, model: str, bodies: Sequence[dict[str, Any]]) -> None:
    async def one(body: dict[str, Any]) -> None:
        path = "completions" if "prompt" in body else "chat/completions"
        response = await http.post(f"/v1/{path}", json=body | {"model": model})
        assert response.status_code == 200, response.text

    await asyncio.gather(*(one(body) for body in bodies))


async def values(http: httpx.AsyncClient, name: str, adapter: str) -> dict[str, float]:
    """A metric's values of an adapter: by feature, by comparison, or else by version."""
    text = (await http.get("/metrics")).text
    return {
        sample.labels.get("feature") or sample.labels.get("comparison") or sample.labels["version"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels["adapter"] == adapter
    }


async def wait_for(http: httpx.AsyncClient, name: str, adapter: str, which: str, at_least: float) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await values(http, name, adapter)).get(which, 0) < at_least:
            await asyncio.sleep(0.1)


async def drifting(
    live: LiveServer, name: str, traffic: Callable[[int], dict[str, Any]], num_windows: int, *, until_seen: bool
) -> tuple[int, list[str]]:
    """Requests until drift was seen, and by which features."""
    numbers = random.Random(7).choices(range(100, 220), k=DRIFT_WINDOW * num_windows)
    features: list[str] = []
    async with client(live) as http:
        for look in range(1, num_windows + 1):
            window = numbers[(look - 1) * DRIFT_WINDOW : look * DRIFT_WINDOW]
            await ask(http, f"{name}@1", [traffic(number) for number in window])
            await wait_for(http, "lorikeet_drift_checks_total", name, "1", look)
            drift = await values(http, "lorikeet_drift", name)
            features = [feature for feature, is_drift in drift.items() if is_drift]
            if features and until_seen:
                break
    return look * DRIFT_WINDOW, features


async def test_a_healthy_version_raises_no_alarm(
    live: LiveServer, held_out: HeldOutSet, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(live, "faults-none", held_out, golden=lambda golden: golden)
    asked, features = await drifting(live, "faults-none", question, 2 * MOST_WINDOWS, until_seen=False)
    with capsys.disabled():
        print(f"\nhealthy: {len(features)} alarms after {asked} requests")
    assert features == []


@pytest.mark.parametrize(
    ("name", "fault", "traffic"),
    [
        ("noise", {"noise": NOISE}, question),
        ("weak-noise", {"noise": WEAK_NOISE}, question),
        ("swapped", {"weights": "shapes"}, question),
        ("template", {}, plain),
        ("mix", {}, mixed),
    ],
    ids=["noise", "weak-noise", "swapped", "template", "mix"],
)
async def test_drift_sees_a_fault_in_the_first_windows(
    live: LiveServer,
    held_out: HeldOutSet,
    name: str,
    fault: dict[str, Any],
    traffic: Callable[[int], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(live, f"faults-{name}", held_out, **fault)
    asked, features = await drifting(live, f"faults-{name}", traffic, MOST_WINDOWS, until_seen=True)
    with capsys.disabled():
        print(f"\n{name}: drift of {', '.join(features) or 'nothing'} after {asked} requests")
    assert features


@pytest.mark.parametrize(
    ("name", "fault", "change", "reason"),
    [
        ("noise", {"noise": NOISE}, {}, "its weights or its scaling are applied wrongly"),
        ("swapped", {"weights": "shapes"}, {}, "its weights or its scaling are applied wrongly"),
        ("template", {}, {"prompt_token_ids": [1, 2, 3]}, "chat template or tokenizer"),
    ],
    ids=["noise", "swapped", "template"],
)
async def test_parity_refuses_a_fault_before_its_first_answer(
    live: LiveServer, held_out: HeldOutSet, name: str, fault: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    def changed(golden: Any) -> Any:
        return golden | {"prompts": [prompt | change for prompt in golden["prompts"]]}

    publish(live, f"refused-{name}", held_out, golden=changed, **fault)
    async with client(live) as http:
        response = await http.post("/v1/chat/completions", json=question(100) | {"model": f"refused-{name}@1"})
    assert response.status_code == 422
    assert reason in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "fault", "low", "high"),
    [
        ("none", {}, 0.9, 1.0),
        ("noise", {"noise": NOISE}, 0.0, 0.5),
        ("swapped", {"weights": "shapes"}, 0.0, 0.0),
    ],
    ids=["none", "noise", "swapped"],
)
async def test_held_out_questions_see_wrong_weights_without_any_traffic(
    live: LiveServer,
    held_out: HeldOutSet,
    name: str,
    fault: dict[str, Any],
    low: float,
    high: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(live, f"asked-{name}", held_out, **fault)
    async with client(live) as http:
        (await http.post(f"/admin/adapters/asked-{name}@1/load")).raise_for_status()
        await wait_for(http, "lorikeet_held_out_questions_scored", f"asked-{name}", "1", NUM_QUESTIONS)
        found = await values(http, "lorikeet_held_out_live_accuracy", f"asked-{name}")
    with capsys.disabled():
        print(f"\n{name}: {found['1']:.2f} of {NUM_QUESTIONS} held-out questions are right")
    assert low <= found["1"] <= high
