"""The configuration files that come with Lorikeet, for commands that are not told which file to read."""

import os
from pathlib import Path

_PACKAGED = Path(__file__).parent
_OWN = Path("config")


def default_file(name: str) -> Path:
    """`config/<name>` of the working folder where there is one, else the file of that name that came with Lorikeet.

    File by file: a `config/serve.yaml` of one's own goes with the packaged domains.

    Args:
        name: As `serve.yaml` or `domains/medical.yaml`.
    """
    own = _OWN / name
    return own if os.path.lexists(own) else _PACKAGED / name


def packaged_twin(path: Path) -> Path | None:
    """For a path such as `config/serve.yaml`: the packaged file of that name, if there is one."""
    if path.parts[:1] != _OWN.parts:
        return None
    packaged = _PACKAGED.joinpath(*path.parts[1:])
    return packaged if packaged.suffix == ".yaml" and packaged.is_file() else None
