"""What routers read in a scrape: names, labels and values by the rules of their protocols' documents."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from adapters.reference import Target
from serve.observe.router_metrics import AdapterPlaces, PlacedAdapter, RouterMetrics, WithAdmissionQueue


@dataclass
class Server:
    """What a server knows; as `AdapterPlaces` asks it."""

    placed: list[PlacedAdapter] = field(default_factory=list)
    running: dict[str | None, int] = field(default_factory=dict)
    waiting: dict[str | None, int] = field(default_factory=dict)
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)

    def scrape(self, max_loras: int = 2) -> list[Sample]:
        registry = CollectorRegistry()
        registry.register(RouterMetrics("smollm2-135m", max_loras, self.places))
        text = generate_latest(registry).decode()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    @property
    def places(self) -> AdapterPlaces:
        return AdapterPlaces(
            lambda: self.placed, lambda: self.running, lambda: self.waiting, lambda name: self.aliases.get(name, {})
        )


def placed(*versions: str, pinned: tuple[str, ...] = ()) -> list[PlacedAdapter]:
    """Versions in the engine's memory, least recently used first."""
    return [PlacedAdapter(target_of(version), version in pinned) for version in versions]


def target_of(version: str) -> Target:
    name, _, number = version.partition("@")
    return Target(name, int(number))


def levels(samples: list[Sample]) -> dict[str, str]:
    return {
        sample.labels["adapter_name"]: sample.labels["level"]
        for sample in samples
        if sample.name == "vllm:lora_adapter_loaded" and sample.value == 1
    }


def info(samples: list[Sample]) -> Mapping[str, str]:
    found = [sample for sample in samples if sample.name == "vllm:lora_requests_info"]
    assert len(found) == 1  # whatever ran together before
    return found[0].labels


def value(samples: list[Sample], name: str) -> float:
    (found,) = (sample for sample in samples if sample.name == name)
    assert found.labels == {"model_name": "smollm2-135m", "engine": "0"}
    return found.value


def test_a_server_without_adapters_says_how_many_it_could_take() -> None:
    samples = Server().scrape(max_loras=4)
    assert value(samples, "vllm:num_gpu_loaded_lora_adapters") == 0
    assert value(samples, "vllm:max_gpu_lora_adapters") == 4
    assert levels(samples) == {}
    assert info(samples) == {"max_lora": "4", "running_lora_adapters": "", "waiting_lora_adapters": ""}


def test_an_adapter_has_every_name_that_clients_ask_for() -> None:
    server = Server(placed("medical@3", "medical@4"), aliases={"medical": {"stable": 3, "canary": 4, "best": 3}})
    assert set(levels(server.scrape())) == {"medical@3", "medical", "medical@best", "medical@4", "medical@canary"}


def test_a_name_follows_its_alias() -> None:
    server = Server(placed("medical@3", "medical@4"), aliases={"medical": {"stable": 3}})
    before = levels(server.scrape(max_loras=1))
    server.aliases["medical"]["stable"] = 4
    assert (before["medical"], levels(server.scrape(max_loras=1))["medical"]) == ("cpu", "gpu")


def test_many_aliases_of_one_version_are_bounded() -> None:
    server = Server(placed("medical@3"), aliases={"medical": {f"a{number}": 3 for number in range(100)}})
    assert len(levels(server.scrape())) == 5


@pytest.mark.parametrize(
    ("running", "pinned", "in_slots"),
    [
        ({}, (), {"c@1", "d@1"}),
        ({"a@1": 1, None: 3}, (), {"a@1", "d@1"}),
        ({"a@1": 1}, ("b@1",), {"a@1", "b@1"}),
        ({"a@1": 0}, (), {"c@1", "d@1"}),
    ],
)
def test_slots_hold_the_pinned_the_running_and_the_last_used(
    running: dict[str | None, int], pinned: tuple[str, ...], in_slots: set[str]
) -> None:
    samples = Server(placed("a@1", "b@1", "c@1", "d@1", pinned=pinned), running=running).scrape()
    assert {name for name, level in levels(samples).items() if level == "gpu"} == in_slots
    assert value(samples, "vllm:num_gpu_loaded_lora_adapters") == 2
    assert value(samples, "vllm:num_cpu_loaded_lora_adapters") == 4


def test_requests_are_told_by_every_name_of_their_adapter() -> None:
    server = Server(
        placed("medical@3"),
        running={"medical@3": 2, None: 1},
        waiting={"legal@1": 5, None: 2},
        aliases={"medical": {"stable": 3}},
    )
    labels = info(server.scrape())
    assert labels["running_lora_adapters"].split(", ") == ["medical", "medical@3"]
    assert labels["waiting_lora_adapters"].split(", ") == ["legal@1"]


def test_pinned_is_told_in_lower_case() -> None:
    samples = Server(placed("a@1", "b@1", pinned=("a@1",))).scrape()
    found = {s.labels["adapter_name"]: s.labels["pinned"] for s in samples if s.name == "vllm:lora_adapter_loaded"}
    assert found == {"a@1": "true", "b@1": "false"}


def test_requests_of_the_admission_queue_count_as_waiting() -> None:
    vllm = CollectorRegistry()
    Gauge("vllm:num_requests_waiting", "", ("model_name", "engine"), registry=vllm).labels("m", "0").set(1)
    Gauge("vllm:num_requests_running", "", ("model_name", "engine"), registry=vllm).labels("m", "0").set(4)
    text = generate_latest(WithAdmissionQueue(vllm, lambda: 7)).decode()
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert found == {"vllm:num_requests_waiting": 8, "vllm:num_requests_running": 4}
