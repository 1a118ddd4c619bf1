"""Gates of a data set (`data.gates`): conditions under which its build fails, with the rows."""

from collections import Counter
from collections.abc import Iterator, Sequence

from config.data import DataGates
from train.data.examples import Example
from train.data.steps import (
    CONTAMINATION,
    CONTRADICTIONS,
    EXACT_DUPLICATES,
    LABEL_ERRORS,
    NEAR_DUPLICATES,
    PERSONAL_DATA,
    REFUSALS,
    Finding,
    Step,
    listed,
)
from train.errors import DataError


def check_gates(gates: DataGates, steps: Sequence[Step], train: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Check each gate that is set.

    Raises:
        DataError: Some failed; the message has each with up to ten rows.
    """
    failures = [*_too_many(gates, steps), *_too_few(gates, train, held_out)]
    if failures:
        raise DataError("The data set fails its gates; nothing was written.\n" + "\n".join(failures))


def _too_many(gates: DataGates, steps: Sequence[Step]) -> Iterator[str]:
    """Failures of the gates that limit findings; a gate of a step that did not run is a failure, too."""
    counts = (
        ("max_contamination", gates.max_contamination, (CONTAMINATION,)),
        ("max_contradictions", gates.max_contradictions, (CONTRADICTIONS,)),
        ("max_pii", gates.max_pii, (PERSONAL_DATA,)),
    )
    shares = (
        ("max_duplicates", gates.max_duplicates, (EXACT_DUPLICATES, NEAR_DUPLICATES)),
        ("max_refusal_share", gates.max_refusal_share, (REFUSALS,)),
        ("max_label_errors", gates.max_label_errors, (LABEL_ERRORS,)),
    )
    for gate, most, names in (*counts, *shares):
        if most is None:
            continue
        chosen = [step for step in steps if step.name in names]
        if not chosen:
            yield f"{gate} {most:g}: the step {names[0]!r} did not run. Turn it on, or remove the gate."
            continue
        findings = _by_row([finding for step in chosen for finding in step.findings])
        num_rows = max(step.num_before for step in chosen)
        is_share = any(gate == name for name, _, _ in shares)
        found = len(findings) / max(num_rows, 1) if is_share else len(findings)
        if found > most:
            of_all = f"{found:.1%} ({len(findings)} of {num_rows} rows)" if is_share else f"{len(findings)} rows"
            yield f"{gate} {most:g}: {of_all} with {' or '.join(names)}:\n{listed(findings)}"


def _by_row(findings: Sequence[Finding]) -> list[Finding]:
    """One finding of each row: a row may have two e-mail addresses."""
    packaged = [each for each in findings if each.origin is None]
    return [*{each.origin: each for each in reversed(findings) if each.origin is not None}.values()][::-1] + packaged


def _too_few(gates: DataGates, train: Sequence[Example], held_out: Sequence[Example]) -> Iterator[str]:
    if gates.min_rows is not None and len(train) < gates.min_rows:
        yield f"min_rows {gates.min_rows}: {len(train)} rows to train on. Give more data."
    if gates.min_rows_per_class is None:
        return
    first = {e.answer: e for e in reversed([*train, *held_out])}  # a class may be held out altogether
    counts = Counter(e.answer for e in train)
    few = sorted(answer for answer in first if counts[answer] < gates.min_rows_per_class)
    if few:
        findings = [Finding(first[a].origin, f"{counts[a]} training rows have this answer", a) for a in few]
        yield f"min_rows_per_class {gates.min_rows_per_class}: too few rows of {len(few)} answers:\n{listed(findings)}"
