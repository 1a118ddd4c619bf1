"""`README.md` of an export: what the folder is, and which version and base it was made from."""

from pathlib import Path

import yaml

from adapters.store.version_files import README_FILE
from train.card import request_section
from train.export.version import Version


def write_readme(version: Version, folder: Path, text: str, *, library: str) -> None:
    """Write the card.

    Args:
        text: What the folder is and how it is used.
        library: The library that loads it, as model hubs name it.
    """
    front: dict[str, object] = {"library_name": library, "tags": ["lora", "lorikeet"]}
    if version.base.licence is not None:
        front["license"] = version.base.licence.lower()
    sections = [f"# {version.manifest.name}", version.manifest.description, text, _origin(version)]
    sections += request_section(version.manifest.defaults)
    body = "\n\n".join(section for section in sections if section)
    content = f"---\n{yaml.safe_dump(front, sort_keys=True)}---\n\n{body}\n"
    (folder / README_FILE).write_text(content, encoding="utf-8")


def _origin(version: Version) -> str:
    return (
        f"- Adapter: `{version.target}`, digest `{version.manifest.digest}`\n"
        f"- Base: `{version.base.name}`, made from {version.base.source}, quantization {version.base.quantization}, "
        f"stored {version.base.storage}, digest `{version.base.digest}`"
    )
