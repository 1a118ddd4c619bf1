"""Jobs, files and a tiny base in a state folder, as a server leaves them for a worker."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.jobs.database import JobsDatabase
from adapters.jobs.files import FileStore
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Job, JobEvent, new_id
from config.home import Home

COLOURS = ("red", "green", "blue")
NUM_ROWS = 60
SUPERVISED: dict[str, Any] = {"type": "supervised", "supervised": {"hyperparameters": {}}}
TINY_RECIPE: dict[str, Any] = {
    "chat": {"system": "Colour?"},
    "method": {"name": "lora", "r": 4, "lora_alpha": 8},
    "recipe": {
        "max_steps": 4,
        "eval_steps": 2,
        "per_device_train_batch_size": 4,
        "early_stopping_patience": 9,
        "max_length": 128,
    },
    "evaluation": {
        "max_new_tokens": 4,
        "num_few_shot": 2,
        "forgetting": {"texts": ["prose"], "tasks": [], "num_questions": 2},
        "overfitting": {"num_rows": 0},
    },
    "gates": {"min_gain": -1e6, "min_valid_format": 0.0, "max_forgetting": 1e6},
}
"""Of a client that wants a training of a second; every version passes its gates."""


def chat_lines(num_rows: int = NUM_ROWS, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"item {number} is {COLOURS[number % 3]}"},
                {"role": "assistant", "content": COLOURS[number % 3]},
            ]
        }
        for number in range(first, first + num_rows)
    ]


def preference_lines(num_rows: int = NUM_ROWS) -> list[dict[str, Any]]:
    return [
        {
            "input": {"messages": line["messages"][:1]},
            "preferred_output": line["messages"][1:],
            "non_preferred_output": [{"role": "assistant", "content": "I do not know."}],
        }
        for line in chat_lines(num_rows)
    ]


def reinforcement_lines(num_rows: int = NUM_ROWS) -> list[dict[str, Any]]:
    lines = chat_lines(num_rows)
    return [{"messages": one["messages"][:1], "reference_answer": one["messages"][1]["content"]} for one in lines]


@dataclass
class JobsOnDisk:
    """A state folder with a jobs database."""

    home: Home

    def __post_init__(self) -> None:
        self.database = JobsDatabase(self.home.jobs / "jobs.sqlite3")
        self.queue = JobQueue(self.database)
        self.files = FileStore(self.database, self.home.jobs)

    def upload(self, lines: Sequence[dict[str, Any]], owner: str = "acme") -> str:
        with self.files.begin(owner, "fine-tune", "rows.jsonl") as incoming:
            incoming.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
            return incoming.finish().id

    def job(self, lines: Sequence[dict[str, Any]] | None = None, **fields: Any) -> Job:
        """A job that nobody has submitted."""
        values: dict[str, Any] = {
            "id": new_id("ftjob-"),
            "owner": "acme",
            "model": "tiny",
            "base": "tiny",
            "adapter": "colours",
            "training_file": self.upload(chat_lines() if lines is None else lines, fields.get("owner", "acme")),
            "suffix": "colours",
            "seed": 7,
            "method": SUPERVISED,
            "lorikeet": {"domain": TINY_RECIPE},
            "status": "queued",
            "created_at": int(time.time()),
        }
        return Job.model_validate(values | fields)

    def submit(self, lines: Sequence[dict[str, Any]] | None = None, **fields: Any) -> Job:
        return self.queue.submit(self.job(lines, **fields))

    def read(self, file_id: str) -> str:
        with self.files.open(None, file_id) as content:
            return content.read().decode()

    def events(self, job: Job) -> list[JobEvent]:
        return list(self.queue.events_since(None, job.id, 0, limit=1000))

    def messages(self, job: Job) -> list[str]:
        return [event.message for event in self.events(job)]

    def steps(self, job: Job) -> list[int]:
        """Steps that were told, in order."""
        return [event.data["step"] for event in self.events(job) if event.type == "metrics" and event.data]


def jobs_on_disk(folder: Path) -> JobsOnDisk:
    return JobsOnDisk(Home(folder / "var"))
