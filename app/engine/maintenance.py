"""What an operator does to a stopped deployment: rebuild lost or old state, or count from the start."""

import time
from collections.abc import Iterable
from contextlib import closing

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from app.engine.keys import find_keys
from app.engine.stages import ROLES
from app.engine.store import ClusterStore, RedisStore, open_store
from app.engine.topics import all_specs_of, create_topics
from app.policy.model import Policy
from app.settings import Settings

DESK = "desk"
_TAGS = {"counter": "c", "aggregator": "a", "matcher": "m"}


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
    topics stay, and with them the marks of the dead letters that were sent to them again; so does what others told the desk.

    Raises `StillRunning`.
    """
    _refuse_running(settings, (*ROLES, DESK))
    used = [
        role for role in ROLES if role != "matcher" or policy.bounds.click_ids
    ]  # the others may be of a former policy
    removed = {role: _empty(settings, tag) for role, tag in _TAGS.items()}
    done = [
        f"removed {count} keys of the {role} from Redis" for role, count in removed.items() if count or role in used
    ]
    admin = AdminClient(settings.client())
    timeout_s = settings.request_timeout_ms / 1000
    present = admin.list_topics(timeout=timeout_s).topics
    kept = (*settings.events_topics, settings.handled_topic, *settings.desk_inputs, *settings.money_inputs)
    own = dict.fromkeys([*(spec.name for spec in all_specs_of(settings, policy)), settings.clicks_topic])
    doomed = [name for name in own if name in present and name not in kept]
    if doomed:
        for future in admin.delete_topics(doomed, operation_timeout=timeout_s).values():
            future.result()
    for role in ROLES:
        group = settings.group_of(role)
        try:
            admin.delete_consumer_groups([group], request_timeout=timeout_s)[group].result()
            done.append(f"deleted the group {group}")
        except KafkaException as error:
            if role in used or error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
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
    for role in roles:
        group = settings.desk_group if role == DESK else settings.group_of(role)
        try:
            found = admin.describe_consumer_groups([group], request_timeout=settings.request_timeout_ms / 1000)[
                group
            ].result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                continue
            raise  # a right that is missing must not pass for a group without members
        if found.members:
            raise StillRunning(f"{len(found.members)} workers of {group} are running: stop them first")


def _empty(settings: Settings, tag: str) -> int:
    with closing(open_store(settings.redis_url.get_secret_value(), settings.request_timeout_ms / 1000)) as store:
        return remove_keys(store, f"{{{settings.tag(tag)}[0-9]*}}:*")


def remove_keys(store: RedisStore | ClusterStore, pattern: str) -> int:
    """Removes all keys that match a glob pattern; how many.

    One UNLINK a partition: whatever interrupts it, no partition is left with a part of its state.
    """
    by_tag: dict[bytes, set[bytes]] = {}
    for key in find_keys(store, pattern):
        by_tag.setdefault(key.partition(b"}")[0], set()).add(key)
    return sum(store.run([("UNLINK", *keys) for keys in by_tag.values()]))
