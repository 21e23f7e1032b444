"""The doors of browsers: the pixel, which is answered whatever becomes of it, and the script's beacons. Neither has a key, so
they say only what the advertiser lets them say, from its own pages or signed.
"""

import math
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.contract import reasons
from app.contract.events import Event, Rejection
from app.formats.cloudevents import Opened
from app.gateway import keys
from app.gateway.admission import DENIED, GRANTED, NOT_ALLOWED, Door, Refused, admit
from app.gateway.answers import GIF, problem
from app.gateway.body import Problem, read_events
from app.gateway.config import Cookie, Site
from app.gateway.gateway import Gateway
from app.gateway.load import Share
from app.gateway.metrics import PIXEL_OUTCOMES
from app.gateway.servers import deliver, within_rate

MAX_BROWSER_EVENTS: Final = 100
MAX_QUERY_BYTES: Final = 8_192
_VISITOR: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
_NUMBERS: Final = ("cost", "value")
_OWN: Final = ("key", "sig", "expires")  # parameters of a pixel that are no fields of its event
_PIXEL_HEADERS: Final = {
    "cache-control": "no-store, no-cache, private",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}
_SCRIPT: Final = Path(__file__).with_name("static") / "onecount.min.js"
_encode: Final = msgspec.json.Encoder().encode


# --- The pixel


def pixel(gateway: Gateway) -> Any:
    """The endpoint of /p.gif: always the same image; what became of the event stands in a header and in the metrics."""

    answers = {outcome: _image({"onecount": outcome}) for outcome in PIXEL_OUTCOMES}

    async def endpoint(request: Request) -> Response:
        if request.method == "HEAD":  # asks what a pixel is like; nobody saw one
            return _image({})
        cookie: dict[str, str] = {}
        try:
            with Share(gateway.load):
                outcome, reason = await _take_pixel(gateway, request, cookie)
        except Problem as refused:
            outcome, reason = "limited" if refused.status == 429 else "lost", None
        gateway.metrics.pixel(outcome, reason.reason if reason else None)
        if reason is not None:
            return _image({"onecount": f"{outcome}; {reason.reason}; {reason.field}"})
        return _image({"onecount": outcome} | cookie) if cookie else answers[outcome]

    return endpoint


def _image(headers: dict[str, str]) -> Response:
    return Response(GIF, 200, _PIXEL_HEADERS | headers, "image/gif")


async def _take_pixel(gateway: Gateway, request: Request, headers: dict[str, str]) -> tuple[str, Rejection | None]:
    rules = gateway.rules()
    if rules is None:
        return "lost", None
    query: bytes = request.scope["query_string"]
    try:
        event = _fields(query)
    except ValueError as error:
        return "rejected", Rejection(reasons.INVALID_FIELD, "", str(error))
    site = gateway.config.sites.get(event.get("advertiser_id", ""))
    if site is None:
        return "rejected", Rejection(NOT_ALLOWED, "advertiser_id", "no such advertiser")
    is_signed = "sig" in event
    refusal = _signature_refusal(gateway, site, query, event) if is_signed else _page_refusal(site, request)
    if refusal is not None:
        return "rejected", refusal
    await within_rate(gateway, f"browser.{site.advertiser_id}", site.rate, 1)
    visitor = _visitor(site, request) or keys.new_visitor()
    way = Door(
        _may_signed if is_signed else partial(_may, site),
        {"event_id": _encode(keys.new_visitor())},
        {} if is_signed and "user_id" in event else {"user_id": visitor},
        is_denied=_objects(request),
        takes_age=True,
        is_browser=True,
    )
    event.setdefault("user_id", visitor)
    for name in _OWN:
        event.pop(name, None)
    admitted = admit(_encode(event), way, rules, time.time_ns() // 1_000_000)
    if isinstance(admitted, Refused):
        return "rejected", admitted.rejection
    if not is_signed:
        _remember(site, request, visitor, not way.is_denied and _has_consent(site, event.get("consent")), headers)
    return ("taken" if gateway.pixels.post(admitted) else "lost"), None


def _fields(query: bytes) -> dict[str, Any]:
    """The fields of a query string. ValueError for one that is too long, is no UTF-8, or has a field twice."""
    if len(query) > MAX_QUERY_BYTES:
        raise ValueError(f"the query is longer than {MAX_QUERY_BYTES} bytes")
    pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50)
    found: dict[str, Any] = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a parameter stands twice")
    for name in _NUMBERS:
        if name in found:
            found[name] = float(found[name])
            if not math.isfinite(found[name]):
                raise ValueError(f"{name} is no number")
    if found.get("event_time", "").isdecimal():
        found["event_time"] = int(found["event_time"][:20])
    return found


