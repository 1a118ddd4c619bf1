"""What a version must pass before it answers: its files first, then its answers."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from adapters.bases import read_base
from adapters.dora import check_dora
from adapters.errors import BaseModelMismatchError, InvalidAdapterError
from adapters.fingerprint import Fingerprint, read_fingerprint
from adapters.lint.lint import lint_folder, raise_errors
from adapters.lint.peft_folder import read_lora_spec
from adapters.reference import Target
from adapters.store.file_stamp import Stamp, stamp_of
from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore
from adapters.store.usage import in_use
from config.limits import RequestLimits
from quality.held_out import InvalidHeldOutError, read_held_out
from serve.engine.protocol import Engine
from serve.errors import ParityError
from serve.limits.defaults import check_defaults
from serve.residency.parity import Parity, Tolerance, finite_logprobs, judge_parity, replay

_MAX_REMEMBERED = 1024  # versions whose files passed

_PROMPTS = (
    "Say what you can help with.",
    "Write a short report on 3 rivers, with their lengths in km: names, numbers; no introduction!",
    "def area(width: float, height: float) -> float:\n    return",
)
"""What an imported version is asked: prose, figures, code."""


@dataclass(frozen=True)
class Checked:
    """A version whose files are sound. `fingerprint` is None for an imported adapter."""

    folder: Path
    manifest: Manifest
    fingerprint: Fingerprint | None


class FileChecks:
    """All that the disk can tell, before the engine is asked.

    Args:
        limits: What a version's request defaults are held to.
        who: What an operator reads who wants to remove a version that is in use.
        fetch: Brings a version here from a remote store.
    """

    def __init__(
        self,
        store: AdapterStore,
        base_folder: Path,
        *,
        max_lora_rank: int,
        limits: RequestLimits,
        who: str,
        fetch: Callable[[Target], object] | None = None,
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._base_folder = base_folder
        self._base = read_base(base_folder)
        self._max_lora_rank = max_lora_rank
        self._limits = limits
        self._who = who
        self._sound: dict[Target, tuple[Stamp, Checked]] = {}

    def check(self, target: Target, hold: ExitStack) -> Checked:
        """Hash and lint a version's files; not again where each is the very file that passed, untouched since.

        Args:
            hold: Gets the mark that the version is in use, so that no other process removes it.

        Raises:
            AdapterError: A file is missing or changed, the adapter is of another base, or vLLM cannot serve it.
            RemoteStoreError: It is not here, and the remote store is away.
        """
        if self._fetch is not None and not self._store.has_version(target):
            self._fetch(target)
        folder = self._store.folder(target)
        hold.enter_context(in_use(self._store.root, target, self._who))
        stamp = stamp_of(folder)
        passed = self._sound.get(target)
        if passed is not None and passed[0] == stamp:
            return passed[1]
        checked = self._check(target, folder)
        if len(self._sound) >= _MAX_REMEMBERED:
            self._sound.clear()  # several threads check: one step, in which nothing is looked up
        self._sound[target] = stamp, checked
        return checked

    def _check(self, target: Target, folder: Path) -> Checked:
        manifest = self._store.verify(target)
        self._check_base(manifest)
        if manifest.defaults is not None:
            check_defaults(manifest.defaults, self._limits)
        findings = lint_folder(folder, base_folder=self._base_folder, max_lora_rank=self._max_lora_rank)
        raise_errors(findings, str(target))
        if read_lora_spec(folder).use_dora:
            check_dora(folder, manifest.base.digest)
        fingerprint = read_fingerprint(folder)
        if fingerprint and fingerprint.chat_template_sha256 != self._base.chat_template_sha256:
            raise BaseModelMismatchError(
                "its fingerprint was taken with a chat template other than this base's; retrain it"
            )
        _check_held_out(folder)
        return Checked(folder, manifest, fingerprint)

    def _check_base(self, manifest: Manifest) -> None:
        if manifest.base.digest != self._base.digest:
            raise BaseModelMismatchError(
                f"it was trained on {manifest.base.name!r} ({manifest.base.quantization}, digest "
                f"{manifest.base.digest[:12]}…), this server runs {self._base.name!r} "
                f"({self._base.quantization}, {self._base.digest[:12]}…); retrain it, or serve that base"
            )


def _check_held_out(folder: Path) -> None:
    try:
        read_held_out(folder)
    except InvalidHeldOutError as error:
        raise InvalidAdapterError(str(error)) from error


class AnswerChecks:
    """Checks that a loaded version gives the answers measured in training."""

    def __init__(self, engine: Engine, *, tolerance: Tolerance) -> None:
        self._engine = engine
        self._tolerance = tolerance
        self._passed: dict[str, tuple[str | None, Parity | None]] = {}

    async def check(self, target: Target, checked: Checked, loaded: str | None) -> Parity | None:
        """Replay the fingerprint on the loaded version; where it has none, ask a few prompts, and return None.

        The whole of it at a version's first load. Later, none of it where the engine has the very weights that
        passed, and one golden prompt where it cannot tell.

        Args:
            loaded: The engine's digest of the weights as it has them.

        Raises:
            ParityError: It does not answer as it was trained to, or, imported, as the base does.
            NotFiniteError: A log-probability of it is NaN or infinite.
            BaseNotFiniteError: One of the base is.
            NotReadyError: The engine is not running.
        """
        fingerprint, digest = checked.fingerprint, checked.manifest.digest
        passed, parity = self._passed.get(digest, (None, None))
        if loaded is not None and loaded == passed:
            return parity
        if fingerprint is None:
            await self._check_has_an_effect(target)
        else:
            if digest in self._passed:
                fingerprint = fingerprint.model_copy(update={"prompts": fingerprint.prompts[:1]})
            parity = judge_parity(fingerprint, await replay(fingerprint, self._engine, target), self._tolerance)
            if parity.reason is not None:
                raise ParityError(parity.reason)
        self._passed.setdefault(digest, (loaded, parity))
        return parity

    async def _check_has_an_effect(self, target: Target) -> None:
        """An imported adapter has no fingerprint, but it must at least change something.

        One prompt after the other: alone in its batch, what changes nothing gives the base's very figures.
        """
        engine = self._engine
        first, *others = (engine.render([{"role": "user", "content": prompt}]) for prompt in _PROMPTS)
        base = await finite_logprobs(engine, first, None)
        adapter = [await finite_logprobs(engine, prompt, target) for prompt in (first, *others)]
        if adapter[0] != base:
            return
        if adapter[1:] == [await finite_logprobs(engine, prompt, None) for prompt in others]:
            raise ParityError(
                "its answers equal the base model's exactly: no module was applied, or its weights are zero"
            )
