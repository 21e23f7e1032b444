"""`onecount verify`: reads the topics, recomputes the answer, and reports every difference."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaException
from rich.console import Console

from app.contract import journeys, rows
from app.contract.events import Rejection
from app.formats.opening import open_formats
from app.formats.schemas import RegistryRefused, RegistryUnavailable
from app.policy.model import Policy
from app.settings import Settings
from app.verify.click_ids import ClickLog
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
from app.verify.logs import Spans, fix_spans, read_log, to_record, wait_until_read
from app.verify.oracle import Answer, answer, opened
from app.verify.partition import owner_of
from app.verify.records import Coordinates, Order, Record, VerifyError
from app.verify.report import Report, print_report
from app.verify.sequence import committed_batches

INPUT: Final = "the input"
MAX_BEHIND: Final = 12  # events shown with a difference


def verify(
    settings: Settings, policy: Policy, show: int = 10, console: Console | None = None, wait_s: float = 30.0
) -> Report:
    """Whether the output topics hold the answer to the raw topics, which are read up to their ends at this moment.

    `policy`: every version that was ever in force. `show`: how many differences are told in full. Prints to `console`
    if there is one. `wait_s`: how long to wait for work in flight. Raises `VerifyError` where nothing can be said: workers
    that are behind, missing topics, raw topics whose first records are gone, brokers that don't answer.
    """
    started_s = time.monotonic()
    try:
        with _without_cycles():
            report = _verify(settings, policy, show, wait_s, started_s)
    except KafkaException as error:
        raise VerifyError(f"Kafka at {settings.bootstrap} does not do as asked: {error}") from error
    except (RegistryRefused, RegistryUnavailable) as error:
        raise VerifyError(str(error)) from error
    if console is not None:
        print_report(report, console)
    return report


def _verify(settings: Settings, policy: Policy, show: int, wait_s: float, started_s: float) -> Report:
    raw, spans = _settle_down(settings, policy, wait_s)
    partitions = sum(topic == settings.events_topics[0] for topic, _ in raw)
    notes: list[str] = []
    records = [to_record(message) for message in read_log(settings, raw)]
    order = _read_order(settings, spans, records, notes)
    formats = open_formats(policy.formats(), settings.registry, settings.request_timeout_ms / 1000)
    clicks = _clicks(settings, policy, spans)
    result = answer(records, policy, partitions, order, settings.rekeyed_topic, formats, clicks)
    if order is None and result.forgets:
        notes.append(
            f"{settings.deltas_topic} no longer holds every batch: a touch that came in one batch with its user's forget, behind it, is taken "
            "to have come later, so that a count may seem to lack a credit"
        )
    differences = list(_compare(settings, policy, partitions, result, spans, notes))
    arrived = _arrived_since(settings, raw)
    if arrived:
        notes.append(f"{arrived:,} records came while this ran; differences may be theirs. Run it while none come.")
    shown = tuple(map(_shorten, differences[:show]))
    needed = {coordinates for each in shown for coordinates in each.behind}
    return Report(
        produced=result.produced,
        accepted=result.accepted,
        duplicates=len(result.duplicates),
        rejected=Counter(result.rejected.values()),
        refused_adjustments=Counter(result.refused_adjustments.values()),
        noise=result.noise,
        matched=result.matched,
        waiting=result.waiting,
        forgets=result.forgets,
        forgotten=result.forgotten,
        attributed_rows=Counter(row.status for row in result.attributed.values()),
        count_rows=len(result.counts),
        journey_rows=Counter(row.status for row in result.journeys.values()),
        model_rows=len(result.models),
        seconds=time.monotonic() - started_s,
        differences=Counter(each.topic for each in differences),
        shown=shown,
        events={
            record.coordinates: record.value if isinstance(body, Rejection) else body
            for record, body in opened([each for each in records if each.coordinates in needed], formats)
        },
        notes=tuple(notes),
    )


def _shorten(difference: Difference) -> Difference:
    """The difference with a bounded number of events, and a word on those left out."""
    left_out = len(difference.behind) - MAX_BEHIND
    if left_out <= 0:
        return difference
    details = (*difference.details, f"{left_out:,} of the events behind it are not shown")
    return difference._replace(details=details, behind=difference.behind[:MAX_BEHIND])


def _settle_down(settings: Settings, policy: Policy, wait_s: float) -> tuple[Spans, Spans]:
    """Fixes the ends of the input topics and then of all others, each when what leads to it has been worked off."""
    deadline_s = time.monotonic() + wait_s

    def left_s() -> float:
        return max(deadline_s - time.monotonic(), 0)

    # 1. The raw events as of now, and everything that the counters make of them: copies, letters, rows, deltas.
    raw = fix_spans(settings, settings.events_topics)
    _refuse_unusable(settings, raw)
    wait_until_read(settings, settings.counter_group, raw, left_s())
    # 2. The copies that this brought, which the owners count.
    copies = fix_spans(settings, [settings.rekeyed_topic])
    _refuse_unusable(settings, raw | copies)
    wait_until_read(settings, settings.counter_group, copies, left_s())
    clicks: Spans = {}
    if policy.bounds.click_ids is not None:
        # All clicks have been told by now; what the matchers find by them are copies, too.
        clicks = fix_spans(settings, [settings.clicks_topic])
        _refuse_cut(clicks)
        wait_until_read(settings, settings.matcher_group, clicks, left_s())
        copies = fix_spans(settings, [settings.rekeyed_topic])
        wait_until_read(settings, settings.counter_group, copies, left_s())
    # 3. The counters' other outputs are all there now; the deltas are what the aggregators count.
    outputs = [settings.dlq_topic, settings.attributed_topic, settings.deltas_topic]
    if policy.bounds.journeys is not None:
        outputs += [settings.journeys_topic, settings.models_topic]
    spans = fix_spans(settings, outputs)
    deltas = {where: span for where, span in spans.items() if where[0] == settings.deltas_topic}
    wait_until_read(settings, settings.aggregator_group, deltas, left_s())
    # 4. And so are the counts.
    return raw | copies, spans | clicks | fix_spans(settings, [settings.counts_topic])


def _refuse_unusable(settings: Settings, inputs: Spans) -> None:
    counts = Counter(topic for topic, _ in inputs)
    if len(set(counts.values())) > 1:
        raise VerifyError(
            f"the input topics differ in their partitions ({dict(counts)}): the owner of a user is unclear"
        )
    _refuse_cut(inputs)


def _refuse_cut(inputs: Spans) -> None:
    gone = [f"{topic}/{number} starts at {first}" for (topic, number), (first, _) in inputs.items() if first > 0]
    if gone:
        raise VerifyError(
            f"retention has removed the first records ({', '.join(gone)}): the answer cannot be computed from the rest"
        )


def _clicks(settings: Settings, policy: Policy, spans: Spans) -> ClickLog | None:
    """What tells whose click is whose; None where the policy has no `click_ids`."""
    if policy.bounds.click_ids is None:
        return None
    own = {where: span for where, span in spans.items() if where[0] == settings.clicks_topic}
    return ClickLog([to_record(message) for message in read_log(settings, own)], len(own))


def _read_order(settings: Settings, spans: Spans, records: list[Record], notes: list[str]) -> Order | None:
    """The committed batches; None, with a note where it could matter, if the deltas topic no longer holds them all."""
    first, end = spans[settings.deltas_topic, 0]
    if first == 0:
        span = {(settings.deltas_topic, 0): (first, end)}
        try:
            return committed_batches(message.value() or b"" for message in read_log(settings, span))
        except msgspec.DecodeError as error:
            raise VerifyError(f"{settings.deltas_topic} holds what is no message of a counter: {error}") from error
    if len({record.topic for record in records}) > 1:
        notes.append(
            f"{settings.deltas_topic} no longer holds every batch: events of several topics are taken by Kafka timestamp"
        )
    return None


def _compare(
    settings: Settings, policy: Policy, partitions: int, result: Answer, spans: Spans, notes: list[str]
) -> Iterator[Difference]:
    """Every difference: the input's bookkeeping first, since the others may follow from it."""

    def upserts(topic: str) -> Iterator[Upsert]:
        for message in read_log(settings, {where: span for where, span in spans.items() if where[0] == topic}):
            yield Upsert(message.partition(), message.offset(), message.key(), message.value())

    def of_users(
        topic: str,
        expected: dict[bytes, Any],
        decode: Callable[[bytes], Row],
        behind: Callable[..., tuple[Coordinates, ...]],
    ) -> Iterator[Difference]:
        published = fold_log(topic, upserts(topic), decode, result.is_forgotten)
        yield from published.faults
        yield from compare_partitions(topic, published, owner)
        yield from compare_rows(topic, expected, published.rows, partial(behind, result))

    owner = cache(lambda user_id: owner_of(user_id, partitions, policy.bounds.partitioner))
    yield from (Difference(INPUT, "", (fault,)) for fault in result.faults)
    judged = result.accepted + len(result.duplicates) + len(result.rejected) + result.waiting
    if judged != result.produced:
        yield Difference(INPUT, "accounting", (f"{judged:,} judged, {result.produced:,} produced",))
    topic = settings.dlq_topic
    letters, faults = read_letters(topic, upserts(topic))
    reaches_back = all(first == 0 for where, (first, _) in spans.items() if where[0] == topic)
    if not reaches_back:
        notes.append(f"{topic} no longer holds its first records: a missing letter is not looked for")
    yield from faults
    yield from compare_letters(topic, result, letters, policy, reaches_back)

    yield from of_users(settings.attributed_topic, result.attributed, rows.decode_attributed, behind_attributed)
    if policy.bounds.journeys is not None:
        yield from of_users(settings.journeys_topic, result.journeys, journeys.decode_journey, behind_journey)
        yield from of_users(settings.models_topic, result.models, journeys.decode_model, behind_journey)

    topic = settings.counts_topic
    counts = fold_log(topic, upserts(topic), rows.decode_count)
    yield from counts.faults
    yield from compare_rows(topic, result.counts, counts.rows, lambda key, *_: tuple(result.behind_count.get(key, ())))


def _arrived_since(settings: Settings, inputs: Spans) -> int:
    """How many offsets the raw topics have grown by since their ends were fixed."""
    now = fix_spans(settings, settings.events_topics)
    return sum(end - inputs[where][1] for where, (_, end) in now.items())


@contextmanager
def _without_cycles() -> Iterator[None]:
    """Millions of plain objects and no cycle among them: the collector's search for some would take a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
