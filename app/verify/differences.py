"""Holds what was published beside the answer, row by row; pure functions over what the topics held."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import orjson

from app.contract import rows
from app.contract.journeys import JourneyRow, ModelRow, PathTouch
from app.contract.reasons import UNKNOWN_SCHEMA
from app.contract.rows import AttributedRow, CountRow, DeadLetter
from app.policy.model import Policy
from app.verify.answer import Answer
from app.verify.oracle import refusals_over_time
from app.verify.records import Coordinates, Person, show

Row: TypeAlias = AttributedRow | CountRow | JourneyRow | ModelRow
# What is not a function of the input: how often a row was corrected, and when its window was closed.
NOT_COMPARED: Final = ("revision", "final")
MAX_WORDS: Final = 1000  # characters of one value that are shown


class Difference(NamedTuple):
    """One thing that is not as it must be: in which topic, about what, in words, and the raw records behind it."""

    topic: str
    about: str
    details: tuple[str, ...]
    behind: tuple[Coordinates, ...] = ()


class Upsert(NamedTuple):
    """One record of an output topic; a null `value` deletes its key."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


class Published(NamedTuple):
    """An output topic folded: the latest row of each key that is not deleted, and what its log did wrong on the way."""

    rows: dict[bytes, Any]
    partitions: dict[bytes, int]  # on which each of those rows lies
    faults: list[Difference]


def fold_log(
    topic: str,
    upserts: Iterable[Upsert],
    decode: Callable[[bytes], Row],
    is_forgotten: Callable[[bytes], bool] = lambda key: False,
) -> Published:
    """The topic's latest rows, and its faults. `is_forgotten`: whether a key is that of somebody who was forgotten.

    A fault is a record without a key or with an unreadable row, a key on two partitions, a revision below an earlier
    one of its key (a deletion does not start it anew, but where it forgot somebody), or the same row with the same
    revision twice in succession.
    """
    latest: dict[bytes, Row] = {}
    seen: dict[bytes, tuple[int, int, bytes | None]] = {}  # by key: partition, revision and value of its last record
    faults = []

    def fault(upsert: Upsert, words: str) -> None:
        about = "no key" if upsert.key is None else upsert.key.decode(errors="replace")
        faults.append(Difference(topic, about, (f"{topic}/{upsert.partition}/{upsert.offset}: {words}",)))

    for upsert in upserts:
        partition, _, key, value = upsert
        if key is None:
            fault(upsert, "the record has no key")
            continue
        home, revision_before, value_before = seen.get(key, (partition, -1, None))
        revision = revision_before
        if partition != home:
            fault(upsert, f"the key was on partition {home} before")
        latest.pop(key, None)
        if value is None and is_forgotten(key):
            revision_before = revision = -1
        if value is not None:
            try:
                row = decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                fault(upsert, f"the row cannot be read: {error}")
                continue
            latest[key], revision = row, row.revision
            if revision < revision_before:
                fault(upsert, f"revision {revision} comes after {revision_before}")
            if value == value_before:
                fault(upsert, f"repeats the same row with the same revision {revision}")
        seen[key] = (partition, max(revision, revision_before), value)
    return Published(latest, {key: seen[key][0] for key in latest}, faults)


def compare_rows(
    topic: str, expected: dict[bytes, Any], published: dict[bytes, Any], behind: Callable[..., tuple[Coordinates, ...]]
) -> Iterator[Difference]:
    """Every row that is missing, not called for, or different in a field; `behind` finds the records behind a key."""
    for key in sorted(expected.keys() | published.keys()):
        must, is_now = expected.get(key), published.get(key)
        if must is None and not is_empty(is_now):
            details = (f"is published and must not be: {words(is_now)}",)
        elif is_now is None and must is not None:
            details = (f"is missing: {words(must)}",)
        elif must is not None:
            details = tuple(
                line
                for name in must.__struct_fields__
                if name not in NOT_COMPARED
                for line in unequal(name, getattr(must, name), getattr(is_now, name))
            )
        else:
            continue
        if details:
            yield Difference(topic, key.decode(), details, behind(key, must, is_now))


def unequal(name: str, must: Any, is_now: Any) -> Iterator[str]:
    """Every value within a field that is not as it must be: `touches[2].campaign_id: must be 'a', is 'b'`."""
    if must == is_now:
        return
    if isinstance(must, list) and isinstance(is_now, list):
        # Once one is out of place, all after it are: the first tells.
        pairs = [(place, *pair) for place, pair in enumerate(zip_longest(must, is_now)) if pair[0] != pair[1]]
        place, *first = pairs[0]
        yield from unequal(f"{name}[{place}]", *first)
        if len(pairs) > 1:
            yield f"{name}: {len(pairs) - 1:,} more of them differ; there must be {len(must):,}, there are {len(is_now):,}"
    elif isinstance(must, msgspec.Struct) and isinstance(is_now, msgspec.Struct):
        for field in must.__struct_fields__:
            yield from unequal(f"{name}.{field}", getattr(must, field), getattr(is_now, field))
    else:
        yield f"{name}: must be {_shown(must)}, is {_shown(is_now)}"


def _shown(value: Any) -> str:
    text = words(value) if isinstance(value, msgspec.Struct) else repr(value)
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}..."


def is_empty(row: Row) -> bool:
    """Whether a row says the same as no row: a count row of which corrections left nothing."""
    return isinstance(row, CountRow) and not any(getattr(row, measure) for measure in rows.MEASURES)


