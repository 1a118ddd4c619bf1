"""Whether nodes see the same folder and the same versions."""

import pytest

from config.home import Home
from serve.cluster.errors import ClusterError
from serve.cluster.settings import check_jobs, check_node, home_id, installed_versions


def test_a_state_folder_keeps_its_identity(tmp_path):
    home = Home(tmp_path / "var")
    assert home_id(home) == home_id(home)
    assert [path.name for path in home.root.iterdir()] == ["cluster-id"]


def test_a_node_that_sees_the_same_folder_passes(tmp_path):
    check_node(tmp_path, home_id(Home(tmp_path)), installed_versions(), "n1")


def test_a_folder_that_the_node_lacks_is_refused(tmp_path):
    with pytest.raises(ClusterError, match=r"is not there on node n1.*must share it"):
        check_node(tmp_path / "elsewhere", home_id(Home(tmp_path)), installed_versions(), "n1")


def test_another_folder_under_the_same_path_is_refused(tmp_path):
    home_id(Home(tmp_path))
    with pytest.raises(ClusterError, match="is another folder on node n1"):
        check_node(tmp_path, "f" * 32, installed_versions(), "n1")


@pytest.mark.parametrize("name", ["python", "lorikeet", "vllm-of-another-world"])
def test_other_versions_are_refused(tmp_path, name):
    wanted = installed_versions() | {name: "0.0.1"}
    with pytest.raises(ClusterError, match=rf"n1 has {name} .* was started with 0.0.1\. Install the same"):
        check_node(tmp_path, home_id(Home(tmp_path)), wanted, "n1")


def test_jobs_work_on_one_node_only():
    check_jobs(is_enabled=True, num_nodes=1)
    check_jobs(is_enabled=False, num_nodes=3)
    with pytest.raises(ClusterError, match=r"this cluster has 3: .*Set `jobs: \{enabled: false\}`"):
        check_jobs(is_enabled=True, num_nodes=3)
