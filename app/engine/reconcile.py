"""After a rebuild: what was published is compared with the rebuilt state of a counter's partition, and differences leave as
ordinary corrections.
"""

from collections.abc import Iterable
from typing import NamedTuple

import orjson

from app.attribution.converters import BUCKETS as CONVERTER_BUCKETS
from app.attribution.converters import user_field
from app.attribution.journeys import journey_row
from app.attribution.state import STATE_VERSION, UserState, pack, unpack
from app.attribution.users import CountDelta, answer, attributed_row, put_journey
from app.contract import rows
from app.contract.events import to_micros
from app.contract.journeys import JourneyRow, decode_journey, journey_key
from app.contract.rows import AttributedRow
from app.engine.counter_partition import CounterPartition
from app.engine.fold import Fold, Published, Run
from app.engine.settlement import publish, publish_journeys
from app.policy.model import Policy
from app.settings import Settings

JOURNEY_KEY = 4  # the parts of a journey's key; a conversion's has five


class Known(NamedTuple):
    """What is published: the latest row by key, of all conversions that may be held; and by user field the paid orders that
    may be forgotten, as (time in ms, event_id, conversion_name).
    """

    rows: dict[bytes, bytes]
    orders: dict[str, list[tuple[int, str, str]]]


def known(published: Iterable[Published], since_ms: int, floor_ms: int, policy: Policy) -> Known:
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
    return Known(held, orders)


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
    view: CounterPartition, partition: int, published: Known, policy: Policy, settings: Settings, run: Run, fold: Fold
) -> list[CountDelta]:
    """Compares the rebuilt state of one partition with its published rows: takes their revisions over, and gives out
    what differs.
    """
    changed: list[CountDelta] = []
    left, orders = published
    for bucket in range(CONVERTER_BUCKETS):
        replies = run([("HGETALL", view.converters.key(bucket))])[0]
        out: dict[str, bytes | None] = {}
        for name, packed in zip(replies[::2], replies[1::2], strict=True):
            field, state = name.decode(), unpack(packed)
            state.last_order = _last_order(state, orders.pop(field, []))
            advertiser_id, user_id = field.split("\x1f")
            changed += _reconcile_user(advertiser_id, user_id, state, left, partition, policy, settings, fold)
            out[field] = pack(state)
        fold.writes.setdefault(partition, []).extend(view.converters.write_commands(out))
    gone: dict[str, bytes | None] = {}
    for field, found in orders.items():
        state = UserState(STATE_VERSION, [], [])
        state.last_order = _last_order(state, found)
        gone[field] = pack(state)
    fold.writes.setdefault(partition, []).extend(view.converters.write_commands(gone))
    floor_ms = view.stream_ms - policy.conversion_retention_ms()
    for key, value in left.items():
        if rows.attributed_time_ms(value) < floor_ms:
            continue
        if _is_journey(key):
            journey = decode_journey(value)
            _put(journey, None, partition, policy, settings, fold)
            changed += _journey_deltas(journey, -1, policy)
        else:
            publish(partition, [(key, None)], settings, fold)
            changed += _row_deltas(rows.decode_attributed(value), -1, policy)
    return changed


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
        if row != old:
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
        if journey_row(advertiser_id, user_id, journey, revision, policy) != was:
            revision += 1
            order = journey_row(advertiser_id, user_id, journey, revision, policy)
            _put(was, order, partition, policy, settings, fold)
            changed += (_journey_deltas(was, -1, policy) if was is not None else []) + _journey_deltas(order, 1, policy)
        conversion.revisions[rows.ALL] = revision
    return changed


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
