"""Versions that are out of service: remembered in the store, shown, and put back."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.cli import app
from adapters.errors import AdapterNotFoundError, IntegrityError
from adapters.reference import Target
from adapters.store.quarantine import Quarantined
from adapters.store.store import AdapterStore
from tests.peft_folders import draft_for

MEDICAL = Target("medical", 1)


@pytest.fixture
def published(store: AdapterStore, peft_folder: Path) -> AdapterStore:
    for _ in range(2):
        store.publish(peft_folder, draft_for(peft_folder))
    return store


def test_a_quarantine_is_seen_by_every_reader_until_it_is_lifted(published: AdapterStore) -> None:
    reader = AdapterStore(published.root)
    assert reader.quarantined("medical") == {}
    published.quarantine(MEDICAL, "it computed NaN")
    published.quarantine(MEDICAL, "and again")
    expected = Quarantined(since="2026-11-21T00:00:00+00:00", reason="it computed NaN")
    assert reader.quarantined("medical") == {1: expected}
    published.quarantine(Target("medical", 2), "it too")
    published.lift_quarantine(MEDICAL)
    published.lift_quarantine(MEDICAL)
    assert list(reader.quarantined("medical")) == [2]


def test_the_history_that_others_mirror_stays_as_it_was(published: AdapterStore) -> None:
    before = published.history("medical")
    published.quarantine(MEDICAL, "it computed NaN")
    assert published.history("medical") == before


def test_a_version_that_is_not_there_cannot_be_quarantined(published: AdapterStore) -> None:
    with pytest.raises(AdapterNotFoundError, match="medical@9"):
        published.quarantine(Target("medical", 9), "it computed NaN")


def test_a_damaged_file_is_named(published: AdapterStore) -> None:
    published.quarantine(MEDICAL, "it computed NaN")
    (published.root / "medical" / "quarantine.json").write_text("[")
    with pytest.raises(IntegrityError, match=r"medical/quarantine\.json cannot be read\. Delete it"):
        published.quarantined("medical")


def test_list_and_show_say_so(published: AdapterStore) -> None:
    published.quarantine(MEDICAL, "it computed NaN")

    def output(*words: str) -> str:
        run = [*words, "--home", str(published.root.parent)]
        return CliRunner().invoke(app, run, env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout

    marked = [line.split()[0] for line in output("list").splitlines() if "quarantined" in line]
    assert marked == ["medical@1"]
    assert "since 2026-11-21T00:00:00+00:00: it computed NaN" in output("show", "medical@1")
    assert "quarantined" not in output("show", "medical@2")
