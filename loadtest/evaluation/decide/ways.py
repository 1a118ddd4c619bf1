"""The ways to answer that are compared: base or adapter, what its prompt holds, and free or constrained decoding."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from config.dataset import DatasetManifest, DatasetRow, Message, conversation
from loadtest.evaluate import request_arguments

Context = Literal["none", "examples", "nearest", "documents"]

NUM_PASSAGES = 3
"""Of `documents:`, in a prompt."""


@dataclass(frozen=True)
class Way:
    """One way to answer."""

    is_adapter: bool
    context: Context
    is_constrained: bool

    @property
    def effort(self) -> int:
        """What it needs beside the base, to choose the simplest of equals."""
        order: tuple[Context, ...] = ("none", "examples", "nearest", "documents")
        return 10 * self.is_adapter + 2 * order.index(self.context) + self.is_constrained

    def name(self, num_examples: int) -> str:
        """`base with 5 nearest examples, constrained`."""
        words = {
            "none": "",
            "examples": f" with {num_examples} examples",
            "nearest": f" with {num_examples} nearest examples",
            "documents": f" with {NUM_PASSAGES} passages",
        }[self.context]
        return f"{'adapter' if self.is_adapter else 'base'}{words}{', constrained' if self.is_constrained else ''}"


def ways(contexts: Collection[Context], *, has_adapter: bool, can_constrain: bool) -> list[Way]:
    """All of them, the base alone first; fixed examples are for the base alone."""
    found = []
    for is_adapter in (False, True) if has_adapter else (False,):
        for context in ("none", "examples", "nearest", "documents"):
            if context not in ("none", *contexts) or (is_adapter and context == "examples"):
                continue
            found += [Way(is_adapter, context, limit) for limit in ((False, True) if can_constrain else (False,))]
    return found


@dataclass(frozen=True)
class PromptParts:
    """What prompts are made of, by question.

    Attributes:
        examples: The same for all questions.
        nearest: Training rows by question, nearest first.
        passages: Texts by question, nearest first.
    """

    manifest: DatasetManifest
    rows: Sequence[DatasetRow]
    examples: Sequence[tuple[Message, ...]] = ()
    nearest: Sequence[Sequence[DatasetRow]] = ()
    passages: Sequence[Sequence[str]] = field(default_factory=tuple)

    def requests(self, way: Way, number: int, model: str, filled: Collection[str]) -> list[dict[str, Any]]:
        """The request of one question; further ones have fewer examples or passages, for a context that is too short.

        Args:
            filled: Fields that the server fills in for the model.
        """
        manifest = self.manifest
        if way.is_constrained:
            defaults = manifest.defaults.model_copy(update={"response_format": "json_schema"})
            manifest = manifest.model_copy(update={"defaults": defaults})
        tools = {"tools": list(self.rows[number].tools)} if self.rows[number].tools else {}
        return [request_arguments(model, turns, manifest, filled) | tools for turns in self._prompts(way, number)]

    def _prompts(self, way: Way, number: int) -> list[tuple[Message, ...]]:
        prompt = self.rows[number].prompt
        if way.context == "none":
            return [prompt]
        if way.context == "documents":
            passages = self.passages[number]
            return [_with_passages(prompt, passages[:count]) for count in range(len(passages), -1, -1)]
        if way.context == "examples":
            return [_with_examples(prompt, self.examples[:count]) for count in range(len(self.examples), -1, -1)]
        shots = [_turns(row) for row in self.nearest[number]]
        # The nearest one last, beside the question.
        return [_with_examples(prompt, shots[:count][::-1]) for count in range(len(shots), -1, -1)]


def fixed_examples(manifest: DatasetManifest, train: Sequence[DatasetRow], k: int) -> list[tuple[Message, ...]]:
    """The data set's few-shot examples, and further training rows where it has fewer than k."""
    stored = [conversation(manifest.chat, shot.input, shot.output)[1:] for shot in manifest.few_shot[:k]]
    known = {shot.input for shot in manifest.few_shot}
    more = [_turns(row) for row in train if row.input not in known]
    return stored + more[: k - len(stored)]


def _turns(row: DatasetRow) -> tuple[Message, ...]:
    return tuple(turn for turn in row.messages if turn.role not in ("system", "developer"))


def _with_examples(prompt: Sequence[Message], shots: Sequence[tuple[Message, ...]]) -> tuple[Message, ...]:
    """Examples as earlier turns."""
    start = [turn for turn in prompt if turn.role in ("system", "developer")]
    rest = [turn for turn in prompt if turn.role not in ("system", "developer")]
    return (*start, *(turn for shot in shots for turn in shot), *rest)


def _with_passages(prompt: Sequence[Message], passages: Sequence[str]) -> tuple[Message, ...]:
    """Passages before the text of the last user turn."""
    if not passages:
        return tuple(prompt)
    turns = list(prompt)
    last = max(index for index, turn in enumerate(turns) if turn.role == "user")
    text = "\n\n".join((*passages, turns[last].content))
    turns[last] = turns[last].model_copy(update={"content": text})
    return tuple(turns)
