"""A batch of records becomes columns: the strict contract at the speed of a few checks over the whole batch.

Every value is decoded by the contract's own struct. What the struct alone cannot vouch for is checked over the batch,
and a row that fails a check is *suspect*: `decode_event` alone then accepts it or says why not. A check may suspect a
sound row, never pass an unsound one.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import polars as pl

from app.contract.events import (
    EVENT_TYPES,
    MAX_EVENT_BYTES,
    MAX_TIME_MS,
    TOUCH_ATTRIBUTES,
    TOUCH_TYPES,
    Event,
    Rejection,
    decode_event,
    decode_struct,
)
from app.policy.model import Bounds

TYPE_CODE: Final = {name: code for code, name in enumerate(EVENT_TYPES)}
VISIT: Final = TYPE_CODE["visit"]
CONVERSION: Final = TYPE_CODE["conversion"]
ADJUSTMENT: Final = TYPE_CODE["adjustment"]
TOUCH_CODES: Final = len(TOUCH_TYPES)  # the codes below it are touches
_UNKNOWN: Final = 255


class Decoded(NamedTuple):
    """The accepted events of a batch, in the batch's order, and what was refused.

    `users`: user ids in UTF-8, aligned with `events` too. `rows`: index of each accepted event in the batch; `events`,
    `types` (code of EVENT_TYPES) and `times_ms` are aligned with it; `touches`: columns of the accepted touches, with
    `row` the index into `events`; `rejections`: (index in the batch, why).
    """

    rows: np.ndarray
    events: list[Event]
    types: np.ndarray
    times_ms: np.ndarray
    touches: pl.DataFrame
    users: Sequence[bytes]
    rejections: list[tuple[int, Rejection]]


def decode_batch(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    stamps_ms: np.ndarray,
    platforms: frozenset[str],
    bounds: Bounds,
) -> Decoded:
    """Judges every record of a batch; accepts and rejects exactly as `decode_event` does one at a time."""
    events, suspect = _decode_structs(values)
    sound = [event for event in events if event is not None] if suspect.any() else events
    where = np.flatnonzero(~suspect)
    types = np.fromiter(
        [TYPE_CODE.get(event.event_type, _UNKNOWN) for event in sound], dtype=np.uint8, count=len(sound)
    )
    touches = _touch_columns(sound, types)
    doubts = _doubtful_types(sound, types, touches, platforms) | _doubtful_times(sound, stamps_ms[where], bounds)
    if len(where) != len(values):
        sound_keys, sound_values = [keys[row] for row in where.tolist()], [values[row] for row in where.tolist()]
    else:
        sound_keys, sound_values = keys, values
    joined = b"".join(sound_values)  # type: ignore[arg-type]
    doubts |= _doubtful_keys(sound, sound_keys, escaped=b"\\" in joined)
    doubts |= _doubtful_bytes(sound, sound_values, joined, types, touches)
    suspect[where[doubts]] = True
    if not suspect.any():
        times_ms = np.fromiter([event.event_time for event in sound], dtype=np.int64, count=len(sound))
        return Decoded(where, sound, types, times_ms, touches, _users(sound, sound_keys), [])
    return _judge_suspects(values, keys, stamps_ms, platforms, bounds, events, suspect, where, touches)


def _judge_suspects(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    stamps_ms: np.ndarray,
    platforms: frozenset[str],
    bounds: Bounds,
    events: list[Any],
    suspect: np.ndarray,
    where: np.ndarray,
    touches: pl.DataFrame,
) -> Decoded:
    rejections = []
    times: dict[int, int] = {}
    for row in np.flatnonzero(suspect).tolist():
        judged = decode_event(
            values[row], keys[row], int(stamps_ms[row]), platforms, bounds.max_event_age_ms, bounds.max_clock_skew_ms
        )
        if isinstance(judged, Rejection):
            events[row] = None
            rejections.append((row, judged))
        else:
            events[row] = judged.event
            times[row] = judged.time_ms
    rows = np.array([row for row, event in enumerate(events) if event is not None], dtype=np.int64)
    sound = [event for event in events if event is not None]
    types = np.fromiter([TYPE_CODE[event.event_type] for event in sound], dtype=np.uint8, count=len(sound))
    times_ms = np.fromiter(
        [times.get(row, event.event_time) for row, event in zip(rows.tolist(), sound, strict=True)],
        dtype=np.int64,
        count=len(sound),
    )
    users = _users(sound, [keys[row] for row in rows.tolist()])
    place = np.full(len(values), -1)  # of each row among the accepted ones
    place[rows] = np.arange(len(rows))
    moved = place[where[touches["row"].to_numpy()]]
    touches = touches.with_columns(pl.Series("row", moved, dtype=pl.Int64)).filter(pl.col("row") >= 0)
    return Decoded(rows, sound, types, times_ms, touches, users, rejections)


def _users(events: list[Event], keys: Sequence[bytes | None]) -> Sequence[bytes]:
    """The user id of each accepted event in UTF-8: its record's key, unless that has none."""
    if None not in keys:
        return keys  # type: ignore[return-value]
    return [event.user_id.encode() if key is None else key for event, key in zip(events, keys, strict=True)]


def _decode_structs(values: Sequence[bytes | None]) -> tuple[list[Any], np.ndarray]:
    """Each value's struct, or None and suspect where it has none."""
    suspect = np.zeros(len(values), dtype=bool)
    events: list[Any] = []
    left = map(decode_struct, values)  # type: ignore[arg-type]
    while len(events) < len(values):
        try:
            events.extend(left)  # up to the next value that has no struct; what came before it stays
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
            suspect[len(events)] = True
            events.append(None)
    return events, suspect


