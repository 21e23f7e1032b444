"""The stored records of some users as one timeline, and the path before a conversion read off it (docs/counting.md,
section 8).

Columns, not objects: a user may have a hundred thousand views, of which a row shows fifty.
"""

from typing import Final, NamedTuple

import numpy as np

from app.attribution.state import Conversion
from app.attribution.touches import Found, SegmentKey
from app.columns.table import HASH
from app.contract.events import TOUCH_TYPES
from app.policy.model import RANK, Journeys, Policy

KINDS: Final = tuple(sorted(TOUCH_TYPES))  # a kind's code is its place, so that codes are in the order of names
_RANKS: Final = np.array([RANK[kind] for kind in KINDS])


class Timeline:
    """Records in order of (user, time, event id, platform, kind), of equal ones the first accepted first."""

    def __init__(
        self,
        parts: list[tuple[SegmentKey, np.ndarray]],
        span_ms: dict[str, int],
        hashes: np.ndarray,  # of each user (rows) on each platform (columns), as records carry them
    ) -> None:
        self._parts = [(segment, records) for segment, records in parts if len(records)]
        order = np.argsort(hashes.ravel())
        known = hashes.ravel()[order]
        users, platforms, times, ids, kinds, origins, places = [], [], [], [], [], [], []
        for origin, ((kind, number, _), records) in enumerate(self._parts):
            at = order[np.minimum(known.searchsorted(records[HASH]), len(known) - 1)]
            mine = np.flatnonzero(hashes.ravel()[at] == records[HASH])
            at = at[mine]
            users.append(at // hashes.shape[1])
            platforms.append(at % hashes.shape[1])
            times.append(number * span_ms[kind] + records["time"][mine].astype(np.int64))
            ids.append(records["id"][mine])
            kinds.append(np.full(len(mine), KINDS.index(kind) if kind in KINDS else 0))
            origins.append(np.full(len(mine), origin))
            places.append(mine)
        empty = [np.empty(0, dtype=np.int64)]
        columns = [np.concatenate(each or empty) for each in (kinds, platforms, ids, times, users, origins, places)]
        sort = np.lexsort(columns[:5])
        self.kinds, self.platforms, self._ids, self.times_ms, owners, self._origins, self._places = (
            column[sort] for column in columns
        )
        self._bounds = owners.searchsorted(np.arange(len(hashes) + 1)).tolist()

    def stretch(self, user: int, since_ms: int, until_ms: int) -> tuple[int, int]:
        """The half-open range of a user's records at [since, until)."""
        low, high = self._bounds[user], self._bounds[user + 1]
        if low == high:
            return low, high
        first, last = self.times_ms[low:high].searchsorted([since_ms, until_ms]).tolist()
        return low + first, low + last

    def first_equal(self, at: int, low: int) -> int:
        """The first record, from `low` on, that equals this one in all that it is ordered by."""
        while at > low and all(
            column[at] == column[at - 1] for column in (self.times_ms, self._ids, self.platforms, self.kinds)
        ):
            at -= 1
        return at

    def id(self, at: int) -> bytes:
        """A record's event id."""
        return self._ids[at]

    def found(self, at: int) -> Found:
        """A record as the touch store reads it."""
        (kind, _, _), records = self._parts[self._origins[at]]
        row = records[self._places[at]].item()
        return Found(kind, int(self.times_ms[at]), row[1], row[2:-1])


class Places(NamedTuple):
    """A conversion's path as places in the timelines of touches and of visits."""

    views: int
    engaged_views: int
    clicks: int
    first: int | None
    touches: list[int]
    credited: int | None
    visits: int
    first_visit: int | None
    pages: list[int]


class Windows:
    """Which touches a version's methods may credit, as matrices by (platform, kind)."""

    def __init__(self, policy: Policy, platforms: tuple[str, ...]) -> None:
        self._policy, self._platforms = policy, platforms
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def at(self, time_ms: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows (ms; -1 for what is not credited), and the earliest touch (epoch ms), for a conversion at a time."""
        version = self._policy.at(time_ms)
        if version.number not in self._known:
            windows = np.full((len(self._platforms), len(KINDS)), -1, dtype=np.int64)
            reaches = np.zeros_like(windows)
            for row, platform in enumerate(self._platforms):
                rule = version.platforms.get(platform)
                for column, kind in enumerate(KINDS):
                    if rule is not None and kind in rule.windows_ms:
                        windows[row, column] = rule.windows_ms[kind]
                        reaches[row, column] = self._policy.reach_ms(version, platform, kind)
            self._known[version.number] = windows, reaches
        return self._known[version.number]


def path_before(
    conversion: Conversion,
    user: int,
    touches: Timeline,
    visits: Timeline,
    windows: Windows,
    journeys: Journeys,
    forgotten_ms: int,
) -> Places:
    """Reads one conversion's path, which begins after `forgotten_ms` (epoch ms), as the conversion does."""
    until_ms = conversion.time_ms
    since_ms = max(until_ms - journeys.window_ms, forgotten_ms + 1)
    low, high = touches.stretch(user, since_ms, until_ms)
    kinds, times_ms = touches.kinds[low:high], touches.times_ms[low:high]
    counts = dict(zip(KINDS, np.bincount(kinds, minlength=len(KINDS)).tolist(), strict=True))
    window_ms, reach_ms = (matrix[touches.platforms[low:high], kinds] for matrix in windows.at(until_ms))
    eligible = low + np.flatnonzero((until_ms - times_ms <= window_ms) & (times_ms >= reach_ms))
    if len(eligible) > journeys.max_touches:
        shown = [int(eligible[0]), *eligible[1 - journeys.max_touches :].tolist()]
    else:
        shown = eligible.tolist()
    first_visit, end = visits.stretch(user, since_ms, until_ms)
    return Places(
        counts["view"],
        counts["engaged_view"],
        counts["click"],
        low if high > low else None,
        shown,
        _credited(touches, eligible, journeys.credit, low),
        end - first_visit,
        first_visit if end > first_visit else None,
        list(range(max(first_visit, end - journeys.max_pages), end)),
    )


def _credited(touches: Timeline, eligible: np.ndarray, credit: str, low: int) -> int | None:
    """The touch that earns the conversion over all platforms (section 9)."""
    if not len(eligible):
        return None
    if credit == "first_touch":
        return int(eligible[0])
    if credit == "last_touch":
        eligible = eligible[touches.times_ms[eligible] == touches.times_ms[eligible[-1]]]
    ranks = _RANKS[touches.kinds[eligible]]
    return touches.first_equal(int(eligible[np.flatnonzero(ranks == ranks.max())[-1]]), low)
