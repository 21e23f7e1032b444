"""Walks through the bytes of a batch's records, one after the other, along the shapes that were met before (see shapes.py)."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from app.columns.compiled import BYTES, FLOATS, INT_ROWS, INTS, WORDS, compiled, filled, inlined
from app.columns.loops import is_same
from app.columns.texts import ABSENT, in_a_row, words_of
from app.contract.events import MAX_AMOUNT, MAX_EVENT_BYTES, TOUCH_ATTRIBUTES, TOUCH_TYPES

COLUMNS: Final = ("event_id", "user_id", "advertiser_id", "platform", *TOUCH_ATTRIBUTES)
CLICK_ID: Final = "click_id"  # a column behind them where clicks are found by it

# What becomes of a record
NEW: Final = 0  # it fits no shape
ODD: Final = 4  # it has an escape, a control or a non-ASCII character, or is too long or empty
MET: Final = 1  # it fits a shape that is no touch's, or has another type
OF_THE_CONTRACT: Final = 2  # as MET, and its shape has no key twice and none that the contract does not know
TOUCH: Final = 3  # its values are found

# What a value is
TEXT: Final = 0
TIME: Final = 1
COST: Final = 2
DECIMAL: Final = 3  # of a field that onecount ignores
STAMP: Final = 4  # a time as text, RFC 3339

_QUOTE, _BACKSLASH, _SPACE, _TILDE, _ZERO, _NINE, _POINT = (np.uint8(ord(byte)) for byte in '"\\ ~09.')
_DASH, _COLON, _PLUS, _T, _Z, _LOWER = (np.uint8(ord(byte)) for byte in "-:+TZ ")  # a letter | _LOWER is its lower case
_IN_NUMBERS: Final = np.array([chr(byte) in "0123456789.eE+-" for byte in range(256)])
_TIME_DIGITS: Final = 13  # September 2001 to 2286
_EPOCH_DAYS: Final = 719_162  # from 0001-01-01 to 1970-01-01
_STAMP_BYTES: Final = 20  # 2026-11-27T02:05:56Z, at least
_FRACTION: Final = 9  # digits of a second, of which three count
_DAYS_BEFORE: Final = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365], dtype=np.int64)  # a month
_MAX_DIGITS: Final = 15  # so many always fit a float exactly
_POWERS: Final = 10.0 ** np.arange(_MAX_DIGITS + 1)
_KINDS: Final = len(TOUCH_TYPES)
_NO_COLUMN: Final = -1
_KIND_COLUMN: Final = -2


class Plan(NamedTuple):
    """Shapes as arrays of int64, as `_walk_all` reads them.

    A shape: its number of quotes, its fate, its first value, its first constant, its number of values; it has one constant
    more. A value: what it is, the column its spans are kept in (or _NO_COLUMN), the fewest and the most bytes of a text. A
    constant: where it begins in `bytes` (PAD bytes behind the last one) and its size; the first ones are TOUCH_TYPES.
    """

    shapes: np.ndarray
    values: np.ndarray
    constants: np.ndarray
    bytes: np.ndarray
    columns: int  # how many texts are kept


class Found(NamedTuple):
    """What a walk found, by row: all of it for those whose fate is TOUCH."""

    fates: np.ndarray  # uint8
    types: np.ndarray  # uint8: codes of TOUCH_TYPES
    times_ms: np.ndarray
    costs: np.ndarray  # NaN where there is none
    starts: np.ndarray  # int64, one row a column
    lengths: np.ndarray


class PlannedValue(NamedTuple):
    """A value as a plan has it: TEXT, TIME, STAMP, COST or DECIMAL, its field, and the fewest and the most bytes of a text."""

    kind: int
    field: str
    fewest: int
    most: int


class PlannedShape(NamedTuple):
    """A shape as a plan has it: the fate of the records that fit it, and the constants around its values."""

    quotes: int
    fate: int
    values: Sequence[PlannedValue]
    constants: Sequence[bytes]


def plan_of(shapes: Sequence[PlannedShape], kept: tuple[str, ...] = COLUMNS) -> Plan:
    """The plan by which a walk tries these shapes, in their order; `kept`: the texts that it keeps, COLUMNS first."""
    columns = {name: place for place, name in enumerate(kept)} | {"event_type": _KIND_COLUMN}
    constants = [name.encode() for name in TOUCH_TYPES]
    rows: list[tuple[int, ...]] = []
    values: list[tuple[int, ...]] = []
    for shape in shapes:
        rows.append((shape.quotes, shape.fate, len(values), len(constants), len(shape.values)))
        for kind, field, fewest, most in shape.values:
            values.append((kind, columns.get(field, _NO_COLUMN) if kind == TEXT else _NO_COLUMN, fewest, most))
        constants += shape.constants
    sizes = np.array([len(constant) for constant in constants], dtype=np.int64)
    return Plan(
        np.array(rows, dtype=np.int64).reshape(-1, 5),
        np.array(values, dtype=np.int64).reshape(-1, 4),
        np.stack([np.cumsum(sizes) - sizes, sizes], axis=1),
        in_a_row(constants),
        len(kept),
    )


def walk(buffer: np.ndarray, sizes: np.ndarray, plan: Plan) -> Found:
    """Holds every record against the shapes; `sizes`: how long each is of the records that stand in the buffer in a row."""
    count = len(sizes)
    found = Found(
        np.empty(count, dtype=np.uint8),
        np.empty(count, dtype=np.uint8),
        np.empty(count, dtype=np.int64),
        np.empty(count, dtype=np.float64),
        np.zeros((plan.columns, count), dtype=np.int64),
        np.full((plan.columns, count), ABSENT, dtype=np.int64),
    )
    spans = np.empty((len(plan.values) + 1, 2), dtype=np.int64)
    _walk_all(buffer, words_of(buffer), sizes, *plan[:3], words_of(plan.bytes), *found, spans)
    return found


@inlined
def _quotes(buffer: np.ndarray, begin: int, end: int) -> int:
    """How many quotes a record has; -1 where a byte in it needs a JSON decoder's care, or is not ASCII."""
    quotes, odd = np.int32(0), np.int32(0)
    for byte in buffer[begin:end]:
        quotes += np.int32(byte == _QUOTE)
        odd |= np.int32((byte < _SPACE) | (byte > _TILDE) | (byte == _BACKSLASH))
    return np.int64(quotes) if odd == 0 else -1


