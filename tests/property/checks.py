"""What must hold of the output topics when a deployment has come to rest, whatever happened before."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from app.contract import journeys, rows
from app.contract.reasons import ADJUSTMENT_REASONS
from app.formats.opening import Formats, open_formats
from app.verify.answer import Answer
from app.verify.click_ids import ClickLog
from app.verify.differences import Upsert, compare_letters, compare_partitions, compare_rows, fold_log
from app.verify.oracle import answer, refusals_over_time
from app.verify.partition import owner_of
from app.verify.records import SOURCE_HEADER, Coordinates, Record, parse_source
from app.verify.routing import opened
from app.verify.sequence import committed_batches
from app.windows import deltas
from tests.memory.deployment import Deployment
from tests.memory.log import MemoryMessage


def oracles_answer(deployment: Deployment) -> Answer:
    """What must be published for the deployment's input, in the batches that were committed."""
    broker, settings = deployment.broker, deployment.settings
    batches = committed_batches(
        message.value() or b"" for message in broker.committed(settings.deltas_topic) if message.partition() == 0
    )
    clicks = None
    if deployment.policy.bounds.click_ids is not None:
        told = [_record(message) for message in broker.committed(settings.clicks_topic)]
        clicks = ClickLog(told, broker.topics[settings.clicks_topic])
    records, formats = input_records(deployment), formats_of(deployment)
    return answer(records, deployment.policy, deployment.partitions, batches, settings.rekeyed_topic, formats, clicks)


def formats_of(deployment: Deployment) -> Formats | None:
    """What reads its records that are no plain JSON."""
    settings = deployment.settings
    return open_formats(deployment.policy.formats(), settings.registry, settings.request_timeout_ms / 1000)


def input_records(deployment: Deployment) -> list[Record]:
    """What the input topics hold."""
    topics = deployment.settings.input_topics()
    return [_record(message) for topic in topics for message in deployment.broker.committed(topic)]


def differences(deployment: Deployment) -> list[str]:
    """Everything that differs from the oracle's answer to the deployment's input, in words; empty where all is exact."""
    broker, settings, policy = deployment.broker, deployment.settings, deployment.policy
    must = oracles_answer(deployment)
    found = [f"the input: {fault}" for fault in must.faults]
    found += _accounting(must)
    found += _letters(must, deployment)

    of_users = [(settings.attributed_topic, must.attributed)]
    if policy.bounds.journeys is not None:
        of_users += [(settings.journeys_topic, must.journeys), (settings.models_topic, must.models)]
    owner = cache(lambda user: owner_of(user, deployment.partitions, policy.bounds.partitioner))
    for topic, expected in of_users:
        upserts = map(_upsert, broker.committed(topic))
        published = fold_log(topic, upserts, _decoder(deployment, topic), must.is_forgotten)
        found += map(str, published.faults)
        found += map(str, compare_partitions(topic, published, owner))
        found += map(str, compare_rows(topic, expected, published.rows, lambda *_: ()))

    topic = settings.counts_topic
    counts = fold_log(topic, map(_upsert, broker.committed(topic)), _decoder(deployment, topic))
    found += map(str, counts.faults)
    found += map(str, compare_rows(topic, must.counts, counts.rows, lambda *_: ()))
    found += _revisions_that_stand_still(must, deployment)
    found += _wrong_finality(deployment, counts.rows, counts.partitions)
    return found


def _letters(must: Answer, deployment: Deployment) -> Iterator[str]:
    """Every refused event must have its one dead letter, and no other event one; but see `_left_open` for adjustments."""
    topic, policy = deployment.settings.dlq_topic, deployment.policy
    letters = [rows.decode_dead_letter(message.value() or b"") for message in deployment.broker.committed(topic)]
    left_open = _left_open(must, deployment)
    for coordinates in left_open:
        must.refused_adjustments.pop(coordinates, None)
    strict = [letter for letter in letters if (letter.topic, letter.partition, letter.offset) not in left_open]
    yield from map(str, compare_letters(topic, must, strict, policy, reaches_back=True))
    for letter in letters:
        if letter.reason in ADJUSTMENT_REASONS and (letter.topic, letter.partition, letter.offset) in must.rejected:
            yield f"{letter} is of an event that was refused before it was judged as an adjustment"


