from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.data.examples_of import distinct, row
from train.data.cleaning.near_copies import NearCopies

TEXT = st.text(max_size=60)
INDEX = NearCopies(0.8, ())


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_a_text_is_a_near_copy_of_itself(text: str) -> None:
    assert INDEX.is_near(text, text)


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT)
def test_near_copies_go_both_ways(left: str, right: str) -> None:
    assert INDEX.is_near(left, right) == INDEX.is_near(right, left)


def test_the_index_finds_what_the_exact_comparison_finds() -> None:
    rows = distinct(300)
    copies = [row(f"{each.question} indeed") for each in rows]
    index = NearCopies(0.7, rows)
    for each, compared in zip(rows, index.compared(rows), strict=True):
        index.add(each, compared)
    found = [index.find(copy, compared) for copy, compared in zip(copies, index.compared(copies), strict=True)]
    exact = [
        next((other for other in rows if index.is_near(copy.question, other.question)), None) for copy in copies[:40]
    ]
    assert found[:40] == exact
    assert sum(each is not None for each in found) > 290
