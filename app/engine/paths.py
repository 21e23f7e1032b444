"""The paths of a batch's conversions: its new visits stored, and what stands before each conversion read from the store.

Only where the policy follows journeys. A path is read anew for every conversion that an event of this batch may stand
before: those not older than the correction horizon before the stream time with which the batch before ended. Of those the
store still holds everything that their journeys reach back to; older ones can no longer change.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from app.attribution import touches as touch_store
from app.attribution.state import Conversion, Path, Touch, UserState
from app.attribution.timeline import Places, Timeline, Windows, path_before
from app.columns.texts import Texts, coded
from app.engine.counter_partition import CounterPartition, UserWork
from app.engine.fold import Command, Run
from app.policy.model import Policy

Parts = list[tuple[touch_store.SegmentKey, np.ndarray]]
Identity = tuple[str, str, str]


class FreshVisits(NamedTuple):
    """The new visits of one partition's batch as aligned columns; `who`: advertiser and user."""

    times_ms: np.ndarray
    event_ids: Texts
    bases: np.ndarray  # hashes of (advertiser, user)
    pages: Texts
    referrers: Texts
    who: list[tuple[str, str]]


class Reading(NamedTuple):
    """What one partition needs to read its users' paths: `hashes` of each user (rows) on each platform (columns)."""

    platforms: tuple[str, ...]
    hashes: np.ndarray
    bases: np.ndarray
    wanted: touch_store.Wanted  # of visits
    records: dict[touch_store.SegmentKey, np.ndarray]
    names: list[Command]


def reading(view: CounterPartition, work: dict[str, UserWork], visits: FreshVisits | None, policy: Policy) -> Reading:
    """Takes the new visits in, and whoever converted after one of them into `work`."""
    assert view.visits is not None
    records: dict[touch_store.SegmentKey, np.ndarray] = {}
    names: list[Command] = []
    if visits is not None:
        batch = touch_store.Batch(
            np.zeros(len(visits.times_ms), dtype=np.int64),
            visits.bases,
            visits.times_ms,
            visits.event_ids,
            [coded(visits.pages), coded(visits.referrers)],
        )
        records, names = view.visits.encode(batch, view.stream_ms)
        for index in np.flatnonzero(view.converters.latest_of(visits.bases) > visits.times_ms).tolist():
            UserWork.of(work, *visits.who[index], int(visits.bases[index]))
    platforms = tuple(sorted(policy.platforms()))
    bases = np.array([user.base for user in work.values()], dtype=np.uint64)
    salts = np.array([touch_store.platform_salt(name) for name in platforms], dtype=np.uint64)
    return Reading(platforms, bases[:, None] + salts[None, :], bases, view.visits.wanted_whole(bases), records, names)


def store(view: CounterPartition, reading: Reading) -> list[Command]:
    """The commands that store the batch's visits."""
    assert view.visits is not None
    return [*reading.names, *view.visits.store(reading.records)]


def follow(
    view: CounterPartition,
    reading: Reading,
    work: dict[str, UserWork],
    states: dict[str, UserState],
    touched: Parts,
    replies: list[bytes],
    policy: Policy,
    run: Run,
) -> dict[str, dict[Identity, Path]]:
    """The path of every conversion that this batch may have changed, by user and identity."""
    journeys = policy.bounds.journeys
    assert view.visits is not None
    assert journeys is not None
    visited = view.visits.read(reading.wanted, replies, reading.records, np.unique(reading.bases))
    touches = Timeline(touched, view.touches.span_ms, reading.hashes)
    visits = Timeline(visited, view.visits.span_ms, reading.bases[:, None])
    windows = Windows(policy, reading.platforms)
    since_ms = view.settled_ms - policy.bounds.correction_horizon_ms
    found: list[tuple[str, Conversion, Places]] = []
    for user, (field, brought) in enumerate(work.items()):
        # Of one identity the first stands; what comes after it is a repeat, whose own time says nothing.
        standing = {each.identity(): each for each in (*brought.conversions[::-1], *states[field].conversions)}
        for conversion in standing.values():
            if conversion.time_ms >= since_ms:
                places = path_before(conversion, user, touches, visits, windows, journeys)
                found.append((field, conversion, places))
    paths: dict[str, dict[Identity, Path]] = {}
    seen = _Read(view.touches, touches, (at for *_, places in found for at in _touches_in(places)), run)
    seen_visits = _Read(view.visits, visits, (at for *_, places in found for at in _visits_in(places)), run)
    for field, conversion, places in found:
        paths.setdefault(field, {})[conversion.identity()] = _path(places, reading, touches, seen, seen_visits)
    return paths


def _touches_in(places: Places) -> Iterable[int]:
    yield from places.touches
    for at in (places.first, places.credited):
        if at is not None:
            yield at


def _visits_in(places: Places) -> Iterable[int]:
    yield from places.pages
    if places.first_visit is not None:
        yield places.first_visit


class _Read:
    """Some records of a timeline with their names."""

    def __init__(self, store: touch_store.Touches, timeline: Timeline, places: Iterable[int], run: Run) -> None:
        found = {at: timeline.found(at) for at in dict.fromkeys(places)}
        codes = store.unknown_codes(found.values())
        store.learn(codes, run(store.names_commands(codes)))
        self.touches: dict[int, Touch] = {at: store.touch(each) for at, each in found.items()}


def _path(places: Places, reading: Reading, touches: Timeline, seen: _Read, visits: _Read) -> Path:
    def placed(at: int) -> tuple[str, Touch]:
        return reading.platforms[touches.platforms[at]], seen.touches[at]

    first_visit = None
    if places.first_visit is not None:
        visit = visits.touches[places.first_visit]
        first_visit = visit.time_ms, visit.attributes[0] or "", visit.attributes[1]
    return Path(
        places.views,
        places.engaged_views,
        places.clicks,
        places.visits,
        placed(places.first) if places.first is not None else None,
        [placed(at) for at in places.touches],
        placed(places.credited) if places.credited is not None else None,
        first_visit,
        [visits.touches[at].attributes[0] or "" for at in places.pages],
    )
