"""No single user weighs more than a share of the rows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.dataset import read_split
from config.home import Home
from tests.train.data.feedback.said import Said, begin
from train.data.feedback.build import FromSamples, build_from_samples
from train.data.feedback.shares import rows_allowed


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    said = begin(Home(tmp_path))
    yield said
    said.store.close()


def kept(said: Said, max_user_share: float) -> Counter[str]:
    """Rows by answer."""
    build_from_samples(said.home, "medical", FromSamples(max_user_share=max_user_share))
    return Counter(row.output for row in read_split(said.home.datasets / "medical-feedback", "train"))


def correct(said: Said, who: str, answer: str, topic: str) -> None:
    said.feedback(said.answer(f"Complaint about the {topic}", "x"), who, correction=answer)


TOPICS = [f"{side} {part}" for side in ("left", "right", "upper", "lower") for part in ("arm", "knee", "hip", "rib")]


def test_a_user_keeps_at_most_the_share(said: Said) -> None:
    for number, topic in enumerate(TOPICS):
        correct(said, "many" if number < 8 else f"u{number}", "many" if number < 8 else "one", topic)
    assert kept(said, 0.25) == {"many": 2, "one": 8}


def test_rows_that_others_vouch_for_are_nobodys(said: Said) -> None:
    for topic in TOPICS[:8]:
        correct(said, "many", "same", topic)
        correct(said, "other", "same", topic)
    assert kept(said, 0.05) == {"same": 8}


def test_the_newest_rows_of_a_user_stay(said: Said) -> None:
    for number, topic in enumerate(TOPICS[:4]):
        correct(said, "many", f"answer {number}", topic)
    assert kept(said, 0.05) == {"answer 3": 1}


def test_labels_and_grades_are_not_bounded(said: Said) -> None:
    for topic in TOPICS[:8]:
        said.label(said.answer(f"Complaint about the {topic}", "good"), 1.0)
    assert kept(said, 0.05) == {"good": 8}


@given(st.lists(st.integers(1, 200), max_size=12), st.integers(0, 300), st.floats(0.01, 1.0))
def test_the_most_rows_within_the_share_are_allowed(counts: list[int], num_others: int, share: float) -> None:
    allowed = rows_allowed(counts, num_others, share)

    def is_within(rows: int) -> bool:
        return rows <= share * (num_others + sum(min(count, rows) for count in counts)) + 1e-9

    most = max(counts, default=1)
    assert allowed == max([rows for rows in range(1, most + 1) if is_within(rows)], default=1)
