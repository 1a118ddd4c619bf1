"""`lorikeet train`: data, training, evaluation, fingerprint, publication and, if the gates pass, promotion."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from peft import LoraConfig
from rich.console import Console

from adapters.bases import verify_base
from adapters.reference import DEFAULT_ALIAS
from adapters.store.manifest import (
    BaseManifest,
    DatasetRef,
    Evaluation,
    Forgetting,
    LoraSpec,
    Manifest,
    ManifestDraft,
    QualityBaseline,
    RequestDefaults,
    SourceFile,
)
from adapters.store.store import AdapterStore
from config.dataset import SPLITS, DatasetManifest, DatasetRow, read_split
from config.domain import DomainConfig, GatesConfig
from config.home import Home
from config.progress import Progress, shown
from quality.held_out import write_held_out
from train.card import PLAIN_USER, write_model_card
from train.compute import Shape, compute_in, measure_inference
from train.data.build import build_dataset
from train.data.encode import encode_prompt
from train.data.rows import check_type
from train.evaluate.decoding import check_format
from train.evaluate.fingerprint import adapted_modules, make_fingerprint, write_fingerprint
from train.evaluate.held_out import make_held_out, quality_rules
from train.evaluate.local import evaluate, measure_forgetting, quality_baseline
from train.methods.recipe import check_recipe
from train.objectives.sft import ADAPTER_NAME, Trained, save_adapter, train_adapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOutcome:
    """A published version, whether it was promoted, and why."""

    manifest: Manifest
    is_promoted: bool
    reason: str


def train_and_publish(
    config: DomainConfig,
    home: Home,
    *,
    resume: bool = False,
    console: Console | None = None,
    today: Callable[[], date] = date.today,
) -> TrainingOutcome:
    """Train, evaluate and publish one version from a domain's configuration.

    Args:
        today: Date of a new run.

    Raises:
        TrainError: The data or the recipe cannot be used; nothing was published.
        AdapterError: The base is missing or changed, or the store refuses the adapter.
    """
    check_recipe(config.recipe)
    if config.chat.user != PLAIN_USER:
        logger.warning(
            "Clients must send the user turn as %r; the server fills in only the system prompt", config.chat.user
        )
    base_folder = home.bases / config.base
    base = verify_base(base_folder)
    dataset = build_dataset(config, home)
    check_type(dataset)
    for note in dataset.notes:
        logger.info("%s", note)
    check_format(dataset)
    rows = {split: read_split(home.datasets / config.name, split) for split in SPLITS}
    trained = train_adapter(
        config, base, base_folder, dataset, rows, home.runs / config.name, resume=resume, console=console, today=today
    )
    at = trained.template_time
    with _stage(console, "evaluate base and adapter", 2 * len(rows["test"])) as on_answers:
        _compute_fast(trained, dataset, rows["test"])
        evaluation, answers = evaluate(trained.model, trained.tokenizer, dataset, rows["test"], at, on_answers)
        forgetting = measure_forgetting(trained.model, trained.tokenizer)
    fingerprint = make_fingerprint(trained.model, trained.tokenizer, base, rows["test"], at)
    held_out = make_held_out(config, trained.tokenizer, rows["test"], answers, forgetting)
    draft = draft_manifest(config, base, dataset, trained, evaluation, forgetting, quality_baseline(answers))
    store = AdapterStore(home.adapters)
    with tempfile.TemporaryDirectory(dir=home.runs) as name:
        folder = Path(name)
        save_adapter(trained.model, folder, base.name)
        write_fingerprint(fingerprint, folder)
        write_held_out(held_out, folder)
        write_model_card(draft, folder, user=config.chat.user)
        manifest = store.publish(folder, draft, base_folder=base_folder)
    passed, reason = judge_gates(evaluation, config.gates)
    if passed:
        store.promote(manifest.name, manifest.version, alias=DEFAULT_ALIAS, reason=reason)
    logger.info("%s published; %s", manifest.lora_name, reason)
    shutil.rmtree(home.runs / config.name)  # the version is in the store; its checkpoints are no longer needed
    return TrainingOutcome(manifest, passed, reason)


def _compute_fast(trained: Trained, dataset: DatasetManifest, rows: Sequence[DatasetRow]) -> None:
    """Use the fastest precision and threads for prompts of median length."""
    lengths = sorted(
        len(encode_prompt(trained.tokenizer, row.prompt, trained.template_time, row.tools)) for row in rows
    )
    prompts = Shape(len(rows), lengths[len(rows) // 2])
    compute_in(trained.model, measure_inference(trained.model, prompts, dataset.evaluation.max_new_tokens))


@contextmanager
def _stage(console: Console | None, text: str, num_answers: int) -> Iterator[Callable[[int], None]]:
    """Show the number of finished answers, then log the total time."""
    progress = Progress(text, num_answers, "answers")
    with shown(progress, console) if console is not None else nullcontext():
        yield progress.advance
    logger.info("%s took %.0f s", text, progress.elapsed_s)


def judge_gates(evaluation: Evaluation, gates: GatesConfig) -> tuple[bool, str]:
    """Whether a version may be promoted to `stable` automatically, and why."""
    gain = evaluation.adapter.value - evaluation.base.value
    valid = evaluation.valid_format.value
    failures = []
    if gain < gates.min_gain:
        failures.append(f"gain {gain:+.3f} is below min_gain {gates.min_gain:+.3f}")
    if valid < gates.min_valid_format:
        failures.append(f"valid format {valid:.3f} is below min_valid_format {gates.min_valid_format:.3f}")
    if failures:
        return False, "gates failed: " + "; ".join(failures)
    return True, f"gates passed: gain {gain:+.3f}, valid format {valid:.3f}"


def draft_manifest(
    config: DomainConfig,
    base: BaseManifest,
    dataset: DatasetManifest,
    trained: Trained,
    evaluation: Evaluation,
    forgetting: Forgetting,
    quality_baseline: QualityBaseline,
) -> ManifestDraft:
    """The manifest fields that training provides."""
    return ManifestDraft(
        name=config.name,
        base=base.ref,
        lora=_lora_spec(trained),
        description=config.description,
        answer_schema=config.answer.json_schema,
        dataset=DatasetRef(
            dataset_sha256=dataset.dataset_sha256,
            source=f"{dataset.source} {dataset.source_version}",
            licence=dataset.licence,
            num_train=dataset.num_train,
            num_validation=dataset.num_validation,
            num_test=dataset.num_test,
            digest=dataset.digest,
            files=tuple(SourceFile(**file.model_dump()) for file in dataset.sources),
        ),
        training=trained.record,
        evaluation=evaluation,
        forgetting=forgetting,
        quality_baseline=quality_baseline,
        quality=quality_rules(config),
        defaults=RequestDefaults.model_validate(dataset.version_defaults),
    )


def _lora_spec(trained: Trained) -> LoraSpec:
    config = trained.model.peft_config[ADAPTER_NAME]
    assert isinstance(config, LoraConfig)
    return LoraSpec(
        lora_r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        target_modules=tuple(sorted(config.target_modules or ())),
        num_modules=len(adapted_modules(trained.model)),
    )
