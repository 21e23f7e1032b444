"""The names of a replay: all topics, groups and Redis keys that its workers touch, none of which is a live one."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from app.replay.refusal import ReplayRefused
from app.settings import Settings

NAMESPACE_MAX: Final = 64  # characters that Settings allows
_ID: Final = r"\d{8}-\d{6}"


def new_id(now_s: float) -> str:
    """The id of a replay that begins at this time (epoch seconds): the time itself, UTC."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%d-%H%M%S")


def is_id(text: str) -> bool:
    """Whether a text is the id of a replay. Nothing else may become part of a name that is deleted."""
    return re.fullmatch(_ID, text) is not None


def live_topics(settings: Settings) -> tuple[str, ...]:
    """Every topic of a deployment."""
    return (
        *settings.input_topics(),
        settings.dlq_topic,
        settings.deltas_topic,
        settings.clicks_topic,
        settings.policy_topic,
        settings.attributed_topic,
        settings.counts_topic,
        settings.journeys_topic,
        settings.models_topic,
    )


def shadow_name(name: str, replay_id: str) -> str:
    """The replay's name in place of a live topic's or group's."""
    return f"{name}.replay-{replay_id}"


def shadow_settings(settings: Settings, replay_id: str, policy: Path) -> Settings:
    """The settings that the replay's workers run by: the live ones with names of their own, and one raw topic.

    Raises `ReplayRefused` where the names would be too long.
    """

    def name(live: str) -> str:
        return shadow_name(live, replay_id)

    namespace = "-".join(part for part in (settings.namespace, f"replay-{replay_id}") if part)
    if len(namespace) > NAMESPACE_MAX:
        raise ReplayRefused(
            f"ONECOUNT_NAMESPACE is too long for a replay: with what it adds there are {len(namespace)} "
            f"characters, {NAMESPACE_MAX} are allowed"
        )
    return settings.model_copy(
        update={
            "events_topics": (name(settings.events_topics[0]),),
            "dlq_topic": name(settings.dlq_topic),
            "rekeyed_topic": name(settings.rekeyed_topic),
            "deltas_topic": name(settings.deltas_topic),
            "clicks_topic": name(settings.clicks_topic),
            "policy_topic": name(settings.policy_topic),
            "attributed_topic": name(settings.attributed_topic),
            "counts_topic": name(settings.counts_topic),
            "journeys_topic": name(settings.journeys_topic),
            "models_topic": name(settings.models_topic),
            "counter_group": name(settings.counter_group),
            "aggregator_group": name(settings.aggregator_group),
            "matcher_group": name(settings.matcher_group),
            "namespace": namespace,
            "policy": policy,
            "worker_id": f"replay-{replay_id}",
            "static_membership": False,  # a static member would stay in its group for a while after it has left
            "metrics_port": None,
        }
    )


def environment_of(shadow: Settings) -> dict[str, str]:
    """What differs from the live workers' environment, as ONECOUNT_* variables; all else a process inherits."""
    names = (
        "dlq_topic",
        "rekeyed_topic",
        "deltas_topic",
        "clicks_topic",
        "policy_topic",
        "attributed_topic",
        "counts_topic",
        "journeys_topic",
        "models_topic",
        "counter_group",
        "aggregator_group",
        "matcher_group",
        "namespace",
        "policy",
        "worker_id",
    )
    found = {name: str(getattr(shadow, name)) for name in names}
    found |= {"events_topics": ",".join(shadow.events_topics), "static_membership": "false"}
    return {f"ONECOUNT_{name.upper()}": value for name, value in found.items()}


def ids_in(settings: Settings, topics: set[str]) -> list[str]:
    """The replays of this deployment that some of these topics belong to, oldest first."""
    names = "|".join(re.escape(name) for name in live_topics(settings))
    pattern = re.compile(rf"(?:{names})\.replay-({_ID})")
    return sorted({found[1] for name in topics if (found := pattern.fullmatch(name))})
