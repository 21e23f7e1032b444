"""Most records of a batch are written alike: the same keys in the same order, only the values differ. Such a *shape* is
learnt from one record that the strict contract accepted; then every other record is held against it as bytes, a whole
column at once, and its values are spans of the buffer.

A record fits a shape only if each of its bytes is accounted for: every byte outside the values equals the first
record's, and every value keeps its field's rule. So a fit is as strict as `decode_event`. What does not fit, or has an
escape, a control or a non-ASCII character anywhere, goes there.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from app.columns.texts import ABSENT, PAD, Texts, begins_with, eight_digits, odd_bytes, words_of
from app.contract.events import MAX_AMOUNT, MAX_EVENT_BYTES, TOUCH_ATTRIBUTES, TOUCH_TYPES

MAX_SHAPES: Final = 64
MAX_LESSONS: Final = 4  # new shapes a batch and number of quotes: learning costs as much as some hundred fits
WORTH_LEARNING: Final = 16  # records of one number of quotes that fit no shape yet
SLICE: Final = 8_192  # records that are matched at a time, so that what is looked at stays in the processor's cache
MAX_DIGITS: Final = 15  # so many always fit a float exactly
QUOTE: Final = ord('"')

# The most bytes of each field that a touch may have (all ASCII here, so bytes are characters), and the fewest.
TEXT_FIELDS: Final = {
    "event_id": (1, 128),
    "event_type": (1, 16),
    "advertiser_id": (1, 128),
    "user_id": (1, 128),
    "platform": (1, 128),
    **dict.fromkeys(TOUCH_ATTRIBUTES, (1, 128)),
    "landing_page": (0, 2048),
    "click_id": (0, 512),
}
NUMBER_FIELDS: Final = ("event_time", "cost")
# Known fields that no touch has: a record with one of them is judged by the strict contract.
OTHER_FIELDS: Final = frozenset(
    ("page", "referrer", "conversion_name", "value", "currency", "order_id", "adjustment", "conversion_event_id")
)
REQUIRED: Final = ("event_id", "event_type", "event_time", "advertiser_id", "user_id", "platform", "campaign_id")
COLUMNS: Final = ("event_id", "user_id", "advertiser_id", "platform", *TOUCH_ATTRIBUTES)

_LITERAL: Final = re.compile(rb"(:[ ]*)(null|true|false|-?[0-9][0-9.eE+-]*)([ ]*[,}])[ ]*$")
_TIME_DIGITS: Final = 13


# Gives the shape of a record that the strict contract accepts, or None.
Lesson = Callable[[bytes], "Shape | None"]


class Value(NamedTuple):
    """Where a shape has a value: its field ("" for one that onecount ignores), between which quotes, and as what."""

    field: str
    quote: int  # the number of the quote before it
    before: int  # bytes from that quote to the value
    behind: int  # bytes from the value to the next quote, or to the record's end
    is_text: bool


class Shape(NamedTuple):
    """The bytes of a record with its values left out: `constants[i]` stands before `values[i]`, the last one behind all."""

    quotes: int
    values: tuple[Value, ...]
    constants: tuple[bytes, ...]
    is_touch: bool  # else it is known only so that it need not be learnt again


class Touches(NamedTuple):
    """The records that fit a touch's shape: their rows in the batch, in order, and their values as columns."""

    rows: np.ndarray
    types: np.ndarray  # codes of TOUCH_TYPES
    times_ms: np.ndarray
    texts: dict[str, Texts]  # by COLUMNS
    costs: np.ndarray  # NaN where there is none

    def take(self, chosen: np.ndarray) -> "Touches":
        """The records of a mask."""
        if chosen.all():
            return self
        texts = {name: column.take(chosen) for name, column in self.texts.items()}
        return Touches(self.rows[chosen], self.types[chosen], self.times_ms[chosen], texts, self.costs[chosen])


