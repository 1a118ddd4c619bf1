"""`lorikeet train`: data, training, evaluation, fingerprint, publication and, if the gates pass, promotion."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from peft import LoraConfig, PeftModel, PeftType, PrefixTuningConfig, PromptLearningConfig
from rich.console import Console
from transformers import TrainerCallback

from adapters.bases import check_servable, verify_base
from adapters.reference import DEFAULT_ALIAS
from adapters.store.evaluation_records import Evaluation, FigureRecord, Forgetting, ObjectiveScore
from adapters.store.manifest import (
    BaseManifest,
    DatasetRef,
    JobRef,
    LoraSpec,
    ManifestDraft,
    RequestDefaults,
    SourceFile,
    VersionRef,
)
from adapters.store.store import AdapterStore
from config.dataset import SPLITS, DatasetManifest, DatasetRow
from config.domain import DomainConfig
from config.home import Home
from config.items import items_of
from config.objective import ReinforcementObjective
from config.progress import Progress, shown
from config.rows import read_rows
from quality.evaluated import EvaluatedItem
from quality.held_out import HeldOutSet
from quality.metrics.item import Metric
from quality.metrics.settings import JudgeSettings
from train.card import PLAIN_USER
from train.compute import Shape, compute_in, measure_inference
from train.data.build import build_dataset
from train.data.encode import encode_prompt
from train.data.rows import check_type
from train.evaluate.base_answers import BaseAnswers
from train.evaluate.decoding import check_format
from train.evaluate.figures import figures_of, metrics_of
from train.evaluate.fingerprint import adapted_modules, make_fingerprint
from train.evaluate.forgetting.measure import other_domains
from train.evaluate.held_out import check_held_out, make_held_out, quality_rules
from train.evaluate.items import evaluated_items
from train.evaluate.local import AnsweredRows, EvaluatedAnswer, evaluate, measure_forgetting, quality_baseline
from train.evaluate.probes import run_probes
from train.evaluate.robustness import measure_robustness, perturb_questions, robustness_figures
from train.gates import GateEvidence, gain_of
from train.methods.method import Trainable
from train.methods.table import check_method, method_of
from train.objectives.arguments import check_arguments
from train.objectives.objective import Objective, StoredVersion, Task
from train.objectives.start import check_reward_model, check_start, drop_reference, stored_version
from train.objectives.table import objective_of
from train.probing import OtherDomains, probes_of
from train.processes import end_other_processes, first_in_turn, is_first_process, quiet_other_processes
from train.promotion import check_gate_keys, decide_promotion, for_alias
from train.publication import Finished, TrainingOutcome, publish
from train.runs import read_run_name
from train.tracking import Tracking, TrackSteps, check_trackers, run_name, tracked, untracked
from train.training import ADAPTER_NAME, Trained, train_adapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobRun:
    """A fine-tuning job that trains by this pipeline.

    Attributes:
        alias: What moves to the version if the gates pass; None: nothing.
        callbacks: Report the run's progress, and end it.
    """

    id: str
    alias: str | None = DEFAULT_ALIAS
    callbacks: tuple[TrainerCallback, ...] = ()


@dataclass(frozen=True)
class MeasuredModel:
    """What is known of a trained version; `answers` are its own to `questions`, in their order."""

    questions: list[DatasetRow]
    evaluation: Evaluation | None
    answers: list[EvaluatedAnswer]
    scores: dict[str, ObjectiveScore]
    forgetting: Forgetting | None
    figures: tuple[FigureRecord, ...] = ()
    items: tuple[EvaluatedItem, ...] = ()

    def for_gates(self, gated_by: str) -> GateEvidence:
        gain = gain_of(gated_by, self.scores, self.figures)
        return GateEvidence(gain, self.evaluation, self.scores, self.forgetting, self.figures)

    def held_out(self, trained: Trained) -> HeldOutSet | None:
        if self.forgetting is None:
            return None
        return make_held_out(trained.task.config, trained.tokenizer, self.questions, self.answers, self.forgetting)


def train_and_publish(
    config: DomainConfig,
    home: Home,
    *,
    resume: bool = False,
    allow_unserved: bool = False,
    force: bool = False,
    job: JobRun | None = None,
    console: Console | None = None,
    today: Callable[[], date] = date.today,
) -> TrainingOutcome:
    """Train, evaluate and publish one version from a domain's configuration.

    Args:
        allow_unserved: Train what no server can load, into `var/unserved`.
        force: Promote the version even if its gates fail; the history says so.
        job: The fine-tuning job that this is.
        today: Date of a new run.

    Raises:
        TrainError: The data or the recipe cannot be used; nothing was published.
        SystemExit: This is not the first process of a launch; that one evaluates and publishes.
        AdapterError: The base is missing or changed, nothing installed could serve it, or the store refuses the
            adapter.
        MetricError: A metric cannot be used as it is set, or a server cannot score held-out questions by it.
    """
    check_method(config, allow_unserved=allow_unserved)
    check_arguments(config.recipe)
    check_trackers(config.recipe.report_to)
    if objective_of(config).gives_answers:
        check_held_out(config)
    metrics = metrics_of(config)
    if any(isinstance(metric, JudgeSettings) for metric in config.evaluation.metrics):
        logger.info("Metrics of a judge are left out of training: `lorikeet eval run` asks it through an endpoint.")
    if config.chat.user != PLAIN_USER:
        logger.warning(
            "Clients must send the user turn as %r; the server fills in only the system prompt", config.chat.user
        )
    base = checked_base(config, home)
    versions = named_versions(config, AdapterStore(home.adapters), base)
    quiet_other_processes()
    console = console if is_first_process() else None
    with first_in_turn():
        dataset = build_dataset(config, home)
    check_type(dataset, config.objective)
    for note in dataset.notes:
        logger.info("%s", note)
    check_format(dataset)
    check_gate_keys(config, metrics, list(read_rows(home.datasets / config.name, "test")))
    name = (read_run_name(home.runs / config.name) if resume else None) or run_name(config.name, datetime.now())
    with tracked(config, base, dataset, name, home.tracking) if is_first_process() else untracked() as tracking:
        outcome = _train_and_publish(
            config, home, base, dataset, versions, resume, force, job, tracking, console, today
        )
        tracking.published(outcome.name, outcome.record)
    shutil.rmtree(home.runs / config.name)  # the result is written; its checkpoints are no longer needed
    return outcome


def _train_and_publish(
    config: DomainConfig,
    home: Home,
    base: BaseManifest,
    dataset: DatasetManifest,
    versions: Mapping[str, StoredVersion],
    resume: bool,
    force: bool,
    job: JobRun | None,
    tracking: Tracking,
    console: Console | None,
    today: Callable[[], date],
) -> TrainingOutcome:
    objective, base_folder = objective_of(config), home.bases / config.base
    others = other_domains(config.evaluation.forgetting, config.name, home.datasets)
    rows = {split: list(read_rows(home.datasets / config.name, split)) for split in SPLITS}
    trained = train_adapter(
        config,
        base,
        base_folder,
        dataset,
        rows,
        home.runs / config.name,
        versions=versions,
        resume=resume,
        callbacks=(TrackSteps(tracking), *(job.callbacks if job else ())),
        console=console,
        today=today,
    )
    end_other_processes()
    measured = _measure(trained, objective, others, home, BaseAnswers(home.base_answers, base.digest), console)
    golden, at = objective.golden(trained.task), trained.template_time
    fingerprint = make_fingerprint(trained.model, trained.tokenizer, base, golden, at) if golden else None
    held_out = measured.held_out(trained)
    evidence = measured.for_gates(objective.gated_by)
    promotion = decide_promotion(config, objective, evidence, AdapterStore(home.adapters), force=force)
    if job is not None:
        promotion = for_alias(promotion, job.alias)
    more = {"gates": promotion.gates, "job": JobRef(id=job.id) if job else None}
    draft = draft_manifest(config, base, dataset, trained, measured).model_copy(update=more)
    finished = Finished(trained, draft, fingerprint, held_out, base, base_folder, measured.items)
    outcome = publish(finished, home, promotion)
    logger.info("%s written (%s); %s", outcome.name, outcome.served_as, outcome.reason)
    return outcome


def _measure(
    trained: Trained,
    objective: Objective,
    others: OtherDomains,
    home: Home,
    known: BaseAnswers,
    console: Console | None,
) -> MeasuredModel:
    """Evaluate base and adapter on the test rows; the reference is not needed any more then."""
    task, model = trained.task, trained.model
    questions = objective.questions(task)
    answered: AnsweredRows | None = None
    num_answers = 2 * len(questions) + objective.num_answers(task)
    with _stage(console, "evaluate base and adapter", num_answers) as on_answers:
        if questions:
            _compute_fast(trained, task.dataset, questions)
            at = task.template_time
            answered = evaluate(model, task.tokenizer, task.dataset, questions, at, on_answers, known)
        scores = objective.evaluate(task, model, on_answers)
        drop_reference(model)
        forgetting = measure_forgetting(model, task.tokenizer) if objective.gives_answers else None
    metrics = metrics_of(task.config)
    probes = probes_of(trained, objective, others, metrics[0], questions, answered)
    with _stage(console, "measure forgetting and overfitting", 2 * sum(p.num_asked for p in probes)) as on_answers:
        beside = run_probes(model, probes, on_answers, known)
    if answered is None:
        return MeasuredModel(questions, None, [], scores, forgetting, beside)
    base, adapter = (items_of(questions, [a.text for a in answers]) for answers in (answered.base, answered.adapter))
    items = evaluated_items(metrics, base, adapter, is_published=task.config.quality.publish_held_out)
    figures = figures_of(metrics, base, adapter)
    figures += _robustness(trained, metrics[0], questions, answered, home.datasets, console) + beside
    return MeasuredModel(questions, answered.evaluation, answered.adapter, scores, forgetting, figures, items)


def _robustness(
    trained: Trained,
    metric: Metric,
    questions: list[DatasetRow],
    answered: AnsweredRows,
    datasets: Path,
    console: Console | None,
) -> tuple[FigureRecord, ...]:
    """Of perturbed questions, where `evaluation.robustness` is set."""
    task, model = trained.task, trained.model
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = most and most - task.dataset.evaluation.max_new_tokens
    perturbed = perturb_questions(task, questions, datasets, room)
    if perturbed is None:
        return ()
    with _stage(console, "evaluate perturbed questions", 2 * len(perturbed.rows)) as on_answers:
        answers = measure_robustness(model, task, perturbed, on_answers)
    return robustness_figures(metric, perturbed, answers, questions, answered)


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


def checked_base(config: DomainConfig, home: Home) -> BaseManifest:
    """The domain's base, whole, and one that can be trained by its method and served.

    Raises:
        AdapterError: It is missing or changed, or nothing installed could serve it.
        RecipeError: The method cannot train it.
    """
    base = verify_base(home.bases / config.base)
    check_servable(base)
    method_of(config.method).check_base(config.method, base)
    return base


def named_versions(config: DomainConfig, store: AdapterStore, base: BaseManifest) -> dict[str, StoredVersion]:
    """The published versions that a domain names: the one to start from, and a reward model.

    Raises:
        AdapterNotFoundError: A named version does not exist.
        RecipeError: It is of another base, training cannot continue with it, or it gives no scores.
    """
    objective = config.objective
    reward_model = objective.reward_model if isinstance(objective, ReinforcementObjective) else None
    names = [name for name in (config.from_version, reward_model) if name is not None]
    versions = {name: stored_version(store, name, base) for name in names}
    if config.from_version is not None:
        check_start(config, versions[config.from_version].manifest)
    if reward_model is not None:
        check_reward_model(versions[reward_model].manifest)
    return versions


def draft_manifest(
    config: DomainConfig,
    base: BaseManifest,
    dataset: DatasetManifest,
    trained: Trained,
    measured: MeasuredModel,
) -> ManifestDraft:
    """The manifest fields that training provides."""
    return ManifestDraft(
        name=config.name,
        base=base.ref,
        lora=lora_spec(trained.model),
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
        started_from=_lineage(trained.task),
        evaluation=measured.evaluation,
        scores=measured.scores,
        forgetting=measured.forgetting,
        figures=measured.figures,
        quality_baseline=quality_baseline(measured.answers) if measured.answers else None,
        quality=quality_rules(config),
        defaults=RequestDefaults.model_validate(dataset.version_defaults),
    )


def _lineage(task: Task) -> VersionRef | None:
    if task.start is None:
        return None
    return VersionRef(lora_name=task.start.manifest.lora_name, digest=task.start.manifest.digest)


def lora_spec(model: Trainable) -> LoraSpec:
    """What kind of adapter a model has."""
    if not isinstance(model, PeftModel):
        return LoraSpec()
    config = model.peft_config[ADAPTER_NAME]
    if isinstance(config, PromptLearningConfig):
        return _virtual_tokens_spec(config)
    assert isinstance(config, LoraConfig)
    modules = adapted_modules(model)
    return LoraSpec(
        lora_r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules=tuple(sorted({name.rpartition(".")[2] for name in modules})),
        num_modules=len(modules),
        task="SEQ_CLS" if config.task_type == "SEQ_CLS" else "CAUSAL_LM",
    )


def _virtual_tokens_spec(config: PromptLearningConfig) -> LoraSpec:
    if isinstance(config, PrefixTuningConfig):  # not served
        return LoraSpec()
    kind = PeftType(config.peft_type).value
    return LoraSpec.model_validate({"peft_type": kind, "num_virtual_tokens": config.num_virtual_tokens})
