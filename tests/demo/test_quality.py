"""The quality demo's parts: canaries in a store of their own, what is shown meanwhile, and the table at the end."""

import io
from pathlib import Path

import httpx
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from adapters.errors import AdapterNotFoundError
from adapters.fingerprint import FINGERPRINT_FILE
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from demo.canaries import make_canaries
from demo.figures import QualityDemoReport, TrialFigures
from demo.quality import print_quality_report
from demo.trial import seen_so_far
from quality.held_out import HeldOutMessage, HeldOutQuestion, HeldOutSet, read_held_out, write_held_out
from tests.peft_folders import BASE, draft_for, write_peft_folder

HELD_OUT = HeldOutSet(
    max_tokens=8, questions=(HeldOutQuestion(messages=(HeldOutMessage(role="user", content="?"),), expected="!"),)
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with one stable version that carries its held-out questions."""
    home = Home(tmp_path / "var")
    home.bases.mkdir(parents=True)
    folder = write_peft_folder(tmp_path / "made")
    write_held_out(HELD_OUT, folder)
    (folder / FINGERPRINT_FILE).write_text(
        f'{{"base_digest": "{BASE.digest}", "chat_template_sha256": "", "stop_token_ids": [], "modules": [],'
        ' "prompts": []}'
    )
    store = AdapterStore(home.adapters)
    store.publish(folder, draft_for(folder))
    store.promote("medical", 1)
    return home


def weights(store: AdapterStore, target: Target) -> dict[str, torch.Tensor]:
    return load_file(store.folder(target) / "adapter_model.safetensors")


def test_canaries_are_made_in_a_store_of_their_own(home: Home, tmp_path: Path) -> None:
    before = AdapterStore(home.adapters).history("medical")
    canaries = make_canaries(home, Home(tmp_path / "scratch"), "medical")
    assert canaries.store.aliases("medical") == {"stable": 1}
    assert canaries.store.versions("medical") == [1, 2, 3]
    assert AdapterStore(home.adapters).history("medical") == before
    assert AdapterStore(home.adapters).versions("medical") == [1]
    assert {
        read_held_out(canaries.store.folder(target)) for target in (canaries.stable, canaries.bad, canaries.good)
    } == {HELD_OUT}


def test_the_bad_one_is_far_from_stable_and_the_good_one_near(home: Home, tmp_path: Path) -> None:
    canaries = make_canaries(home, Home(tmp_path / "scratch"), "medical")
    stable, bad, good = (weights(canaries.store, target) for target in (canaries.stable, canaries.bad, canaries.good))
    for name, tensor in stable.items():
        assert (bad[name] - tensor).abs().mean() > 0.2 * tensor.std()
        assert 0 < (good[name] - tensor).abs().mean() < 0.01 * tensor.std()


def test_only_the_bad_one_has_no_fingerprint_to_be_refused_by(home: Home, tmp_path: Path) -> None:
    canaries = make_canaries(home, Home(tmp_path / "scratch"), "medical")
    has = [
        (canaries.store.folder(target) / FINGERPRINT_FILE).exists()
        for target in (canaries.stable, canaries.bad, canaries.good)
    ]
    assert has == [True, False, True]


def test_a_second_demo_makes_the_same_canaries(home: Home, tmp_path: Path) -> None:
    digests = [
        [canaries.store.manifest(target).digest for target in (canaries.bad, canaries.good)]
        for canaries in (make_canaries(home, Home(tmp_path / "scratch"), "medical") for _ in range(2))
    ]
    assert digests[0] == digests[1]


def test_without_a_trained_adapter_there_is_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="'medical'"):
        make_canaries(Home(tmp_path / "var"), Home(tmp_path / "scratch"), "medical")
    assert not (tmp_path / "scratch").exists()


@pytest.mark.anyio
async def test_what_the_server_has_seen_is_one_line() -> None:
    text = "".join(
        f'lorikeet_trial_{name}{{adapter="medical",version="{version}",comparison="score"}} {value}\n'
        for version, value_of in (("2", (57, -0.21, -0.4, -0.02)), ("3", (1, 1, 1, 1)))
        for name, value in zip(
            ("pairs", "difference", "difference_ci_low", "difference_ci_high"), value_of, strict=True
        )
    )
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=text))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        line = await seen_so_far(client, Target("medical", 2))
    assert line == ("score -0.210 [-0.400, -0.020] of 57 pairs   error rate: nothing yet   slow share: nothing yet")


def test_the_table_says_what_each_decision_took() -> None:
    trial = TrialFigures(
        what="bad",
        canary="medical@2",
        decision="rolled_back",
        reason="canary score is worse",
        num_requests=321,
        num_canary_requests=160,
        num_questions=44,
        seconds=28.4,
        figures={},
    )
    report = QualityDemoReport(
        date="2026-11-22", machine="two cores", concurrency=8, canary_weight=0.5, engine_ready_s=30, trials=(trial,)
    )
    out = io.StringIO()
    print_quality_report(report, Console(file=out, width=160))
    for shown in ("medical@2", "rolled back", "321", "160", "44", "28", "canary score is worse"):
        assert shown in out.getvalue()
