from tests.train.data.checks.rows import examples
from train.data.checks.lengths import check_lengths, summarize_lengths


def test_quantiles_are_lengths_that_occur():
    summary = summarize_lengths([*range(1, 100), 500])
    assert (summary.smallest, summary.median, summary.p95, summary.p99, summary.largest) == (1, 50, 95, 99, 500)


def test_a_far_longer_row_is_found():
    pairs = [(f"question {n:03d}", "answer") for n in range(200)]
    assert check_lengths(examples(*pairs)).findings == ()
    found = check_lengths(examples(*pairs, ("question " * 90, "answer"))).findings
    assert [str(each.origin) for each in found] == ["rows.jsonl line 201"]


def test_an_empty_answer_is_found():
    assert [each.reason for each in check_lengths(examples(("a", "b"), ("a", " \n"))).findings] == [
        "the answer is empty"
    ]
