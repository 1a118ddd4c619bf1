"""Schemas of the custom resources that we write: the required fields of their public references, and those that we use.

prometheus-operator's API (PodMonitor v1), KubeRay's (RayService v1), the Gateway API (HTTPRoute v1) and its Inference
Extension (InferencePool v1), as of 2026-11-29. A field that is not listed is refused: add it here by the reference.
"""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "minLength": 1}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}


def record(required: str, /, **properties: Schema) -> Schema:
    """An object without further fields."""
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


def several(item: Schema, least: int = 1, most: int = 64) -> Schema:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


def resource(group_version: str, kind: str, spec: Schema) -> Schema:
    metadata = {"type": "object", "required": ["name"]}
    head = {"apiVersion": {"const": group_version}, "kind": {"const": kind}}
    return record("apiVersion kind metadata spec", **head, metadata=metadata, spec=spec)


LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}
SELECTOR = record("matchLabels", matchLabels=LABELS)

POD_MONITOR = record(
    "selector podMetricsEndpoints",
    jobLabel=STRING,
    selector=SELECTOR,
    podMetricsEndpoints=several(record("port", port=STRING, path=STRING, interval=STRING)),
)

POD: Schema = record("spec", metadata={"type": "object"}, spec={"type": "object", "required": ["containers"]})
"""Its spec is held to Kubernetes' own schema apart from this."""
START: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
RAY_SERVICE = record(
    "serveConfigV2 rayClusterConfig",
    serveConfigV2=STRING,
    rayClusterConfig=record(
        "headGroupSpec",
        rayVersion=STRING,
        headGroupSpec=record("rayStartParams template", rayStartParams=START, template=POD),
        workerGroupSpecs=several(
            record(
                "groupName rayStartParams template",
                groupName=STRING,
                replicas={"type": "integer", "minimum": 0},
                minReplicas={"type": "integer", "minimum": 0},
                maxReplicas={"type": "integer", "minimum": 1},
                rayStartParams=START,
                template=POD,
            )
        ),
    ),
)

INFERENCE_POOL = record(
    "selector targetPorts endpointPickerRef",
    selector=SELECTOR,
    targetPorts=several(record("number", number=PORT), most=8),
    endpointPickerRef=record(
        "name port",  # `port` is required of a Service
        group={"type": "string"},
        kind={"const": "Service"},
        name=STRING,
        port=record("number", number=PORT),
        failureMode={"enum": ["FailOpen", "FailClose"]},
    ),
)

HTTP_ROUTE = record(
    "parentRefs rules",
    parentRefs=several(record("name", name=STRING, namespace=STRING, sectionName=STRING)),
    hostnames=several(STRING),
    rules=several(
        record(
            "backendRefs",
            matches=several(
                record("path", path=record("type value", type={"enum": ["PathPrefix", "Exact"]}, value=STRING))
            ),
            backendRefs=several(
                record(
                    "name", group={"type": "string"}, kind=STRING, name=STRING, port=PORT, weight={"type": "integer"}
                )
            ),
            timeouts=record("", request={"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}),
        )
    ),
)

SCHEMAS = {
    "PodMonitor": resource("monitoring.coreos.com/v1", "PodMonitor", POD_MONITOR),
    "RayService": resource("ray.io/v1", "RayService", RAY_SERVICE),
    "InferencePool": resource("inference.networking.k8s.io/v1", "InferencePool", INFERENCE_POOL),
    "HTTPRoute": resource("gateway.networking.k8s.io/v1", "HTTPRoute", HTTP_ROUTE),
}
