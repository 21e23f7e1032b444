"""What `onecount forget` does after the counters have come past its event, on the backends in memory."""

from app.contract.events import Rejection, decode_event
from app.privacy.rows import Person, delete_rows, row_topics
from app.verify.partition import owner_of
from tests.memory.deployment import Deployment


def delete_older(deployment: Deployment) -> int:
    """Deletes, for each forget that the contract accepts, the rows that are older than the counters' state; how many."""
    policy, settings = deployment.policy, deployment.settings
    bounds, platforms = policy.bounds, policy.platforms()
    deleted = 0

    def delete(topic: str, partition: int, keys: list[bytes]) -> None:
        nonlocal deleted
        deleted += len(keys)
        for key in keys:
            deployment.broker.append(topic, partition, key=key, value=None)

    for message in [each for topic in settings.events_topics for each in deployment.broker.committed(topic)]:
        judged = decode_event(
            message.value(),
            message.key(),
            message.timestamp()[1],
            platforms,
            bounds.max_event_age_ms,
            bounds.max_clock_skew_ms,
        )
        if isinstance(judged, Rejection) or judged.event.event_type != "forget":
            continue
        person = Person(judged.event.advertiser_id, judged.event.user_id, judged.time_ms)
        partition = owner_of(person.user_id, deployment.partitions, bounds.partitioner)
        for topic in row_topics(settings, policy):
            delete_rows(deployment.clients, topic, partition, person, 0, delete)
    return deleted
