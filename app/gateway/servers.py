"""The doors of servers: POST with an API key. `accepted` means that Kafka has it."""

import hmac
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from app.contract.events import Event, Rejection
from app.formats.cloudevents import Opened
from app.gateway import keys
from app.gateway.admission import NOT_ALLOWED, Door, Record, Refused, Rules, admit, only
from app.gateway.answers import RETRY_AFTER_S, answer, problem
from app.gateway.body import Problem, read_events
from app.gateway.config import Key, Rate
from app.gateway.gateway import Gateway
from app.gateway.limiter import LimiterUnavailable
from app.gateway.load import Share

# By its address, the only type of event that comes in there, which need not be named.
DOORS: Final = {
    "/v1/events": None,
    "/v1/conversions": "conversion",
    "/v1/adjustments": "adjustment",
}
# An adjustment is judged against the orders of each platform (docs/counting.md, section 5), whatever its own says.
_OF_ALL_PLATFORMS: Final = ("adjustment", "forget")
Endpoint = Callable[[Request], Awaitable[Response]]


def door(gateway: Gateway, path: str) -> Endpoint:
    """The endpoint of one of `DOORS`."""

    async def endpoint(request: Request) -> Response:
        try:
            key = authenticate(gateway, request.headers.get("authorization", ""))
            with Share(gateway.load) as share:
                return await _take(gateway, request, key, path, share)
        except Problem as refused:
            gateway.metrics.refused(refused.status)
            return problem(refused)

    return endpoint


def authenticate(gateway: Gateway, header: str) -> Key:
    """The key of an Authorization header. Raises `Problem` 401, which does not tell an unknown key from a wrong one."""
    scheme, _, given = header.partition(" ")
    key = gateway.config.keys.get(keys.id_of(given.strip())) if scheme.lower() == "bearer" else None
    digest = keys.digest(given.strip())  # also without a key, so that an unknown id takes as long as a known one
    if key is None or not hmac.compare_digest(digest, key.sha256):
        raise Problem(401, "no valid API key: send it as Authorization: Bearer oc_...")
    if time.time() * 1000 >= key.expires_ms:
        raise Problem(401, f"the key {key.name} has expired")
    return key


async def _take(gateway: Gateway, request: Request, key: Key, path: str, share: Share) -> Response:
    settings = gateway.settings
    sent = await read_events(
        request,
        settings.gateway_max_body_bytes,
        settings.gateway_max_events,
        settings.gateway_read_timeout_ms / 1000,
        share.hold,
    )
    return await deliver(gateway, sent, server_door(key, DOORS[path]), f"key.{key.name}", key.rate, path)


async def deliver(
    gateway: Gateway, sent: Sequence[Opened | Rejection], way: Door, bucket: str, rate: Rate, path: str
) -> Response:
    """Judges events, sends those that are admitted, waits for Kafka, and answers. Raises `Problem` before anything is sent."""
    await within_rate(gateway, bucket, rate, len(sent))
    rules = gateway.rules()
    if rules is None or not gateway.broker.has_room(len(sent)):
        raise Problem(503, "Kafka does not take events at the moment; nothing was taken", RETRY_AFTER_S)
    now_ms = time.time_ns() // 1_000_000
    judged = [_judged(each, way, rules, now_ms) for each in sent]
    begun_s = time.monotonic()
    taken = await gateway.broker.send([each for each in judged if isinstance(each, Record)])
    gateway.count(path, judged, taken, time.monotonic() - begun_s)
    return answer(judged, taken, now_ms)


def _judged(sent: Opened | Rejection, way: Door, rules: Rules, now_ms: int) -> Record | Refused:
    if isinstance(sent, Rejection):
        return Refused(None, sent)
    return admit(sent.data, way._replace(fills={**sent.fills, **way.fills}) if sent.fills else way, rules, now_ms)


async def within_rate(gateway: Gateway, bucket: str, rate: Rate, events: int) -> None:
    """Raises `Problem` 429 where the events are more than the rate allows, 503 where that can't be known and must be."""
    try:
        wait_s = await gateway.limiter.take(bucket, rate, events)
    except LimiterUnavailable:
        raise Problem(
            503, "the rate limits can't be looked up at the moment; nothing was taken", RETRY_AFTER_S
        ) from None
    if wait_s:
        raise Problem(429, f"more than {rate.per_s} events/s; nothing was taken", math.ceil(wait_s))


def server_door(key: Key, event_type: str | None) -> Door:
    """How events of a key come in."""
    check = partial(_may, key, only(event_type) if event_type else None)
    fills = {"event_type": b'"%s"' % event_type.encode()} if event_type else {}
    return Door(check, fills)


def _may(key: Key, also: Callable[[Event], Rejection | None] | None, event: Event) -> Rejection | None:
    if key.advertisers is not None and event.advertiser_id not in key.advertisers:
        return Rejection(NOT_ALLOWED, "advertiser_id", f"the key {key.name} may not send for this advertiser")
    if key.platforms is not None:
        platforms = ", ".join(sorted(key.platforms))
        if event.event_type in _OF_ALL_PLATFORMS:
            why = f"an event of this type concerns every platform, the key {key.name} sends for {platforms} only"
            return Rejection(NOT_ALLOWED, "event_type", why)
        if event.platform not in key.platforms:
            return Rejection(NOT_ALLOWED, "platform", f"the key {key.name} sends for {platforms}")
    return also(event) if also is not None else None
