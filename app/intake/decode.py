"""A batch of records becomes columns: the strict contract at the speed of a few passes over the batch's bytes.

Touches that are written like ones met before are read as spans of the bytes (see shapes.py). The others are decoded one by
one into the contract's struct; what the struct alone cannot vouch for makes a record *suspect*, and `decode_event` alone
accepts it or says why not. A check may suspect a sound record, never pass an unsound one.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from app.columns.compiled import BYTES, FLOATS, INT_ROWS, INTS, WORDS, compiled, filled
from app.columns.loops import is_same
from app.columns.texts import ABSENT, Texts, texts_of, words_of
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
from app.intake.shapes import Shape, Shapes, learn, match
from app.intake.walk import COLUMNS, MET, OF_THE_CONTRACT, TOUCH, Found
from app.policy.model import Bounds

TYPE_CODE: Final = {name: code for code, name in enumerate(EVENT_TYPES)}
CLICK: Final = TYPE_CODE["click"]
VISIT: Final = TYPE_CODE["visit"]
CONVERSION: Final = TYPE_CODE["conversion"]
ADJUSTMENT: Final = TYPE_CODE["adjustment"]
FORGET: Final = TYPE_CODE["forget"]
TOUCH_CODES: Final = len(TOUCH_TYPES)  # the codes below it are touches
_USER: Final = COLUMNS.index("user_id")
_PLATFORM: Final = COLUMNS.index("platform")


class Decoded(NamedTuple):
    """The accepted events of a batch, in the batch's order, and what was refused.

    All columns are aligned: `rows` (index in the batch), `types` (codes of EVENT_TYPES), `times_ms`, `texts` by column,
    `costs` (NaN where there is none). `events`: by index, the structs of those that are no touches.
    `rejections`: (index in the batch, why). `userless`: (index in the batch, an event whose user is still to be found), in no
    column.
    """

    rows: np.ndarray
    types: np.ndarray
    times_ms: np.ndarray
    texts: dict[str, Texts]
    costs: np.ndarray
    events: dict[int, Event]
    rejections: list[tuple[int, Rejection]]
    userless: list[tuple[int, Accepted]]


def decode_batch(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    stamps_ms: np.ndarray,
    platforms: Mapping[str, int],
    bounds: Bounds,
    shapes: Shapes,
) -> Decoded:
    """Judges every record of a batch; accepts and rejects exactly as `decode_event` does one at a time."""
    buffer, used_bytes, found = match(values, shapes, lesson)
    _suspect(buffer, found, keys, stamps_ms, platforms, bounds)
    rejections: list[tuple[int, Rejection]] = []
    others: list[tuple[int, Accepted]] = []
    userless: list[tuple[int, Accepted]] = []
    for row in np.flatnonzero(found.fates != TOUCH).tolist():
        hides_nothing = bool(found.fates[row] == OF_THE_CONTRACT)
        judged = _judge(values[row], keys[row], int(stamps_ms[row]), platforms, bounds, hides_nothing)
        if isinstance(judged, Rejection):
            rejections.append((row, judged))
        elif judged.event.user_id is None:
            userless.append((row, judged))
        else:
            others.append((row, judged))
    if others:
        buffer = _add(found, shapes.columns, others, buffer, used_bytes)
    return _merge(buffer, found, shapes.columns, others, rejections, userless)


def lesson(raw: bytes) -> Shape | None:
    """The shape of a record, if the strict contract accepts it; its platform, key and age are judged row by row."""
    event = judge_bytes(raw)
    if isinstance(event, Rejection) or isinstance(judge_fields(event, {event.platform or "": 0}, 0), Rejection):
        return None
    return learn(raw, event.event_type in TOUCH_TYPES)


def _suspect(
    buffer: np.ndarray,
    found: Found,
    keys: Sequence[bytes | None],
    stamps_ms: np.ndarray,
    platforms: Mapping[str, int],
    bounds: Bounds,
) -> None:
    """Leaves those touches to the strict contract that do not have a platform of the policy, the key that they must have, or
    a time within bounds.
    """
    names = texts_of([platform.encode() for platform in platforms])
    since_ms = np.fromiter(platforms.values(), dtype=np.int64, count=len(platforms))
    owners = texts_of(keys)
    span_ms = stamps_ms - bounds.max_event_age_ms, stamps_ms + bounds.max_clock_skew_ms
    words = words_of(buffer), words_of(owners.buffer), words_of(names.buffer)
    _suspect_all(*words, *owners[1:], *names[1:], since_ms, stamps_ms, *span_ms, *found)


@compiled(
    *(WORDS, WORDS, WORDS, INTS, INTS, INTS, INTS),
    *(INTS, INTS, INTS, INTS),
    *(filled(BYTES), BYTES, INTS, FLOATS, INT_ROWS, INT_ROWS),
)
def _suspect_all(
    words: np.ndarray,
    key_words: np.ndarray,
    name_words: np.ndarray,
    key_starts: np.ndarray,
    key_lengths: np.ndarray,
    name_starts: np.ndarray,
    name_lengths: np.ndarray,
    since_ms: np.ndarray,
    stamps_ms: np.ndarray,
    earliest_ms: np.ndarray,
    latest_ms: np.ndarray,
    fates: np.ndarray,
    types: np.ndarray,
    times_ms: np.ndarray,
    costs: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
) -> None:
    for row in range(len(stamps_ms)):
        if fates[row] != TOUCH:
            continue
        start, length = starts[_USER, row], lengths[_USER, row]
        is_sound = key_lengths[row] == ABSENT or (
            key_lengths[row] == length and is_same(words, start, key_words, key_starts[row], length)
        )
        start, length = starts[_PLATFORM, row], lengths[_PLATFORM, row]
        is_named = False
        for name in range(len(since_ms)):
            if name_lengths[name] == length and is_same(words, start, name_words, name_starts[name], length):
                is_named = stamps_ms[row] >= since_ms[name]
        if not (is_sound and is_named and earliest_ms[row] <= times_ms[row] <= latest_ms[row]):
            fates[row] = MET


def _judge(
    raw: bytes | None,
    key: bytes | None,
    stamp_ms: int,
    platforms: Mapping[str, int],
    bounds: Bounds,
    hides_nothing: bool,
) -> Accepted | Rejection:
    """One record: by its struct, if that can vouch for it. `hides_nothing`: its bytes were looked at."""
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
        or (not hides_nothing and _may_hide_something(event, raw))
    ):
        click_ids = bounds.click_ids is not None
        return decode_event(raw, key, stamp_ms, platforms, bounds.max_event_age_ms, bounds.max_clock_skew_ms, click_ids)
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
    buffer: np.ndarray,
    found: Found,
    names: tuple[str, ...],
    others: list[tuple[int, Accepted]],
    rejections: list[tuple[int, Rejection]],
    userless: list[tuple[int, Accepted]],
) -> Decoded:
    """Spans and structs as one set of columns, by `names`, in the batch's order."""
    columns = {name: Texts(buffer, found.starts[at], found.lengths[at]) for at, name in enumerate(names)}
    events = {row: event for row, (event, _) in others if event.event_type not in TOUCH_TYPES}
    left_out = [row for row, _ in (*rejections, *userless)]
    if not left_out:
        rows = np.arange(len(found.fates))
        return Decoded(rows, found.types, found.times_ms, columns, found.costs, events, rejections, userless)
    is_accepted = np.ones(len(found.fates), dtype=bool)
    is_accepted[left_out] = False
    places = np.cumsum(is_accepted) - 1
    return Decoded(
        np.flatnonzero(is_accepted),
        found.types[is_accepted],
        found.times_ms[is_accepted],
        {name: column.take(is_accepted) for name, column in columns.items()},
        found.costs[is_accepted],
        {int(places[row]): event for row, event in events.items()},
        rejections,
        userless,
    )


def _add(
    found: Found, names: tuple[str, ...], others: list[tuple[int, Accepted]], buffer: np.ndarray, used_bytes: int
) -> np.ndarray:
    """Puts structs in their rows, and their texts behind the bytes that are used; the buffer of all texts."""
    rows = [row for row, _ in others]
    events = [accepted.event for _, accepted in others]
    found.types[rows] = [TYPE_CODE[event.event_type] for event in events]
    found.times_ms[rows] = [accepted.time_ms for _, accepted in others]
    found.costs[rows] = [np.nan if event.cost is None else event.cost for event in events]
    added = [None if (text := getattr(event, name)) is None else text.encode() for name in names for event in events]
    own = texts_of(added)
    found.starts[:, rows] = (own.starts + used_bytes).reshape(len(names), -1)
    found.lengths[:, rows] = own.lengths.reshape(len(names), -1)
    end = used_bytes + len(own.buffer)
    if end > len(buffer):
        return np.concatenate([buffer[:used_bytes], own.buffer])
    buffer[used_bytes:end] = own.buffer
    return buffer
