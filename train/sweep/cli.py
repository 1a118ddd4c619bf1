"""`lorikeet sweep`."""

import shlex
from typing import Annotated

import typer

from adapters.cli import DEFAULT_HOME, HomeOption
from config.home import Home
from config.load import load_domain
from config.progress import Progress, shown
from train.options import DomainFile
from train.shell import console, continued_by, shell


def sweep(
    file: DomainFile,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all, with those of earlier calls; default: `sweep.trials`.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds after which no trial begins.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete the trials of earlier calls first.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Search for settings of a domain, judged on its validation split; run again to continue. Publishes nothing."""
    with shell(), continued_by("sweep"):
        config = load_domain(file)
        with shown(Progress(f"{config.name}: load training libraries"), console):
            from train.sweep.run import sweep_domain
            from train.tables import sweep_table

        swept = sweep_domain(file, Home(home), trials=trials, timeout_s=timeout, restart=restart, console=console)
        console.print(sweep_table(swept))
        console.print(f"page: {swept.page}", soft_wrap=True)
        console.print(
            f"wrote {swept.recipe}; next: {shlex.join(['lorikeet', 'train', str(swept.recipe)])}", soft_wrap=True
        )
