"""Most records of a batch are written alike: the same keys in the same order, only the values differ. Such a *shape* is
learnt from one record that the strict contract accepted; then every other record is held against it as bytes, and its
values are spans of the buffer (see walk.py).

A record fits a shape only if each of its bytes is accounted for: every byte outside the values equals the first
record's, and every value keeps its field's rule. So a fit is as strict as `decode_event`. What does not fit, or has an
escape, a control or a non-ASCII character anywhere, goes there.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from app.columns.texts import PAD, in_a_row, sizes_of
from app.contract.events import MAX_EVENT_BYTES, TOUCH_ATTRIBUTES
from app.intake.walk import (
    COLUMNS,
    COST,
    DECIMAL,
    MET,
    NEW,
    OF_THE_CONTRACT,
    STAMP,
    TEXT,
    TIME,
    TOUCH,
    Found,
    PlannedShape,
    PlannedValue,
    plan_of,
    walk,
)

MAX_SHAPES: Final = 64
MAX_LESSONS: Final = 4  # new shapes a batch and number of quotes: learning costs as much as some hundred fits
WORTH_LEARNING: Final = 16  # records of one number of quotes that fit no shape yet

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
TEXT_OR_NUMBER: Final = "event_time"
# Known fields that no touch has: a record with one of them is judged by the strict contract.
OTHER_FIELDS: Final = frozenset(
    (
        "page",
        "referrer",
        "conversion_name",
        "value",
        "currency",
        "order_id",
        "adjustment",
        "conversion_event_id",
        "reported_by",
    )
)
REQUIRED: Final = ("event_id", "event_type", "event_time", "advertiser_id", "user_id", "platform", "campaign_id")

_ROOM: Final = 16  # of so many bytes one is left free for the texts of few
_LITERAL: Final = re.compile(rb"(:[ ]*)(null|true|false|-?[0-9][0-9.eE+-]*)([ ]*[,}])[ ]*$")

# Gives the shape of a record that the strict contract accepts, or None.
Lesson = Callable[[bytes], "Shape | None"]


class Value(NamedTuple):
    """A value that a shape has, by its field."""

    field: str
    is_text: bool


class Shape(NamedTuple):
    """The bytes of a record with its values left out: `constants[i]` stands before `values[i]`, the last one behind all."""

    quotes: int
    values: tuple[Value, ...]
    constants: tuple[bytes, ...]
    is_touch: bool  # else it is known only so that it need not be learnt again

    def is_of_the_contract(self) -> bool:
        """Whether it has no field that the contract does not know. One without a value, as null, may be unknown."""
        return all(value.field in OTHER_FIELDS or _is_known(value.field) for value in self.values)


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
            values.append(Value(field, True))
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
                values.append(Value(field, False))
                constant = behind + ending
            at += 2
        else:
            return None
    shape = Shape(quotes, tuple(values), (*constants, constant), False)
    return shape._replace(is_touch=is_touch and _is_touch(shape))


def _is_touch(shape: Shape) -> bool:
    """Whether the shape has a touch's fields as what they must be, and none that needs another judge."""
    for value in shape.values:
        is_sound = value.is_text != (value.field in NUMBER_FIELDS) or value.field == TEXT_OR_NUMBER
        if value.field in OTHER_FIELDS or (_is_known(value.field) and not is_sound):
            return False
    fields = {value.field for value in shape.values}
    return all(name in fields for name in REQUIRED)


def _is_known(field: str) -> bool:
    return field in TEXT_FIELDS or field in NUMBER_FIELDS


class Shapes:
    """The shapes that this process has met. They only save work, so any of them may be forgotten. `columns`: the texts that are
    wanted of each touch.
    """

    def __init__(self, columns: tuple[str, ...] = COLUMNS) -> None:
        self.columns = columns
        self._shapes: list[PlannedShape] = []
        self.plan = plan_of([], columns)

    def add(self, shape: Shape) -> bool:
        """Remembers a shape, and says whether it is a new one; forgets all of them where they are too many."""
        fate = TOUCH if shape.is_touch else OF_THE_CONTRACT if shape.is_of_the_contract() else MET
        planned = PlannedShape(shape.quotes, fate, [_planned(value) for value in shape.values], shape.constants)
        if planned in self._shapes:
            return False
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes = []
        self._shapes.append(planned)
        self.plan = plan_of(self._shapes, self.columns)
        return True


def _planned(value: Value) -> PlannedValue:
    if value.field == TEXT_OR_NUMBER:
        kind = STAMP if value.is_text else TIME
    else:
        kind = TEXT if value.is_text else COST if value.field == "cost" else DECIMAL
    return PlannedValue(kind, value.field, *TEXT_FIELDS.get(value.field, (0, MAX_EVENT_BYTES)))


def match(values: Sequence[bytes | None], shapes: Shapes, lesson: Lesson) -> tuple[np.ndarray, int, Found]:
    """The batch's bytes in a row (uint8; with PAD bytes behind them, and room for the texts of few), how many they are with the
    PAD bytes, and what is found in them along the shapes. Learns new ones.
    """
    try:
        present: Sequence[bytes] = values  # type: ignore[assignment]
        sizes = sizes_of(present)
    except TypeError:  # some are absent
        present = [value or b"" for value in values]
        sizes = sizes_of(present)
    used_bytes = int(sizes.sum()) + PAD
    buffer = in_a_row(present, PAD + used_bytes // _ROOM)
    found = walk(buffer, sizes, shapes.plan)
    learnt: Counter[int] = Counter()
    while _learn(present, np.flatnonzero(found.fates == NEW), shapes, lesson, learnt):
        found = walk(buffer, sizes, shapes.plan)
    return buffer, used_bytes, found


def _learn(values: Sequence[bytes], left: np.ndarray, shapes: Shapes, lesson: Lesson, lessons: Counter[int]) -> bool:
    """Takes a lesson of each number of quotes that so many of the records `left` have; whether a shape was learnt.

    `lessons`: how many were taken of each in this batch.
    """
    if len(left) < WORTH_LEARNING:
        return False
    by_quotes: dict[int, list[bytes]] = {}
    for row in left.tolist():
        by_quotes.setdefault(values[row].count(b'"'), []).append(values[row])
    learnt = False
    for quotes, alike in by_quotes.items():
        while len(alike) - lessons[quotes] >= WORTH_LEARNING and lessons[quotes] < MAX_LESSONS:
            shape = lesson(alike[lessons[quotes]])
            lessons[quotes] += 1
            if shape is not None and shapes.add(shape):
                learnt = True
                break
    return learnt
