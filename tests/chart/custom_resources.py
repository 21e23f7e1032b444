"""Of the Prometheus operator's and KEDA's definitions the part that the chart uses, as JSON Schemas that know no other
field. Written by hand, since no package that can be installed has the published ones; to use another field, add it here
as https://prometheus-operator.dev/docs/api-reference/api/ or https://keda.sh/docs/latest/reference/scaledobject-spec/ has it.
"""

from typing import Any, Final


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object of these fields and no others; `required`: the names of those that must be there."""
    return {"type": "object", "required": required.split(), "properties": properties, "additionalProperties": False}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": of}


def _resource(api_version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=_object("name labels", name=_TEXT, labels=_TEXTS),
        spec=spec,
    )


_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "object", "additionalProperties": _TEXT}
_COUNT: Final = {"type": "integer", "minimum": 0}
_DURATION: Final = {
    "type": "string",
    "pattern": "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
}
_SCALING: Final = _object(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=_list(
        _object(
            "type value periodSeconds",
            type={"enum": ["Pods", "Percent"]},
            value={"type": "integer", "minimum": 1},
            periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
        )
    ),
)

SCHEMAS: Final = {
    "ServiceMonitor": _resource(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        _object(
            "selector endpoints",
            selector=_object(matchLabels=_TEXTS),
            endpoints=_list(
                _object(
                    port=_TEXT,
                    path=_TEXT,
                    interval=_DURATION,
                    relabelings=_list(
                        _object(
                            targetLabel=_TEXT,
                            replacement=_TEXT,
                            sourceLabels=_list({"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}),
                        )
                    ),
                )
            ),
        ),
    ),
    "PrometheusRule": _resource(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        _object(
            groups=_list(
                _object(
                    "name",
                    name={"type": "string", "minLength": 1},
                    interval=_DURATION,
                    rules=_list(
                        _object(
                            "expr",
                            alert=_TEXT,
                            record=_TEXT,
                            expr=_TEXT,
                            **{"for": _DURATION},
                            keep_firing_for=_DURATION,
                            labels=_TEXTS,
                            annotations=_TEXTS,
                        )
                    ),
                )
            )
        ),
    ),
    "ScaledObject": _resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        _object(
            "scaleTargetRef triggers",
            scaleTargetRef=_object("name", apiVersion=_TEXT, kind=_TEXT, name=_TEXT),
            minReplicaCount=_COUNT,
            maxReplicaCount=_COUNT,
            pollingInterval=_COUNT,
            advanced=_object(
                horizontalPodAutoscalerConfig=_object(behavior=_object(scaleUp=_SCALING, scaleDown=_SCALING))
            ),
            triggers=_list(
                _object(
                    "type metadata",
                    type=_TEXT,
                    metricType={"enum": ["AverageValue", "Value", "Utilization"]},
                    metadata=_TEXTS,
                    authenticationRef=_object("name", name=_TEXT, kind=_TEXT),
                )
            ),
        ),
    ),
}
