"""What came back for what was spent: cost per conversion and per customer, ROAS, first orders and repeats, leads, by day, week
and to date.

A fold of upserts (`DeskFold`); every conversion is counted once, over all platforms, for the touch that
`conversions.journeys` credits. It needs every partition of its inputs, since a campaign's conversions lie anywhere.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from sys import intern
from typing import Final, NamedTuple, TypeAlias

import msgspec

from app.contract import reasons
from app.contract.events import MAX_AMOUNT, Rejection, from_micros, to_micros
from app.contract.journeys import decode_journey
from app.contract.money import (
    SOURCE,
    TO_DATE,
    TOTAL,
    ReturnMoney,
    ReturnRow,
    Spend,
    judge_spend,
    return_key,
)
from app.contract.rollups import split_count_key
from app.contract.rows import ALL, CountRow, decode_count, encode
from app.desk.aging import Aging
from app.desk.calendar import WEEK_DAYS, Calendar, day_name, monday, week_name
from app.desk.earnings import Found, Origin, Touched, Unit, Won, day_costs, origin_of, user_brings
from app.desk.fold import Input, Output
from app.desk.packed import Packed
from app.desk.parts import NO_DAY, NO_KEY, refusal_of
from app.desk.records import Change, Latest, Recent, Rows
from app.desk.refusals import Refusals, judge_row
from app.desk.totals import Measures, Total, add, currencies, together
from app.policy.desk import Desk
from app.policy.model import Policy
from app.settings import Settings

DAY: Final = "day"
WEEK: Final = "week"
_COUNTS: Final = (
    "views", "clicks", "conversions", "micro", "macro", "leads", "new_customers", "returning_orders", "micro_users",
    "micro_to_macro_users",
)  # fmt: skip
_PER: Final = (
    ("cost_per_conversion", "conversions"),
    ("cost_per_lead", "leads"),
    ("cost_per_new_customer", "new_customers"),
)

User: TypeAlias = tuple[str, str]  # (advertiser, user)
PlatformDay: TypeAlias = tuple[str, str, int]  # (advertiser, platform, day)
Period: TypeAlias = tuple[str, int]  # a kind, and the first day (0 of to date)
Part: TypeAlias = tuple[PlatformDay, Touched] | tuple[PlatformDay, Spend]
_NO_JOURNEY_KEY: Final = Rejection(reasons.KEY_MISMATCH, "", "the key is no key of a journey")


class Place(NamedTuple):
    """Whose row, and of what."""

    advertiser_id: str
    unit: Unit


class Returns:
    """Rows of `conversions.return`. `policy`: its platforms, and which actions are paid orders; `desk`: time zones, and what touches cost in."""

    def __init__(self, settings: Settings, policy: Policy, desk: Desk) -> None:
        self._take: dict[str, Callable[[Input], Rejection | None]] = {
            settings.journeys_topic: self._journey,
            settings.counts_topic: self._count,
            settings.spend_topic: self._spend,
        }
        self.inputs = tuple(self._take)
        self.outputs = (settings.return_topic, settings.desk_dlq_topic)
        self.refusals = Refusals(settings.desk_dlq_topic)
        self._rows = Rows(settings.return_topic)
        self._desk, self._calendar = desk, Calendar(desk)
        self._platforms = frozenset(policy.platforms())
        journeys = policy.bounds.journeys
        self._paid_actions = frozenset(journeys.orders if journeys else ())
        self._conversions: Latest[Won] = Latest()
        self._spends: Latest[Part] = Latest()
        self._windows: Recent[Part] = Recent(policy.count_retention_ms())
        self._origins: dict[Origin, Origin] = {}
        self._won_by: dict[User, dict[bytes, Won]] = {}
        self._packed: Packed[User, Won] = Packed(self._conversions, self._won_by, (Won,))
        self._aging: Aging[User] = Aging(policy.count_retention_ms(), (settings.journeys_topic,))
        self._touched_on: dict[PlatformDay, dict[Origin, list[int]]] = {}  # views, clicks, cost
        self._spent_on: dict[PlatformDay, dict[bytes, Spend]] = {}
        self._changed_users: set[User] = set()
        self._changed_days: set[PlatformDay] = set()
        self._days: dict[Place, dict[int, Measures]] = {}
        self._changed: dict[Place, set[int]] = defaultdict(set)
        self._totals: dict[Place, dict[Period, Total]] = {}

    @property
    def refused(self) -> Counter[tuple[str, str]]:
        """How many records broke their contract, by topic and reason."""
        return self.refusals.counted

    def lasts(self, topic: str, key: bytes) -> bool:
        """See `DeskFold`."""
        return topic == self.refusals.topic

    # --- What comes in

    def take(self, record: Input) -> None:
        """Takes one record into account; one that breaks its contract becomes a letter on `desk.dlq`."""
        refusal = self._take[record.topic](record)
        if refusal is not None:
            self.refusals.add(record, refusal)

    def _journey(self, record: Input) -> Rejection | None:
        user = _user_of(record.key)
        if user is None:
            return NO_KEY if record.key is None else _NO_JOURNEY_KEY
        found = self._won(record) if record.value is not None else None
        refusal, won = (found, None) if isinstance(found, Rejection) else (None, found)
        was_packed = self._packed.unpack(user)
        change = self._conversions.put(record, record.key or b"", won)
        if change is not None:
            self._change_user(user, change)
        if won is not None:
            self._aging.put(record.partition, won.time_ms, user)
            for each in self._aging.move(record, won.time_ms):
                if each in self._won_by:
                    self._pack(each)
        if was_packed and user in self._won_by:
            self._pack(user)
        return refusal

    def _change_user(self, user: User, change: Change[Won]) -> None:
        """What the user brought so far is taken back until the next rows."""
        if user not in self._changed_users:
            self._changed_users.add(user)
            self._add_user(user, -1)
        own = self._won_by.setdefault(user, {})
        if change.after is not None:
            own[change.name] = change.after
        else:
            del own[change.name]
        if not own:  # nothing is left of somebody who is forgotten
            del self._won_by[user]
            self._changed_users.discard(user)
            self._aging.discard(user)

    def _pack(self, user: User) -> None:
        if user in self._changed_users:
            self._changed_users.discard(user)
            self._add_user(user, 1)
        self._packed.pack(user)

    def _spend(self, record: Input) -> Rejection | None:
        if record.key is None:
            return NO_KEY
        found = self._spent(record) if record.value is not None else None
        refusal, part = (found, None) if isinstance(found, Rejection) else (None, found)
        self._change(self._spends.put(record, record.key, part))
        return refusal

    def _count(self, record: Input) -> Rejection | None:
        """A row of `conversions.counts`; those of conversions are passed over, as these are taken from the journeys."""
        try:
            start_ms, _ = split_count_key(record.key or b"")
        except ValueError as error:
            return Rejection(reasons.KEY_MISMATCH, "", str(error)[:200])
        row = judge_row(decode_count, record.value) if record.value is not None else None
        found = self._touched(row) if isinstance(row, CountRow) else row
        refusal, part = (found, None) if isinstance(found, Rejection) else (None, found)
        if part is not None or refusal is not None or row is None:
            is_final = part is not None and isinstance(row, CountRow) and row.final
            self._change(self._windows.put(record, record.key or b"", start_ms, part, is_final))
        return refusal

    def _change(self, change: Change[Part] | None) -> None:
        if change is None:
            return
        for held, sign in ((change.before, -1), (change.after, 1)):
            if held is not None:
                self._hold(change.name, *held, sign)

    def _hold(self, name: bytes, owner: PlatformDay, each: Touched | Spend, sign: int) -> None:
        """What the day cost so far is taken back until the next rows."""
        if owner not in self._changed_days:
            self._changed_days.add(owner)
            self._add_day(owner, -1)
        if isinstance(each, Spend):
            held = self._spent_on.setdefault(owner, {})
            if sign > 0:
                held[name] = each
            else:
                del held[name]
            return
        sums = self._touched_on.setdefault(owner, {}).setdefault(each.origin, [0, 0, 0])
        for number, amount in enumerate((each.views, each.clicks, each.cost)):
            sums[number] += sign * amount
        if not any(sums):
            del self._touched_on[owner][each.origin]

    def _won(self, record: Input) -> Won | Rejection:
        row = judge_row(decode_journey, record.value)
        if isinstance(row, Rejection):
            return row
        day = self._calendar.day(row.advertiser_id, row.event_time)
        refusal = refusal_of(row.status, row.value, day)
        if refusal is not None or day is None:
            return refusal or NO_DAY
        return Won(
            row.event_time,
            row.event_id,
            intern(row.conversion_name),
            day,
            intern(row.status),
            intern(row.action_class),
            row.customer,
            to_micros(row.value),
            intern(row.currency or ""),
            self._shared_origin(origin_of(row.credited)),
        )

    def _touched(self, row: CountRow) -> tuple[PlatformDay, Touched] | Rejection | None:
        if row.conversion_name or row.platform == ALL:
            return None  # a row of conversions: those are taken from the journeys
        day = self._calendar.day(row.advertiser_id, row.window_start)
        if day is None:
            return NO_DAY
        if not 0 <= row.cost <= MAX_AMOUNT**2:
            return Rejection(reasons.INVALID_FIELD, "cost", "no cost of touches")
        origin = Origin(row.platform, *(row.dimensions.get(name) for name in Origin._fields[1:]))
        touched = Touched(self._shared_origin(origin), row.views + row.engaged_views, row.clicks, to_micros(row.cost))
        return (intern(row.advertiser_id), intern(row.platform), day), touched

    def _shared_origin(self, origin: Origin) -> Origin:
        return self._origins.setdefault(origin, origin)

    def _spent(self, record: Input) -> tuple[PlatformDay, Spend] | Rejection:
        spend = judge_spend(record.key, record.value)
        if isinstance(spend, Rejection):
            return spend
        if spend.platform not in self._platforms:
            return Rejection(reasons.UNKNOWN_PLATFORM, "platform", f"the policy has no {spend.platform[:64]!r}")
        return (spend.advertiser_id, spend.platform, spend.day), spend

    # --- What it adds

    def _add_user(self, user: User, sign: int) -> None:
        self._add(user[0], user_brings(self._won_by.get(user, {}).values(), self._paid_actions), sign)

    def _add_day(self, where: PlatformDay, sign: int) -> None:
        advertiser_id, platform, day = where
        currency = self._desk.cost_currency(advertiser_id)
        spends = self._spent_on.get(where, {}).values()
        self._add(advertiser_id, day_costs(platform, day, self._touched_on.get(where, {}), spends, currency), sign)

    def _add(self, advertiser_id: str, found: Found, sign: int) -> None:
        for (unit, day), measures in found.items():
            place = Place(advertiser_id, unit)
            days = self._days.setdefault(place, {})
            add(days.setdefault(day, {}), measures, sign)
            self._changed[place].add(day)

    # --- What goes out

    def rows(self, now_ms: int) -> Iterator[Output]:
        """The rows that differ from those given out before; the time changes none of them."""
        for user in self._changed_users:
            self._add_user(user, 1)
        for where in self._changed_days:
            self._add_day(where, 1)
        self._changed_users.clear()
        self._changed_days.clear()
        periods = {place: self._sum_up(place, days) for place, days in self._changed.items()}
        self._changed.clear()
        for place, held in self._totals.items():
            if place.unit.level == SOURCE:  # its rows say their share of the total
                of_all = periods.get(Place(place.advertiser_id, Unit(TOTAL, None, None)), set())
                periods.setdefault(place, set()).update(of_all & held.keys())
        for place, changed in periods.items():
            for period in changed:
                self._publish(place, period)
        yield from self._rows.differing()
        yield from self.refusals.letters()

    def _sum_up(self, place: Place, changed: set[int]) -> set[Period]:
        """Sums up a place's periods with those days anew; these periods."""
        days, totals = self._days[place], self._totals.setdefault(place, {})
        for day in changed:
            if not days[day]:
                del days[day]
            _put(totals, (DAY, day), Total(days[day], day, day) if day in days else None)
        weeks = {monday(day) for day in changed}
        for week in weeks:
            _put(totals, (WEEK, week), together(totals.get((DAY, week + number)) for number in range(WEEK_DAYS)))
        _put(totals, (TO_DATE, 0), together(total for (kind, _), total in totals.items() if kind == WEEK))
        return {(TO_DATE, 0), *((DAY, day) for day in changed), *((WEEK, week) for week in weeks)}

    def _publish(self, place: Place, period: Period) -> None:
        kind, first = period
        name = TO_DATE if kind == TO_DATE else week_name(first) if kind == WEEK else day_name(first)
        key = return_key(place.advertiser_id, name, *place.unit)
        total = self._totals[place].get(period)
        if total is None:
            self._rows.put(key, None)
            return
        whole = self._totals[Place(place.advertiser_id, Unit(TOTAL, None, None))][period].measures
        of = whole if place.unit.level == SOURCE else None
        last = {DAY: first, WEEK: first + WEEK_DAYS - 1, TO_DATE: total.last}[kind]
        time_zone = self._calendar.zone(place.advertiser_id).key
        row = make_row(place, name, (total.first if kind == TO_DATE else first, last), time_zone, total.measures, of)
        self._rows.put(key, encode(row))


