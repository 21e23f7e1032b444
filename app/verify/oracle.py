"""The answer: what onecount must have published for these records, by docs/counting.md read line by line.

Slow, plain and careful on purpose. It keeps everything for ever, since by section 6 expiry never changes an answer;
only the rule of when an id stops being remembered (section 2) is an answer of its own, and followed.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from app.contract import reasons, rows
from app.contract.events import TOUCH_ATTRIBUTES, TOUCH_TYPES
from app.contract.journeys import journey_key, model_key
from app.contract.rows import AttributedRow, CountRow
from app.formats.opening import Formats
from app.policy.model import Policy
from app.verify.answer import Amounts, Answer, CountIdentity, Tally
from app.verify.click_ids import ClickLog, compare_clicks, key_of
from app.verify.door import Door
from app.verify.journey_rows import journey_row, model_rows
from app.verify.journeys import RealOrder, follow
from app.verify.merging import as_told, hear
from app.verify.records import Arrival, Coordinates, Order, Person, Record, name_of, show
from app.verify.routing import Judged, Routed, judge, route
from app.verify.sequence import by_batches, by_time
from app.verify.settlement import Decision, counted_action, settle, to_micros

MICROS: Final = 1_000_000
# Which measure a touch adds 1 to (section 3).
MEASURE: Final = {"view": "views", "engaged_view": "engaged_views", "click": "clicks"}


def answer(
    records: Iterable[Record],
    policy: Policy,
    partitions: int,
    order: Order | None = None,
    rekeyed_topic: str | None = None,
    formats: Formats | None = None,
    clicks: ClickLog | None = None,
) -> Answer:
    """The answer to all `records`: the raw ones, and the copies where `rekeyed_topic` names their topic.

    Records may come in any order. `order`: the batches that were committed; without them events are processed by
    offset within a topic-partition and by Kafka timestamp across them. Without `rekeyed_topic` an event on a foreign
    partition needs no copy. `formats`: what reads records that are no plain JSON. `clicks`: what tells whose click is whose,
    where the policy has `click_ids`. Raises IndexError for a record on a partition that is not below `partitions`.
    """
    raw: list[Record] = []
    copies: list[Record] = []
    for record in records:
        if record.partition >= partitions:
            raise IndexError(f"{show(record.coordinates)}: there are {partitions} partitions")
        (copies if record.topic == rekeyed_topic else raw).append(record)
    judged = judge(raw, policy, partitions, formats)
    routed = route(judged.abroad, judged.userless, copies, policy, partitions, rekeyed_topic, clicks)
    result = answer_of(range(partitions), judged, routed, policy, order)
    result.matched, result.waiting = routed.matched, routed.waiting
    result.faults[:0] = routed.faults
    if clicks is not None:
        result.faults += compare_clicks(result.clicks, routed.told_clicks)
    result.counts = count_rows({identity: tally.amounts() for identity, tally in result.tallies.items()}, policy)
    return result


def answer_of(owners: Collection[int], judged: Judged, routed: Routed, policy: Policy, order: Order | None) -> Answer:
    """The answer as far as these partitions own it, but for its count rows, to which others may add: their `tallies`. `judged`:
    the raw records of these partitions, `routed`: of all.
    """
    result = Answer(produced=judged.produced, rejected=dict(judged.rejected))
    result.rejected |= {lost: reasons.CLICK_NOT_FOUND for lost in routed.lost if lost[1] in owners}
    for owner in owners:
        streams = {where: steps for where, steps in judged.streams.items() if where[1] == owner}
        streams |= routed.streams.get(owner, {})
        if order is None:
            batches = by_time(streams)
        else:
            batches, faults = by_batches(streams, owner, order.get(owner, ()))
            result.faults += faults
        process(batches, policy, result)
    for person in result.people.values():
        if person.conversions:
            person = as_told(person, policy)
            decisions, refused = settle(person, policy)
            result.refused_adjustments |= refused
            for decision in decisions:
                publish(decision, policy, result)
            if policy.bounds.journeys is not None:
                for real in follow(person, decisions, policy):
                    publish_journey(real, policy, result)
    return result


# --- Sections 1 to 3: stream time, duplicates, touches ----------------------------------------------------------------


def process(batches: list[list[Arrival]], policy: Policy, result: Answer) -> None:
    """One owner partition's events, batch by batch in processing order: those that are new, and duplicates of conversions, go to
    their persons.
    """
    door = Door(policy.bounds, result.rejected, result.duplicates)
    for batch in batches:
        taken = [arrival for arrival in batch if door.is_new(arrival) or arrival.found in result.duplicates]
        # Section 12: a person is forgotten "with all touches and visits of its batch" before.
        for arrival in sorted(taken, key=lambda each: each.event.event_type in ("conversion", "adjustment", "forget")):
            if arrival.found not in result.duplicates:
                accept(arrival, policy, result)
            elif arrival.event.event_type == "conversion":
                hear(result.people[arrival.event.advertiser_id, arrival.event.user_id], arrival, policy)


def accept(arrival: Arrival, policy: Policy, result: Answer) -> None:
    """Gives an event to its person, and counts a touch. "Visits are in no count row", and matter to journeys only."""
    event = arrival.event
    result.accepted += 1
    if event.event_type == "visit" and policy.bounds.journeys is None:
        return
    person = result.people[event.advertiser_id, event.user_id]
    if event.event_type == "forget":
        result.forgets += 1
        count_for_good(person, max(arrival.time_ms, person.forgotten_ms), policy, result)
    is_taken = person.add(arrival)
    if event.event_type in TOUCH_TYPES:
        identity = count_identity(arrival.time_ms, event.platform or "", arrival, "", "", policy)
        add(result.tallies[identity], arrival, {MEASURE[event.event_type]: 1, "cost": to_micros(event.cost)})
        if event.event_type == "click" and event.click_id and policy.bounds.click_ids is not None:
            result.clicks[key_of(event), event.platform or "", event.user_id, arrival.time_ms, event.event_id] += 1
    elif event.event_type == "conversion" and counted_action(policy, arrival) is None:
        result.noise += 1
    elif event.event_type in ("conversion", "adjustment"):
        result.forgotten += not is_taken


def count_for_good(person: Person, until_ms: int, policy: Policy, result: Answer) -> None:
    """Section 12: what is counted now of conversions up to `until_ms` stays counted, though nothing else of them does."""
    if not person.conversions:
        return
    person = as_told(person, policy)
    decisions, refused = settle(person, policy)
    result.refused_adjustments |= refused  # their letters are written
    for decision in decisions:
        if decision.conversion.time_ms <= until_ms:
            count(decision, policy, result)
    if policy.bounds.journeys is not None:
        for real in follow(person, decisions, policy):
            if real.conversion.time_ms <= until_ms:
                count_order(real, policy, result)


# --- Sections 3, 4, 7 and 9: rows ----------------------------------------------------------------------------------------


def count_identity(
    time_ms: int, platform: str, touch: Arrival, conversion_name: str, currency: str, policy: Policy
) -> CountIdentity:
    """The row of the window of `time_ms`, under the dimensions of `touch`."""
    window_start = time_ms // policy.bounds.window_ms * policy.bounds.window_ms
    dimensions = tuple(getattr(touch.event, name) for name in policy.bounds.dimensions)
    return (window_start, platform, touch.event.advertiser_id, dimensions, conversion_name, currency)


def add(tally: Tally, arrival: Arrival, amounts: dict[str, int]) -> None:
    """Adds one event's measures to a row."""
    for measure, amount in amounts.items():
        tally.measures[measure] = tally.measures.get(measure, 0) + amount
    tally.behind.append(arrival.found)


