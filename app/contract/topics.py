"""The topics that onecount owns: partitions, cleanup and retention, in one place for `topics create` and `topics
check`.
"""

from typing import Final, NamedTuple

DAY_MS = 86_400_000
# A copy of an upsert topic that stands still for this long still reads every deletion when it goes on.
DELETIONS_KEPT_MS: Final = 14 * DAY_MS
_TIMESTAMP_BOUNDS = ("message.timestamp.before.max.ms", "message.timestamp.after.max.ms")
# What workers write gets the broker's time: a broker refuses records from an hour ahead of its clock, and a worker
# whose clock is fast would write nothing at all.
_WRITTEN: Final = {"message.timestamp.type": "LogAppendTime"}
_UPSERTS: Final = {
    "cleanup.policy": "compact",
    "min.compaction.lag.ms": "3600000",
    "delete.retention.ms": str(DELETIONS_KEPT_MS),
} | _WRITTEN
# Where more is as good as what stands in a spec; -1 is without end.
AT_LEAST: Final = ("retention.ms", "delete.retention.ms", "min.compaction.lag.ms")
# Where less is as good.
AT_MOST: Final = ("max.compaction.lag.ms",)
# What a later row or a deletion has overwritten is cleaned away within this time, where rows are of persons.
OVERWRITTEN_KEPT_MS: Final = 7 * DAY_MS
_OF_PERSONS: Final = _UPSERTS | {"max.compaction.lag.ms": str(OVERWRITTEN_KEPT_MS)}


class TopicSpec(NamedTuple):
    """How one topic must look. `partitions` None means: as the raw topics, when it is made.

    `follows`: the topic from whose partition p its partition p is written, so that it needs as many.
    """

    name: str
    partitions: int | None
    config: dict[str, str]
    follows: str | None = None


def topic_specs(
    events_topics: tuple[str, ...],
    dlq: str,
    handled: str,
    rekeyed: str,
    deltas: str,
    policy: str,
    attributed: str,
    counts: str,
    journeys: tuple[str, ...],
    rebuild_ms: int,
    clicks: tuple[str, int] | None = None,
) -> list[TopicSpec]:
    """Every topic, the raw ones first. `journeys`: the topics of journeys, none where the policy follows none. `rebuild_ms`:
    how far back (ms) a rebuild of lost state must read the raw topics. `clicks`: the topic that tells whose click is whose, and
    how far back a rebuild reads that; None where the policy has no click_ids.
    """
    log = _kept(rebuild_ms + DAY_MS) | {"message.timestamp.type": "CreateTime"}
    # A copy keeps the time of the raw record, which the raw topic's broker has let in: no broker may refuse it here.
    copies = log | {name: str(2**63 - 1) for name in _TIMESTAMP_BOUNDS}
    written = _WRITTEN
    upserts = _UPSERTS
    raw = events_topics[0]
    return [
        *(TopicSpec(name, None, log) for name in events_topics),
        TopicSpec(rekeyed, None, copies, raw),
        TopicSpec(dlq, None, {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS)} | written, raw),
        # Kept for ever, as a raw topic may be: what was sent again lies there, and `reset` writes its first letter anew.
        TopicSpec(handled, 1, {"cleanup.policy": "compact"} | written),
        # As long as the raw topics: a rebuild folds them in the order that the deltas tell.
        TopicSpec(deltas, None, {"cleanup.policy": "delete", "retention.ms": log["retention.ms"]} | written),
        *(
            TopicSpec(name, None, _kept(kept_ms + DAY_MS) | written, raw)
            for name, kept_ms in ([clicks] if clicks else ())
        ),
        TopicSpec(attributed, None, _OF_PERSONS, raw),
        TopicSpec(counts, None, upserts, deltas),
        *(TopicSpec(name, None, _OF_PERSONS, raw) for name in journeys),
        TopicSpec(policy, 1, {"cleanup.policy": "compact"} | written),
    ]


def _kept(retention_ms: int) -> dict[str, str]:
    """A log that is kept for so long, and no shorter: a broker's own limit would make it too short for a rebuild."""
    return {"cleanup.policy": "delete", "retention.ms": str(retention_ms), "retention.bytes": "-1"}


def desk_specs(inputs: tuple[str, ...], upserts: tuple[str, ...]) -> list[TopicSpec]:
    """The desk's topics: what others tell it, kept for ever, since its rows are made of all of it; and the upserts, each of
    one partition, since one desk writes all of its own, and of those of others the last one of a key must be plain, however
    their producers choose a partition.
    """
    told = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"} | _WRITTEN
    return [
        *(TopicSpec(name, None, told) for name in inputs),
        *(TopicSpec(name, 1, _OF_PERSONS) for name in upserts),  # leads are, and orders may be
    ]
