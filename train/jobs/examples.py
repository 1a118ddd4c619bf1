"""Read a job's files with the data package, to find errors before the job is queued."""

from dataclasses import dataclass
from pathlib import Path

from adapters.jobs.records import Job
from config.data import DataConfig, Layout
from train.data.examples import Example
from train.data.reading import read_files
from train.errors import DataError
from train.jobs.errors import InvalidJobError

MIN_ROWS = 10
"""Of a training file, as OpenAI has it."""


@dataclass(frozen=True)
class JobFiles:
    """A job's files, under names by which their format is known."""

    training: Path
    validation: Path | None = None


def read_examples(job: Job, files: JobFiles) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Rows of the training and of the validation file.

    Raises:
        InvalidJobError: A file cannot be trained on; the message lists its lines.
    """
    layout = layout_of(job)
    training = _read(files.training, layout, "training_file")
    if len(training) < MIN_ROWS:
        raise InvalidJobError(
            f"The training file has {len(training)} examples, but must have at least {MIN_ROWS}. Add examples.",
            "invalid_n_examples",
            "training_file",
        )
    return training, _read(files.validation, layout, "validation_file") if files.validation else ()


def layout_of(job: Job) -> Layout:
    """A reinforcement file looks like conversations without answers, so it must be named."""
    return "openai_reinforcement" if job.method["type"] == "reinforcement" else "auto"


def _read(path: Path, layout: Layout, param: str) -> tuple[Example, ...]:
    try:
        read = read_files([str(path)], DataConfig(source="files", path=str(path), layout=layout))
    except DataError as error:
        raise InvalidJobError(str(error), f"invalid_{param}", param) from error
    if read.skipped:
        first = read.skipped[0]
        raise InvalidJobError(
            f"Line {first.origin.line} of the {param.replace('_', ' ')} has no answer of the assistant at its end, so "
            "there is nothing to learn. End its `messages` with an assistant turn.",
            f"invalid_{param}",
            param,
        )
    return read.examples
