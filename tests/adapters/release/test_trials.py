"""A canary's trial: when it runs, and that no verdict ends another one than it judged."""

from dataclasses import replace

import pytest

from adapters.errors import TrialOverError
from adapters.release.traffic import Split, current_split
from adapters.release.trials import Trial, current_trial, reported_verdicts
from adapters.store.history import Event
from adapters.tables import history_table
from tests.peft_folders import draft_for

AT = "2026-11-21T00:00:00+00:00"
LATER = "2026-11-21T01:00:00+00:00"
FIGURES = {"score_pairs": 98.0}


def moved(alias, version, at=AT):
    return Event(kind="promoted", at=at, version=version, alias=alias)


def judged(version, action):
    return Event(kind="judged", at=LATER, version=version, action=action)


BESIDE = [moved("stable", 1), moved("canary", 2, LATER)]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param([], None, id="no history"),
        pytest.param([moved("stable", 1)], None, id="no canary"),
        pytest.param([moved("canary", 1)], None, id="no stable"),
        pytest.param(BESIDE, Trial(1, 2, LATER), id="since the later of both moves"),
        pytest.param([*BESIDE, moved("stable", 2)], None, id="over when they meet"),
        pytest.param([*BESIDE, moved("beta", 3)], Trial(1, 2, LATER), id="other aliases do not count"),
        pytest.param([*BESIDE, judged(2, "hold")], Trial(1, 2, LATER), id="nor does what is said of it"),
    ],
)
def test_a_trial_follows_the_history(history, expected):
    assert current_trial(history) == expected


def test_what_was_said_of_an_earlier_trial_of_the_same_version_does_not_count():
    again = [*BESIDE, judged(2, "hold"), moved("canary", 1), moved("canary", 2), judged(2, "rollback")]
    assert reported_verdicts(again, Trial(1, 2, AT)) == {"rollback"}


@pytest.fixture
def trial(store, peft_folder):
    for _ in range(3):
        store.publish(peft_folder, draft_for(peft_folder))
    store.set_aliases("medical", {"stable": 1, "canary": 2}, canary_weight=0.5)
    return store.trial("medical")


def test_a_promoted_canary_is_stable_with_its_figures_and_without_a_split(store, trial):
    store.conclude("medical", trial, "promote", "as good", FIGURES)
    event = store.history("medical")[-1]
    assert (event.kind, event.alias, event.version, event.previous) == ("promoted", "stable", 2, 1)
    assert (event.reason, event.figures) == ("as good", FIGURES)
    assert store.split("medical") == Split()
    assert store.trial("medical") is None
    assert store.rollback("medical").version == 1


def test_a_canary_that_is_rolled_back_gets_no_more_requests_by_any_name(store, trial):
    store.conclude("medical", trial, "rollback", "worse")
    assert store.aliases("medical") == {"stable": 1, "canary": 1}
    assert current_split(store.history("medical")) == Split()
    assert store.history("medical")[-1].kind == "rolled_back"


@pytest.mark.parametrize("action", ["promote", "rollback"])
@pytest.mark.parametrize("moves", [{"canary": 3}, {"stable": 3}, {"stable": 2}], ids=str)
def test_a_verdict_on_versions_that_have_moved_since_moves_nothing(store, trial, action, moves):
    store.set_aliases("medical", moves)
    before = store.history("medical")
    with pytest.raises(TrialOverError, match="'medical@2' beside 'medical@1' comes too late"):
        store.conclude("medical", trial, action, "late")
    with pytest.raises(TrialOverError):
        store.record_verdict("medical", trial, action, "late")
    assert store.history("medical") == before


def test_a_verdict_on_an_earlier_trial_of_the_same_versions_moves_nothing(store, trial):
    with pytest.raises(TrialOverError):
        store.conclude("medical", replace(trial, began_at=LATER), "rollback", "late")


def test_a_recorded_verdict_moves_nothing_and_is_shown(store, trial):
    store.record_verdict("medical", trial, "promote", "as good", FIGURES)
    assert store.trial("medical") == trial
    assert store.split("medical") == Split(0.5)
    assert reported_verdicts(store.history("medical"), trial) == {"promote"}
    assert list(history_table(store, "medical").columns[-1].cells)[-1] == "promote: as good"


@pytest.mark.parametrize(
    "fields", [{"kind": "judged", "version": 1}, {"kind": "pinned", "version": 1, "action": "hold"}]
)
def test_only_a_verdict_has_an_action(fields):
    with pytest.raises(ValueError, match="lacks a field, or has one that belongs to another kind"):
        Event(at=AT, **fields)