def learn(raw: bytes, is_touch: bool) -> Shape | None:
    """The shape of a record that the strict contract accepted; None for one with nested values.

    `is_touch`: it is a view, click or engaged view.
    """
    parts = raw.split(b'"')
    if len(parts) % 2 == 0 or parts[0].strip(b" ") != b"{":
        return None
    values: list[Value] = []
    constants: list[bytes] = []
    constant, at = parts[0] + b'"', 1
    quotes = len(parts) - 1
    while at < quotes:
        field, between = parts[at].decode(), parts[at + 1]
        constant += parts[at] + b'"'
        if between.strip(b" ") == b":":  # a text
            constants.append(constant + between + b'"')
            values.append(Value(field, at + 1, 1, 0, True))
            constant = b'"' + parts[at + 3] + (b'"' if at + 3 < quotes else b"")
            at += 4
        elif literal := _LITERAL.fullmatch(between):
            colon, text, _ = literal.groups()
            behind = between[len(colon) + len(text) :]
            ending = b'"' if at + 1 < quotes else b""
            if text in (b"null", b"true", b"false"):
                constant += between + ending
            else:
                constants.append(constant + colon)
                values.append(Value(field, at, len(colon) + 1, len(behind), False))
                constant = behind + ending
            at += 2
        else:
            return None
    shape = Shape(quotes, tuple(values), (*constants, constant), False)
    return shape._replace(is_touch=is_touch and _is_touch(shape))


def _is_touch(shape: Shape) -> bool:
    """Whether the shape has a touch's fields as what they must be, and none that needs another judge."""
    for value in shape.values:
        if value.field in OTHER_FIELDS or (
            value.is_text != (value.field not in NUMBER_FIELDS) and _is_known(value.field)
        ):
            return False
    fields = {value.field for value in shape.values}
    return all(name in fields for name in REQUIRED)


def _is_known(field: str) -> bool:
    return field in TEXT_FIELDS or field in NUMBER_FIELDS


class Shapes:
    """The shapes that this process has met. They only save work, so any of them may be forgotten."""

    def __init__(self) -> None:
        self.by_quotes: dict[int, list[Shape]] = {}
        self.count = 0

    def add(self, shape: Shape) -> None:
        """Remembers a shape; forgets all of them where they are too many."""
        if self.count >= MAX_SHAPES:
            self.by_quotes, self.count = {}, 0
        self.by_quotes.setdefault(shape.quotes, []).append(shape)
        self.count += 1


class _Group(NamedTuple):
    """Records with the same number of quotes: their rows in the batch, where they start and end in the buffer, and where
    their quotes stand (one row of `places` a quote).
    """

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    places: np.ndarray

    def take(self, chosen: np.ndarray) -> "_Group":
        return _Group(self.rows[chosen], self.starts[chosen], self.ends[chosen], self.places[:, chosen])


class _Fit(NamedTuple):
    """The records of a group that fit a touch's shape: spans of the texts, and the numbers."""

    rows: np.ndarray
    spans: dict[str, tuple[np.ndarray, np.ndarray]]  # starts and lengths by field
    times_ms: np.ndarray
    costs: np.ndarray


def match(values: Sequence[bytes | None], shapes: Shapes, lesson: Lesson) -> tuple[bytes, Touches]:
    """The batch's bytes in a row (with PAD bytes behind them), and every touch in it that fits a shape."""
    present = [value or b"" for value in values] if None in values else values
    lengths = np.fromiter(map(len, present), dtype=np.int64, count=len(present))  # type: ignore[arg-type]
    joined = b"".join(present) + bytes(PAD)  # type: ignore[arg-type]
    buffer = np.frombuffer(joined, dtype=np.uint8)
    ends = np.cumsum(lengths)
    plain = (lengths > 0) & (lengths <= MAX_EVENT_BYTES)
    body = buffer[:-PAD]
    if b"\\" in joined or b"\x7f" in joined or not joined.isascii() or body.min(initial=32) < 32:
        plain[np.searchsorted(ends, odd_bytes(body), side="right")] = False
    fits: list[_Fit] = []
    for first in range(0, len(values), SLICE):
        fits += _match_slice(slice(first, first + SLICE), plain, lengths, ends, buffer, values, shapes, lesson)
    return joined, _columns(fits, buffer)


