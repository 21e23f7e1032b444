"""The topics, groups and Redis keys of a replay: made, found and removed, by names that no live one has."""

import time
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from app.contract.topics import DAY_MS, TopicSpec
from app.engine.maintenance import StillRunning, rebuild
from app.engine.stages import ROLES
from app.engine.topics import specs_of
from app.policy.model import Policy
from app.replay.names import ids_in, is_id, live_topics, shadow_name, shadow_settings
from app.replay.refusal import ReplayRefused
from app.settings import Settings

KEPT_MS: Final = 7 * DAY_MS  # how long the topics of a replay hold what nobody removed
_LEAVE_S: Final = 5.0  # more than a dead member's session


def create(settings: Settings, shadow: Settings, live: Policy, judge: Policy, begins_ms: int) -> None:
    """Creates the shadow topics, each with its live one's partitions; where only `judge` follows journeys, theirs have those
    of the raw topic. `begins_ms` (epoch ms): no record is older.
    """
    admin = AdminClient(settings.client())
    timeout_s = settings.request_timeout_ms / 1000
    known = admin.list_topics(timeout=timeout_s).topics
    # the records of other raw topics go to the first one's shadow
    one_raw = settings.model_copy(update={"events_topics": settings.events_topics[:1]})
    missing = [spec.name for spec in specs_of(one_raw, live) if spec.name not in known]
    if missing:
        raise ReplayRefused(
            f"no such topic: {', '.join(missing)}; run `onecount topics create`, or give the right to describe it"
        )
    kept_ms = int(time.time() * 1000) - begins_ms + KEPT_MS
    topics = [
        NewTopic(
            spec.name,
            len(known[one.name if one.name in known else one_raw.events_topics[0]].partitions),
            settings.replication,
            config=_config(spec, spec.name in shadow.input_topics(), kept_ms),
        )
        for one, spec in zip(specs_of(one_raw, judge), specs_of(shadow, judge), strict=True)
        if one.name != settings.handled_topic  # nobody sends a replay's dead letters again
    ]
    for future in admin.create_topics(topics, operation_timeout=timeout_s).values():
        future.result()


def _config(spec: TopicSpec, holds_copies: bool, kept_ms: int) -> dict[str, str]:
    """As the live topic's, but deleted by time: copies by their own, which may be long past, the others by the broker's."""
    config = spec.config | {"cleanup.policy": "delete", "retention.ms": str(KEPT_MS)}
    config.pop("min.compaction.lag.ms", None)
    if holds_copies:
        config |= {"retention.ms": str(kept_ms), "message.timestamp.type": "CreateTime"}
        config |= {f"message.timestamp.{end}.max.ms": str(2**63 - 1) for end in ("before", "after")}
    return config


def leftovers(settings: Settings) -> dict[str, list[str]]:
    """The topics of every replay of this deployment that are there, by its id."""
    admin = AdminClient(settings.client())
    present = set(admin.list_topics(timeout=settings.request_timeout_ms / 1000).topics)
    return {each: [name for name in _topics(settings, each) if name in present] for each in ids_in(settings, present)}


def remove(settings: Settings, replay_id: str) -> list[str]:
    """Removes a replay's Redis keys, groups and topics, in this order: while anything is left, its topics tell of it. What
    was done, a line each; may be repeated.

    Raises `ReplayRefused` where the replay is still running.
    """
    if not is_id(replay_id):
        raise ReplayRefused(
            f"{replay_id!r} is no id of a replay; `onecount replay --leftovers` lists those that are there"
        )
    shadow = shadow_settings(settings, replay_id, settings.policy)
    done = [f"removed {_remove_keys(shadow, replay_id)} keys from Redis"]
    admin = AdminClient(settings.client())
    timeout_s = settings.request_timeout_ms / 1000
    groups = [
        group for group in (shadow.counter_group, shadow.aggregator_group) if _delete_group(admin, group, timeout_s)
    ]
    done.append(f"deleted {len(groups)} groups")
    present = admin.list_topics(timeout=timeout_s).topics
    doomed = [name for name in _topics(settings, replay_id) if name in present]
    if doomed:
        for future in admin.delete_topics(doomed, operation_timeout=timeout_s).values():
            future.result()
    done.append(f"deleted {len(doomed)} topics")
    return done


def _topics(settings: Settings, replay_id: str) -> list[str]:
    return [shadow_name(name, replay_id) for name in live_topics(settings)]


def _remove_keys(shadow: Settings, replay_id: str) -> int:
    """Waits for the sessions of workers that were killed; who is a member after that is running."""
    deadline_s = time.monotonic() + shadow.session_timeout_ms / 1000 + _LEAVE_S
    while True:
        try:
            return rebuild(shadow, ROLES)
        except StillRunning as error:
            if time.monotonic() > deadline_s:
                raise ReplayRefused(f"the replay {replay_id} is still running ({error})") from error
            time.sleep(0.5)


def _delete_group(admin: AdminClient, group: str, timeout_s: float) -> bool:
    try:
        admin.delete_consumer_groups([group], request_timeout=timeout_s)[group].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
            raise
        return False
    return True
