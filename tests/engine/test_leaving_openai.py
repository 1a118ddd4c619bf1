"""docs/leaving-openai.md, block by block, with a Lorikeet as the old provider."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.evaluation.report import EvaluationReport
from tests.live_server import ANSWERS, LiveServer
from tests.tracked_files import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.exhaustive]

PAGE = (ROOT / "docs" / "leaving-openai.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SYSTEM = {"role": "system", "content": "Answer about colours in JSON."}


def write_job_file(path: Path) -> None:
    """What the old model was trained on, as OpenAI's fine-tuning takes it."""
    turns = [
        [SYSTEM, {"role": "user", "content": f"What is number {number} of the colours?"},
         {"role": "assistant", "content": ANSWERS["colours"]}]
        for number in range(100, 220)
    ]  # fmt: skip
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))


@pytest.fixture(scope="module")
def reports(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> list[EvaluationReport]:
    """The page's commands in order: those before the server of the new adapter and those after are the same one's."""
    folder = tmp_path_factory.mktemp("leaver")
    program = folder / "bin" / "lorikeet"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m lorikeet "$@"\n')
    program.chmod(0o755)
    write_job_file(folder / "support.jsonl")
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LORIKEET_HOME": str(live.home.root),
        "OLD_URL": f"{live.url}/v1",
        "OLD_MODEL": "colours@1",
        "OLD_KEY": "none",
        "NEW_URL": f"{live.url}/v1",
    }
    for block in BLOCKS:
        command = ["sh", "-e", "-c", block]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    paths = sorted(
        (live.home.evaluations / "support" / "reports").glob("*.json"), key=lambda path: path.stat().st_mtime
    )
    return [EvaluationReport.model_validate_json(path.read_bytes()) for path in paths]


def test_old_and_new_are_compared_by_the_right_answers(reports: list[EvaluationReport]) -> None:
    compared = next(report for report in reports if len(report.models) == 2)
    assert [model.served_by for model in compared.models] == ["colours@1", "support@1"]


def test_the_new_adapter_is_near_the_old_model(reports: list[EvaluationReport]) -> None:
    (model,) = reports[-1].models
    assert (reports[-1].reference, model.served_by) == ("colours@1", "support@1")
    assert model.metrics[0].whole.value > 0.9
