"""What the gateway answers, as structs: the OpenAPI document is made from them."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, Literal

import msgspec
from starlette.responses import Response

from app.gateway.admission import Record, Refused
from app.gateway.body import Problem

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
UNAVAILABLE: Final = "unavailable"
RETRY_AFTER_S: Final = 2
GIF: Final = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")


class EventAnswer(msgspec.Struct, omit_defaults=True):
    """What became of one event, in the order of the request.

    accepted: Kafka has it, on all in-sync replicas. rejected: it breaks the rule `reason` in `field`; the same bytes are rejected
    again. unavailable: Kafka did not acknowledge it in time; send it again, as it is.
    """

    status: Literal["accepted", "rejected", "unavailable"]
    event_id: str | None = None
    reason: str | None = None
    field: str | None = None
    detail: str | None = None


class Answer(msgspec.Struct):
    """What became of a request's events. `time`: that of the gateway (epoch ms), by which they were judged."""

    time: int
    accepted: int
    rejected: int
    unavailable: int
    events: list[EventAnswer]


class ProblemAnswer(msgspec.Struct):
    """Why a request was refused as a whole (RFC 9457). Nothing of it was taken."""

    status: int
    title: str
    detail: str


class Health(msgspec.Struct):
    """Whether events would be taken now."""

    status: Literal["ok", "unavailable"]
    detail: str


_encode: Final = msgspec.json.Encoder().encode


def answer(judged: Sequence[Record | Refused], taken: Sequence[bool], time_ms: int) -> Response:
    """The answer to a request: 202 if all events are accepted, 207 if some are, 422 if none is; 503 if Kafka did not take some.

    `taken`: of the records among `judged`, in order, which Kafka acknowledged.
    """
    outcomes = iter(taken)
    events = [_of(each, isinstance(each, Record) and next(outcomes)) for each in judged]
    found = {status: sum(event.status == status for event in events) for status in (ACCEPTED, REJECTED, UNAVAILABLE)}
    body = Answer(time_ms, **found, events=events)
    if found[UNAVAILABLE]:
        return Response(_encode(body), 503, {"retry-after": str(RETRY_AFTER_S)}, JSON)
    return Response(_encode(body), 202 if not found[REJECTED] else 207 if found[ACCEPTED] else 422, media_type=JSON)


def _of(judged: Record | Refused, is_taken: bool) -> EventAnswer:
    if isinstance(judged, Record):
        return EventAnswer(ACCEPTED if is_taken else UNAVAILABLE, judged.event_id)
    reason, field, detail = judged.rejection
    return EventAnswer(REJECTED, judged.event_id, reason, field, detail)


def problem(error: Problem, headers: Mapping[str, str] = {}) -> Response:
    """The answer to a request that is refused as a whole. A body that was not read to its end ends the connection."""
    extra = dict(headers)
    if error.retry_after_s is not None:
        extra["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        extra["www-authenticate"] = "Bearer"
    if error.status in (408, 413):
        extra["connection"] = "close"
    body = ProblemAnswer(error.status, HTTPStatus(error.status).phrase, error.detail)
    return Response(_encode(body), error.status, extra, PROBLEM)


def health(is_ok: bool, detail: str) -> Response:
    """The answer to a look at the gateway's health."""
    return Response(_encode(Health("ok" if is_ok else "unavailable", detail)), 200 if is_ok else 503, media_type=JSON)
