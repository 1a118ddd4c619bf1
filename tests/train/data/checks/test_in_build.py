from tests.train.data.checks.rows import examples
from train.data.checks.in_build import refusals_step


def test_a_build_keeps_rows_that_refuse_and_lists_them():
    rows = examples(("Hi", "I'm sorry, but I can't help with that."), ("Hi there", "Hello"))
    result = refusals_step(rows, None)
    assert list(result.examples) == rows
    assert (result.step.name, result.step.num_dropped) == ("refusals", 0)
    assert [str(each.origin) for each in result.step.findings] == ["rows.jsonl line 1"]
