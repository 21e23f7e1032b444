"""Creates onecount's topics, and compares what is there with what they must look like."""

from collections.abc import Mapping

from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType, TopicMetadata

from app.contract.topics import AT_LEAST, AT_MOST, TopicSpec, desk_specs, topic_specs
from app.policy.model import Policy
from app.settings import Settings


def specs_of(settings: Settings, policy: Policy) -> list[TopicSpec]:
    """The topics of counting; the raw ones must reach back as far as a rebuild reads."""
    return topic_specs(
        settings.events_topics,
        settings.dlq_topic,
        settings.handled_topic,
        settings.rekeyed_topic,
        settings.deltas_topic,
        settings.policy_topic,
        settings.attributed_topic,
        settings.counts_topic,
        (settings.journeys_topic, settings.models_topic) if policy.bounds.journeys else (),
        policy.conversion_retention_ms(),
        (settings.clicks_topic, policy.click_log_ms()) if policy.bounds.click_ids else None,
    )


def all_specs_of(settings: Settings, policy: Policy) -> list[TopicSpec]:
    """As `specs_of`, and the desk's topics, where the policy has `journeys`, which leads come from."""
    if policy.bounds.journeys is None:
        return specs_of(settings, policy)
    return specs_of(settings, policy) + desk_specs(
        settings.desk_inputs, (*settings.money_inputs, *settings.desk_outputs)
    )


def create_topics(settings: Settings, policy: Policy, retention_ms: int | None = None) -> list[str]:
    """Creates the topics that are missing, with as many partitions as the raw ones have; their names.

    `retention_ms` overrides the raw topics' retention (-1: for ever).
    """
    admin = AdminClient(settings.client())
    present = admin.list_topics(timeout=settings.request_timeout_ms / 1000).topics
    # the raw topics may have been given more partitions since the settings were made
    partitions = next(
        (len(present[name].partitions) for name in settings.events_topics if name in present), settings.partitions
    )
    wanted = []
    for spec in all_specs_of(settings, policy):
        if spec.name in present:
            continue
        config = dict(spec.config)
        if retention_ms is not None and spec.name in (
            *settings.input_topics(),
            settings.deltas_topic,
            settings.clicks_topic,
        ):
            config["retention.ms"] = str(retention_ms)
        wanted.append(NewTopic(spec.name, spec.partitions or partitions, settings.replication, config=config))
    if wanted:
        for future in admin.create_topics(wanted, operation_timeout=settings.request_timeout_ms / 1000).values():
            future.result()
    return [topic.topic for topic in wanted]


def check_topics(settings: Settings, policy: Policy) -> list[str]:
    """What differs from how the topics must be, a line each with what to do; empty where all is well."""
    admin = AdminClient(settings.client())
    timeout_s = settings.request_timeout_ms / 1000
    present = admin.list_topics(timeout=timeout_s).topics
    found = []
    counts = {name: len(present[name].partitions) for name in settings.input_topics() if name in present}
    if len(set(counts.values())) > 1:
        found.append(f"the input topics differ in their partition counts: {counts}; a user would have several owners")
    specs = all_specs_of(settings, policy)
    found += [f"{spec.name} is missing: run `onecount topics create`" for spec in specs if spec.name not in present]
    there = [spec for spec in specs if spec.name in present]
    resources = {spec.name: ConfigResource(ResourceType.TOPIC, spec.name) for spec in there}
    configs = admin.describe_configs(list(resources.values())) if there else {}
    for spec in there:
        found += _partition_findings(spec, present, settings)
        actual = configs[resources[spec.name]].result(timeout_s)
        found += _config_findings(spec, {name: actual[name].value for name in spec.config})
    return found


def _partition_findings(spec: TopicSpec, present: Mapping[str, TopicMetadata], settings: Settings) -> list[str]:
    """Whether a topic has the partitions that are written to, each with enough replicas."""
    partitions = present[spec.name].partitions
    found = []
    followed = present.get(spec.follows or "")
    # the input topics are compared for equality above
    if followed is not None and spec.name not in settings.input_topics() and len(partitions) < len(followed.partitions):
        found.append(
            f"{spec.name} has {len(partitions)} partitions, it needs as many as {spec.follows}: "
            f"kafka-topics --alter --topic {spec.name} --partitions {len(followed.partitions)}"
        )
    if spec.partitions is not None and len(partitions) != spec.partitions:
        found.append(f"{spec.name} has {len(partitions)} partitions, it must have {spec.partitions}: make it anew")
    replicas = min((len(partition.replicas) for partition in partitions.values()), default=0)
    if replicas < settings.replication:
        found.append(
            f"{spec.name} has a partition with {replicas} replicas, ONECOUNT_REPLICATION is {settings.replication}: "
            "add some with kafka-reassign-partitions"
        )
    return found


def _config_findings(spec: TopicSpec, actual: Mapping[str, str | None]) -> list[str]:
    """Whether each setting is what the spec says, or more (less) where that is as good."""
    found = []
    for name, value in spec.config.items():
        bound = "at least " if name in AT_LEAST else "at most " if name in AT_MOST else ""
        if actual[name] == value or _is_better(name, int(actual[name] or 0) if bound else 0, value):
            continue
        found.append(
            f"{spec.name}: {name} is {actual[name]}, it must be {bound}{value}: kafka-configs --alter "
            f"--entity-type topics --entity-name {spec.name} --add-config {name}={value}"
        )
    return found


def _is_better(name: str, actual: int, value: str) -> bool:
    """Whether a bounded setting keeps its bound; -1 is without end."""
    if name in AT_LEAST:
        return actual == -1 or actual >= int(value)
    return name in AT_MOST and 0 < actual <= int(value)
