"""What must hold of the output topics when a deployment has come to rest, whatever happened before."""

from collections.abc import Iterator

from app.contract import rows
from app.verify.differences import Upsert, compare_letters, compare_partitions, compare_rows, fold_log
from app.verify.oracle import Answer, answer
from app.verify.partition import owner_of
from app.verify.records import SOURCE_HEADER, Record, parse_source
from app.verify.sequence import committed_batches
from app.windows import deltas
from tests.memory.deployment import Deployment
from tests.memory.log import MemoryMessage


def differences(deployment: Deployment) -> list[str]:
    """Everything that differs from the oracle's answer to the deployment's input, in words; empty where all is exact."""
    broker, settings, policy = deployment.broker, deployment.settings, deployment.policy
    batches = committed_batches(
        message.value() or b"" for message in broker.committed(settings.deltas_topic) if message.partition() == 0
    )
    records = [_record(message) for topic in settings.input_topics() for message in broker.committed(topic)]
    must = answer(records, policy, deployment.partitions, batches, settings.rekeyed_topic)
    found = [f"the input: {fault}" for fault in must.faults]
    found += _accounting(must)
    _forgive_what_is_forgotten(must, deployment)
    letters = [rows.decode_dead_letter(message.value() or b"") for message in broker.committed(settings.dlq_topic)]
    found += map(str, compare_letters(settings.dlq_topic, must, letters, policy, reaches_back=True))

    topic = settings.attributed_topic
    attributed = fold_log(topic, map(_upsert, broker.committed(topic)), rows.decode_attributed)
    found += map(str, attributed.faults)
    found += map(
        str,
        compare_partitions(
            topic, attributed, lambda user: owner_of(user, deployment.partitions, policy.bounds.partitioner)
        ),
    )
    found += map(str, compare_rows(topic, must.attributed, attributed.rows, lambda *_: ()))

    topic = settings.counts_topic
    counts = fold_log(topic, map(_upsert, broker.committed(topic)), rows.decode_count)
    found += map(str, counts.faults)
    found += map(str, compare_rows(topic, must.counts, counts.rows, lambda *_: ()))
    found += _revisions_that_stand_still(deployment)
    found += _wrong_finality(deployment, counts.rows, counts.partitions)
    return found


def _forgive_what_is_forgotten(must: Answer, deployment: Deployment) -> None:
    """Calls for no letter for an adjustment that is too old by so much that its order may be forgotten.

    The oracle keeps all orders for ever; the rules keep them for a time "at the least", so such an adjustment may find its
    order, and be refused, or none, and wait for one.
    """
    people = must.people.values()
    latest_ms = max((each.time_ms for person in people for each in person.history), default=0)
    floor_ms = latest_ms - deployment.policy.conversion_retention_ms()
    written = {
        (letter.topic, letter.partition, letter.offset)
        for message in deployment.broker.committed(deployment.settings.dlq_topic)
        if (letter := rows.decode_dead_letter(message.value() or b""))
    }
    for person in people:
        for adjustment in person.adjustments:
            named = [
                conversion.time_ms
                for conversion in person.conversions
                if conversion.event.event_id == adjustment.event.conversion_event_id
                or (conversion.event.order_id and conversion.event.order_id == adjustment.event.order_id)
            ]
            if adjustment.found not in written and named and min(named) < floor_ms:
                must.refused_adjustments.pop(adjustment.found, None)


def _accounting(must: Answer) -> Iterator[str]:
    judged = must.accepted + len(must.duplicates) + len(must.rejected)
    if judged != must.produced:
        yield f"the oracle judged {judged} of {must.produced} records"


def _revisions_that_stand_still(deployment: Deployment) -> Iterator[str]:
    """Each record of a key must have a higher revision than the one before, whether a deletion lies between or not."""
    settings = deployment.settings
    for topic in (settings.attributed_topic, settings.counts_topic):
        last: dict[bytes | None, int] = {}
        for message in deployment.broker.committed(topic):
            value = message.value()
            if value is None:
                continue
            is_count = topic == settings.counts_topic
            revision = (rows.decode_count(value) if is_count else rows.decode_attributed(value)).revision
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
    )