def _touch_columns(events: list[Event], types: np.ndarray) -> pl.DataFrame:
    rows = np.flatnonzero(types < TOUCH_CODES)
    touches = events if len(rows) == len(events) else [events[row] for row in rows.tolist()]
    text = pl.String
    columns: dict[str, Any] = {
        "row": pl.Series(rows, dtype=pl.Int64),
        "platform": pl.Series([event.platform for event in touches], dtype=text),
        "advertiser_id": pl.Series([event.advertiser_id for event in touches], dtype=text),
    }
    for name, column in zip(TOUCH_ATTRIBUTES, _attributes(touches), strict=True):
        columns[name] = pl.Series(column, dtype=text)
    columns["cost"] = pl.Series([event.cost for event in touches], dtype=pl.Float64)
    return pl.DataFrame(columns)


def _attributes(touches: list[Event]) -> tuple[list[str | None], ...]:
    # in the order of TOUCH_ATTRIBUTES; spelled out, since this is the hot path and getattr by name costs three
    # times as much
    return (
        [event.campaign_id for event in touches],
        [event.ad_id for event in touches],
        [event.creative_id for event in touches],
        [event.landing_page for event in touches],
        [event.offer_id for event in touches],
        [event.source for event in touches],
        [event.medium for event in touches],
    )


def _doubtful_types(
    events: list[Event], types: np.ndarray, touches: pl.DataFrame, platforms: frozenset[str]
) -> np.ndarray:
    """Unknown types and platforms, missing fields of a touch, and every conversion and adjustment that lacks what its
    type needs.
    """
    doubts = types == _UNKNOWN
    if touches["campaign_id"].null_count() or not set(touches["platform"].unique()) <= platforms:
        bad = touches.filter(
            pl.col("campaign_id").is_null() | ~pl.col("platform").is_in(list(platforms)) | pl.col("platform").is_null()
        )
        doubts[bad["row"].to_numpy()] = True
    for row in np.flatnonzero(types >= TOUCH_CODES).tolist():
        event, kind = events[row], types[row]
        if kind == CONVERSION:
            doubts[row] = event.conversion_name is None or (
                event.platform is not None and event.platform not in platforms
            )
        elif kind == VISIT:
            doubts[row] = event.page is None
        else:
            doubts[row] = True  # adjustments are few, and have rules of their own
    return doubts


def _doubtful_times(events: list[Event], stamps_ms: np.ndarray, bounds: Bounds) -> np.ndarray:
    times = [event.event_time for event in events]
    if set(map(type, times)) <= {int}:
        try:
            column = np.array(times, dtype=np.int64)
        except OverflowError:
            return np.ones(len(times), dtype=bool)
        odd = np.zeros(len(times), dtype=bool)
    else:
        odd = np.array([type(time) is not int or not 0 <= time <= MAX_TIME_MS for time in times])
        column = np.array(
            [0 if doubt else time for doubt, time in zip(odd.tolist(), times, strict=True)], dtype=np.int64
        )
    return (
        odd
        | (column < 0)
        | (column > MAX_TIME_MS)
        | (column < stamps_ms - bounds.max_event_age_ms)
        | (column > stamps_ms + bounds.max_clock_skew_ms)
    )


def _doubtful_keys(events: list[Event], keys: Sequence[bytes | None], escaped: bool) -> np.ndarray:
    """Records whose key is not their user_id. Where no value is escaped no id holds a newline, so equal joins mean
    equal rows.
    """
    users = [event.user_id for event in events]
    if not escaped and None not in keys and b"\n".join(keys) == "\n".join(users).encode():  # type: ignore[arg-type]
        return np.zeros(len(users), dtype=bool)
    return np.array(
        [key is not None and key != user.encode() for key, user in zip(keys, users, strict=True)], dtype=bool
    )


def _doubtful_bytes(
    events: list[Event], values: Sequence[Any], joined: bytes, types: np.ndarray, touches: pl.DataFrame
) -> np.ndarray:
    """Values that may hold a key twice, an unknown field, or a control character in an id.

    Without a backslash no character is escaped, so each colon of the bytes either ends a key or stands in a string.
    The colons left after those of the decoded strings are at least the keys, the keys at least the fields that are
    set; where they are equal, no key stands twice and no field is unknown.
    """
    doubts = np.fromiter(map(len, values), dtype=np.int64, count=len(values)) > MAX_EVENT_BYTES
    if b"\\" in joined or b"\x7f" in joined:
        doubts |= np.array([b"\\" in value or b"\x7f" in value for value in values], dtype=bool)
    if joined.count(b":") == _fields_set(events, types, touches):
        return doubts
    for row, (event, value) in enumerate(zip(events, values, strict=True)):
        fields = [field for field in msgspec.structs.astuple(event) if field is not None]
        inside = sum(field.count(":") for field in fields if isinstance(field, str))
        if value.count(b":") != len(fields) + inside:
            doubts[row] = True
    return doubts


def _fields_set(events: list[Event], types: np.ndarray, touches: pl.DataFrame) -> int:
    """How many fields of the batch's events are set, counting none that does not belong to its event's type."""
    count = (
        5 * len(events)
        + touches.height * (touches.width - 2)
        - sum(touches.drop("row", "advertiser_id").null_count().row(0))
    )
    count += sum([event.click_id is not None for event in events])
    for row in np.flatnonzero(types >= TOUCH_CODES).tolist():
        event = events[row]
        count += (
            len(msgspec.structs.astuple(event))
            - msgspec.structs.astuple(event).count(None)
            - 5
            - (event.click_id is not None)
        )
    return count
