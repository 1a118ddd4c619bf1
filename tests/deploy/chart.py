"""The chart as Helm renders it (its Go SDK, in the package helm-python-sdk), and the check of objects by schema."""

from functools import cache
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import yaml

from tests.deploy.custom_resources import SCHEMAS
from tests.tracked_files import ROOT

CHART = ROOT / "deploy" / "helm" / "lorikeet"
KEYS: dict[str, Any] = {"keys": {"existingSecret": "my-keys"}}
REMOTE: dict[str, Any] = {
    **KEYS,
    "storage": {"kind": "remote", "remoteStore": "s3://models/adapters"},
    "networkPolicy": {"egress": [{"ports": [{"port": 443}]}]},
}
if TYPE_CHECKING:
    import helm_python

KUBERNETES = ("1.29", kubernetes_validate.latest_version())

Objects = dict[str, dict[str, Any]]


@cache
def chart() -> "helm_python.Chart":
    import helm_python  # where it is used: it brings the threads of Go, which no forked worker would have

    return helm_python.Chart.load(CHART)


def rendered(values: dict[str, Any], name: str = "lorikeet") -> list[dict[str, Any]]:
    """Every object of a release, in the order of the templates."""
    texts = chart().render(values, name=name, namespace="llm")
    found = [yaml.load_all(text, yaml.CSafeLoader) for path, text in texts.items() if path.endswith(".yaml")]
    return [each for documents in found for each in documents if each is not None]


def by_kind(values: dict[str, Any]) -> Objects:
    return {each["kind"]: each for each in rendered(values)}


def check(resource: dict[str, Any], version: str) -> None:
    """Raises jsonschema.ValidationError for an object that is not of its kind, or has a field that the kind lacks."""
    if resource["kind"] in SCHEMAS:
        jsonschema.validate(resource, SCHEMAS[resource["kind"]])
        return
    kubernetes_validate.validate(resource, version, strict=True)