def words(row: msgspec.Struct) -> str:
    """A row's fields that say something, for a person."""
    fields = {name: value for name, value in msgspec.to_builtins(row).items() if name not in NOT_COMPARED}
    return orjson.dumps({name: value for name, value in fields.items() if value is not None}).decode()


def behind_attributed(
    answer: Answer, key: bytes, must: AttributedRow | None, is_now: AttributedRow | None
) -> tuple[Coordinates, ...]:
    """The events that a row speaks of: its conversion and order, the touches, the adjustments that name it."""
    advertiser_id, user_id, _, _, event_id = orjson.loads(key)
    person = answer.people.get((advertiser_id, user_id), Person())
    known = [row for row in (must, is_now) if row is not None]
    conversions = {event_id, *(row.duplicate_of for row in known)}
    touches = {row.touch_event_id for row in known}
    order_ids = {row.order_id for row in known} - {None}
    reports = [*person.conversions, *person.reports]
    found = (
        *(each.found for each in reports if each.event.event_id in conversions),
        *(each.found for each in reports if each.event.order_id in order_ids),
        *(each.found for each in person.touches if each.event.event_id in touches),
        *(each.found for each in person.adjustments if each.event.order_id in order_ids),
        *(each.found for each in person.adjustments if each.event.conversion_event_id in conversions),
    )
    return tuple(dict.fromkeys(found))


def behind_journey(
    answer: Answer, key: bytes, must: JourneyRow | ModelRow | None, is_now: JourneyRow | ModelRow | None
) -> tuple[Coordinates, ...]:
    """The events that a journey or its models speak of: the order's reports, the adjustments that name it, the
    touches, and then all else that the person did before, the latest first.
    """
    advertiser_id, user_id, name, event_id, *_ = orjson.loads(key)
    person = answer.people.get((advertiser_id, user_id), Person())
    known = [row for row in (must, is_now) if row is not None]
    told = [*person.conversions, *person.reports]
    same_id = [each for each in told if each.event.event_id == event_id]
    order_ids = {each.event.order_id for each in same_id} - {None, ""}
    reports = [*same_id, *(each for each in told if each.event.order_id in order_ids)]
    reports = [each for each in reports if each.event.conversion_name == name]
    report_ids = {each.event.event_id for each in reports}
    shown = {(touch.platform, touch.touch_type, touch.event_id) for row in known for touch in _touches(row)}
    before = [*person.touches, *person.visits, *person.conversions]
    found = (
        *(each.found for each in reports),
        *(each.found for each in person.adjustments if each.event.order_id in order_ids),
        *(each.found for each in person.adjustments if each.event.conversion_event_id in report_ids),
        *(
            each.found
            for each in person.touches
            if (each.event.platform, each.event.event_type, each.event.event_id) in shown
        ),
        *(
            each.found
            for each in sorted(before, key=lambda each: -each.time_ms)
            if any(each.time_ms <= row.event_time for row in known)
        ),
    )
    return tuple(dict.fromkeys(found))


def _touches(row: JourneyRow | ModelRow) -> list[PathTouch]:
    if isinstance(row, ModelRow):
        return [share.touch for share in row.credits]
    single = (row.credited, row.first_touch, row.returned_by)
    return [*row.touches, *(touch for touch in single if touch is not None)]


def compare_partitions(topic: str, published: Published, owner: Callable[[str], int]) -> Iterator[Difference]:
    """Every row of a user that does not lie on the partition of the user's owner."""
    for key, row in published.rows.items():
        if published.partitions[key] != owner(row.user_id):
            details = f"lies on partition {published.partitions[key]}, its owner is {owner(row.user_id)}"
            yield Difference(topic, key.decode(), (details,))


def read_letters(topic: str, upserts: Iterable[Upsert]) -> tuple[list[DeadLetter], list[Difference]]:
    """The dead letters of their topic, and a difference for each record that is none."""
    letters, faults = [], []
    for partition, offset, _, value in upserts:
        try:
            letters.append(rows.decode_dead_letter(value or b""))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            where = show((topic, partition, offset))
            faults.append(Difference(topic, where, (f"the dead letter cannot be read: {error}",)))
    return letters, faults


def compare_letters(
    topic: str, answer: Answer, letters: Iterable[DeadLetter], policy: Policy, reaches_back: bool
) -> Iterator[Difference]:
    """Every refused record without exactly one dead letter of the same reason, and every letter of another record.

    An adjustment's letter may also tell why it was refused at some earlier moment: a letter stays, whatever comes later.
    A schema that was unknown may be known by now: its record is judged anew, and what is missing shows in the rows.
    `reaches_back` False: retention has removed letters, so a missing one is no difference.
    """
    knows_schemas = bool(policy.formats())
    written: dict[Coordinates, list[str]] = defaultdict(list)
    for letter in letters:
        written[letter.topic, letter.partition, letter.offset].append(letter.reason)
    of_person = {each.found: person for person in answer.people.values() for each in person.history}
    must = answer.rejected | answer.refused_adjustments
    for coordinates in sorted(written.keys() | must.keys()):
        reasons, reason = written.get(coordinates, []), must.get(coordinates)
        if reasons == [reason] or (not reasons and not reaches_back):
            continue
        if knows_schemas and reasons == [UNKNOWN_SCHEMA]:
            continue
        person = of_person.get(coordinates)
        if len(reasons) == 1 and person and reasons[0] in refusals_over_time(person, policy)[coordinates]:
            continue
        details = f"must have {'no letter' if reason is None else f'one letter, {reason}'}; has {reasons or 'none'}"
        yield Difference(topic, show(coordinates), (details,), (coordinates,))
