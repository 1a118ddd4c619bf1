"""SQLite files of ours: told from other programs' files, upgraded to the current schema, written in transactions."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SqliteFormat:
    """What a kind of file holds.

    Attributes:
        application_id: Tells the files from other programs' SQLite files.
        migrations: Number n upgrades a file from schema version n to n + 1. Append only: released ones never change.
        error: Makes the error of a file that cannot be used, from its message.
        way_out: What to do with a file that another program wrote.
    """

    application_id: int
    migrations: tuple[str, ...]
    error: Callable[[str], Exception]
    way_out: str

    @property
    def version(self) -> int:
        """Of the current schema."""
        return len(self.migrations)

    def check(self, connection: sqlite3.Connection, path: Path) -> None:
        """Check a file before changing it; raises `error` if another program or a newer Lorikeet wrote it."""
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return
        if _pragma(connection, "application_id") != self.application_id:
            raise self.error(f"{str(path)!r} is another program's SQLite file. {self.way_out}")
        version = _pragma(connection, "user_version")
        if version > self.version:
            raise self.error(
                f"{str(path)!r} has schema version {version}, written by a newer Lorikeet; this one reads up to "
                f"{self.version}. Update Lorikeet, or move the file away to start with an empty one."
            )

    def migrate(self, connection: sqlite3.Connection, path: Path) -> None:
        """Create or upgrade the tables, in one transaction."""
        if _pragma(connection, "user_version") == self.version:
            return
        with transaction(connection):
            self.check(connection, path)  # another process may have been first
            for version in range(_pragma(connection, "user_version"), self.version):
                for statement in self.migrations[version].split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {self.application_id}")
            connection.execute(f"PRAGMA user_version = {self.version}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction that writes; within another one, a part of it."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
