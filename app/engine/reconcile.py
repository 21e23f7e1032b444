"""After a rebuild: what was published is compared with the rebuilt state of a counter's partition, and differences leave as
ordinary corrections.
"""

from collections.abc import Iterable
from typing import NamedTuple

import orjson

from app.attribution.converters import BUCKETS as CONVERTER_BUCKETS
from app.attribution.converters import user_field
from app.attribution.expiry import expire
from app.attribution.journeys import journey_row
from app.attribution.state import Conversion, UserState, pack, unpack
from app.attribution.takeover import WHOLE, Cut, take_over
from app.attribution.users import CountDelta, answer, attributed_row, put_journey
from app.contract import rows
from app.contract.events import to_micros
from app.contract.journeys import JourneyRow, decode_journey, journey_key
from app.contract.rows import AttributedRow
from app.engine.counter_partition import CounterPartition
from app.engine.fold import Fold, Published, Run
from app.engine.publishing import publish, publish_journeys
from app.policy.model import Policy
from app.settings import Settings

JOURNEY_KEY = 4  # the parts of a journey's key; a conversion's has five


class Known(NamedTuple):
    """What is published: the latest row by key, of all conversions that may be held; by user field the paid orders that
    may be forgotten, as (time in ms, event_id, conversion_name), and the keys of the rows that the log may lack.
    """

    rows: dict[bytes, bytes]
    orders: dict[str, list[tuple[int, str, str]]]
    old: dict[str, list[bytes]]


def known(published: Iterable[Published], since_ms: int, floor_ms: int, cut: Cut, policy: Policy) -> Known:
    """Reads both topics' rows. Those of conversions before `since_ms` stand as they are; what is later than `floor_ms` is
    not forgotten.
    """
    journeys = policy.bounds.journeys
    paid = frozenset(journeys.orders) if journeys is not None else frozenset()
    held: dict[bytes, bytes] = {}
    times: dict[bytes, int] = {}
    for key, value in published:
        held.pop(key, None)
        times.pop(key, None)
        if value is None:
            continue
        if (time_ms := rows.attributed_time_ms(value)) >= since_ms:
            held[key] = value
        if time_ms < floor_ms and _is_journey(key) and _is_paid(value, paid):
            times[key] = time_ms
    orders: dict[str, list[tuple[int, str, str]]] = {}
    for key, time_ms in times.items():
        advertiser_id, user_id, name, event_id = orjson.loads(key)
        orders.setdefault(user_field(advertiser_id, user_id), []).append((time_ms, event_id, name))
    old: dict[str, list[bytes]] = {}
    for key, value in held.items():
        if cut.stands_ms and rows.attributed_time_ms(value) < cut.stands_ms:
            advertiser_id, user_id, *_ = orjson.loads(key)
            old.setdefault(user_field(advertiser_id, user_id), []).append(key)
    return Known(held, orders, old)


def _is_journey(key: bytes) -> bool:
    return len(orjson.loads(key)) == JOURNEY_KEY


def _is_paid(value: bytes, paid: frozenset[str]) -> bool:
    row = decode_journey(value)
    return row.conversion_name in paid and row.status != rows.RETRACTED


def oldest_conversion_ms(view: CounterPartition, run: Run, limit_ms: int) -> int:
    """The time (epoch ms) of the oldest conversion that is held, at most `limit_ms`."""
    for bucket in range(CONVERTER_BUCKETS):
        for packed in run([("HGETALL", view.converters.key(bucket))])[0][1::2]:
            limit_ms = min((limit_ms, *(conversion.time_ms for conversion in unpack(packed).conversions)))
    return limit_ms


def reconcile_partition(
    view: CounterPartition,
    partition: int,
    published: Known,
    cut: Cut,
    policy: Policy,
    settings: Settings,
    run: Run,
    fold: Fold,
) -> list[CountDelta]:
    """Compares the rebuilt state of one partition with its published rows: takes over what the cut log no longer tells, and
    their revisions, and gives out what differs.
    """
    changed: list[CountDelta] = []
    left, orders, old = published
    floor_ms = view.stream_ms - policy.conversion_retention_ms()

    def settled(field: str, packed: bytes | None) -> bytes | None:
        """A user's state after the comparison, as it is stored."""
        state = unpack(packed)
        advertiser_id, user_id = field.split("\x1f")
        if cut != WHOLE:
            _take_over(advertiser_id, user_id, state, old.pop(field, []), left, cut, policy)
            state.last_order = None  # rows tell of all that was let go, and of nothing else
        state.last_order = _last_order(state, orders.pop(field, []))
        changed.extend(_reconcile_user(advertiser_id, user_id, state, left, cut, partition, policy, settings, fold))
        if cut != WHOLE:
            expire(state, view.stream_ms, policy)
        return None if state.is_empty() else pack(state)

    for bucket in range(CONVERTER_BUCKETS):
        replies = run([("HGETALL", view.converters.key(bucket))])[0]
        pairs = zip(replies[::2], replies[1::2], strict=True)
        out = {name.decode(): settled(name.decode(), packed) for name, packed in pairs}
        fold.writes.setdefault(partition, []).extend(view.converters.write_commands(out))
    # users of whom the state holds nothing; what is older matters only to those of whom it does
    lost = {field for field, keys in old.items() if any(rows.attributed_time_ms(left[key]) >= floor_ms for key in keys)}
    out = {field: settled(field, None) for field in sorted(lost | orders.keys())}
    fold.writes.setdefault(partition, []).extend(view.converters.write_commands(out))
    for key, value in left.items():
        if rows.attributed_time_ms(value) < max(floor_ms, cut.stands_ms):
            continue
        if _is_journey(key):
            journey = decode_journey(value)
            _put(journey, None, partition, policy, settings, fold)
            changed += _journey_deltas(journey, -1, policy)
        else:
            publish(partition, [(key, None)], settings, fold)
            changed += _row_deltas(rows.decode_attributed(value), -1, policy)
    return changed


