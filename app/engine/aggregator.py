"""The aggregator's fold: deltas add up to absolute counts of a window and its dimensions; a window becomes final by
the watermarks.

`{tag}:win:<window start>` is a hash of packed counts by row key, `{tag}:windows` the set of window starts that are
held. Lost state is read back from `conversions.counts` itself: its latest rows were committed together with the
offsets, so they are the fold.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from math import inf
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np

from app.contract import rows
from app.engine.fold import Batch, Command, Fold, Published, Record, Run
from app.engine.state import StateRefused, check_version, unreadable
from app.policy.model import Policy
from app.settings import Settings
from app.windows import counts, deltas
from app.windows.counts import Counts
from app.windows.deltas import Numbers

VIEW_VERSION: Final = (
    1  # of all that an aggregator keeps in Redis; one more with every change that an older release would misread
)
CLOSED_ROWS: Final = 200_000  # of windows that become final in one batch; of one window there may be more
RECONCILED_ROWS: Final = 50_000  # read back at once
HELD_ROWS: Final = 20_000  # of a partition in memory, some 400 bytes each; others are read from Redis when they change


class View(msgspec.Struct, array_like=True):
    """What is stored in the ledger beside the offsets: how many owner partitions there are, and of each the watermark
    and the stream time that its events have reached (epoch ms). Windows that end at `closed_ms` or before are final.
    """

    version: int
    dimensions: tuple[str, ...]
    partitions: int
    watermarks: dict[int, int]
    streams: dict[int, int] = {}
    closed_ms: int | None = None


_Message = TypeVar("_Message", deltas.DeltaMessage, deltas.MarksMessage)
_pack = msgspec.msgpack.Encoder().encode
_unpack_view = msgspec.msgpack.Decoder(View).decode


class _Plan(NamedTuple):
    """What a batch changes by window and row key, the windows that become final, and which of both are read from Redis: some rows
    of those `asked`, all of the `whole`, by `commands` in this order.
    """

    changed: dict[int, dict[str, Numbers]]
    ended: list[int]
    asked: list[int]
    whole: list[int]
    commands: list[Command]


class AggregatorPartition:
    """One deltas partition in memory: the watermarks, which windows are held, and the rows of those that are being counted."""

    def __init__(self, tag: str, dimensions: tuple[str, ...]) -> None:
        self.tag = tag
        self.view = View(VIEW_VERSION, dimensions, 0, {})
        self.windows: set[int] = set()
        self.rows: dict[int, Counts] = {}  # of windows that began in this process: all that they have, as Redis has it

    def key(self, window: int) -> str:
        """The Redis key of one window's counts."""
        return f"{{{self.tag}}}:win:{window}"

    def windows_key(self) -> str:
        """The Redis key of the set of windows held."""
        return f"{{{self.tag}}}:windows"

    def watermark_ms(self) -> int:
        """The time that every owner partition has passed; -1 while some have not been heard of."""
        return self._slowest(self.view.watermarks)

    def stream_ms(self) -> int:
        """The stream time of the owner partition whose events are the oldest; -1 while some have had none."""
        return self._slowest(self.view.streams)

    def hear(self, message: deltas.DeltaMessage | deltas.MarksMessage) -> None:
        """Takes the owner partitions' progress from a message."""
        view = self.view
        view.partitions = message.partitions
        for mark in message.marks:
            view.watermarks[mark.partition] = max(view.watermarks.get(mark.partition, -1), mark.watermark_ms)
            if mark.ranges:  # of events, not of an idle partition's clock
                view.streams[mark.partition] = max(view.streams.get(mark.partition, -1), mark.watermark_ms)

    def keep(self, written: dict[int, Counts], width_ms: int) -> None:
        """Takes over what a batch wrote of windows whose rows are in memory; lets final windows go, and the oldest ones where they
        have too many rows.
        """
        for window, held_rows in self.rows.items():
            held_rows |= written.get(window, {})
        held = 0
        for window in sorted(self.rows, reverse=True):
            held += len(self.rows[window])
            if held > HELD_ROWS or window + width_ms <= self.closed_ms():
                del self.rows[window]

    def closed_ms(self) -> int:
        """Windows that end then or before are final."""
        return -1 if self.view.closed_ms is None else self.view.closed_ms

    def _slowest(self, times_ms: dict[int, int]) -> int:
        partitions = self.view.partitions
        return min(times_ms.values()) if partitions and len(times_ms) >= partitions else -1


