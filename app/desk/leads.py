"""Leads: who asked for something, what they are owed, until when, and how it ended. A fold of `conversions.journeys` and of the
follow-ups that a CRM tells (`DeskFold`).

Where a lead stands is a function of its user's conversions and follow-ups, never of their order of arrival (`lead_of`); that
it is overdue is one of the time besides. docs/desk.md has it as a table.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from sys import intern
from typing import Final, NamedTuple

import orjson
import xxhash

from app.contract import reasons
from app.contract.events import Rejection
from app.contract.journeys import JourneyRow, decode_journey
from app.contract.leads import (
    ANSWERED,
    CONTACTED,
    COOL,
    HOT,
    LOST,
    SENT,
    WAITING,
    WON,
    FollowedUp,
    LeadRow,
    OverdueRow,
    decode_follow_up,
    lead_key,
)
from app.contract.rows import RETRACTED, encode
from app.desk.fold import Input, Output
from app.desk.refusals import Refusals, judge_row
from app.policy.desk import Desk, FollowUp

CLOSINGS_KEPT: Final = 100  # of a user, the latest ones: more `won` and `lost` than that are no people's work
_HARD: Final = "hard"
_NEVER: Final[Mapping[str | None, int]] = {}


class Origin(NamedTuple):
    """Where a conversion came from; shared by all that came from there."""

    platform: str | None
    campaign_id: str | None
    source: str | None
    medium: str | None
    landing_page: str | None


NOWHERE: Final = Origin(None, None, None, None, None)


class Conversion(NamedTuple):
    """What a lead needs of a conversion that is not retracted."""

    time_ms: int
    event_id: str
    action: str
    is_hard: bool
    outcome: str
    origin: Origin


class Closing(NamedTuple):
    """What ends leads: a purchase (`label` is its action) or the CRM's word. `action` None: all leads of the user."""

    time_ms: int
    label: str
    action: str | None


class Known(NamedTuple):
    """All that is known of one user: conversions, `won` and `lost`, and the last `contacted` or `sent` by action (None: of
    any).
    """

    conversions: list[Conversion]
    closings: list[Closing]
    answered_ms: Mapping[str | None, int]


def leads_of(
    advertiser_id: str, user_id: str, known: Known, orders: Iterable[str], rules: dict[str, FollowUp]
) -> dict[str, LeadRow]:
    """The leads of one user, by action. `orders`: the actions that are purchases. `rules`: what each action is owed."""
    bought = [Closing(each.time_ms, each.action, None) for each in known.conversions if each.action in orders]
    hard_ms = [each.time_ms for each in known.conversions if each.is_hard]
    by_action: dict[str, list[Conversion]] = defaultdict(list)
    for each in known.conversions:
        if each.action not in orders:
            by_action[each.action].append(each)
    found = {}
    for action, conversions in by_action.items():
        closings = [each for each in known.closings if each.action in (None, action)] + bought
        answered_ms = max((known.answered_ms.get(each, -1) for each in (None, action)), default=-1)
        names = (advertiser_id, user_id, action)
        found[action] = lead_of(names, sorted(conversions), closings, answered_ms, max(hard_ms, default=-1), rules)
    return found


def lead_of(
    names: tuple[str, str, str],
    conversions: list[Conversion],
    closings: list[Closing],
    answered_ms: int,
    hard_ms: int,
    rules: dict[str, FollowUp],
) -> LeadRow:
    """One lead: `conversions` of its action, the earliest first, at least one. `answered_ms`, `hard_ms`: when the last follow-up
    and the user's last conversion of hard intent were; -1 for never.

    A closing or follow-up at the very time of a conversion comes after it.
    """
    last_ms = conversions[-1].time_ms
    closed_before_ms = max((each.time_ms for each in closings if each.time_ms < last_ms), default=-1)
    since = [each for each in conversions if each.time_ms > closed_before_ms]
    opening = since[0]
    closing = _closing(closings, last_ms)
    waiting_ms = next((each.time_ms for each in since if each.time_ms > answered_ms), None)
    state = (LOST if closing.label == LOST else WON) if closing else ANSWERED if waiting_ms is None else WAITING
    rule = rules.get(names[2])
    return LeadRow(
        *names,
        state=state,
        temperature=HOT if hard_ms >= opening.time_ms else COOL,
        outcome=opening.outcome,
        opened_time=opening.time_ms,
        opened_by=opening.event_id,
        conversions=len(since),
        last_time=last_ms,
        follow_up=rule.what if rule else None,
        waiting_since=waiting_ms if state == WAITING else None,
        due_time=waiting_ms + rule.within_ms if rule and waiting_ms is not None and state == WAITING else None,
        answered_time=answered_ms if answered_ms >= opening.time_ms else None,
        closed_time=closing.time_ms if closing else None,
        closed_by=closing.label if closing else None,
        **opening.origin._asdict(),
    )


