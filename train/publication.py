"""Where a trained model goes: a version in the store, a base of its own, or a folder of what cannot be served."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from adapters.fingerprint import Fingerprint
from adapters.reference import Target
from adapters.store.manifest import MANIFEST_FILE, BaseLineage, BaseManifest, Manifest, ManifestDraft
from adapters.store.store import AdapterStore
from config.home import Home
from config.private import make_private_folder
from config.token_methods import BottleneckMethod
from quality.evaluated import EvaluatedItem, write_evaluated
from quality.held_out import HeldOutSet, write_held_out
from train.base.derived import next_name, write_derived_base
from train.card import write_model_card
from train.evaluate.fingerprint import write_fingerprint
from train.folders import staged_folder
from train.methods.bottleneck import save_bottleneck
from train.methods.method import ServedAs
from train.methods.table import method_of, served_as
from train.promotion import Promotion
from train.training import Trained, save_adapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOutcome:
    """A finished run.

    Attributes:
        record: What is known of it: the manifest of a version, or the same fields for what is not in the store.
        name: `medical@3`; of a base of its own, or of what is not served, the name of its folder.
        is_promoted: Whether an alias moved to it, and why.
    """

    record: ManifestDraft
    name: str
    folder: Path
    served_as: ServedAs
    is_promoted: bool
    reason: str

    @property
    def is_servable(self) -> bool:
        """Whether `stable` could point to it."""
        return isinstance(self.record, Manifest) and self.record.lora.task == "CAUSAL_LM"

    @property
    def manifest(self) -> Manifest:
        """Of a published version."""
        assert isinstance(self.record, Manifest), f"{self.name} is {self.served_as}"
        return self.record


@dataclass(frozen=True)
class Finished:
    """A trained and evaluated model with all that is written beside it."""

    trained: Trained
    draft: ManifestDraft
    fingerprint: Fingerprint | None
    held_out: HeldOutSet | None
    base: BaseManifest
    base_folder: Path
    items: tuple[EvaluatedItem, ...] = ()


def publish(finished: Finished, home: Home, promotion: Promotion) -> TrainingOutcome:
    """Write what was trained to where it belongs, complete or not at all.

    Args:
        promotion: Whether a version becomes `stable`.

    Raises:
        AdapterError: The store refuses the adapter.
    """
    settings = finished.trained.task.config.method
    match served_as(settings):
        case "a base of its own":
            return _publish_base(finished, home)
        case "not served":
            return _publish_unserved(finished, home, method_of(settings).unserved(settings))
        case kind:
            return _publish_version(finished, home, kind, promotion)


def _publish_version(finished: Finished, home: Home, kind: ServedAs, promotion: Promotion) -> TrainingOutcome:
    store = AdapterStore(home.adapters)
    with tempfile.TemporaryDirectory(dir=home.runs) as name:
        _write_adapter(finished, Path(name))
        manifest = store.publish(Path(name), finished.draft, base_folder=finished.base_folder)
    if promotion.is_promoted:
        store.promote(manifest.name, manifest.version, alias=promotion.alias, reason=promotion.reason)
    folder = store.folder(Target(manifest.name, manifest.version))
    return TrainingOutcome(manifest, manifest.lora_name, folder, kind, promotion.is_promoted, promotion.reason)


def _publish_base(finished: Finished, home: Home) -> TrainingOutcome:
    draft, model = finished.draft, finished.trained.model
    assert isinstance(model, PreTrainedModel)
    lineage = BaseLineage(
        parent=finished.base.ref,
        made_by=finished.trained.task.config.method.name,
        dataset=draft.dataset,
        training=draft.training,
        evaluation=draft.evaluation,
        scores=draft.scores,
        forgetting=draft.forgetting,
        figures=draft.figures,
    )

    def write_more(folder: Path, digest: str) -> None:
        if finished.fingerprint is not None:
            own = finished.fingerprint.model_copy(update={"base_digest": digest, "modules": ()})
            write_fingerprint(own, folder)

    folder = home.bases / next_name(home.bases, draft.name)
    base = write_derived_base(folder, model, finished.base, lineage, finished.base_folder, write_more)
    reason = f"serve it with `base: {base.name}`; adapters of {finished.base.name} do not fit it"
    return TrainingOutcome(draft, base.name, folder, "a base of its own", False, reason)


def _publish_unserved(finished: Finished, home: Home, reason: str) -> TrainingOutcome:
    root = home.unserved / finished.draft.name
    make_private_folder(home.unserved)
    numbers = [int(path.name) for path in root.glob("[0-9]*") if path.name.isdigit()]
    folder = root / str(max(numbers, default=0) + 1)
    with staged_folder(folder) as staging:
        _write_adapter(finished, staging)
        # Written last: its presence marks the folder complete.
        (staging / MANIFEST_FILE).write_text(finished.draft.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return TrainingOutcome(finished.draft, f"{root.name}/{folder.name}", folder, "not served", False, reason)


def _write_adapter(finished: Finished, folder: Path) -> None:
    task, model = finished.trained.task, finished.trained.model
    if isinstance(task.config.method, BottleneckMethod):
        save_bottleneck(model, folder, finished.base.name, task.config.method)
    else:
        save_adapter(model, folder, finished.base.name)
    if finished.fingerprint is not None:
        write_fingerprint(finished.fingerprint, folder)
    if finished.held_out is not None:
        write_held_out(finished.held_out, folder)
    if finished.items:
        write_evaluated(finished.items, folder)
    write_model_card(finished.draft, folder, user=task.config.chat.user)