def _take_over(
    advertiser_id: str,
    user_id: str,
    state: UserState,
    old: list[bytes],
    left: dict[bytes, bytes],
    cut: Cut,
    policy: Policy,
) -> None:
    if not (old or state.adjustments) and all(each.time_ms >= cut.told_ms for each in state.conversions):
        return  # the log tells all of it
    keys = set(old)
    for conversion in state.conversions:
        who = advertiser_id, user_id
        names = conversion.name, conversion.event_id
        keys.update(rows.attributed_key(*who, platform, *names) for platform in ("", *policy.platforms()))
        keys.add(journey_key(*who, *names))
    found = [(key, left[key]) for key in sorted(keys) if key in left]
    attributed = [rows.decode_attributed(value) for key, value in found if not _is_journey(key)]
    take_over(state, attributed, [decode_journey(value) for key, value in found if _is_journey(key)], cut, policy)


def _last_order(state: UserState, orders: list[tuple[int, str, str]]) -> tuple[int, str, str] | None:
    """The last paid order that the state no longer holds."""
    held = {(conversion.event_id, conversion.name) for conversion in state.conversions}
    # an order of a forgotten person may still be published: `onecount forget` deletes what is too old to be held
    gone = [order for order in orders if order[1:] not in held and order[0] > state.forgotten_ms]
    return max([*gone, *([] if state.last_order is None else [state.last_order])], default=None)


def _reconcile_user(
    advertiser_id: str,
    user_id: str,
    state: UserState,
    left: dict[bytes, bytes],
    cut: Cut,
    partition: int,
    policy: Policy,
    settings: Settings,
    fold: Fold,
) -> list[CountDelta]:
    changed: list[CountDelta] = []
    now = answer(state, policy)
    for (_, _, platform), decision in now.settlement.decisions.items():
        conversion = decision.conversion
        key = rows.attributed_key(advertiser_id, user_id, platform, conversion.name, conversion.event_id)
        value = left.pop(key, None)
        old = None if value is None else rows.decode_attributed(value)
        revision = old.revision if old is not None else 0
        row = attributed_row(advertiser_id, user_id, platform, decision, revision, policy)
        if row != old and not _stands(conversion, old, cut):
            revision += 1
            row = attributed_row(advertiser_id, user_id, platform, decision, revision, policy)
            publish(partition, [(key, row)], settings, fold)
            changed += (_row_deltas(old, -1, policy) if old is not None else []) + _row_deltas(row, 1, policy)
        conversion.revisions[platform] = revision
    for journey in now.journeys.values():
        conversion = journey.decision.conversion
        value = left.pop(journey_key(advertiser_id, user_id, conversion.name, conversion.event_id), None)
        was = None if value is None else decode_journey(value)
        revision = was.revision if was is not None else 0
        shown = journey_row(advertiser_id, user_id, journey, revision, policy)
        if shown != was and not _stands(conversion, was, cut):
            revision += 1
            order = journey_row(advertiser_id, user_id, journey, revision, policy)
            _put(was, order, partition, policy, settings, fold)
            changed += (_journey_deltas(was, -1, policy) if was is not None else []) + _journey_deltas(order, 1, policy)
        conversion.revisions[rows.ALL] = revision
    return changed


def _stands(conversion: Conversion, old: AttributedRow | JourneyRow | None, cut: Cut) -> bool:
    """Whether what is published of a conversion, be it nothing, is not to be corrected."""
    return min(conversion.time_ms, old.event_time if old is not None else conversion.time_ms) < cut.stands_ms


def _put(
    old: JourneyRow | None,
    new: JourneyRow | None,
    partition: int,
    policy: Policy,
    settings: Settings,
    fold: Fold,
) -> None:
    row = new if new is not None else old
    assert row is not None
    journeys, models = put_journey(
        row.advertiser_id,
        row.user_id,
        (row.conversion_name, row.event_id),
        new,
        old is not None and bool(old.conversions),
        policy,
    )
    publish_journeys(partition, journeys, models, settings, fold)


def _row_deltas(row: AttributedRow, sign: int, policy: Policy) -> list[CountDelta]:
    if row.status != rows.COUNTED:
        return []
    return [_delta(row, row.platform, row, sign, policy)]


def _journey_deltas(row: JourneyRow, sign: int, policy: Policy) -> list[CountDelta]:
    if row.status != rows.COUNTED or row.credited is None:
        return []
    return [_delta(row, rows.ALL, row.credited, sign, policy)]


def _delta(row: AttributedRow | JourneyRow, platform: str, touch: object, sign: int, policy: Policy) -> CountDelta:
    bounds = policy.bounds
    return CountDelta(
        row.event_time // bounds.window_ms * bounds.window_ms,
        platform,
        row.advertiser_id,
        tuple(getattr(touch, name) for name in bounds.dimensions),
        row.conversion_name,
        row.currency or "",
        sign,
        sign * to_micros(row.value),
    )
