"""The stages, and what each of them reads."""

from typing import Final

from app.engine.aggregator import AggregatorStage
from app.engine.clients import Clients
from app.engine.fold import Stage
from app.engine.session import Reading
from app.engine.state import StateRefused
from app.formats.opening import open_formats
from app.formats.schemas import RegistryRefused
from app.policy.model import Policy
from app.settings import Settings

ROLES: Final = ("counter", "aggregator", "matcher")


def make_stage(role: str, settings: Settings, policy: Policy, clients: Clients) -> tuple[Stage, Reading]:
    """The stage of a role, and its group and topics. Raises `StateRefused` where the topics are missing, or what
    reads the policy's formats, and for a matcher that the policy does not ask for.
    """
    if role == "aggregator":
        # a record holds up to 2,000 changes of rows, each of which takes ten times its bytes in memory
        return AggregatorStage(settings, policy), Reading(
            settings.aggregator_group, (settings.deltas_topic,), {settings.counts_topic: 0}, share=8, slice_records=20
        )
    if role == "matcher":
        if policy.bounds.click_ids is None:
            raise StateRefused(
                "the policy has no click_ids, so there is nothing to match; stop this matcher, or add them"
            )
        from app.engine.matcher import MatcherStage

        users = partition_counts(settings, clients, settings.events_topics[:1])[settings.events_topics[0]]
        return MatcherStage(settings, policy, users), Reading(settings.matcher_group, (settings.clicks_topic,), {})
    from app.columns.compiled import prepare  # Numba and the compiled loops take a while to import, and memory

    prepare("app.engine.counter")
    from app.engine.counter import CounterStage

    own = (settings.deltas_topic, *((settings.clicks_topic,) if policy.bounds.click_ids else ()))
    counts = partition_counts(settings, clients, (*settings.input_topics(), *own))
    try:
        formats = open_formats(policy.formats(), settings.registry, settings.request_timeout_ms / 1000)
    except RegistryRefused as error:
        raise StateRefused(str(error)) from error
    stage = CounterStage(
        settings,
        policy,
        counts[settings.events_topics[0]],
        counts[settings.deltas_topic],
        formats,
        counts.get(settings.clicks_topic, 0),
    )
    published = {settings.attributed_topic: 0}
    journeys = policy.bounds.journeys
    if journeys is not None:
        published[settings.journeys_topic] = journeys.customer_window_ms if journeys.orders else 0
    return stage, Reading(settings.counter_group, settings.input_topics(), published, settings.deltas_topic)


def partition_counts(settings: Settings, clients: Clients, needed: tuple[str, ...]) -> dict[str, int]:
    """How many partitions each topic has. Raises `StateRefused` where one of those that are needed is missing."""
    reader = clients.reader()
    try:
        topics = reader.list_topics(timeout=settings.request_timeout_ms / 1000).topics
    finally:
        reader.close()
    missing = [name for name in needed if name not in topics]
    if missing:
        raise StateRefused(
            f"no such topic: {', '.join(missing)}; run `onecount topics create`, or give the right to describe it"
        )
    return {name: len(topic.partitions) for name, topic in topics.items()}
