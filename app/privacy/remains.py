"""What of a person is still there after a forget, and until when."""

from typing import Final, NamedTuple

from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from app.engine.clients import Clients
from app.engine.counter_partition import CounterPartition
from app.matching.book import kept_ms
from app.policy.model import Policy
from app.settings import Settings

FOREVER: Final = -1


class Remains(NamedTuple):
    """One place. `until_ms`: about when the last of it is gone (epoch ms; in Redis if events go on to come); None where no time
    is set.
    """

    where: str
    what: str
    until_ms: int | None


def find_remains(
    settings: Settings, policy: Policy, clients: Clients, row_topics: tuple[str, ...], now_ms: int
) -> list[Remains]:
    """Every place, by the topics' own settings. Raises KafkaException where they are not told."""
    there = clients.topics((*settings.desk_inputs, settings.orders_topic, settings.leads_topic, settings.overdue_topic))
    leads = [topic for topic in (settings.leads_topic, settings.overdue_topic) if topic in there]
    click_ids = policy.bounds.click_ids
    clicks = [settings.clicks_topic] if click_ids else []
    logs = (*settings.input_topics(), settings.dlq_topic, *clicks)
    configs = _configs(settings, (*logs, *row_topics, *there))
    view = CounterPartition("", policy)
    stores = [view.touches, view.visits] if view.visits is not None else [view.touches]
    told = [
        Remains(topic, "what a CRM told of leads", _log_end(configs[topic], now_ms))
        for topic in settings.desk_inputs
        if topic in there
    ]
    if settings.orders_topic in there:
        told.append(Remains(settings.orders_topic, "orders that name the user, until their source deletes them", None))
    return [
        *(
            Remains(topic, "events as they were sent", _log_end(configs[topic], now_ms))
            for topic in settings.input_topics()
        ),
        *(
            Remains(
                topic, "click ids with their user_id, events that named only a click", _log_end(configs[topic], now_ms)
            )
            for topic in clicks
        ),
        Remains(settings.dlq_topic, "refused events, 16 KiB of each", _log_end(configs[settings.dlq_topic], now_ms)),
        *(
            Remains(topic, "deleted rows, then their keys", _compacted_end(configs[topic], now_ms))
            for topic in (*row_topics, *leads)
        ),
        *told,
        Remains(
            "Redis", "touches and visits under a hash of the user", now_ms + max(store.slot_ms for store in stores)
        ),
        Remains("Redis", "user_id and the time of the forget", now_ms + view.forget_retention_ms),
        *([Remains("Redis", "user_id by click id", now_ms + kept_ms(click_ids))] if click_ids else []),
    ]


def _configs(settings: Settings, topics: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Each topic's settings that are whole numbers."""
    admin, timeout_s = AdminClient(settings.client()), settings.request_timeout_ms / 1000
    asked = {topic: ConfigResource(ResourceType.TOPIC, topic) for topic in topics}
    answers = admin.describe_configs(list(asked.values()), request_timeout=timeout_s)
    found = {}
    for topic, resource in asked.items():
        values = {name: entry.value for name, entry in answers[resource].result(timeout_s).items()}
        found[topic] = {name: int(value) for name, value in values.items() if value and value.lstrip("-").isdigit()}
    return found


def _log_end(config: dict[str, int], now_ms: int) -> int | None:
    """When a record of now is deleted: a whole segment goes once its newest record is too old, and it is closed by then."""
    retention_ms = config["retention.ms"]
    return None if retention_ms == FOREVER else now_ms + retention_ms + config["segment.ms"]


def _compacted_end(config: dict[str, int], now_ms: int) -> int | None:
    """When a deletion of now is gone with its key: twice a segment is closed and cleaned, and deletions are kept between."""
    lag_ms = config["max.compaction.lag.ms"]
    return None if lag_ms >= 2**62 else now_ms + 2 * lag_ms + config["delete.retention.ms"]
