"""Result files of a job: its losses by step, as OpenAI's CSV, and the model card of its version."""

import csv
import io

from adapters.jobs.files import FileStore
from adapters.jobs.records import Job
from adapters.reference import Target
from adapters.store.manifest import Manifest
from adapters.store.store import AdapterStore

_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def write_results(files: FileStore, store: AdapterStore, job: Job, manifest: Manifest) -> tuple[str, ...]:
    """Ids of the files, including those that a crashed worker has written."""
    card = store.folder(Target(manifest.name, manifest.version)) / "README.md"
    contents = {
        f"{job.id}-step_metrics.csv": metrics_csv(manifest).encode(),
        f"{job.id}-report.md": card.read_bytes() if card.is_file() else b"",
    }
    page = files.list(job.owner, purpose="fine-tune-results")
    written = {file.filename: file.id for file in page.items}
    return tuple(
        written.get(name) or _write(files, job, name, content) for name, content in contents.items() if content
    )


def metrics_csv(manifest: Manifest) -> str:
    """Losses by step; of long runs, means of equal spans. Accuracies are not measured in training."""
    losses = manifest.training.losses if manifest.training is not None else None
    train = dict(losses.train) if losses is not None else {}
    held_out = dict(losses.held_out) if losses is not None else {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for step in sorted(train.keys() | held_out.keys()):
        writer.writerow((step, train.get(step, ""), "", held_out.get(step, ""), ""))
    return text.getvalue()


def _write(files: FileStore, job: Job, name: str, content: bytes) -> str:
    with files.begin(job.owner, "fine-tune-results", name, is_limited=False) as incoming:
        incoming.write(content)
        return incoming.finish().id
