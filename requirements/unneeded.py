"""Print the installed packages that neither serving nor training needs: `python requirements/unneeded.py cpu`.

An image is made without them: what only the extras `dev` and `docs` brought.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, distributions, requires

from lock import ADDED, ROOT
from packaging.requirements import Requirement

LEFT_OUT_EXTRAS = {"dev", "docs"}
OTHER_DEVICE = {"cpu": "gpu", "gpu": "cpu"}
TOOLS = {"lorikeet", "pip"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(device: str) -> Iterator[Requirement]:
    """What pyproject.toml and the lock ask for, without the left-out extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    kept = [lines for name, lines in extras.items() if name not in LEFT_OUT_EXTRAS | {OTHER_DEVICE[device]}]
    for line in (*project["dependencies"], *(line for lines in kept for line in lines)):
        yield Requirement(line)
    yield from (Requirement(line) for line in ADDED[device])


def needed(device: str) -> set[str]:
    """Normalised names of everything that is reached; what is not installed is passed over."""
    weights = {normal(Requirement(line).name) for line in ADDED[device]}
    waiting, seen = list(asked_for(device)), set[tuple[str, frozenset[str]]]()
    while waiting:
        requirement = waiting.pop()
        name, wanted = normal(requirement.name), frozenset(requirement.extras)
        if (name, wanted) in seen or not _is_installed(name):
            continue
        seen.add((name, wanted))
        if name not in weights:  # of which the lock leaves out the requirements
            waiting += [each for line in requires(name) or () if _applies(each := Requirement(line), wanted)]
    return {name for name, _ in seen}


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def unneeded(device: str) -> list[str]:
    """Normalised names, sorted."""
    installed = {normal(each.metadata["Name"]) for each in distributions()}
    return sorted(installed - needed(device) - TOOLS)


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["gpu"]):
        sys.exit("usage: python requirements/unneeded.py cpu|gpu")
    print("\n".join(unneeded(sys.argv[1])))
