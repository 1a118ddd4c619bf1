"""The command line: joins the packages' own sub-commands, and does nothing else."""

import typer

app = typer.Typer(no_args_is_help=True, help=__doc__)
