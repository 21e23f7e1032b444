"""The OpenAPI 3.1 document, made from the structs that requests and answers are decoded and encoded with."""

import inspect
from typing import Any, Final

import msgspec
import orjson

from app import __version__
from app.contract.document import schema_of
from app.contract.events import EVENT_TYPES, REQUIRED
from app.formats import cloudevents
from app.gateway.answers import JSON, PROBLEM, Answer, EventAnswer, Health, ProblemAnswer
from app.gateway.body import NDJSON
from app.gateway.config import BROWSER_EVENTS
from app.gateway.servers import DOORS

_STRUCTS: Final = (Answer, EventAnswer, Health, ProblemAnswer)
_CONSENT: Final = {
    "enum": ["granted", "denied", None],
    "default": None,
    "description": "denied: the event is counted as a total only, and nothing is kept of its user",
}
_AGE: Final = {
    "type": ["integer", "null"],
    "minimum": 0,
    "description": "how old the event is (ms), in place of event_time: a browser's clock may be wrong",
}
_SAID: Final = {
    "202": "Kafka has all of it, on all in-sync replicas.",
    "207": "Kafka has the accepted events; the rejected ones break a rule.",
    "422": "No event keeps the rules.",
}
_REFUSED: Final = {
    "400": "The body is no events.",
    "401": "No valid API key.",
    "408": "The body did not come in time.",
    "413": "The body is too large, or has too many events.",
    "415": "An unknown content-type or content-encoding.",
    "429": "More events than the key's rate allows. Nothing was taken.",
}
_SUMMARIES: Final = {
    "/v1/events": "Events of any type: one, an array, or a line each.",
    "/v1/conversions": "Conversions; event_type may be left out.",
    "/v1/adjustments": "Retractions and restatements; event_type may be left out.",
}


def document() -> bytes:
    """The document as JSON."""
    return orjson.dumps(_document(), option=orjson.OPT_INDENT_2)


def _document() -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(_STRUCTS, ref_template="#/components/schemas/{name}")
    for struct in _STRUCTS:
        schemas[struct.__name__]["description"] = inspect.getdoc(struct)
    schemas["Event"] = _event({}, EVENT_TYPES)
    for kind in ("conversion", "adjustment"):
        schemas[kind.capitalize()] = _event({"event_type": kind}, (kind,))
    schemas["BrowserEvent"] = _event(
        {"event_time": None, "user_id": None, "advertiser_id": None},
        BROWSER_EVENTS,
    )
    schemas["BrowserEvent"]["properties"]["age_ms"] = _AGE
    schemas["CloudEvent"] = _cloud_event()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "onecount gateway",
            "version": __version__,
            "description": "Events in, over HTTP. Repeats of an event_id are dropped by the counter, so what is not certain is sent again.",
        },
        "paths": {
            **{path: {"post": _post(path, kind)} for path, kind in DOORS.items()},
            "/v1/browser": {"post": _browser()},
            "/p.gif": {"get": _pixel()},
            "/healthz": {"get": _healthz()},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "oc_<id>_<secret>"}},
        },
    }


def _event(filled: dict[str, str | None], kinds: tuple[str, ...]) -> dict[str, Any]:
    """The contract's schema for events of `kinds`; `filled`: fields that need not be named."""
    schema = schema_of("event")
    schema.pop("$schema")
    schema["required"] = [name for name in (*schema["required"], "user_id") if name not in filled]
    schema["properties"]["event_type"] = {"enum": list(kinds)}
    if len(kinds) == 1:
        schema["required"] += [name for name in REQUIRED[kinds[0]] if name not in schema["required"]]
        schema.pop("allOf")
    schema["properties"]["consent"] = _CONSENT
    return schema


def _cloud_event() -> dict[str, Any]:
    """The schema of an envelope, with the event in it."""
    _, found = msgspec.json.schema_components([cloudevents.CloudEvent], ref_template="{name}")
    schema = found["CloudEvent"] | {"description": inspect.getdoc(cloudevents.CloudEvent)}
    schema["properties"]["specversion"] = {"const": "1.0"}
    schema["properties"]["data"] = _event({"event_id": None, "event_time": None, "event_type": None}, EVENT_TYPES)
    schema["required"] = [*schema["required"], "data"]
    return schema


def _body(name: str) -> dict[str, Any]:
    one = {"$ref": f"#/components/schemas/{name}"}
    return {"oneOf": [one, {"type": "array", "items": one, "minItems": 1}]}


def _post(path: str, kind: str | None) -> dict[str, Any]:
    name = kind.capitalize() if kind else "Event"
    envelope = {"$ref": "#/components/schemas/CloudEvent"}
    lines = {"type": "string", "description": "an event a line", "contentMediaType": JSON}
    return {
        "operationId": path.rpartition("/")[2],
        "summary": _SUMMARIES[path],
        "security": [{"key": []}],
        "parameters": [_parameter("Content-Encoding", "header", {"enum": ["gzip", "identity"]})],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _body(name)},
                NDJSON[0]: {"schema": lines},
                cloudevents.ONE: {"schema": envelope},
                cloudevents.BATCH: {"schema": {"type": "array", "items": envelope, "minItems": 1}},
            },
        },
        "responses": _responses(),
    }


def _browser() -> dict[str, Any]:
    advertiser = {"type": "string", "minLength": 1, "maxLength": 128}
    return {
        "operationId": "browser",
        "summary": "Events of an advertiser's page, as onecount.js sends them.",
        "parameters": [
            _parameter("advertiser_id", "query", advertiser) | {"required": True},
            _parameter("Origin", "header", {"type": "string"}) | {"required": True},
        ],
        "requestBody": {
            "required": True,
            "content": {"text/plain": {"schema": {"type": "string"}}, JSON: {"schema": _body("BrowserEvent")}},
        },
        "responses": _responses()
        | {"403": _answer("Not from one of the advertiser's pages.", "ProblemAnswer", PROBLEM)},
    }


def _pixel() -> dict[str, Any]:
    image = {"schema": {"type": "string", "contentMediaType": "image/gif"}}
    fields = schema_of("event")["properties"]
    return {
        "operationId": "pixel",
        "summary": "One event as a query string; always the same 1x1 image. The answer's header `onecount` says what became of it.",
        "parameters": [
            _parameter(name, "query", {"type": "string"}) for name in (*fields, "consent", "key", "expires", "sig")
        ],
        "responses": {"200": {"description": "The image.", "content": {"image/gif": image}}},
    }


def _healthz() -> dict[str, Any]:
    return {
        "operationId": "healthz",
        "summary": "Whether events would be taken now.",
        "responses": {
            "200": _answer("They would.", "Health", JSON),
            "503": _answer("They would not.", "Health", JSON),
        },
    }


def _responses() -> dict[str, Any]:
    unavailable = _answer(
        "Kafka did not take all of it, or too much comes at once: send it again, as it is.", "Answer", JSON
    )
    unavailable["content"][PROBLEM] = {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}
    unavailable["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds"}}
    return {
        **{status: _answer(text, "Answer", JSON) for status, text in _SAID.items()},
        **{status: _answer(text, "ProblemAnswer", PROBLEM) for status, text in _REFUSED.items()},
        "503": unavailable,
    }


def _answer(description: str, name: str, media_type: str) -> dict[str, Any]:
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"description": description, "content": content}


def _parameter(name: str, where: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "schema": schema}
