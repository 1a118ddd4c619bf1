from config.data import DataConfig
from config.domain import AnswerConfig
from tests.train.data.checks.rows import examples
from train.data.checks.in_build import check_in_build


def test_a_build_reports_refusals_and_rendered_templates():
    rows = examples(("Hi", "I'm sorry, but I can't help with that."), ("[INST] Hi [/INST]", "Hello"))
    steps = check_in_build(rows, DataConfig(path="x.jsonl"), AnswerConfig())
    found = {step.name: [str(each.origin) for each in step.findings] for step in steps}
    assert found == {"refusals": ["rows.jsonl line 1"], "rendered templates": ["rows.jsonl line 2"]}
    assert {step.num_dropped for step in steps} == {0}