def _left_open(must: Answer, deployment: Deployment) -> set[Coordinates]:
    """The adjustments of which the rules do not say whether they have a letter.

    The oracle keeps all for ever, the rules keep orders and adjustments for a time "at the least". And whether an adjustment
    was refused at some moment is in no topic but the letters', so after a rebuild, which takes other batches, a second refusal
    of one that applied in between may have no letter or a second one.
    """
    floor_ms = _latest_ms(must, deployment) - deployment.policy.conversion_retention_ms()
    found = set()
    for person in must.people.values():
        flips = refusals_over_time(person, deployment.policy) if deployment.rebuilt["counter"] else {}
        for adjustment in (each for each in person.history if each.event.event_type == "adjustment"):
            event = adjustment.event
            named = [
                conversion.time_ms
                for conversion in (each for each in person.history if each.event.event_type == "conversion")
                if conversion.event.event_id == event.conversion_event_id
                or (conversion.event.order_id and conversion.event.order_id == event.order_id)
            ]
            if min([adjustment.time_ms, *named]) < floor_ms or adjustment.found in flips:
                found.add(adjustment.found)
    return found


def _latest_ms(must: Answer, deployment: Deployment) -> int:
    """The time (epoch ms) of the latest event that moved a stream time: repeats too, but no forget."""
    records = [each for each in input_records(deployment) if each.coordinates not in must.rejected and not each.source]
    events = [json.loads(body) for _, body in opened(records, formats_of(deployment)) if isinstance(body, bytes)]
    # of an envelope nothing is known here
    return max((each["event_time"] for each in events if each.get("event_type", "forget") != "forget"), default=0)


def _accounting(must: Answer) -> Iterator[str]:
    judged = must.accepted + len(must.duplicates) + len(must.rejected) + must.waiting
    if judged != must.produced:
        yield f"the oracle judged {judged} of {must.produced} records"


def _revisions_that_stand_still(must: Answer, deployment: Deployment) -> Iterator[str]:
    """Each record of a key must have a higher revision than the one before, whether a deletion lies between or not; but one
    that forgot somebody.
    """
    settings = deployment.settings
    for topic in (settings.attributed_topic, settings.journeys_topic, settings.models_topic, settings.counts_topic):
        last: dict[bytes | None, int] = {}
        decode = _decoder(deployment, topic)
        for message in deployment.broker.committed(topic):
            value = message.value()
            if value is None:
                if must.is_forgotten(message.key() or b""):
                    last.pop(message.key(), None)
                continue
            revision = decode(value).revision
            if revision <= last.get(message.key(), 0):
                yield f"{message}: revision {revision} after {last[message.key()]}"
            last[message.key()] = revision


def _wrong_finality(
    deployment: Deployment, counts: dict[bytes, rows.CountRow], partitions: dict[bytes, int]
) -> Iterator[str]:
    """A window is final once every owner partition's watermark has passed its end plus the allowed lateness."""
    watermarks: dict[int, dict[int, int]] = {}
    for message in deployment.broker.committed(deployment.settings.deltas_topic):
        heard = watermarks.setdefault(message.partition(), {})
        for mark in deltas.decode(message.value() or b"").marks:
            heard[mark.partition] = max(heard.get(mark.partition, -1), mark.watermark_ms)
    for key, row in counts.items():
        heard = watermarks[partitions[key]]
        passed_ms = min(heard.values()) if len(heard) == deployment.partitions else -1
        final = row.window_end + deployment.policy.bounds.allowed_lateness_ms <= passed_ms
        if row.final != final:
            yield f"{key!r}: final is {row.final}, the watermark is {passed_ms}"


def _decoder(deployment: Deployment, topic: str) -> Callable[[bytes], Any]:
    """What reads a row of an output topic."""
    settings = deployment.settings
    return {
        settings.attributed_topic: rows.decode_attributed,
        settings.counts_topic: rows.decode_count,
        settings.journeys_topic: journeys.decode_journey,
        settings.models_topic: journeys.decode_model,
    }[topic]


def _upsert(message: MemoryMessage) -> Upsert:
    return Upsert(message.partition(), message.offset(), message.key(), message.value())


def _record(message: MemoryMessage) -> Record:
    source = next((parse_source(value) for name, value in message.headers() or () if name == SOURCE_HEADER), None)
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        source,
        message.headers(),
    )
