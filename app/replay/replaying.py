"""`onecount replay`: from the live input to a comparison. Control flow lives here; a replay passes these steps:

1. who judges, and what must be read      4. the live counts of one moment, and the input that they are made of
2. shadow topics, ordinary workers        5. both sides' rows, compared
3. copy and count, until little is new    6. everything of the replay is removed, however it ends
"""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from rich.console import Console

from app.contract.rows import ALL, CountRow
from app.engine.clients import KafkaClients, explained
from app.engine.policy_topic import copy_versions, recorded_policy
from app.engine.store import StoreRefused, StoreUnavailable, open_store
from app.policy.load import load_policy
from app.policy.model import Policy
from app.replay import shadow as shadows
from app.replay.comparison import Comparison, Place
from app.replay.copying import Copier
from app.replay.memory import refuse_full
from app.replay.names import new_id, shadow_settings
from app.replay.progress import Progress
from app.replay.published import Moment, committed_offsets, find_moment, read_counts
from app.replay.reach import Reach, aftermath_ms, find_reach, shortfalls, warm_up_ms
from app.replay.refusal import ReplayRefused, Stopped
from app.replay.report import Report
from app.replay.times import as_duration, as_time
from app.replay.wish import Wish
from app.replay.workers import Workers, running
from app.settings import Settings
from app.verify.logs import Spans, fix_spans, unread_spans

