"""What becomes resident, what is refused and why, and that a version is loaded once."""

import asyncio
from pathlib import Path

import pytest

from adapters.manifest import BaseRef
from adapters.reference import Target
from adapters.store import AdapterStore
from serve.errors import AdapterRefusedError
from tests.fake_engine import BASE_LOGPROBS
from tests.peft_folders import draft_for, write_peft_folder
from tests.serving import Serving, make_serving

pytestmark = pytest.mark.anyio
MEDICAL = Target("medical", 1)


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path) -> Serving:
    return make_serving(store, base_folder)


async def test_many_requests_for_a_cold_adapter_load_it_once(serving: Serving) -> None:
    serving.publish("medical")
    await asyncio.gather(*(serving.residency.ensure(MEDICAL) for _ in range(8)))
    assert serving.engine.loads == ["medical@1"]


async def test_a_client_that_leaves_does_not_cancel_the_load_that_others_wait_for(serving: Serving) -> None:
    serving.publish("medical")
    first, second = (asyncio.create_task(serving.residency.ensure(MEDICAL)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    manifest, is_cold = await second
    assert (manifest.lora_name, is_cold) == ("medical@1", True)


async def test_an_adapter_of_another_base_is_refused_before_the_engine_sees_it(serving: Serving) -> None:
    other = BaseRef(name="other", digest="e" * 64, quantization="nf4")
    folder = write_peft_folder(serving.store.root.parent / "foreign")
    serving.store.publish(folder, draft_for(folder, base=other))
    with pytest.raises(AdapterRefusedError, match=r"trained on 'other' \(nf4.*retrain it, or serve that base"):
        await serving.residency.ensure(MEDICAL)
    assert serving.engine.loads == []


async def test_a_changed_file_is_refused(serving: Serving) -> None:
    serving.publish("medical")
    weights = serving.store.folder(MEDICAL) / "adapter_model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AdapterRefusedError, match=r"adapter_model\.safetensors"):
        await serving.residency.ensure(MEDICAL)
    assert serving.engine.loads == []


async def test_an_adapter_that_answers_as_the_base_is_refused_and_unloaded(serving: Serving) -> None:
    serving.publish("medical")
    serving.engine.adapter_logprobs = BASE_LOGPROBS
    with pytest.raises(AdapterRefusedError, match="no module of it was applied"):
        await serving.residency.ensure(MEDICAL)
    assert serving.engine.resident == set()


async def test_an_imported_adapter_without_effect_is_refused(serving: Serving, base_folder: Path) -> None:
    manifest = serving.publish("medical")
    folder = write_peft_folder(serving.store.root.parent / "imported")
    serving.store.publish(folder, draft_for(folder, "imported", base=manifest.base, origin="imported"))
    serving.engine.adapter_logprobs = BASE_LOGPROBS
    with pytest.raises(AdapterRefusedError, match="exactly as the base model does"):
        await serving.residency.ensure(Target("imported", 1))


async def test_a_refusal_is_remembered_and_counted_once(serving: Serving) -> None:
    serving.publish("medical")
    serving.engine.load_error = "broken"
    for _ in range(3):
        with pytest.raises(AdapterRefusedError, match="broken"):
            await serving.residency.ensure(MEDICAL)
    labels = {"adapter": "medical", "version": "1"}
    assert serving.engine.loads == ["medical@1"]
    assert serving.metrics.registry.get_sample_value("lorikeet_adapter_refusals_total", labels) == 1


async def test_a_load_is_measured_with_its_parity_error(serving: Serving) -> None:
    serving.publish("medical")
    await serving.residency.ensure(MEDICAL)
    labels = {"adapter": "medical", "version": "1"}
    registry = serving.metrics.registry
    assert registry.get_sample_value("lorikeet_adapter_loads_total", labels) == 1
    assert registry.get_sample_value("lorikeet_adapter_load_seconds_count", labels) == 1
    assert registry.get_sample_value("lorikeet_adapter_parity_error_nats", labels) == 0


async def test_the_least_recently_used_adapter_is_cold_again_when_host_memory_is_full(
    store: AdapterStore, base_folder: Path
) -> None:
    serving = make_serving(store, base_folder, max_loras=1, max_cpu_loras=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        if not store.versions(name):
            serving.publish(name)
        await serving.residency.ensure(Target(name, 1))
    assert serving.engine.loads == ["a@1", "b@1", "c@1", "b@1"]
