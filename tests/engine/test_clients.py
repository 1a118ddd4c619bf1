"""LiteLLM's client and the command `openai` against the server unchanged: files, fine-tuning jobs and chat.

They have an environment of their own, which `make clients` makes. The server has no worker, so jobs stay unfinished.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.live_server import BASE_NAME, LiveServer
from tests.tracked_files import ROOT

CLIENTS = ROOT / ".tools" / "clients" / "bin"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(not (CLIENTS / "openai").exists(), reason="needs LiteLLM and openai 1.x: `make clients`"),
]

LITELLM_SCRIPT = """
import json, sys
import litellm

url, path = sys.argv[1:]
server = {"custom_llm_provider": "openai", "api_base": url, "api_key": "none"}
file = litellm.create_file(file=open(path, "rb"), purpose="fine-tune", **server)
job = litellm.create_fine_tuning_job(model="smollm2-135m", training_file=file.id, suffix="litellm", **server)
listed = litellm.list_fine_tuning_jobs(limit=5, **server)
found = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job.id, **server)
cancelled = litellm.cancel_fine_tuning_job(fine_tuning_job_id=job.id, **server)
answer = litellm.completion(
    model="openai/smollm2-135m", messages=[{"role": "user", "content": "Hello"}], max_tokens=4,
    api_base=url, api_key="none",
)
deleted = litellm.file_delete(file_id=file.id, **server)
print(json.dumps({
    "job": job.id, "model": job.model, "file": job.training_file == file.id, "listed": [one.id for one in listed],
    "found": found.id, "status": found.status, "cancelled": cancelled.status,
    "tokens": answer.usage.completion_tokens, "deleted": deleted.deleted,
}))
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    turns = [[{"role": "user", "content": f"Tree {n}?"}, {"role": "assistant", "content": "Oak."}] for n in range(12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return path


def run(folder: Path, command: Sequence[str], **environment: str) -> str:
    """The output of a command."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=folder, env=os.environ | environment
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def openai(url: str, folder: Path, *words: str) -> Any:
    """What `openai api …` prints."""
    command = [str(CLIENTS / "openai"), "api", *words]
    printed = run(folder, command, OPENAI_BASE_URL=url, OPENAI_API_KEY="none")  # its `-b` needs a slash at the end
    return json.loads(printed) if printed.startswith("{") and "\n}\n{" not in printed else printed


def litellm(url: str, rows: Path) -> dict[str, Any]:
    """What LiteLLM's client sees of a job from its file to its cancellation."""
    command = [str(CLIENTS / "python"), "-c", LITELLM_SCRIPT, url, str(rows)]
    printed = run(rows.parent, command, LITELLM_LOCAL_MODEL_COST_MAP="True")  # else it asks the network for prices
    return dict(json.loads(printed.strip().rpartition("\n")[2]))


def test_litellm_creates_lists_and_cancels_a_job(live: LiveServer, rows: Path) -> None:
    seen = litellm(f"{live.url}/v1", rows)
    assert seen["job"].startswith("ftjob-")
    assert seen["job"] in seen["listed"]
    assert seen["found"] == seen["job"]
    assert (seen["model"], seen["file"], seen["deleted"]) == (BASE_NAME, True, True)
    assert (seen["status"], seen["cancelled"]) == ("validating_files", "cancelled")
    assert 1 <= seen["tokens"] <= 4


def test_the_command_line_creates_lists_and_cancels_a_job(live: LiveServer, rows: Path) -> None:
    url = f"{live.url}/v1"
    file = openai(url, rows.parent, "files.create", "-f", rows.name, "-p", "fine-tune")
    assert (file["purpose"], file["filename"]) == ("fine-tune", "rows.jsonl")
    assert file["id"] in str(openai(url, rows.parent, "files.list"))
    job = openai(
        url, rows.parent, "fine_tuning.jobs.create",
        "-m", BASE_NAME, "-F", file["id"], "-s", "shell", "-H", '{"n_epochs": 1}',
    )  # fmt: skip
    assert (job["status"], job["user_provided_suffix"]) == ("validating_files", "shell")
    assert openai(url, rows.parent, "fine_tuning.jobs.retrieve", "-i", job["id"])["id"] == job["id"]
    assert job["id"] in str(openai(url, rows.parent, "fine_tuning.jobs.list"))
    events = openai(url, rows.parent, "fine_tuning.jobs.list_events", "-i", job["id"])
    assert "Validating training file" in str(events)
    assert openai(url, rows.parent, "fine_tuning.jobs.cancel", "-i", job["id"])["status"] == "cancelled"


def test_the_command_line_asks_and_lists_models(live: LiveServer, tmp_path: Path) -> None:
    url = f"{live.url}/v1"
    assert "colours@1" in str(openai(url, tmp_path, "models.list"))
    question = ("-g", "user", "What is number 7 of the colours?")
    answer = openai(url, tmp_path, "chat.completions.create", "-m", "colours@1", *question, "-t", "0", "-M", "12")
    assert answer == {"colour": "red"}
