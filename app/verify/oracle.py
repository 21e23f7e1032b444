"""The answer: what onecount must have published for these records, by docs/counting.md read line by line.

Slow, plain and careful on purpose. It keeps everything for ever, since by section 6 expiry never changes an answer;
only the rule of when an id stops being remembered (section 2) is an answer of its own, and followed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from app.contract import reasons, rows
from app.contract.events import TOUCH_ATTRIBUTES, TOUCH_TYPES, Rejection, decode_event
from app.contract.journeys import journey_key, model_key
from app.contract.rows import AttributedRow, CountRow
from app.formats.opening import Body, Formats
from app.policy.model import Policy
from app.verify.answer import Answer, Tally
from app.verify.click_ids import ClickLog, Matching, compare_clicks, is_copy, key_of, match
from app.verify.door import Door
from app.verify.journey_rows import journey_row, model_rows
from app.verify.journeys import RealOrder, follow
from app.verify.merging import as_told, hear
from app.verify.partition import owner_of
from app.verify.records import Arrival, Coordinates, Order, Person, Record, name_of
from app.verify.sequence import Streams, by_batches, by_time
from app.verify.settlement import Decision, counted_action, settle, to_micros

MICROS: Final = 1_000_000
AT_A_TIME: Final = 10_000  # records that are read of another format at once
# Which measure a touch adds 1 to (section 3).
MEASURE: Final = {"view": "views", "engaged_view": "engaged_views", "click": "clicks"}


# A count row's identity: window start, platform, advertiser, dimensions, conversion_name, currency.
CountIdentity = tuple[int, str, str, tuple[str | None, ...], str, str]


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
    result = Answer()
    tallies: dict[CountIdentity, Tally] = defaultdict(Tally)
    streams = route(records, policy, partitions, rekeyed_topic, result, formats, clicks)
    for owner in range(partitions):
        if order is None:
            batches = by_time(streams[owner])
        else:
            batches, faults = by_batches(streams[owner], owner, order.get(owner, ()))
            result.faults += faults
        process(batches, policy, result, tallies)
    if clicks is not None:
        result.faults += compare_clicks(result.clicks, result.told_clicks)
    for person in result.people.values():
        if person.conversions:
            person = as_told(person, policy)
            decisions, refused = settle(person, policy)
            result.refused_adjustments |= refused
            for decision in decisions:
                publish(decision, policy, result, tallies)
            if policy.bounds.journeys is not None:
                for real in follow(person, decisions, policy):
                    publish_journey(real, policy, result, tallies)
    for identity, tally in tallies.items():
        publish_count(identity, tally, policy, result)
    return result


# --- Section 1: from record to event ----------------------------------------------------------------------------------


def route(
    records: Iterable[Record],
    policy: Policy,
    partitions: int,
    rekeyed_topic: str | None,
    result: Answer,
    formats: Formats | None,
    clicks: ClickLog | None = None,
) -> list[Streams]:
    """Judges every raw record, and lays the records that each owner partition processes in streams by offset."""
    raw: list[Record] = []
    copies: list[Record] = []
    for record in records:
        (copies if record.topic == rekeyed_topic else raw).append(record)
    raw.sort(key=lambda record: record.coordinates)
    copies.sort(key=lambda record: record.coordinates)
    result.produced = len(raw)
    streams: list[Streams] = [defaultdict(list) for _ in range(partitions)]
    foreign: dict[Coordinates, tuple[Record, Arrival]] = {}
    for record, arrival in judge(raw, policy, partitions, result, formats):
        at_home = arrival is not None and arrival.owner == record.partition
        # What is refused or foreign stays as a step without an event, for a batch must have taken it too.
        streams[record.partition][record.topic, record.partition].append((record, arrival if at_home else None))
        if arrival is not None and not at_home:
            foreign[record.coordinates] = (record, arrival)
    if clicks is not None:
        found = match(clicks, result.userless, policy.bounds)
        foreign |= found.arrivals(partitions, policy.bounds.partitioner)
        note(found, result)
    for copy in copies:
        arrival = claim(copy, foreign, result)
        streams[copy.partition][copy.topic, copy.partition].append((copy, arrival))
    for coordinates, (record, arrival) in foreign.items():
        if rekeyed_topic is not None:
            result.faults.append(
                f"{show(coordinates)}: belongs on partition {arrival.owner}, and has no copy in {rekeyed_topic}"
            )
        streams[arrival.owner][record.topic, record.partition].append((record, arrival))
    return streams


def judge(
    raw: list[Record], policy: Policy, partitions: int, result: Answer, formats: Formats | None
) -> Iterable[tuple[Record, Arrival | None]]:
    """Each raw record with its event, or with None where the contract refuses it."""
    bounds, platforms = policy.bounds, policy.platforms()
    owners: dict[str, int] = {}  # users come again and again, and the hash is slow
    for record, body in opened(raw, formats):
        judged = (
            body
            if isinstance(body, Rejection)
            else decode_event(
                *(body, record.key, record.timestamp_ms, platforms),
                *(bounds.max_event_age_ms, bounds.max_clock_skew_ms, bounds.click_ids is not None),
            )
        )
        if isinstance(judged, Rejection):
            result.rejected[record.coordinates] = judged.reason
            yield record, None
            continue
        user_id = judged.event.user_id
        if user_id is None:
            assert not isinstance(body, Rejection)
            result.userless[record.coordinates] = (msgspec.structs.replace(record, value=body), judged)
            yield record, None
            continue
        if user_id not in owners:
            owners[user_id] = owner_of(user_id, partitions, bounds.partitioner)
        yield record, Arrival(record.coordinates, judged.event, judged.time_ms, owners[user_id])


def opened(records: Sequence[Record], formats: Formats | None) -> Iterator[tuple[Record, Body]]:
    """Each record with its event's JSON, or why there is none."""
    if formats is None:
        yield from ((record, record.value) for record in records)
        return
    for first in range(0, len(records), AT_A_TIME):
        some = records[first : first + AT_A_TIME]
        columns = [[getattr(each, name) for each in some] for name in ("value", "headers", "timestamp_ms")]
        yield from zip(some, formats.open_all(*columns), strict=True)


