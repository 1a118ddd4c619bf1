"""The files for Prometheus and Grafana: valid, tested, and about metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from serve.engine.series import patches_skipped
from serve.observe.metrics import ServeMetrics
from tests.tracked_files import ROOT

PROMETHEUS = ROOT / "config" / "prometheus"
DASHBOARD = json.loads((ROOT / "config" / "grafana" / "lorikeet.json").read_text())
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
OF_PROMETHEUS = {"instance", "job", "le", "alertname", "alertstate"}

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")


def metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels of every metric of our own, by the name that Prometheus calls it; others' names repeat them."""
    registry = CollectorRegistry()
    ServeMetrics(registry, "base")
    found = {}
    for metric in (*registry._collector_to_names, patches_skipped):  # no public way to a metric's label names
        (family,) = metric.describe()  # type: ignore[attr-defined]  # all of them are prometheus_client's own
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.startswith("lorikeet_"):
            found[name] = family.type, tuple(metric._labelnames)  # type: ignore[attr-defined]  # as above
    return found


def series() -> dict[str, tuple[str, ...]]:
    """Labels by the name of a series: a histogram has three."""
    return {
        name.removesuffix("_total") + suffix: labels
        for name, (kind, labels) in metrics().items()
        for suffix in SUFFIXES[kind]
    }


def rules() -> list[dict[str, Any]]:
    files = ("recording.rules.yml", "alerts.rules.yml")
    groups = [group for file in files for group in yaml.safe_load((PROMETHEUS / file).read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels(kind: str | None = None) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if (panel["type"] == "row") == (kind == "row")]


def dashboard_queries() -> list[str]:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    variables = [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    return queries + [re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]) for variable in variables]


def queries() -> list[str]:
    return [rule["expr"] for rule in rules()] + dashboard_queries()


def test_every_series_in_a_rule_or_a_panel_is_exported() -> None:
    named = {name for query in queries() for name in re.findall(r"(?<![\w:])lorikeet_\w+(?![\w:])", query)}
    assert named - set(series()) == set()


def test_every_metric_is_in_the_dashboard() -> None:
    shown = " ".join(dashboard_queries())
    hidden = {
        name
        for name, (kind, _) in metrics().items()
        if not any(name.removesuffix("_total") + s in shown for s in SUFFIXES[kind])
    }
    assert hidden == set()


def test_every_recorded_series_that_a_rule_names_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert {name for query in queries() for name in re.findall(r"\w+:\w+:\w+", query)} <= recorded


@pytest.mark.slow
def test_every_label_that_a_query_selects_by_is_the_metrics_own() -> None:
    selected = [found for query in queries() for found in re.findall(r"\b(lorikeet_\w+)\{([^}]*)\}", query)]
    unknown = [
        (name, label)
        for name, selectors in selected
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors)
        if label not in {*series()[name], *OF_PROMETHEUS}
    ]
    assert selected
    assert unknown == []


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_it_means_what_to_look_at_and_what_to_do(alert: dict[str, Any]) -> None:
    notes = alert["annotations"]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert notes["summary"]
    assert notes["description"]
    assert re.fullmatch(r"Means: .+\nLook at: .+\nDo: .+\n", notes["runbook"], re.DOTALL)


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    tests = (PROMETHEUS / "rules.test.yml").read_text()
    fired = {*re.findall(r'alertname="(\w+)", alertstate="firing"', tests), *re.findall(r"alertname: (\w+)", tests)}
    assert fired == {alert["alert"] for alert in alerts()}


def test_the_dashboard_has_its_rows_and_every_panel_says_what_it_shows() -> None:
    rows = ["Traffic", "Latency", "Tokens", "Quality", "Residency", "Tenants", "Health", "Jobs"]
    assert [row["title"] for row in panels("row")] == rows
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels())
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "adapter", "version"]


def test_no_two_panels_overlap() -> None:
    cells = [
        (place["x"] + column, place["y"] + line)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for column in range(place["w"])
        for line in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) == 23


def test_the_documented_metrics_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(lorikeet_\w+)` \| (\w+) \| ([\w, ]*?) ?\| \S", text, re.MULTILINE)
    assert {name: (kind, tuple(labels.split(", ")) if labels else ()) for name, kind, labels in rows} == metrics()


@promtool
def test_prometheus_accepts_the_configuration_and_its_rules() -> None:
    run("promtool", "check", "config", str(PROMETHEUS / "prometheus.yml"))


@promtool
def test_the_rules_record_and_alert_as_their_tests_say() -> None:
    run("promtool", "test", "rules", str(PROMETHEUS / "rules.test.yml"))


@promtool
def test_prometheus_can_parse_every_query_of_the_dashboard(tmp_path: Path) -> None:
    plain = [query.replace("$__rate_interval", "5m") for query in dashboard_queries()]
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(plain)]
    file = tmp_path / "dashboard.rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    run("promtool", "check", "rules", str(file))


def run(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
