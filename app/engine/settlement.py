"""The few: users whose conversions, adjustments or late touches must be settled in this batch, read, settled and
written back.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from app.attribution import touches as touch_store
from app.attribution.converters import BUCKETS as CONVERTER_BUCKETS
from app.attribution.settle import settle
from app.attribution.state import Conversion, Touch, UserState, pack, unpack
from app.attribution.users import CountDelta, attributed_row, changes, prune, take_in
from app.columns.texts import Coded, Texts, hash64, texts_of
from app.contract import rows
from app.contract.events import TOUCH_TYPES, Rejection, to_micros
from app.contract.rows import AttributedRow
from app.engine.counter_partition import CounterPartition, UserWork
from app.engine.fold import Command, Fold, Run
from app.policy.model import Policy
from app.publish import records
from app.settings import Settings


class FreshTouches(NamedTuple):
    """The new touches of a batch as aligned columns; `names`: platform, advertiser and the attributes that are kept."""

    parts: np.ndarray
    types: np.ndarray  # codes of TOUCH_TYPES
    times_ms: np.ndarray
    costs: np.ndarray  # NaN where there is none
    event_ids: Texts
    users: Texts
    bases: np.ndarray  # hashes of (advertiser, user)
    names: dict[str, Coded]

    def take(self, rows: np.ndarray) -> "FreshTouches":
        """Some of them, by index or mask."""
        names = {name: column.take(rows) for name, column in self.names.items()}
        texts = self.event_ids.take(rows), self.users.take(rows)
        return FreshTouches(*(column[rows] for column in self[:4]), *texts, self.bases[rows], names)


class Storable(NamedTuple):
    """The creditable touches of one partition's batch, and as they are stored."""

    touches: FreshTouches
    batch: touch_store.Batch


class _Reading(NamedTuple):
    """What one partition needs from Redis to settle its users."""

    view: CounterPartition
    work: dict[str, UserWork]
    fields: list[list[str]]
    wanted: touch_store.Wanted
    records: dict[touch_store.SegmentKey, np.ndarray]
    names: list[Command]
    swept: int | None
    commands: list[Command]


def settle_users(
    opened: dict[int, CounterPartition],
    touches: FreshTouches,
    work: dict[int, dict[str, UserWork]],
    suppressed: set[int],
    policy: Policy,
    settings: Settings,
    run: Run,
    fold: Fold,
) -> list[CountDelta]:
    """Stores the batch's creditable touches, settles every user concerned, and gives the changes of the counts."""
    batches = _storable(touches, policy)
    readings = {}
    for partition in sorted({*work, *batches, *fold.writes}):
        readings[partition] = _reading(opened[partition], work.get(partition, {}), batches.get(partition), policy, fold)
    replies = iter(run([command for reading in readings.values() for command in reading.commands]))
    changed: list[CountDelta] = []
    for partition, reading in readings.items():
        found = [next(replies) for _ in reading.commands]
        quiet = partition in suppressed
        deltas = _settle_partition(partition, reading, found, quiet, policy, settings, run, fold)
        if not quiet:
            changed += deltas
    return changed


def _storable(touches: FreshTouches, policy: Policy) -> dict[int, Storable]:
    """The touches that some method can credit, by partition."""
    platforms = touches.names["platform"].codes
    wanted = np.zeros(len(platforms), dtype=bool)
    for platform, kind in policy.creditable():
        wanted |= (platforms == name_code(platform)) & (touches.types == TOUCH_TYPES.index(kind))
    found = {}
    for partition in np.unique(touches.parts[wanted]).tolist():
        kept = touches.take(np.flatnonzero(wanted & (touches.parts == partition)))
        batch = touch_store.Batch(
            kinds=kept.types,
            users=kept.bases + touch_store.platform_salts(kept.names["platform"].codes),
            times_ms=kept.times_ms,
            event_ids=kept.event_ids,
            attributes=[kept.names[name] for name in policy.bounds.keep],
        )
        found[partition] = Storable(kept, batch)
    return found


@cache
def name_code(name: str) -> int:
    """The code of one name."""
    return int(hash64(texts_of([name.encode()]))[0])


