"""The base in int8 beside the base as trained on: what is compared, and when answers count as equal."""

import pytest

from loadtest.bench.int8 import Answered, share_result, stage_of


def test_both_servers_are_asked_for_the_same_models() -> None:
    stage = stage_of("base", ("medical", "legal"))
    assert [row.ours for row in stage.rows] == [row.theirs for row in stage.rows]
    assert [(row.name, row.ours) for row in stage.rows] == [
        ("base", ("base",)),
        ("medical", ("medical",)),
        ("base and medical, legal mixed", ("base", "medical", "legal")),
        ("base, 1 stream", ("base",)),
        ("medical, 1 stream", ("medical",)),
        ("prefill of 512 tokens, medical, legal", ("medical", "legal")),
    ]
    assert [row.load.num_streams for row in stage.rows] == [16, 16, 16, 1, 1, 4]


def answered(both: int, only_bf16: int, only_int8: int, neither: int) -> Answered:
    counts = ((True, True), both), ((True, False), only_bf16), ((False, True), only_int8), ((False, False), neither)
    return Answered("medical", [pair for pair, count in counts for _ in range(count)])


@pytest.mark.parametrize(
    ("counts", "is_pass"),
    [
        pytest.param((150, 0, 0, 90), True, id="the same answers"),
        pytest.param((140, 10, 10, 80), True, id="as many of them right"),
        pytest.param((120, 30, 6, 84), False, id="a tenth worse"),
        pytest.param((10, 0, 0, 10), False, id="too few to tell"),
    ],
)
def test_answers_are_as_good_when_a_difference_beyond_the_margin_is_unlikely(
    counts: tuple[int, int, int, int], is_pass: bool
) -> None:
    result = share_result(answered(*counts))
    both, only_bf16, only_int8, _ = counts
    assert (result.baseline, result.value) == ((both + only_bf16) / sum(counts), (both + only_int8) / sum(counts))
    assert (result.is_pass, result.ratio) == (is_pass, None)


def test_the_difference_is_told_with_its_interval() -> None:
    name = share_result(answered(150, 12, 0, 78)).name
    assert "medical: 240 held-out questions answered rightly" in name
    assert name.endswith("; difference -0.050, -0.078 to -0.021")
