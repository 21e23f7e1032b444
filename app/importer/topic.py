"""Whether a topic takes rows of the past: refused before the first one is sent, with the command that helps."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec

from app.importer.refusal import ImportRefusedError
from app.importer.survey import Survey
from app.settings import Settings

DAY_MS = 86_400_000
_RETRY_S: Final = 0.2
_PASSING: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)


@dataclass(frozen=True)
class TopicState:
    """What decides which times a topic takes, in ms; `retention_ms` -1 keeps for ever, `newest_ms` None: it is empty."""

    timestamp_type: str
    retention_ms: int
    before_max_ms: int
    after_max_ms: int
    newest_ms: int | None


def describe_topic(settings: Settings, topic: str) -> TopicState:
    """Asks Kafka. `ImportRefusedError` if it does not answer or lacks the topic."""
    timeout_s = settings.request_timeout_ms / 1000
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return _ask(AdminClient(settings.client()), topic, timeout_s)
        except KafkaException as error:
            # A topic that was made a moment ago has no leader everywhere yet.
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline_s:
                why = error.args[0].str()
                raise ImportRefusedError(f"cannot ask Kafka about {topic}: {why}; check ONECOUNT_BOOTSTRAP") from error
        time.sleep(_RETRY_S)


def _ask(admin: AdminClient, topic: str, timeout_s: float) -> TopicState:
    known = admin.list_topics(timeout=timeout_s).topics
    if topic not in known:
        raise ImportRefusedError(f"there is no topic {topic}; make it with `onecount topics create --keep-forever`")
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    config = admin.describe_configs([resource], request_timeout=timeout_s)[resource].result()
    wanted = {TopicPartition(topic, number): OffsetSpec.max_timestamp() for number in known[topic].partitions}
    offsets = admin.list_offsets(wanted, request_timeout=timeout_s).values()
    newest = [future.result().timestamp for future in offsets]
    return TopicState(
        timestamp_type=config["message.timestamp.type"].value,
        retention_ms=int(config["retention.ms"].value),
        before_max_ms=int(config["message.timestamp.before.max.ms"].value),
        after_max_ms=int(config["message.timestamp.after.max.ms"].value),
        newest_ms=max((time_ms for time_ms in newest if time_ms >= 0), default=None),
    )


def refuse_impossible(
    found: Survey, state: TopicState, settings: Settings, topic: str, horizon_ms: int, sort_by_time: bool, now_ms: int
) -> None:
    """Raises `ImportRefusedError` where Kafka or the product would lose or refuse rows because of their time."""
    if found.oldest_ms is None or found.newest_ms is None:
        return

    def advice(config: str) -> str:
        return f"Run:\n  kafka-configs.sh --bootstrap-server {settings.bootstrap} --alter --entity-type topics --entity-name {topic} --add-config {config}"

    age_ms = now_ms - found.oldest_ms
    oldest = f"the oldest row is of {_words(found.oldest_ms)}, {_span(age_ms)} ago"
    if state.timestamp_type != "CreateTime":
        raise ImportRefusedError(
            f"{topic} replaces every record's timestamp by the time of its arrival, so each historical row would be refused as too old. "
            + advice("message.timestamp.type=CreateTime")
        )
    if 0 <= state.retention_ms < age_ms:
        raise ImportRefusedError(
            f"{oldest}, but {topic} keeps records for {_span(state.retention_ms)} only: Kafka would delete it while it is being counted. "
            + advice("retention.ms=-1")
            + f"\nand afterwards, if you want the old limit back, the same with retention.ms={state.retention_ms}. "
            "New topics can be made for history from the start: onecount topics create --keep-forever"
        )
    if age_ms > state.before_max_ms:
        raise ImportRefusedError(
            f"{oldest}, but {topic} refuses records older than {_span(state.before_max_ms)}. "
            + advice("message.timestamp.before.max.ms=9223372036854775807")
        )
    if found.newest_ms - now_ms > state.after_max_ms:
        raise ImportRefusedError(
            f"the newest row is of {_words(found.newest_ms)}, which is in the future, and {topic} refuses records more than "
            f"{_span(state.after_max_ms)} ahead. Check the mapping's time zone. If the time is right, wait, or "
            + advice("message.timestamp.after.max.ms=9223372036854775807")
        )
    if found.late and not sort_by_time:
        raise ImportRefusedError(
            f"{found.late} events are more than {_span(horizon_ms)} (correction_horizon) older than one before them in the file, so the "
            "product would refuse them. Put `sort_by_time: true` into the mapping"
        )
    if (
        state.newest_ms is not None
        and found.oldest_unsent_ms is not None
        and found.oldest_unsent_ms < state.newest_ms - horizon_ms
    ):
        raise ImportRefusedError(
            f"{topic} already holds events up to {_words(state.newest_ms)}. Rows older than that by more than {_span(horizon_ms)} "
            f"(correction_horizon) would be refused, and this file's start at {_words(found.oldest_unsent_ms)}. Import history into new topics before "
            "newer events come, files in order of time; files that overlap in time by more than that must be put into one first"
        )


def _words(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(duration_ms: int) -> str:
    return f"{duration_ms / DAY_MS:,.1f} days" if duration_ms >= DAY_MS else f"{duration_ms / 3_600_000:.1f} hours"
