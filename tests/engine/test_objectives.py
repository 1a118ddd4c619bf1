"""Methods and objectives on real data and the real base: the demo's medical domain for a few steps, then served."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from adapters.fingerprint import read_fingerprint
from config.domain import DomainConfig
from config.home import Home
from loadtest.bench.server import running_server
from tests.live_server import BASE, write_serve_config
from train.bench_methods import domain_of
from train.pipeline import train_and_publish
from train.publication import TrainingOutcome

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.exhaustive]

METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"method": "dora"},
    "pissa": {"method": {"init_lora_weights": "pissa"}},
}
_REWARDED = {"num_generations": 4, "reward_weights": {"exact_match": 1.0, "valid_format": 0.2}}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"name": "dpo"}, "recipe": {"learning_rate": 1e-4}},
    "grpo": {"objective": {"name": "grpo", **_REWARDED}, "recipe": {"max_steps": 2, "eval_steps": 2}},
    "rloo": {"objective": {"name": "rloo", **_REWARDED}, "recipe": {"max_steps": 2, "eval_steps": 2}},
}
NUM_TEST = 24
TOLERANCE_NATS = 0.05


@pytest.fixture(scope="module")
def home(live_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("objectives"))
    home.bases.symlink_to(live_home.bases)
    home.runs.mkdir()
    return home


def medical(home: Home, name: str, cell: dict[str, Any]) -> DomainConfig:
    short = {"max_steps": 12, "eval_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    cell = cell | {"name": name, "base": BASE, "recipe": short | cell.get("recipe", {})}
    fields = domain_of(home, cell).model_dump(mode="json", by_alias=True, exclude_unset=True)
    fields["data"] |= {"num_train": 400, "num_validation": 8, "num_test": NUM_TEST}
    return DomainConfig.model_validate(fields)


@pytest.fixture(scope="module")
def trained(home: Home) -> dict[str, TrainingOutcome]:
    """The methods from the base, the other objectives from the version of `lora`."""
    started = {name: cell | {"from": "lora@1"} for name, cell in OBJECTIVES.items()}
    return {name: train_and_publish(medical(home, name, cell), home) for name, cell in (METHODS | started).items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_real_answers(trained: dict[str, TrainingOutcome], name: str) -> None:
    fingerprint, evaluation = read_fingerprint(trained[name].folder), trained[name].record.evaluation
    assert fingerprint is not None
    assert evaluation is not None
    assert evaluation.adapter.n == NUM_TEST
    gains = [a - b for p in fingerprint.prompts for a, b in zip(p.adapter_logprobs, p.base_logprobs, strict=True)]
    assert sum(gains) / len(gains) > 0.2  # nats per token of the right answers


def test_dpo_prefers_the_right_chapter_more_than_its_start(trained: dict[str, TrainingOutcome]) -> None:
    record = trained["dpo"].record
    assert record.started_from is not None
    assert record.started_from.lora_name == "lora@1"
    assert record.scores["reward_accuracy"].gain > 0.1
    assert record.scores["reward_margin"].adapter.value > 0


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_reinforcement_is_rewarded_by_the_domains_scorers(trained: dict[str, TrainingOutcome], name: str) -> None:
    record = trained[name].record
    assert record.training is not None
    assert record.scores["reward"].adapter.n == NUM_TEST
    assert 0 < record.scores["reward"].adapter.value <= 1.2
    assert {"reward_step_1", "reward_step_2", "eval_reward_step_0", "eval_reward_step_2"} <= set(
        record.training.metrics
    )


@pytest.fixture(scope="module")
def http(home: Home, trained: dict[str, TrainingOutcome]) -> Iterator[httpx.Client]:
    config = write_serve_config(home.root, cpu_compile=False, max_lora_rank=32, quality={"enabled": False})
    with (
        running_server(config, home.root, home.root / "serve.log") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        yield http


@pytest.mark.parametrize("name", [*METHODS, *OBJECTIVES])
def test_what_was_trained_on_real_data_passes_parity(http: httpx.Client, name: str) -> None:
    messages = [{"role": "user", "content": "Cholera due to Vibrio cholerae"}]
    response = http.post("/v1/chat/completions", json={"model": f"{name}@1", "messages": messages})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == f"{name}@1"
    rows = http.get("/admin/adapters").raise_for_status().json()["adapters"]
    (error,) = [row["parity_error_nats"] for row in rows if row["adapter"] == f"{name}@1"]
    assert error is not None
    assert error < TOLERANCE_NATS