def _match_slice(
    part: slice,
    plain: np.ndarray,
    lengths: np.ndarray,
    ends: np.ndarray,
    buffer: np.ndarray,
    values: Sequence[bytes | None],
    shapes: Shapes,
    lesson: Lesson,
) -> list[_Fit]:
    """The fits of some rows; their spans are those of the whole buffer."""
    begin = int(ends[part.start] - lengths[part.start])
    quotes = begin + np.flatnonzero(buffer[begin : int(ends[part][-1])] == QUOTE)
    behind = np.searchsorted(quotes, ends[part])
    counts = np.diff(behind, prepend=0)
    fits: list[_Fit] = []
    for count in np.unique(counts[plain[part]]).tolist():
        inside = np.flatnonzero(plain[part] & (counts == count))
        rows = part.start + inside
        places = quotes[(behind[inside] - count)[None, :] + np.arange(count)[:, None]]
        group = _Group(rows, ends[rows] - lengths[rows], ends[rows], places)
        fits += _fit_group(group, count, buffer, values, shapes, lesson)
    return fits


def _fit_group(
    left: _Group, quotes: int, buffer: np.ndarray, values: Sequence[bytes | None], shapes: Shapes, lesson: Lesson
) -> list[_Fit]:
    fits: list[_Fit] = []

    def take(shape: Shape) -> None:
        nonlocal left
        holds, fit = _fit(shape, left, buffer)
        if fit is not None:
            fits.append(fit)
        if holds.any():
            left = left.take(~holds)

    for shape in list(shapes.by_quotes.get(quotes, ())):
        if len(left.rows):
            take(shape)
    lessons = 0
    while len(left.rows) >= WORTH_LEARNING and lessons < MAX_LESSONS:
        lessons += 1
        learnt = lesson(values[left.rows[0]] or b"")
        if learnt is not None:
            shapes.add(learnt)
            take(learnt)
        if learnt is None or learnt.quotes != quotes:
            left = left.take(np.arange(1, len(left.rows)))
    return fits


def _fit(shape: Shape, group: _Group, buffer: np.ndarray) -> tuple[np.ndarray, _Fit | None]:
    """Which records of the group fit the shape, and their columns if it is a touch's."""
    words = words_of(buffer)
    holds = np.ones(len(group.rows), dtype=bool)
    reached = group.starts
    spans: list[tuple[np.ndarray, np.ndarray]] = []
    for value, constant in zip(shape.values, shape.constants, strict=False):
        starts = group.places[value.quote] + value.before
        following = value.quote + 1
        ends = (group.places[following] if following < shape.quotes else group.ends) - value.behind
        holds &= (starts - reached == len(constant)) & (ends >= starts)
        holds &= begins_with(words, reached, constant)
        reached = ends
        spans.append((starts, ends - starts))
    last = shape.constants[-1]
    holds &= (group.ends - reached == len(last)) & begins_with(words, reached, last)
    if not shape.is_touch:
        return holds, None
    for value, (_, lengths) in zip(shape.values, spans, strict=True):
        fewest, most = TEXT_FIELDS.get(value.field, (0, MAX_EVENT_BYTES))
        if value.is_text:
            holds &= (lengths >= fewest) & (lengths <= most)
    numbers = {}
    for place, (value, (starts, lengths)) in enumerate(zip(shape.values, spans, strict=True)):
        if not value.is_text:
            is_time = value.field == "event_time"
            # where the constants do not hold, a span may be anywhere
            span = np.where(holds, starts, 0), np.where(holds, lengths, 0)
            sound, numbers[value.field or place] = (
                _read_times(words, *span) if is_time else _read_decimals(buffer, *span)
            )
            holds &= sound
    texts = {value.field: span for value, span in zip(shape.values, spans, strict=True) if value.is_text}
    costs = numbers.get("cost")
    return holds, _Fit(
        group.rows[holds],
        {name: (texts[name][0][holds], texts[name][1][holds]) for name in (*COLUMNS, "event_type") if name in texts},
        numbers["event_time"][holds],
        costs[holds] if costs is not None else np.full(int(holds.sum()), np.nan),
    )


