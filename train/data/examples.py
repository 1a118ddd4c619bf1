"""One model of an example, whatever file and layout it came from: TRL's data set types, always conversational.

Readers (`train/data/formats`) make examples, cleaning steps drop or change them, and `build.py` writes them as rows. An
example keeps its origin through every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from config.dataset import DatasetType, Message, Origin, Split


@dataclass(frozen=True, slots=True)
class Example:
    """One example of any type; which fields are set follows from its type.

    | type | fields |
    |---|---|
    | `language_modeling` | `text` |
    | `prompt_only` | `prompt`, `item` |
    | `prompt_completion` | `prompt`, `completion` |
    | `preference` | `prompt`, `chosen`, `rejected` |
    | `unpaired_preference` | `prompt`, `completion`, `label` |

    Attributes:
        prompt: Turns before the answer; ends with a user or tool turn. Earlier assistant turns stand here, too.
        completion: The answer: assistant turns, with tool results between them where the answer calls tools.
        tools: Tool definitions, as in `/v1/chat/completions`.
        fields: Columns of the source's row that are no lists or objects: splits group, order and stratify by them.
        item: What graders of an answer are given of the row, beside its prompt.
        stratum: Balances splits; "" is decided by the answer where answers repeat.
        split: Pins the example to a split; None: any.
    """

    type: DatasetType
    prompt: tuple[Message, ...] = ()
    completion: tuple[Message, ...] = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    item: Mapping[str, Any] = field(default_factory=dict)
    stratum: str = ""
    split: Split | None = None
    in_scope: bool = True
    is_synthetic: bool = False

    @property
    def question(self) -> str:
        """Text of the last user turn; "" if there is none."""
        return next((turn.content for turn in reversed(self.prompt) if turn.role == "user"), "")

    @property
    def answer(self) -> str:
        """Text of the last turn of the completion, or of the chosen one; "" if there is none."""
        turns = self.completion or self.chosen
        return turns[-1].content if turns else ""
