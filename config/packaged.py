"""The packaged configuration files, which commands use by default."""

import os
from pathlib import Path

_PACKAGED = Path(__file__).parent
_OWN = Path("config")


def default_file(name: str) -> Path:
    """`config/<name>` of the working folder if it exists, else the packaged file of that name.

    Each file is looked up on its own: a local `config/serve.yaml` can be used with the packaged domains.

    Args:
        name: E.g. `serve.yaml` or `domains/medical.yaml`.
    """
    own = _OWN / name
    return own if os.path.lexists(own) else _PACKAGED / name


def packaged_twin(path: Path) -> Path | None:
    """The packaged file for a path such as `config/serve.yaml`, if any."""
    if path.parts[:1] != _OWN.parts:
        return None
    packaged = _PACKAGED.joinpath(*path.parts[1:])
    return packaged if packaged.suffix == ".yaml" and packaged.is_file() else None
