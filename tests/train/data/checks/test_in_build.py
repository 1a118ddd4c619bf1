import pytest

from tests.train.data.checks.rows import examples
from train.data.checks.in_build import label_errors_step, refusals_step
from train.errors import DataError


def test_a_build_keeps_rows_that_refuse_and_lists_them():
    rows = examples(("Hi", "I'm sorry, but I can't help with that."), ("Hi there", "Hello"))
    result = refusals_step(rows, None)
    assert list(result.examples) == rows
    assert (result.step.name, result.step.num_dropped) == ("refusals", 0)
    assert [str(each.origin) for each in result.step.findings] == ["rows.jsonl line 1"]


def test_label_errors_of_free_texts_are_refused():
    with pytest.raises(DataError, match="answers are not classes"):
        label_errors_step(examples(*[(f"q {n}", f"a {n}") for n in range(30)]))


@pytest.mark.slow
def test_a_wrong_class_is_a_label_error_of_the_build():
    topics = {"delivery": "Where is parcel {n}?", "billing": "Why is invoice {n} so high?"}
    pairs = [(text.format(n=n), topic) for n in range(40) for topic, text in topics.items()]
    pairs[10] = (pairs[10][0], "billing")
    step = label_errors_step(examples(*pairs)).step
    assert [str(found.origin) for found in step.findings] == ["rows.jsonl line 11"]
