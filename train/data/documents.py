"""Raw text to training rows: documents in pieces of at most `recipe.max_length` tokens, packed into rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from config.domain import DomainConfig
from config.rows import TextRow
from train.data.control_tokens import control_pattern, control_tokens_error, first_control_token
from train.data.encode import BREAK, token_ids
from train.errors import DataError

Piece = tuple[int, ...]
"""Token ids of a document, or of a part of a long one."""


@dataclass(frozen=True)
class PackedRow:
    """Pieces of documents in one row; none attends to another."""

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[TextRow], config: DomainConfig
) -> list[tuple[Piece, ...]]:
    """Each document's pieces; a document ends with the end-of-sequence token.

    Raises:
        DataError: Texts have control tokens, or none is left.
    """
    pattern, mode = control_pattern(tokenizer), config.data.cleaning.control_tokens
    found = [row for row in rows if first_control_token(pattern, (), (), row.text)] if mode != "keep" else []
    if found and mode == "error":
        raise control_tokens_error([f"{row.origin or repr(row.text[:40])} contains one" for row in found])
    kept = [row for row in rows if mode != "drop" or row not in found]
    if not kept:
        raise DataError(f"All {len(rows)} texts are dropped: they contain control tokens (`control_tokens: {mode}`).")
    if mode == "escape":
        texts = [pattern.sub(lambda match: match.group()[0] + BREAK + match.group()[1:], row.text) for row in kept]
    else:
        texts = [row.text for row in kept]
    eos, size = tokenizer.eos_token_id, config.recipe.max_length
    return [_pieces((*token_ids(tokenizer, text), eos), size) for text in texts]


def _pieces(ids: tuple[int, ...], size: int) -> tuple[Piece, ...]:
    """A last piece of one token predicts nothing, so it is left out."""
    pieces = tuple(ids[start : start + size] for start in range(0, len(ids), size))
    return tuple(piece for piece in pieces if len(piece) > 1)


def packed(pieces: Sequence[Piece], size: int) -> list[PackedRow]:
    """Rows of at most `size` tokens, by first fit, longest piece first."""
    rows = first_fit([len(piece) for piece in pieces], size)
    return [PackedRow(tuple(pieces[n] for n in row)) for row in rows]


def first_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of what goes into each row of at most `size`, longest first."""
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n], reverse=True):
        place = next((n for n, room in enumerate(free) if room >= lengths[number]), None)
        if place is None:
            rows.append([number])
            free.append(size - lengths[number])
        else:
            rows[place].append(number)
            free[place] -= lengths[number]
    return rows