def _signature_refusal(gateway: Gateway, site: Site, query: bytes, event: dict[str, Any]) -> Rejection | None:
    key_id = event.get("key", "")
    secret = gateway.settings.gateway_secret
    assert secret is not None
    if key_id not in site.pixel_keys:
        return Rejection(NOT_ALLOWED, "key", "no such pixel key")
    if not keys.is_signed(query, keys.pixel_secret(secret.get_secret_value(), site.advertiser_id, key_id)):
        return Rejection(NOT_ALLOWED, "sig", "not the signature of the query before it")
    expires = event.get("expires")
    if expires is not None and not (expires.isdecimal() and time.time() < int(expires[:12])):
        return Rejection(NOT_ALLOWED, "expires", "the signed pixel has expired")
    return None


def _page_refusal(site: Site, request: Request) -> Rejection | None:
    if not site.unsigned_pixels:
        return Rejection(NOT_ALLOWED, "sig", "the advertiser's pixels must be signed")
    page = request.headers.get("origin") or _origin(request.headers.get("referer", ""))
    return None if site.allows(page) else Rejection(NOT_ALLOWED, "", "not from one of the advertiser's pages")


def _origin(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}"


# --- The script and its beacons


def beacon(gateway: Gateway) -> Any:
    """The endpoint of /v1/browser?advertiser_id=...: events of a page of the advertiser's, and the preflight for them."""

    async def endpoint(request: Request) -> Response:
        site = gateway.config.sites.get(request.query_params.get("advertiser_id", ""))
        origin = request.headers.get("origin", "")
        headers = {"vary": "Origin", "cache-control": "no-store", "cross-origin-resource-policy": "cross-origin"}
        if site is None or not site.allows(origin):
            gateway.metrics.refused(403)
            return problem(Problem(403, "not from one of the advertiser's pages (advertiser_id, Origin)"), headers)
        headers |= {"access-control-allow-origin": origin, "access-control-allow-credentials": "true"}
        if request.method == "OPTIONS":
            allowed = {"access-control-allow-methods": "POST", "access-control-allow-headers": "content-type"}
            return Response(status_code=204, headers=headers | allowed | {"access-control-max-age": "7200"})
        try:
            with Share(gateway.load) as share:
                return await _take_beacon(gateway, request, site, headers, share)
        except Problem as refused:
            gateway.metrics.refused(refused.status)
            return problem(refused, headers)

    return endpoint


async def _take_beacon(
    gateway: Gateway, request: Request, site: Site, headers: dict[str, str], share: Share
) -> Response:
    settings = gateway.settings
    most = min(MAX_BROWSER_EVENTS, settings.gateway_max_events)
    timeout_s = settings.gateway_read_timeout_ms / 1000
    sent = await read_events(request, settings.gateway_max_body_bytes, most, timeout_s, share.hold)
    visitor = _visitor(site, request)
    way = Door(
        partial(_may, site),
        {"advertiser_id": _encode(site.advertiser_id), "user_id": _encode(keys.new_visitor())},
        {"user_id": visitor} if visitor else {},
        is_denied=_objects(request),
        takes_age=True,
        is_browser=True,
    )
    response = await deliver(gateway, sent, way, f"browser.{site.advertiser_id}", site.rate, "/v1/browser")
    suggested, consents = _suggested(sent)
    has_consent = not way.is_denied and all(_has_consent(site, consent) for consent in consents)
    _remember(site, request, visitor or suggested, has_consent, headers)
    response.headers.update(headers)
    return response


