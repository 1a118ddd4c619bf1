"""The command line: joins the packages' own sub-commands, and does nothing else."""

import typer

from adapters import cli as adapters_cli
from serve import cli as serve_cli

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_show_locals=False)
app.add_typer(adapters_cli.app, name="adapters")
app.command()(serve_cli.serve)
