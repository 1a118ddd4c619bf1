"""Columns of `evaluation.slice_by` in the rows of a data set."""

import json
from pathlib import Path

import pytest

from config.dataset import DatasetManifest, DatasetRow, read_split
from config.domain import DomainConfig, EvaluationConfig
from config.home import Home
from config.items import items_of
from tests.tiny_llama import tiny_domain, write_colour_data
from train.data.build import build_dataset
from train.data.slices import slice_values
from train.errors import DataError


def with_regions(path: Path) -> DomainConfig:
    """The colours, the rows by turns of two regions and of none."""
    rows = [json.loads(line) for line in write_colour_data(path).read_text().splitlines()]
    for number, row in enumerate(rows):
        row["region"] = ("north", "south", None)[number % 3]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_domain(path)


def sliced(domain: DomainConfig, *columns: str) -> DomainConfig:
    return domain.model_copy(update={"evaluation": domain.evaluation.model_copy(update={"slice_by": columns})})


def built(domain: DomainConfig, home: Path) -> tuple[DatasetManifest, list[DatasetRow]]:
    return build_dataset(domain, Home(home)), read_split(home / "datasets" / domain.name, "test")


def test_items_are_sliced_by_a_column_of_the_data(tmp_path: Path) -> None:
    domain = sliced(with_regions(tmp_path / "colours.jsonl"), "region")
    manifest, rows = built(domain, tmp_path)
    regions = {item.slices["region"] for item in items_of(rows, [row.output for row in rows])}
    assert regions == {"north", "south", "(none)"}
    assert not any("not used" in note for note in manifest.notes)


def test_slices_leave_the_digest_of_the_rows(tmp_path: Path) -> None:
    domain = with_regions(tmp_path / "colours.jsonl")
    plain, rows = built(domain, tmp_path / "one")
    own, with_fields = built(sliced(domain, "region"), tmp_path / "two")
    assert own.dataset_sha256 == plain.dataset_sha256
    assert own.version != plain.version
    assert [row.model_copy(update={"fields": {}}) for row in with_fields] == rows


def test_one_column_needs_no_list() -> None:
    assert EvaluationConfig.model_validate({"slice_by": "region"}).slice_by == ("region",)


def test_an_unknown_column_is_named_with_the_known(tmp_path: Path) -> None:
    domain = sliced(with_regions(tmp_path / "colours.jsonl"), "regoin")
    with pytest.raises(DataError, match=r"`evaluation\.slice_by` is 'regoin', .* found: .*'region'"):
        build_dataset(domain, Home(tmp_path))
    assert not (tmp_path / "datasets" / "colours" / "current").exists()


def test_rows_without_answers_have_no_slices(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"A text of number {n}.", "region": "north"}) + "\n" for n in range(40))
    )
    with pytest.raises(DataError, match=r"`evaluation\.slice_by`.* 'language_modeling'"):
        build_dataset(sliced(tiny_domain(path), "region"), Home(tmp_path))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "true"),
        (3, "3"),
        (" a\n b ", "a b"),
        ("", "(none)"),
        (float("nan"), "(none)"),
        ("x" * 99, "x" * 79 + "…"),
    ],
)
def test_a_slice_is_one_short_line(value: object, shown: str) -> None:
    assert slice_values({"region": value}, ["region"]) == {"region": shown}
