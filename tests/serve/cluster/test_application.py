"""The application as `serve run` and config files build it."""

from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve import Application

from config.home import Home
from config.serve import ServeConfig
from serve.cluster.application import bind, build, make_settings
from serve.cluster.replica import _of_replica


def test_an_application_is_built_from_the_arguments_of_a_file(tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text("base: b\n")
    assert isinstance(build({"config": str(config), "home": str(tmp_path / "var"), "replicas": "3"}), Application)
    assert (tmp_path / "var" / "cluster-id").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "num_cpus"), [({}, 0), ({"cpus": 3}, 3), ({"worker": False}, None)])
def test_an_application_has_one_job_worker(tmp_path, jobs, num_cpus):
    configs = [ServeConfig.model_validate({"base": base, "served_model_name": base, "jobs": jobs}) for base in "ab"]
    ingress: Any = bind(make_settings(configs, Home(tmp_path), 2, None, 1))._bound_deployment  # Ray's types are wrong
    worker = ingress.init_kwargs["worker"]
    found = worker and worker._bound_deployment.ray_actor_options["num_cpus"]
    assert found == num_cpus


@pytest.mark.parametrize("rank", [0, 1])
def test_no_replica_starts_a_worker_of_its_own(rank):
    own = _of_replica(ServeConfig(base="b"), rank)
    assert (own.jobs.worker, own.quality.enabled) == (False, rank == 0)


def test_an_unknown_argument_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="replica\n"):
        build({"config": "serve.yaml", "replica": 3})
