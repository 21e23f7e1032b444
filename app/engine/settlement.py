"""The few: users whose conversions, adjustments or late touches must be settled in this batch, read, settled and
written back.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from app.attribution import touches as touch_store
from app.attribution.expiry import expire
from app.attribution.forgetting import forget, forgotten_until, spared
from app.attribution.state import NEVER_MS, Conversion, Touch, UserState, is_younger, pack, unpack, unpack_tied
from app.attribution.users import Change, CountDelta, Paths, changes, ids_of, take_in
from app.columns.table import distinct
from app.columns.texts import Coded, Texts, hash64, texts_of
from app.contract.events import BROWSER, SERVER, TOUCH_TYPES, Rejection
from app.contract.rows import AttributedRow
from app.engine import paths
from app.engine.counter_partition import CounterPartition, UserWork
from app.engine.fold import Command, Fold, Run
from app.engine.publishing import publish, publish_journeys
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


# Where a touch of one conversion may stand: the user's field, the platform, the user's hash, the conversion's time (ms).
_Place = tuple[str, str, int, int]


class _Reading(NamedTuple):
    """What one partition needs from Redis to settle its users. `places`: of their new conversions, by kind."""

    view: CounterPartition
    work: dict[str, UserWork]
    fields: list[list[str]]
    places: dict[str, list[_Place]]
    wanted: touch_store.Wanted
    records: dict[touch_store.SegmentKey, np.ndarray]
    names: list[Command]
    followed: paths.Reading | None
    sweeps: bool
    commands: list[Command]


def settle_users(
    opened: dict[int, CounterPartition],
    touches: FreshTouches,
    visits: dict[int, paths.FreshVisits],
    work: dict[int, dict[str, UserWork]],
    suppressed: set[int],
    policy: Policy,
    settings: Settings,
    run: Run,
    fold: Fold,
) -> list[CountDelta]:
    """Stores the batch's creditable touches and visits, settles every user concerned, and gives the changes of the counts."""
    batches = _storable(touches, policy)
    readings = {}
    for partition in sorted({*work, *batches, *visits, *fold.writes}):
        readings[partition] = _reading(
            opened[partition],
            work.get(partition, {}),
            batches.get(partition),
            visits.get(partition),
            policy,
            fold,
        )
    replies = run([command for reading in readings.values() for command in reading.commands])
    changed: list[CountDelta] = []
    for partition, reading in readings.items():
        found = replies[: len(reading.commands)]
        del replies[: len(found)]  # whole runs may be among them
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
    for partition in distinct(touches.parts[wanted]).tolist():
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
    visits: paths.FreshVisits | None,
    policy: Policy,
    fold: Fold,
) -> _Reading:
    packed: dict[touch_store.SegmentKey, np.ndarray] = {}
    names: list[Command] = []
    if storable is not None:
        packed, names = view.touches.encode(storable.batch, view.stream_ms)
        touches = storable.touches
        for index in view.converters.late(touches.bases, touches.times_ms).tolist():
            # late: a conversion that it may be credited with is settled already
            advertiser, user = touches.names["advertiser_id"].texts.at(index), touches.users.at(index)
            UserWork.of(work, advertiser or "", user or "", int(touches.bases[index])).is_late = True
            fold.counted["late", touches.names["platform"].texts.at(index) or ""] += 1
    followed = paths.reading(view, work, visits, policy) if view.visits is not None else None
    places: dict[str, list[_Place]] = {}
    for field, user in work.items():
        _find_places(places, field, user.base, user.conversions(), policy)
    if followed is not None:
        wanted = view.touches.wanted_whole(followed.hashes.ravel())
    else:
        asked = {kind: _columns(found) for kind, found in places.items()}
        wanted = view.touches.wanted(asked, _whole(work.values(), policy))
    reads, fields = view.converters.read_commands(list(work))
    sweep = view.sweep_command()
    visited = followed.wanted.commands if followed is not None else []
    commands = [*reads, *wanted.commands, *visited, *([sweep] if sweep is not None else [])]
    return _Reading(view, work, fields, places, wanted, packed, names, followed, sweep is not None, commands)


def _find_places(
    places: dict[str, list[_Place]], field: str, base: int, conversions: Iterable[Conversion], policy: Policy
) -> None:
    """Adds, by kind, where a touch of each of a user's conversions may stand."""
    for conversion in conversions:
        time_ms = conversion.time_ms
        for platform, kind in policy.places(time_ms, conversion.platform):
            places.setdefault(kind, []).append((field, platform, base, time_ms))


