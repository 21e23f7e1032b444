"""Rollups: `conversions.counts` by hour, day and ISO week. A fold of upserts (`DeskFold`).

Each window's latest row is held, so that a newer one replaces exactly what it had added. A window may change until
`count_retention_ms` of event time after it, by the slowest of the counters, and a week is given out as long as its first window
is held. So what is held reaches back that long and a week from the newest final window of the partition that is furthest behind,
and the periods that begin in that span are given out; older ones stay as they were published. Both are a function of the latest
rows, whatever their order.
"""

import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final, NamedTuple

import orjson
import xxhash

from app.contract import reasons
from app.contract.events import Rejection, from_micros, to_micros
from app.contract.rollups import HOUR, RollupRow, rollup_key, split_count_key, start_of_rollup
from app.contract.rows import CountRow, decode_count, encode, scope_of
from app.desk.fold import Input, Output
from app.desk.periods import HOUR_MS, LONGEST_MS, Period, periods_of
from app.desk.refusals import judge_row
from app.policy.desk import Desk
from app.policy.model import DAY_MS, Policy

_HELD: Final = struct.Struct("<q?4q2q")  # offset, final, views, engaged views, clicks, conversions, value, cost
_OFFSET: Final = struct.Struct("<q")


class _Group(NamedTuple):
    """The dimensions of a row: all of its key but the window, as JSON; and the time zone of its advertiser."""

    rest: bytes
    zone: str


class _Sums:
    """What the windows of one period and group add up to; money in millionths. `open`: windows that are not final. `given`: a
    hash of the row that was given out.
    """

    __slots__ = ("given", "is_changed", "numbers", "open")

    def __init__(self) -> None:
        self.numbers = [0] * 6
        self.open = self.given = 0
        self.is_changed = False

    def add(self, held: bytes, sign: int) -> None:
        """Takes a window's row in (1) or out (-1)."""
        _, is_final, *numbers = _HELD.unpack(held)
        for index, number in enumerate(numbers):
            if number:
                self.numbers[index] += sign * number
        self.open += sign * (not is_final)


