"""Leads: who asked for something, what they are owed, until when, and how it ended. A fold of `conversions.journeys` and of the
follow-ups that a CRM tells (`DeskFold`).

Where a lead stands is a function of its user's conversions and follow-ups (`lead`); that it is overdue, or closed for so long
that it is let go, is one of the time besides. A user of whom no lead is open is held until nothing can change any more.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from sys import intern
from typing import Final, NamedTuple

import orjson
import xxhash

from app.contract import reasons
from app.contract.events import Rejection
from app.contract.journeys import JourneyRow, decode_journey
from app.contract.leads import CONTACTED, SENT, FollowedUp, LeadRow, decode_follow_up, lead_key
from app.contract.rows import RETRACTED, encode
from app.desk.aging import Aging
from app.desk.fold import Input, Output
from app.desk.lead import NOWHERE, Closing, Conversion, Known, Origin, is_let_go, leads_of, overdue_of
from app.desk.refusals import Refusals, judge_row
from app.policy.desk import Desk

CLOSINGS_KEPT: Final = 100  # of a user, the latest ones: more `won` and `lost` than that are no people's work
_HARD: Final = "hard"
_NEVER: Final[Mapping[str | None, int]] = {}


class _Held(NamedTuple):
    """What a key of `conversions.journeys` holds; None: retracted."""

    offset: int
    conversion: Conversion | None


class _Given(NamedTuple):
    """What was given out of a lead: a hash of its row; when it falls due or is let go; whether it was told overdue, and by
    which hash.
    """

    row: int
    turns_ms: int | None
    overdue: int | None


class _Person:
    """What is held of a user. Most are never followed up, so what is empty is shared until it is replaced. `partition`: the one
    that owns the user, None while no conversion is known; `newest_ms`: of all that is known.
    """

    __slots__ = ("answered_ms", "closings", "conversions", "given", "newest_ms", "partition")

    def __init__(self) -> None:
        self.conversions: dict[tuple[str, str], _Held] = {}
        self.closings: frozenset[Closing] = frozenset()
        self.answered_ms: Mapping[str | None, int] = _NEVER
        self.given: dict[str, _Given] = {}
        self.partition: int | None = None
        self.newest_ms = 0

    def known(self) -> Known:
        """What its leads follow from."""
        conversions = [held.conversion for held in self.conversions.values() if held.conversion is not None]
        return Known(conversions, list(self.closings), self.answered_ms)

    def is_empty(self) -> bool:
        """Whether nothing is known, as of somebody who is forgotten."""
        return not (self.conversions or self.closings or self.answered_ms)


Who = tuple[str, str]  # advertiser and user


class LeadsFold:
    """The fold. `held_ms`: how long a user of whom no lead is open may still matter; at least as long as a row of
    `conversions.journeys` can change, and twice as long as a closed lead is kept (docs/desk.md has what that takes).
    """

    def __init__(
        self,
        journeys: str,
        followups: str,
        leads: str,
        overdue: str,
        refused: str,
        desk: Desk,
        orders: tuple[str, ...],
        max_clock_skew_ms: int,
        held_ms: int,
    ) -> None:
        self.inputs = (journeys, followups)
        self.outputs = (leads, overdue, refused)
        self.refusals = Refusals(refused)
        self._desk = desk
        self._orders = frozenset(orders)
        self._skew_ms = max_clock_skew_ms
        self._people: dict[Who, _Person] = {}
        self._aging: Aging[Who] = Aging(held_ms, (journeys,))
        self._deleted: dict[int, int] = {}  # offsets by a hash of the key: an older record may come after a deletion
        self._changed: set[Who] = set()
        self._turning: list[tuple[int, Who, str]] = []  # a heap; what has changed since is passed over
        self._origins: dict[Origin, Origin] = {}

    @property
    def refused(self) -> Counter[tuple[str, str]]:
        """How many records broke their contract, by topic and reason."""
        return self.refusals.counted

    def lasts(self, topic: str, key: bytes) -> bool:
        """See `DeskFold`."""
        return topic == self.refusals.topic

    def __len__(self) -> int:
        """How many users are held."""
        return len(self._people)

    # --- What comes in

    def take(self, record: Input) -> None:
        """Takes one record into account; see `DeskFold`."""
        if record.topic == self.inputs[0]:
            self._take_journey(record)
        else:
            self._take_follow_up(record)

    def _take_journey(self, record: Input) -> None:
        try:
            names = orjson.loads(record.key or b"")
            advertiser, user, action, event_id = (str(name) for name in names)
        except (ValueError, TypeError):
            self.refusals.add(record, Rejection(reasons.INVALID_FIELD, "", "the key is no key of a journey"))
            return
        row = None if record.value is None else judge_row(decode_journey, record.value)
        if isinstance(row, Rejection):
            self.refusals.add(record, row)
            return
        who, name = (intern(advertiser), user), (intern(action), event_id)
        if row is None:
            self._delete(record, who, name)
            return
        person = self._people.get(who)
        held = person.conversions.get(name) if person is not None else None
        if record.offset > (self._deletion(record) if held is None else held.offset) and (
            person is not None or row.event_time >= self._aging.horizon_ms(record.partition)
        ):
            if person is None:
                person = self._people[who] = _Person()
            person.conversions[name] = _Held(record.offset, self._conversion(event_id, row))
            self._put(who, person, record.partition, row.event_time)
        for each in self._aging.move(record, row.event_time):
            self._let_go(each)

    def _conversion(self, event_id: str, row: JourneyRow) -> Conversion | None:
        if row.status == RETRACTED:
            return None
        touch = row.credited or row.first_touch
        origin = NOWHERE if touch is None else Origin(*(getattr(touch, name) for name in Origin._fields))
        origin = self._origins.setdefault(origin, origin)
        return Conversion(
            row.event_time, event_id, intern(row.conversion_name), row.intent == _HARD, intern(row.outcome), origin
        )

    def _deletion(self, record: Input) -> int:
        return self._deleted.get(_digest(record), -1)

    def _delete(self, record: Input, who: Who, name: tuple[str, str]) -> None:
        """Names nobody any more: it may be of somebody who is forgotten."""
        person = self._people.get(who)
        held = person.conversions.get(name) if person is not None else None
        if record.offset <= (self._deletion(record) if held is None else held.offset):
            return
        self._deleted[_digest(record)] = record.offset
        if person is not None and held is not None:
            del person.conversions[name]
            self._changed.add(who)
            if person.is_empty() and not person.given:
                self._forget(who)

    def _take_follow_up(self, record: Input) -> None:
        found = decode_follow_up(record.value, record.timestamp_ms, self._skew_ms)
        if isinstance(found, Rejection):
            self.refusals.add(record, found)
            return
        who = (intern(found.event.advertiser_id), found.event.user_id)
        person = self._people.get(who)
        if person is None:
            person = self._people[who] = _Person()
        _follow_up(person, found)
        self._put(who, person, person.partition, found.time_ms)

    # --- What is held

    def _put(self, who: Who, person: _Person, partition: int | None, time_ms: int) -> None:
        self._changed.add(who)
        person.newest_ms = max(person.newest_ms, time_ms)
        person.partition = partition
        self._aging.put(partition, person.newest_ms, who)

    def _let_go(self, who: Who) -> None:
        """Lets go of a user of whom nothing can change any more. Open leads stay, whatever their age: none goes to waste."""
        person = self._people.get(who)
        if person is None or person.newest_ms >= self._aging.horizon_ms(person.partition):
            return
        leads = leads_of(*who, person.known(), self._orders, self._desk)
        if any(lead.closed_time is None for lead in leads.values()):
            return
        if person.given:  # a clock that is behind shows it still
            self._aging.put(person.partition, person.newest_ms, who)
        else:
            self._remove(who)

    def _remove(self, who: Who) -> None:
        del self._people[who]
        self._changed.discard(who)

    def _forget(self, who: Who) -> None:
        self._remove(who)
        self._aging.discard(who)

    # --- What goes out

    def rows(self, now_ms: int) -> Iterator[Output]:
        """See `DeskFold`. A lead is overdue once `now_ms` has passed its due time, and let go `closed_leads_kept` after it was
        closed.
        """
        yield from self.refusals.letters()
        forgotten: set[Who] = set()
        for who in sorted(self._changed):
            person = self._people[who]
            yield from self._leads(who, person, now_ms)
            if person.is_empty():
                self._forget(who)
                forgotten.add(who)
        self._changed.clear()
        if forgotten:
            self._turning = [each for each in self._turning if each[1] not in forgotten]
            heapify(self._turning)
        while self._turning and self._turning[0][0] < now_ms:
            turns_ms, who, action = heappop(self._turning)
            person = self._people.get(who)
            given = person.given.get(action) if person is not None else None
            if person is not None and given is not None and given.turns_ms == turns_ms and given.overdue is None:
                yield from self._leads(who, person, now_ms)
        for who in self._aging.move_unknown():
            self._let_go(who)

    def _leads(self, who: Who, person: _Person, now_ms: int) -> Iterator[Output]:
        leads = leads_of(*who, person.known(), self._orders, self._desk)
        shown = {name: lead for name, lead in leads.items() if not is_let_go(lead, now_ms, self._desk.closed_kept_ms)}
        for action in person.given.keys() - shown.keys():
            yield from self._withdraw(who, action, person.given.pop(action))
        for action, lead in shown.items():
            yield from self._lead(who, person, action, lead, now_ms)

    def _withdraw(self, who: Who, action: str, given: _Given) -> Iterator[Output]:
        key = lead_key(*who, action)
        yield Output(self.outputs[0], key, None)
        if given.overdue is not None:
            yield Output(self.outputs[1], key, None)

    def _lead(self, who: Who, person: _Person, action: str, lead: LeadRow, now_ms: int) -> Iterator[Output]:
        key, row = lead_key(*who, action), encode(lead)
        before = person.given.get(action)
        is_overdue = lead.due_time is not None and lead.due_time < now_ms
        late = encode(overdue_of(lead)) if is_overdue else None
        turns_ms = lead.due_time if lead.closed_time is None else lead.closed_time + self._desk.closed_kept_ms
        given = _Given(xxhash.xxh3_64_intdigest(row), turns_ms, xxhash.xxh3_64_intdigest(late) if late else None)
        person.given[action] = given
        if before is None or before.row != given.row:
            yield Output(self.outputs[0], key, row)
        if given.overdue != (before.overdue if before else None):
            yield Output(self.outputs[1], key, late)
        if (
            given.turns_ms is not None
            and given.overdue is None
            and (
                before is None
                or before.turns_ms != given.turns_ms
                or before.overdue is not None  # a clock that was set back
            )
        ):
            heappush(self._turning, (given.turns_ms, who, action))


def _digest(record: Input) -> int:
    return xxhash.xxh3_64_intdigest(record.key or b"")


def _follow_up(person: _Person, found: FollowedUp) -> None:
    """Adds a follow-up to what is known. A set, of which only what can matter is kept: order and repeats change nothing."""
    event, action = found.event, intern(found.event.conversion_name) if found.event.conversion_name else None
    if event.kind in (CONTACTED, SENT):
        last_ms = max(person.answered_ms.get(action, -1), found.time_ms)
        person.answered_ms = {**person.answered_ms, action: last_ms}
        return
    closings = person.closings | {Closing(found.time_ms, intern(event.kind), action)}
    if len(closings) > CLOSINGS_KEPT:
        closings -= {min(closings, key=lambda each: (each.time_ms, each.label, each.action or ""))}
    person.closings = closings
