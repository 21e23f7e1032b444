"""A log in slices by owner partition, so that what must be held at once is a slice: each is judged, answered and compared by
itself, and what they found is added up.

First all slices are asked for what they hold of other partitions (`Found`), since an owner needs that; then each for its `Part`.
"""

import gc
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from operator import add
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaException

from app.contract import journeys, rows
from app.contract.events import Accepted, Rejection
from app.formats.opening import Formats, open_formats
from app.policy.model import Policy
from app.settings import Settings
from app.verify.answer import Amounts, Answer, CountIdentity
from app.verify.click_ids import Click
from app.verify.differences import (
    Difference,
    Row,
    Upsert,
    behind_attributed,
    behind_journey,
    compare_letters,
    compare_partitions,
    compare_rows,
    fold_log,
    read_letters,
)
from app.verify.logs import Spans, read_log, to_record
from app.verify.oracle import answer_of
from app.verify.partition import owner_of
from app.verify.records import Arrival, Coordinates, Order, Record, VerifyError
from app.verify.routing import Judged, Routed, judge, opened

MAX_BEHIND: Final = 12  # events shown with a difference


class Case(NamedTuple):
    """What is verified. `raw`: the raw topics, `outputs`: all that is published, `partitions`: of each input topic. `show`: how
    many differences are told in full.
    """

    settings: Settings
    policy: Policy
    partitions: int
    raw: Spans
    outputs: Spans
    show: int

    def formats(self) -> Formats | None:
        """What reads records that are no plain JSON."""
        settings = self.settings
        return open_formats(self.policy.formats(), settings.registry, settings.request_timeout_ms / 1000)

    def upserts(self, topic: str, owners: Collection[int] | None = None) -> Iterator[Upsert]:
        """An output topic's records; of the partitions that belong to the owners' if there are any."""
        spans = {
            (name, partition): span
            for (name, partition), span in self.outputs.items()
            if name == topic and (owners is None or partition % self.partitions in owners)
        }
        for message in read_log(self.settings, spans):
            yield Upsert(message.partition(), message.offset(), message.key(), message.value())

    def reaches_back(self, topic: str) -> bool:
        """Whether an output topic still holds its first records."""
        return all(first == 0 for (name, _), (first, _) in self.outputs.items() if name == topic)


class Found(NamedTuple):
    """What a slice holds that does not belong to it: see `Judged`."""

    produced: int
    abroad: dict[Coordinates, tuple[Record, Arrival]]
    userless: dict[Coordinates, tuple[Record, Accepted]]


class Behind(NamedTuple):
    """The events that count rows add up, and the raw values of the first of each."""

    rows: dict[CountIdentity, list[Coordinates]]
    values: dict[Coordinates, bytes | None]


