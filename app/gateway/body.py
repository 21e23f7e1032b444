"""A request's body becomes events' bytes, within limits of size, number and time."""

import asyncio
import zlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from starlette.requests import ClientDisconnect, Request

from app.contract.events import Rejection
from app.formats import cloudevents
from app.formats.cloudevents import Opened

JSON: Final = ("application/json", "text/plain")  # browsers' beacons are text/plain, which needs no preflight
NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
KINDS: Final = (*JSON, *NDJSON, cloudevents.ONE, cloudevents.BATCH)
_GZIP: Final = 31  # zlib's window bits for gzip
_WHITESPACE: Final = b" \t\r\n"
_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Problem(Exception):
    """A request that is refused as a whole: HTTP status, what is wrong, and when to try again (s)."""

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


async def read_events(
    request: Request, max_bytes: int, max_events: int, timeout_s: float, hold: Callable[[int], None]
) -> Sequence[Opened | Rejection]:
    """The events' own bytes, unjudged, in order; a `Rejection` for an envelope that holds none. `hold` is told how many bytes of
    the body are here now. Raises `Problem`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in KINDS:
        raise Problem(415, f"content-type {kind[:64]!r}: one of {', '.join(KINDS)}")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        raise Problem(415, f"content-encoding {coding[:64]!r}: send it as it is, or gzip")
    body = await _read(request, max_bytes, timeout_s, hold)
    if coding == "gzip":
        body = _unzip(body, max_bytes)
        hold(len(body))
    is_binary = "ce-specversion" in request.headers
    parts = [body] if is_binary or kind == cloudevents.ONE else split(body, kind in NDJSON)
    if not parts or not body:
        raise Problem(400, "no event in the body")
    if len(parts) > max_events:
        raise Problem(413, f"{len(parts)} events, the limit is {max_events} a request: send several requests")
    if is_binary:
        return [cloudevents.opened_by(request.headers.items(), body)]
    if kind in (cloudevents.ONE, cloudevents.BATCH):
        return [cloudevents.opened(part) for part in parts]
    return [Opened(part, {}) for part in parts]


async def _read(request: Request, max_bytes: int, timeout_s: float, hold: Callable[[int], None]) -> bytes:
    declared = request.headers.get("content-length", "")
    too_large = f"the body is larger than {max_bytes} bytes: send several requests"
    if declared.isdecimal() and int(declared) > max_bytes:
        raise Problem(413, too_large)
    parts, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise Problem(413, too_large)
                hold(len(part))
                parts.append(part)
    except TimeoutError:
        raise Problem(408, f"the body was not here within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise Problem(400, "the connection ended within the body") from None
    return b"".join(parts)


def _unzip(body: bytes, max_bytes: int) -> bytes:
    packed = zlib.decompressobj(_GZIP)
    try:
        plain = packed.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise Problem(400, f"the body is not gzip: {error}") from None
    if len(plain) > max_bytes:
        raise Problem(413, f"the body is larger than {max_bytes} bytes once unpacked: send several requests")
    if not packed.eof or packed.unused_data:
        raise Problem(400, "the body is not one whole gzip stream")
    return plain


def split(body: bytes, is_lines: bool) -> Sequence[bytes]:
    """The bytes of each event: of a line (empty ones are left out), of an array's element, or the whole body. Raises `Problem`."""
    if is_lines:
        return [line for line in body.split(b"\n") if line.strip(_WHITESPACE)]
    body = body.strip(_WHITESPACE)
    if not body.startswith(b"["):
        return [body] if body else []
    try:
        return [bytes(raw) for raw in _decode_array(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(
            400, f"the array is no JSON: {str(error)[:200]}. As NDJSON each line is judged by itself"
        ) from None
