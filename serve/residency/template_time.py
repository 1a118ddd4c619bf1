"""Find the tokens that a chat template writes for the time, by rendering at two very different times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapters.template_time import APART
from serve.engine.protocol import Engine

_CONTEXT = 4  # tokens before the time by which it is found again
_SLACK = 8  # tokens by which another date may be longer


@dataclass(frozen=True)
class Renderings:
    """One conversation at both moments."""

    early: tuple[int, ...]
    late: tuple[int, ...]

    @classmethod
    def of(
        cls, engine: Engine, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
    ) -> "Renderings":
        early, late = (tuple(engine.render(messages, moment, tools)) for moment in APART)
        return cls(early, late)

    @property
    def num_before(self) -> int:
        """Tokens that both begin with."""
        return _num_same(self.early, self.late)

    @property
    def num_after(self) -> int:
        """Tokens that both end with, but for those that they begin with."""
        start = self.num_before
        return _num_same(self.early[start:][::-1], self.late[start:][::-1])

    @property
    def time(self) -> tuple[int, ...]:
        """What stands between, at the early moment."""
        return self.early[self.num_before : len(self.early) - self.num_after]

    def is_of_another_time(self, tokens: Sequence[int]) -> bool:
        """Whether they are the same conversation at some other moment: the same but for what the time moves."""
        before, after = self.num_before, self.num_after
        fixed = self.early[:before] + self.early[len(self.early) - after :]
        kept = (*tokens[:before], *tokens[max(len(tokens) - after, before) :])
        return self.early != self.late and kept == fixed


@dataclass(frozen=True)
class TimeTokens:
    """Where the time stands in a prompt.

    Attributes:
        before: The tokens before it; fewer than four where the prompt begins there.
        after: The first ones after it.
        longest: So many tokens it has at most.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    longest: int

    def cut(self, tokens: Sequence[int | str]) -> tuple[int | str, ...]:
        """The tokens without those of the time, wherever it stands; all of them where it is not found."""
        prompt, width = tuple(tokens), len(self.before)
        starts = range(width, len(prompt)) if width == _CONTEXT else (width,)
        for start in starts:
            if prompt[start - width : start] == self.before:
                for end in range(start, start + self.longest + 1):
                    if prompt[end : end + len(self.after)] == self.after:
                        return prompt[:start] + prompt[end:]
        return prompt


def find_time(engine: Engine, conversations: Sequence[Sequence[dict[str, Any]]]) -> TimeTokens | None:
    """Where the template writes the time into these conversations; None where it writes none.

    Raises:
        ValueError: It writes it where a cut cannot find it in all of them.
    """
    others = [_with_more_text(messages) for messages in conversations[:1]]
    rendered = [Renderings.of(engine, messages) for messages in (*conversations, *others)]
    moved = [one for one in rendered if one.early != one.late]
    if not moved:
        return None
    is_one_text = len({one.time for one in moved}) == 1
    for width in range(1, min(moved[0].num_after, _CONTEXT) + 1):
        found = _time_tokens(moved[0], width)
        if is_one_text and all(found.cut(one.early) == found.cut(one.late) for one in moved):
            return found
    raise ValueError("the chat template writes the time in more than one place, or next to a client's text")


def _with_more_text(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is the template's own stays the same."""
    return [message | {"content": f"{message['content']} And then?"} for message in messages]


def _time_tokens(rendered: Renderings, width: int) -> TimeTokens:
    start, after = rendered.num_before, rendered.num_after
    longest = max(len(rendered.early), len(rendered.late)) - start - after + _SLACK
    begin = len(rendered.early) - after
    return TimeTokens(rendered.early[max(start - _CONTEXT, 0) : start], rendered.early[begin : begin + width], longest)


def _num_same(left: Sequence[int], right: Sequence[int]) -> int:
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return number
    return min(len(left), len(right))
