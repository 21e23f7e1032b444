"""The revenue check: what platforms claim, what is counted for them, and what was paid, week by week and to date.

A fold of upserts (`DeskFold`). All money is in integer millionths, so a sum depends on no order; each record may come again,
late, or before what it belongs to. It needs every partition of its inputs, since an order and its conversion lie anywhere.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from app.contract import reasons
from app.contract.events import Rejection
from app.contract.money import TO_DATE, Report, judge_order, judge_report, reconciliation_key
from app.contract.rows import ALL, encode
from app.desk.aging import Aging
from app.desk.calendar import WEEK_DAYS, Calendar, monday, week_name
from app.desk.cases import Claim, Paid, Part, Place, Refused, Truth, contributions
from app.desk.comparison import Reach, Scope, claimed, difference_ratio, make_row, restricted
from app.desk.fold import Input, Output
from app.desk.packed import Packed
from app.desk.parts import NO_KEY, Case, case_of, case_of_order, claim_of, refused_of, time_of, truth_of
from app.desk.records import Change, Latest, Rows, name_of
from app.desk.refusals import Refusals
from app.desk.totals import Measures, Total, add, together
from app.policy.desk import Desk
from app.policy.model import Policy
from app.settings import Settings

Field: TypeAlias = tuple[str, str]  # (advertiser, platform)
Slots: TypeAlias = dict[tuple[int, str], Measures]  # by (day, action)
NO_SCOPE: Final = Scope()


class Reconciliation:
    """Rows of `conversions.reconciliation`. `policy`: every version of it, by which conversions were judged; `desk`: time zones and
    tolerances.
    """

    def __init__(self, settings: Settings, policy: Policy, desk: Desk) -> None:
        self._take: dict[str, Callable[[Input], Rejection | None]] = {
            settings.attributed_topic: self._part(lambda record: claim_of(record, self._calendar)),
            settings.journeys_topic: self._part(
                lambda record: truth_of(record, self._calendar, policy, self._max_touches)
            ),
            settings.orders_topic: self._part(self._paid),
            settings.dlq_topic: self._letter,
            settings.reported_topic: self._report,
        }
        self.inputs = tuple(self._take)
        self.outputs = (settings.reconciliation_topic, settings.desk_dlq_topic)
        self.refusals = Refusals(settings.desk_dlq_topic)
        self._rows = Rows(settings.reconciliation_topic)
        self._desk, self._calendar = desk, Calendar(desk)
        self._counted_actions = policy.counted_actions()
        self._platforms = frozenset(policy.platforms())
        journeys = policy.bounds.journeys
        self._paid_actions = frozenset(journeys.orders if journeys else ())
        self._max_touches = journeys.max_touches if journeys else 0
        self._parts: Latest[Part] = Latest()
        self._reports: Latest[Report] = Latest()
        self._cases: dict[Case, dict[bytes, Part]] = {}
        self._packed: Packed[Case, Part] = Packed(self._parts, self._cases, (Claim, Truth, Refused, Paid))
        self._conversions = (settings.attributed_topic, settings.journeys_topic)
        self._orders = settings.orders_topic
        self._aging: Aging[Case] = Aging(policy.count_retention_ms(), self._conversions)
        self._packed_names: set[bytes] = set()  # of claims and truths
        self._sought: dict[bytes, list[tuple[Input, bytes, Part | None]]] = {}  # by name: records that wait for `_find`
        self._changed_cases: set[Case] = set()
        self._slots: dict[Field, dict[int, dict[str, Slots]]] = {}  # by week (its Monday) and campaign
        self._changed: dict[Field, set[tuple[int, str]]] = defaultdict(set)
        # the same, with None for all campaigns of a week
        self._totals: dict[Field, dict[int, dict[str | None, Total]]] = defaultdict(lambda: defaultdict(dict))
        self._reported_days: dict[Field, Counter[int]] = defaultdict(Counter)
        self._reported_actions: dict[Field, Counter[str | None]] = defaultdict(Counter)
        self._order_days: dict[str, Counter[int]] = defaultdict(Counter)
        self._scopes: dict[Field, Scope] = {}
        self._stale: set[Field] = set()
        self._stale_orders: set[str] = set()

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

    def _part(self, judge: Callable[[Input], Part | Rejection]) -> Callable[[Input], Rejection | None]:
        """Takes a record that is a part of a case, by the function that makes it one."""

        def take(record: Input) -> Rejection | None:
            if record.key is None:
                return NO_KEY
            found = judge(record) if record.value is not None else None
            refusal, part = (found, None) if isinstance(found, Rejection) else (None, found)
            self._hold(record, record.key, part)
            return refusal

        return take

    def _hold(self, record: Input, key: bytes, part: Part | None) -> None:
        name = name_of(record.topic, key)
        case = case_of(part) if part is not None else case_of_order(key) if record.topic == self._orders else None
        was_packed = case is not None and self._unpack(case)
        if name in self._sought or _short(name) in self._packed_names:
            self._sought.setdefault(name, []).append((record, key, part))
        else:
            self._put(record, key, part)
        if was_packed and case in self._cases:
            self._pack(case)
        if part is not None:
            self._grow_old(record, part)

    def _put(self, record: Input, key: bytes, part: Part | None) -> None:
        change = self._parts.put(record, key, part)
        if change is not None:
            self._change(change)

    def _change(self, change: Change[Part]) -> None:
        for each, is_new in ((change.before, False), (change.after, True)):
            if each is None:
                continue
            case = case_of(each)
            self._open(case)
            if is_new:
                self._cases.setdefault(case, {})[change.name] = each
            else:
                del self._cases[case][change.name]
            if isinstance(each, Paid):
                self._order_days[case[0]][each.day] += 1 if is_new else -1
                self._stale_orders.add(case[0])
        if change.before is not None and not self._cases[case_of(change.before)]:
            self._drop(case_of(change.before))

    def _drop(self, case: Case) -> None:
        """Nothing is left of the case, nor of whose it was. What it had added is taken back already."""
        del self._cases[case]
        self._changed_cases.discard(case)
        self._aging.discard(case)

    def _grow_old(self, record: Input, part: Part) -> None:
        is_conversion = record.topic in self._conversions
        self._aging.put(record.partition if is_conversion else None, time_of(part), case_of(part))
        over = self._aging.move(record, time_of(part)) if is_conversion else set()
        if over:
            self._find()
            for case in over | self._aging.move_unknown():
                if case in self._cases:
                    self._pack(case)

    def _pack(self, case: Case) -> None:
        if case in self._changed_cases:
            self._changed_cases.discard(case)
            self._add_case(case, 1)
        self._packed_names.update(self._names(case))
        self._packed.pack(case)

    def _unpack(self, case: Case) -> bool:
        """Makes objects of a packed case; whether it was one."""
        was_packed = self._packed.unpack(case)
        if was_packed:
            self._packed_names.difference_update(self._names(case))
        return was_packed

    def _names(self, case: Case) -> list[bytes]:
        """What its conversions are known by. Those of an order and of a letter are of no other case, ever."""
        return [_short(name) for name, part in self._cases[case].items() if isinstance(part, (Claim, Truth))]

    def _find(self) -> None:
        """Takes the records whose keys are those of packed parts of other cases: deletions, which name no order, and event ids that
        were used again for another one. Only a search tells which cases these are, so it is done for all at once.
        """
        sought, self._sought = self._sought, {}
        if not sought:
            return
        cases = {case_of(part) for records in sought.values() for _, _, part in records if part is not None}
        unpacked = [case for case in cases.union(self._packed.owners_of(sought)) if self._unpack(case)]
        for records in sought.values():
            for each in records:
                self._put(*each)
        for case in unpacked:
            if case in self._cases:
                self._pack(case)

    def _open(self, case: Case) -> None:
        """What the case added so far is taken back until the next rows."""
        if case not in self._changed_cases:
            self._changed_cases.add(case)
            self._add_case(case, -1)

    def _paid(self, record: Input) -> Paid | Rejection:
        order = judge_order(record.key, record.value)
        if isinstance(order, Rejection):
            return order
        day = self._calendar.day(order.advertiser_id, order.time_ms)
        if day is None:
            return Rejection(reasons.INVALID_TIME, "time", "no day of the calendar")
        return Paid(order, day)

    def _letter(self, record: Input) -> Rejection | None:
        """A log, no upserts: each record stands for itself, and most hold no conversion of the catalogue."""
        found = refused_of(record, self._calendar)
        if isinstance(found, Rejection):
            return found
        if found is not None and found.conversion_name in self._counted_actions:
            platform = found.platform if found.platform in self._platforms else ""  # it may name anything
            key = b"%d:%d" % (record.partition, record.offset)
            self._hold(record, key, found._replace(platform=platform))
        return None

    def _report(self, record: Input) -> Rejection | None:
        if record.key is None:
            return NO_KEY
        found = judge_report(record.key, record.value) if record.value is not None else None
        if isinstance(found, Report) and found.platform not in self._platforms:
            found = Rejection(reasons.UNKNOWN_PLATFORM, "platform", f"the policy has no {found.platform[:64]!r}")
        refusal, report = (found, None) if isinstance(found, Rejection) else (None, found)
        change = self._reports.put(record, record.key, report)
        if change is not None:
            for each, sign in ((change.before, -1), (change.after, 1)):
                if each is not None:
                    self._add_report(each, sign)
        return refusal

    # --- What it adds

    def _add_report(self, report: Report, sign: int) -> None:
        measures: Measures = {"reported": report.conversions}
        if report.value is not None:
            measures |= {("reported", report.currency): report.value, ("told", report.currency): 1}
        name = report.conversion_name
        if name is not None and name not in self._counted_actions:
            measures["noise"] = report.conversions
        field = (report.advertiser_id, report.platform)
        self._reported_days[field][report.day] += sign
        self._reported_actions[field][name] += sign
        self._stale.add(field)
        self._add(
            report.advertiser_id, Place(report.platform, report.campaign_id, report.day, name or ""), measures, sign
        )

    def _add_case(self, case: Case, sign: int) -> None:
        for place, measures in contributions(self._cases.get(case, {}).values(), self._paid_actions).items():
            self._add(case[0], place, measures, sign)

    def _add(self, advertiser_id: str, place: Place, measures: Measures, sign: int) -> None:
        field, week = (advertiser_id, place.platform), monday(place.day)
        if field not in self._slots:
            self._slots[field] = {}
            self._stale.add(field)
        campaigns = self._slots[field].setdefault(week, {})
        slots = campaigns.setdefault(place.campaign_id, {})
        held = slots.setdefault((place.day, place.conversion_name), {})
        add(held, measures, sign)
        if not held:
            del slots[place.day, place.conversion_name]
        self._changed[field].add((week, place.campaign_id))

    # --- What goes out

    def rows(self, now_ms: int) -> Iterator[Output]:
        """The rows that differ from those given out before; the time changes none of them."""
        self._find()
        for case in self._changed_cases:
            self._add_case(case, 1)
        self._changed_cases.clear()
        weeks: dict[str, set[int]] = defaultdict(set)
        for advertiser_id in self._apply_scopes():
            weeks[advertiser_id].update(*(held for field, held in self._slots.items() if field[0] == advertiser_id))
        for field, changed in self._changed.items():
            weeks[field[0]] |= {week for week, _ in changed}
            self._sum_up(field, changed)
            if field[1] != ALL:
                self._publish_platform(field, changed)
        self._changed.clear()
        for advertiser_id, changed_weeks in weeks.items():
            self._publish_all(advertiser_id, changed_weeks)
        yield from self._rows.differing()
        yield from self.refusals.letters()

    def _apply_scopes(self) -> set[str]:
        """Where reports or orders reach further than before, what was told of before is told anew; the advertisers of whom."""
        stale = self._stale | {field for field in self._slots if field[0] in self._stale_orders}
        self._stale, self._stale_orders = set(), set()
        found = set()
        for field in stale:
            reports = _reach(self._reported_days[field])
            scope = Scope(reports, reports, _actions(self._reported_actions[field]), _reach(self._order_days[field[0]]))
            if scope != self._scopes.get(field, NO_SCOPE):
                self._scopes[field] = scope
                found.add(field[0])
                self._changed[field] |= {
                    (week, campaign) for week, campaigns in self._slots.get(field, {}).items() for campaign in campaigns
                }
        return found

    def _sum_up(self, field: Field, changed: set[tuple[int, str]]) -> None:
        scope = self._scopes.get(field, NO_SCOPE)
        held, totals = self._slots[field], self._totals[field]
        for week, campaign in changed:
            if held[week][campaign]:
                totals[week][campaign] = restricted(held[week][campaign], scope)
            else:
                del held[week][campaign]
                totals[week].pop(campaign, None)
        for week in {week for week, _ in changed}:
            totals[week].pop(None, None)
            whole = together(totals[week].values())
            if whole is not None:
                totals[week][None] = whole
            else:
                del held[week], totals[week]

    def _publish_platform(self, field: Field, changed: set[tuple[int, str]]) -> None:
        totals = self._totals[field]
        whole = {(week, None) for week, _ in changed}
        places = changed | whole if field[1] else whole  # what names no platform names no campaign
        for week, campaign in places:
            self._publish(field, week, campaign, totals[week].get(campaign) if week in totals else None)
        for campaign in {campaign for _, campaign in places}:
            self._publish(field, None, campaign, together(each.get(campaign) for each in totals.values()))

    def _publish_all(self, advertiser_id: str, changed: set[int]) -> None:
        """The rows over all platforms: their claims added up, and each order once."""
        fields = [field for field in self._totals if field[0] == advertiser_id]
        weeks: dict[int, list[Total]] = defaultdict(list)
        for field in fields:
            for week, totals in self._totals[field].items():
                whole = totals[None]
                weeks[week].append(whole if field[1] == ALL else claimed(whole, self._scopes.get(field, NO_SCOPE)))
        sums = {week: together(totals) for week, totals in weeks.items()}
        for week in changed:
            self._publish((advertiser_id, ALL), week, None, sums.get(week))
        self._publish((advertiser_id, ALL), None, None, together(sums.values()))

    def _publish(self, field: Field, week: int | None, campaign: str | None, total: Total | None) -> None:
        advertiser_id, platform = field
        key = reconciliation_key(advertiser_id, TO_DATE if week is None else week_name(week), platform, campaign)
        if total is None:
            self._rows.put(key, None)
            return
        scope = self._scope_of_all(advertiser_id) if platform == ALL else self._scopes.get(field, NO_SCOPE)
        tolerance = self._desk.tolerance(platform) if platform not in ("", ALL) else None
        time_zone = self._calendar.zone(advertiser_id).key
        row = make_row(advertiser_id, week, platform, campaign, total, scope, tolerance, time_zone)
        self._rows.put(key, encode(row))

    def _scope_of_all(self, advertiser_id: str) -> Scope:
        """Reported is what any platform reports; complete what all of these do."""
        reaches = [
            scope.reports for field, scope in self._scopes.items() if field[0] == advertiser_id and scope.reports
        ]
        if not reaches:
            return NO_SCOPE
        return Scope(
            Reach(min(each.first for each in reaches), max(each.last for each in reaches)),
            Reach(max(each.first for each in reaches), min(each.last for each in reaches)),
        )

    # --- What operators watch

    def differences(self) -> dict[str, tuple[float, float]]:
        """By platform: how far its claims are from what is counted in the last week that it has reported in full, as a share of
        that, of the advertiser where they are furthest off; and the tolerance. 0 where it has reported no week.
        """
        worst = dict.fromkeys(sorted(self._platforms), 0.0)
        for field, scope in self._scopes.items():
            platform = field[1]
            if scope.reports is None or platform not in worst:
                continue
            closed = [week for week in self._totals[field] if scope.reports.covers(week, week + WEEK_DAYS - 1)]
            if closed:
                ratio = difference_ratio(self._totals[field][max(closed)][None].measures)
                worst[platform] = max(worst[platform], ratio, key=lambda each: (abs(each), each))
        return {platform: (ratio, self._desk.tolerance(platform)) for platform, ratio in worst.items()}


def _short(name: bytes) -> bytes:
    """Enough to tell names apart by: of two that are equal a search is made in vain."""
    return name[:8]


def _reach(days: Counter[int]) -> Reach | None:
    held = [day for day, count in days.items() if count]
    return Reach(min(held), max(held)) if held else None


def _actions(names: Counter[str | None]) -> frozenset[str] | None:
    held = [name for name, count in names.items() if count]
    return None if None in held or not held else frozenset(name for name in held if name is not None)