def _columns(places: list[_Place]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes (uint64) of the users on their platforms and the times (ms) of some places."""
    _, platforms, bases, times_ms = zip(*places, strict=True)
    salts = np.array([touch_store.platform_salt(platform) for platform in platforms], dtype=np.uint64)
    return np.array(bases, dtype=np.uint64) + salts, np.array(times_ms, dtype=np.int64)


def _whole(work: Iterable[UserWork], policy: Policy) -> np.ndarray:
    """The hashes (uint64) of those who are forgotten: what stays of them is credited anew."""
    bases = [user.base for user in work if user.is_forgotten()]
    salts = [touch_store.platform_salt(platform) for platform in policy.platforms()]
    return (np.array(bases, dtype=np.uint64)[:, None] + np.array(salts, dtype=np.uint64)).ravel()


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
    states = {field: unpack(stored[field]) for field, user in reading.work.items() if user.is_judged_whole(policy)}
    at = len(reading.fields)
    touched = found[at : at + len(reading.wanted.commands)]
    for field, user in reading.work.items():
        if user.looks_back():
            _find_places(reading.places, field, user.base, states[field].conversions, policy)
    places = {kind: (found, *_columns(found)) for kind, found in reading.places.items()}
    if reading.followed is not None:
        users = reading.followed.hashes.ravel()
    else:
        users = np.concatenate([np.empty(0, dtype=np.uint64), *(users for _, users, _ in places.values())])
    parts = view.touches.read(reading.wanted, touched, reading.records, distinct(users), run)
    credits = _credits(view, reading.work, places, touch_store.Pool(parts, view.touches.span_ms), run)
    followed, paths_of = _follow(reading, states, parts, found[at + len(touched) :], policy, run)
    since_ms = view.settled_ms - policy.bounds.correction_horizon_ms  # before what is older stands no accepted event
    out: dict[str, bytes | None] = {}
    changed: list[CountDelta] = []
    judged: list[tuple[bytes, AttributedRow | None]] = []
    noted: list[tuple[int, int]] = []
    for field, user in reading.work.items():
        state = states.get(field)
        if state is None:
            state = unpack_tied(stored[field], ids_of(user.parts[0].arrived, credits[field]))
        steps = _settle_user(
            user, state, credits[field], followed.get(field, {}), partial(paths_of, field), since_ms, policy, fold
        )
        for change in steps:
            changed += change.deltas
            for platform in change.corrected:
                fold.counted["corrected", platform] += 1
            if not quiet:
                judged += change.rows
                _publish(partition, change, settings, fold)
        noted += [(user.base, each.time_ms) for each in user.conversions() if each.time_ms > state.forgotten_ms]
        _let_go(state, view)
        out[field] = None if state.is_empty() else pack(state)
    publish(partition, judged, settings, fold)
    if reading.sweeps:
        cursor, pairs = found[-1]
        out |= _sweep(pairs, out, view)
        view.swept(int(cursor))
    fold.writes.setdefault(partition, []).extend(
        [
            *reading.names,
            *view.touches.store(reading.records),
            *(paths.store(view, reading.followed) if reading.followed is not None else ()),
            *view.converters.write_commands(out),
            *view.converters.note(noted),
        ]
    )
    return changed


def _follow(
    reading: _Reading,
    states: dict[str, UserState],
    touched: paths.Parts,
    replies: list[bytes],
    policy: Policy,
    run: Run,
) -> tuple[dict[str, Paths], Callable[..., Paths]]:
    """By user the paths of the conversions that are held and of those that come first; and what reads those of others."""
    if reading.followed is None:
        return {}, _no_paths
    visited = replies[: len(reading.followed.wanted.commands)]
    trails = paths.Trails(reading.view, reading.followed, reading.work, touched, visited, policy, run)
    asked = {
        field: ((*states[field].conversions, *user.parts[0].conversions()), states[field].forgotten_ms)
        for field, user in reading.work.items()
    }
    return trails.before(asked), partial(_paths_of, trails)


def _no_paths(field: str, conversions: Iterable[Conversion], forgotten_ms: int) -> Paths:
    return {}


def _paths_of(trails: paths.Trails, field: str, conversions: Iterable[Conversion], forgotten_ms: int) -> Paths:
    return trails.before({field: (conversions, forgotten_ms)}).get(field, {})


def _settle_user(
    user: UserWork,
    state: UserState,
    touches: list[tuple[str, Touch]],
    paths: Paths,
    paths_of: Callable[[Iterable[Conversion], int], Paths],
    since_ms: int,
    policy: Policy,
    fold: Fold,
) -> list[Change]:
    """What the batch changes of one user: its parts one after the other, and the forgets between them. `paths`: of the
    conversions that are held and those of the first part; `paths_of` reads those of others, after a time (ms).
    """
    found: list[Change] = []
    who = user.advertiser_id, user.user_id
    for at, part in enumerate(user.parts):
        if at and part.is_empty():
            continue
        if at:
            paths = paths_of((*state.conversions, *part.conversions()), state.forgotten_ms)
        taken = take_in(state, part.arrived, part.adjustments, touches, paths, policy, since_ms)
        if taken.repeats:
            fold.counted["duplicate", "", "conversion"] += taken.repeats
        if taken.forgotten:
            fold.counted["forgotten",] += taken.forgotten
        for is_browser in taken.merged:
            fold.counted["merged", BROWSER if is_browser else SERVER] += 1
        change = changes(*who, state, taken.before, policy)
        if part.until_ms is not None:
            until_ms = forgotten_until(state, part.until_ms)
            found.append(spared(change, until_ms))
            later = paths_of(state.conversions, until_ms)
            change = forget(*who, state, until_ms, touches, later, policy)
        found.append(change)
    return found


def _publish(partition: int, change: Change, settings: Settings, fold: Fold) -> None:
    if change.journeys or change.models:
        publish_journeys(partition, change.journeys, change.models, settings, fold)
    for adjustment, reason in change.refused:
        rejection = Rejection(reason, "adjustment", f"the {adjustment.kind} {adjustment.event_id} changes nothing")
        letter = records.dead_letter_of(adjustment.source, adjustment.key, adjustment.raw, rejection)
        records.add(fold.outputs, settings.dlq_topic, partition, letter)


def _credits(
    view: CounterPartition,
    fields: Iterable[str],
    places: dict[str, tuple[list[_Place], np.ndarray, np.ndarray]],
    pool: touch_store.Pool,
    run: Run,
) -> dict[str, list[tuple[str, Touch]]]:
    """For each user the best stored or new touch of every place, by kind with their columns, that one of its conversions may
    be credited to.
    """
    best: list[tuple[_Place, touch_store.Found]] = []
    for kind, (found, users, times_ms) in places.items():
        touches = pool.best(kind, users, times_ms)
        best += [(place, touch) for place, touch in zip(found, touches, strict=True) if touch is not None]
    codes = view.touches.unknown_codes(touch for _, touch in best)
    view.touches.learn(codes, run(view.touches.names_commands(codes)))
    credits: dict[str, list[tuple[str, Touch]]] = {field: [] for field in fields}
    for (field, platform, _, _), touch in best:
        credits[field].append((platform, view.touches.touch(touch)))
    return credits


def _let_go(state: UserState, view: CounterPartition) -> None:
    """Lets go, in place, of what can no longer matter; at last of the time up to which the user is forgotten."""
    expire(state, view.stream_ms, view.policy)
    if state.forgotten_ms < view.stream_ms - view.forget_retention_ms:
        state.forgotten_ms = NEVER_MS


def _sweep(replies: list[bytes], written: dict[str, bytes | None], view: CounterPartition) -> dict[str, bytes | None]:
    """Lets go of what can no longer matter of users, names and packed states in turn, that this batch does not touch anyway."""
    out: dict[str, bytes | None] = {}
    floor_ms = view.stream_ms - view.policy.conversion_retention_ms()
    for name, packed in zip(replies[::2], replies[1::2], strict=True):
        field = name.decode()
        if field in written or is_younger(packed, floor_ms):
            continue
        state = unpack(packed)
        before = _kept(state)
        _let_go(state, view)
        if _kept(state) != before:
            out[field] = None if state.is_empty() else pack(state)
    return out


def _kept(state: UserState) -> tuple[object, ...]:
    return len(state.conversions), len(state.adjustments), state.last_order, state.forgotten_ms
