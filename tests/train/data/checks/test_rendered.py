import pytest

from tests.train.data.checks.rows import example
from train.data.checks.rendered import check_rendered, template_families


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("<|im_start|>user\nhi<|im_end|>", "ChatML"),
        ("[INST] hi [/INST]", "Llama 2 or Mistral"),
        ("<|start_header_id|>user", "Llama 3"),
        ("<start_of_turn>user", "Gemma"),
        ("<｜User｜>hi", "DeepSeek"),
        ("<|user|>\nhi", "Phi or Zephyr"),
        ("### Instruction:\nAnswer", "Alpaca"),
        ("USER: hi\nASSISTANT: hello", "Vicuna"),
    ],
)
def test_marks_of_a_rendered_template_are_named(text, family):
    assert template_families(text) == [family]


@pytest.mark.parametrize(
    "text",
    ["if a < b | c > d", "# Input\nsee ### Instruction: below", "The user: he left. Assistant: none", "[INSTALL]"],
)
def test_other_brackets_and_headings_are_not_marks(text):
    assert template_families(text) == []


def test_an_answer_with_marks_is_reported():
    step = check_rendered([example("Hi", "Hello"), example("Hi", "<|im_start|>assistant\nHello", line=2)]).step
    assert (step.num_before, step.num_after) == (2, 2)
    assert [str(found.origin) for found in step.findings] == ["rows.jsonl line 2"]
