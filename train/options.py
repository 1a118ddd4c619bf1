"""Arguments that several commands of training share."""

from pathlib import Path
from typing import Annotated

import typer


def _named_domain(file: Path) -> Path:
    """`medical` means config/domains/medical.yaml, unless a file has that name."""
    named = Path("config", "domains", f"{file}.yaml")
    return named if not file.exists() and named.is_file() else file


DomainFile = Annotated[
    Path,
    typer.Argument(help="Domain configuration (YAML), or its name in config/domains.", callback=_named_domain),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Rebuild even if it exists.")]
DomainFiles = Annotated[
    list[Path],
    typer.Argument(
        help="Domain configuration (YAML), or its name in config/domains; several with --cluster.",
        metavar="FILE...",
        callback=lambda files: [_named_domain(file) for file in files],
    ),
]
