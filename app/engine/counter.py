"""The counter's fold: intake, dedup, attribution, deltas, in this order, for every partition of a batch at once.

The many (views, clicks, visits) are columns, the few (conversions, adjustments, late touches) are handled one user at
a time.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from app.attribution.takeover import cut_at, reach_ms
from app.attribution.users import CountDelta
from app.columns.table import Turn
from app.columns.texts import coded, hash64, texts_of
from app.contract import reasons, rows
from app.contract.events import EVENT_TYPES, TOUCH_TYPES, Rejection
from app.dedup.identity import event_hashes
from app.engine.click_rows import click_rows, publish, userless_rows
from app.engine.counter_partition import CounterPartition, UserWork, user_hashes
from app.engine.fold import Batch, Fold, Published, Record, Run
from app.engine.paths import FreshVisits
from app.engine.reconcile import known, oldest_conversion_ms, reconcile_partition
from app.engine.settlement import FreshTouches, name_code, settle_users
from app.formats.opening import Formats
from app.intake.decode import CONVERSION, FORGET, TOUCH_CODES, VISIT, Decoded, decode_batch
from app.intake.partitioner import owners
from app.intake.shapes import Shapes
from app.intake.walk import CLICK_ID, COLUMNS
from app.policy.model import Policy
from app.publish import records
from app.settings import Settings
from app.windows import deltas


class CounterStage:
    """Counts a user's partition: the fold of raw events into attributed rows, dead letters, re-keyed events and
    deltas.
    """

    rebuilds_from_log = True

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        partitions: int,
        delta_partitions: int,
        formats: Formats | None = None,
        click_partitions: int = 0,
    ) -> None:
        """`formats`: what reads records that are no plain JSON; None where the policy takes none. `click_partitions`: of the
        topic of clicks, where it has click_ids.
        """
        self.settings = settings
        self.tag = settings.tag("c")
        self.policy = policy
        self.platforms = policy.platforms()
        self.partitions = partitions
        self.delta_partitions = delta_partitions
        self.formats = formats
        self.click_partitions = click_partitions
        self.has_click_ids = policy.bounds.click_ids is not None
        self.rebuild_ms = policy.conversion_retention_ms()
        # a topic's records come after another's in a batch, and must not be too late by that
        self.span_ms = policy.bounds.correction_horizon_ms / 8
        self.idle_timeout_ms = policy.bounds.idle_timeout_ms
        self.newest_ms = 0
        self._turn = Turn()
        self.opened: dict[int, CounterPartition] = {}
        self.shapes = Shapes((*COLUMNS, CLICK_ID) if self.has_click_ids else COLUMNS)
        self.tails = deltas.RowTails()

    def open(self, partition: int, view: bytes | None, run: Run) -> None:
        """Takes a partition over: its live keys from the view, its filters and late index from Redis."""
        self.opened[partition] = CounterPartition(f"{self.tag}{partition}", self.policy, self._turn)
        self.opened[partition].load(view, run)

    def close(self, partition: int) -> None:
        """Forgets a partition's in-memory view."""
        self.opened.pop(partition, None)

    def fold(self, batches: dict[int, Batch], suppressed: set[int], run: Run) -> Fold:
        """Folds the records of each partition, in the order given. Two round trips to Redis at most but for unread
        names.
        """
        fold = Fold()
        self._turn.begin()
        parts = np.repeat(
            np.fromiter(batches, dtype=np.int64, count=len(batches)), [len(batch.records) for batch in batches.values()]
        )
        messages = [message for batch in batches.values() for message in batch.records]
        decoded, values = self._intake(messages, parts, suppressed, fold)
        own, stream_ms = self._own(messages, parts, decoded, suppressed, fold)
        fresh, repeats = self._dedup(parts, decoded, own, stream_ms, run, fold)
        touches = self._touches(parts, decoded, fresh)
        work = self._work(messages, parts, decoded, fresh, repeats, fold)
        visits = self._visits(parts, decoded, fresh) if self.policy.bounds.journeys else {}
        count_deltas = settle_users(
            self.opened, touches, visits, work, suppressed, self.policy, self.settings, run, fold
        )
        self._publish_deltas(batches, touches, count_deltas, suppressed, fold)
        if self.has_click_ids:
            asking = userless_rows(messages, values, parts, decoded, suppressed)
            clicks = click_rows(parts, decoded, fresh, suppressed) + asking
            publish(clicks, self.settings.clicks_topic, self.click_partitions, self.policy.bounds.partitioner, fold)
            fold.counted["userless",] += len(decoded.userless)
        for partition in batches:
            view = self.opened[partition]
            fold.writes.setdefault(partition, []).extend(view.expire())
            fold.views[partition] = view.pack()
        return fold

    def _intake(
        self, messages: list[Record], parts: np.ndarray, suppressed: set[int], fold: Fold
    ) -> tuple[Decoded, list[bytes | None]]:
        """The events, and the JSON that each record was read as."""
        stamps = np.fromiter([message.timestamp()[1] for message in messages], dtype=np.int64, count=len(messages))
        fold.stamps_ms = stamps[~np.isin(parts, list(suppressed))] if suppressed else stamps
        values = [message.value() for message in messages]
        keys = [message.key() for message in messages]
        unread: dict[int, Rejection] = {}
        if self.formats is not None:
            bodies = self.formats.open_all(values, [message.headers() for message in messages], stamps.tolist())
            unread = {row: body for row, body in enumerate(bodies) if isinstance(body, Rejection)}
            values = [
                b"" if isinstance(body, Rejection) else body for body in bodies
            ]  # nothing is refused, as they are
        decoded = decode_batch(values, keys, stamps, self.platforms, self.policy.bounds, self.shapes)
        for row, rejection in decoded.rejections:
            self._reject(messages[row], int(parts[row]), unread.get(row, rejection), suppressed, fold)
        return decoded, values

    def _reject(self, message: Record, partition: int, rejection: Rejection, suppressed: set[int], fold: Fold) -> None:
        fold.counted["rejected", rejection.reason] += 1
        if partition not in suppressed:
            records.add(fold.outputs, self.settings.dlq_topic, partition, records.dead_letter(message, rejection))

    def _own(
        self, messages: list[Record], parts: np.ndarray, decoded: Decoded, suppressed: set[int], fold: Fold
    ) -> tuple[np.ndarray, np.ndarray]:
        """The accepted events that their partition owns and that are in time, as indices into `decoded`, with
        their stream times.

        Events of other owners are sent on; those beyond the correction horizon are refused. Moves each partition's
        stream time.
        """
        owner = owners(decoded.texts["user_id"], self.partitions, self.policy.bounds.partitioner)
        found = parts[decoded.rows]
        is_own = owner == found
        for index in np.flatnonzero(~is_own).tolist():
            message = messages[decoded.rows[index]]
            if message.topic() == self.settings.rekeyed_topic:
                is_own[index] = True  # whoever wrote it there named the owner
                continue
            fold.counted["rekeyed",] += 1
            if int(found[index]) not in suppressed:
                key = (decoded.texts["user_id"].at(index) or "").encode()
                records.add(fold.outputs, self.settings.rekeyed_topic, int(owner[index]), records.rekeyed(message, key))
        own = np.flatnonzero(is_own)
        times, stream_ms = decoded.times_ms[own], np.empty(len(own), dtype=np.int64)
        moving = np.where(decoded.types[own] == FORGET, 0, times)  # a forget makes no other event too late
        for partition, at in _by_partition(found[own]):
            view = self.opened[partition]
            moved = np.maximum.accumulate(moving[at])
            stream_ms[at] = np.maximum(moved, view.stream_ms)
            view.stream_ms = int(stream_ms[at][-1])
        late = times < stream_ms - self.policy.bounds.correction_horizon_ms
        for index in own[late].tolist():
            rejection = Rejection(
                reasons.BEYOND_CORRECTION_HORIZON,
                "event_time",
                "older than the stream time of its partition by more than correction_horizon",
            )
            self._reject(messages[decoded.rows[index]], int(found[index]), rejection, suppressed, fold)
        return own[~late], stream_ms[~late]

    def _dedup(
        self, parts: np.ndarray, decoded: Decoded, own: np.ndarray, stream_ms: np.ndarray, run: Run, fold: Fold
    ) -> tuple[np.ndarray, np.ndarray]:
        """The own events that were not seen before, as indices into `decoded`, and the repeats that may tell more of a
        conversion; remembers the new ones.
        """
        ids = self._ids(decoded)[own]
        found = parts[decoded.rows[own]]
        at = dict(_by_partition(found))
        questions = {
            partition: self.opened[partition].seen.question(ids[rows_], stream_ms[rows_])
            for partition, rows_ in at.items()
        }
        replies = run([command for question in questions.values() for command in question.commands])
        fresh = np.zeros(len(own), dtype=bool)
        for partition, rows_ in at.items():
            question, seen = questions[partition], self.opened[partition].seen
            count = len(question.commands)
            new = seen.accept(ids[rows_], stream_ms[rows_], question, replies[:count])
            del replies[:count]
            fresh[rows_] = new
            remembered = seen.remember(ids[rows_][new], stream_ms[rows_][new])
            fold.writes.setdefault(partition, []).extend(remembered)
        for index in own[~fresh].tolist():
            platform = decoded.texts["platform"].at(index)
            fold.counted["duplicate", platform or "", EVENT_TYPES[decoded.types[index]]] += 1
        repeats = own[~fresh] if self.policy.merges_reports() else own[:0]
        return own[fresh], repeats[decoded.types[repeats] == CONVERSION]

    def _ids(self, decoded: Decoded) -> np.ndarray:
        texts = decoded.texts
        names = {index: event.conversion_name for index, event in decoded.events.items() if event.conversion_name}
        return event_hashes(texts["event_id"], texts["advertiser_id"], texts["platform"], decoded.types, names)

    def _touches(self, parts: np.ndarray, decoded: Decoded, fresh: np.ndarray) -> FreshTouches:
        """The new touches as columns."""
        rows = fresh[decoded.types[fresh] < TOUCH_CODES]
        names = ("platform", "advertiser_id", *self.policy.bounds.keep)
        texts = {name: decoded.texts[name].take(rows) for name in (*names, "event_id", "user_id")}
        coded_names = {name: coded(texts[name]) for name in names}
        return FreshTouches(
            parts[decoded.rows[rows]],
            decoded.types[rows],
            decoded.times_ms[rows],
            decoded.costs[rows],
            texts["event_id"],
            texts["user_id"],
            user_hashes(texts["user_id"], coded_names["advertiser_id"].codes),
            coded_names,
        )

    def _visits(self, parts: np.ndarray, decoded: Decoded, fresh: np.ndarray) -> dict[int, FreshVisits]:
        """The new visits as columns, by partition."""
        rows = fresh[decoded.types[fresh] == VISIT]
        owners = parts[decoded.rows[rows]]
        found = {}
        for partition in np.unique(owners).tolist():
            mine = rows[owners == partition]
            events = [decoded.events[index] for index in mine.tolist()]
            found[partition] = FreshVisits(
                decoded.times_ms[mine],
                decoded.texts["event_id"].take(mine),
                user_hashes(decoded.texts["user_id"].take(mine), hash64(decoded.texts["advertiser_id"].take(mine))),
                texts_of([(event.page or "").encode() for event in events]),
                texts_of([None if event.referrer is None else event.referrer.encode() for event in events]),
                [(event.advertiser_id, event.user_id) for event in events],
            )
        return found

    def _work(
        self,
        messages: list[Record],
        parts: np.ndarray,
        decoded: Decoded,
        fresh: np.ndarray,
        repeats: np.ndarray,
        fold: Fold,
    ) -> dict[int, dict[str, UserWork]]:
        """The new conversions, adjustments and forgets and the repeats of conversions, by partition and user, in the order in
        which they came; noise is counted and left out.
        """
        work: dict[int, dict[str, UserWork]] = {}
        kinds = decoded.types[fresh]
        for code in range(TOUCH_CODES, len(EVENT_TYPES)):
            if code != CONVERSION:
                fold.counted["accepted", "", EVENT_TYPES[code]] += int((kinds == code).sum())
        rows = np.sort(np.concatenate([fresh[kinds >= CONVERSION], repeats]))
        again = frozenset(repeats.tolist())
        bases = user_hashes(decoded.texts["user_id"].take(rows), hash64(decoded.texts["advertiser_id"].take(rows)))
        for index, base in zip(rows.tolist(), bases.tolist(), strict=True):
            event, time_ms = decoded.events[index], int(decoded.times_ms[index])
            message, is_repeat = messages[decoded.rows[index]], index in again
            if event.event_type == "conversion":
                fold.counted["accepted", event.platform or "", "conversion"] += not is_repeat
                if self.policy.at(time_ms).counted_action(event.conversion_name or "") is None:
                    fold.counted["noise",] += not is_repeat
                    continue
            users = work.setdefault(int(parts[decoded.rows[index]]), {})
            user = UserWork.of(users, event.advertiser_id, event.user_id, base)
            user.add(event, time_ms, message, is_repeat)
        return work

    def _publish_deltas(
        self,
        batches: dict[int, Batch],
        touches: FreshTouches,
        changed: list[CountDelta],
        suppressed: set[int],
        fold: Fold,
    ) -> None:
        bounds = self.policy.bounds
        self._count_accepted(touches, fold)
        marks = [
            deltas.Mark(partition, self.opened[partition].stream_ms, batch.ranges)
            for partition, batch in batches.items()
            if partition not in suppressed
        ]
        if not marks:
            return
        if suppressed:
            touches = touches.take(~np.isin(touches.parts, list(suppressed)))
        keys = [touches.names[name] for name in ("platform", "advertiser_id", *bounds.dimensions)]
        numbers = deltas.touch_deltas(
            touches.times_ms, touches.types, touches.costs, keys, self.tails, bounds.window_ms
        )
        self._send(numbers + _numbers(changed), marks, fold)

    def _count_accepted(self, touches: FreshTouches, fold: Fold) -> None:
        codes = touches.names["platform"].codes
        for platform in self.platforms:
            counts = np.bincount(touches.types[codes == name_code(platform)], minlength=len(TOUCH_TYPES))
            for kind, count in zip(TOUCH_TYPES, counts.tolist(), strict=True):
                if count:
                    fold.counted["accepted", platform, kind] += count

    def _send(self, numbers: list[tuple[bytes, deltas.Numbers]], marks: list[deltas.Mark], fold: Fold) -> None:
        newest_ms = int(fold.stamps_ms.max(initial=0))
        for partition, value in deltas.messages(numbers, marks, self.partitions, self.delta_partitions, newest_ms):
            records.add(fold.outputs, self.settings.deltas_topic, partition, {"value": value})

    def published_since_ms(self, partition: int, begins_ms: int, before: Iterator[list[Record]], run: Run) -> int:
        """The time of the oldest conversion that may still matter: to others, or as it is held because of others. Where the log
        was cut, also what it no longer tells of them.
        """
        view = self.opened[partition]
        floor_ms = view.stream_ms - self.policy.conversion_retention_ms()
        further_ms = reach_ms(self.policy) if begins_ms else 0
        return max(0, oldest_conversion_ms(view, run, floor_ms) - further_ms)

    def reconcile(
        self, partition: int, begins_ms: int, published: Iterator[Published], since_ms: int, run: Run
    ) -> Iterator[Fold]:
        """Takes the published revisions over, and what a cut log no longer tells; and corrects the rows that differ from the
        rebuilt state.
        """
        fold = Fold()
        view = self.opened[partition]
        floor_ms = view.stream_ms - self.policy.conversion_retention_ms()
        cut = cut_at(begins_ms, floor_ms, self.policy)
        found = known(published, since_ms, floor_ms, cut, self.policy)
        changed = reconcile_partition(view, partition, found, cut, self.policy, self.settings, run, fold)
        self._send(_numbers(changed), [deltas.Mark(partition, view.stream_ms, {})], fold)
        fold.views[partition] = view.pack()
        yield fold

    def slowest_stream_ms(self) -> int:
        """The smallest stream time (epoch ms) of the open partitions that have one."""
        return min((view.stream_ms for view in self.opened.values() if view.stream_ms), default=0)

    def held(self) -> dict[str, int]:
        """How many ids and touches the open partitions remember."""
        views = self.opened.values()
        return {
            "ids": sum(len(table) for view in views for table in view.seen.tables.values()),
            "touches": sum(len(table) for view in views for table in view.touches.segments.values()),
        }

    def idle(self, partitions: Iterable[int], now_ms: int) -> Fold:
        """Advances the watermarks of idle partitions by the clock, so that their windows become final."""
        fold = Fold()
        clock_ms = now_ms - self.policy.bounds.idle_timeout_ms
        marks = [
            deltas.Mark(partition, max(self.opened[partition].stream_ms, clock_ms), {}) for partition in partitions
        ]
        self._send([], marks, fold)
        return fold


def _by_partition(parts: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each partition and its rows, of a column in which they stand together."""
    cuts = (np.flatnonzero(np.diff(parts)) + 1).tolist()
    for start, end in itertools.pairwise((0, *cuts, len(parts)) if len(parts) else ()):
        yield int(parts[start]), slice(start, end)


def _numbers(changed: list[CountDelta]) -> list[tuple[bytes, deltas.Numbers]]:
    """Changes of conversions as rows of a deltas message."""
    return [
        (
            rows.count_key(
                delta.window_start,
                delta.platform,
                delta.advertiser_id,
                list(delta.dimensions),
                delta.conversion_name,
                delta.currency,
            ),
            (0, 0, 0, delta.conversions, delta.value_micros, 0),
        )
        for delta in changed
    ]
