"""Class balance, where answers repeat so often that they are classes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from train.data.examples import Example
from train.data.steps import Finding, finding

_MIN_ROWS_PER_CLASS = 2.0
_MAX_ANSWER_CHARS = 200
_FEW_ROWS = 5


@dataclass(frozen=True)
class ClassBalance:
    """Rows by answer, the most frequent first.

    Attributes:
        entropy_bits: Of the classes' shares; log2 of their number if all are equally frequent.
    """

    counts: dict[str, int]
    entropy_bits: float
    findings: tuple[Finding, ...]

    @property
    def evenness(self) -> float:
        """Entropy divided by its maximum: 1 if all classes are equally frequent."""
        return self.entropy_bits / math.log2(len(self.counts)) if len(self.counts) > 1 else 1.0

    @property
    def smallest(self) -> tuple[str, int]:
        return min(self.counts.items(), key=lambda item: item[1])


def class_of(example: Example) -> str:
    """The answer's text without outer white space."""
    return example.answer.strip()


def has_classes(examples: Sequence[Example]) -> bool:
    """Whether answers are classes: short, and each is the answer of two rows or more on average."""
    answers = {class_of(example) for example in examples}
    is_short = all(0 < len(answer) <= _MAX_ANSWER_CHARS for answer in answers)
    return is_short and len(answers) > 1 and len(examples) >= _MIN_ROWS_PER_CLASS * len(answers)


def check_balance(examples: Sequence[Example]) -> ClassBalance | None:
    """Count classes; rows of a class with fewer than five rows are findings. None: answers are not classes."""
    if not has_classes(examples):
        return None
    counts = dict(Counter(map(class_of, examples)).most_common())
    shares = [count / len(examples) for count in counts.values()]
    findings = tuple(
        finding(example, f"one of only {count} rows with this answer", text=class_of(example))
        for example in examples
        if (count := counts[class_of(example)]) < _FEW_ROWS
    )
    return ClassBalance(counts, -sum(share * math.log2(share) for share in shares), findings)
