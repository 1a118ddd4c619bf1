"""The output folder of an export: refused if it exists, and complete or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.store.durable import disk_errors
from train.errors import ExportError
from train.folders import staged_folder


@contextmanager
def output_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends without an error.

    Raises:
        ExportError: The folder exists and `force` is off, it is not a folder, or it cannot be written.
        StoreDiskError: The disk is full; nothing is left behind.
    """
    check_output(folder, force=force)
    try:
        with disk_errors(folder.parent), staged_folder(folder.absolute()) as staging:
            yield staging
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise ExportError(f"Cannot write {str(folder)!r}: {error.strerror}. Choose another `--output`.") from error


def check_output(folder: Path, *, force: bool) -> None:
    """Refuse an output folder that would overwrite something.

    Raises:
        ExportError: As in `output_folder`.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{str(folder)!r} is not a folder. Choose another `--output`.")
    if folder.exists() and not force:
        raise ExportError(f"{str(folder)!r} exists. Choose another `--output`, or replace it with `--force`.")
