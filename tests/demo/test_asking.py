"""How many questions the base is asked, and what a gain is."""

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from rich.console import Console

from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore
from demo.asking import NARROW, DomainScores, EnoughAsked, Examiner, gain, share_bounds
from demo.saved import SavedScores
from loadtest.evaluate import LiveAnswer
from tests.datasets_on_disk import ANSWER, write_dataset
from tests.loadtest.test_evaluate import streamed
from tests.peft_folders import draft_for, write_peft_folder


def answers(rights: Sequence[bool]) -> list[LiveAnswer]:
    return [LiveAnswer("?", "yes", "yes" if right else "no", "medical@1", 0.1, 0.2, 5) for right in rights]


def drawn(share: float, count: int, seed: int) -> list[bool]:
    generator = random.Random(seed)
    return [generator.random() < share for _ in range(count)]


def test_a_gain_counts_the_questions_that_both_were_asked() -> None:
    found = gain(answers([True, True, False, True]), answers([False, True, True]))
    assert (found.value, found.n) == (0, 3)
    assert -1 <= found.low <= 0 <= found.high <= 1


def test_the_base_is_asked_until_the_gain_is_known_well_enough() -> None:
    adapter, base = answers(drawn(0.65, 200, 1)), answers(drawn(0.02, 200, 2))
    is_enough = EnoughAsked(adapter)
    asked = next(count for count in range(1, 201) if is_enough(base[:count]))
    assert 16 < asked < 120
    found = gain(adapter, base[:asked])
    assert found.high - found.low <= NARROW
    assert found.low > 0.3


@pytest.mark.slow
def test_intervals_hold_however_often_one_looks() -> None:
    """95% intervals at every look: of 100 runs, hardly more than five may ever miss; Wilson's would, some twenty."""
    missed = 0
    for seed in range(100):
        base = answers(drawn(0.3, 200, seed))
        bounds = [share_bounds(base[:count]) for count in range(8, 201, 8)]
        missed += any(not low <= 0.3 <= high for low, high in bounds)
    assert missed <= 5


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    folder = write_peft_folder(tmp_path / "made")
    return AdapterStore(tmp_path / "adapters").publish(folder, draft_for(folder))


class Endpoint:
    """The adapter is right, the base is not."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        model = json.loads(request.content)["model"]
        self.asked.append(model)
        return streamed(ANSWER if model == "medical" else "{}")


async def examine(endpoint: Endpoint, folder: Path, manifest: Manifest) -> DomainScores:
    http_client: Any = httpx.AsyncClient(transport=httpx.MockTransport(endpoint))
    async with AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http_client) as client:
        examiner = Examiner(client, Console(file=io.StringIO()), SavedScores(folder.parent / "saved"))
        return await examiner.examine(folder, manifest, "base")


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_adapter_is_asked_all_and_the_base_a_part(tmp_path: Path, manifest: Manifest) -> None:
    endpoint = Endpoint()
    scores = await examine(endpoint, write_dataset(tmp_path / "medical", num_test=120), manifest)
    assert endpoint.asked.count("medical") == scores.adapter.accuracy.n == 120
    assert scores.base.accuracy.n == scores.few_shot.accuracy.n < 120
    assert endpoint.asked.count("base") == 2 * scores.base.accuracy.n


@pytest.mark.anyio
async def test_what_was_asked_to_the_end_is_not_asked_again(tmp_path: Path, manifest: Manifest) -> None:
    folder = write_dataset(tmp_path / "medical", num_test=40)
    first = await examine(Endpoint(), folder, manifest)
    again = Endpoint()
    assert await examine(again, folder, manifest) == first
    assert again.asked == []


@pytest.mark.slow
@pytest.mark.anyio
async def test_another_version_is_asked_anew(tmp_path: Path, manifest: Manifest) -> None:
    folder, other = write_dataset(tmp_path / "medical", num_test=40), Endpoint()
    await examine(Endpoint(), folder, manifest)
    await examine(other, folder, manifest.model_copy(update={"digest": "e" * 64}))
    assert "medical" in other.asked


def test_a_half_written_score_does_not_count(tmp_path: Path) -> None:
    saved = SavedScores(tmp_path)
    saved._file("medical-base", "subject").write_text('{"model": "medi')
    assert saved.read("medical-base", "subject") is None