def _read_times(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times of exactly 13 digits (September 2001 to 2286): which are, and their milliseconds."""
    whole = lengths == _TIME_DIGITS
    starts = np.where(whole, starts, 0)
    upper_sound, upper = eight_digits(words[starts])
    lower_sound, lower = eight_digits(words[starts + 5])
    times = upper.astype(np.int64) * 100_000 + (lower % np.uint64(100_000)).astype(np.int64)
    return whole & upper_sound & lower_sound & (times >= 10 ** (_TIME_DIGITS - 1)), times


def _read_decimals(buffer: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plain amounts such as 0, 12 or 0.25: which are, and their floats, the same as a JSON decoder's.

    A whole number below 10**15 and a power of ten up to 10**15 are floats exactly, so their quotient is the nearest one. One
    of more digits is above MAX_AMOUNT.
    """
    sound = (lengths > 0) & (lengths <= MAX_DIGITS + 1)
    first = buffer[starts] - ord("0")
    mantissa = np.zeros(len(starts), dtype=np.int64)
    point = np.full(len(starts), -1, dtype=np.int64)  # where the decimal point stands
    for at in range(int(lengths[sound].max(initial=0))):
        inside = sound & (lengths > at)
        byte = buffer[np.where(inside, starts + at, 0)]
        digit = byte - ord("0")
        is_digit = digit <= 9
        is_point = inside & (byte == ord("."))
        sound &= ~inside | is_digit | (is_point & (point < 0) & (at > 0) & (at < lengths - 1))
        point[is_point & (point < 0)] = at
        mantissa = np.where(inside & is_digit, mantissa * 10 + digit, mantissa)
    whole = np.where(point < 0, lengths, point)
    sound &= (first > 0) | (whole == 1)  # JSON has no leading zeros
    decimals = np.where(sound & (point >= 0), lengths - point - 1, 0)
    amounts = mantissa / 10.0**decimals
    return sound & (amounts <= MAX_AMOUNT), amounts


def _columns(fits: list[_Fit], buffer: np.ndarray) -> Touches:
    """All fits as columns, by row; records whose type is no touch's are left out."""
    rows = np.concatenate([fit.rows for fit in fits]) if fits else np.empty(0, dtype=np.int64)
    order = np.argsort(rows, kind="stable")

    def column(name: str) -> Texts:
        missing = [(np.zeros(len(fit.rows), dtype=np.int64), np.full(len(fit.rows), ABSENT)) for fit in fits]
        parts = [fit.spans.get(name, none) for fit, none in zip(fits, missing, strict=True)]
        starts = np.concatenate([start for start, _ in parts]) if parts else np.empty(0, dtype=np.int64)
        lengths = np.concatenate([length for _, length in parts]) if parts else np.empty(0, dtype=np.int64)
        return Texts(buffer, starts[order], lengths[order])

    words, kinds = words_of(buffer), column("event_type")
    types = np.full(len(rows), len(TOUCH_TYPES), dtype=np.uint8)
    for code, name in enumerate(TOUCH_TYPES):
        types[(kinds.lengths == len(name)) & begins_with(words, kinds.starts, name.encode())] = code
    known = types < len(TOUCH_TYPES)
    times = np.concatenate([fit.times_ms for fit in fits]) if fits else np.empty(0, dtype=np.int64)
    costs = np.concatenate([fit.costs for fit in fits]) if fits else np.empty(0)
    return Touches(
        rows[order][known],
        types[known],
        times[order][known],
        {name: column(name).take(known) for name in COLUMNS},
        costs[order][known],
    )
