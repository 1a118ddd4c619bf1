"""deploy/compose.yaml: its parts exist, nothing is reachable from outside, and its commands are ours."""

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.load import load_serve
from tests.deploy.commands import unknown_words
from tests.tracked_files import ROOT

DEPLOY = ROOT / "deploy"
FILE = DEPLOY / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = {"server": "init", "server-gpu": "init-gpu"}

compose = pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose 2 or later")


def mounts() -> list[tuple[str, str, str]]:
    """Service, source and target of every mount."""
    found = [(name, *volume.split(":")[:2]) for name, service in SERVICES.items() for volume in service["volumes"]]
    return [(name, source, target) for name, source, target in found]


def test_every_mounted_file_exists_and_every_volume_is_declared():
    files = [source for _, source, _ in mounts() if source.startswith(".")]
    volumes = {source for _, source, _ in mounts() if not source.startswith(".")}
    assert files
    assert [source for source in files if not (DEPLOY / source).exists()] == []
    assert volumes == set(COMPOSE["volumes"])


def test_files_are_mounted_read_only():
    lines = [volume for service in SERVICES.values() for volume in service["volumes"] if volume.startswith(".")]
    assert [line for line in lines if not line.endswith(":ro")] == []


def test_ports_are_published_on_loopback_only():
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 4
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_images_of_others_are_pinned_to_a_version():
    images = {service["image"] for service in SERVICES.values() if "build" not in service}
    assert images
    assert [image for image in images if not re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", image)] == []


def test_every_image_of_ours_is_a_target_of_the_dockerfile():
    targets = re.findall(r"(?m)^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text())
    built = [service["build"] for service in SERVICES.values() if "build" in service]
    assert [build["target"] for build in built if build["target"] not in targets] == []
    assert {(DEPLOY / build["context"]).resolve() for build in built} == {ROOT}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_service_can_gain_rights_or_write_its_root(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_nothing_in_it_is_a_secret():
    text = "".join(path.read_text() for path in [FILE, DEPLOY / ".env", *DEPLOY.glob("compose/**/*.yaml")])
    assert re.findall(r"(?i)(?:password|token|secret|api_key)\w*\s*[:=]\s*\S", text) == []
    assert "lk-" not in text


@pytest.mark.parametrize(("server", "init"), SERVERS.items())
def test_a_server_waits_for_its_init_and_is_healthy_once_ready(server: str, init: str) -> None:
    service = SERVICES[server]
    assert service["depends_on"] == {init: {"condition": "service_completed_successfully"}}
    assert "/ready" in service["healthcheck"]["test"][-1]
    assert service["profiles"] == SERVICES[init]["profiles"]
    assert service["image"] == SERVICES[init]["image"]


def test_the_cpu_server_is_the_default():
    assert "COMPOSE_PROFILES=cpu" in (DEPLOY / ".env").read_text()
    assert SERVICES["server"]["profiles"] == ["cpu"]


def test_a_server_has_time_to_drain():
    config = load_serve(DEPLOY / "compose" / "serve.yaml")
    grace = {int(SERVICES[name]["stop_grace_period"].removesuffix("s")) for name in SERVERS}
    assert min(grace) > config.drain_timeout_s


def test_prometheus_scrapes_the_metrics_port_of_the_server():
    config = load_serve(DEPLOY / "compose" / "serve.yaml")
    scrape = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())["scrape_configs"][0]
    host, _, port = scrape["static_configs"][0]["targets"][0].partition(":")
    assert (scrape["job_name"], int(port), config.metrics_host) == ("lorikeet", config.metrics_port, "0.0.0.0")
    assert {tuple(SERVICES[name]["networks"]["default"]["aliases"]) for name in SERVERS} == {(host,)}


def test_prometheus_has_the_rules_that_it_names():
    names = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())["rule_files"]
    there = {target for name, _, target in mounts() if name == "prometheus"}
    assert {f"/etc/prometheus/{name}" for name in names} <= there


def test_grafana_finds_the_dashboard_and_prometheus():
    folder = DEPLOY / "compose" / "grafana"
    provider = yaml.safe_load((folder / "dashboards.yaml").read_text())["providers"][0]
    source = yaml.safe_load((folder / "datasources.yaml").read_text())["datasources"][0]
    sources = {target: source for name, source, target in mounts() if name == "grafana"}
    mounted = DEPLOY / sources[provider["options"]["path"]]
    assert json.loads((mounted / "lorikeet.json").read_text())["title"] == "Lorikeet"
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].startswith(
        provider["options"]["path"]
    )
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
def test_the_commands_are_ours(server: str) -> None:
    init = SERVICES[SERVERS[server]]["command"][-1]
    commands = [
        SERVICES[server]["command"],
        *(found.split() for found in re.findall(r"lorikeet (?:base|keys) .*", init)),
    ]
    assert len(commands) == 3
    assert [unknown_words(command) for command in commands] == [[], [], []]


def test_the_init_prepares_the_base_that_the_server_names():
    base = load_serve(DEPLOY / "compose" / "serve.yaml").base
    assert f"--name {base}\n" in SERVICES["init"]["command"][-1]


def test_the_init_makes_one_key_however_often_it_runs(tmp_path: Path) -> None:
    program, home = tmp_path / "bin" / "lorikeet", tmp_path / "var"
    program.parent.mkdir()
    home.mkdir()
    program.write_text(
        '#!/bin/sh\necho "$*" >> "$LORIKEET_HOME/calls"\n[ "$1" != keys ] || echo {} > "$LORIKEET_HOME/keys.json"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join((str(program.parent), os.environ["PATH"]))
    script = SERVICES["init"]["command"][-1].replace("$$", "$")
    for _ in range(2):
        environment = {"PATH": path, "LORIKEET_HOME": str(home)}
        subprocess.run(["sh", "-ec", script], env=environment, check=True)
    assert [call.split()[0] for call in (home / "calls").read_text().splitlines()] == ["base", "keys", "base"]


@compose
@pytest.mark.parametrize(("options", "wanted"), [([], "server"), (["--profile", "gpu"], "server-gpu")])
def test_docker_compose_reads_it(options: list[str], wanted: str) -> None:
    command = ["docker-compose", *options, "--file", str(FILE), "config", "--services"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unknown flag" in finished.stderr or "Unsupported config" in finished.stderr:
        pytest.skip("docker-compose 1 does not know this form")
    assert finished.returncode == 0, finished.stderr
    assert {name for name in finished.stdout.split() if name.startswith("server")} == {wanted}