class AggregatorStage:
    """Adds up windows: the fold of deltas into rows of `conversions.counts`, on the partition of the deltas they came
    from.
    """

    rebuilds_from_log = False

    def __init__(self, settings: Settings, policy: Policy) -> None:
        self.settings = settings
        self.tag = settings.tag("a")
        self.bounds = policy.bounds
        self.retention_ms = policy.count_retention_ms()
        self.rebuild_ms = 0
        self.span_ms = inf  # it has one topic
        self.idle_timeout_ms = policy.bounds.idle_timeout_ms
        self.newest_ms = 0
        self.opened: dict[int, AggregatorPartition] = {}

    def open(self, partition: int, view: bytes | None, run: Run) -> None:
        """Takes a partition over. Raises `StateRefused` where the stored state does not fit this release or policy,
        `StateOutdated` where it is to be rebuilt.
        """
        opened = AggregatorPartition(f"{self.tag}{partition}", self.bounds.dimensions)
        if view is not None:
            check_version(view, VIEW_VERSION, opened.tag)
            try:
                opened.view = _unpack_view(view)
            except msgspec.DecodeError as error:
                raise unreadable(opened.tag, error) from error
            if opened.view.dimensions != self.bounds.dimensions:
                raise StateRefused(
                    f"counts are split by {', '.join(opened.view.dimensions)}; the policy differs: set it back or run `onecount reset`"
                )
            if opened.view.closed_ms is None:  # an older release wrote it, and closed all at once
                opened.view.closed_ms = opened.watermark_ms() - self.bounds.allowed_lateness_ms
            opened.windows = {int(window) for window in run([("SMEMBERS", opened.windows_key())])[0]}
        self.opened[partition] = opened

    def close(self, partition: int) -> None:
        """Forgets a partition's in-memory view."""
        self.opened.pop(partition, None)

    def fold(self, batches: dict[int, Batch], suppressed: set[int], run: Run) -> Fold:
        """Adds the batch's deltas to the counts; upserts for each row that changed, and for each row of a window that
        became final.
        """
        stamps = [
            record.timestamp()[1]
            for partition, batch in batches.items()
            if partition not in suppressed
            for record in batch.records
        ]
        fold = Fold(stamps_ms=np.array(stamps, dtype=np.int64))
        self.newest_ms = 0
        plans = {partition: self._plan(self.opened[partition], batch, run) for partition, batch in batches.items()}
        replies = iter(run([command for plan in plans.values() for command in plan.commands]))
        for partition, plan in plans.items():
            self._add_up(partition, plan, [next(replies) for _ in plan.commands], partition in suppressed, fold)
            fold.views[partition] = _pack(self.opened[partition].view)
        return fold

    def _plan(self, opened: AggregatorPartition, batch: Batch, run: Run) -> _Plan:
        """The changes by window and row key, the windows that become final, and what of both is to be read."""
        by_start: dict[str, dict[str, Numbers]] = defaultdict(dict)
        for record in batch.records:
            message = read_deltas(record)
            opened.hear(message)
            self.newest_ms = max(self.newest_ms, message.newest_ms)
            for row in message.rows:
                key = row[0]
                window = by_start[key[1 : key.index(",")]]
                total = window.get(key)
                window[key] = row[1:] if total is None else counts.added(total, row[1:])
        changed = {int(start): found for start, found in by_start.items()}
        ended = self._close(opened, run)
        opened.rows |= {window: {} for window in changed if window not in opened.windows}
        asked = [window for window in changed if window not in opened.rows]
        whole = [window for window in ended if window not in opened.rows]
        commands: list[Command] = [("HMGET", opened.key(window), *changed[window]) for window in asked]
        return _Plan(changed, ended, asked, whole, commands + [("HGETALL", opened.key(window)) for window in whole])

    def _close(self, opened: AggregatorPartition, run: Run) -> list[int]:
        """The windows that become final with this batch: those that the watermark has passed, the oldest first, as far as
        their rows fit into one transaction. The others follow with the next batches.
        """
        width, closed_ms = self.bounds.window_ms, opened.closed_ms()
        closes_ms = max(opened.watermark_ms() - self.bounds.allowed_lateness_ms, closed_ms)
        ended = sorted(window for window in opened.windows if closed_ms < window + width <= closes_ms)
        if len(ended) > 1:
            sizes = accumulate(run([("HLEN", opened.key(window)) for window in ended]))
            fitting = max(1, sum(size <= CLOSED_ROWS for size in sizes))
            if fitting < len(ended):
                ended = ended[:fitting]
                closes_ms = ended[-1] + width
        opened.view.closed_ms = closes_ms
        return ended

    def _add_up(self, partition: int, plan: _Plan, replies: list[Any], quiet: bool, fold: Fold) -> None:
        opened = self.opened[partition]
        known: dict[int, Counts] = defaultdict(dict, opened.rows)
        for window, stored in zip(plan.asked, replies, strict=False):
            pairs = zip(plan.changed[window], stored, strict=True)
            known[window] = {key: counts.unpack(packed) for key, packed in pairs if packed is not None}
        for window, stored in zip(plan.whole, replies[len(plan.asked) :], strict=True):
            pairs = zip(stored[::2], stored[1::2], strict=True)
            known[window] = {name.decode(): counts.unpack(packed) for name, packed in pairs}
        written: dict[int, Counts] = {}
        for window, found in plan.changed.items():
            old = known[window]
            written[window] = {
                key: counts.revised(old.get(key, counts.ZERO), numbers) for key, numbers in found.items()
            }
        for window in plan.ended:
            some = written.setdefault(window, {})
            some |= {
                key: counts.revised(old, counts.NO_CHANGE) for key, old in known[window].items() if key not in some
            }
        opened.keep(written, self.bounds.window_ms)
        commands: list[Command] = []
        fresh = written.keys() - opened.windows
        if fresh:
            commands.append(("SADD", opened.windows_key(), *sorted(fresh)))
            opened.windows |= fresh
        commands += [("HSET", opened.key(window), *counts.stored(some)) for window, some in written.items() if some]
        fold.writes[partition] = commands + self._expire(opened)
        fold.counted["rows",] += sum(map(len, written.values()))
        if not quiet:
            self._publish(partition, written, fold)

    def _publish(self, partition: int, written: dict[int, Counts], fold: Fold) -> None:
        closed_ms, width_ms = self.opened[partition].closed_ms(), self.bounds.window_ms
        out = fold.outputs.setdefault((self.settings.counts_topic, partition), [])
        for window, some in sorted(written.items()):  # so a final row says that all windows before it are written
            out += counts.records(window, some, self.bounds.dimensions, width_ms, final=window + width_ms <= closed_ms)

    def _floor_ms(self, opened: AggregatorPartition) -> int:
        """The start of the oldest window whose counts can still change: by the time of events, which alone decides what is late."""
        return opened.stream_ms() - self.retention_ms - self.bounds.window_ms

    def _expire(self, opened: AggregatorPartition) -> list[Command]:
        """Frees the windows whose counts can no longer change."""
        floor_ms = self._floor_ms(opened)
        ended = sorted(window for window in opened.windows if window < floor_ms)
        opened.windows.difference_update(ended)
        for window in ended:
            opened.rows.pop(window, None)
        if not ended:
            return []
        return [("UNLINK", *(opened.key(window) for window in ended)), ("SREM", opened.windows_key(), *ended)]

    def published_since_ms(self, partition: int, begins_ms: int, before: Iterator[list[Record]], run: Run) -> int:
        """The start of the oldest window that may still change. The times that the owner partitions have reached are in no
        row; so they are taken over from the deltas, as far back as one of them has been silent.
        """
        opened = self.opened[partition]
        for stretch in before:
            for record in stretch:
                opened.hear(read_progress(record))
            if opened.stream_ms() >= 0:
                break
        return max(self._floor_ms(opened), 0)

    def reconcile(
        self, partition: int, begins_ms: int, published: Iterator[Published], since_ms: int, run: Run
    ) -> Iterator[Fold]:
        """Takes the published rows over as the state; there is nothing to correct."""
        opened = self.opened[partition]
        opened.rows = {}  # what was folded on lost state has other revisions
        is_final: dict[int, bool] = {}
        while some := list(islice(published, RECONCILED_ROWS)):
            by_window: dict[int, list[Any]] = defaultdict(list)
            for key, value in some:
                if value is None or (row := rows.decode_count(value)).window_start < since_ms:
                    continue
                by_window[row.window_start] += [key, counts.packed(row)]
                is_final[row.window_start] = row.final
            opened.windows |= by_window.keys()
            commands: list[Command] = [("HSET", opened.key(window), *pairs) for window, pairs in by_window.items()]
            if by_window:
                commands.append(("SADD", opened.windows_key(), *sorted(by_window)))
            yield Fold(writes={partition: commands})
        passed_ms = opened.watermark_ms() - self.bounds.allowed_lateness_ms
        not_final = (window + self.bounds.window_ms - 1 for window, final in is_final.items() if not final)
        opened.view.closed_ms = min((passed_ms, *not_final))
        yield Fold(views={partition: _pack(opened.view)})

    def slowest_stream_ms(self) -> int:
        """The smallest watermark (epoch ms) of the open partitions."""
        return min((opened.watermark_ms() for opened in self.opened.values()), default=0)

    def held(self) -> dict[str, int]:
        """An aggregator has no tables."""
        return {}

    def idle(self, partitions: Iterable[int], now_ms: int) -> Fold:
        """An aggregator has nothing to say on its own."""
        return Fold()


def read_deltas(record: Record) -> deltas.DeltaMessage:
    """A message of the counters. Raises `StateRefused` for what a newer release wrote, and for what is no such message."""
    return _readable(record, deltas.decode)


def read_progress(record: Record) -> deltas.MarksMessage:
    """The progress that it tells of; its rows are stepped over."""
    return _readable(record, deltas.decode_marks)


def _readable(record: Record, decode: Callable[[bytes], _Message]) -> _Message:
    place = f"{record.topic()}/{record.partition()} at offset {record.offset()}"
    try:
        message = decode(record.value() or b"")
    except msgspec.DecodeError as error:
        raise StateRefused(
            f"{place} is unreadable ({error}): if counters of a newer release wrote it, deploy that release's aggregators; "
            "else run `onecount reset`"
        ) from error
    if message.version > deltas.VERSION:
        raise StateRefused(
            f"{place} was written by a newer release (version {message.version}, this one reads {deltas.VERSION}): deploy the newer release's aggregators"
        )
    return message