def _user_of(key: bytes | None) -> User | None:
    """Whose conversion a key of `conversions.journeys` names; None where it is none."""
    try:
        advertiser_id, user_id, _, _ = msgspec.json.decode(key or b"", type=tuple[str, str, str, str])
    except (msgspec.DecodeError, ValueError):
        return None
    return intern(advertiser_id), user_id


def _put(totals: dict[Period, Total], period: Period, total: Total | None) -> None:
    if total is not None:
        totals[period] = total
    else:
        totals.pop(period, None)


def make_row(
    place: Place, period: str, days: tuple[int, int], time_zone: str, measures: Measures, whole: Measures | None
) -> ReturnRow:
    """One row. `days`: the period's first and last one. `whole`: the measures of which shares are told, None: none are."""
    counts = {name: measures.get(name, 0) for name in _COUNTS}
    costs = [currency for currency in currencies(measures) if measures.get(("cost", currency))]
    return ReturnRow(
        advertiser_id=place.advertiser_id,
        period=period,
        level=place.unit.level,
        platform=place.unit.platform,
        value=place.unit.value,
        from_day=day_name(days[0]),
        to_day=day_name(days[1]),
        time_zone=time_zone,
        micro_to_macro=_ratio(counts["micro_to_macro_users"], counts["micro_users"]),
        share_of_leads=_share("leads", measures, whole),
        share_of_new_customers=_share("new_customers", measures, whole),
        money=[_money(currency, measures, whole, len(costs) == 1) for currency in currencies(measures)],
        **counts,
    )


def _money(currency: str, measures: Measures, whole: Measures | None, is_only_cost: bool) -> ReturnMoney:
    """What is spent in two currencies cannot be told per conversion in either of them."""

    def amount(name: str) -> int:
        return measures.get((name, currency), 0)

    cost = amount("cost")
    per = {
        name: from_micros(round(cost / count)) if cost and is_only_cost and (count := measures.get(of, 0)) else None
        for name, of in _PER
    }
    return ReturnMoney(
        currency=currency,
        roas=_ratio(amount("value"), cost) if currency else None,
        share_of_cost=_ratio(cost, whole.get(("cost", currency), 0)) if whole is not None else None,
        **per,
        **{name: from_micros(amount(name)) for name in ("cost", "spend", "value", "new_value")},
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _share(name: str, measures: Measures, whole: Measures | None) -> float | None:
    return _ratio(measures.get(name, 0), whole.get(name, 0)) if whole is not None else None
