"""The server of this folder's tests."""

from tests.judged_server import judged  # noqa: F401 - a fixture of the package
