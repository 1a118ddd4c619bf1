"""deploy/gateway: valid by the references, and about the server that the chart installs."""

from typing import Any

import pytest
import yaml

from config.load import load_serve
from tests.deploy.chart import KEYS, KUBERNETES, by_kind, check
from tests.tracked_files import ROOT

FOLDER = ROOT / "deploy" / "gateway"


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.yaml")))
def test_every_example_is_of_its_kind(name: str) -> None:
    check(example(name), KUBERNETES[0])


def test_the_pool_selects_the_pods_of_the_chart():
    template = by_kind(KEYS)["Deployment"]["spec"]["template"]
    spec = example("inferencepool.yaml")["spec"]
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    assert [port["number"] for port in spec["targetPorts"]] == [ports["http"]]
    assert f"port {ports['metrics']}" in (FOLDER / "inferencepool.yaml").read_text()


def test_the_route_leads_the_api_alone_to_the_pool():
    pool, route = example("inferencepool.yaml"), example("httproute.yaml")
    rule = route["spec"]["rules"][0]
    backend = rule["backendRefs"][0]
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v1"]
    assert (backend["kind"], backend["name"]) == (pool["kind"], pool["metadata"]["name"])
    assert backend["group"] == pool["apiVersion"].partition("/")[0]


def test_the_route_waits_as_long_as_the_server():
    timeout = example("httproute.yaml")["spec"]["rules"][0]["timeouts"]["request"]
    assert float(timeout.removesuffix("s")) == load_serve(ROOT / "config" / "serve.yaml").request_timeout_s
