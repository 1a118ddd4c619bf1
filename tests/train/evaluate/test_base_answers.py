"""What a base answered is asked once, and used for nothing else."""

import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from train.evaluate.base_answers import BaseAnswers
from train.evaluate.generation import ChooseTokens, most_likely
from train.evaluate.local import Decoding

MODEL: Any = torch.nn.Linear(2, 2)
ASKED = Decoding(4, ("\n",)).asked([(1, 2), (3,)])


class Base:
    """Counts how often it is asked."""

    def __init__(self, answers: Any = ("red",)) -> None:
        self.num_asked = 0
        self._answers = list(answers)

    def ask(self) -> Any:
        self.num_asked += 1
        return self._answers


def test_the_same_questions_are_asked_once(tmp_path: Path) -> None:
    base, kept = Base([["red", [1, 2], -0.125]]), []
    for _ in range(2):
        answers = BaseAnswers(tmp_path / "base-answers", "a").of(MODEL, ASKED, base.ask, lambda: kept.append(1))
        assert answers == [["red", [1, 2], -0.125]]
    assert (base.num_asked, len(kept)) == (1, 1)
    (file,) = (tmp_path / "base-answers").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("digest", "model", "asked"),
    [
        pytest.param("b", MODEL, ASKED, id="another base"),
        pytest.param("a", torch.nn.Linear(2, 2, dtype=torch.bfloat16), ASKED, id="another number format"),
        pytest.param("a", MODEL, Decoding(5, ("\n",)).asked([(1, 2), (3,)]), id="longer answers"),
        pytest.param("a", MODEL, Decoding(4, ()).asked([(1, 2), (3,)]), id="another stop string"),
        pytest.param("a", MODEL, Decoding(4, ("\n",)).asked([(1, 2), (4,)]), id="another question"),
    ],
)
def test_what_differs_is_asked_again(tmp_path: Path, digest: str, model: Any, asked: Any) -> None:
    base = Base()
    BaseAnswers(tmp_path, "a").of(MODEL, ASKED, base.ask)
    BaseAnswers(tmp_path, digest).of(model, asked, base.ask)
    assert base.num_asked == 2


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    base, answers = Base(), BaseAnswers(tmp_path, "a")
    answers.of(MODEL, ASKED, base.ask)
    (file,) = tmp_path.iterdir()
    file.write_text('["re')
    assert answers.of(MODEL, ASKED, base.ask) == answers.of(MODEL, ASKED, base.ask) == ["red"]
    assert base.num_asked == 2


def test_a_folder_that_cannot_be_written_loses_no_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert BaseAnswers(tmp_path / "file" / "folder", "a").of(MODEL, ASKED, Base().ask) == ["red"]
    assert "the base's answers are not kept" in caplog.text


def test_answers_that_were_drawn_are_not_kept(tmp_path: Path) -> None:
    def drawn(logits: torch.Tensor, rows: Any) -> torch.Tensor:
        return most_likely(logits, rows)

    choose: ChooseTokens = drawn
    assert Decoding(4, choose=choose).asked([(1,)]) is None
    base = Base()
    for _ in range(2):
        BaseAnswers(tmp_path, "a").of(MODEL, None, base.ask)
    assert base.num_asked == 2
    assert list(tmp_path.iterdir()) == []