def _reading(
    view: CounterPartition,
    work: dict[str, UserWork],
    storable: Storable | None,
    policy: Policy,
    fold: Fold,
) -> _Reading:
    packed: dict[touch_store.SegmentKey, np.ndarray] = {}
    names: list[Command] = []
    if storable is not None:
        packed, names = view.touches.encode(storable.batch, view.stream_ms)
        touches = storable.touches
        for index in np.flatnonzero(view.converters.latest_of(touches.bases) > touches.times_ms).tolist():
            # late: a conversion that it may be credited with is settled already
            advertiser, user = touches.names["advertiser_id"].texts.at(index), touches.users.at(index)
            UserWork.of(work, advertiser or "", user or "", int(touches.bases[index]))
            fold.counted["late", touches.names["platform"].texts.at(index) or ""] += 1
    wanted = view.touches.wanted(_lookups(work.values(), policy))
    reads, fields = view.converters.read_commands(list(work))
    swept = view.bucket_to_sweep()
    sweep: list[Command] = [("HGETALL", view.converters.key(swept))] if swept is not None else []
    return _Reading(view, work, fields, wanted, packed, names, swept, [*reads, *wanted.commands, *sweep])


def _lookups(work: Iterable[UserWork], policy: Policy) -> Iterable[tuple[str, int, int]]:
    """(kind, user hash, time) of every place where a new conversion's touch may stand."""
    for user in work:
        for conversion in user.conversions:
            for platform, kind in _places(conversion, policy):
                yield kind, platform_user(user.base, platform), conversion.time_ms


def _places(conversion: Conversion, policy: Policy) -> list[tuple[str, str]]:
    platforms = policy.at(conversion.time_ms).platforms
    names = (conversion.platform,) if conversion.platform else tuple(platforms)
    return [(name, kind) for name in names if name in platforms for kind in platforms[name].windows_ms]


def platform_user(base: int, platform: str) -> int:
    """The hash of a user on a platform, as touch records carry it."""
    return (base + touch_store.platform_salt(platform)) & (2**64 - 1)


def _settle_partition(
    partition: int,
    reading: _Reading,
    found: list[Any],
    quiet: bool,
    policy: Policy,
    settings: Settings,
    run: Run,
    fold: Fold,
) -> list[CountDelta]:
    view = reading.view
    stored: dict[str, bytes | None] = {}
    for fields, values in zip(reading.fields, found, strict=False):
        stored.update(zip(fields, values, strict=True))
    states = {field: unpack(packed) for field, packed in stored.items()}
    at = len(reading.fields)
    touched = found[at : at + len(reading.wanted.commands)]
    credits = _credits(view, reading, states, touched, policy, run)
    out: dict[str, bytes | None] = {}
    changed: list[CountDelta] = []
    noted: list[tuple[int, int]] = []
    floor_ms = view.stream_ms - policy.conversion_retention_ms()
    for field, user in reading.work.items():
        state = states[field]
        before, repeats = take_in(state, user.conversions, user.adjustments, credits[field], policy)
        change = changes(user.advertiser_id, user.user_id, state, before, policy)
        fold.counted["duplicate", "", "conversion"] += repeats
        changed += change.deltas
        if not quiet:
            _publish(partition, change.rows, settings, fold)
            for adjustment, reason in change.refused:
                rejection = Rejection(
                    reason, "adjustment", f"the {adjustment.kind} {adjustment.event_id} changes nothing"
                )
                letter = records.dead_letter_of(adjustment.source, adjustment.key, adjustment.raw, rejection)
                records.add(fold.outputs, settings.dlq_topic, partition, letter)
        for platform in change.corrected:
            fold.counted["corrected", platform] += 1
        noted += [(user.base, conversion.time_ms) for conversion in user.conversions]
        prune(state, floor_ms)
        out[field] = pack(state) if state.conversions or state.adjustments else None
    if reading.swept is not None:
        out |= _sweep(found[-1], out, floor_ms)
    fold.writes.setdefault(partition, []).extend(
        [
            *reading.names,
            *view.touches.store(reading.records),
            *view.converters.write_commands(out),
            *view.converters.note(noted),
        ]
    )
    return changed


class _Place(NamedTuple):
    """Where a touch of one conversion may stand."""

    field: str
    platform: str
    user: int  # the user's hash on the platform
    time_ms: int


def _credits(
    view: CounterPartition,
    reading: _Reading,
    states: dict[str, UserState],
    replies: list[bytes],
    policy: Policy,
    run: Run,
) -> dict[str, list[tuple[str, Touch]]]:
    """For each user the best stored or new touch of every place that one of its conversions may be credited to."""
    places: dict[str, list[_Place]] = {}
    for field, user in reading.work.items():
        for conversion in (*states[field].conversions, *user.conversions):
            for platform, kind in _places(conversion, policy):
                place = _Place(field, platform, platform_user(user.base, platform), conversion.time_ms)
                places.setdefault(kind, []).append(place)
    users = {kind: np.array([place.user for place in found], dtype=np.uint64) for kind, found in places.items()}
    known = np.unique(np.concatenate(list(users.values()))) if users else np.empty(0, dtype=np.uint64)
    pool = view.touches.pool(reading.wanted, replies, reading.records, known)
    best: list[tuple[_Place, touch_store.Found]] = []
    for kind, found in places.items():
        times_ms = np.array([place.time_ms for place in found], dtype=np.int64)
        touches = pool.best(kind, users[kind], times_ms)
        best += [(place, touch) for place, touch in zip(found, touches, strict=True) if touch is not None]
    codes = view.touches.unknown_codes(touch for _, touch in best)
    view.touches.learn(codes, run(view.touches.names_commands(codes)))
    credits: dict[str, list[tuple[str, Touch]]] = {field: [] for field in reading.work}
    for place, touch in best:
        credits[place.field].append((place.platform, view.touches.touch(touch)))
    return credits


