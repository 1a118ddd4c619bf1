"""Perturbed rows: only the last user turn or the system prompt differs, and the answer is the right one."""

from pathlib import Path

import pytest

from config.dataset import (
    DATASET_MANIFEST_FILE,
    DatasetManifest,
    DatasetRow,
    FunctionCall,
    Message,
    ToolCall,
    full_prompt,
    read_dataset,
    read_split,
)
from config.domain import AnswerConfig, ChatConfig
from config.perturbed import neighbouring_questions, perturbed_row, plain_questions
from quality.robustness.change import PerturbedQuestion
from tests.datasets_on_disk import write_dataset

TOOL = {"type": "function", "function": {"name": "weather"}}
CHAT = ChatConfig(system="Be brief.", user="Question: {input}")


@pytest.fixture
def manifest(tmp_path: Path) -> DatasetManifest:
    found = read_dataset(write_dataset(tmp_path / "medical", num_test=2))
    return found.model_copy(update={"chat": CHAT, "answer": AnswerConfig(refusal="no")})


def row(*turns: Message, answer: Message | None = None) -> DatasetRow:
    last = answer or Message(role="assistant", content="sunny")
    asked = next(turn.content for turn in reversed(turns) if turn.role == "user")
    return DatasetRow(messages=(*full_prompt(CHAT, turns), last), tools=(TOOL,), input=asked, output=last.content)


SEVERAL_TURNS = row(
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hello!"),
    Message(role="user", content="Weather in Rome?"),
    Message(role="tool", content="22 degrees, clear"),
)


def test_only_the_last_user_turn_is_perturbed(manifest: DatasetManifest) -> None:
    perturbed = perturbed_row(manifest, SEVERAL_TURNS, PerturbedQuestion("casing", 0, "upper", "WEATHER IN {input}?"))
    assert [(turn.role, turn.content) for turn in perturbed.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hello!"),
        ("user", "Question: WEATHER IN {input}?"),
        ("tool", "22 degrees, clear"),
        ("assistant", "sunny"),
    ]
    assert (perturbed.input, perturbed.output, perturbed.tools) == ("WEATHER IN {input}?", "sunny", (TOOL,))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_left_out_system_prompt_is_an_empty_one(manifest: DatasetManifest, role: str) -> None:
    own = row(Message.model_validate({"role": role, "content": "Be long."}), Message(role="user", content="Hello"))
    perturbed = perturbed_row(manifest, own, PerturbedQuestion("no_system_prompt", 0, "", None))
    assert [(turn.role, turn.content) for turn in perturbed.prompt] == [(role, ""), ("user", "Question: Hello")]
    assert perturbed.messages[-1] == own.messages[-1]


def test_another_question_begins_a_conversation_and_is_refused(manifest: DatasetManifest) -> None:
    question = PerturbedQuestion("out_of_scope", 0, "", "Tell me a joke.", expects_refusal=True)
    perturbed = perturbed_row(manifest, SEVERAL_TURNS, question)
    assert [turn.content for turn in perturbed.messages] == ["Be brief.", "Question: Tell me a joke.", "no"]
    assert (perturbed.output, perturbed.in_scope, perturbed.tools) == ("no", False, (TOOL,))


def test_the_arguments_of_an_expected_call_are_repeated_words() -> None:
    call = ToolCall(function=FunctionCall(name="weather", arguments={"city": "Rome"}))
    calling = row(
        Message(role="user", content="Weather in Rome?"), answer=Message(role="assistant", tool_calls=(call,))
    )
    assert "Rome" in plain_questions([calling])[0].expected


def test_a_row_without_system_prompt_says_so() -> None:
    bare = row(Message(role="system", content=""), Message(role="user", content="Hello"))
    assert [question.has_system_prompt for question in plain_questions([SEVERAL_TURNS, bare])] == [True, False]


def test_neighbours_are_other_domains_with_another_system_prompt(tmp_path: Path) -> None:
    medical = read_dataset(write_dataset(tmp_path / "medical", num_test=2))
    write_dataset(tmp_path / "medical-dpo", num_test=2)
    other = write_dataset(tmp_path / "legal", num_test=3)
    legal = read_dataset(other).model_copy(update={"chat": ChatConfig(system="Licence?")})
    (other / DATASET_MANIFEST_FILE).write_text(legal.model_dump_json())
    rows = [r.model_copy(update={"in_scope": n > 0}) for n, r in enumerate(read_split(other, "test"))]
    (other / "test.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in rows))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / DATASET_MANIFEST_FILE).write_text("{")
    found = neighbouring_questions(tmp_path, medical)
    assert [(question.domain, question.text) for question in found] == [("legal", "term 1"), ("legal", "term 2")]
