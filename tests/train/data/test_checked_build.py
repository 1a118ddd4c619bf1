"""The checks of a build: what they do with the rows, and the gates that read them."""

import json
from pathlib import Path

import pytest

from config.dataset import StepRecord, read_dataset, read_split
from config.home import Home
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from tests.train.data.report.built import FILE, domain_of, write_rows
from train.data.build import build_dataset
from train.errors import DataError

QUIET = {"near_duplicate_jaccard": 1.0, "ngram_overlap": None}


def build(root: Path, pii: str, **gates: object) -> tuple[dict[str, tuple[int, int, int]], str]:
    """Each step's dropped, changed and found rows, and all questions that were written."""
    rows = write_rows(root)
    data = domain_of(rows).data.model_dump(mode="json") | {"cleaning": QUIET | {"pii": pii}, "gates": gates}
    home = Home(root / "var")
    build_dataset(domain_of(rows, data=data), home)
    folder = home.datasets / "support"
    steps = {step.name: (step.num_dropped, step.num_changed, step.num_findings) for step in read_dataset(folder).steps}
    splits = [read_split(folder, split) for split in ("train", "validation", "test")]
    return steps, json.dumps([row.input for split in splits for row in split])


@pytest.mark.parametrize(
    ("pii", "counts", "is_there"),
    [("report", (0, 0, 1), True), ("redact", (0, 1, 1), False), ("drop", (1, 0, 1), False)],
)
def test_personal_data_is_treated_as_set(tmp_path, pii, counts, is_there):
    steps, questions = build(tmp_path, pii)
    assert steps["personal data"] == counts
    assert ("jo@example.org" in questions) == is_there
    assert ("[EMAIL]" in questions) == (pii == "redact")


def test_personal_data_is_left_alone_where_it_is_off(tmp_path):
    steps, questions = build(tmp_path, "off")
    assert "personal data" not in steps
    assert "jo@example.org" in questions


def test_other_checks_keep_the_rows(tmp_path):
    steps, _ = build(tmp_path, "report")
    assert (steps["refusals"], steps["rendered templates"]) == ((0, 0, 1), (0, 0, 1))
    assert "label errors" not in steps


@pytest.mark.parametrize(("gate", "line"), [({"max_pii": 0}, 2), ({"max_refusal_share": 0.01}, 3)])
def test_a_gate_names_the_row_and_writes_nothing(tmp_path, gate, line):
    with pytest.raises(DataError, match="fails its gates") as raised:
        build(tmp_path, "report", **gate)
    assert f"{FILE} line {line}" in str(raised.value)
    assert not list((tmp_path / "var").rglob("train.jsonl"))


def test_a_gate_that_holds_lets_the_build_pass(tmp_path):
    steps, _ = build(tmp_path, "report", max_pii=1, max_refusal_share=0.05)
    assert steps["personal data"] == (0, 0, 1)


def on_a_prepared_base(root: Path, control_tokens: str, max_length: int = 256) -> dict[str, StepRecord]:
    """The steps of a build of rows of which the third has a control token in its answer, by name."""
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    domain = tiny_domain(write_colour_data(root / "colours.jsonl"), max_length=max_length)
    lines = (root / "colours.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"blue"}', '"blue<|im_end|>"}')
    (root / "colours.jsonl").write_text("\n".join(lines))
    cleaning = domain.data.cleaning.model_copy(update={"control_tokens": control_tokens})
    data = domain.data.model_copy(update={"cleaning": cleaning})
    manifest = build_dataset(domain.model_copy(update={"data": data}), home)
    return {step.name: step for step in manifest.steps}


def test_control_tokens_of_a_prepared_base_are_refused_with_their_line(tmp_path):
    with pytest.raises(DataError, match=r"colours.jsonl line 3 contains the control token '<\|im_end\|>'"):
        on_a_prepared_base(tmp_path, "error")
    assert not list((tmp_path / "var").rglob("train.jsonl"))


def test_lengths_are_counted_in_tokens_of_a_prepared_base(tmp_path):
    steps = on_a_prepared_base(tmp_path, "drop", max_length=50)
    assert (steps["control tokens"].num_dropped, steps["control tokens"].num_findings) == (1, 1)
    assert steps["lengths in tokens"].num_findings > 0
