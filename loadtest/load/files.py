"""Files of load tests: atomic writes, and reading of runs."""

from pathlib import Path

from pydantic import ValidationError

from loadtest.errors import RunFileError
from loadtest.load.records import RunResult

RUN_FILE = "run.json"


def replace_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_run(result: RunResult, folder: Path) -> Path:
    """Write `run.json`: all measurements, from which every report can be regenerated."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN_FILE
    replace_text(path, result.model_dump_json() + "\n")
    return path


def read_run(path: Path) -> RunResult:
    """Read a `run.json`, given the file or its folder.

    Raises:
        RunFileError: It is missing or invalid.
    """
    file = path / RUN_FILE if path.is_dir() else path
    try:
        return RunResult.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RunFileError(f"{str(file)!r}: {error.strerror}. Give the folder of a `lorikeet loadtest run`.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunFileError(
            f"{str(file)!r} is not a valid run: {key}: {first['msg']}. Run the load test again."
        ) from error
