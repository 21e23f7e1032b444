"""The paths of a batch's conversions: its new visits stored, and what stands before each conversion read from the store.

Only where the policy follows journeys. A path is read anew for every conversion that an event of this batch may stand
before: those not older than the correction horizon before the stream time with which the batch before ended. Of those the
store still holds everything that their journeys reach back to; older ones can no longer change.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from app.attribution import touches as touch_store
from app.attribution.state import Conversion, Path, Touch
from app.attribution.timeline import Places, Timeline, Windows, path_before
from app.attribution.users import Paths
from app.columns.table import distinct
from app.columns.texts import Texts, coded
from app.engine.counter_partition import CounterPartition, UserWork
from app.engine.fold import Command, Run
from app.policy.model import Policy

Parts = list[tuple[touch_store.SegmentKey, np.ndarray]]


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
        for index in view.converters.late(visits.bases, visits.times_ms).tolist():
            UserWork.of(work, *visits.who[index], int(visits.bases[index]))
    platforms = tuple(sorted(policy.platforms()))
    bases = np.array([user.base for user in work.values()], dtype=np.uint64)
    salts = np.array([touch_store.platform_salt(name) for name in platforms], dtype=np.uint64)
    return Reading(platforms, bases[:, None] + salts[None, :], bases, view.visits.wanted_whole(bases), records, names)


def store(view: CounterPartition, reading: Reading) -> list[Command]:
    """The commands that store the batch's visits."""
    assert view.visits is not None
    return [*reading.names, *view.visits.store(reading.records)]


class Trails:
    """The touches and visits of a batch's users, stored and new ones, from which paths are read."""

    def __init__(
        self,
        view: CounterPartition,
        reading: Reading,
        fields: Iterable[str],  # the users, in the order of `reading`
        touched: Parts,
        replies: list[bytes],
        policy: Policy,
        run: Run,
    ) -> None:
        assert view.visits is not None
        visited = view.visits.read(reading.wanted, replies, reading.records, distinct(reading.bases), run)
        self._view, self._policy, self._run = view, policy, run
        self._platforms = reading.platforms
        self._users = {field: user for user, field in enumerate(fields)}
        self._touches = Timeline(touched, view.touches.span_ms, reading.hashes)
        self._visits = Timeline(visited, view.visits.span_ms, reading.bases[:, None])
        self._windows = Windows(policy, reading.platforms)
        self._since_ms = view.settled_ms - policy.bounds.correction_horizon_ms

    def before(self, asked: dict[str, tuple[Iterable[Conversion], int]]) -> dict[str, Paths]:
        """The path of every conversion that this batch may have changed, by user and identity. `asked`: by user the
        conversions, and up to when the user is forgotten (ms).
        """
        journeys = self._policy.bounds.journeys
        assert journeys is not None
        assert self._view.visits is not None
        found: list[tuple[str, Conversion, Places]] = []
        for field, (conversions, forgotten_ms) in asked.items():
            # Of one identity the first stands; what comes after it is a repeat, whose own time says nothing.
            standing: dict[tuple[str, str, str], Conversion] = {}
            for conversion in conversions:
                if conversion.time_ms > forgotten_ms:
                    standing.setdefault(conversion.identity(), conversion)
            for conversion in standing.values():
                if conversion.time_ms >= self._since_ms:
                    user, known = self._users[field], (self._touches, self._visits, self._windows)
                    found.append((field, conversion, path_before(conversion, user, *known, journeys, forgotten_ms)))
        touches = _read(
            self._view.touches, self._touches, (at for *_, places in found for at in _touches_in(places)), self._run
        )
        visits = _read(
            self._view.visits, self._visits, (at for *_, places in found for at in _visits_in(places)), self._run
        )
        paths: dict[str, Paths] = {}
        for field, conversion, places in found:
            paths.setdefault(field, {})[conversion.identity()] = self._path(places, touches, visits)
        return paths

    def _path(self, places: Places, touches: dict[int, Touch], visits: dict[int, Touch]) -> Path:
        def placed(at: int) -> tuple[str, Touch]:
            return self._platforms[self._touches.platforms[at]], touches[at]

        first_visit = None
        if places.first_visit is not None:
            visit = visits[places.first_visit]
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
            [visits[at].attributes[0] or "" for at in places.pages],
        )


def _touches_in(places: Places) -> Iterable[int]:
    yield from places.touches
    for at in (places.first, places.credited):
        if at is not None:
            yield at


def _visits_in(places: Places) -> Iterable[int]:
    yield from places.pages
    if places.first_visit is not None:
        yield places.first_visit


def _read(store: touch_store.Touches, timeline: Timeline, places: Iterable[int], run: Run) -> dict[int, Touch]:
    """Some records of a timeline with their names."""
    found = {at: timeline.found(at) for at in dict.fromkeys(places)}
    codes = store.unknown_codes(found.values())
    store.learn(codes, run(store.names_commands(codes)))
    return {at: store.touch(each) for at, each in found.items()}
