"""Every metric, once: what it is, what it means, and what to do when it looks wrong. docs/metrics.md and the
dashboards rest on it.
"""

from typing import Final, NamedTuple


class Metric(NamedTuple):
    """One metric family. `labels` are few-valued by design: no user, campaign or offset. `remedy` is what an operator
    does.
    """

    name: str
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    help: str
    meaning: str
    remedy: str


CATALOGUE: Final = (
    Metric(
        "onecount_events_total",
        "counter",
        ("platform", "type", "outcome"),
        "Events by platform, type and outcome.",
        "outcome accepted or duplicate; platform is empty for visits, adjustments and conversions that name none",
        "a jump of duplicates: a producer sends twice; no accepted ones: see onecount_rejected_total and the lag",
    ),
    Metric(
        "onecount_rejected_total",
        "counter",
        ("reason",),
        "Events refused, by reason; each is on the dead-letter topic.",
        "the event broke the contract or its time is out of bounds; nothing was counted for it",
        "read the dead letters of that reason and mend their producer",
    ),
    Metric(
        "onecount_dead_letter_ratio",
        "gauge",
        (),
        "Dead letters by judged events, over the last minute.",
        "0 to 1; 0 while fewer than 20 events came in that minute",
        "above onecount_dead_letter_ratio_limit: onecount_rejected_total names the reasons, the dead letters the producer",
    ),
    Metric(
        "onecount_dead_letter_ratio_limit",
        "gauge",
        (),
        "The ratio above which there is an alarm.",
        "the setting ONECOUNT_DEAD_LETTER_RATIO_LIMIT",
        "set it to what is normal here, and a little more",
    ),
    Metric(
        "onecount_noise_total",
        "counter",
        (),
        "Conversions of unknown actions, or of actions without a business outcome.",
        "they are in no count",
        "add the action to the policy with its outcome, or stop sending it",
    ),
    Metric(
        "onecount_conversions_total",
        "counter",
        ("platform", "status"),
        "Conversion rows published, by platform and status.",
        "counts publications, so a corrected conversion counts again",
        "many unattributed: touches are missing or their ids differ",
    ),
    Metric(
        "onecount_late_events_total",
        "counter",
        (),
        "Touches older than a conversion of their user that was settled already.",
        "their users are settled again",
        "a steady share is normal; a jump means a producer is behind",
    ),
    Metric(
        "onecount_corrections_total",
        "counter",
        (),
        "Published decisions that a later event changed.",
        "each left a row with a higher revision and deltas",
        "many: events come late, or adjustments are many",
    ),
    Metric(
        "onecount_rekeyed_total",
        "counter",
        (),
        "Events found on a partition that does not own their user.",
        "they are sent to their owner",
        "set the producers' partitioner to the policy's",
    ),
    Metric(
        "onecount_rows_total",
        "counter",
        (),
        "Count rows upserted by the aggregator.",
        "one per changed row and batch",
        "none",
    ),
    Metric(
        "onecount_lag_records",
        "gauge",
        (),
        "Records not consumed yet, over the owned partitions.",
        "how far behind the worker is",
        "growing: add workers, or see which step takes the time",
    ),
    Metric(
        "onecount_watermark_delay_seconds",
        "gauge",
        (),
        "Wall clock minus the slowest owned stream time.",
        "how old the newest counted event is",
        "growing with no lag: the producers stopped",
    ),
    Metric(
        "onecount_batch_seconds",
        "histogram",
        ("step",),
        "Time of each step of the loop, per batch.",
        "read, watch, fold, publish, write",
        "publish: the brokers are slow; watch or write: Redis is slow",
    ),
    Metric(
        "onecount_transactions_total",
        "counter",
        ("result",),
        "Sessions and batches: committed or ended in doubt.",
        "committed counts batches, doubt counts sessions that began anew",
        "doubt that repeats: read the log line",
    ),
    Metric(
        "onecount_reopenings_total",
        "counter",
        ("cause",),
        "Partitions opened, by how: live, replay, rebuild.",
        "replay: a batch was published and not yet in Redis; rebuild: Redis lost its state",
        "rebuild: find out why Redis lost its data",
    ),
    Metric(
        "onecount_policy_version",
        "gauge",
        (),
        "The newest policy version known.",
        "the same on all workers",
        "restart one that differs",
    ),
    Metric(
        "onecount_ready",
        "gauge",
        (),
        "1 while partitions are owned and open.",
        "0 during outages and rebalances",
        "see the log line",
    ),
)
