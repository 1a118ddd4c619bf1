import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import AdapterNotFoundError, IntegrityError, InvalidReferenceError, InvalidSplitError
from adapters.reference import Target
from adapters.release.traffic import Split, choose, current_split, key_share, pinned_versions
from adapters.store.history import HISTORY_FILE, Event, read_history
from adapters.store.store import AdapterStore
from tests.peft_folders import draft_for

AT = "2026-11-21T00:00:00+00:00"
BOTH = {"stable": 1, "canary": 2}


def event(kind, version=None, **fields):
    return Event(kind=kind, at=AT, version=version, **fields)


def moved(alias, version, kind="promoted"):
    return event(kind, version, alias=alias)


def split(canary_weight, is_shadow=False):
    return event("split", canary_weight=canary_weight, is_shadow=is_shadow)


CANARY_AT_A_TENTH = [moved("stable", 1), moved("canary", 2), split(0.1)]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param([], Split(), id="no history"),
        pytest.param(CANARY_AT_A_TENTH, Split(0.1), id="as set"),
        pytest.param([*CANARY_AT_A_TENTH, split(0.5, True)], Split(0.5, True), id="the last one counts"),
        pytest.param([*CANARY_AT_A_TENTH, moved("canary", 3)], Split(0.1), id="stays for another canary"),
        pytest.param([*CANARY_AT_A_TENTH, moved("stable", 3)], Split(0.1), id="stays for another stable"),
        pytest.param([*CANARY_AT_A_TENTH, moved("stable", 2)], Split(), id="ends when the canary becomes stable"),
        pytest.param([*CANARY_AT_A_TENTH, moved("stable", 2), moved("canary", 3)], Split(), id="and stays ended"),
        pytest.param([*CANARY_AT_A_TENTH, moved("canary", 1, "rolled_back")], Split(), id="ends when both meet"),
        pytest.param([*CANARY_AT_A_TENTH, moved("beta", 2)], Split(0.1), id="other aliases do not count"),
    ],
)
def test_the_split_follows_the_history(history, expected):
    assert current_split(history) == expected


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param([], set(), id="none"),
        pytest.param([event("pinned", 1), event("pinned", 2)], {1, 2}, id="each by itself"),
        pytest.param([event("pinned", 1), event("unpinned", 1)], set(), id="unpinned"),
        pytest.param([event("pinned", 1), event("removed", 1)], set(), id="removed"),
        pytest.param([event("unpinned", 1), event("pinned", 1)], {1}, id="in the order of events"),
    ],
)
def test_pins_follow_the_history(history, expected):
    assert pinned_versions(history) == expected


@pytest.mark.slow
@given(st.text(), st.text(), st.floats(0, 1))
def test_a_key_is_always_answered_by_the_same_alias(key, salt, weight):
    first, second = (choose(Split(weight), BOTH, key, salt) for _ in range(2))
    assert first == second
    assert first in BOTH


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_raised_weight_never_moves_a_key_back_to_stable(key, salt, one, other):
    low, high = (choose(Split(weight), BOTH, key, salt) for weight in sorted((one, other)))
    assert (low, high) != ("canary", "stable")


@given(st.text(), st.text())
def test_a_weight_of_one_takes_every_key_and_a_weight_of_zero_none(key, salt):
    assert choose(Split(1.0), BOTH, key, salt) == "canary"
    assert choose(Split(0.0), BOTH, key, salt) == "stable"


@given(st.text(), st.text())
def test_a_shadow_or_a_missing_canary_answers_nothing(key, salt):
    assert choose(Split(1.0, is_shadow=True), BOTH, key, salt) == "stable"
    assert choose(Split(1.0), {"stable": 1}, key, salt) == "stable"


def test_the_share_of_keys_is_the_weight():
    chosen = [choose(Split(0.1), BOTH, f"user-{number}", "medical") for number in range(10_000)]
    assert 900 < chosen.count("canary") < 1_100


def test_each_salt_draws_its_own_keys():
    keys = [f"user-{number}" for number in range(1_000)]
    medical, legal = ({key for key in keys if key_share(key, salt) < 0.5} for salt in ("medical", "legal"))
    assert 150 < len(medical - legal) < 350


def test_a_key_that_is_no_unicode_is_answered_too():
    assert choose(Split(0.5), BOTH, "\ud800", "medical") in BOTH


@pytest.fixture
def two_versions(store, peft_folder):
    """`medical@1` is stable, `medical@2` has no alias."""
    for _ in range(2):
        store.publish(peft_folder, draft_for(peft_folder))
    store.promote("medical", 1)
    return store


def test_a_canary_its_weight_and_the_pins_survive_a_restart(two_versions):
    two_versions.set_aliases("medical", {"canary": 2}, canary_weight=0.25)
    two_versions.pin(Target("medical", 1))
    restarted = AdapterStore(two_versions.root)
    assert restarted.aliases("medical") == BOTH
    assert restarted.split("medical") == Split(0.25)
    assert restarted.pins("medical") == {1}


def test_what_is_not_named_stays_as_it_was(two_versions):
    two_versions.set_aliases("medical", {"canary": 2}, canary_weight=0.25, is_shadow=True)
    two_versions.set_aliases("medical", {}, canary_weight=0.5)
    two_versions.set_aliases("medical", {}, is_shadow=False)
    assert two_versions.split("medical") == Split(0.5)


