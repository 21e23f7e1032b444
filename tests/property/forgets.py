"""What `onecount forget` does after the counters have come past its event, on the backends in memory."""

from app.privacy.rows import Person, delete_rows, row_topics
from app.verify.partition import owner_of
from tests.memory.deployment import Deployment
from tests.property.checks import oracles_answer


def delete_older(deployment: Deployment) -> int:
    """Deletes, for each forget that was accepted, the rows that are older than the counters' state; how many."""
    policy, settings = deployment.policy, deployment.settings
    deleted = 0

    def delete(topic: str, partition: int, keys: list[bytes]) -> None:
        nonlocal deleted
        deleted += len(keys)
        for key in keys:
            deployment.broker.append(topic, partition, key=key, value=None)

    for (advertiser_id, user_id), known in oracles_answer(deployment).people.items():
        if known.forgotten_ms >= 0:
            person = Person(advertiser_id, user_id, known.forgotten_ms)
            partition = owner_of(user_id, deployment.partitions, policy.bounds.partitioner)
            for topic in row_topics(settings, policy):
                delete_rows(deployment.clients, topic, partition, person, 0, delete)
    return deleted
