"""Near copies of rows: candidates by MinHash (rensa, in Rust), then the exact Jaccard similarity decides."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from rensa import RMinHash, RMinHashLSH

from train.data.cleaning.boilerplate import Boilerplate
from train.data.cleaning.identity import answer_key
from train.data.cleaning.text import (
    differ_in_indentation_only,
    normalize,
    shingles,
    similarity,
    symbols_agree,
)
from train.data.examples import Example

_SEED = 1
_MIN_RECALL = 0.997
# (bands, rows): the more rows in a band, the fewer candidates. The first that finds nearly all pairs is taken.
_BANDINGS = ((16, 12), (32, 8), (32, 6), (48, 4), (64, 3), (96, 2), (192, 1))
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Compared:
    """The texts by which a row is compared, and their MinHash sketches."""

    texts: tuple[str, ...]
    sketches: tuple[RMinHash, ...]


class NearCopies:
    """An index of rows that finds one that another row is nearly equal to.

    Two rows are near copies if the Jaccard similarity of their 5-character shingles reaches the threshold, with and
    without what most rows have in common, and if their numbers, symbols and indentation agree (text.py).
    """

    def __init__(self, jaccard: float, rows: Sequence[Example]) -> None:
        """Args:
        rows: Rows that tell what is common to most of them.
        """
        self._jaccard = jaccard
        self._common = Boilerplate([prompt_text(row) for row in rows])
        self._bands, rows_per_band = _banding(jaccard)
        self._num_perm = self._bands * rows_per_band
        self._index = RMinHashLSH(jaccard, self._num_perm, self._bands)
        self._rows: list[Example] = []

    def compared(
        self, rows: Iterable[Example], on_rows: Callable[[int], None] = lambda count: None
    ) -> Iterator[Compared]:
        """Sketch rows in chunks, which is much faster than one at a time."""
        iterator = iter(rows)
        while chunk := list(islice(iterator, _CHUNK)):
            texts = [_texts(row) for row in chunk]
            flat = iter(self._sketches([self.distinctive(text) for each in texts for text in each]))
            for each in texts:
                yield Compared(each, tuple(islice(flat, len(each))))
            on_rows(len(chunk))

    def add(self, row: Example, compared: Compared) -> None:
        """Index a row by its first text: its whole prompt."""
        self._index.insert(len(self._rows), compared.sketches[0])
        self._rows.append(row)

    def find(
        self, row: Example, compared: Compared, may_be: Callable[[Example], bool] = lambda other: True
    ) -> Example | None:
        """The first indexed row that one of the texts is a near copy of."""
        for text, sketch in zip(compared.texts, compared.sketches, strict=True):
            for key in sorted(self._index.query(sketch)):
                other: Example = self._rows[key]
                if text and may_be(other) and self.is_near(text, prompt_text(other)) and _same_task(row, other):
                    return other
        return None

    def is_near(self, left: str, right: str) -> bool:
        """Whether two texts are near copies."""
        if not self._have_near_words(left, right):
            return False
        return symbols_agree(left, right, self._jaccard) and not differ_in_indentation_only(left, right)

    def differ_in_marks(self, left: str, right: str) -> bool:
        """Whether the words are near copies, but numbers, symbols or indentation are not."""
        return self._have_near_words(left, right) and not self.is_near(left, right)

    def distinctive(self, text: str) -> str:
        """What a text does not share with most rows; all of it if there is nothing else."""
        return self._common.strip(text) or text

    def _have_near_words(self, left: str, right: str) -> bool:
        pairs = (self.distinctive(left), self.distinctive(right)), (left, right)
        return all(similarity(_shingles(one), _shingles(two)) >= self._jaccard for one, two in pairs)

    def _sketches(self, texts: Sequence[str]) -> list[RMinHash]:
        made: list[RMinHash] = RMinHash.from_token_sets([list(shingles(t)) for t in texts], self._num_perm, _SEED)
        return made


def prompt_text(row: Example) -> str:
    """The question; of several turns all of them but the system prompt. Without one, the text or the answer."""
    turns = [turn.content for turn in row.prompt if turn.role not in ("system", "developer")]
    return turns[0] if len(turns) == 1 else "\n".join(turns) or row.text or row.answer


def _texts(row: Example) -> tuple[str, ...]:
    """The whole prompt, and each user turn of several: a held-out question may stand in the middle."""
    users = [turn.content for turn in row.prompt if turn.role == "user"]
    return (prompt_text(row), *(users if len(users) > 1 else ()))


def _same_task(row: Example, other: Example) -> bool:
    """Whether two rows ask the same, as far as their system prompts tell; with other ones, if they answer the same."""
    return _system(row) == _system(other) or answer_key(row) == answer_key(other)


def _system(row: Example) -> str:
    return normalize(" ".join(turn.content for turn in row.prompt if turn.role in ("system", "developer")))


@lru_cache(maxsize=1024)
def _shingles(text: str) -> frozenset[str]:
    return shingles(text)


def _banding(jaccard: float) -> tuple[int, int]:
    """The first banding that finds a pair at the threshold with the wanted probability: 1 - (1 - j^rows)^bands."""
    return next((each for each in _BANDINGS if 1 - (1 - jaccard ** each[1]) ** each[0] >= _MIN_RECALL), _BANDINGS[-1])