def test_setting_what_is_set_already_changes_nothing(two_versions):
    two_versions.set_aliases("medical", {"canary": 2}, canary_weight=0.25)
    two_versions.pin(Target("medical", 2))
    before = two_versions.history("medical")
    two_versions.set_aliases("medical", {"stable": 1, "canary": 2}, canary_weight=0.25, is_shadow=False)
    two_versions.pin(Target("medical", 2))
    two_versions.unpin(Target("medical", 1))
    assert two_versions.history("medical") == before


def test_promoting_the_canary_ends_its_split(two_versions):
    two_versions.set_aliases("medical", {"canary": 2}, canary_weight=0.25)
    two_versions.promote("medical", 2)
    assert two_versions.split("medical") == Split()


def test_a_new_canary_does_not_inherit_the_traffic_of_the_one_that_became_stable(two_versions, peft_folder):
    two_versions.publish(peft_folder, draft_for(peft_folder))
    two_versions.set_aliases("medical", {"canary": 2}, canary_weight=1.0)
    two_versions.set_aliases("medical", {"canary": 3, "stable": 2})
    assert two_versions.aliases("medical") == {"stable": 2, "canary": 3}
    assert two_versions.split("medical") == Split()


def test_several_moves_and_the_split_are_recorded_with_their_reason(two_versions):
    two_versions.set_aliases("medical", {"stable": 2, "canary": 1}, canary_weight=0.5, reason="swap")
    events = two_versions.history("medical")[-3:]
    assert [(event.kind, event.version, event.previous) for event in events] == [
        ("promoted", 2, 1),
        ("promoted", 1, None),
        ("split", None, None),
    ]
    assert {event.reason for event in events} == {"swap"}


@pytest.mark.slow
def test_a_reader_never_sees_half_of_a_change(two_versions):
    one, other = {"stable": 1, "canary": 2}, {"stable": 2, "canary": 1}

    def swap():
        for moves in [one, other] * 20:
            two_versions.set_aliases("medical", moves)

    two_versions.set_aliases("medical", other)
    seen = []
    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        while not swapping.done():
            seen.append(AdapterStore(two_versions.root).aliases("medical"))
    swapping.result()
    assert all(aliases in (one, other) for aliases in seen)


@pytest.mark.parametrize(
    ("moves", "weight", "error", "message"),
    [
        ({"canary": 2}, 1.5, InvalidSplitError, "must be 0 to 1; got 1.5"),
        ({"canary": 2}, -0.1, InvalidSplitError, "got -0.1"),
        ({"canary": 2}, float("nan"), InvalidSplitError, "got nan"),
        ({"stable": 2}, 0.5, InvalidSplitError, "Cannot split traffic without a canary; the aliases are {'stable': 2}"),
        ({"stable": 2, "canary": 9}, 0.5, AdapterNotFoundError, "no 'medical@9'"),
        ({"stable": 2, "3": 1}, None, InvalidReferenceError, "'3' is not a valid alias"),
        ({"stable": 2, "Canary": 1}, None, InvalidReferenceError, "is not a model reference"),
    ],
)
def test_a_change_of_which_a_part_is_wrong_changes_nothing(two_versions, moves, weight, error, message):
    before = two_versions.history("medical")
    with pytest.raises(error, match=message):
        two_versions.set_aliases("medical", moves, canary_weight=weight)
    assert two_versions.history("medical") == before


def test_a_split_of_an_unknown_adapter_names_what_exists(store):
    with pytest.raises(AdapterNotFoundError, match="no 'legal'"):
        store.set_aliases("legal", {}, canary_weight=0.5)
    assert not store.root.exists()


def test_an_unknown_version_cannot_be_pinned(two_versions):
    with pytest.raises(AdapterNotFoundError, match="no 'medical@9'"):
        two_versions.pin(Target("medical", 9))


def test_a_pinned_version_survives_gc_but_not_rm(two_versions):
    two_versions.pin(Target("medical", 2))
    two_versions.gc(keep_last=0)
    assert two_versions.versions("medical") == [1, 2]
    two_versions.remove(Target("medical", 2))
    assert two_versions.pins("medical") == frozenset()


def test_a_history_of_before_there_were_splits_is_read(tmp_path):
    line = {"kind": "promoted", "at": AT, "version": 3, "alias": "stable", "previous": 2, "reason": "gain 0.71"}
    (tmp_path / HISTORY_FILE).write_text(json.dumps(line) + "\n")
    (old,) = read_history(tmp_path)
    assert (old.version, old.alias, old.canary_weight) == (3, "stable", None)


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "split", "at": AT, "canary_weight": 0.1},
        {"kind": "split", "at": AT, "canary_weight": 2, "is_shadow": False},
        {"kind": "split", "at": AT, "version": 1, "canary_weight": 0.1, "is_shadow": False},
        {"kind": "pinned", "at": AT},
        {"kind": "promoted", "at": AT, "version": 1, "canary_weight": 0.1, "is_shadow": False},
    ],
)
def test_an_event_with_the_wrong_fields_is_none(tmp_path, line):
    (tmp_path / HISTORY_FILE).write_text(json.dumps(line) + "\n")
    with pytest.raises(IntegrityError, match=r"Line 1 of .* is not a valid event"):
        read_history(tmp_path)
