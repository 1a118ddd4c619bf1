"""Nearest texts and passages, with embeddings made by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from config.errors import ConfigError
from loadtest.evaluation.decide.retrieval import PASSAGE_CHARS, nearest, read_passages, split_passages


def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """By the number of the text: near numbers are near."""
    angles = [float(text.split()[-1]) / 100 for text in texts]
    return np.array([(np.cos(a), np.sin(a)) for a in angles], dtype=np.float32)


CORPUS = [f"term {n}" for n in range(10)]


def test_the_nearest_come_first(tmp_path: Path) -> None:
    found = nearest(CORPUS, ["question 7.4"], 3, embed, tmp_path / "found.json")
    assert found.places == ((7, 8, 6),)
    assert found.num_copies == 0


def test_a_copy_of_the_question_is_passed_over(tmp_path: Path) -> None:
    found = nearest(CORPUS, [" TERM  4"], 2, embed, tmp_path / "found.json")
    assert 4 not in found.places[0]
    assert found.num_copies == 1


def test_all_of_too_few_texts_are_given(tmp_path: Path) -> None:
    assert nearest(CORPUS[:2], ["question 1"], 5, embed, tmp_path / "found.json").places == ((1, 0),)


def test_what_was_found_is_kept_for_the_same_texts(tmp_path: Path) -> None:
    asked = []

    def counting(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        asked.append(len(texts))
        return embed(texts)

    first = nearest(CORPUS, ["question 3"], 2, counting, tmp_path / "found.json")
    assert nearest(CORPUS, ["question 3"], 2, counting, tmp_path / "found.json") == first
    assert len(asked) == 2
    nearest(CORPUS, ["question 3"], 1, counting, tmp_path / "found.json")
    assert len(asked) == 4


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text('{"key"')
    assert nearest(CORPUS, ["question 3"], 1, embed, tmp_path / "found.json").places == ((3,),)


def test_short_paragraphs_share_a_passage() -> None:
    assert split_passages("one\n\ntwo\n\n\n\nthree") == ["one\n\ntwo\n\nthree"]


def test_a_long_paragraph_is_cut_at_white_space() -> None:
    text = " ".join(f"word{n}" for n in range(400))
    passages = split_passages(text)
    assert " ".join(passages) == text
    assert max(map(len, passages)) <= PASSAGE_CHARS


def test_text_without_white_space_is_cut_too() -> None:
    assert "".join(split_passages("字" * 2000)) == "字" * 2000


def test_folders_give_their_text_files(tmp_path: Path) -> None:
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "b.md").write_text("second")
    (tmp_path / "docs" / "deep" / "c.txt").write_text("third")
    (tmp_path / "docs" / "image.png").write_bytes(b"\x89")
    (tmp_path / "notes.log").write_text("a named file of any suffix")
    found = read_passages([str(tmp_path / "docs"), str(tmp_path / "notes.log")])
    assert found == ["second", "third", "a named file of any suffix"]


@pytest.mark.parametrize(
    ("content", "named"), [(None, "does not exist"), (b"caf\xe9", "UTF-8"), (b" \n\n ", "no text found")]
)
def test_documents_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None, named: str) -> None:
    path = tmp_path / "menu.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"menu.txt.*{named}"):
        read_passages([str(path)])
