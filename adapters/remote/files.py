"""File access of a remote store, the only user of fsspec: retries, and maps every failure to one error type."""

import errno
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from adapters.errors import AdapterError, IntegrityError, RemoteStoreError
from adapters.store.durable import disk_errors

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "adl": "adlfs",
    "hf": "huggingface_hub",
    "oss": "ossfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "webdav": "webdav4",
}
# What tells one content of a file from another, as far as each kind of storage says it.
_STAMP_KEYS = (
    "size",
    "ETag",
    "etag",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
    "updated",
    "generation",
    "md5Hash",
    "blob_id",
)
_NUM_ATTEMPTS = 4
_WILL_COME_AGAIN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class RemoteFiles:
    """Files below a URL, by relative path. Thread-safe."""

    def __init__(
        self, url: str, *, storage_options: Mapping[str, Any], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = re.sub(r"//[^/@]*@", "//", url)  # as it may be shown: without credentials
        self._sleep = sleep
        self._fs, root = _open(url, self.url, storage_options)
        self._root = root.rstrip("/")

    def names(self) -> list[str]:
        """Names of the direct children of the URL, sorted.

        Raises:
            RemoteStoreError: The remote is unreachable, or nothing exists at the URL.
        """
        try:
            entries = self._call("list the adapters", lambda: self._fs.ls(self._root, detail=False))
        except FileNotFoundError as error:
            raise RemoteStoreError(
                f"Nothing exists at {self.url!r}. Check the URL, or push a version there first."
            ) from error
        return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in entries)

    def stamp(self, path: str) -> str | None:
        """A token that changes with the file's content; None if the file does not exist.

        Raises:
            RemoteStoreError: The remote is unreachable.
        """
        try:
            info = self._call(f"look at {path!r}", lambda: self._fs.info(self._full(path)))
        except FileNotFoundError:
            return None
        return repr([(key, str(info[key])) for key in _STAMP_KEYS if info.get(key) is not None])

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """A small file's bytes; None if it does not exist.

        Raises:
            IntegrityError: It is larger than `max_bytes`.
            RemoteStoreError: The remote is unreachable.
        """

        def read_once() -> bytes:
            size_bytes = self._fs.info(self._full(path))["size"] or 0
            if size_bytes > max_bytes:
                raise IntegrityError(f"{path!r} at {self.url!r} has {size_bytes} bytes; the limit is {max_bytes}.")
            return bytes(self._fs.cat_file(self._full(path)))

        try:
            return self._call(f"read {path!r}", read_once)
        except FileNotFoundError:
            return None

    def download(self, path: str, local: Path, *, size_bytes: int, check: Callable[[], None]) -> None:
        """Copy a remote file to a local one.

        Args:
            size_bytes: The size that the remote must report before the transfer starts.
            check: Raises IntegrityError on wrong bytes, which are then fetched again.

        Raises:
            IntegrityError: The size is wrong, or `check` failed at every attempt.
            StoreDiskError: The local disk is full.
            RemoteStoreError: The remote is unreachable, or lacks the file.
        """

        def download_once() -> None:
            found = self._fs.info(self._full(path))["size"]
            if found != size_bytes:
                raise IntegrityError(
                    f"{path!r} at {self.url!r} has {found} bytes, its manifest says {size_bytes}. Push it again."
                )
            with disk_errors(local.parent):
                self._fs.get_file(self._full(path), str(local))
            check()

        try:
            self._call(f"fetch {path!r}", download_once)
        except FileNotFoundError as error:
            raise RemoteStoreError(f"{path!r} is missing at {self.url!r}. Push that version again.") from error

    def upload(self, local: Path, path: str) -> None:
        """Upload a local file, replacing an existing one.

        Raises:
            RemoteStoreError: The remote is unreachable, or rejects the write.
        """

        def upload_once() -> None:
            self._fs.put_file(str(local), self._full(path))
            self._fs.invalidate_cache()
            found, wanted = self._fs.info(self._full(path))["size"], local.stat().st_size
            if found != wanted:
                raise ConnectionError(f"{found} of {wanted} bytes arrived")

        self._write(path, upload_once)

    def write(self, path: str, content: bytes) -> None:
        """Write a small remote file, replacing an existing one.

        Raises:
            RemoteStoreError: The remote is unreachable, or rejects the write.
        """
        self._write(path, lambda: self._fs.pipe_file(self._full(path), content))

    def _write(self, path: str, work: Callable[[], None]) -> None:
        try:
            self._call(f"write {path!r}", work)
        except FileNotFoundError as error:
            raise RemoteStoreError(
                f"Could not write {path!r} to {self.url!r}: {error}. Check that the bucket or repository exists."
            ) from error

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _call(self, what: str, work: Callable[[], Result]) -> Result:
        """Run remote work with retries; FileNotFoundError and our own errors pass unchanged."""

        def fresh() -> Result:
            self._fs.invalidate_cache()  # s3fs remembers listings, and with them the sizes of yesterday
            return work()

        def log(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            logger.info("%s: %s failed (%s); retrying in %.2f s", self.url, what, error, state.upcoming_sleep)

        retrying = Retrying(
            sleep=self._sleep,
            stop=stop_after_attempt(_NUM_ATTEMPTS),
            wait=wait_exponential(multiplier=0.25) + wait_random(0, 0.25),
            retry=retry_if_exception(_is_worth_a_retry),
            before_sleep=log,
            reraise=True,
        )
        try:
            return retrying(fresh)
        except (AdapterError, FileNotFoundError):
            raise
        except PermissionError as error:
            raise RemoteStoreError(
                f"Could not {what} at {self.url!r}: permission denied ({error}). Check this process's credentials."
            ) from error
        except Exception as error:  # a border: each kind of storage has its own errors
            raise RemoteStoreError(
                f"Could not {what} at {self.url!r}: {type(error).__name__}: {error}. "
                "Locally cached versions can still be used; try again when the remote is reachable."
            ) from error


def _open(url: str, shown: str, storage_options: Mapping[str, Any]) -> tuple[Any, str]:
    scheme = url.partition("://")[0] if "://" in url else "file"
    options = ({"auto_mkdir": True} if scheme in ("file", "local") else {}) | dict(storage_options)
    try:
        fs, root = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        hint = f"Install it: `pip install {package}`." if package else f"{error}."
        raise RemoteStoreError(f"{shown!r}: {scheme}:// needs a package that is not installed. {hint}") from error
    except ValueError as error:
        raise RemoteStoreError(
            f"{shown!r} cannot be used: {error}. Give a URL like s3://bucket/adapters, gs://…, hf://… or file:///…."
        ) from error
    return fs, str(root)


def _is_worth_a_retry(error: BaseException) -> bool:
    """Whether a retry may help. Bytes that do not match their manifest may be a truncated transfer."""
    if isinstance(error, IntegrityError):
        return True
    if isinstance(error, AdapterError | FileNotFoundError | PermissionError) or not isinstance(error, Exception):
        return False
    return not (isinstance(error, OSError) and error.errno in _WILL_COME_AGAIN)