def _closing(closings: list[Closing], last_ms: int) -> Closing | None:
    """What closed a lead whose last conversion was then: the first purchase or `won` since, else the first `lost`."""
    since = [each for each in closings if each.time_ms >= last_ms]
    return min(since, key=lambda each: (each.label == LOST, each.time_ms, each.label), default=None)


def overdue_of(lead: LeadRow) -> OverdueRow:
    """The row of a lead whose due time has passed."""
    assert lead.follow_up is not None
    assert lead.waiting_since is not None
    assert lead.due_time is not None
    shared = {name: getattr(lead, name) for name in OverdueRow.__struct_fields__}
    return OverdueRow(**shared)


class _Held(NamedTuple):
    """What a key of `conversions.journeys` holds; None: deleted, or retracted."""

    offset: int
    conversion: Conversion | None


class _Given(NamedTuple):
    """What was given out of a lead: a hash of its row; when it falls due; whether it was told overdue, and by which hash."""

    row: int
    due_ms: int | None
    overdue: int | None


class _Person:
    """What is held of a user. Most are never followed up, so what is empty is shared until it is replaced."""

    __slots__ = ("answered_ms", "closings", "conversions", "given")

    def __init__(self) -> None:
        self.conversions: dict[tuple[str, str], _Held] = {}
        self.closings: frozenset[Closing] = frozenset()
        self.answered_ms: Mapping[str | None, int] = _NEVER
        self.given: dict[str, _Given] = {}

    def known(self) -> Known:
        """What its leads follow from."""
        conversions = [held.conversion for held in self.conversions.values() if held.conversion is not None]
        return Known(conversions, list(self.closings), self.answered_ms)


Who = tuple[str, str]  # advertiser and user


class LeadsFold:
    """The fold. Holds every user that has converted or was followed up (docs/desk.md has what that takes)."""

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
    ) -> None:
        self.inputs = (journeys, followups)
        self.outputs = (leads, overdue, refused)
        self.lasting = (refused,)
        self.refusals = Refusals(refused)
        self._desk = desk
        self._orders = frozenset(orders)
        self._skew_ms = max_clock_skew_ms
        self._people: dict[Who, _Person] = {}
        self._changed: set[Who] = set()
        self._falling_due: list[tuple[int, Who, str]] = []  # a heap; what has changed since is passed over
        self._origins: dict[Origin, Origin] = {}

    @property
    def refused(self) -> Counter[tuple[str, str]]:
        """How many records broke their contract, by topic and reason."""
        return self.refusals.counted

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
        who = (intern(advertiser), user)
        person = self._people.get(who)
        if person is None:
            person = self._people[who] = _Person()
        name = (intern(action), event_id)
        held = person.conversions.get(name)
        if held is None or record.offset > held.offset:
            person.conversions[name] = _Held(record.offset, self._conversion(event_id, row))
            self._changed.add(who)

    def _conversion(self, event_id: str, row: JourneyRow | None) -> Conversion | None:
        if row is None or row.status == RETRACTED:
            return None
        touch = row.credited or row.first_touch
        origin = NOWHERE if touch is None else Origin(*(getattr(touch, name) for name in Origin._fields))
        origin = self._origins.setdefault(origin, origin)
        return Conversion(
            row.event_time, event_id, intern(row.conversion_name), row.intent == _HARD, intern(row.outcome), origin
        )

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
        self._changed.add(who)

    def rows(self, now_ms: int) -> Iterator[Output]:
        """See `DeskFold`. A lead is overdue once `now_ms` has passed its due time."""
        yield from self.refusals.letters()
        for who in sorted(self._changed):
            yield from self._leads(who, now_ms)
        self._changed.clear()
        while self._falling_due and self._falling_due[0][0] < now_ms:
            due_ms, who, action = heappop(self._falling_due)
            given = self._people[who].given.get(action)
            if given is not None and given.due_ms == due_ms and given.overdue is None:
                yield from self._leads(who, now_ms)

    def _leads(self, who: Who, now_ms: int) -> Iterator[Output]:
        person = self._people[who]
        leads = leads_of(*who, person.known(), self._orders, self._desk.follow_ups)
        for action in person.given.keys() - leads.keys():
            yield from self._withdraw(who, action, person.given.pop(action))
        for action, lead in leads.items():
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
        given = _Given(xxhash.xxh3_64_intdigest(row), lead.due_time, xxhash.xxh3_64_intdigest(late) if late else None)
        person.given[action] = given
        if before is None or before.row != given.row:
            yield Output(self.outputs[0], key, row)
        if given.overdue != (before.overdue if before else None):
            yield Output(self.outputs[1], key, late)
        if (
            given.due_ms is not None
            and given.overdue is None
            and (
                before is None
                or before.due_ms != given.due_ms
                or before.overdue is not None  # a clock that was set back
            )
        ):
            heappush(self._falling_due, (given.due_ms, who, action))


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