def publish(decision: Decision, policy: Policy, result: Answer) -> None:
    """A decision as its row in `conversions.attributed` and, if it is counted, in the counts."""
    row = attributed_row(decision, policy)
    key = rows.attributed_key(row.advertiser_id, row.user_id, row.platform, row.conversion_name, row.event_id)
    assert key not in result.attributed, key  # one row for each conversion and judged platform
    result.attributed[key] = row
    count(decision, policy, result)


def count(decision: Decision, policy: Policy, result: Answer) -> None:
    """Adds a counted conversion to its row in the counts."""
    if decision.status == rows.COUNTED:
        assert decision.touch is not None
        conversion = decision.conversion
        name, currency = conversion.event.conversion_name or "", conversion.event.currency or ""
        identity = count_identity(conversion.time_ms, decision.platform, decision.touch, name, currency, policy)
        add(result.tallies[identity], conversion, {"conversions": 1, "value": decision.value_micros})


def attributed_row(decision: Decision, policy: Policy) -> AttributedRow:
    """The row, field by field; attributes of the touch that the policy does not keep are null."""
    conversion, touch = decision.conversion, decision.touch
    event = conversion.event
    rule = decision.version.platforms.get(decision.platform)
    attributes = {
        name: getattr(touch.event, name) if touch is not None and name in policy.bounds.keep else None
        for name in TOUCH_ATTRIBUTES
    }
    return AttributedRow(
        advertiser_id=event.advertiser_id,
        user_id=event.user_id,
        platform=decision.platform,
        conversion_name=event.conversion_name or "",
        event_id=event.event_id,
        event_time=conversion.time_ms,
        order_id=event.order_id or None,  # an empty order_id is no order_id
        status=decision.status,
        conversions=1 if decision.status == rows.COUNTED else 0,
        value=decision.value_micros / MICROS,
        currency=event.currency,
        action_class=decision.action.action_class,
        intent=decision.action.intent,
        outcome=decision.action.outcome or "",
        method="" if rule is None else rule.method,
        policy_version=decision.version.number,
        duplicate_of=decision.duplicate_of,
        touch_type=None if touch is None else touch.event.event_type,
        touch_event_id=None if touch is None else touch.event.event_id,
        touch_time=None if touch is None else touch.time_ms,
        time_to_convert_ms=None if touch is None else conversion.time_ms - touch.time_ms,
        revision=0,
        **attributes,
    )