@inlined
def _fits(
    buffer: np.ndarray,
    words: np.ndarray,
    begin: int,
    end: int,
    first: int,
    behind: int,
    values: np.ndarray,
    first_constant: int,
    constants: np.ndarray,
    constant_words: np.ndarray,
    spans: np.ndarray,
) -> bool:
    """Whether a record's bytes are a shape's constants and something between them; finds the spans of that."""
    at = begin
    holds = True
    for place in range(behind - first + 1):
        size = constants[first_constant + place, 1]
        if at + size > end or not is_same(words, at, constant_words, constants[first_constant + place, 0], size):
            holds = False
            break
        at += size
        if first + place == behind:
            break
        start = at
        if values[first + place, 0] in (TEXT, STAMP):
            while at < end and buffer[at] != _QUOTE:
                at += 1
        else:
            while at < end and _IN_NUMBERS[buffer[at]]:
                at += 1
        spans[place, 0], spans[place, 1] = start, at - start
    return holds and at == end


@inlined
def _read(
    buffer: np.ndarray,
    words: np.ndarray,
    first: int,
    behind: int,
    values: np.ndarray,
    constants: np.ndarray,
    constant_words: np.ndarray,
    spans: np.ndarray,
) -> tuple[int, int, int, float]:
    """The fate of a record that fits a touch's shape, and its type, time and cost."""
    kind, time_ms, cost = _KINDS, -1, np.nan
    fate = MET
    for value in range(first, behind):
        start, length = spans[value - first, 0], spans[value - first, 1]
        what = values[value, 0]
        if what == TEXT:
            if not values[value, 2] <= length <= values[value, 3]:
                fate = NEW
            elif values[value, 1] == _KIND_COLUMN:
                for code in range(_KINDS):
                    if constants[code, 1] == length and is_same(
                        words, start, constant_words, constants[code, 0], length
                    ):
                        kind = code
        elif what in (TIME, STAMP):
            time_ms = _time(buffer, start, length) if what == TIME else _stamp(buffer, start, length)
            if time_ms < 0:
                fate = NEW
        else:
            amount = _decimal(buffer, start, length)
            if amount < 0:
                fate = NEW
            elif what == COST:
                cost = amount
    return (TOUCH if kind < _KINDS and fate == MET else fate), kind, time_ms, cost


@inlined
def _time(buffer: np.ndarray, start: int, length: int) -> int:
    """The milliseconds of a time of exactly 13 digits; below 0 of any other one."""
    return -1 if length != _TIME_DIGITS or buffer[start] == _ZERO else _digits(buffer, start, length)


