"""Collect the figures of a report from the two stores; missing figures are listed with the way to get them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from adapters.errors import AdapterError, AdapterNotFoundError
from adapters.reference import Target, is_adapter_name
from adapters.scores import bounded_score
from adapters.store.history import Event
from adapters.store.manifest import Manifest, QualityRules
from adapters.store.reader import StoreReader
from quality.agreement import NUM_GRADES, agreement_of_scores, labels_and_grades
from quality.held_out import InvalidHeldOutError, read_held_out
from quality.judge import LOWEST_GRADE, grade_of
from quality.samples.records import Grade, Label, is_preference
from quality.samples.store import QualityStore
from quality.verdict import decide
from serve.monitor.report.figures import (
    AdapterFigures,
    Decision,
    DriftStep,
    GeneralStep,
    JudgeFigures,
    MeanScore,
    Missing,
    QualityReport,
    VersionFigures,
)
from serve.monitor.report.steps import held_out_steps, signal_steps
from serve.monitor.trial.evidence import TrialEvidence, known_pairs
from serve.monitor.trial.state import TrialState, trial_state

MOST_SAMPLES = 20_000
"""Of a version, the newest; a report of more would only be slower."""

_MAX_DRIFT_STEPS = 500
_DECIDING = frozenset({"promoted", "rolled_back", "judged", "split"})

_MISSING = {
    "samples": (
        "samples of traffic",
        "A running server stores them: `quality: {enabled: true, sample_rate: 0.1}` in serve.yaml.",
    ),
    "text": (
        "text of prompts and answers",
        "Labels and judges need it: `quality: {privacy: redacted}` (or `full`) in serve.yaml, then restart.",
    ),
    "grades": ("grades", "Configure a judge: `quality: {judge: {url: ..., model: ...}}` in serve.yaml, then restart."),
    "labels": (
        "labels",
        "Label some answers: `lorikeet quality label {name}`; a judge can only be trusted once it agrees with labels.",
    ),
    "pairs": (
        "labels of graded answers",
        "`lorikeet quality label {name}` shows samples graded by a judge first.",
    ),
    "held_out": (
        "held-out questions",
        "Versions published by `lorikeet train` include them; a running server asks them.",
    ),
    "general": (
        "measurement of forgetting",
        "Versions published by `lorikeet train` include general text; a running server measures it every few hours.",
    ),
    "drift_steps": (
        "drift checks",
        "A check takes `quality.drift_window` answers of a version that was published with a baseline.",
    ),
    "decisions": (
        "decisions",
        "Start a trial: `lorikeet adapters promote {name}@N --alias canary`, then `lorikeet adapters split`.",
    ),
}


def collect(store: QualityStore, adapters: StoreReader, name: str | None, now: datetime) -> QualityReport:
    """All figures of one adapter, or of all and the base.

    Raises:
        AdapterNotFoundError: Neither store has anything of `name`.
        QualityStoreError: The store cannot be read.
    """
    kept: dict[str, set[int]] = defaultdict(set)
    for adapter, version in store.versions():
        kept[adapter].add(version)
    for adapter in adapters.names():
        kept[adapter] |= set(_in_traffic(adapters, adapter))
    if name is not None and name not in kept:
        raise AdapterNotFoundError(f"No data about {name!r}; known adapters: {', '.join(sorted(kept)) or 'none'}.")
    names = sorted(kept) if name is None else [name]
    return QualityReport(
        created_at=now.isoformat(timespec="seconds"),
        store=str(store.path),
        adapters=tuple(_adapter(store, adapters, one, sorted(kept[one])) for one in names),
    )


def _adapter(store: QualityStore, adapters: StoreReader, name: str, versions: Sequence[int]) -> AdapterFigures:
    figures = tuple(_version(store, adapters, name, version) for version in versions)
    grades = [grade for grade in store.grades(name) if not is_preference(grade.judge)]
    labels = store.labels(name)
    judges = tuple(_judge(judge, of_judge, labels) for judge, of_judge in _by_judge(grades).items())
    is_base = not any(versions) or not is_adapter_name(name)
    decisions = () if is_base else tuple(_decisions(_history(adapters, name)))
    trial = None if is_base else _trial(store, adapters, name)
    adapter = AdapterFigures(name=name, versions=figures, judges=judges, decisions=decisions, missing=(), trial=trial)
    return adapter.model_copy(update={"missing": tuple(_missing(adapter, is_base=is_base))})


def _trial(store: QualityStore, adapters: StoreReader, name: str) -> TrialState | None:
    """The verdict on what servers have written down; one that runs may know of a few more users."""
    try:
        trial = adapters.trial(name)
    except AdapterError:
        return None
    if trial is None:
        return None
    manifest = _manifest(adapters, name, trial.stable)
    rules = (manifest.quality if manifest else None) or QualityRules()
    known = known_pairs(store.trial_pairs(name, trial.stable, trial.canary, trial.began_at))
    evidence = TrialEvidence(Target(name, trial.stable), Target(name, trial.canary), known=known).evidence()
    return trial_state(name, trial, decide(*evidence, rules))


def _version(store: QualityStore, adapters: StoreReader, name: str, version: int) -> VersionFigures:
    samples = store.samples(name, version, limit=MOST_SAMPLES)
    manifest = _manifest(adapters, name, version)
    figure = manifest.held_out_figure if manifest else None
    return VersionFigures(
        version=version,
        num_samples=len(samples),
        num_with_text=sum(sample.answer is not None for sample in samples),
        num_labels=len(store.labels(name, version)),
        published=figure.adapter if figure else None,
        published_nll=_published_nll(adapters, name, version) if manifest else None,
        figures=manifest.figures if manifest else (),
        held_out=tuple(held_out_steps(store.held_out_scores(name, version))),
        signals=tuple(signal_steps(samples)),
        general=tuple(GeneralStep(at_s=one.at_s, nll=one.nll) for one in store.general_scores(name, version)),
        drift_steps=tuple(
            DriftStep(
                at_s=step.at_s,
                number=step.number,
                num_exchanges=step.num_exchanges,
                is_drift=step.is_drift,
                reason=step.reason,
            )
            for step in store.drift_checks(name, version, limit=_MAX_DRIFT_STEPS)
        ),
        scores=tuple(
            MeanScore(judge=judge, score=bounded_score([grade.score for grade in of_judge]))
            for judge, of_judge in _by_judge(store.grades(name, version)).items()
        ),
    )


def _judge(judge: str, grades: Sequence[Grade], labels: Sequence[Label]) -> JudgeFigures:
    pairs = labels_and_grades(labels, grades)
    counts = [[0] * NUM_GRADES for _ in range(NUM_GRADES)]
    for label, grade in pairs:
        counts[grade_of(label) - LOWEST_GRADE][grade_of(grade) - LOWEST_GRADE] += 1
    return JudgeFigures(
        judge=judge,
        num_grades=len(grades),
        agreement=agreement_of_scores(pairs),
        counts=tuple(tuple(row) for row in counts),
    )


def _by_judge(grades: Iterable[Grade]) -> dict[str, list[Grade]]:
    by_judge: dict[str, list[Grade]] = defaultdict(list)
    for grade in grades:
        by_judge[grade.judge].append(grade)
    return dict(sorted(by_judge.items()))


def _decisions(history: Iterable[Event]) -> Iterator[Decision]:
    for event in history:
        if event.kind in _DECIDING:
            yield Decision(
                at=event.at,
                kind=event.kind,
                version=event.version,
                previous=event.previous,
                alias=event.alias,
                action=event.action,
                reason=event.reason or _split(event),
                figures=event.figures or {},
            )


def _split(event: Event) -> str:
    if event.canary_weight is None:
        return ""
    if event.is_shadow:
        return "the canary runs in shadow mode"
    return f"the canary gets {event.canary_weight:.0%} of the traffic"


def _missing(figures: AdapterFigures, *, is_base: bool) -> Iterator[Missing]:
    """Figures that the report lacks."""
    versions, judges = figures.versions, figures.judges
    num_with_text = sum(one.num_with_text for one in versions)
    lacks = {
        "samples": not any(one.num_samples for one in versions),
        "text": not num_with_text and any(one.num_samples for one in versions),
        "grades": num_with_text > 0 and not judges,
        "labels": num_with_text > 0 and not any(one.num_labels for one in versions),
        "pairs": any(one.num_labels for one in versions) and any(not judge.agreement.n for judge in judges),
        "held_out": not is_base and not any(one.held_out for one in versions),
        "general": not is_base and not any(one.general for one in versions),
        "drift_steps": not is_base and not any(one.drift_steps for one in versions),
        "decisions": not is_base and not figures.decisions,
    }
    for key, is_missing in lacks.items():
        if is_missing:
            what, how = _MISSING[key]
            yield Missing(what=what, how=how.replace("{name}", figures.name))


def _in_traffic(adapters: StoreReader, name: str) -> set[int]:
    """Versions that an alias points to: they are shown even where nothing was kept of them."""
    return set(adapters.aliases(name).values())


def _history(adapters: StoreReader, name: str) -> Sequence[Event]:
    try:
        return adapters.history(name)
    except AdapterError:
        return ()


def _manifest(adapters: StoreReader, name: str, version: int) -> Manifest | None:
    """The version's manifest; None for the base and for a removed version."""
    try:
        return adapters.manifest(Target(name, version)) if version else None
    except AdapterError:
        return None


def _published_nll(adapters: StoreReader, name: str, version: int) -> float | None:
    """Of the very text that the server asks for; the manifest's forgetting was measured on more."""
    try:
        held_out = read_held_out(adapters.folder(Target(name, version)))
    except (AdapterError, InvalidHeldOutError):
        return None
    return held_out.general.adapter_nll if held_out and held_out.general else None
