"""Evaluation without a server: what the answering process is asked, and what is kept of it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.bases import read_base
from adapters.errors import BaseNotFoundError
from adapters.store.manifest import BaseLineage, RequestDefaults
from adapters.store.store import AdapterStore
from config.dataset import DatasetRow, Message, read_dataset, read_split
from config.home import Home
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.asking import Answers
from loadtest.evaluation.offline import ask_offline, find_sources
from lorikeet import app
from tests.datasets_on_disk import write_dataset
from tests.peft_folders import draft_for, write_base_folder, write_peft_folder

STAND_IN = """
import json, sys
job = json.load(sys.stdin)
open(sys.argv[1], "a").write(json.dumps(job) + "\\n")
print("a library's own line")
left = int(sys.argv[2])
for model in job["models"]:
    for question in model["questions"]:
        if left == 0:
            sys.exit("error: the machine is on fire")
        left -= 1
        text = f"{model['name']}: {question['messages'][-1]['content']}"
        fields = {"id": question["id"], "num_prompt_tokens": 9, "num_answer_tokens": 3}
        print(json.dumps({"model": model["name"], "text": text} | fields), flush=True)
"""
DEFAULTS = RequestDefaults(system="As at publication.", temperature=0.5, max_tokens=7, stop=("!",))


class Machine:
    """A state folder with a version, its base and a data set, and a process that answers in transformers' place."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        base = write_base_folder(self.home.bases / "tiny")
        manifest = json.loads((base / "manifest.json").read_text())
        ref = {"name": "tiny", "digest": manifest["digest"], "quantization": "none"}
        draft = draft_for(write_peft_folder(root / "peft"), base=ref, defaults=DEFAULTS)
        self.store = AdapterStore(self.home.adapters)
        self.store.publish(root / "peft", draft, base_folder=base)
        self.store.promote("medical", 1)
        self.dataset = write_dataset(self.home.datasets / "medical", num_test=4)
        self.stand_in, self.log = root / "stand_in.py", root / "jobs.jsonl"
        self.stand_in.write_text(STAND_IN)
        self.total_and_saved: tuple[int, int] = (0, 0)

    def ask(
        self, *models: str, rows: list[DatasetRow] | None = None, num_answers: int = 99, **more: Any
    ) -> list[Answers]:
        def on_start(total: int, saved: int) -> None:
            self.total_and_saved = (total, saved)

        rows = read_split(self.dataset, "test") if rows is None else rows
        command = [sys.executable, str(self.stand_in), str(self.log), str(num_answers)]
        sources = find_sources(self.home, models)
        folder = self.dataset / "saved"
        return ask_offline(
            read_dataset(self.dataset), rows, sources, folder, command=command, on_start=on_start, **more
        )

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def first_asked(self, place: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.jobs[-1]["models"][place]
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.slow
def test_a_version_answers_with_its_own_defaults(machine: Machine) -> None:
    machine.ask("medical")
    asked = machine.first_asked()
    dataset = asked["dataset"]
    assert asked["questions"][0]["messages"][0]["content"] == "As at publication."
    assert (dataset["evaluation"]["max_new_tokens"], dataset["evaluation"]["stop"]) == (7, ["!"])
    assert dataset["defaults"]["temperature"] == 0.5


@pytest.mark.slow
def test_the_base_answers_with_the_data_sets_settings(machine: Machine) -> None:
    machine.ask("base", "medical@1")
    asked = machine.first_asked()
    assert (asked["name"], asked["adapter_folder"]) == ("tiny", None)
    assert asked["questions"][0]["messages"][0]["content"] == "Chapter, as JSON."
    assert asked["dataset"]["evaluation"]["max_new_tokens"] == 24


@pytest.mark.slow
def test_a_rows_own_system_prompt_stays(machine: Machine) -> None:
    rows = read_split(machine.dataset, "test")[:1]
    own = (Message(role="system", content="My own."), *rows[0].messages[1:])
    machine.ask("medical", rows=[rows[0].model_copy(update={"messages": own})])
    assert [turn["content"] for turn in machine.first_asked()["questions"][0]["messages"]] == ["My own.", "term 0"]


@pytest.mark.slow
def test_few_shot_examples_stand_before_the_question(machine: Machine) -> None:
    machine.ask("medical", few_shot=True)
    turns = machine.first_asked()["questions"][0]["messages"]
    assert [turn["content"] for turn in turns][1::2] == ["example 0", "example 1", "term 0"]


@pytest.mark.slow
def test_models_of_one_base_share_one_process(machine: Machine) -> None:
    found = machine.ask("base", "medical@1", "medical")
    assert [answers.served_by for answers in found] == ["tiny offline", "medical@1 offline"]
    assert found[1].answers[2].text == "medical@1: term 2"
    assert len(machine.jobs) == 1


@pytest.mark.slow
def test_saved_answers_start_no_process(machine: Machine) -> None:
    first = machine.ask("base", "medical")
    assert machine.ask("base", "medical") == first
    assert len(machine.jobs) == 1
    assert machine.total_and_saved == (8, 8)


def test_a_killed_run_goes_on_with_what_is_missing(machine: Machine) -> None:
    with pytest.raises(EvaluationError, match="the machine is on fire"):
        machine.ask("base", "medical", num_answers=5)
    machine.ask("base", "medical")
    assert machine.total_and_saved == (8, 5)
    assert [(model["name"], len(model["questions"])) for model in machine.jobs[-1]["models"]] == [("medical@1", 3)]


@pytest.mark.slow
def test_offline_answers_have_files_of_their_own(machine: Machine) -> None:
    machine.ask("base", "medical")
    names = sorted(path.name for path in (machine.dataset / "saved").iterdir())
    assert [name.partition("offline")[0] for name in names] == ["medical@1_", "tiny_"]
    assert "medical@1 offline" in (machine.dataset / "saved" / names[0]).read_text().splitlines()[0]


def test_questions_with_tools_are_refused(machine: Machine) -> None:
    rows = [row.model_copy(update={"tools": ({"type": "function"},)}) for row in read_split(machine.dataset, "test")]
    with pytest.raises(EvaluationError, match=r"4 of 4 questions of 'medical' have tools.*leave out `--offline`"):
        machine.ask("medical", rows=rows)


@pytest.mark.parametrize(("model", "named"), [("legal", "There is no 'legal'"), ("Medical!", "not a model reference")])
def test_a_model_that_is_not_here_is_one_line(machine: Machine, model: str, named: str) -> None:
    result = CliRunner().invoke(
        app, ["eval", "run", model, "--domain", "medical", "--offline", "--home", str(machine.home.root)]
    )
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert named in result.output
    assert "Prepared bases: tiny" in result.output


def test_a_base_that_is_not_prepared_is_named(machine: Machine) -> None:
    (machine.home.bases / "tiny" / "manifest.json").unlink()
    with pytest.raises(BaseNotFoundError, match=r"'medical@1' was trained on the base 'tiny' .*lorikeet base prepare"):
        machine.ask("medical")


def test_two_bases_must_be_named(machine: Machine) -> None:
    write_base_folder(machine.home.bases / "other", modules=("model.layers.0.self_attn.q_proj",))
    with pytest.raises(EvaluationError, match=r"got other, tiny\. Give its name"):
        machine.ask("base")
    assert machine.ask("other")[0].served_by == "other offline"


@pytest.mark.slow
def test_a_trained_base_is_compared_with_its_parent(machine: Machine) -> None:
    parent = read_base(machine.home.bases / "tiny")
    own = write_base_folder(machine.home.bases / "medical-full-1", modules=("model.layers.0.self_attn.q_proj",))
    lineage = BaseLineage(parent=parent.ref, made_by="full")
    manifest = read_base(own).model_copy(update={"lineage": lineage})
    (own / "manifest.json").write_text(manifest.model_dump_json())
    found = machine.ask("base", "medical-full-1")
    assert [answers.served_by for answers in found] == ["tiny offline", "medical-full-1 offline"]
    assert [Path(job["base_folder"]).name for job in machine.jobs] == ["tiny", "medical-full-1"]
