"""What `lorikeet bench methods` serves: versions by one server for each base, bases of their own by one each."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from adapters.fingerprint import GoldenPrompt, read_fingerprint
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from loadtest.bench.options import BenchOptions
from loadtest.bench.servers import made_folder, our_server, serve_config
from loadtest.evaluate import EvaluationError, evaluate_live

Cells = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ServedCell:
    """A cell and what answers for it; `target` is None where that is the base itself."""

    name: str
    target: Target | None


def serve_cells(
    options: BenchOptions, home: Home, bases: Mapping[str, str], cells: Cells, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and figures of each cell that can be served and has not been: tokens/s, parity, exact match.

    Args:
        bases: The base of each cell, by the cell's name. All are asked the first one's questions.
        folder: For configurations and logs.

    Raises:
        ServerError: A server did not become ready.
    """
    dataset = home.datasets / next(iter(bases))
    for base, served in waiting_cells(AdapterStore(home.adapters), bases, cells).items():
        config = serve_config(options, base=base, max_lora_rank=_largest_rank(home, served))
        with our_server(config, home, made_folder(folder / f"server-{base}"), options.environment) as server:
            for cell in served:
                options.say(f"serving {cell.name}")
                model = str(cell.target or config.served_model_name)
                figures = asyncio.run(_asked(dataset, model, server.url))
                if cell.target is None:
                    figures["parity_nats"] = _base_parity(home.bases / base, model, server.url)
                else:
                    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
                        figures["parity_nats"] = parity_of(client, cell.target)
                if cells[cell.name].get("exact_match"):
                    figures.pop("exact_match", None)  # training's own, of the same questions
                yield cell.name, figures


def waiting_cells(store: AdapterStore, bases: Mapping[str, str], cells: Cells) -> dict[str, list[ServedCell]]:
    """What has not been asked yet and answers, by the base of its server."""
    waiting: dict[str, list[ServedCell]] = {}
    for name, base in bases.items():
        cell = cells.get(name, {})
        if "tokens_per_s" in cell or "error" in cell:
            continue
        if cell.get("served_as") == "a base of its own":
            waiting[cell["name"]] = [ServedCell(name, None)]
        elif name in store.names():
            target = Target(name, store.versions(name)[-1])
            if store.manifest(target).lora.task == "CAUSAL_LM":
                waiting.setdefault(base, []).append(ServedCell(name, target))
    return waiting


def parity_of(client: httpx.Client, target: Target) -> float | None:
    """Mean distance of a version's served log-probabilities from those of training; None: it is not loaded."""
    rows = client.get("/admin/adapters").raise_for_status().json()["adapters"]
    by_version: dict[str, float | None] = {row["adapter"]: row["parity_error_nats"] for row in rows}
    return by_version.get(str(target))


def _largest_rank(home: Home, cells: list[ServedCell]) -> int:
    """The rank that the engine must hold, of those that it takes: powers of two from 16 to 512."""
    store = AdapterStore(home.adapters)
    largest = max((store.manifest(cell.target).lora.lora_r for cell in cells if cell.target is not None), default=16)
    return max(16, 1 << (largest - 1).bit_length())


async def _asked(dataset: Path, model: str, url: str) -> dict[str, Any]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0) as client:
        try:
            score = await evaluate_live(client, dataset, model)
        except EvaluationError as error:
            return {"served_as": f"not served: {error}"[:200], "tokens_per_s": None}
    return {"tokens_per_s": score.tokens_per_s, "exact_match": score.accuracy.model_dump(mode="json")}


def _base_parity(folder: Path, model: str, url: str) -> float | None:
    """Mean distance of served log-probabilities from those of training; None: a sparse base has no golden prompts."""
    fingerprint = read_fingerprint(folder)
    if fingerprint is None:
        return None
    gaps = [
        abs(trained - served)
        for prompt in fingerprint.prompts
        for trained, served in zip(prompt.adapter_logprobs, _forced(prompt, model, url), strict=True)
    ]
    return sum(gaps) / len(gaps)


def _forced(prompt: GoldenPrompt, model: str, url: str) -> list[float]:
    """The served log-probabilities of the reference answer's tokens."""
    ids = [*prompt.prompt_token_ids, *prompt.answer_token_ids]
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status().json()
    positions = answer["choices"][0]["prompt_logprobs"][-len(prompt.answer_token_ids) :]
    return [place[str(token)]["logprob"] for token, place in zip(prompt.answer_token_ids, positions, strict=True)]
