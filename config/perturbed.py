"""Rows of a data set as questions to perturb, and perturbed questions as rows that are asked like all others."""

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from config.dataset import DatasetManifest, DatasetRow, Message, full_prompt, read_dataset, read_split
from config.errors import DatasetError
from quality.robustness.change import ForeignQuestion, PerturbedQuestion, PlainQuestion

MAX_NEIGHBOURS = 200
"""Questions of one other domain."""

_SYSTEM_ROLES = ("system", "developer")

logger = logging.getLogger(__name__)


def plain_questions(rows: Sequence[DatasetRow]) -> list[PlainQuestion]:
    return [
        PlainQuestion(
            row.input,
            row.messages[-1].model_dump_json(include={"content", "tool_calls"})
            if row.messages[-1].tool_calls
            else row.output,
            any(turn.role in _SYSTEM_ROLES and turn.content for turn in row.prompt),
        )
        for row in rows
    ]


def perturbed_row(manifest: DatasetManifest, row: DatasetRow, question: PerturbedQuestion) -> DatasetRow:
    """The row with its last user turn perturbed, or with an empty system prompt.

    Neither the server nor the chat template replaces an empty one.

    A question of another domain begins a new conversation, with the row's tools; the refusal answers it.
    """
    if question.text is None:
        turns = [_without_text(turn) if turn.role in _SYSTEM_ROLES else turn for turn in row.prompt]
        return row.model_copy(update={"messages": (*turns, row.messages[-1])})
    if question.expects_refusal:
        refusal = manifest.answer.refusal or ""
        prompt = full_prompt(manifest.chat, (Message(role="user", content=question.text),))
        answer, changed = Message(role="assistant", content=refusal), {"output": refusal, "in_scope": False}
    else:
        prompt, answer, changed = _with_last_user_turn(manifest, row, question.text), row.messages[-1], {}
    return row.model_copy(update={"messages": (*prompt, answer), "input": question.text, **changed})


def neighbouring_questions(datasets: Path, manifest: DatasetManifest) -> list[ForeignQuestion]:
    """In-scope held-out questions of other built data sets; one with the same system prompt is of the same domain."""
    found: list[ForeignQuestion] = []
    for folder in sorted(path for path in datasets.glob("*") if path.is_dir() and path.name != manifest.domain):
        try:
            other = read_dataset(folder)
            if other.type != "prompt_completion" or other.chat.system == manifest.chat.system:
                continue
            rows = (row for row in read_split(folder, "test") if row.in_scope and row.input.strip())
            found += [ForeignQuestion(row.input, other.domain) for row in islice(rows, MAX_NEIGHBOURS)]
        except DatasetError as error:
            logger.warning("Not used for questions of another domain: %s", error)
    return found


def _with_last_user_turn(manifest: DatasetManifest, row: DatasetRow, text: str) -> tuple[Message, ...]:
    turns = list(row.prompt)
    last = max(index for index, turn in enumerate(turns) if turn.role == "user")
    content = manifest.chat.user.replace("{input}", text)
    turns[last] = turns[last].model_copy(update={"content": content})
    return tuple(turns)


def _without_text(turn: Message) -> Message:
    return turn.model_copy(update={"content": ""})
