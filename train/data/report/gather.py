"""Make the report of a built data set: its own counts and findings, and the checks that a build leaves out."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.dataset import (
    FINDINGS_FILE,
    SPLITS,
    DatasetManifest,
    Origin,
    Split,
    StepRecord,
    read_dataset,
    version_folder,
)
from config.json_lines import numbered_lines
from config.rows import AnyRow, read_rows
from train.data.build import StepLog
from train.data.checks.balance import ClassBalance, check_balance, class_of, has_classes
from train.data.checks.embeddings import MAX_ROWS, EmbeddedExamples, embed_questions, missing_packages
from train.data.checks.label_errors import check_labels
from train.data.checks.language import Languages, check_languages
from train.data.checks.lengths import check_lengths
from train.data.checks.outliers import MIN_ROWS, check_outliers
from train.data.checks.pii import clean_pii, redact, unchecked_phones
from train.data.checks.refusals import RefusalShare, check_refusals
from train.data.checks.rendered import check_rendered
from train.data.examples import Example
from train.data.report.examples import to_example
from train.data.report.figures import (
    BalanceFigures,
    ClassFigures,
    DataReport,
    FindingGroup,
    LanguageFigures,
    ListedFinding,
    TokenReport,
)
from train.data.report.learnt import length_figures
from train.data.steps import LABEL_ERRORS, PERSONAL_DATA, REFUSALS, RENDERED_TEMPLATES, Finding

_PACKAGED = "packaged row"

HELD_OUT = "held out"
NOT_NEEDED = "num_train, out_of_scope_share"

Examples = dict[Split, list[Example]]


@dataclass(frozen=True)
class _Checks:
    languages: tuple[Languages, ...]
    balance: ClassBalance | None
    refusals: RefusalShare
    embedded: EmbeddedExamples | None
    findings: dict[str, tuple[Finding, ...]]


def make_report(folder: Path, in_tokens: TokenReport, log: StepLog) -> DataReport:
    """The report of a data set's current version.

    Args:
        log: Shows each check as it runs.

    Raises:
        DatasetError: The data set is missing or damaged.
    """
    manifest = read_dataset(folder)
    rows: dict[Split, list[AnyRow]] = {split: list(read_rows(folder, split)) for split in SPLITS}
    examples: Examples = {split: [to_example(row, manifest.chat) for row in rows[split]] for split in SPLITS}
    every = [example for split in SPLITS for example in examples[split]]
    checks = _run_checks(every, manifest.answer.refusal, log)
    return DataReport(
        domain=manifest.domain,
        version=manifest.version,
        type=manifest.type,
        description=manifest.description,
        source=f"{manifest.source} {manifest.source_version}",
        licence=manifest.licence,
        dataset_sha256=manifest.dataset_sha256,
        created_at=manifest.created_at,
        num_rows={split: len(rows[split]) for split in SPLITS},
        num_out_of_scope=sum(not example.in_scope for example in every),
        num_synthetic=sum(example.is_synthetic for example in every),
        steps=_with_splits(manifest),
        notes=tuple(
            note for note in dict.fromkeys([*manifest.notes, in_tokens.note, *_advice(examples, checks)]) if note
        ),
        lengths=(
            length_figures("question", "characters", [len(e.question or e.text) for e in every]),
            length_figures("answer", "characters", [len(e.answer) for e in every]),
        ),
        languages=tuple(
            LanguageFigures(part=each.part, counts=each.counts, num_unknown=each.num_unknown)
            for each in checks.languages
        ),
        balance=_balance_figures(checks.balance, examples),
        num_refusals=len(checks.refusals.findings),
        num_answers=checks.refusals.num_answers,
        tokens=in_tokens.tokens,
        learnt=in_tokens.learnt,
        groups=_groups(folder, [step.name for step in manifest.steps], checks),
    )


def _with_splits(manifest: DatasetManifest) -> tuple[StepRecord, ...]:
    """The build's steps, with those that are none: rows held out, and rows above the limits of the training split."""
    steps: list[StepRecord] = []
    for step in manifest.steps:
        num_here = steps[-1].num_after if steps else step.num_before
        if step.num_before < num_here:
            steps.append(StepRecord(name=HELD_OUT, num_before=num_here, num_after=step.num_before))
        steps.append(step)
    num_left = steps[-1].num_after if steps else 0
    if manifest.num_train < num_left:
        steps.append(StepRecord(name=NOT_NEEDED, num_before=num_left, num_after=manifest.num_train))
    return tuple(steps)


