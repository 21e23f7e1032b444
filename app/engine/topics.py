"""Creates onecount's topics, and compares what is there with what they must look like."""

from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from app.contract.topics import TopicSpec, topic_specs
from app.policy.model import Policy
from app.settings import Settings


def specs_of(settings: Settings, policy: Policy) -> list[TopicSpec]:
    """The topics of these settings; the raw ones must reach back as far as a rebuild reads."""
    return topic_specs(
        settings.events_topics,
        settings.dlq_topic,
        settings.rekeyed_topic,
        settings.deltas_topic,
        settings.policy_topic,
        settings.attributed_topic,
        settings.counts_topic,
        policy.conversion_retention_ms(),
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
    for spec in specs_of(settings, policy):
        if spec.name in present:
            continue
        config = dict(spec.config)
        if retention_ms is not None and spec.name in settings.input_topics():
            config["retention.ms"] = str(retention_ms)
        wanted.append(NewTopic(spec.name, spec.partitions or partitions, settings.replication, config=config))
    if wanted:
        for future in admin.create_topics(wanted, operation_timeout=settings.request_timeout_ms / 1000).values():
            future.result()
    return [topic.topic for topic in wanted]


def check_topics(settings: Settings, policy: Policy) -> list[str]:
    """What differs from how the topics must be, a line each; empty where all is well."""
    admin = AdminClient(settings.client())
    timeout_s = settings.request_timeout_ms / 1000
    present = admin.list_topics(timeout=timeout_s).topics
    found = []
    counts = {name: len(present[name].partitions) for name in settings.input_topics() if name in present}
    if len(set(counts.values())) > 1:
        found.append(f"the input topics differ in their partition counts: {counts}; a user would have several owners")
    for spec in specs_of(settings, policy):
        if spec.name not in present:
            found.append(f"{spec.name} is missing: run `onecount topics create`")
            continue
        resource = ConfigResource(ResourceType.TOPIC, spec.name)
        config = admin.describe_configs([resource])[resource].result(timeout_s)
        for name, value in spec.config.items():
            actual = config[name].value
            if name == "retention.ms" and (int(actual) == -1 or int(actual) >= int(value)):
                continue
            if actual != value:
                found.append(
                    f"{spec.name}: {name} is {actual}, it must be {'at least ' if name == 'retention.ms' else ''}{value}"
                )
    return found
