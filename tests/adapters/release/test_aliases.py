from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import IntegrityError
from adapters.release.aliases import current_aliases, plan_removal, rollback_version
from adapters.store.history import HISTORY_FILE, Event, append_events, read_history


def event(kind, version, alias="stable"):
    is_move = kind in ("promoted", "rolled_back")
    return Event(kind=kind, at="2026-11-21T00:00:00+00:00", version=version, alias=alias if is_move else None)


def promoted(*versions, alias="stable"):
    return [event("promoted", version, alias) for version in versions]


def test_each_alias_points_where_it_moved_last():
    history = [*promoted(1, 2), *promoted(3, alias="canary"), event("rolled_back", 1), event("published", 4)]
    assert current_aliases(history) == {"stable": 1, "canary": 3}


def test_an_alias_ends_with_its_version():
    assert current_aliases([*promoted(1, 2), *promoted(1, alias="old"), event("removed", 2)]) == {"old": 1}


@pytest.mark.parametrize(
    ("history", "expected"), [(promoted(1, 2), {"stable": 1}), (promoted(2), {}), (promoted(2, 1), {"stable": 1})]
)
def test_a_removal_gives_aliases_back(history, expected):
    planned = plan_removal(history, 2, at="2026-11-21T00:00:00+00:00", reason="")
    assert current_aliases([*history, *planned]) == expected
    assert planned[-1].kind == "removed"


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param(promoted(1, 2), 1, id="the one before"),
        pytest.param(promoted(1), None, id="the first has none"),
        pytest.param([], None, id="no history"),
        pytest.param(promoted(1, 2, 1), 2, id="promoted back by hand"),
        pytest.param([*promoted(1, 2, 3), event("rolled_back", 2)], 1, id="twice goes further back"),
        pytest.param([*promoted(1, 2), event("rolled_back", 1)], None, id="never to the bad version"),
        pytest.param([*promoted(1, 2), event("rolled_back", 1), *promoted(3)], 1, id="not to a version rolled back"),
        pytest.param([*promoted(1, 2, 3), event("removed", 2)], 1, id="not to a removed version"),
        pytest.param([*promoted(1), *promoted(2, alias="canary")], None, id="other aliases do not count"),
    ],
)
def test_rollback_leads_to_the_last_good_version(history, expected):
    assert rollback_version(history, "stable") == expected


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_repeated_rollbacks_end_at_the_first_version_and_never_stay(versions):
    history = promoted(*versions)
    visited = [current_aliases(history)["stable"]]
    while (version := rollback_version(history, "stable")) is not None and len(visited) < 50:
        history.append(event("rolled_back", version))
        visited.append(version)
    assert len(visited) <= len(versions)
    assert all(before != after for before, after in pairwise(visited))


def test_history_is_read_back_as_written(tmp_path):
    events = promoted(1, 2)
    append_events(tmp_path, events[:1])
    append_events(tmp_path, events[1:])
    assert read_history(tmp_path) == tuple(events)


def test_a_torn_last_line_does_not_count_and_is_cut_off_by_the_next_event(tmp_path):
    append_events(tmp_path, promoted(1))
    with (tmp_path / HISTORY_FILE).open("a") as file:
        file.write('{"kind":"promo')
    assert read_history(tmp_path) == tuple(promoted(1))
    append_events(tmp_path, promoted(2))
    assert read_history(tmp_path) == tuple(promoted(1, 2))


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / HISTORY_FILE).write_text("nonsense\n")
    append_events(tmp_path, promoted(1))
    with pytest.raises(IntegrityError, match=r"Line 1 of .*history\.jsonl is not a valid event: 'nonsense'"):
        read_history(tmp_path)
