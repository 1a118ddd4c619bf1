"""`lorikeet eval run --offline` with the real process that answers, on a tiny base."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from config.home import Home
from lorikeet import app
from tests.datasets_on_disk import write_dataset
from tests.exported import publish, random_adapter
from tests.tiny_llama import CHAT_TEMPLATE, prepare_tiny_base, write_tiny_llama

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model", initializer_range=0.2))
    write_dataset(home.datasets / "medical", num_test=4)
    for seed in (1, 2):
        publish(home, random_adapter(home.bases / "tiny", tmp_path / str(seed), seed=seed), "medical")
    return home


def evaluated(home: Home, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", *words, "--home", str(home.root)], env={"COLUMNS": "300"})
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def test_versions_and_base_are_evaluated_without_a_server(home: Home) -> None:
    words = ("run", "medical@2", "--against", "base", "--against", "medical@1", "--offline", "--metric", "length")
    code, shown = evaluated(home, *words)
    assert code == 0, shown
    assert "12 of 12 answers" in shown
    assert all(name in shown for name in ("tiny offline", "medical@1 offline", "medical@2 offline"))
    code, again = evaluated(home, "compare", "medical", "--metric", "length")
    assert code == 0, again
    figures = "medical: 4 held-out questions"
    assert (
        again[again.index(figures) :].partition("report:")[0] == shown[shown.index(figures) :].partition("report:")[0]
    )


def test_a_template_that_rejects_a_question_is_one_line(home: Home, tmp_path: Path) -> None:
    strict = "{% for m in messages %}{% if 'term 3' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "strict", strict + CHAT_TEMPLATE), "strict")
    code, shown = evaluated(home, "run", "strict", "--domain", "medical", "--offline")
    assert code == 1
    assert "The base's chat template rejects a conversation" in shown
