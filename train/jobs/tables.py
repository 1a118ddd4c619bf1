"""Jobs as tables for the terminal."""

from collections.abc import Sequence
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from adapters.jobs.records import Checkpoint, Job, JobEvent
from config.progress import span
from config.terminal import printable


def jobs_table(jobs: Sequence[tuple[Job, JobEvent | None]], now: float) -> Table:
    """One row a job; each with its last event of a step."""
    table = Table(
        Column("Job", no_wrap=True),
        "Tenant",
        "Adapter",
        "Base",
        "Method",
        "Status",
        "Progress",
        "Created",
        box=SIMPLE_HEAD,
    )
    for job, metrics in jobs:
        cells = (job.owner, job.adapter, job.base, method_of(job), job.status, progress_of(job, metrics, now))
        table.add_row(job.id, *map(printable, cells), _at(job.created_at))
    return table


def job_table(job: Job, metrics: JobEvent | None, checkpoints: Sequence[Checkpoint], now: float) -> Table:
    """All that is known of a job, without empty fields."""
    hyperparameters = job.method.get(method_of(job), {}).get("hyperparameters") or {}
    rows = {
        "Job": job.id,
        "Status": f"{job.status} ({job.requested} requested)" if job.requested else job.status,
        "Progress": progress_of(job, metrics, now),
        "Error": f"{job.error.code}: {job.error.message}" if job.error else None,
        "Tenant": job.owner,
        "Model": job.model,
        "Adapter": job.adapter,
        "Starts from": job.from_version,
        "Method": method_of(job),
        "Hyperparameters": ", ".join(f"{key} {value}" for key, value in hyperparameters.items()),
        "Training file": job.training_file,
        "Validation file": job.validation_file,
        "Trained tokens": f"{job.trained_tokens:,}" if job.trained_tokens else None,
        "Created": _at(job.created_at),
        "Started": _at(job.started_at),
        "Finished": _at(job.finished_at),
        "Worker": job.worker,
        "Result": f"{job.fine_tuned_model} ({job.version})" if job.fine_tuned_model else None,
        "Result files": ", ".join(job.result_files),
        "Checkpoints": "\n".join(f"step {c.step_number}: {c.fine_tuned_model_checkpoint}" for c in checkpoints),
    }
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        if value:
            table.add_row(name, printable(value))
    return table


def method_of(job: Job) -> str:
    return str(job.method.get("type", "supervised"))


def progress_of(job: Job, metrics: JobEvent | None, now: float) -> str:
    """`step 12 of 60, loss 0.53, 2 min 44 s left`, the version of a finished job, or why it failed."""
    if job.status == "failed":
        return job.error.code if job.error else ""
    if job.version is not None:
        return job.version
    data = (metrics.data if metrics is not None else None) or {}
    parts = [f"step {data['step']} of {data['total_steps']}"] if "total_steps" in data else []
    if data.get("train_loss") is not None:
        parts.append(f"loss {data['train_loss']:.2f}")
    if job.status == "running" and job.estimated_finish is not None:
        parts.append(f"{span(max(job.estimated_finish - now, 0))} left")
    return ", ".join(parts)


def line_of(event: JobEvent) -> str:
    """`16:02:11 Step 12/60: training loss=0.53`."""
    level = "" if event.level == "info" else f"{event.level}: "
    return f"{datetime.fromtimestamp(event.created_at):%Y-%m-%d %H:%M:%S} {level}{event.message}"


def _at(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