def _may(site: Site, event: Event) -> Rejection | None:
    if event.advertiser_id != site.advertiser_id:
        return Rejection(NOT_ALLOWED, "advertiser_id", "not the advertiser of the page")
    if event.event_type not in site.browser_events:
        allowed = ", ".join(sorted(site.browser_events))
        return Rejection(NOT_ALLOWED, "event_type", f"browsers of this advertiser may send {allowed}")
    if not _VISITOR.fullmatch(event.user_id or ""):
        return Rejection(reasons.INVALID_FIELD, "user_id", "a visitor's id has 16 to 64 of A-Z, a-z, 0-9, _ and -")
    return None


def _may_signed(event: Event) -> Rejection | None:
    """A signed pixel says what it likes, but who only sees it in a page's source must not be able to have somebody forgotten."""
    if event.event_type != "forget":
        return None
    return Rejection(NOT_ALLOWED, "event_type", "forgetting needs an API key")


def script() -> Any:
    """The endpoint of /onecount.js."""
    body = _SCRIPT.read_bytes()
    headers = {"cache-control": "public, max-age=3600", "etag": f'"{keys.digest(body.decode())[:32]}"'}
    headers |= {"cross-origin-resource-policy": "cross-origin", "x-content-type-options": "nosniff"}

    async def endpoint(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(body, 200, headers, "text/javascript")

    return endpoint


# --- The visitor


def _objects(request: Request) -> bool:
    """Whether the browser says that its user does not want to be followed: Global Privacy Control, or Do Not Track."""
    return request.headers.get("sec-gpc") == "1" or request.headers.get("dnt") == "1"


def _visitor(site: Site, request: Request) -> str | None:
    """The visitor's id by the advertiser's cookie, if there is a sound one."""
    found = _sent(site.cookie, request) if site.cookie else None
    return found if found and _VISITOR.fullmatch(found) else None


def _sent(cookie: Cookie, request: Request) -> str | None:
    """A cookie's value as it is sent. An id needs no unquoting, which takes Python before 3.11.10 and 3.12.6 time by the square
    of the length (CVE-2024-7592).
    """
    for header in request.headers.getlist("cookie"):
        for pair in header.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == cookie.name:
                return value
    return None


class _Suggestion(msgspec.Struct, gc=False):
    user_id: str | None = None
    consent: str | None = None


_decode_suggestion: Final = msgspec.json.Decoder(_Suggestion).decode


def _suggested(sent: Sequence[Opened | Rejection]) -> tuple[str | None, list[str | None]]:
    """The id that the page has given to its visitor, for whom there is no cookie yet, and what each event says of consent."""
    try:
        found = [_decode_suggestion(each.data) for each in sent if isinstance(each, Opened)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, [DENIED]  # an unsound event sets no cookie
    user_id = (found[0].user_id if found else None) or ""
    return user_id if _VISITOR.fullmatch(user_id) else None, [each.consent for each in found]


def _has_consent(site: Site, consent: str | None) -> bool:
    return consent == GRANTED or (consent is None and not site.is_consent_asked)


def _remember(site: Site, request: Request, visitor: str | None, has_consent: bool, headers: dict[str, str]) -> None:
    """Sets the cookie, or prolongs it; takes it back from who does not consent any more. A cookie that a server of the page's
    own site sets lasts; one that a script sets is deleted by Safari after seven days, or one (Intelligent Tracking Prevention).
    """
    cookie = site.cookie
    if cookie is None or (visitor is None if has_consent else _sent(cookie, request) is None):
        return
    value, seconds = (visitor, cookie.days * 86_400) if has_consent else ("", 0)
    headers["set-cookie"] = (
        f"{cookie.name}={value}; Domain={cookie.domain}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax"
    )
