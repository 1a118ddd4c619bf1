"""The chart: each way to install it gives valid objects, and values that cannot work are refused by name."""

import base64
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from config.serve import ServeConfig
from tests.deploy.chart import CHART, KEYS, KUBERNETES, REMOTE, by_kind, chart, check, rendered
from tests.deploy.commands import unknown_words
from tests.tracked_files import ROOT

VALUES = (CHART / "values.yaml").read_text()
RAY: dict[str, Any] = {**KEYS, "storage": {"accessModes": ["ReadWriteMany"]}, "ray": {"enabled": True, "workers": 3}}
INSTALLS: dict[str, dict[str, Any]] = {
    "volume": KEYS,
    "keys from a file": {"keys": {"file": '{"keys": []}'}},
    "remote": REMOTE,
    "ray": RAY,
    "own claim": {**KEYS, "storage": {"existingClaim": "models"}, "base": {"prepare": False}},
    "all": {
        **REMOTE,
        "replicas": 3,
        "image": {"repository": "registry/lorikeet", "tag": "gpu"},
        "imagePullSecrets": ["pull"],
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "autoscaling": {"enabled": True, "tokensPerSecond": 300},
        "envSecret": "s3",
        "env": [{"name": "AWS_ENDPOINT_URL", "value": "https://s3.internal"}],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
}


def pods(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The spec of every pod of an install."""
    found = by_kind(values)
    if "RayService" not in found:
        return [found["Deployment"]["spec"]["template"]["spec"]]
    cluster = found["RayService"]["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def server(values: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in pods(values)[0]["containers"] if each["name"] == "server")


@pytest.mark.slow
@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("install", INSTALLS)
def test_kubernetes_takes_every_object(install: str, version: str) -> None:
    for resource in rendered(INSTALLS[install]):
        check(resource, version)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_pods_of_ray(version: str) -> None:
    for spec in pods(RAY):
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}, version)


@pytest.mark.parametrize(
    ("install", "jobs"), [("volume", None), ("ray", {"enabled": False}), ("all", {"enabled": False})]
)
def test_pods_that_share_a_folder_serve_no_jobs(install: str, jobs: dict[str, bool] | None) -> None:
    (config,) = (each for each in rendered(INSTALLS[install]) if each["kind"] == "ConfigMap")
    assert yaml.safe_load(config["data"]["serve.yaml"]).get("jobs") == jobs


@pytest.mark.parametrize("install", INSTALLS)
def test_helm_lints_it(install: str) -> None:
    import helm_python  # as in chart.py: not before a fork

    report = helm_python.lint(CHART, INSTALLS[install], strict=True)
    assert [message for message in report["messages"] if message["severity"] > 1] == []
    assert report["errors"] == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "keys.existingSecret"),
        ({"keys": {"existingSecret": "a", "file": "b"}}, "not both"),
        ({**KEYS, "replicas": 2}, "ReadWriteMany"),
        ({**KEYS, "autoscaling": {"enabled": True}}, "ReadWriteMany"),
        ({**KEYS, "ray": {"enabled": True}}, "ReadWriteMany"),
        ({**KEYS, "storage": {"kind": "remote"}}, "storage.remoteStore"),
        ({**REMOTE, "networkPolicy": {"egress": []}}, "networkPolicy.egress"),
        ({**REMOTE, "ray": {"enabled": True}}, "storage.kind to volume"),
        ({**RAY, "podMonitor": {"enabled": True}}, "podMonitor.enabled"),
        ({**RAY, "autoscaling": {"enabled": True}}, "autoscaling.enabled"),
        ({**REMOTE, "autoscaling": {"enabled": True, "requestsWaiting": 0}}, "autoscaling.tokensPerSecond"),
        ({**REMOTE, "autoscaling": {"minReplicas": 9}}, "autoscaling.minReplicas"),
        ({**KEYS, "config": {"port": 9000}}, "config.port"),
        ({**KEYS, "config": {"keys_file": "x"}}, "config.keys_file"),
        ({**KEYS, "replica": 2}, "replica"),
        ({**KEYS, "replicas": "two"}, "/replicas"),
        ({**KEYS, "storage": {"size": "big"}}, "/storage/size"),
        ({**KEYS, "base": {"quantization": "q4"}}, "/base/quantization"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], named: str) -> None:
    import helm_python

    with pytest.raises(helm_python.HelmError, match=re.escape(named)):
        rendered(values)


def undocumented(lines: list[str]) -> list[str]:
    """Keys without a comment above them, above the keys just before them, or above their group."""
    found, is_documented = [], False
    for line in lines:
        if not line.strip():
            is_documented = False
        elif line.lstrip().startswith("#"):
            is_documented = True
        elif re.match(r"(  )?\w+:$", line) is None and not is_documented:
            found.append(line)
    return found


def test_every_value_has_a_comment():
    assert undocumented(VALUES.splitlines()) == []
    assert undocumented(["# a", "a: 1", "", "b: 1", "c:", "  d: 1"]) == ["b: 1", "  d: 1"]


def test_every_value_has_a_schema():
    values = yaml.safe_load(VALUES)
    properties = (chart().schema or {})["properties"]
    assert set(values) == set(properties) - {"global"}
    closed = [name for name in values if properties[name].get("additionalProperties") is False]
    assert {name: set(values[name]) for name in closed if name != "resources"} == {
        name: set(properties[name]["properties"]) for name in closed if name != "resources"
    }


@pytest.mark.slow
def test_the_server_reads_the_configuration_that_the_chart_writes():
    config = ServeConfig.model_validate(yaml.safe_load(by_kind(REMOTE)["ConfigMap"]["data"]["serve.yaml"]))
    paths = {mount["mountPath"] for mount in server(REMOTE)["volumeMounts"]}
    assert str(config.keys_file and config.keys_file.parent) in paths
    assert config.remote_store == "s3://models/adapters"
    ports = {port["name"]: port["containerPort"] for port in server(REMOTE)["ports"]}
    assert ports == {"http": config.port, "metrics": config.metrics_port}


def test_another_configuration_is_another_pod():
    first, second = (
        by_kind({**KEYS, "config": {"max_loras": number}})["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        for number in (4, 8)
    )
    assert first != second


@pytest.mark.parametrize("install", INSTALLS)
def test_the_commands_are_ours(install: str) -> None:
    containers = [
        each for pod in pods(INSTALLS[install]) for each in (*pod["containers"], *pod.get("initContainers", ()))
    ]
    commands = [each["command"] for each in containers if "command" in each]
    assert [words for command in commands if (words := unknown_words(command))] == []
    assert commands or install == "ray"


def test_the_init_prepares_the_base_that_the_server_names():
    command = pods(KEYS)[0]["initContainers"][0]["command"]
    config = yaml.safe_load(by_kind(KEYS)["ConfigMap"]["data"]["serve.yaml"])
    assert command[command.index("--name") + 1] == config["base"]


@pytest.mark.parametrize("install", INSTALLS)
def test_no_container_can_gain_rights_or_write_its_root(install: str) -> None:
    for pod in pods(INSTALLS[install]):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            writable = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
            assert writable == {"/app/var", "/tmp", "/dev/shm"}


def test_the_pod_runs_as_the_user_of_the_image():
    users = set(re.findall(r"(?m)^USER (\d+)", (ROOT / "Dockerfile").read_text()))
    assert users == {str(pods(KEYS)[0]["securityContext"]["runAsUser"])}


@pytest.mark.parametrize("install", INSTALLS)
def test_every_volume_that_is_mounted_exists(install: str) -> None:
    for pod in pods(INSTALLS[install]):
        mounted = {each["name"] for container in pod["containers"] for each in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_probes_ask_what_each_is_for():
    paths = {name: server(KEYS)[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}


@pytest.mark.parametrize(("seconds", "probes"), [(900, 90), (35, 4)])
def test_a_start_has_its_time(seconds: int, probes: int) -> None:
    assert server({**KEYS, "startup": {"timeoutSeconds": seconds}})["startupProbe"]["failureThreshold"] == probes


@pytest.mark.parametrize("drain_s", [0, 30, 90.5])
def test_a_pod_has_time_to_drain(drain_s: float) -> None:
    pod = pods({**KEYS, "config": {"drain_timeout_s": drain_s}})[0]
    pause = int(server(KEYS)["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] >= drain_s + pause + 20


def test_a_volume_of_one_pod_is_never_in_two():
    assert by_kind(KEYS)["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}


def test_servers_of_a_shared_store_are_replaced_one_by_one():
    strategy = by_kind(REMOTE)["Deployment"]["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "PersistentVolumeClaim" not in by_kind(REMOTE)


def test_the_adapters_outlive_the_release():
    assert by_kind(KEYS)["PersistentVolumeClaim"]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_key_file_becomes_a_secret_and_is_nowhere_else():
    text = json.dumps({"keys": [{"id": "3f9a2c1b"}]})
    found = rendered({"keys": {"file": text}})
    secret = next(each for each in found if each["kind"] == "Secret")
    assert base64.b64decode(secret["data"]["keys.json"]).decode() == text
    names = [
        volume["secret"]["secretName"]
        for pod in pods({"keys": {"file": text}})
        for volume in pod["volumes"]
        if "secret" in volume
    ]
    assert names == [secret["metadata"]["name"]]
    assert "3f9a2c1b" not in json.dumps([each for each in found if each is not secret])
    assert "Secret" not in by_kind(KEYS)


def test_only_scrapers_reach_the_port_that_wants_no_key():
    rules = by_kind(KEYS)["NetworkPolicy"]["spec"]["ingress"]
    sources = {port["port"]: rule["from"] for rule in rules for port in rule["ports"]}
    values = yaml.safe_load(VALUES)["networkPolicy"]
    assert sources == {8000: values["clients"], 9464: values["scrapers"]}


def test_only_dns_is_reached_unless_more_is_named():
    assert [port["port"] for rule in by_kind(KEYS)["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]] == [
        53,
        53,
    ]


def test_selectors_find_the_pods_of_this_release_only():
    found = by_kind(INSTALLS["all"])
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        found["Service"]["spec"]["selector"],
        *(
            found[kind]["spec"]["selector"]["matchLabels"]
            for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor")
        ),
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert [selector for selector in selectors if not selector.items() <= labels.items()] == []
    assert {selector["app.kubernetes.io/instance"] for selector in selectors} == {"lorikeet"}


def test_two_releases_share_no_name():
    first, second = ({(each["kind"], each["metadata"]["name"]) for each in rendered(KEYS, name)} for name in ("a", "b"))
    assert not first & second


def test_the_alerts_find_the_job_that_the_monitor_names():
    found = by_kind(INSTALLS["all"])
    label = found["PodMonitor"]["spec"]["jobLabel"]
    job = found["Deployment"]["spec"]["template"]["metadata"]["labels"][label]
    assert f'job="{job}"' in (ROOT / "config" / "prometheus" / "alerts.rules.yml").read_text()


def test_autoscaling_asks_for_metrics_that_the_adapter_serves():
    metrics = by_kind(INSTALLS["all"])["HorizontalPodAutoscaler"]["spec"]["metrics"]
    rules = yaml.safe_load((CHART.parent / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert [each["pods"]["metric"]["name"] for each in metrics] == [rule["name"]["as"] for rule in rules]
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert [name for rule in rules if f"`{(name := rule['seriesQuery'].partition('{')[0])}`" not in page] == []
    assert "replicas" not in by_kind(INSTALLS["all"])["Deployment"]["spec"]


def test_ray_has_the_version_of_the_lock():
    locked = re.findall(r"(?m)^ray==(.*)$", (ROOT / "requirements" / "cpu.lock").read_text())
    assert [by_kind(RAY)["RayService"]["spec"]["rayClusterConfig"]["rayVersion"]] == locked


@pytest.mark.slow
def test_ray_serves_our_application_on_the_workers():
    service = by_kind(RAY)["RayService"]["spec"]
    serve = yaml.safe_load(service["serveConfigV2"])
    arguments = serve["applications"][0]["args"]
    paths = {mount["mountPath"] for mount in pods(RAY)[1]["containers"][0]["volumeMounts"]}
    assert {arguments["config"], arguments["home"]} <= paths
    assert arguments["replicas"] == service["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] == 3
    assert "metrics_port" not in yaml.safe_load(by_kind(RAY)["ConfigMap"]["data"]["serve.yaml"])
    assert service["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert not {"Deployment", "Service"} & by_kind(RAY).keys()


@pytest.mark.parametrize(
    "spoiled",
    [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replica": 1}},
        {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "a"}, "spec": {"serveConfigV2": "x"}},
    ],
    ids=lambda each: each["kind"],
)
def test_the_check_sees_what_is_wrong(spoiled: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(spoiled, KUBERNETES[0])
