"""A batch of records becomes columns: the strict contract at the speed of a few passes over the batch's bytes.

Touches that are written like ones met before are read as spans of the bytes (see shapes.py). The others are decoded one by
one into the contract's struct; what the struct alone cannot vouch for makes a record *suspect*, and `decode_event` alone
accepts it or says why not. A check may suspect a sound record, never pass an unsound one.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from app.columns.texts import ABSENT, Texts, begins_with, equal, texts_of, words_of
from app.contract.events import (
    EVENT_TYPES,
    MAX_EVENT_BYTES,
    NEVER_MS,
    TOUCH_TYPES,
    Accepted,
    Event,
    Rejection,
    decode_event,
    decode_struct,
    judge_bytes,
    judge_fields,
    parse_time_ms,
)
from app.intake.shapes import COLUMNS, Shape, Shapes, Touches, learn, match
from app.policy.model import Bounds

TYPE_CODE: Final = {name: code for code, name in enumerate(EVENT_TYPES)}
VISIT: Final = TYPE_CODE["visit"]
CONVERSION: Final = TYPE_CODE["conversion"]
ADJUSTMENT: Final = TYPE_CODE["adjustment"]
FORGET: Final = TYPE_CODE["forget"]
TOUCH_CODES: Final = len(TOUCH_TYPES)  # the codes below it are touches


class Decoded(NamedTuple):
    """The accepted events of a batch, in the batch's order, and what was refused.

    All columns are aligned: `rows` (index in the batch), `types` (codes of EVENT_TYPES), `times_ms`, `texts` by COLUMNS,
    `costs` (NaN where there is none). `events`: by index, the structs of those that are no touches.
    `rejections`: (index in the batch, why).
    """

    rows: np.ndarray
    types: np.ndarray
    times_ms: np.ndarray
    texts: dict[str, Texts]
    costs: np.ndarray
    events: dict[int, Event]
    rejections: list[tuple[int, Rejection]]


def decode_batch(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    stamps_ms: np.ndarray,
    platforms: Mapping[str, int],
    bounds: Bounds,
    shapes: Shapes,
) -> Decoded:
    """Judges every record of a batch; accepts and rejects exactly as `decode_event` does one at a time."""
    joined, touches = match(values, shapes, lesson)
    touches = touches.take(_is_sound(touches, keys, stamps_ms, platforms, bounds))
    left = np.ones(len(values), dtype=bool)
    left[touches.rows] = False
    rejections: list[tuple[int, Rejection]] = []
    others: list[tuple[int, Accepted]] = []
    for row in np.flatnonzero(left).tolist():
        judged = _judge(values[row], keys[row], int(stamps_ms[row]), platforms, bounds)
        if isinstance(judged, Rejection):
            rejections.append((row, judged))
        else:
            others.append((row, judged))
    return _merge(joined, touches, others, rejections)


def lesson(raw: bytes) -> Shape | None:
    """The shape of a record, if the strict contract accepts it; its platform, key and age are judged row by row."""
    event = judge_bytes(raw)
    if isinstance(event, Rejection) or isinstance(judge_fields(event, {event.platform or "": 0}, 0), Rejection):
        return None
    return learn(raw, event.event_type in TOUCH_TYPES)


def _is_sound(
    touches: Touches, keys: Sequence[bytes | None], stamps_ms: np.ndarray, platforms: Mapping[str, int], bounds: Bounds
) -> np.ndarray:
    """Which touches have a platform of the policy, the key that they must have, and a time within bounds."""
    named, rows = touches.texts["platform"], touches.rows
    words = words_of(named.buffer)
    sound = np.zeros(len(rows), dtype=bool)
    stamps_ms = stamps_ms[rows]
    for platform, from_ms in platforms.items():
        name = platform.encode()
        sound |= (named.lengths == len(name)) & begins_with(words, named.starts, name) & (stamps_ms >= from_ms)
    sound &= touches.times_ms >= stamps_ms - bounds.max_event_age_ms
    sound &= touches.times_ms <= stamps_ms + bounds.max_clock_skew_ms
    owners = texts_of(keys if len(rows) == len(keys) else [keys[row] for row in rows.tolist()])
    return sound & ((owners.lengths == ABSENT) | equal(owners, touches.texts["user_id"]))


def _judge(
    raw: bytes | None, key: bytes | None, stamp_ms: int, platforms: Mapping[str, int], bounds: Bounds
) -> Accepted | Rejection:
    """One record: by its struct, if that can vouch for it."""
    try:
        event = decode_struct(raw)  # type: ignore[arg-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        event = None
    time_ms = parse_time_ms(event.event_time) if event is not None else None
    if (
        event is None
        or raw is None
        or time_ms is None
        or not stamp_ms - bounds.max_event_age_ms <= time_ms <= stamp_ms + bounds.max_clock_skew_ms
        or (key is not None and key != event.user_id.encode())
        or not _has_what_it_needs(event, stamp_ms, platforms)
        or _may_hide_something(event, raw)
    ):
        return decode_event(raw, key, stamp_ms, platforms, bounds.max_event_age_ms, bounds.max_clock_skew_ms)
    return Accepted(event, time_ms)


def _has_what_it_needs(event: Event, stamp_ms: int, platforms: Mapping[str, int]) -> bool:
    kind = event.event_type
    is_known = event.platform is not None and platforms.get(event.platform, NEVER_MS) <= stamp_ms
    if kind == "conversion":
        return event.conversion_name is not None and (event.platform is None or is_known)
    if kind == "visit":
        return event.page is not None
    # adjustments are few, and have rules of their own
    return kind in TOUCH_TYPES and is_known and event.campaign_id is not None


def _may_hide_something(event: Event, raw: bytes) -> bool:
    """Whether the bytes may hold a key twice, an unknown field, or a control character in an id.

    Without a backslash no character is escaped, so each colon of the bytes either ends a key or stands in a string. The
    colons left after those of the decoded strings are at least the keys, the keys at least the fields that are set; where
    they are equal, no key stands twice and no field is unknown.
    """
    if len(raw) > MAX_EVENT_BYTES or b"\\" in raw or b"\x7f" in raw:
        return True
    fields = [field for field in msgspec.structs.astuple(event) if field is not None]
    inside = sum([field.count(":") for field in fields if type(field) is str])
    return raw.count(b":") != len(fields) + inside


def _merge(
    joined: bytes, touches: Touches, others: list[tuple[int, Accepted]], rejections: list[tuple[int, Rejection]]
) -> Decoded:
    """Spans and structs as one set of columns, in the batch's order."""
    rows = np.concatenate([touches.rows, np.array([row for row, _ in others], dtype=np.int64)])
    events = [accepted.event for _, accepted in others]
    types = np.array([TYPE_CODE[event.event_type] for event in events], dtype=np.uint8)
    times_ms = np.array([accepted.time_ms for _, accepted in others], dtype=np.int64)
    costs = np.array([np.nan if event.cost is None else event.cost for event in events], dtype=np.float64)
    order = np.argsort(rows, kind="stable")
    place = np.empty(len(rows), dtype=np.int64)
    place[order] = np.arange(len(rows))
    structs = {
        index: event
        for index, event in zip(place[len(touches.rows) :].tolist(), events, strict=True)
        if event.event_type not in TOUCH_TYPES
    }
    return Decoded(
        rows[order],
        np.concatenate([touches.types, types])[order],
        np.concatenate([touches.times_ms, times_ms])[order],
        _columns(joined, touches, events, order),
        np.concatenate([touches.costs, costs])[order],
        structs,
        rejections,
    )


def _columns(joined: bytes, touches: Touches, events: list[Event], order: np.ndarray) -> dict[str, Texts]:
    """The texts of both in one buffer."""
    if not events:
        return {name: touches.texts[name].take(order) for name in COLUMNS}
    added = {
        name: [None if (text := getattr(event, name)) is None else text.encode() for event in events]
        for name in COLUMNS
    }
    own = texts_of([text for column in added.values() for text in column])
    buffer = np.frombuffer(joined + own.buffer.tobytes(), dtype=np.uint8)
    found = {}
    for number, name in enumerate(COLUMNS):
        rows = slice(number * len(events), (number + 1) * len(events))
        spans = touches.texts[name]
        found[name] = Texts(
            buffer,
            np.concatenate([spans.starts, own.starts[rows] + len(joined)])[order],
            np.concatenate([spans.lengths, own.lengths[rows]])[order],
        )
    return found