def note(found: Matching, result: Answer) -> None:
    """What section 13 says of the events without a user."""
    result.faults += found.faults
    result.rejected |= dict.fromkeys(found.lost, reasons.CLICK_NOT_FOUND)
    result.matched, result.waiting, result.told_clicks = len(found.matched), len(found.waiting), found.clicks


def claim(copy: Record, foreign: dict[Coordinates, tuple[Record, Arrival]], result: Answer) -> Arrival | None:
    """Takes the event that `copy` brings to its owner out of `foreign`; None, and a fault, if there is none."""
    found = None if copy.source is None else foreign.pop(copy.source, None)
    if found is None:
        source = "no record" if copy.source is None else show(copy.source)
        result.faults.append(
            f"{show(copy.coordinates)}: copies {source}, which is not an accepted foreign event or was copied before"
        )
        return None
    record, arrival = found
    is_userless = record.coordinates in result.userless
    if copy.partition != arrival.owner or not is_copy(copy, record, arrival, is_userless):
        result.faults.append(
            f"{show(copy.coordinates)}: is not {show(arrival.found)}, or not on its owner's partition {arrival.owner}"
        )
    return arrival


def show(coordinates: Coordinates) -> str:
    """topic/partition/offset, for a person."""
    return "/".join(str(part) for part in coordinates)


# --- Sections 1 to 3: stream time, duplicates, touches ----------------------------------------------------------------


def process(batches: list[list[Arrival]], policy: Policy, result: Answer, tallies: dict[CountIdentity, Tally]) -> None:
    """One owner partition's events, batch by batch in processing order: those that are new, and duplicates of conversions, go to
    their persons.
    """
    door = Door(policy.bounds, result.rejected, result.duplicates)
    for batch in batches:
        taken = [arrival for arrival in batch if door.is_new(arrival) or arrival.found in result.duplicates]
        # Section 12: a person is forgotten "with all touches and visits of its batch" before.
        for arrival in sorted(taken, key=lambda each: each.event.event_type in ("conversion", "adjustment", "forget")):
            if arrival.found not in result.duplicates:
                accept(arrival, policy, result, tallies)
            elif arrival.event.event_type == "conversion":
                hear(result.people[arrival.event.advertiser_id, arrival.event.user_id], arrival, policy)


