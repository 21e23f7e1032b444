"""`onecount verify`: reads the topics, recomputes the answer, and reports every difference."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import msgspec
from confluent_kafka import KafkaException
from rich.console import Console

from app.contract import rows
from app.formats.schemas import RegistryRefused, RegistryUnavailable
from app.policy.model import Policy
from app.settings import Settings
from app.verify.answer import CountIdentity
from app.verify.click_ids import ClickLog, compare_clicks
from app.verify.differences import Difference, compare_rows, fold_log
from app.verify.logs import Spans, fix_spans, read_log, to_record, wait_until_read
from app.verify.oracle import count_row
from app.verify.records import Order, VerifyError
from app.verify.report import Report, print_report
from app.verify.routing import Routed, route
from app.verify.sequence import committed_batches
from app.verify.slices import MAX_BEHIND, Case, Part, Sliced, Whole, without_cycles

INPUT: Final = "the input"
SLICE_RECORDS: Final = 300_000  # a log up to this size is held as a whole, some 4 kB a record


def verify(
    settings: Settings,
    policy: Policy,
    show: int = 10,
    console: Console | None = None,
    wait_s: float = 30.0,
    processes: int = 1,
    slice_records: int = SLICE_RECORDS,
) -> Report:
    """Whether the output topics hold the answer to the raw topics, which are read up to their ends at this moment.

    `policy`: every version that was ever in force. `show`: how many differences are told in full. Prints to `console`
    if there is one. `wait_s`: how long to wait for work in flight. A log of more than `slice_records` is worked off partition by
    partition, `processes` at once, each of which takes some 4 kB a record. Raises `VerifyError` where nothing can be said:
    workers that are behind, missing topics, raw topics whose first records are gone, brokers that don't answer.
    """
    started_s = time.monotonic()
    try:
        with without_cycles():
            raw, outputs = _settle_down(settings, policy, wait_s)
            partitions = sum(topic == settings.events_topics[0] for topic, _ in raw)
            own = {where: span for where, span in raw.items() if where[0] in settings.events_topics}
            case = Case(settings, policy, partitions, own, outputs, show)
            with closing(Whole(case) if _size(own) <= slice_records else Sliced(case, processes)) as slices:
                report = _verify(case, slices, {where: raw[where] for where in raw.keys() - own.keys()}, started_s)
    except KafkaException as error:
        raise VerifyError(f"Kafka at {settings.bootstrap} does not do as asked: {error}") from error
    except (RegistryRefused, RegistryUnavailable) as error:
        raise VerifyError(str(error)) from error
    if console is not None:
        print_report(report, console)
    return report


def _size(spans: Spans) -> int:
    return sum(end - first for first, end in spans.values())


def _verify(case: Case, slices: Whole | Sliced, copies: Spans, started_s: float) -> Report:
    settings, policy = case.settings, case.policy
    notes: list[str] = []
    order = _read_order(case, has_copies=_size(copies) > 0, notes=notes)
    clicks = _clicks(case)
    found = slices.find()
    records = [to_record(message) for message in read_log(settings, copies)]
    routed = route(
        *(found.abroad, found.userless, records, policy, case.partitions, settings.rekeyed_topic, clicks),
    )
    part = slices.parts(routed, order)
    if order is None and part.forgets:
        notes.append(
            f"{settings.deltas_topic} no longer holds every batch: a touch that came in one batch with its user's forget, behind it, is taken "
            "to have come later, so that a count may seem to lack a credit"
        )
    if not case.reaches_back(settings.dlq_topic):
        notes.append(f"{settings.dlq_topic} no longer holds its first records: a missing letter is not looked for")
    differences = list(_of_the_input(found.produced, part, routed, clicks))
    of_counts, identities = _of_the_counts(case, part)
    part.differences += Counter(each.topic for each in (*differences, *of_counts))
    shown = [*differences, *part.shown, *of_counts][: case.show]
    events = part.events
    wanted = {
        identities[each.about] for each in shown if each.about in identities and each.topic == settings.counts_topic
    }
    if wanted:
        behind, values = slices.behind(routed, order, wanted)
        events |= values
        shown = [
            each._replace(behind=tuple(behind.get(identities[each.about], ())))
            if each.topic == settings.counts_topic and each.about in identities
            else each
            for each in shown
        ]
    arrived = _arrived_since(settings, case.raw)
    if arrived:
        notes.append(f"{arrived:,} records came while this ran; differences may be theirs. Run it while none come.")
    return Report(
        produced=found.produced,
        accepted=part.accepted,
        duplicates=part.duplicates,
        rejected=part.rejected,
        refused_adjustments=part.refused_adjustments,
        noise=part.noise,
        matched=routed.matched,
        waiting=routed.waiting,
        forgets=part.forgets,
        forgotten=part.forgotten,
        attributed_rows=part.attributed,
        count_rows=len(part.amounts),
        journey_rows=part.journeys,
        model_rows=part.models,
        seconds=time.monotonic() - started_s,
        differences=part.differences,
        shown=tuple(map(_shorten, shown)),
        events=events,
        notes=tuple(notes),
    )


def _of_the_input(produced: int, part: Part, routed: Routed, clicks: ClickLog | None) -> Iterator[Difference]:
    """What is wrong with the bookkeeping of the input: told first, since the rest may follow from it."""
    faults = [*routed.faults, *part.faults]
    if clicks is not None:
        faults += compare_clicks(part.clicks, routed.told_clicks)
    yield from (Difference(INPUT, "", (fault,)) for fault in faults)
    judged = part.accepted + part.duplicates + sum(part.rejected.values()) + routed.waiting
    if judged != produced:
        yield Difference(INPUT, "accounting", (f"{judged:,} judged, {produced:,} produced",))


def _of_the_counts(case: Case, part: Part) -> tuple[list[Difference], dict[str, CountIdentity]]:
    """The differences of the count rows, and which row each is about."""
    topic = case.settings.counts_topic
    published = fold_log(topic, case.upserts(topic), rows.decode_count)
    expected, identities = {}, {}
    for identity, amounts in part.amounts.items():
        key, row = count_row(identity, amounts, case.policy)
        expected[key], identities[key.decode()] = row, identity
    return [*published.faults, *compare_rows(topic, expected, published.rows, lambda *_: ())], identities


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


def _clicks(case: Case) -> ClickLog | None:
    """What tells whose click is whose; None where the policy has no `click_ids`."""
    if case.policy.bounds.click_ids is None:
        return None
    own = {where: span for where, span in case.outputs.items() if where[0] == case.settings.clicks_topic}
    return ClickLog([to_record(message) for message in read_log(case.settings, own)], len(own))


def _read_order(case: Case, has_copies: bool, notes: list[str]) -> Order | None:
    """The committed batches; None, with a note where it could matter, if the deltas topic no longer holds them all."""
    settings = case.settings
    first, end = case.outputs[settings.deltas_topic, 0]
    if first == 0:
        span = {(settings.deltas_topic, 0): (first, end)}
        try:
            return committed_batches(message.value() or b"" for message in read_log(settings, span))
        except msgspec.DecodeError as error:
            raise VerifyError(f"{settings.deltas_topic} holds what is no message of a counter: {error}") from error
    if has_copies or len(settings.events_topics) > 1:
        notes.append(
            f"{settings.deltas_topic} no longer holds every batch: events of several topics are taken by Kafka timestamp"
        )
    return None


def _arrived_since(settings: Settings, inputs: Spans) -> int:
    """How many offsets the raw topics have grown by since their ends were fixed."""
    now = fix_spans(settings, settings.events_topics)
    return sum(end - inputs[where][1] for where, (_, end) in now.items())
