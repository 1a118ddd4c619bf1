"""`lorikeet eval decide` against a scripted server, with embeddings and trainings made by hand."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from typer.testing import CliRunner

from adapters.errors import AdapterNotFoundError
from adapters.scores import score_of
from adapters.store.evaluation_records import FigureRecord
from adapters.store.manifest import DatasetRef, TrainingRecord
from adapters.store.store import AdapterStore
from config.dataset import read_dataset
from config.domain import DomainConfig, GatesConfig
from config.errors import DatasetError
from config.home import Home
from loadtest.errors import TargetError
from loadtest.evaluation.decide.curve import part_of, sizes
from loadtest.evaluation.decide.page import print_decision, render_decision
from loadtest.evaluation.decide.report import DecisionReport
from loadtest.evaluation.decide.run import DecideOptions, decide
from lorikeet import app
from tests.answering import AnsweringServer, answering_server
from tests.datasets_on_disk import ANSWER, SCHEMA, write_dataset
from tests.peft_folders import draft_for, write_base_folder, write_peft_folder

NUM_ROWS = 40
DOMAIN = {
    "name": "medical",
    "description": "Synthetic.",
    "base": "tiny",
    "data": {"path": "none.jsonl"},
    "chat": {"system": "Chapter, as JSON."},
    "answer": {"json_schema": SCHEMA},
    "recipe": {"max_steps": 20, "eval_steps": 10},
}


def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    angles = [int(text.split()[-1]) / 100 for text in texts]
    return np.array([(np.cos(a), np.sin(a)) for a in angles], dtype=np.float32)


def answer(body: dict[str, Any]) -> str:
    """Right with examples, from adapters, and never else; with a schema at least valid."""
    if len(body["messages"]) > 2 or body["model"] != "tiny":
        return ANSWER
    return '{"chapter": "bone"}' if "response_format" in body else "I do not know."


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    write_base_folder(home.bases / "tiny")
    write_dataset(home.datasets / "medical", num_test=NUM_ROWS)
    return home


def options(home: Home, server: AnsweringServer, **changes: Any) -> DecideOptions:
    config = DomainConfig.model_validate(DOMAIN | changes.pop("domain", {}))
    return DecideOptions(home, config, Path("serve.yaml"), url=server.url, **{"num_examples": 2, **changes})


def publish(home: Home, config: DomainConfig, score: float, *, is_promoted: bool = True, **training: Any) -> None:
    """A version as training would leave it, scored on 100 questions."""
    whole, folder = home.datasets / config.name, write_peft_folder(home.root / "made")
    dataset, store = read_dataset(whole), AdapterStore(home.adapters)
    sizes = dataset.model_dump(include={"num_validation", "num_test", "licence", "dataset_sha256"})
    own = FigureRecord(kind="metric", metric="exact_match", adapter=score_of(round(100 * score), 100),
                       base=score_of(0, 100), difference=score_of(round(100 * score), 100))  # fmt: skip
    base = json.loads((home.bases / config.base / "manifest.json").read_text())
    store.publish(folder, draft_for(
        folder, config.name, figures=(own,),
        base={"name": config.base, "digest": base["digest"], "quantization": "none"},
        dataset=DatasetRef(source="test", num_train=config.data.num_train, **sizes),
        training=TrainingRecord(arguments=config.training_arguments | training, metrics={"steps": 3.0}, duration_s=1,
                                device="cpu", libraries={}),
    ))  # fmt: skip
    if is_promoted:
        store.promote(config.name, store.versions(config.name)[-1])


class Trainings:
    """Trains nothing; remembers sizes and steps, and scores by the logarithm of the rows."""

    def __init__(self, source: Home) -> None:
        self.source = source
        self.done: list[tuple[int, int]] = []

    def __call__(self, config: DomainConfig, home: Home) -> None:
        self.done.append((config.data.num_train, config.recipe.max_steps))
        write_dataset(home.datasets / config.name, num_test=NUM_ROWS)
        publish(home, config, 0.2 * np.log10(config.data.num_train))


def decided(home: Home, server: AnsweringServer, *, with_embeddings: bool = True, **changes: Any) -> DecisionReport:
    console = Console(file=io.StringIO())
    own = changes.pop("train", Trainings(home))
    changes.setdefault("limit", 10)
    return decide(options(home, server, **changes), console, embed=embed if with_embeddings else None, train=own)


@pytest.mark.slow
def test_every_way_is_measured_on_the_same_questions(home: Home) -> None:
    publish(home, DomainConfig.model_validate(DOMAIN | {"data": {"path": "x", "num_train": NUM_ROWS}}), 0.9)
    with answering_server(answer, ("medical@1",)) as server:
        report = decided(home, server)
    found = {way.name: way for way in report.ways}
    assert list(found) == [
        "base", "base, constrained", "base with 2 examples", "base with 2 examples, constrained",
        "base with 2 nearest examples", "base with 2 nearest examples, constrained", "adapter",
        "adapter, constrained", "adapter with 2 nearest examples", "adapter with 2 nearest examples, constrained",
    ]  # fmt: skip
    assert found["base"].difference is None
    assert found["base"].figure.value == 0
    assert found["base, constrained"].valid_format is not None
    assert found["base, constrained"].valid_format.value == 1
    assert found["adapter"].difference is not None
    assert (found["adapter"].difference.value, found["adapter"].difference.n) == (1, 10)
    assert found["base with 2 nearest examples"].prompt_tokens == 60
    assert all(way.answers_per_s and way.seconds_per_1000 for way in report.ways)


@pytest.mark.slow
def test_a_second_run_asks_and_trains_nothing(home: Home) -> None:
    trainings = Trainings(home)
    with answering_server(answer) as server:
        first = decided(home, server, train=trainings)
        num_asked = len(server.asked)
        again = decided(home, server, train=trainings)
        assert len(server.asked) == num_asked
    assert again.ways == first.ways
    assert trainings.done == [(4, 2), (12, 6), (40, 20)]


@pytest.mark.slow
def test_without_an_adapter_the_curve_stands_for_it(home: Home) -> None:
    with answering_server(answer) as server:
        report = decided(home, server)
    assert report.adapter is None
    assert report.ways[-1].name == "adapter"
    assert report.ways[-1].e2e_p50_s is None
    assert report.ways[-1].figure.n == 100
    assert report.curve is not None
    assert [point.num_rows for point in report.curve.points] == [4, 12, 40]
    assert report.curve.gains[0].num_rows == 80
    assert report.advice.choice.startswith("base with 2 ")  # which of them is a matter of milliseconds


@pytest.mark.slow
def test_an_adapter_of_the_same_rows_is_not_trained_again(home: Home) -> None:
    publish(home, DomainConfig.model_validate(DOMAIN | {"data": {"path": "x", "num_train": NUM_ROWS}}), 0.9)
    trainings = Trainings(home)
    with answering_server(answer, ("medical@1",)) as server:
        report = decided(home, server, train=trainings)
    assert [rows for rows, _ in trainings.done] == [4, 12]
    assert report.curve is not None
    assert report.curve.points[-1].is_existing


@pytest.mark.slow
def test_an_adapter_that_only_the_server_has_is_asked(home: Home) -> None:
    with answering_server(answer, ("medical",)) as server:
        report = decided(home, server, limit=3, has_curve=False)
        assert "medical@1" in {body["model"] for body in server.asked}
    assert report.adapter == "medical@1"


@pytest.mark.slow
def test_an_adapter_of_another_recipe_is_said(home: Home) -> None:
    publish(home, DomainConfig.model_validate(DOMAIN), 0.9, max_steps=7)
    trainings = Trainings(home)
    with answering_server(answer, ("medical@1",)) as server:
        report = decided(home, server, train=trainings)
    assert [rows for rows, _ in trainings.done] == [4, 12, 40]
    assert any("medical@1 was trained with other settings" in note for note in report.notes)


@pytest.mark.slow
def test_an_adapter_of_other_rows_may_know_the_questions(home: Home) -> None:
    publish(home, DomainConfig.model_validate(DOMAIN), 0.9)
    manifest = home.datasets / "medical" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"dataset_sha256": "e" * 64}))
    with answering_server(answer, ("medical@1",)) as server:
        report = decided(home, server)
    assert any("medical@1 was trained on other rows, which may include" in note for note in report.notes)


@pytest.mark.slow
def test_versions_of_which_none_is_stable_are_named(home: Home) -> None:
    publish(home, DomainConfig.model_validate(DOMAIN), 0.9, is_promoted=False)
    with answering_server(answer) as server:
        report = decided(home, server, has_curve=False)
    assert any("--adapter medical@1" in note for note in report.notes)


@pytest.mark.slow
def test_without_embeddings_nothing_is_retrieved(home: Home) -> None:
    with answering_server(answer) as server:
        report = decided(home, server, with_embeddings=False, has_curve=False)
    assert not any("nearest" in way.name for way in report.ways)
    assert any("lorikeet[embeddings]" in note for note in report.notes)
    assert report.curve is None


@pytest.mark.slow
def test_fewer_rows_than_examples_are_all_used(home: Home) -> None:
    with answering_server(answer) as server:
        report = decided(home, server, num_examples=50, has_curve=False, limit=2)
    assert any("50 examples are wanted, but there are 40" in note for note in report.notes)
    assert any("training rows equal the question" in note for note in report.notes)
    assert report.ways[-1].name == "base with 40 nearest examples, constrained"


@pytest.mark.slow
def test_prompts_over_the_context_are_said(home: Home) -> None:
    def short(body: dict[str, Any]) -> str | tuple[int, str]:
        return answer(body) if len(body["messages"]) < 5 else (400, "maximum context length is 64 tokens")

    with answering_server(short) as server:
        report = decided(home, server, has_curve=False, limit=3)
    assert any("base with 2 examples: 3 prompts had fewer" in note for note in report.notes)


@pytest.mark.slow
def test_passages_of_documents_are_a_way(home: Home, tmp_path: Path) -> None:
    (tmp_path / "skin.md").write_text("passage 7")
    with answering_server(answer) as server:
        report = decided(home, server, has_curve=False, limit=2, domain={"documents": [str(tmp_path / "skin.md")]})
        assert any(body["messages"][-1]["content"].startswith("passage 7\n\nterm") for body in server.asked)
    assert "base with 3 passages" in {way.name for way in report.ways}


@pytest.mark.slow
def test_the_price_gives_a_cost(home: Home) -> None:
    with answering_server(answer) as server:
        report = decided(home, server, has_curve=False, limit=2, price_per_hour=3.6)
    assert report.ways[0].seconds_per_1000 is not None
    assert report.ways[0].cost_per_1000 == pytest.approx(report.ways[0].seconds_per_1000 / 1000)


@pytest.mark.slow
def test_a_judge_does_not_decide(home: Home) -> None:
    manifest = home.datasets / "medical" / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["evaluation"]["metrics"] = [{"name": "judge"}, {"name": "token_f1"}]
    manifest.write_text(json.dumps(fields))
    with answering_server(answer) as server:
        report = decided(home, server, has_curve=False)
    assert report.metric == "token_f1"
    assert "No judge is asked here: token_f1 decides." in report.notes


@pytest.mark.slow
def test_a_data_set_of_preferences_is_refused(home: Home) -> None:
    manifest = home.datasets / "medical" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"type": "preference"}))
    with pytest.raises(DatasetError, match="rows are of type 'preference'"):
        decided(home, AnsweringServer("http://127.0.0.1:9/v1"))


@pytest.mark.slow
def test_a_named_adapter_that_is_missing_is_named(home: Home) -> None:
    with pytest.raises(AdapterNotFoundError, match="medical"):
        decide(
            DecideOptions(home, DomainConfig.model_validate(DOMAIN), Path("serve.yaml"), adapter="medical@7"),
            Console(file=io.StringIO()),
            embed=embed,
        )


@pytest.mark.slow
def test_changed_questions_stop_the_curve(home: Home) -> None:
    def other_rows(config: DomainConfig, own: Home) -> None:
        write_dataset(own.datasets / config.name, num_test=NUM_ROWS + 1)
        publish(own, config, 0.5)

    with answering_server(answer) as server, pytest.raises(TargetError, match="other held-out rows"):
        decided(home, server, train=other_rows, limit=2)


def test_a_part_has_its_share_of_steps_and_no_gates() -> None:
    data = {"path": "none.jsonl", "gates": {"min_rows": 100}}
    more = {"gates": {"min_gain": 0.9}, "evaluation": {"robustness": True}}
    config = DomainConfig.model_validate(DOMAIN | {"data": data} | more)
    part = part_of(config, 2000, 200)
    assert (part.recipe.max_steps, part.recipe.eval_steps, part.data.num_train) == (2, 1, 200)
    assert part.data.gates.min_rows is None
    assert part.gates == GatesConfig()
    assert part.evaluation.robustness is None
    assert Path(part.data.paths[0]).is_absolute()


@pytest.mark.parametrize(("num_train", "wanted"), [(2000, [200, 600, 2000]), (20, [4, 6, 20]), (3, [3])])
def test_sizes_are_shares_of_the_rows(num_train: int, wanted: list[int]) -> None:
    assert sizes(num_train) == wanted


@pytest.mark.slow
def test_the_page_and_the_table_show_the_recommendation(home: Home) -> None:
    with answering_server(answer) as server:
        report = decided(home, server, limit=5)
    page, shown = render_decision(report), io.StringIO()
    print_decision(Console(file=shown, width=250), report)
    for text in (page, shown.getvalue()):
        assert report.advice.summary in text
        assert "2 times the rows and steps (80 rows)" in text
    assert "<svg" in page
    assert "http://www.w3.org" in page
    assert "src=" not in page
    assert DecisionReport.model_validate_json(report.model_dump_json()) == report


def run_command(home: Home, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", "decide", *words, "--home", str(home.root)], env={"COLUMNS": "200"})
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def test_the_command_writes_a_report_and_a_page(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "medical.yaml"
    file.write_text(json.dumps(DOMAIN))
    with answering_server(answer) as server:
        code, shown = run_command(home, str(file), "--url", server.url, "--no-curve", "--limit", "3", "--examples", "0")
    assert code == 0, shown
    assert "Use base" in shown
    (report,) = (home.evaluations / "medical" / "decide").glob("*.json")
    assert report.with_suffix(".html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("words", "named"), [
    (("nothing-there",), "config/domains/nothing-there.yaml does not exist"),
    (("../etc",), "cannot name a domain"),
    (("medical", "--url", "http://127.0.0.1:9/v1", "--no-curve"), "Start a server (`lorikeet serve"),
    (("legal", "--no-curve"), "lorikeet data build config/domains/legal.yaml"),
])  # fmt: skip
def test_what_cannot_be_decided_is_one_line(home: Home, words: tuple[str, ...], named: str) -> None:
    code, shown = run_command(home, *words)
    assert code == 1
    assert named in shown
