"""The application as `serve run` and config files build it."""

import pytest
from pydantic import ValidationError
from ray.serve import Application

from serve.cluster.application import build


def test_an_application_is_built_from_the_arguments_of_a_file(tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text("base: b\n")
    assert isinstance(build({"config": str(config), "home": str(tmp_path / "var"), "replicas": "3"}), Application)
    assert (tmp_path / "var" / "cluster-id").is_file()


def test_an_unknown_argument_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="replica\n"):
        build({"config": "serve.yaml", "replica": 3})
