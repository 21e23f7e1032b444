"""What an operator does to a stopped deployment: rebuild lost or old state, or count from the start."""

import time
from collections.abc import Iterable

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from app.engine.stages import ROLES
from app.engine.topics import create_topics, specs_of
from app.policy.model import Policy
from app.settings import Settings

_TAGS = {"counter": "c", "aggregator": "a"}


class StillRunning(Exception):
    """Workers of the group are still members; stop them first, or what is emptied would be written again."""


def rebuild(settings: Settings, roles: Iterable[str]) -> int:
    """Empties the state of stopped stages in Redis, so that their next start rebuilds it; how many keys were removed.
    Raises `StillRunning`.
    """
    _refuse_running(settings, roles)
    return sum(_empty(settings, _TAGS[role]) for role in roles)


def reset(settings: Settings, policy: Policy) -> list[str]:
    """Forgets everything that was counted: state, group offsets and output topics; what was done, a line each. The raw
    topics stay.

    Raises `StillRunning`.
    """
    _refuse_running(settings, ROLES)
    done = [f"removed {_empty(settings, tag)} keys of the {role} from Redis" for role, tag in _TAGS.items()]
    admin = AdminClient(settings.client())
    timeout_s = settings.request_timeout_ms / 1000
    present = admin.list_topics(timeout=timeout_s).topics
    doomed = [
        spec.name
        for spec in specs_of(settings, policy)
        if spec.name in present and spec.name not in settings.events_topics
    ]
    if doomed:
        for future in admin.delete_topics(doomed, operation_timeout=timeout_s).values():
            future.result()
    for group in (settings.counter_group, settings.aggregator_group):
        try:
            admin.delete_consumer_groups([group], request_timeout=timeout_s)[group].result()
            done.append(f"deleted the group {group}")
        except KafkaException as error:
            done.append(f"group {group}: {error.args[0].str()}")
    done.append(f"deleted {', '.join(doomed) or 'no topic'}")
    _wait_deleted(admin, doomed, timeout_s)
    done.append(f"created {', '.join(create_topics(settings, policy))}")
    return done


def _wait_deleted(admin: AdminClient, names: list[str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and set(names) & set(admin.list_topics(timeout=timeout_s).topics):
        time.sleep(0.1)


def _refuse_running(settings: Settings, roles: Iterable[str]) -> None:
    admin = AdminClient(settings.client())
    groups = {"counter": settings.counter_group, "aggregator": settings.aggregator_group}
    for role in roles:
        group = groups[role]
        try:
            found = admin.describe_consumer_groups([group], request_timeout=settings.request_timeout_ms / 1000)[
                group
            ].result()
        except KafkaException:
            continue  # no such group
        if found.members:
            raise StillRunning(f"{len(found.members)} workers of {group} are running: stop them first")


def _empty(settings: Settings, tag: str) -> int:
    client = redis.Redis.from_url(
        settings.redis_url.get_secret_value(), socket_timeout=settings.request_timeout_ms / 1000
    )
    removed = 0
    batch = []
    for key in client.scan_iter(match=f"{{{settings.tag(tag)}[0-9]*}}:*", count=10_000):
        batch.append(key)
        if len(batch) >= 10_000:
            removed += client.unlink(*batch)
            batch = []
    return removed + (client.unlink(*batch) if batch else 0)