@dataclass
class Part:
    """What a slice answered, and where what is published differs from it. Parts can be added up.

    `shown`: the first differences of each topic, `events`: the raw values behind those; `differences`: how many by topic.
    `amounts`: what its events add to count rows, in the order of `MEASURES`.
    """

    produced: int = 0
    accepted: int = 0
    duplicates: int = 0
    noise: int = 0
    forgets: int = 0
    forgotten: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    refused_adjustments: Counter[str] = field(default_factory=Counter)
    attributed: Counter[str] = field(default_factory=Counter)
    journeys: Counter[str] = field(default_factory=Counter)
    models: int = 0
    clicks: Counter[Click] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    amounts: dict[CountIdentity, Amounts] = field(default_factory=dict)
    shown: list[Difference] = field(default_factory=list)
    events: dict[Coordinates, bytes | None] = field(default_factory=dict)
    differences: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Part") -> None:
        """Takes in another slice's part."""
        for name in ("produced", "accepted", "duplicates", "noise", "forgets", "forgotten", "models"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("rejected", "refused_adjustments", "attributed", "journeys", "clicks", "differences"):
            getattr(self, name).update(getattr(other, name))
        self.faults += other.faults
        self.shown += other.shown
        self.events |= other.events
        for identity, amounts in other.amounts.items():
            before = self.amounts.get(identity)
            self.amounts[identity] = amounts if before is None else tuple(map(add, before, amounts))


class Whole:
    """A log that is one slice, held in this process."""

    def __init__(self, case: Case) -> None:
        self._case, self._owners = case, range(case.partitions)
        self._judged = judge_slice(case, self._owners)
        self._answer = Answer()

    def close(self) -> None:
        """Nothing is left to end."""

    def find(self) -> Found:
        """What its partitions hold of each other."""
        return Found(self._judged.produced, self._judged.abroad, self._judged.userless)

    def parts(self, routed: Routed, order: Order | None) -> Part:
        """What it found."""
        self._answer = answer_of(self._owners, self._judged, routed, self._case.policy, order)
        return compare_slice(self._case, self._owners, self._judged, routed, self._answer)

    def behind(self, routed: Routed, order: Order | None, identities: Collection[CountIdentity]) -> Behind:
        """The events behind these count rows, once it has its parts."""
        return behind_counts(self._case, self._judged, routed, self._answer, identities)


class Sliced:
    """A log with a slice for each partition, so many of which are worked off at once, each in a process of its own, which gives
    its memory back. Raises `VerifyError` where one of them cannot be.
    """

    def __init__(self, case: Case, processes: int) -> None:
        self._case = case
        context = get_context("spawn")  # a process that is forked off hangs with its copy of a Kafka client
        self._pool = ProcessPoolExecutor(min(processes, case.partitions), context, max_tasks_per_child=1)

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown(cancel_futures=True)

    def find(self) -> Found:
        """What all slices hold of others."""
        result = Found(0, {}, {})
        for found in self._map(find, [()] * self._case.partitions):
            result.abroad.update(found.abroad)
            result.userless.update(found.userless)
            result = result._replace(produced=result.produced + found.produced)
        return result

    def parts(self, routed: Routed, order: Order | None) -> Part:
        """What all slices found, added up."""
        result = Part()
        for part in self._map(answer_and_compare, self._for_each(routed, order)):
            result.add(part)
        return result

    def behind(self, routed: Routed, order: Order | None, identities: Collection[CountIdentity]) -> Behind:
        """The events behind these count rows. Every slice is answered anew for it."""
        result = Behind({identity: [] for identity in identities}, {})
        arguments = [(*each, identities) for each in self._for_each(routed, order)]
        for found in self._map(answer_and_look_behind, arguments):
            result.values.update(found.values)
            for identity, coordinates in found.rows.items():
                result.rows[identity] += coordinates
        return result

    def _for_each(self, routed: Routed, order: Order | None) -> list[tuple[Any, ...]]:
        return [
            (routed.of([owner]), None if order is None else {owner: order.get(owner, ())})
            for owner in range(self._case.partitions)
        ]

    def _map(self, function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Iterator[Any]:
        running = [
            self._pool.submit(_working, function, self._case, [owner], *each) for owner, each in enumerate(arguments)
        ]
        try:
            yield from (future.result() for future in running)
        except BrokenProcessPool as error:
            raise VerifyError(
                "a process that verified a partition was ended: was there too little memory? Take fewer --processes"
            ) from error


def _working(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own."""
    try:
        with without_cycles():
            return function(*arguments)
    except KafkaException as error:  # which cannot be sent to another process
        raise VerifyError(f"Kafka does not do as asked: {error}") from None


def judge_slice(case: Case, owners: Collection[int]) -> Judged:
    """Reads and judges the raw records of these partitions."""
    spans = {where: span for where, span in case.raw.items() if where[1] in owners}
    records = [to_record(message) for message in read_log(case.settings, spans)]
    return judge(records, case.policy, case.partitions, case.formats())


def find(case: Case, owners: Collection[int]) -> Found:
    """What a slice holds of others."""
    judged = judge_slice(case, owners)
    return Found(judged.produced, judged.abroad, judged.userless)


def answer_and_compare(case: Case, owners: Collection[int], routed: Routed, order: Order | None) -> Part:
    """A slice's part."""
    judged = judge_slice(case, owners)
    return compare_slice(case, owners, judged, routed, answer_of(owners, judged, routed, case.policy, order))


def answer_and_look_behind(
    case: Case, owners: Collection[int], routed: Routed, order: Order | None, identities: Collection[CountIdentity]
) -> Behind:
    """`behind_counts` of a slice."""
    judged = judge_slice(case, owners)
    return behind_counts(case, judged, routed, answer_of(owners, judged, routed, case.policy, order), identities)


def behind_counts(
    case: Case, judged: Judged, routed: Routed, answer: Answer, identities: Collection[CountIdentity]
) -> Behind:
    """The events behind these rows."""
    behind = {identity: answer.tallies[identity].behind for identity in identities if identity in answer.tallies}
    needed = {each for found in behind.values() for each in found[:MAX_BEHIND]}
    return Behind(behind, raw_values(case, judged, routed, needed))


def compare_slice(case: Case, owners: Collection[int], judged: Judged, routed: Routed, answer: Answer) -> Part:
    """Holds what is published of a slice's events beside the answer."""
    differences: Counter[str] = Counter()
    shown = []
    for difference in _differences(case, owners, routed, answer):
        if differences[difference.topic] < case.show:
            shown.append(difference)
        differences[difference.topic] += 1
    return Part(
        produced=answer.produced,
        accepted=answer.accepted,
        duplicates=len(answer.duplicates),
        noise=answer.noise,
        forgets=answer.forgets,
        forgotten=answer.forgotten,
        rejected=Counter(answer.rejected.values()),
        refused_adjustments=Counter(answer.refused_adjustments.values()),
        attributed=Counter(row.status for row in answer.attributed.values()),
        journeys=Counter(row.status for row in answer.journeys.values()),
        models=len(answer.models),
        clicks=answer.clicks,
        faults=answer.faults,
        amounts={identity: tally.amounts() for identity, tally in answer.tallies.items()},
        shown=shown,
        events=raw_values(case, judged, routed, {each for found in shown for each in found.behind[:MAX_BEHIND]}),
        differences=differences,
    )


def _differences(case: Case, owners: Collection[int], routed: Routed, answer: Answer) -> Iterator[Difference]:
    """Every difference of the topics that a slice answers alone."""
    settings, policy = case.settings, case.policy
    owner = cache(lambda user_id: owner_of(user_id, case.partitions, policy.bounds.partitioner))

    def is_ours(coordinates: Coordinates) -> bool:
        return routed.owners.get(coordinates, coordinates[1] % case.partitions) in owners

    def of_users(
        topic: str,
        expected: dict[bytes, Any],
        decode: Callable[[bytes], Row],
        behind: Callable[..., tuple[Coordinates, ...]],
    ) -> Iterator[Difference]:
        published = fold_log(topic, case.upserts(topic, owners), decode, answer.is_forgotten)
        yield from published.faults
        yield from compare_partitions(topic, published, owner)
        yield from compare_rows(topic, expected, published.rows, partial(behind, answer))

    topic = settings.dlq_topic
    letters, faults = read_letters(topic, case.upserts(topic))  # they lie on any partition
    yield from faults if 0 in owners else ()
    ours = [letter for letter in letters if is_ours((letter.topic, letter.partition, letter.offset))]
    yield from compare_letters(topic, answer, ours, policy, case.reaches_back(topic))
    yield from of_users(settings.attributed_topic, answer.attributed, rows.decode_attributed, behind_attributed)
    if policy.bounds.journeys is not None:
        yield from of_users(settings.journeys_topic, answer.journeys, journeys.decode_journey, behind_journey)
        yield from of_users(settings.models_topic, answer.models, journeys.decode_model, behind_journey)


def raw_values(
    case: Case, judged: Judged, routed: Routed, needed: Collection[Coordinates]
) -> dict[Coordinates, bytes | None]:
    """The raw values of these events: of what is no plain JSON its event, as far as it can be read."""
    if not needed:
        return {}
    found: dict[Coordinates, Record] = {}
    for stream in (*routed.streams.values(), judged.streams):  # a raw record goes before its copy
        for steps in stream.values():
            for record, arrival in steps:
                where = record.coordinates if arrival is None else arrival.found
                if where in needed:
                    found[where] = record
    bodies = opened(list(found.values()), case.formats())
    return {
        where: record.value if isinstance(body, Rejection) else body
        for where, (record, body) in zip(found, bodies, strict=True)
    }


@contextmanager
def without_cycles() -> Iterator[None]:
    """Millions of plain objects and no cycle among them: the collector's search for some would take a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