class RollupsFold:
    """The fold; docs/desk.md has what a row of `conversions.counts` that may change takes. `partitions`: how many that topic has;
    of one without a final row it is not known how far it is, so until it has one nothing is final or let go.
    """

    def __init__(self, counts: str, rollups: str, desk: Desk, policy: Policy, partitions: int) -> None:
        self.inputs: tuple[str, ...] = (counts,)
        self.outputs: tuple[str, ...] = (rollups,)
        self.refused: Counter[tuple[str, str]] = Counter()
        self._held_ms = policy.count_retention_ms() + LONGEST_MS
        self._desk = desk
        self._dimensions = policy.bounds.dimensions
        self._has_hours = policy.bounds.window_ms <= HOUR_MS  # a longer window is in no one hour
        self._finals_ms = dict.fromkeys(range(partitions), 0)  # where each partition's newest final window ends
        self._final_ms = 0  # where all windows that end are final
        self._horizon_ms = 0
        # by the hour and the moment at which windows begin, and by group
        self._windows: dict[int, dict[int, dict[_Group, bytes]]] = defaultdict(lambda: defaultdict(dict))
        self._sums: dict[Period, dict[_Group, _Sums]] = {}
        self._ending: list[tuple[int, Period]] = []  # a heap of the periods that are not over
        self._changed: list[tuple[Period, _Group, _Sums]] = []
        self._groups: dict[bytes, _Group] = {}  # the same dimensions come in many windows: one object of each

    def take(self, record: Input) -> None:
        """Takes one record into account; see `DeskFold`."""
        try:
            start_ms, rest = split_count_key(record.key or b"")
            group = self._groups.get(rest) or self._group(rest)
            periods = periods_of(start_ms, group.zone)
        except (ValueError, TypeError, LookupError):
            self.refused[record.topic, reasons.INVALID_FIELD] += 1
            return
        row = None if record.value is None else judge_row(decode_count, record.value)
        if isinstance(row, Rejection):
            self.refused[record.topic, row.reason] += 1
            return
        if row is not None and row.final and row.window_end > self._finals_ms.get(record.partition, 0):
            self._finals_ms[record.partition] = row.window_end
            self._move(min(self._finals_ms.values()))
        if start_ms >= self._horizon_ms:
            self._groups[rest] = group
            self._replace(start_ms, group, _packed(record.offset, row), periods)

    def _group(self, rest: bytes) -> _Group:
        _, advertiser_id, *dimensions, _, _ = orjson.loads(b"[%s]" % rest)
        if len(dimensions) != len(self._dimensions):
            raise ValueError(f"{len(dimensions)} dimensions, the policy has {len(self._dimensions)}")
        return _Group(rest, self._desk.zone(advertiser_id).key)

    def _move(self, final_ms: int) -> None:
        """Moves on to where all partitions are final, and lets go what is before the horizon then."""
        self._final_ms = final_ms
        while self._ending and self._ending[0][0] <= final_ms:
            _, period = heappop(self._ending)
            for group, sums in self._sums.get(period, {}).items():
                self._mark(period, group, sums)
        horizon_ms = max((final_ms - self._held_ms) // HOUR_MS * HOUR_MS, 0)
        if horizon_ms == self._horizon_ms:
            return
        is_next_day = horizon_ms // DAY_MS > self._horizon_ms // DAY_MS
        self._horizon_ms = horizon_ms
        for hour_ms in [each for each in self._windows if each < horizon_ms]:
            del self._windows[hour_ms]
        for period in [each for each in self._sums if each.start_ms < horizon_ms]:
            del self._sums[period]
        if is_next_day:
            self._groups = {group.rest: group for groups in self._sums.values() for group in groups}

    def _replace(self, start_ms: int, group: _Group, held: bytes, periods: tuple[Period, ...]) -> None:
        rows = self._windows[start_ms // HOUR_MS * HOUR_MS][start_ms]
        before = rows.get(group)
        if before is not None and _OFFSET.unpack_from(before) >= _OFFSET.unpack_from(held):
            return
        rows[group] = held
        for period in periods:
            if period.start_ms < self._horizon_ms or (period.kind == HOUR and not self._has_hours):
                continue
            sums = self._sums_of(period, group)
            if before is not None:
                sums.add(before, -1)
            sums.add(held, 1)
            self._mark(period, group, sums)

    def _sums_of(self, period: Period, group: _Group) -> _Sums:
        groups = self._sums.get(period)
        if groups is None:
            groups = self._sums[period] = {}
            if period.end_ms > self._final_ms:
                heappush(self._ending, (period.end_ms, period))
        found = groups.get(group)
        if found is None:
            found = groups[group] = _Sums()
        return found

    def _mark(self, period: Period, group: _Group, sums: _Sums) -> None:
        if not sums.is_changed:
            sums.is_changed = True
            self._changed.append((period, group, sums))

    def rows(self, now_ms: int) -> Iterator[Output]:
        """See `DeskFold`."""
        changed, self._changed = self._changed, []
        for period, group, sums in changed:
            sums.is_changed = False
            if period.start_ms < self._horizon_ms:
                continue
            row = encode(self._row(period, group, sums))
            given = xxhash.xxh3_64_intdigest(row)
            if given != sums.given:
                sums.given = given
                yield Output(self.outputs[0], rollup_key(period.kind, period.start_ms, group.rest), row)

    def lasts(self, topic: str, key: bytes) -> bool:
        """What begins before the horizon: its windows are let go. Of the rest all is held, so what is given no more is none, such as
        a day of another time zone.
        """
        try:
            return start_of_rollup(key) < self._horizon_ms
        except ValueError:
            return True  # somebody else's

    def _row(self, period: Period, group: _Group, sums: _Sums) -> RollupRow:
        platform, advertiser_id, *dimensions, conversion_name, currency = orjson.loads(b"[%s]" % group.rest)
        *numbers, value, cost = sums.numbers
        return RollupRow(
            period.kind,
            period.label,
            period.start_ms,
            period.end_ms,
            period.zone,
            platform,
            advertiser_id,
            dict(zip(self._dimensions, dimensions, strict=True)),
            conversion_name,
            currency,
            *numbers,
            value=from_micros(value),
            cost=from_micros(cost),
            final=not sums.open and period.end_ms <= self._final_ms,
            scope=scope_of(platform),
        )


def _packed(offset: int, row: CountRow | None) -> bytes:
    """What is held of a row: 57 bytes. One that was deleted has counted nothing."""
    if row is None:
        return _HELD.pack(offset, True, 0, 0, 0, 0, 0, 0)
    numbers = (row.views, row.engaged_views, row.clicks, row.conversions)
    return _HELD.pack(offset, row.final, *numbers, to_micros(row.value), to_micros(row.cost))