def where_of(origin: Origin | None) -> str:
    return str(origin) if origin else _PACKAGED


def _run_checks(every: Sequence[Example], refusal: str | None, log: StepLog) -> _Checks:
    advance = log.progress.advance
    with log.phase("languages", 2 * len(every)):
        languages = tuple(check_languages(every, part, advance) for part in ("question", "answer"))
    with log.phase("answers"):
        balance = check_balance(every)
        refusals = check_refusals(every, refusal)
    embedded = _embedded(every, log)
    with log.phase("label errors and outliers"):
        labels = check_labels(embedded) if embedded else None
        outliers = check_outliers(embedded) if embedded else None
    with log.phase(PERSONAL_DATA, len(every)):
        personal = clean_pii(every, "report", advance).step.findings
    findings = {
        PERSONAL_DATA: personal,
        RENDERED_TEMPLATES: check_rendered(every).step.findings,
        REFUSALS: refusals.findings,
        **{f"language of the {each.part}": each.findings for each in languages},
        "lengths": check_lengths(every),
        "small classes": balance.findings if balance else (),
        LABEL_ERRORS: labels.findings if labels else (),
        "outliers": outliers.findings if outliers else (),
    }
    return _Checks(languages, balance, refusals, embedded, findings)


def _embedded(every: Sequence[Example], log: StepLog) -> EmbeddedExamples | None:
    """Rows in scope; None where no check would use embeddings, or where their packages are missing."""
    in_scope = [example for example in every if example.in_scope]
    is_wanted = len(in_scope) >= MIN_ROWS or has_classes(in_scope)
    if not is_wanted or missing_packages():
        return None
    with log.phase("embeddings", min(len(in_scope), MAX_ROWS)):
        return embed_questions(in_scope, advance=log.progress.advance)


def read_findings(folder: Path) -> dict[str, tuple[Finding, ...]]:
    """The build's findings by step, in its order."""
    path = version_folder(folder) / FINDINGS_FILE
    if not path.is_file():
        return {}
    found: dict[str, list[Finding]] = {}
    for _, line in numbered_lines(path.read_text(encoding="utf-8")):
        fields = json.loads(line)
        row, other = (Origin(**fields[name]) if fields.get(name) else None for name in ("row", "other"))
        one = Finding(row, fields["reason"], fields.get("text", ""), other)
        found.setdefault(fields["step"], []).append(one)
    return {step: tuple(findings) for step, findings in found.items()}


def _advice(examples: Examples, checks: _Checks) -> Iterator[str]:
    yield from unchecked_phones()
    num_in_scope = sum(example.in_scope for each in examples.values() for example in each)
    if missing_packages():
        yield (
            f"Label errors and outliers were not looked for: {' and '.join(missing_packages())} is not installed "
            "(pip install 'lorikeet[embeddings]')."
        )
    elif checks.embedded is not None and len(checks.embedded.examples) < num_in_scope:
        num_checked = len(checks.embedded.examples)
        yield f"Label errors and outliers were looked for in {num_checked:,} of {num_in_scope:,} rows."


def _balance_figures(balance: ClassBalance | None, examples: Examples) -> BalanceFigures | None:
    if balance is None:
        return None
    counts = {split: Counter(map(class_of, examples[split])) for split in SPLITS}
    return BalanceFigures(
        num_classes=len(balance.counts),
        entropy_bits=balance.entropy_bits,
        evenness=balance.evenness,
        classes=tuple(
            ClassFigures(answer=answer, counts={split: counts[split][answer] for split in SPLITS})
            for answer in balance.counts
        ),
    )


def _groups(folder: Path, steps: Sequence[str], checks: _Checks) -> tuple[FindingGroup, ...]:
    """What the build found, then what the checks find that are not among its steps."""
    found = read_findings(folder) | {name: each for name, each in checks.findings.items() if name not in steps}
    return tuple(_group(name, findings) for name, findings in found.items() if findings)


def _group(name: str, findings: Sequence[Finding]) -> FindingGroup:
    listed = tuple(
        ListedFinding(
            where=where_of(each.origin),
            reason=redact(each.reason),
            text=redact(each.text),
            other=str(each.other) if each.other else None,
        )
        for each in findings
    )
    return FindingGroup(name=name, findings=listed)
