"""Which content an unfinished job or batch uses: it stays on disk although its file was deleted."""

import sqlite3

from adapters.jobs.files import find_file


def hold(connection: sqlite3.Connection, holder: str, owner: str, file_id: str, now: float, param: str) -> None:
    """Keep a file's content until `release_holds`.

    Raises:
        UnknownIdError: There is no such file of this owner; with `param`.
    """
    file = find_file(connection, owner, file_id, now, param)
    values = (holder, file.id, owner, file.sha256, file.num_bytes)
    connection.execute("INSERT OR IGNORE INTO holds VALUES (?, ?, ?, ?, ?)", values)


def release_holds(connection: sqlite3.Connection, holder: str) -> None:
    """The next sweep removes the content, if nothing else uses it."""
    connection.execute("DELETE FROM holds WHERE holder = ?", (holder,))