def _publish(partition: int, changed: list[tuple[bytes, AttributedRow | None]], settings: Settings, fold: Fold) -> None:
    for key, row in changed:
        if row is not None:
            fold.counted["conversion", row.platform, row.method, row.status] += 1
        value = None if row is None else rows.encode(row)
        records.add(fold.outputs, settings.attributed_topic, partition, {"key": key, "value": value})


def _sweep(replies: list[bytes], written: dict[str, bytes | None], floor_ms: int) -> dict[str, bytes | None]:
    """Prunes the users of one bucket that this batch does not touch anyway."""
    out: dict[str, bytes | None] = {}
    for name, packed in zip(replies[::2], replies[1::2], strict=True):
        field = name.decode()
        if field in written:
            continue
        state = unpack(packed)
        held = len(state.conversions) + len(state.adjustments)
        prune(state, floor_ms)
        left = len(state.conversions) + len(state.adjustments)
        if left != held:
            out[field] = pack(state) if left else None
    return out


def oldest_conversion_ms(view: CounterPartition, run: Run, limit_ms: int) -> int:
    """The time (epoch ms) of the oldest conversion that is held, at most `limit_ms`."""
    for bucket in range(CONVERTER_BUCKETS):
        for packed in run([("HGETALL", view.converters.key(bucket))])[0][1::2]:
            limit_ms = min((limit_ms, *(conversion.time_ms for conversion in unpack(packed).conversions)))
    return limit_ms


def reconcile_partition(
    view: CounterPartition,
    partition: int,
    published: dict[bytes, bytes],
    policy: Policy,
    settings: Settings,
    run: Run,
    fold: Fold,
) -> list[CountDelta]:
    """Compares the rebuilt state of one partition with its published rows: takes their revisions over, and gives out
    what differs.

    `published` holds the latest row by key, of all conversions that are held; rows of older ones stand as they are.
    """
    changed: list[CountDelta] = []
    for bucket in range(CONVERTER_BUCKETS):
        replies = run([("HGETALL", view.converters.key(bucket))])[0]
        out: dict[str, bytes | None] = {}
        for name, packed in zip(replies[::2], replies[1::2], strict=True):
            state = unpack(packed)
            advertiser_id, user_id = name.decode().split("\x1f")
            changed += _reconcile_user(advertiser_id, user_id, state, published, partition, policy, settings, fold)
            out[name.decode()] = pack(state)
        fold.writes.setdefault(partition, []).extend(view.converters.write_commands(out))
    floor_ms = view.stream_ms - policy.conversion_retention_ms()
    for key, value in published.items():
        row = rows.decode_attributed(value)
        if row.event_time >= floor_ms:
            _publish(partition, [(key, None)], settings, fold)
            changed += _row_deltas(row, -1, policy)
    return changed


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
    for (_, _, platform), decision in settle(state.conversions, state.adjustments, policy).decisions.items():
        conversion = decision.conversion
        key = rows.attributed_key(advertiser_id, user_id, platform, conversion.name, conversion.event_id)
        value = left.pop(key, None)
        old = None if value is None else rows.decode_attributed(value)
        revision = old.revision if old is not None else 0
        row = attributed_row(advertiser_id, user_id, platform, decision, revision, policy)
        if row != old:
            revision += 1
            row = attributed_row(advertiser_id, user_id, platform, decision, revision, policy)
            _publish(partition, [(key, row)], settings, fold)
            changed += (_row_deltas(old, -1, policy) if old is not None else []) + _row_deltas(row, 1, policy)
        conversion.revisions[platform] = revision
    return changed


def _row_deltas(row: AttributedRow, sign: int, policy: Policy) -> list[CountDelta]:
    if row.status != rows.COUNTED:
        return []
    bounds = policy.bounds
    dimensions = tuple(getattr(row, name) for name in bounds.dimensions)
    window = row.event_time // bounds.window_ms * bounds.window_ms
    value = sign * to_micros(row.value)
    return [
        CountDelta(
            window, row.platform, row.advertiser_id, dimensions, row.conversion_name, row.currency or "", sign, value
        )
    ]
