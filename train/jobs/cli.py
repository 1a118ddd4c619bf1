"""`lorikeet worker` and `lorikeet jobs`: run fine-tuning jobs, and inspect and control those of all tenants."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from adapters.cli import DEFAULT_HOME, HomeOption
from adapters.jobs.database import JobsDatabase
from adapters.jobs.errors import JobsError
from adapters.jobs.queue import JobQueue
from adapters.jobs.records import Job, JobEvent
from config.home import Home
from config.load import load_serve
from config.progress import Progress, shown
from config.signals import exit_code_of, interrupted_by_sigterm
from config.terminal import print_error, printable
from train.jobs.tables import job_table, jobs_table, line_of
from train.shell import console, shell

jobs_app = typer.Typer(
    no_args_is_help=True, help="Fine-tuning jobs of all tenants: list, show, cancel, pause, resume, logs."
)

JobArgument = Annotated[str, typer.Argument(help="Job id, e.g. `ftjob-…`.")]
API_KEY_ENV = "LORIKEET_API_KEY"
_FOLLOW_EVERY_S = 0.5
_PAGE = 100


def worker(
    config: Annotated[
        Path,
        typer.Option("--config", help="The server's configuration (YAML); its `jobs` section configures the worker."),
    ] = Path("config", "serve.yaml"),
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Run fine-tuning jobs, one at a time; several workers on one machine share the queue.

    Ctrl-C or SIGTERM stops the running job at a checkpoint; this or another worker continues it later.
    """
    with shell():
        from train.jobs.worker import Worker

        settings = load_serve(config)
        host = settings.host if settings.host not in ("0.0.0.0", "::") else "127.0.0.1"
        url = settings.jobs.grader_url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/v1"
        key_env = API_KEY_ENV if os.environ.get(API_KEY_ENV) else None
        with _errors_in_one_line(), JobsDatabase(_database_path(home, is_made=True)) as database:
            running = Worker(Home(home), database, settings.jobs, url, key_env)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, running.stop)
            running.run()


@jobs_app.command("list")
def list_jobs(
    status: Annotated[
        list[str] | None, typer.Option(help="Only jobs with this status, e.g. `running`; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of jobs, newest first.")] = 50,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """List jobs with their status, progress and results."""
    with _queue(home) as queue:
        jobs = queue.list(None, limit=limit, statuses=tuple(status or ())).items  # type: ignore[arg-type]
        if not jobs:
            console.print("No job found.")
            return
        console.print(jobs_table([(job, last_metrics(queue, job)) for job in jobs], time.time()))


@jobs_app.command()
def show(
    job_id: JobArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the job and its checkpoints as JSON.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Show a job's settings, progress, checkpoints and result."""
    with _queue(home) as queue:
        job, checkpoints = queue.get(None, job_id), queue.checkpoints(None, job_id, limit=_PAGE).items
        if as_json:
            record = job.model_dump(mode="json") | {"checkpoints": [one.model_dump(mode="json") for one in checkpoints]}
            console.print_json(json.dumps(record))
            return
        console.print(job_table(job, last_metrics(queue, job), checkpoints, time.time()))


@jobs_app.command()
def cancel(job_id: JobArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Cancel a job; its published checkpoints stay."""
    _ask(home, job_id, "cancel", "cancelled")


@jobs_app.command()
def pause(job_id: JobArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Pause a job at a checkpoint."""
    _ask(home, job_id, "pause", "paused")


@jobs_app.command()
def resume(job_id: JobArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Continue a paused job from its checkpoint."""
    _ask(home, job_id, "resume", "queued")


@jobs_app.command()
def logs(
    job_id: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for further events until the job ends.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print a job's events."""
    with _queue(home) as queue:
        try:
            with interrupted_by_sigterm():
                _print_events(queue, job_id, is_followed=follow)
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(exit_code_of(interrupt)) from None
        if follow and queue.get(None, job_id).status == "failed":
            raise typer.Exit(1)


def last_metrics(queue: JobQueue, job: Job) -> JobEvent | None:
    """The last event with a training step; None if there is none yet."""
    if job.started_at is None:
        return None
    events = queue.events(None, job.id, limit=20).items
    return next((event for event in events if event.type == "metrics"), None)


def _print_events(queue: JobQueue, job_id: str, *, is_followed: bool) -> None:
    progress, number = Progress(f"train {queue.get(None, job_id).adapter}", unit="steps"), 0
    is_bar = is_followed and console.is_terminal
    with shown(progress, console) if is_bar else nullcontext():
        while True:
            has_ended = queue.get(None, job_id).has_ended  # read first: its last events are there by then
            events = queue.events_since(None, job_id, number, limit=_PAGE)
            for event in events:
                number = event.number
                console.print(printable(line_of(event)), soft_wrap=True)
                _advance(progress, event)
            if len(events) == _PAGE:
                continue
            if has_ended or not is_followed:
                return
            time.sleep(_FOLLOW_EVERY_S)


def _advance(progress: Progress, event: JobEvent) -> None:
    data = event.data or {}
    if event.type != "metrics" or "total_steps" not in data:
        return
    if progress.total is None:
        progress.begin(data["total_steps"], data["step"])
    progress.done = data["step"]
    if data.get("train_loss") is not None:
        progress.details["loss"] = f"{data['train_loss']:.3f}"


def _ask(home: Path, job_id: str, action: Literal["cancel", "pause", "resume"], wanted: str) -> None:
    with _queue(home) as queue:
        job = queue.ask(None, job_id, action)
        is_done = job.status == wanted
        state = f"is {wanted}" if is_done else f"is {job.status}, and will be {wanted} at its worker's next heartbeat"
        console.print(f"{job.id} {state}.", soft_wrap=True, highlight=False)


@contextmanager
def _queue(home: Path) -> Iterator[JobQueue]:
    with shell(), _errors_in_one_line(), JobsDatabase(_database_path(home, is_made=False)) as database:
        yield JobQueue(database)


def _database_path(home: Path, *, is_made: bool) -> Path:
    path = Home(home).jobs / "jobs.sqlite3"
    if not is_made and not path.is_file():
        raise JobsError(
            f"{str(path)!r} does not exist: no server has stored jobs here. Set `--home` to the server's state folder."
        )
    return path


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except JobsError as error:
        print_error(error)
        raise typer.Exit(1) from None
