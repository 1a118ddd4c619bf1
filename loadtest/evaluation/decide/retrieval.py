"""Nearest training rows and passages of a question, by embeddings; found once and kept in a file."""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from config.errors import ConfigError
from loadtest.load.files import replace_text

PASSAGE_CHARS = 800
"""About what MiniLM reads of a text."""

_SUFFIXES = (".txt", ".md", ".rst")

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Neighbours:
    """The nearest texts of each question, nearest first, as places in the corpus.

    Attributes:
        num_copies: Texts that were passed over as they equal their question.
    """

    places: tuple[tuple[int, ...], ...]
    num_copies: int


def nearest(corpus: Sequence[str], questions: Sequence[str], k: int, embed: Embed, cache: Path) -> Neighbours:
    """The k nearest texts of each question by cosine, without those that equal it.

    Args:
        embed: Vectors of length 1.
        cache: Keeps what was found, for the same texts.
    """
    key = hashlib.sha256(json.dumps([list(corpus), list(questions), k]).encode()).hexdigest()
    found = _cached(cache, key)
    if found is None:
        found = _search(corpus, questions, k, embed)
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_text(cache, json.dumps({"key": key, "places": found.places, "num_copies": found.num_copies}))
    return found


def _search(corpus: Sequence[str], questions: Sequence[str], k: int, embed: Embed) -> Neighbours:
    order = np.argsort(-(embed(questions) @ embed(corpus).T), axis=1, kind="stable")
    known = [_plain(text) for text in corpus]
    places, num_copies = [], 0
    for question, ranked in zip(map(_plain, questions), order.tolist(), strict=True):
        chosen: list[int] = []
        for place in ranked:
            if len(chosen) == k:
                break
            if known[place] == question:
                num_copies += 1
            else:
                chosen.append(place)
        places.append(tuple(chosen))
    return Neighbours(tuple(places), num_copies)


def _plain(text: str) -> str:
    """Without case and differences of white space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _cached(cache: Path, key: str) -> Neighbours | None:
    try:
        fields = json.loads(cache.read_text(encoding="utf-8"))
        if fields["key"] == key:
            return Neighbours(tuple(map(tuple, fields["places"])), fields["num_copies"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or of other texts
    return None


def read_passages(documents: Sequence[str]) -> list[str]:
    """The passages of files and folders.

    Raises:
        ConfigError: One is missing, is not UTF-8, or all are empty.
    """
    passages = [passage for path in _files(documents) for passage in split_passages(_text(path))]
    if documents and not passages:
        raise ConfigError(f"`documents` {', '.join(documents)}: no text found. Give files or folders with text.")
    return passages


def split_passages(text: str) -> list[str]:
    """Neighbouring paragraphs in passages of at most `PASSAGE_CHARS`; a longer one is cut at white space."""
    passages: list[str] = []
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        for piece in _cut(paragraph.strip()):
            if passages and len(passages[-1]) + 2 + len(piece) <= PASSAGE_CHARS:
                passages[-1] = f"{passages[-1]}\n\n{piece}"
            else:
                passages.append(piece)
    return passages


def _cut(paragraph: str) -> list[str]:
    pieces = []
    while len(paragraph) > PASSAGE_CHARS:
        end = max(paragraph.rfind(" ", 1, PASSAGE_CHARS + 1), paragraph.rfind("\n", 1, PASSAGE_CHARS + 1))
        end = end if end > 0 else PASSAGE_CHARS
        pieces.append(paragraph[:end].strip())
        paragraph = paragraph[end:].strip()
    return pieces + ([paragraph] if paragraph else [])


def _files(documents: Sequence[str]) -> list[Path]:
    files = []
    for name in documents:
        path = Path(name)
        if not path.exists():
            raise ConfigError(f"`documents`: {name} does not exist. Give a text file, or a folder of them.")
        inside = path.rglob("*") if path.is_dir() else [path]
        files += [one for one in sorted(inside) if one.is_file() and (one == path or one.suffix.lower() in _SUFFIXES)]
    return files


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"`documents`: {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"`documents`: {path}: {error.strerror}.") from None
