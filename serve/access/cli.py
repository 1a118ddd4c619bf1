"""`lorikeet keys`: create, list and revoke API keys, also while the server runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from config.errors import ConfigError
from config.home import Home
from config.load import validate
from config.terminal import make_console, print_error
from serve.access.keys import KeyGrant, KeyRecord, create_key, list_keys, revoke_key

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys of the server.")

FileOption = Annotated[Path | None, typer.Option("--file", help="Key file; default: `keys.json` in the state folder.")]
HomeOption = Annotated[Path, typer.Option("--home", envvar="LORIKEET_HOME", help="State folder.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Default: no limit.")]

DEFAULT_HOME = Path("var")


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Owner of the key; a tenant may have several keys.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter name, base name or glob pattern to allow; may be repeated.")
    ] = None,
    requests_per_minute: LimitOption = None,
    tokens_per_minute: LimitOption = None,
    max_concurrency: LimitOption = None,
    priority: Annotated[int, typer.Option(help="Scheduling priority, lower first (as in vLLM).")] = 0,
    admin: Annotated[bool, typer.Option("--admin", help="Grant access to the administration routes.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Allow files, fine-tuning jobs and batches.")] = False,
    file: FileOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Create a key and print its token once; only its hash is stored."""
    values = {
        "tenant": tenant,
        "adapters": tuple(adapter or ["*"]),
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrency": max_concurrency,
        "priority": priority,
        "is_admin": admin,
        "may_train": train,
    }
    with _errors_in_one_line():
        grant = validate(values, KeyGrant, "lorikeet keys create")
        created = create_key(_key_file(file, home), grant, now=datetime.now(UTC))
    # The token alone goes to stdout, so that a script can take it.
    typer.echo(created.token)
    _note(f"Created key {created.record.id} of {tenant!r}. Save the token now: it is not shown again.")


@app.command("list")
def list_(file: FileOption = None, home: HomeOption = DEFAULT_HOME) -> None:
    """List all keys with their limits, including revoked ones."""
    with _errors_in_one_line():
        records = list_keys(_key_file(file, home))
    if not records:
        make_console().print("No keys exist. Create one with `lorikeet keys create TENANT`.")
        return
    make_console().print(_keys_table(records))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as listed by `keys list`.")],
    file: FileOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Revoke a key permanently; a running server applies this within a second."""
    with _errors_in_one_line():
        record = revoke_key(_key_file(file, home), key_id, now=datetime.now(UTC))
    make_console().print(f"Key {record.id} of {record.tenant!r} was revoked at {record.revoked_at}.", highlight=False)


def _key_file(file: Path | None, home: Path) -> Path:
    return file or Home(home).keys


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (ConfigError, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None


def _note(text: str) -> None:
    make_console(stderr=True).print(text, soft_wrap=True, highlight=False)


def _keys_table(records: tuple[KeyRecord, ...]) -> Table:
    """What a key allows is below one another, so that it can be read in 80 columns."""
    names = (Column(name, overflow="fold") for name in ("tenant", "adapters"))
    rest = (Column(name, no_wrap=True) for name in ("terms", "created", "revoked"))
    table = Table(Column("id", no_wrap=True), *names, *rest, box=SIMPLE_HEAD)
    for record in records:
        table.add_row(
            record.id,
            record.tenant,
            "\n".join(record.adapters),
            "\n".join(_terms(record)),
            record.created_at[:10],
            (record.revoked_at or "")[:10],
        )
    return table


def _terms(record: KeyRecord) -> Iterator[str]:
    """`600 req/min`, `8 at once`: all that differs from a key without limits."""
    if record.requests_per_minute is not None:
        yield f"{record.requests_per_minute} req/min"
    if record.tokens_per_minute is not None:
        yield f"{record.tokens_per_minute} tok/min"
    if record.max_concurrency is not None:
        yield f"{record.max_concurrency} concurrent"
    if record.priority != 0:
        yield f"priority {record.priority}"
    if record.is_admin:
        yield "admin"
    if record.may_train:
        yield "train"
