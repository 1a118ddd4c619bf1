"""Type checkers read the annotations of every package, also from an installed wheel."""

import tomllib

from tests.tracked_files import ROOT, tracked_files

PACKAGES = sorted(path.parts[0] for path in tracked_files() if len(path.parts) == 2 and path.name == "__init__.py")


def test_every_package_carries_the_marker_of_typed_code() -> None:
    assert PACKAGES
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()] == []


def test_the_wheel_takes_the_marker_of_every_package() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "py.typed" in tool["setuptools"]["package-data"]["*"]
    assert sorted(tool["mypy"]["packages"]) == sorted([*PACKAGES, "tests"])