FOREVER_MS: Final = 2**62
_LITTLE_S: Final = 30.0  # a round of copying and counting that took no longer leaves little to do
_POLL_S: Final = 0.5
_LOOK_S: Final = 2.0
_NEAR: Final = 1_000  # offsets from the end: from there on it is asked which of them are records
_PASSING: Final = (  # errors of Kafka that the workers wait out, too
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
_PATIENCE_S: Final = 30.0  # without progress, until it is said what the workers say


def replay(settings: Settings, wish: Wish, console: Console) -> Report:
    """Recounts the range beside the live workers, compares, and removes what it made. `console` is told how far it is.

    Raises `ReplayRefused`, `PolicyError`, or `Stopped` where SIGINT or SIGTERM came; in each case after removing everything.
    """
    if wish.from_ms >= wish.to_ms:
        raise ReplayRefused("--from must be before --to")
    replay_id = _free_id(settings)
    folder = Path(tempfile.mkdtemp(prefix=f"onecount-replay-{replay_id}-"))
    with Progress(console) as progress, _stopped_by_signals() as deaf, ExitStack() as cleaning:
        cleaning.callback(shutil.rmtree, folder, ignore_errors=True)
        run = _Run(settings, wish, replay_id, folder, progress)

        def clean() -> None:
            deaf()
            progress.doing("stopping the workers, and removing what was made")
            run.resources.close()
            if wish.keep and run.is_done:
                kept = ", ".join(shadows.leftovers(settings)[replay_id])
                progress.say(f"kept: {kept}; `onecount replay --clean {replay_id}` removes them")
            elif run.is_begun:
                _remove(settings, replay_id, progress)

        cleaning.callback(clean)
        return run.to_the_end()


def _remove(settings: Settings, replay_id: str, progress: Progress) -> None:
    """Where something cannot be removed now, the replay still ends as it would have."""
    try:
        removed = shadows.remove(settings, replay_id)
    except (ReplayRefused, StoreUnavailable, StoreRefused, KafkaException) as error:
        progress.say(f"not all could be removed: {explained(error)}; run `onecount replay --clean {replay_id}` later")
    else:
        progress.say(f"replay {replay_id} is over: {'; '.join(removed)}")


def _free_id(settings: Settings) -> str:
    taken = shadows.leftovers(settings)
    while (found := new_id(time.time())) in taken:
        time.sleep(0.2)
    return found


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM raise `Stopped` in the block, until what this yields is called: cleaning up is not interrupted."""

    def stop(number: int, frame: FrameType | None) -> None:
        deaf()
        raise Stopped(number)

    def deaf() -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, stop) for each in numbers}
    try:
        yield deaf
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _Run:
    """One replay under way."""

    def __init__(self, settings: Settings, wish: Wish, replay_id: str, folder: Path, progress: Progress) -> None:
        self.settings = settings
        self.wish = wish
        self.id = replay_id
        self.progress = progress
        self.folder = folder
        self.shadow = shadow_settings(settings, replay_id, folder / "policy.yaml")
        self.is_begun = False  # whether anything was made that is to be removed
        self.is_done = False
        self.workers: Workers | None = None
        self.resources = ExitStack()  # closed before anything is removed
        self.looked_s = 0.0

    def to_the_end(self) -> Report:
        """All steps; the report."""
        live, judge, reach, notes = self._prepare()  # 1.
        begins_ms = max(self.wish.from_ms - self._warm_ms(live, judge), 0)
        self.is_begun = True
        shadows.create(self.settings, self.shadow, live, judge, begins_ms)  # 2.
        if self.wish.policy is None:
            copy_versions(self.settings, self.shadow, KafkaClients(self.settings))
        times_ms = (begins_ms, self.wish.until_ms or FOREVER_MS)

        def look() -> None:
            self._look()
            self.progress.at("records read", copier.read, reach.records)

        copier = Copier(self.settings, self.shadow, reach.starts, times_ms, look)
        self.resources.callback(copier.close)
        self.workers = self.resources.enter_context(running(self.shadow, self.wish.workers, self.folder))
        self._catch_up(copier)  # 3.
        self.progress.doing("looking for a moment at which the live counts are at rest")
        moment = find_moment(self.settings, self._in_range, self._wait_s())  # 4.
        copier.copy_up_to(moment.deltas_end, moment.committed)
        self._wait_until_counted()
        self.progress.doing("comparing")
        with_all = (live.bounds.journeys is None) == (judge.bounds.journeys is None)
        if not with_all:
            notes.append(
                "only one of the two policies follows journeys: what is counted once over all platforms is left out"
            )
        compared = self._compare(moment, live.bounds.dimensions == judge.bounds.dimensions, with_all)  # 5.
        if copier.unordered:
            notes.append(
                "inexact: the deltas no longer hold the order of the first of these records: those of several topics were taken by their times"
            )
        if moment.moved:
            notes.append(
                f"{len(moment.moved):,} counts (a window of a platform each) changed while they were read; they are shown as not final"
            )
        self.is_done = True
        closed_ms = copier.closed_ms(live.bounds.allowed_lateness_ms)
        return self._report(live, compared, moment.moved, closed_ms, tuple(notes), copier.copied)

    def _prepare(self) -> tuple[Policy, Policy, Reach, list[str]]:
        live = recorded_policy(self.settings, KafkaClients(self.settings))
        file = self.wish.policy or self.settings.policy
        judge = load_policy(file)[0] if self.wish.policy else live
        shutil.copyfile(file, self.shadow.policy)  # as it is now, whatever becomes of it meanwhile
        for name in ("window_ms", "partitioner"):
            if getattr(live.bounds, name) != getattr(judge.bounds, name):
                raise ReplayRefused(
                    f"{file}: {name.removesuffix('_ms')} differs from the live one: the counts could not be compared"
                )
        needed_ms, warm_ms = max(warm_up_ms(live), warm_up_ms(judge)), self._warm_ms(live, judge)
        reach = find_reach(self.settings, max(self.wish.from_ms - warm_ms, 0), warm_ms)
        notes = shortfalls(self.wish, needed_ms, warm_ms, reach.exact_from_ms, aftermath_ms(live.bounds))
        self._refuse_full(reach.records)
        span = f"{as_time(self.wish.from_ms)} to {as_time(self.wish.to_ms)}"
        number = len(live.versions)
        recorded = f"the recorded policy ({number} version{'s' if number > 1 else ''})"
        judged = f"{file} alone" if self.wish.policy else recorded
        self.progress.say(
            f"replay {self.id}: {span}, judged by {judged}; {reach.records:,} records to read, from {as_duration(warm_ms)} before the range on"
        )
        return live, judge, reach, notes

    def _refuse_full(self, records: int) -> None:
        url, timeout_s = self.shadow.redis_url.get_secret_value(), self.shadow.request_timeout_ms / 1000
        with closing(open_store(url, timeout_s)) as store:
            refuse_full(store, records)

    def _warm_ms(self, live: Policy, judge: Policy) -> int:
        needed_ms = max(warm_up_ms(live), warm_up_ms(judge))
        return needed_ms if self.wish.warm_ms is None else min(self.wish.warm_ms, needed_ms)

    def _in_range(self, window: int) -> bool:
        return self.wish.from_ms <= window < self.wish.to_ms

    def _wait_s(self) -> float:
        return 6 * self.settings.request_timeout_ms / 1000

    def _catch_up(self, copier: Copier) -> None:
        while True:
            began_s = time.monotonic()
            # offsets first: each batch that they tell of then stands before the deltas' end
            committed = committed_offsets(self.settings, self.settings.counter_group, self.settings.input_topics())
            end = fix_spans(self.settings, [self.settings.deltas_topic])[self.settings.deltas_topic, 0][1]
            copier.copy_up_to(end, committed)
            self._wait_until_counted()
            if time.monotonic() - began_s < _LITTLE_S:
                return

    def _look(self) -> None:
        """Whether it can go on; called while anything is waited for."""
        if time.monotonic() - self.looked_s < _LOOK_S:
            return
        if self.workers is not None:
            self.workers.check()
        with suppress(StoreUnavailable):  # which the workers wait out, too
            self._refuse_full(0)
        self.looked_s = time.monotonic()

    def _wait_until_counted(self) -> None:
        """Returns when the shadow workers have done all there is. What each step brings is looked at after the one before."""
        shadow = self.shadow
        steps = (
            (shadow.counter_group, shadow.events_topics, "records counted"),
            (shadow.counter_group, (shadow.rekeyed_topic,), "re-keyed events counted"),
            (shadow.aggregator_group, (shadow.deltas_topic,), "deltas added up"),
        )
        assert self.workers is not None
        for group, topics, what in steps:
            self.progress.doing(what)
            spans = fix_spans(shadow, topics)
            total = sum(end - first for first, end in spans.values())
            least, since_s, trouble = total + 1, time.monotonic(), ""
            while True:
                self._look()
                try:
                    left = self._left(group, topics, spans)
                    trouble = ""
                except KafkaException as error:
                    if error.args[0].code() not in _PASSING:
                        raise
                    left, trouble = least, explained(error)
                if not left:
                    break
                self.progress.at(what, total - left, total)
                if left < least:
                    least, since_s = left, time.monotonic()
                elif time.monotonic() - since_s > _PATIENCE_S:
                    since_s = time.monotonic()
                    said = trouble or self.workers.troubles() or "the workers name no trouble"
                    self.progress.say(f"{what}: nothing new for {_PATIENCE_S:.0f} s; {said}")
                time.sleep(_POLL_S)

    def _left(self, group: str, topics: tuple[str, ...], spans: Spans) -> int:
        """How many offsets of these spans a group of the shadow has not committed; 0 if none of them is a record."""
        reached = committed_offsets(self.shadow, group, topics)
        left = sum(end - max(reached.get(where, first), first) for where, (first, end) in spans.items())
        # control records take up offsets, too, which are never committed
        return left if left > _NEAR * len(spans) or unread_spans(self.shadow, group, spans) else 0

    def _compare(self, moment: Moment, same_keys: bool, with_all: bool) -> Comparison:
        """Partition by partition: a row lies on the same one on both sides, where they split their counts alike. `with_all`:
        also what is counted once over all platforms.
        """

        def read(settings: Settings, spans: Spans) -> dict[bytes, CountRow]:
            rows = read_counts(settings, spans, self._in_range)
            return {key: row for key, row in rows.items() if with_all or row.scope != ALL}

        found = Comparison()
        shadow_spans = fix_spans(self.shadow, [self.shadow.counts_topic])
        for (topic, partition), span in moment.counts.items():
            live = read(self.settings, {(topic, partition): span})
            where = (self.shadow.counts_topic, partition)
            recounted = read(self.shadow, {where: shadow_spans[where]})
            found.add(live, recounted, same_keys)
        return found

    def _report(
        self,
        live: Policy,
        compared: Comparison,
        moved: frozenset[Place],
        closed_ms: int,
        notes: tuple[str, ...],
        copied: int,
    ) -> Report:
        width_ms = live.bounds.window_ms
        final = frozenset(
            place for place in compared.places() if place[0] + width_ms <= closed_ms and place not in moved
        )
        return Report(
            replay_id=self.id,
            from_ms=self.wish.from_ms,
            to_ms=self.wish.to_ms,
            policy=str(self.wish.policy) if self.wish.policy else None,
            copied=copied,
            notes=notes,
            comparison=compared,
            final=final,
        )
