"""`lorikeet record`: a provider's answers, kept once, within a budget, and how near others come to them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorikeet import app
from tests.datasets_on_disk import ANSWER, write_dataset
from tests.loadtest.evaluation.test_saved import compared, figures, save
from tests.openai_provider import ANSWER_TOKENS, PROMPT_TOKENS_OF_TURN, Provider, serving

OLD = "ft:gpt-4.1-mini:acme::1"
NUM_ROWS = 4
TOKENS = 2 * PROMPT_TOKENS_OF_TURN + ANSWER_TOKENS


def term_of(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].rpartition(" ")[2])


def first_right(body: dict[str, Any]) -> str:
    """The first question is answered as the data set does, the others otherwise."""
    return ANSWER if term_of(body) == 0 else f"other {term_of(body)}"


@pytest.fixture
def old() -> Iterator[Provider]:
    with serving(Provider(first_right)) as provider:
        yield provider


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "datasets" / "medical", num_test=NUM_ROWS)
    return tmp_path


def recorded(home: Path, old: Provider, *words: str) -> tuple[int, str]:
    arguments = ["record", "medical", "--url", old.url, "--model", OLD, "--home", str(home), *words]
    arguments += ["--concurrency", "1", "--api-key-env", "OLD_KEY"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "OLD_KEY": "sk-secret-of-the-provider"})
    assert "Traceback" not in result.output, result.output
    return result.exit_code, " ".join(result.output.split())


def test_the_old_models_answers_are_kept(home: Path, old: Provider) -> None:
    code, shown = recorded(home, old)
    assert code == 0, shown
    assert f"kept 4 of 4 answers of {OLD}, {4 * TOKENS} tokens" in shown


@pytest.mark.slow
def test_another_provider_is_asked_in_openais_own_fields(home: Path, old: Provider) -> None:
    recorded(home, old)
    assert {name for body in old.asked for name in body} == {"model", "messages", "temperature", "max_tokens"}
    assert old.asked[0]["messages"][0] == {"role": "system", "content": "Chapter, as JSON."}


@pytest.mark.slow
def test_the_key_is_sent_and_not_stored(home: Path, old: Provider) -> None:
    recorded(home, old)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert old.keys == {"Bearer sk-secret-of-the-provider"}
    assert not any(b"sk-secret" in path.read_bytes() for path in files)


@pytest.mark.slow
def test_an_interrupted_recording_goes_on_where_it_ended(home: Path, old: Provider) -> None:
    old.most = 2
    code, shown = recorded(home, old)
    assert (code, "the account is closed" in shown) == (1, True)
    old.most = None
    assert recorded(home, old)[0] == 0
    assert [term_of(body) for body in old.asked] == [0, 1, 0, 2, 3]


@pytest.mark.slow
def test_the_budget_ends_a_recording_and_a_higher_one_goes_on(home: Path, old: Provider) -> None:
    code, shown = recorded(home, old, "--max-tokens", str(2 * TOKENS))
    assert code == 1
    assert "kept 2 of 4 answers" in shown
    assert "The budget of 52 tokens is spent" in shown
    assert "kept 4 of 4" in recorded(home, old, "--max-tokens", "1000")[1]


@pytest.mark.slow
def test_a_field_that_the_provider_refuses_is_left_out(home: Path, old: Provider) -> None:
    old.refused = ("temperature", "max_tokens")
    code, shown = recorded(home, old)
    assert code == 0, shown
    assert {name for body in old.asked for name in body} == {"model", "messages"}


def test_compare_says_how_near_a_model_comes_to_the_old_one(home: Path, old: Provider) -> None:
    recorded(home, old)
    save(home, "medical@2", num_right=2)
    code, shown = compared(home, "medical", "--reference", OLD)
    assert code == 0, shown
    assert f"expected answers: those of {OLD}" in shown
    assert figures(home) == {"medical@2": 0.25}


@pytest.mark.slow
def test_old_and_new_model_are_compared_by_the_right_answers(home: Path, old: Provider) -> None:
    recorded(home, old)
    save(home, "medical@2", num_right=2)
    assert compared(home, "medical", "--model", OLD, "--model", "medical@2")[0] == 0
    assert figures(home) == {OLD: 0.25, "medical@2": 0.5}


def test_a_reference_alone_is_nothing_to_compare(home: Path, old: Provider) -> None:
    recorded(home, old)
    code, shown = compared(home, "medical", "--reference", OLD)
    assert (code, "Only 'ft:gpt-4.1-mini:acme::1' has saved answers" in shown) == (1, True)


@pytest.mark.parametrize(
    ("url", "message"),
    [("api.openai.com/v1", "must be an http(s) URL"), ("http://127.0.0.1:9/v1", "does not answer")],
)
def test_a_wrong_address_is_told_at_once(home: Path, url: str, message: str) -> None:
    code, shown = recorded(home, Provider(first_right, url=url))
    assert (code, message in shown) == (1, True)


def test_the_providers_own_refusal_is_told(home: Path, old: Provider) -> None:
    old.most = 0
    code, shown = recorded(home, old)
    assert (code, "the account is closed" in shown) == (1, True)
