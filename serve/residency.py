"""Which versions are resident in the engine: loaded on first use, checked before they answer, refused with a reason."""

import asyncio
import logging
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from adapters.base import read_base
from adapters.errors import AdapterError, BaseModelMismatchError
from adapters.fingerprint import Fingerprint, read_fingerprint
from adapters.lint import lint_folder, raise_errors
from adapters.manifest import Manifest
from adapters.reference import Target
from adapters.store import AdapterStore
from config.schema import ServeConfig
from serve.engine.protocol import Engine
from serve.errors import AdapterRefusedError, ServeError
from serve.parity import Parity, judge_parity, replay

logger = logging.getLogger(__name__)

_PROBE = ({"role": "user", "content": "Say what you can help with."},)


class ResidencyObserver(Protocol):
    """Who wants to know of loads."""

    def adapter_loaded(self, manifest: Manifest, load_s: float, parity: Parity | None) -> None: ...

    def adapter_refused(self, target: Target) -> None: ...


class Residency:
    """The adapters that the engine holds. One load at a time per version, however many requests wait for it."""

    def __init__(
        self,
        store: AdapterStore,
        engine: Engine,
        base_folder: Path,
        config: ServeConfig,
        observer: ResidencyObserver,
    ) -> None:
        self._store = store
        self._engine = engine
        self._base_folder = base_folder
        self._base = read_base(base_folder)
        self._config = config
        self._observer = observer
        self._resident: OrderedDict[Target, Manifest] = OrderedDict()
        self._refused: dict[Target, ServeError] = {}
        self._loading: dict[Target, asyncio.Task[Manifest]] = {}

    async def ensure(self, target: Target) -> tuple[Manifest, bool]:
        """Make a version resident; returns its manifest and whether it had to be loaded for this call.

        Raises:
            AdapterRefusedError: It failed a check; versions are immutable, so this is remembered.
            NotReadyError: The engine is not running.
        """
        if target in self._resident:
            self._resident.move_to_end(target)
            return self._resident[target], False
        if target in self._refused:
            raise self._refused[target]
        if target not in self._loading:
            self._loading[target] = asyncio.create_task(self._load(target))
            self._loading[target].add_done_callback(lambda task: self._forget_loading(target, task))
        # Shielded: a client that leaves must not cancel the load that others wait for.
        return await asyncio.shield(self._loading[target]), True

    def _forget_loading(self, target: Target, task: asyncio.Task[Manifest]) -> None:
        del self._loading[target]
        if not task.cancelled():
            task.exception()  # seen, also where every client that waited for it has left

    async def _load(self, target: Target) -> Manifest:
        start = time.perf_counter()
        try:
            manifest, fingerprint = await asyncio.to_thread(self._check_files, target)
            await self._engine.load(target, self._store.folder(target))
            parity = await self._check_answers(target, fingerprint)
        except (AdapterError, AdapterRefusedError) as error:
            await self._engine.unload(target)
            refusal = self._refused[target] = AdapterRefusedError(f"{str(target)!r} is refused: {error}")
            self._observer.adapter_refused(target)
            logger.warning("Refused %s: %s", target, error)
            raise refusal from error
        self._remember(target, manifest)
        load_s = time.perf_counter() - start
        self._observer.adapter_loaded(manifest, load_s, parity)
        logger.info(
            "Loaded %s in %.2f s: rank %d, %d modules, parity error %s",
            target,
            load_s,
            manifest.lora.lora_r,
            manifest.lora.num_modules,
            f"{parity.adapter_error_nats:.4f} nats per token" if parity else "unknown (no fingerprint)",
        )
        return manifest

    def _check_files(self, target: Target) -> tuple[Manifest, Fingerprint | None]:
        """All that the disk can tell, before the engine is asked."""
        manifest = self._store.verify(target)
        folder = self._store.folder(target)
        if manifest.base.digest != self._base.digest:
            raise BaseModelMismatchError(
                f"it was trained on {manifest.base.name!r} ({manifest.base.quantization}, digest "
                f"{manifest.base.digest[:12]}…), this server runs {self._base.name!r} "
                f"({self._base.quantization}, {self._base.digest[:12]}…); retrain it, or serve that base"
            )
        findings = lint_folder(folder, base_folder=self._base_folder, max_lora_rank=self._config.max_lora_rank)
        raise_errors(findings, str(target))
        fingerprint = read_fingerprint(folder)
        if fingerprint and fingerprint.chat_template_sha256 != self._base.chat_template_sha256:
            raise BaseModelMismatchError(
                "its fingerprint was taken with another chat template than this base's; retrain it"
            )
        return manifest, fingerprint

    async def _check_answers(self, target: Target, fingerprint: Fingerprint | None) -> Parity | None:
        if fingerprint is None:
            await self._check_has_an_effect(target)
            return None
        served = await replay(fingerprint, self._engine, target)
        parity = judge_parity(fingerprint, served, self._config.parity_tolerance_nats)
        if parity.reason is not None:
            raise AdapterRefusedError(parity.reason)
        return parity

    async def _check_has_an_effect(self, target: Target) -> None:
        """An imported adapter has no fingerprint, but it must at least change something."""
        token_ids = self._engine.render(_PROBE)
        if await self._engine.logprobs(token_ids, target) == await self._engine.logprobs(token_ids, None):
            raise AdapterRefusedError(
                "it answers exactly as the base model does: no module of it was applied, or its weights are zero"
            )

    def _remember(self, target: Target, manifest: Manifest) -> None:
        """Mirror vLLM's host cache, which keeps the `max_cpu_loras` most recently used adapters."""
        self._resident[target] = manifest
        while len(self._resident) > self._config.max_cpu_loras:
            self._resident.popitem(last=False)
