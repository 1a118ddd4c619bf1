"""What keeps a cluster from starting is said in a line, before anything starts."""

import pytest
import typer
from typer.testing import CliRunner

import serve.cli
from config.home import Home
from config.serve import ServeConfig
from serve.cluster.command import run_cluster
from serve.cluster.errors import ClusterError


def test_too_few_cores_are_told_before_ray_starts(tmp_path):
    with pytest.raises(ClusterError, match=r"too few for 4096 replicas: each needs one\. Start fewer: `--replicas"):
        run_cluster([ServeConfig(base="b")], Home(tmp_path), 4096)
    assert list(tmp_path.iterdir()) == []


def test_cores_of_training_are_not_those_of_replicas(tmp_path):
    config = ServeConfig.model_validate({"base": "b", "jobs": {"cpus": 4095}})
    with pytest.raises(ClusterError, match=r"CPU cores without the 4095 of `jobs\.cpus`, too few for 1 replicas"):
        run_cluster([config], Home(tmp_path), 1)


def test_a_metrics_port_is_for_a_single_server(tmp_path):
    from serve.cluster.application import make_settings

    with pytest.raises(ClusterError, match=r"`metrics_port` 9100 is for a single server.*Remove it"):
        make_settings([ServeConfig(base="b", metrics_port=9100)], Home(tmp_path), 2, None, 1)


def test_paths_are_those_of_every_process(tmp_path, monkeypatch):
    from serve.cluster.application import make_settings

    monkeypatch.chdir(tmp_path)
    (settings,) = make_settings([ServeConfig(base="b", keys_file="keys.json")], Home(tmp_path / "var"), 2, None, 1)
    assert settings.config.keys_file == tmp_path / "keys.json"
    assert settings.home == (tmp_path / "var").resolve()


@pytest.mark.parametrize("option", [("--replicas", "0"), ("--max-replicas", "2"), ("--routing", "random")])
def test_options_of_a_cluster_need_one(option, tmp_path):
    app = typer.Typer()
    app.command()(serve.cli.serve)
    result = CliRunner().invoke(app, [*option, "--home", str(tmp_path)])
    assert result.exit_code == 2
    assert "`--cluster ray`" in result.output