@inlined
def _stamp(buffer: np.ndarray, start: int, length: int) -> int:
    """The milliseconds of an RFC 3339 time with a zone that has 13 digits of them (2001 to 2286), as `parse_time_ms` has it; -1
    of any other text, and of what that alone judges.
    """
    is_utc = buffer[start + length - 1] | _LOWER == _Z | _LOWER
    zone = start + length - (1 if is_utc else 6)
    if length < _STAMP_BYTES or zone < start + _STAMP_BYTES - 1:
        return -1
    if buffer[start + 4] != _DASH or buffer[start + 7] != _DASH:
        return -1
    if buffer[start + 10] | _LOWER != _T | _LOWER and buffer[start + 10] != _SPACE:
        return -1
    if buffer[start + 13] != _COLON or buffer[start + 16] != _COLON:
        return -1
    year = _digits(buffer, start, 2) * 100 + _digits(buffer, start + 2, 2)
    month, day = _digits(buffer, start + 5, 2), _digits(buffer, start + 8, 2)
    hour, minute, second = (
        _digits(buffer, start + 11, 2),
        _digits(buffer, start + 14, 2),
        _digits(buffer, start + 17, 2),
    )
    if not (2001 <= year <= 2286 and 1 <= month <= 12 and 0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 59):
        return -1
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= day <= _DAYS_BEFORE[month] - _DAYS_BEFORE[month - 1] + (leap and month == 2):
        return -1
    offset = 0
    if not is_utc:
        hours, minutes = _digits(buffer, zone + 1, 2), _digits(buffer, zone + 4, 2)
        is_behind = buffer[zone] == _DASH
        if not (is_behind or buffer[zone] == _PLUS) or buffer[zone + 3] != _COLON:
            return -1
        if not (0 <= hours <= 23 and 0 <= minutes <= 59):
            return -1
        offset = -(hours * 60 + minutes) if is_behind else hours * 60 + minutes
    digits = zone - start - _STAMP_BYTES
    milliseconds = 0
    if digits >= 0:
        if buffer[start + 19] != _POINT or not 1 <= digits <= _FRACTION:
            return -1
        for at in range(digits):
            digit = _digits(buffer, start + _STAMP_BYTES + at, 1)
            if digit < 0:
                return -1
            if at < 3:
                milliseconds = milliseconds * 10 + digit
        for _ in range(digits, 3):
            milliseconds *= 10
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 - _EPOCH_DAYS
    days += _DAYS_BEFORE[month - 1] + (leap and month > 2) + day - 1
    time_ms = (((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + milliseconds
    return time_ms if 10**12 <= time_ms < 10**13 else -1


@inlined
def _digits(buffer: np.ndarray, start: int, count: int) -> int:
    """A number of so many digits; below 0 where one of them is none."""
    number = 0
    for at in range(start, start + count):
        if not _ZERO <= buffer[at] <= _NINE:
            return -10_000
        number = number * 10 + np.int64(buffer[at] - _ZERO)
    return number


@inlined
def _decimal(buffer: np.ndarray, start: int, length: int) -> float:
    """A plain amount such as 0, 12 or 0.25 as a float, the same as a JSON decoder's; -1 for any other text.

    A whole number below 10**15 and a power of ten up to 10**15 are floats exactly, so their quotient is the nearest one.
    """
    mantissa, digits, decimals = 0, 0, -1  # no point yet
    for at in range(start, start + length):
        if buffer[at] == _POINT and decimals < 0 and digits > 0:
            decimals = 0
        elif _ZERO <= buffer[at] <= _NINE and digits < _MAX_DIGITS:
            mantissa = mantissa * 10 + np.int64(buffer[at] - _ZERO)
            digits += 1
            decimals += decimals >= 0
        else:
            return -1.0
    whole = digits - max(decimals, 0)
    if digits == 0 or decimals == 0 or (buffer[start] == _ZERO and whole > 1):  # JSON has no leading zeros
        return -1.0
    amount = mantissa / _POWERS[max(decimals, 0)]
    return amount if amount <= MAX_AMOUNT else -1.0


# behind what it calls, since it is compiled where it stands
@compiled(
    *(BYTES, WORDS, INTS),
    *(INT_ROWS, INT_ROWS, INT_ROWS, WORDS),
    *(filled(BYTES), filled(BYTES), filled(INTS), filled(FLOATS), filled(INT_ROWS), filled(INT_ROWS), filled(INT_ROWS)),
)
def _walk_all(
    buffer: np.ndarray,
    words: np.ndarray,
    sizes: np.ndarray,
    shapes: np.ndarray,
    values: np.ndarray,
    constants: np.ndarray,
    constant_words: np.ndarray,
    fates: np.ndarray,
    types: np.ndarray,
    times_ms: np.ndarray,
    costs: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    spans: np.ndarray,
) -> None:
    """Arrays only, each by its own name: Numba counts a reference wherever one is taken from a tuple."""
    begin = 0
    for row in range(len(sizes)):
        end = begin + sizes[row]
        fates[row] = ODD
        quotes = _quotes(buffer, begin, end) if begin < end <= begin + MAX_EVENT_BYTES else -1
        if quotes >= 0:
            fates[row] = NEW
            for shape in range(len(shapes)):
                if shapes[shape, 0] != quotes:
                    continue
                first, behind = shapes[shape, 2], shapes[shape, 2] + shapes[shape, 4]
                constant = shapes[shape, 3]
                if not _fits(
                    buffer, words, begin, end, first, behind, values, constant, constants, constant_words, spans
                ):
                    continue
                fate = shapes[shape, 1]
                if fate == TOUCH:
                    fate, types[row], times_ms[row], costs[row] = _read(
                        buffer, words, first, behind, values, constants, constant_words, spans
                    )
                if fate == TOUCH:
                    for value in range(first, behind):
                        column = values[value, 1]
                        if column >= 0:
                            starts[column, row], lengths[column, row] = spans[value - first, 0], spans[value - first, 1]
                fates[row] = fate
                if fate != NEW:
                    break
        begin = end
