"""The topics that the counts rest on: how many partitions each has, and which one of its name it is.

Users belong to partitions and offsets to one log: a topic that was given more partitions, or deleted and created again, is
another one, though it has the same name. So what the counts were made with is recorded beside the policy, by each role for
its own topics, and whatever differs is refused.
"""

from contextlib import closing
from typing import Final

from confluent_kafka import TopicPartition

from app.engine.clients import Clients, Topic
from app.engine.policy_topic import policy_values
from app.engine.rebuild import read_partition
from app.engine.stages import ROLES
from app.engine.state import StateRefused
from app.policy import record
from app.policy.load import load_policy
from app.policy.model import Policy
from app.settings import Settings

RESET: Final = "stop all workers and run `onecount reset` (it counts anew what the raw topics hold)"


def topics_of(role: str, settings: Settings, policy: Policy) -> tuple[str, ...]:
    """What a role reads and publishes. Of the dead letters nothing is counted: their topic may be made anew."""
    if role == "aggregator":
        return settings.deltas_topic, settings.counts_topic
    clicks = (settings.clicks_topic,) if policy.bounds.click_ids else ()
    if role == "matcher":
        return (*clicks, settings.rekeyed_topic) if clicks else ()
    journeys = (settings.journeys_topic, settings.models_topic) if policy.bounds.journeys else ()
    return *settings.input_topics(), settings.deltas_topic, settings.attributed_topic, *journeys, *clicks


def refuse_changed_topics(settings: Settings, role: str, clients: Clients) -> tuple[dict[str, Topic], dict[str, Topic]]:
    """Raises `StateRefused` where a topic of the role is missing or is not the one that the counts were made with, or
    where what was recorded is gone. Returns the topics, and those of them that are not recorded yet.
    """
    policy, _ = load_policy(settings.policy)
    names = topics_of(role, settings, policy)
    present = clients.topics(names)
    if not clients.topics([settings.policy_topic]):
        _refuse_missing(settings.policy_topic, bool(_counted(settings, role, present, clients)))
    values = policy_values(settings, clients)
    if not values:
        traces = _counted(settings, role, present, clients)
        values = policy_values(settings, clients)  # another worker may have begun since
        if traces and not values:
            raise StateRefused(
                f"{settings.policy_topic} holds no policy, but {traces}: it was emptied, or deleted and created again; "
                f"restore it from a copy, or {RESET}"
            )
    recorded = record.topics(values)
    for name in recorded.keys() - {name for each in ROLES for name in topics_of(each, settings, policy)}:
        raise StateRefused(
            f"the counts were made with the topic {name}, which is in no setting now: put it back, or {RESET}"
        )
    for name in names:
        if name not in present:
            _refuse_missing(name, name in recorded)
        if name in recorded:
            # elsewhere a row's partition is given
            owns = name in (*settings.input_topics(), settings.deltas_topic, settings.clicks_topic)
            _refuse_another(name, Topic(*recorded[name]), present[name], owns)
    return present, {name: topic for name, topic in present.items() if name not in recorded}


def _refuse_missing(name: str, was_used: bool) -> None:
    if was_used:
        raise StateRefused(f"the topic {name} is gone, and with it what it held; {RESET}")
    raise StateRefused(f"no such topic: {name}; run `onecount topics create`, or give the right to describe it")


def _refuse_another(name: str, recorded: Topic, found: Topic, owns: bool) -> None:
    if found.id != recorded.id:
        raise StateRefused(f"the topic {name} was deleted and created again: what it held is gone; {RESET}")
    if owns and found.partitions != recorded.partitions:
        raise StateRefused(
            f"the topic {name} has {found.partitions} partitions, the counts were made with {recorded.partitions}: "
            f"users and rows would change their owners; {RESET}"
        )


def _counted(settings: Settings, role: str, present: dict[str, Topic], clients: Clients) -> str:
    """A trace of an earlier life of this role, in words; empty where there is none."""
    group = settings.group_of(role)
    leading, outputs = {
        "counter": (settings.events_topics[0], (settings.deltas_topic, settings.attributed_topic)),
        "aggregator": (settings.deltas_topic, (settings.counts_topic,)),
        "matcher": (settings.clicks_topic, ()),
    }[role]
    if leading in present and _has_committed(settings, clients, group, leading, present[leading].partitions):
        return f"the group {group} has committed offsets"
    for topic in outputs:
        for partition in range(present[topic].partitions if topic in present else 0):
            if next(iter(read_partition(clients, topic, partition, 0, 1)), None) is not None:
                return f"{topic} holds records"
    return ""


def _has_committed(settings: Settings, clients: Clients, group: str, topic: str, partitions: int) -> bool:
    places = [TopicPartition(topic, partition) for partition in range(partitions)]
    with closing(clients.consumer(group, "look")) as consumer:
        return any(place.offset >= 0 for place in consumer.committed(places, settings.request_timeout_ms / 1000))