def accept(arrival: Arrival, policy: Policy, result: Answer, tallies: dict[CountIdentity, Tally]) -> None:
    """Gives an event to its person, and counts a touch. "Visits are in no count row", and matter to journeys only."""
    event = arrival.event
    result.accepted += 1
    if event.event_type == "visit" and policy.bounds.journeys is None:
        return
    person = result.people[event.advertiser_id, event.user_id]
    if event.event_type == "forget":
        result.forgets += 1
        count_for_good(person, max(arrival.time_ms, person.forgotten_ms), policy, result, tallies)
    is_taken = person.add(arrival)
    if event.event_type in TOUCH_TYPES:
        identity = count_identity(arrival.time_ms, event.platform or "", arrival, "", "", policy)
        add(tallies[identity], arrival, {MEASURE[event.event_type]: 1, "cost": to_micros(event.cost)})
        if event.event_type == "click" and event.click_id and policy.bounds.click_ids is not None:
            result.clicks[key_of(event), event.platform or "", event.user_id, arrival.time_ms, event.event_id] += 1
    elif event.event_type == "conversion" and counted_action(policy, arrival) is None:
        result.noise += 1
    elif event.event_type in ("conversion", "adjustment"):
        result.forgotten += not is_taken


def count_for_good(
    person: Person, until_ms: int, policy: Policy, result: Answer, tallies: dict[CountIdentity, Tally]
) -> None:
    """Section 12: what is counted now of conversions up to `until_ms` stays counted, though nothing else of them does."""
    if not person.conversions:
        return
    person = as_told(person, policy)
    decisions, refused = settle(person, policy)
    result.refused_adjustments |= refused  # their letters are written
    for decision in decisions:
        if decision.conversion.time_ms <= until_ms:
            count(decision, policy, tallies)
    if policy.bounds.journeys is not None:
        for real in follow(person, decisions, policy):
            if real.conversion.time_ms <= until_ms:
                count_order(real, policy, tallies)


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
        tally.amounts[measure] = tally.amounts.get(measure, 0) + amount
    tally.behind.append(arrival.found)


def publish(decision: Decision, policy: Policy, result: Answer, tallies: dict[CountIdentity, Tally]) -> None:
    """A decision as its row in `conversions.attributed` and, if it is counted, in the counts."""
    row = attributed_row(decision, policy)
    key = rows.attributed_key(row.advertiser_id, row.user_id, row.platform, row.conversion_name, row.event_id)
    assert key not in result.attributed, key  # one row for each conversion and judged platform
    result.attributed[key] = row
    count(decision, policy, tallies)


def count(decision: Decision, policy: Policy, tallies: dict[CountIdentity, Tally]) -> None:
    """Adds a counted conversion to its row in the counts."""
    if decision.status == rows.COUNTED:
        assert decision.touch is not None
        conversion = decision.conversion
        name, currency = conversion.event.conversion_name or "", conversion.event.currency or ""
        identity = count_identity(conversion.time_ms, decision.platform, decision.touch, name, currency, policy)
        add(tallies[identity], conversion, {"conversions": 1, "value": decision.value_micros})


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


def publish_journey(order: RealOrder, policy: Policy, result: Answer, tallies: dict[CountIdentity, Tally]) -> None:
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
    count_order(order, policy, tallies)


def count_order(order: RealOrder, policy: Policy, tallies: dict[CountIdentity, Tally]) -> None:
    """Adds an order that counts over all platforms to its row of scope `all`."""
    if order.status == rows.COUNTED:
        assert order.credited is not None
        conversion = order.conversion
        name, currency = conversion.event.conversion_name or "", conversion.event.currency or ""
        identity = count_identity(conversion.time_ms, rows.ALL, order.credited, name, currency, policy)
        add(tallies[identity], conversion, {"conversions": 1, "value": order.value_micros})


def publish_count(identity: CountIdentity, tally: Tally, policy: Policy, result: Answer) -> None:
    """A tally as its row in `conversions.counts`."""
    window_start, platform, advertiser_id, dimensions, conversion_name, currency = identity
    key = rows.count_key(window_start, platform, advertiser_id, list(dimensions), conversion_name, currency)
    measures: dict[str, float] = {measure: tally.amounts.get(measure, 0) for measure in rows.MEASURES}
    for measure in rows.MONEY_MEASURES:
        measures[measure] /= MICROS
    result.behind_count[key] = tally.behind
    result.counts[key] = CountRow(
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
