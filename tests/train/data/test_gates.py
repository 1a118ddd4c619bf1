import pytest

from config.data import DataGates
from tests.train.data.examples_of import distinct, row
from train.data.gates import check_gates
from train.data.steps import Step, finding
from train.errors import DataError

FINDINGS = tuple(finding(row(f"text {n}", line=n), "found") for n in range(1, 13))

LIMITS = [
    ("max_contamination", "contamination", 11),
    ("max_contradictions", "contradictions", 11),
    ("max_pii", "personal data", 11),
    ("max_duplicates", "exact duplicates", 0.1),
    ("max_duplicates", "near duplicates", 0.1),
    ("max_refusal_share", "refusals", 0.1),
    ("max_label_errors", "label errors", 0.1),
]


def steps_of(name: str) -> list[Step]:
    return [Step(name, 100, 88, findings=FINDINGS)]


@pytest.mark.parametrize(("gate", "step", "most"), LIMITS)
def test_too_many_findings_fail_with_their_rows(gate: str, step: str, most: float) -> None:
    with pytest.raises(
        DataError, match=rf"{gate} .*12.*{step}.*:\n  rows.jsonl line 1: found: 'text 1'\n(.*\n)+.*2 more"
    ):
        check_gates(DataGates.model_validate({gate: most}), steps_of(step), [], [])


@pytest.mark.parametrize(("gate", "step", "most"), LIMITS)
def test_as_many_findings_as_allowed_pass(gate: str, step: str, most: float) -> None:
    allowed = 12 if most > 1 else 0.12
    check_gates(DataGates.model_validate({gate: allowed}), steps_of(step), [], [])


def test_two_findings_in_a_row_count_once() -> None:
    twice = Step("personal data", 100, 100, findings=(FINDINGS[0], FINDINGS[0]))
    check_gates(DataGates(max_pii=1), [twice], [], [])


def test_a_gate_of_a_step_that_did_not_run_fails() -> None:
    with pytest.raises(DataError, match=r"max_pii 0: the step 'personal data' did not run"):
        check_gates(DataGates(max_pii=0), [], [], [])


def test_too_few_rows_fail() -> None:
    with pytest.raises(DataError, match=r"min_rows 9: 8 rows to train on"):
        check_gates(DataGates(min_rows=9), [], distinct(8), [])


def test_too_few_rows_of_a_class_fail_with_the_class() -> None:
    with pytest.raises(DataError, match=r"few rows of 1 answers:\n  rows.jsonl line 9: 1 training rows .*: 'no'"):
        check_gates(DataGates(min_rows_per_class=2), [], [*distinct(8), row("x", "no", 9)], [])


def test_a_class_that_is_held_out_altogether_fails() -> None:
    with pytest.raises(DataError, match=r"0 training rows have this answer: 'no'"):
        check_gates(DataGates(min_rows_per_class=1), [], distinct(8), [row("x", "no", 9)])


def test_all_failures_are_told_at_once() -> None:
    with pytest.raises(DataError, match=r"max_pii(.|\n)*min_rows"):
        check_gates(DataGates(max_pii=0, min_rows=5), steps_of("personal data"), [], [])
