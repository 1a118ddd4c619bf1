"""Lines of a fine-tuning file in OpenAI's formats, checked as they come; a file is never held in memory.

What each row must have is checked here. Whether tokens, turns and answers make examples, the data package says when the
file is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jiter

MIN_EXAMPLES = 10
"""Of a training file, as OpenAI has it."""

ExampleFormat = Literal["chat", "preference", "completion", "other"]
Method = Literal["supervised", "dpo", "reinforcement"]

_FORMATS: dict[Method, tuple[ExampleFormat, ...]] = {
    "supervised": ("chat", "completion", "other"),
    "dpo": ("preference", "other"),
    "reinforcement": ("chat", "other"),
}
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_LINE_BYTES = 8 << 20
_SHOWN_CHARS = 60
_BOM = b"\xef\xbb\xbf"


class ExampleError(ValueError):
    """A file that cannot be trained on; `code` is OpenAI's."""

    def __init__(self, message: str, code: str = "invalid_file_format") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class ExampleFacts:
    """What is known of a file: its examples, and the first line of each format."""

    num_examples: int = 0
    first_lines: dict[ExampleFormat, int] = field(default_factory=dict)
    first_without_answer: int | None = None
    """First conversation without an assistant's turn."""

    def check(self, method: Method, *, is_training: bool = True) -> None:
        """Check that a job of this method can use the file.

        Args:
            is_training: Whether it is the training file; a validation file may be short.

        Raises:
            ExampleError: It cannot.
        """
        what = "training" if is_training else "validation"
        code = f"invalid_{what}_file"
        least = MIN_EXAMPLES if is_training else 1
        if self.num_examples < least:
            raise ExampleError(
                f"The {what} file has {self.num_examples} example(s), but must have at least {least}. Add examples "
                "and upload it again.",
                "invalid_n_examples",
            )
        wanted = _FORMATS[method]
        for found, line in self.first_lines.items():
            if found not in wanted:
                raise ExampleError(
                    f"Line {line} of the {what} file has the {found} format, but the method {method!r} takes "
                    f"{_FORMAT_TEXTS[wanted[0]]}.",
                    code,
                )
        if method == "supervised" and self.first_without_answer is not None:
            raise ExampleError(
                f"Line {self.first_without_answer} of the {what} file has no turn of the assistant, so there is no "
                'answer to learn. End its `messages` with {"role": "assistant", "content": "…"}.',
                code,
            )


_FORMAT_TEXTS: dict[ExampleFormat, str] = {
    "chat": 'conversations: {"messages": [{"role": …, "content": …}, …]}',
    "preference": 'preferences: {"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}',
    "completion": '{"prompt": …, "completion": …}',
    "other": "",
}


class ExampleLines:
    """Checks the lines of one file; `write` takes its bytes in any pieces."""

    def __init__(self) -> None:
        self._facts = ExampleFacts()
        self._number = 0
        self._rest = bytearray()

    def write(self, content: bytes) -> None:
        """Raises ExampleError at the first line that is not an example."""
        *lines, rest = content.split(b"\n")
        for line in lines:
            self._check(bytes(self._rest) + line if self._rest else line)
            self._rest.clear()
        self._rest += rest
        if len(self._rest) > _MAX_LINE_BYTES:
            raise self._error(f"is longer than {_MAX_LINE_BYTES} bytes. Is the file JSON Lines, one object a line?")

    def end(self) -> ExampleFacts:
        """The facts, after the last byte.

        Raises:
            ExampleError: The last line is not an example, or the file has none.
        """
        self._check(bytes(self._rest))
        self._rest.clear()
        if not self._facts.num_examples:
            raise ExampleError("The file has no examples. Send JSON Lines: one object a line.")
        return self._facts

    def _check(self, line: bytes) -> None:
        if self._number == 0:
            line = line.removeprefix(_BOM)
        if line.strip():
            row = self._row(line)
            found = self._format(row)
            self._facts.num_examples += 1
            self._facts.first_lines.setdefault(found, self._number + 1)
        self._number += 1

    def _row(self, line: bytes) -> dict[str, Any]:
        try:
            row = jiter.from_json(line, allow_inf_nan=False, cache_mode="keys")
        except ValueError as error:
            reason = str(error)[:_SHOWN_CHARS]
            raise self._error(f"is not JSON ({reason}), it begins with {_shown(line)}. Send JSON Lines.") from None
        if not isinstance(row, dict):
            raise self._error(f"must be a JSON object, but begins with {_shown(line)}. Send JSON Lines.")
        return row

    def _format(self, row: dict[str, Any]) -> ExampleFormat:
        if "messages" in row:
            turns = self._turns(row["messages"], "`messages`")
            if "assistant" not in [turn["role"] for turn in turns] and self._facts.first_without_answer is None:
                self._facts.first_without_answer = self._number + 1
            return "chat"
        if "preferred_output" in row or "non_preferred_output" in row:
            given = row.get("input")
            if not isinstance(given, dict):
                raise self._error("has no `input` with `messages` beside its outputs.")
            self._turns(given.get("messages"), "`input.messages`")
            for name in ("preferred_output", "non_preferred_output"):
                if "assistant" not in [turn["role"] for turn in self._turns(row.get(name), f"`{name}`")]:
                    raise self._error(f"has no turn of the assistant in `{name}`.")
            return "preference"
        is_completion = isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)
        return "completion" if is_completion else "other"

    def _turns(self, value: Any, where: str) -> list[Mapping[str, Any]]:
        if not isinstance(value, list) or not value:
            raise self._error(f"must have a list of turns in {where}, as {_FORMAT_TEXTS['chat']}.")
        for number, turn in enumerate(value, 1):
            if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
                raise self._error(f"must have a `role` in turn {number} of {where}: one of {', '.join(_ROLES)}.")
            if not _has_content(turn):
                raise self._error(f"must have text as `content` in turn {number} of {where}.")
        return value

    def _error(self, problem: str) -> ExampleError:
        return ExampleError(f"Line {self._number + 1} {problem}")


def _has_content(turn: Mapping[str, Any]) -> bool:
    """Text, a list of parts, or none beside an assistant's call of a tool."""
    content = turn.get("content")
    if content is None:
        return turn["role"] == "assistant" and bool(turn.get("tool_calls") or turn.get("function_call"))
    return isinstance(content, (str, list))


def _shown(line: bytes) -> str:
    return repr(line.strip()[:_SHOWN_CHARS].decode(errors="replace"))
