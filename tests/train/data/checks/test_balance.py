import pytest

from tests.train.data.checks.rows import examples
from train.data.checks.balance import check_balance


def test_classes_are_counted_and_small_ones_listed():
    rows = examples(*[(f"a {n}", "red") for n in range(8)], *[(f"b {n}", "blue") for n in range(2)])
    balance = check_balance(rows)
    assert balance is not None
    assert balance.counts == {"red": 8, "blue": 2}
    assert balance.smallest == ("blue", 2)
    assert balance.entropy_bits == pytest.approx(0.722, abs=0.001)
    assert [str(found.origin) for found in balance.findings] == ["rows.jsonl line 9", "rows.jsonl line 10"]


def test_equally_frequent_classes_are_even():
    balance = check_balance(examples(*[(f"{n}", "ab"[n % 2]) for n in range(12)]))
    assert balance is not None
    assert balance.evenness == pytest.approx(1.0)
    assert balance.findings == ()


def test_answers_that_hardly_repeat_are_not_classes():
    assert check_balance(examples(*[(f"q {n}", f"answer {n}") for n in range(10)])) is None


def test_one_answer_alone_is_not_a_class():
    assert check_balance(examples(("a", "ok"), ("b", "ok"))) is None
