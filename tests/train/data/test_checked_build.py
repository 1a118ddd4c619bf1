"""The checks of a build: what they do with the rows, and the gates that read them."""

import json
from pathlib import Path

import pytest

from config.data import DataConfig
from config.dataset import FINDINGS_FILE, StepRecord, read_dataset, read_split, version_folder
from config.domain import DomainConfig
from config.home import Home
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from tests.train.data.report.built import FILE, domain_of, write_rows
from train.data.build import StepLog, build_dataset
from train.data.report.figures import TokenReport
from train.data.report.gather import make_report
from train.errors import DataError

DUPLICATE = {"input": "Where does jo@example.org live?", "output": "In town."}
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


@pytest.mark.parametrize("pii", ["report", "redact", "off"])
def test_findings_of_no_step_show_personal_data(tmp_path, pii):
    mails = [
        {"input": f"Mail ann{n}@example.org", "output": f"{answer}@example.org"} for n in range(4) for answer in "ab"
    ]
    rows = write_rows(tmp_path)
    rows.write_text(rows.read_text() + "".join(json.dumps(row) + "\n" for row in [*mails, DUPLICATE, DUPLICATE]))
    data = domain_of(rows).data.model_dump(mode="json") | {"cleaning": QUIET | {"pii": pii}}
    home = Home(tmp_path / "var")
    build_dataset(domain_of(rows, data=data), home)
    folder = home.datasets / "support"
    findings = (version_folder(folder) / FINDINGS_FILE).read_text()
    assert all(step in findings for step in ("contradictions", "exact duplicates"))
    assert "@" not in findings
    report = make_report(folder, TokenReport(), StepLog())
    assert "@" not in "".join(each.text + each.reason for group in report.groups for each in group.findings)


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


def prepared(root: Path, max_length: int = 256, **changes: object) -> tuple[DomainConfig, Home]:
    """A domain, with changes of its `data`, and a home with its base."""
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    domain = tiny_domain(write_colour_data(root / "colours.jsonl"), max_length=max_length)
    data = DataConfig.model_validate(domain.data.model_dump() | changes)
    return domain.model_copy(update={"data": data}), home


def on_a_prepared_base(root: Path, control_tokens: str, max_length: int = 256) -> dict[str, StepRecord]:
    """The steps of a build of rows of which the third has a control token in its answer, by name."""
    domain, home = prepared(root, max_length)
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


@pytest.mark.slow
def test_lengths_are_counted_in_tokens_of_a_prepared_base(tmp_path):
    steps = on_a_prepared_base(tmp_path, "drop", max_length=50)
    assert (steps["control tokens"].num_dropped, steps["control tokens"].num_findings) == (1, 1)
    assert steps["lengths in tokens"].num_findings > 0


LONG = [json.dumps({"input": f"What is the colour of {n}? {'x ' * 200}", "output": "{}"}) for n in range(20)]


def with_long_rows(root: Path, domain: DomainConfig) -> DomainConfig:
    with (root / "colours.jsonl").open("a") as file:
        file.write("\n".join(LONG) + "\n")
    return domain


@pytest.mark.slow
def test_a_gate_counts_rows_after_the_long_ones_were_dropped(tmp_path):
    domain, home = prepared(tmp_path, num_train=1000, cut_long_inputs="drop")
    num_train = build_dataset(with_long_rows(tmp_path, domain), home).num_train
    gated = DataConfig.model_validate(domain.data.model_dump() | {"gates": {"min_rows": num_train + 1}})
    with pytest.raises(DataError, match=f"min_rows {num_train + 1}: {num_train} rows to train on"):
        build_dataset(domain.model_copy(update={"data": gated}), home)


def test_each_step_of_a_build_begins_with_the_rows_before_it(tmp_path):
    domain, home = prepared(tmp_path, num_train=1000, cut_long_inputs="drop")
    manifest = build_dataset(with_long_rows(tmp_path, domain), home)
    steps = {step.name: step for step in manifest.steps}
    lengths = steps["lengths in tokens"]
    assert list(steps)[-1] == lengths.name
    assert lengths.num_before == steps["near duplicates"].num_after
    assert lengths.num_dropped > 0
    assert manifest.num_train == min(lengths.num_after, domain.data.num_train)


@pytest.mark.slow
def test_a_build_of_rows_that_are_all_too_long_is_refused(tmp_path):
    domain, home = prepared(tmp_path, max_length=16, cut_long_inputs="drop")
    with pytest.raises(DataError, match=r"rows left for training exceed `recipe.max_length` tokens"):
        build_dataset(domain, home)


@pytest.mark.slow
def test_another_maximum_length_is_another_build(tmp_path):
    domain, home = prepared(tmp_path, num_train=1000, cut_long_inputs="drop")
    before = build_dataset(with_long_rows(tmp_path, domain), home)
    longer = domain.model_copy(update={"recipe": domain.recipe.model_copy(update={"max_length": 2000})})
    assert build_dataset(longer, home).num_train > before.num_train