def publish_journey(order: RealOrder, policy: Policy, result: Answer) -> None:
    """An order over all platforms as its row in `conversions.journeys` and, if it is counted, in the counts of scope `all`
    and in `conversions.models`: sections 8 to 11.
    """
    journeys = policy.bounds.journeys
    assert journeys is not None
    row = journey_row(order, policy, journeys)
    identity = (row.advertiser_id, row.user_id, row.conversion_name, row.event_id)
    assert journey_key(*identity) not in result.journeys, identity  # one row an order
    result.journeys[journey_key(*identity)] = row
    for model in model_rows(order, policy, journeys):
        result.models[model_key(*identity, model.model)] = model
    count_order(order, policy, result)


def count_order(order: RealOrder, policy: Policy, result: Answer) -> None:
    """Adds an order that counts over all platforms to its row of scope `all`."""
    if order.status == rows.COUNTED:
        assert order.credited is not None
        conversion = order.conversion
        name, currency = conversion.event.conversion_name or "", conversion.event.currency or ""
        identity = count_identity(conversion.time_ms, rows.ALL, order.credited, name, currency, policy)
        add(result.tallies[identity], conversion, {"conversions": 1, "value": order.value_micros})


def count_rows(amounts: Mapping[CountIdentity, Amounts], policy: Policy) -> dict[bytes, CountRow]:
    """The rows in `conversions.counts`, by key, of what each adds up."""
    return dict(count_row(identity, found, policy) for identity, found in amounts.items())


def count_row(identity: CountIdentity, amounts: Amounts, policy: Policy) -> tuple[bytes, CountRow]:
    """One row with its key."""
    window_start, platform, advertiser_id, dimensions, conversion_name, currency = identity
    key = rows.count_key(window_start, platform, advertiser_id, list(dimensions), conversion_name, currency)
    measures: dict[str, float] = dict(zip(rows.MEASURES, amounts, strict=True))
    for measure in rows.MONEY_MEASURES:
        measures[measure] /= MICROS
    row = CountRow(
        window_start=window_start,
        window_end=window_start + policy.bounds.window_ms,
        platform=platform,
        advertiser_id=advertiser_id,
        dimensions=dict(zip(policy.bounds.dimensions, dimensions, strict=True)),
        conversion_name=conversion_name,
        currency=currency,
        revision=0,
        final=False,
        scope="all" if platform == "all" else "platform",
        **measures,
    )
    return key, row


def refusals_over_time(person: Person, policy: Policy) -> dict[Coordinates, set[str]]:
    """The reasons for which each adjustment was refused at some moment, had every event been settled as it came.

    A dead letter is written once and stays, though a later event may make the adjustment apply after all.
    """
    so_far = Person()
    found: dict[Coordinates, set[str]] = defaultdict(set)
    for arrival in person.history:
        if arrival.event.event_type == "conversion" and name_of(arrival) in map(name_of, so_far.conversions):
            hear(so_far, arrival, policy)
        else:
            so_far.add(arrival)
        if so_far.adjustments and so_far.conversions:
            for coordinates, reason in settle(as_told(so_far, policy), policy)[1].items():
                found[coordinates].add(reason)
    return found
