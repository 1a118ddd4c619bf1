"""What becomes resident, what is refused and why, and that a version is loaded once."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

from adapters.bases import read_base
from adapters.errors import AdapterInUseError
from adapters.lint.peft_folder import DORA_FILE, read_lora_spec
from adapters.reference import Target
from adapters.store.integrity import digest_of, file_entry
from adapters.store.manifest import MANIFEST_FILE, BaseRef, ManifestDraft
from adapters.store.store import AdapterStore
from serve.errors import AdapterRefusedError, AdapterUnavailableError, ConflictError, NotReadyError
from tests.fake_engine import ADAPTER_LOGPROBS, BASE_LOGPROBS, FakeEngine
from tests.peft_folders import MODULES, dora_tensors, draft_for, write_peft_folder
from tests.serving import Serving, make_serving

pytestmark = pytest.mark.anyio
MEDICAL = Target("medical", 1)


async def test_many_requests_for_a_cold_adapter_load_it_once(serving: Serving) -> None:
    serving.publish("medical")
    await asyncio.gather(*(serving.residency.lease(MEDICAL) for _ in range(8)))
    assert serving.engine.loads == ["medical@1"]


async def test_a_client_that_leaves_does_not_cancel_the_load_that_others_wait_for(serving: Serving) -> None:
    serving.publish("medical")
    first, second = (asyncio.create_task(serving.residency.lease(MEDICAL)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    lease = await second
    assert (lease.manifest.lora_name, lease.is_cold) == ("medical@1", True)


async def test_an_adapter_of_another_base_is_refused_before_the_engine_sees_it(serving: Serving) -> None:
    other = BaseRef(name="other", digest="e" * 64, quantization="nf4")
    folder = write_peft_folder(serving.store.root.parent / "foreign")
    serving.store.publish(folder, draft_for(folder, base=other))
    with pytest.raises(AdapterRefusedError, match=r"trained on 'other' \(nf4.*retrain it, or serve that base"):
        await serving.residency.lease(MEDICAL)
    assert serving.engine.loads == []


async def test_a_changed_file_is_refused(serving: Serving) -> None:
    serving.publish("medical")
    weights = serving.store.folder(MEDICAL) / "adapter_model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AdapterRefusedError, match=r"adapter_model\.safetensors"):
        await serving.residency.lease(MEDICAL)
    assert serving.engine.loads == []


async def test_dora_whose_factors_fit_no_layer_is_refused(serving: Serving, base_folder: Path) -> None:
    """Its manifest lists the file as it is, as one from a remote store may: the operator would read beyond it."""
    draft = serving.publish("medical").model_dump(include=set(ManifestDraft.model_fields) - {"lora"})
    folder = write_peft_folder(serving.store.root.parent / "dora", use_dora=True, tensors=dora_tensors())
    published = serving.store.publish(
        folder, ManifestDraft(**draft | {"name": "dora", "lora": read_lora_spec(folder)}), base_folder=base_folder
    )
    version = serving.store.folder(Target("dora", 1))
    for name in (DORA_FILE, MANIFEST_FILE):
        (version / name).unlink()
    save_file({f"{module}.scale": torch.ones(1) for module in MODULES}, version / DORA_FILE)
    files = tuple(file_entry(version, file.path) for file in published.files)
    manifest = published.model_copy(update={"files": files, "digest": digest_of(files)})
    (version / MANIFEST_FILE).write_text(manifest.model_dump_json())
    with pytest.raises(AdapterRefusedError, match=f"{DORA_FILE} of '1' is missing or made for another base"):
        await serving.residency.lease(Target("dora", 1))
    assert serving.engine.loads == []


async def test_files_that_passed_are_hashed_again_only_after_a_change(serving: Serving) -> None:
    serving.publish("medical")
    weights = serving.store.folder(MEDICAL) / "adapter_model.safetensors"
    await serving.residency.load(MEDICAL)
    await serving.residency.unload(MEDICAL)
    with patch.object(serving.store.__class__, "verify", side_effect=AssertionError):
        await serving.residency.load(MEDICAL)
    await serving.residency.unload(MEDICAL)
    modified = weights.stat().st_mtime_ns
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(modified, modified))  # who changes a file may set this time, not that of the change
    with pytest.raises(AdapterRefusedError, match=r"adapter_model\.safetensors"):
        await serving.residency.lease(MEDICAL)


async def test_an_adapter_that_answers_as_the_base_is_refused_and_unloaded(serving: Serving) -> None:
    serving.publish("medical")
    serving.engine.adapter_logprobs = BASE_LOGPROBS
    with pytest.raises(AdapterRefusedError, match="no module was applied"):
        await serving.residency.lease(MEDICAL)
    assert serving.engine.resident == set()


async def test_an_imported_adapter_without_effect_is_refused(serving: Serving, base_folder: Path) -> None:
    manifest = serving.publish("medical")
    folder = write_peft_folder(serving.store.root.parent / "imported")
    serving.store.publish(folder, draft_for(folder, "imported", base=manifest.base, origin="imported"))
    serving.engine.adapter_logprobs = BASE_LOGPROBS
    with pytest.raises(AdapterRefusedError, match="equal the base model's exactly"):
        await serving.residency.lease(Target("imported", 1))


async def test_a_refusal_is_remembered_and_counted_once(serving: Serving) -> None:
    serving.publish("medical")
    serving.engine.load_error = "broken"
    for _ in range(3):
        with pytest.raises(AdapterRefusedError, match="broken"):
            await serving.residency.lease(MEDICAL)
    labels = {"adapter": "medical", "version": "1", "check": "engine"}
    assert serving.engine.loads == ["medical@1"]
    assert serving.metrics.registry.get_sample_value("lorikeet_adapter_refusals_total", labels) == 1


async def test_a_load_is_measured_with_its_parity_error(serving: Serving) -> None:
    serving.publish("medical")
    await serving.residency.lease(MEDICAL)
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
        await serving.residency.load(Target(name, 1))
    assert serving.engine.loads == ["a@1", "b@1", "c@1", "b@1"]
    assert serving.engine.resident == {"a@1", "b@1"}


async def test_a_version_in_use_is_never_the_one_that_makes_room(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, max_loras=1, max_cpu_loras=2)
    for name in ("a", "b", "c"):
        serving.publish(name)
    with await serving.residency.lease(Target("a", 1)):
        await serving.residency.load(Target("b", 1))
        await serving.residency.load(Target("c", 1))
        assert serving.engine.resident == {"a@1", "c@1"}


@pytest.mark.parametrize("is_client", [True, False])
async def test_what_only_the_monitor_asks_for_makes_room_first(
    store: AdapterStore, base_folder: Path, *, is_client: bool
) -> None:
    serving = make_serving(store, base_folder, max_loras=1, max_cpu_loras=2)
    for name in ("a", "b", "c"):
        serving.publish(name)
    await lease_as_client(serving, "a")
    for _ in range(3):
        await (lease_as_client(serving, "b") if is_client else serving.residency.load(Target("b", 1)))
    await lease_as_client(serving, "c")
    assert serving.engine.resident == ({"b@1", "c@1"} if is_client else {"a@1", "c@1"})


async def lease_as_client(serving: Serving, name: str) -> None:
    (await serving.residency.lease(Target(name, 1), is_for_client=True)).release()


async def test_an_unload_waits_for_the_last_request_and_then_really_frees(serving: Serving) -> None:
    serving.publish("medical")
    lease = await serving.residency.lease(MEDICAL)
    unloading = asyncio.create_task(serving.residency.unload(MEDICAL))
    await asyncio.sleep(0.01)
    assert serving.engine.resident == {"medical@1"}
    lease.release()
    await unloading
    assert (serving.engine.resident, serving.residency.residents) == (set(), {})


async def test_a_request_that_comes_during_an_unload_gets_the_version_loaded_again(serving: Serving) -> None:
    serving.publish("medical")
    first = await serving.residency.lease(MEDICAL)
    unloading = asyncio.create_task(serving.residency.unload(MEDICAL))
    await asyncio.sleep(0)
    second = asyncio.create_task(serving.residency.lease(MEDICAL))
    await asyncio.sleep(0.01)
    assert not second.done()
    first.release()
    assert (await second).is_cold
    await unloading
    assert serving.engine.loads == ["medical@1", "medical@1"]


async def test_a_request_that_comes_just_as_an_unload_ends_does_not_hold_up_the_loop(serving: Serving) -> None:
    serving.publish("medical")
    await serving.residency.load(MEDICAL)
    unloading = asyncio.create_task(serving.residency.unload(MEDICAL))
    await asyncio.sleep(0)
    lease = await asyncio.create_task(serving.residency.lease(MEDICAL))  # its first step comes after the unload's last
    assert lease.is_cold
    await unloading
    assert serving.engine.loads == ["medical@1", "medical@1"]


async def test_a_lease_is_released_once(serving: Serving) -> None:
    serving.publish("medical")
    first, _second = [await serving.residency.lease(MEDICAL) for _ in range(2)]
    first.release()
    first.release()
    assert serving.residency.residents[MEDICAL].in_flight == 1


async def test_a_pinned_version_stays(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, max_loras=2, max_cpu_loras=2)
    for name in ("a", "b", "c"):
        serving.publish(name)
    await serving.residency.pin(Target("a", 1))
    for name in ("b", "c", "b"):
        await serving.residency.load(Target(name, 1))
    assert "a@1" in serving.engine.resident
    assert serving.engine.pinned == {"a@1"}
    with pytest.raises(ConflictError, match="pinned"):
        await serving.residency.unload(Target("a", 1))
    with pytest.raises(ConflictError, match=r"At most 1 adapters can be pinned.*a@1"):
        await serving.residency.pin(Target("b", 1))
    await serving.residency.unpin(Target("a", 1))
    await serving.residency.unload(Target("a", 1))
    assert serving.engine.pinned == set()


async def test_a_version_that_serves_cannot_be_removed_from_the_store(serving: Serving) -> None:
    serving.publish("medical")
    serving.publish("medical")
    await serving.residency.load(MEDICAL)
    with pytest.raises(AdapterInUseError, match=r"lorikeet serve on port 8000 \(process \d+\)"):
        serving.store.remove(MEDICAL)
    await serving.residency.unload(MEDICAL)
    serving.store.remove(MEDICAL)
    assert serving.store.versions("medical") == [2]


async def test_after_the_engine_died_what_was_resident_is_loaded_again(serving: Serving) -> None:
    serving.publish("medical")
    serving.publish("legal")
    for name in ("medical", "legal"):
        await serving.residency.load(Target(name, 1))
    lost = serving.residency.reset()
    assert [str(target) for target in lost] == ["legal@1", "medical@1"]
    assert serving.residency.residents == {}
    await serving.residency.restore(lost)
    assert set(serving.residency.residents) == set(lost)


async def test_a_later_load_is_checked_too(serving: Serving) -> None:
    serving.publish("medical")
    await serving.residency.load(MEDICAL)
    await serving.residency.unload(MEDICAL)
    serving.engine.adapter_logprobs = BASE_LOGPROBS
    with pytest.raises(AdapterRefusedError, match="no module was applied"):
        await serving.residency.load(MEDICAL)


@pytest.mark.slow
async def test_loads_at_the_same_time_do_not_overfill_host_memory(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder, max_loras=1, max_cpu_loras=2)
    names = ("a", "b", "c", "d")
    for name in names:
        serving.publish(name)
    await asyncio.gather(*(serving.residency.load(Target(name, 1)) for name in names))
    assert serving.engine.most_resident <= 2
    assert sorted(serving.engine.loads) == ["a@1", "b@1", "c@1", "d@1"]


async def test_weights_that_passed_before_are_not_asked_again(serving: Serving) -> None:
    """The same version, loaded again: the engine says by its digest whether it has the very same weights."""
    serving.publish("medical")
    asked = []
    for digest in ("packed", "packed", None, "other"):
        serving.engine.loaded_digest = digest
        before = serving.engine.replays
        await serving.residency.load(MEDICAL)
        asked.append(serving.engine.replays - before)
        await serving.residency.unload(MEDICAL)
    assert [count > 0 for count in asked] == [True, False, True, True]


async def test_a_version_whose_questions_are_none_is_refused_with_the_place_that_is_wrong(serving: Serving) -> None:
    folder = write_peft_folder(serving.store.root.parent / "odd")
    (folder / "held_out.json").write_text('{"max_tokens": "many"}')
    base = read_base(serving.base_folder)
    serving.store.publish(folder, draft_for(folder, base=base.ref))
    with pytest.raises(
        AdapterRefusedError, match=r"'medical@1' is refused: held_out.json of '1' is broken at max_token"
    ):
        await serving.residency.load(MEDICAL)


class FailingEngine(FakeEngine):
    """Fails in what is set to an error, once."""

    unload_error: BaseException | None = None
    pin_error: BaseException | None = None
    logprobs_error: BaseException | None = None

    async def unload(self, target: Target) -> None:
        error, self.unload_error = self.unload_error, None
        if error is not None:
            raise error
        await super().unload(target)

    async def pin(self, target: Target) -> None:
        error, self.pin_error = self.pin_error, None
        if error is not None:
            raise error
        await super().pin(target)

    async def logprobs(self, token_ids: Sequence[int], target: Target | None) -> list[float]:
        if self.logprobs_error is not None:
            raise self.logprobs_error
        return await super().logprobs(token_ids, target)


@pytest.fixture
def failing(store: AdapterStore, base_folder: Path) -> tuple[Serving, FailingEngine]:
    """Two slots, one of which can be pinned, and room for two."""
    engine = FailingEngine()
    serving = make_serving(store, base_folder, engine=engine, max_loras=2, max_cpu_loras=2)
    for name in ("medical", "legal", "finance"):
        serving.publish(name)
    return serving, engine


async def test_what_the_engine_no_longer_has_is_loaded_again(serving: Serving) -> None:
    serving.publish("medical")
    await serving.residency.load(MEDICAL)
    serving.engine.resident.clear()
    assert (serving.residency.residents, serving.residency.is_resident(MEDICAL)) == ({}, False)
    with await serving.residency.lease(MEDICAL) as lease:
        assert lease.is_cold
    await serving.residency.unload(MEDICAL)
    assert serving.engine.loads == ["medical@1", "medical@1"]


async def test_an_unload_that_fails_leaves_the_version_in_service(failing: tuple[Serving, FailingEngine]) -> None:
    serving, engine = failing
    await serving.residency.load(MEDICAL)
    engine.unload_error = NotReadyError("hiccup")
    with pytest.raises(NotReadyError, match="hiccup"):
        await serving.residency.unload(MEDICAL)
    assert set(serving.residency.residents) == {MEDICAL}
    assert not (await serving.residency.lease(MEDICAL)).is_cold


async def test_a_refused_version_whose_removal_failed_makes_room(failing: tuple[Serving, FailingEngine]) -> None:
    serving, engine = failing
    engine.adapter_logprobs, engine.unload_error = BASE_LOGPROBS, NotReadyError("hiccup")
    with pytest.raises(AdapterRefusedError):
        await serving.residency.load(MEDICAL)
    engine.adapter_logprobs = ADAPTER_LOGPROBS
    assert engine.resident == {"medical@1"}
    await serving.residency.load(Target("legal", 1))
    async with asyncio.timeout(10):
        await serving.residency.load(Target("finance", 1))
    assert engine.resident == {"legal@1", "finance@1"}


class PanicError(BaseException):
    """As of a library written in Rust."""


async def test_a_load_that_ends_in_a_panic_leaves_nothing(failing: tuple[Serving, FailingEngine]) -> None:
    serving, engine = failing
    engine.logprobs_error = PanicError("index out of bounds")
    with pytest.raises(AdapterUnavailableError, match="'medical@1' cannot be loaded now"):
        await serving.residency.load(MEDICAL)
    assert (engine.resident, serving.residency.residents) == (set(), {})
    engine.logprobs_error = None
    await serving.residency.load(MEDICAL)


async def test_a_load_that_is_cancelled_leaves_nothing(failing: tuple[Serving, FailingEngine]) -> None:
    serving, engine = failing
    begun = asyncio.Event()

    async def hang(*_: object) -> list[float]:
        begun.set()
        await asyncio.Event().wait()
        return []

    engine.logprobs = hang  # type: ignore[method-assign, assignment]
    asked = asyncio.create_task(serving.residency.load(MEDICAL))
    await begun.wait()
    (loading,) = serving.residency._loading.values()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert (engine.resident, serving.residency.residents) == (set(), {})


async def test_a_pin_that_fails_does_not_count(failing: tuple[Serving, FailingEngine]) -> None:
    serving, engine = failing
    engine.pin_error = NotReadyError("hiccup")
    with pytest.raises(NotReadyError, match="hiccup"):
        await serving.residency.pin(MEDICAL)
    assert not serving.residency.residents[MEDICAL].is_pinned
    await serving.residency.pin(Target("legal", 1))
    assert engine.pinned == {"legal@1"}
