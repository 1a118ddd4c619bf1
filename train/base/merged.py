"""`lorikeet base merge`: a version merged into its base, as a base of its own on which others are trained."""

import logging
from pathlib import Path

from adapters.fingerprint import FINGERPRINT_FILE, read_fingerprint
from adapters.store.manifest import BaseLineage, BaseManifest, VersionRef
from config.home import Home
from train.base.derived import next_name, write_weights_as_base
from train.base.prepare import base_folder
from train.errors import ExportError, PrepareBaseError
from train.evaluate.fingerprint import write_fingerprint
from train.export.merge import write_merged
from train.export.version import open_version

logger = logging.getLogger(__name__)


def merge_into_base(reference: str, home: Home, new_name: str | None = None) -> BaseManifest:
    """Write base plus adapter as the base `<adapter>-1` or `new_name`; its lineage names both.

    The version's golden prompts become the base's: what the adapter answered, the base must.

    Raises:
        AdapterError: No such version, or its base is not prepared, or their files changed.
        ExportError: The version is not a LoRA or DoRA adapter, or is a reward model.
        PrepareBaseError: Another base has the name.
    """
    version = open_version(home, reference)
    manifest = version.manifest
    if manifest.lora.task == "SEQ_CLS":
        raise ExportError(f"{manifest.lora_name!r} is a reward model, which gives scores and no answers: no base.")
    folder = base_folder(home, new_name or next_name(home.bases, version.target.name))
    if folder.exists():
        raise PrepareBaseError(f"Base {folder.name!r} already exists. Choose another `--name`.")
    lineage = BaseLineage(
        parent=version.base.ref,
        made_by="merge",
        merged=VersionRef(lora_name=manifest.lora_name, digest=manifest.digest),
        dataset=manifest.dataset,
        training=manifest.training,
        evaluation=manifest.evaluation,
        scores=manifest.scores,
        forgetting=manifest.forgetting,
    )
    fingerprint = read_fingerprint(version.folder)

    def write_weights(staging: Path) -> None:
        write_merged(version, staging)
        (staging / FINGERPRINT_FILE).unlink(missing_ok=True)  # of a parent that was made from another base, too

    def write_more(staging: Path, digest: str) -> None:
        if fingerprint is not None:
            write_fingerprint(fingerprint.model_copy(update={"base_digest": digest, "modules": ()}), staging)

    base = write_weights_as_base(folder, write_weights, version.base, lineage, version.base_folder, write_more)
    logger.info("base %s: %s merged into %s", base.name, manifest.lora_name, version.base.name)
    return base
