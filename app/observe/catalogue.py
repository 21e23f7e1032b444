"""Every metric, once: what it is, what it means, and what to do when it looks wrong. docs/metrics.md is made from it, the
dashboards and alarms are held against it.
"""

from itertools import chain
from typing import Final

from app.observe.catalogue_clicks import CLICKS
from app.observe.catalogue_gateway import GATEWAY
from app.observe.metric import AGGREGATORS, ALL, COUNTERS, DESKS, GATEWAYS, MATCHERS, STEP_BUCKETS_S, WORKERS, Metric

# A batch is closed after 0.2 s by default; an hour is a standstill.
LATENCY_BUCKETS_S: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)

# From an impulse to the windows that platforms offer. Few, since there is a histogram a platform and action.
CONVERT_BUCKETS_S: Final = (600.0, 3600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0)

SESSION_CAUSES: Final = ("kafka", "redis", "ownership", "topics", "policy", "state", "registry")
RESULTS: Final = ("committed", "aborted", "ambiguous")
STEPS: Final = ("read", "watch", "fold", "publish", "write")
MODES: Final = ("live", "replay", "rebuild")
KAFKA_CLIENTS: Final = ("consumer", "producer", "reader", "admin")
LEVELS: Final = ("error", "warning", "info")
TABLES: Final = {"counter": ("ids", "touches"), "matcher": ("click_ids", "waiting")}  # what a stage holds, by its role


GROUPS: Final[dict[str, tuple[Metric, ...]]] = {
    "What is counted": (
        Metric(
            "onecount_events_total",
            "counter",
            ("platform", "type", "outcome"),
            "Events by platform, type and outcome.",
            "`outcome`: `accepted` or `duplicate`; `platform` is empty for visits, adjustments, forgets and conversions that name none. What is "
            "folded again in a replay or rebuild is counted again",
            "a jump of duplicates: a producer sends twice; no accepted ones: see the rejected ones and the lag",
            COUNTERS,
        ),
        Metric(
            "onecount_rejected_events_total",
            "counter",
            ("reason",),
            "Events refused, by reason; each is on the dead-letter topic.",
            "the event broke the contract or its time is out of bounds; nothing was counted for it",
            "`onecount dlq list --reason REASON` and `dlq show` tell which events; mend their producer",
            (*COUNTERS, *MATCHERS),
        ),
        Metric(
            "onecount_dead_letter_ratio",
            "gauge",
            (),
            "Refused by judged events, over the last minute.",
            "0 to 1; 0 while fewer than 20 events came in that minute. A gateway's: what it rejected, which is told to the sender and is no letter",
            "above its limit: `onecount_rejected_events_total` names the reasons, `onecount dlq list` the sources; a gateway's: "
            "`onecount_gateway_rejected_events_total`",
            (*COUNTERS, *MATCHERS, *GATEWAYS),
        ),
        Metric(
            "onecount_dead_letter_ratio_limit",
            "gauge",
            (),
            "The ratio above which there is an alarm.",
            "the setting `ONECOUNT_DEAD_LETTER_RATIO_LIMIT`",
            "set it to what is normal here, and a little more",
            (*COUNTERS, *MATCHERS, *GATEWAYS),
        ),
        Metric(
            "onecount_noise_conversions_total",
            "counter",
            (),
            "Conversions of unknown actions, or of actions without a business outcome.",
            "they are in no count",
            "add the action to the policy with its outcome, or stop sending it",
            COUNTERS,
        ),
        Metric(
            "onecount_merged_reports_total",
            "counter",
            ("reported_by",),
            "Further reports of a conversion that were merged into it, by who made them.",
            "they came within the policy's `merge_reports` of the first one and said something that it did not; in `onecount_events_total` they are duplicates",
            "none, though both the pages and the servers report: their `event_id`, `user_id` or `conversion_name` differ, and such a conversion counts twice",
            "counter",
        ),
        Metric(
            "onecount_forgotten_events_total",
            "counter",
            (),
            "Conversions and adjustments of forgotten persons that came after the forget, of before it.",
            "ignored: in no row and no count",
            "many for long: a source still sends what somebody asked to be forgotten; have it stop there too",
            COUNTERS,
        ),
        Metric(
            "onecount_conversions_total",
            "counter",
            ("platform", "method", "status"),
            "Conversion rows published, by platform, its counting method, and status.",
            "counts publications, so a corrected conversion counts again; the exact counts are in `conversions.counts`",
            "many `unattributed`: touches are missing, or their user ids differ",
            COUNTERS,
        ),
        Metric(
            "onecount_time_to_convert_seconds",
            "histogram",
            ("platform", "action"),
            "From the credited touch to the conversion, when a conversion is counted first.",
            "corrections are left out; the exact times are `time_to_convert_ms` in `conversions.attributed`",
            "much near a platform's window: a longer window would count more; near zero: clicks that are made by the purchase itself",
            COUNTERS,
            CONVERT_BUCKETS_S,
        ),
        Metric(
            "onecount_late_events_total",
            "counter",
            ("platform",),
            "Touches older than a conversion of their user that was settled already.",
            "their users are settled again",
            "a steady share is normal; a jump means that a producer is behind",
            COUNTERS,
        ),
        Metric(
            "onecount_corrections_total",
            "counter",
            ("platform",),
            "Published decisions that a later event changed.",
            "each left a row with a higher revision, and deltas",
            "many: events come late, or adjustments are many",
            COUNTERS,
        ),
        Metric(
            "onecount_rekeyed_events_total",
            "counter",
            (),
            "Events found on a partition that does not own their user.",
            "they are sent to their owner, and go through Kafka twice",
            "set the producers' partitioner to the policy's",
            COUNTERS,
        ),
        *CLICKS,
        Metric(
            "onecount_count_rows_total",
            "counter",
            (),
            "Rows of `conversions.counts` upserted.",
            "one for each row that changed in a batch, and one when its window becomes final",
            "none while the counters publish: see the aggregator's lag and its log",
            AGGREGATORS,
        ),
    ),
    "Whether it is on time": (
        Metric(
            "onecount_latency_seconds",
            "histogram",
            (),
            "From a record's Kafka timestamp to the commit that published what it changed.",
            "counter: from the producer to `conversions.attributed` and the deltas; aggregator: from there to `conversions.counts`. "
            "Both added up is end to end. Records that are only replayed are left out",
            "`onecount_batch_seconds` says which step is slow; imported history, and what waited for its click, has old timestamps and looks slow",
            WORKERS,
            LATENCY_BUCKETS_S,
        ),
        Metric(
            "onecount_lag_records",
            "gauge",
            (),
            "Records of the owned partitions that are not counted yet.",
            "how far behind the worker is",
            "growing: add workers, or see which step takes the time",
        ),
        Metric(
            "onecount_lag_seconds",
            "gauge",
            (),
            "How long the oldest record that is not counted yet has waited.",
            "by its Kafka timestamp; 0 while nothing waits",
            "as for the records",
        ),
        Metric(
            "onecount_lag_retention_ratio",
            "gauge",
            (),
            "The share of what the log still holds that is not counted yet, of the worst partition.",
            "0 to 1; at 1 retention deletes events before they are counted; 0 while it has deleted nothing",
            "above a half: count faster, or raise the retention of the raw topics now",
        ),
        Metric(
            "onecount_watermark_delay_seconds",
            "gauge",
            (),
            "Wall clock minus the slowest owned stream time.",
            "how old the newest counted event is; windows become final behind it",
            "growing with no lag: the producers stopped",
        ),
        Metric(
            "onecount_batch_seconds",
            "histogram",
            ("step",),
            "Time of each step of the loop, per batch.",
            "`read` waits for records; `watch`: one round trip to Redis; `fold` counts; `publish`: the Kafka transaction; "
            "`write`: the Redis transaction",
            "`publish`: the brokers are slow; `watch` or `write`: Redis is slow; `fold`: more workers",
            WORKERS,
            STEP_BUCKETS_S,
        ),
    ),
    "The worker": (
        Metric(
            "onecount_ready",
            "gauge",
            (),
            "1 while partitions are owned and open; of a gateway while events would be taken.",
            "0 during outages and rebalances, for a worker too many, and for a desk that stands by",
            "see the log line",
            ALL,
        ),
        Metric(
            "onecount_owned_partitions",
            "gauge",
            ("mode",),
            "Partitions that the worker owns, by how their records are folded.",
            "`live`: published; `replay` and `rebuild`: state that Redis lacks is folded again, nothing is published",
            "`rebuild`: find out why Redis lost its data",
        ),
        Metric(
            "onecount_topic_partitions",
            "gauge",
            (),
            "Partitions of the worker's input, as of its last session.",
            "the workers of a stage together own so many",
            "fewer owned for minutes: some partition is counted by nobody",
        ),
        Metric(
            "onecount_transactions_total",
            "counter",
            ("result",),
            "Kafka transactions by result.",
            "`aborted`: given up before the commit, the batch is counted anew; `ambiguous`: the commit failed or was not answered in "
            "time, and the next session reads from the group what became of it",
            "ambiguous ones that repeat: the brokers are slow or go; the log line says which error",
        ),
        Metric(
            "onecount_session_ends_total",
            "counter",
            ("cause",),
            "Sessions that ended before the worker was told to stop; a new one begins each time.",
            "`cause`: `kafka`, `redis` (no answer, or an error), `ownership` (taken over after a pause), `topics`, `policy` (changed), "
            "`state` (damaged), `registry` (the schema registry did not answer)",
            "the log line `session ended, beginning anew` says why",
        ),
        Metric(
            "onecount_reopenings_total",
            "counter",
            ("cause",),
            "Partitions opened, by what was found.",
            "`live`: nothing was in flight; `replay`: a batch was published and not yet in Redis; `rebuild`: Redis lost its state",
            "`rebuild`: find out why Redis lost its data",
        ),
        Metric(
            "onecount_policy_version",
            "gauge",
            (),
            "The newest policy version known.",
            "the same on all; 0 before it is read first",
            "restart one that differs for longer than 10 s",
            ALL,
        ),
        Metric(
            "onecount_worker_info",
            "gauge",
            ("role", "worker", "version"),
            "1; its labels tell who the worker is.",
            "one series a worker",
            "several versions at once, but for a rolling upgrade: deploy the newer one",
            ALL,
        ),
    ),
    "Kafka": (
        Metric(
            "onecount_kafka_log_lines_total",
            "counter",
            ("client", "level"),
            "Lines that librdkafka logged, by client and level.",
            "quiet when healthy; each is in the log as `librdkafka`, with its text",
            "errors: brokers go, or refuse; the lines say which",
            ALL,
        ),
    ),
    "The desk": (
        Metric(
            "onecount_leads",
            "gauge",
            ("state", "temperature"),
            "Leads by state and temperature.",
            "rows of `leads`; every desk shows them, so take the largest and not the sum",
            "many `waiting`: nobody follows up, or the CRM does not tell",
            DESKS,
        ),
        Metric(
            "onecount_leads_overdue",
            "gauge",
            ("action",),
            "Leads that wait for longer than the policy allows, by action.",
            "rows of `leads.overdue`; every desk shows them, so take the largest and not the sum",
            "`/leads/overdue` of the desk says who waits for what; see the runbook",
            DESKS,
        ),
        Metric(
            "onecount_reported_difference_ratio",
            "gauge",
            ("platform",),
            "What a platform reports less what is counted, by what is counted, of the last week that it has reported in full.",
            "of the advertiser where it is furthest off; 0.1: a tenth more is reported; 0 where no week is reported in full. "
            "Every desk shows them, so take the largest and not the sum",
            "beyond the tolerance: `onecount reconcile` says of which week and campaign, and why; see the runbook",
            DESKS,
        ),
        Metric(
            "onecount_reported_tolerance_ratio",
            "gauge",
            ("platform",),
            "How far it may be off.",
            "the policy's `desk.tolerances`",
            "set it to what is normal between the platform's rules and yours, and a little more",
            DESKS,
        ),
        Metric(
            "onecount_desk_rows_total",
            "counter",
            (),
            "Rows that the desk published.",
            "leads, overdue ones, rollups and the rest; one for each that changed",
            "none while the counts change: see whether a desk is ready, and its log",
            DESKS,
        ),
        Metric(
            "onecount_desk_refused_records",
            "gauge",
            ("topic", "reason"),
            "Records that the desk refused, since it last read its topics from their start.",
            "follow-ups and other input of others that broke the contract; nothing else waits for them",
            "the topic with `.dlq` behind its name says which, and why; mend who sends them and send them again",
            DESKS,
        ),
    ),
    "The gateway": GATEWAY,
    "Redis": (
        Metric(
            "onecount_redis_latency_seconds",
            "gauge",
            (),
            "One INFO, asked every 10 s; of a cluster the slowest master's.",
            "the network and Redis's queue, with hardly any work; `onecount_batch_seconds` has the work",
            "above some milliseconds: `redis-cli --latency`, `SLOWLOG GET`, a fork, swap",
        ),
        Metric(
            "onecount_redis_memory_bytes",
            "gauge",
            (),
            "Memory in use, of all masters.",
            "`used_memory`; others' keys in the same Redis are in it",
            "docs/architecture.md has the formula of what it should be",
        ),
        Metric(
            "onecount_redis_memory_limit_bytes",
            "gauge",
            (),
            "`maxmemory` of all masters; 0 where one has none.",
            "where it is reached Redis refuses writes, and counting waits",
            "set one: without it the kernel may kill Redis",
        ),
        Metric(
            "onecount_redis_memory_ratio",
            "gauge",
            (),
            "Memory in use by `maxmemory`, of the fullest master.",
            "0 to 1; 0 where there is no limit",
            "above 0.85: raise `maxmemory`, add masters, or shorten the policy's windows",
        ),
        Metric(
            "onecount_state_records",
            "gauge",
            ("table",),
            "Records in the owned partitions' tables in Redis: ids of accepted events, and touches; a matcher's click ids, and events that wait.",
            "Redis's memory by all workers' ids is the bytes per event; all expire by stream time. `waiting`: conversions and adjustments "
            "that name a click id and no user, and whose click has not come yet",
            "growing without an end: stream time stands still, see the watermark delay; `waiting` alone: the clicks come without click_id, "
            "or under another advertiser_id or platform",
            (*COUNTERS, *MATCHERS),
        ),
    ),
}

CATALOGUE: Final = tuple(chain.from_iterable(GROUPS.values()))
# What prometheus-client tells of the process, and Prometheus of its targets and alarms; dashboards and alarms may ask for them.
FOREIGN: Final = {
    "process_cpu_seconds_total": "CPU time of the process.",
    "process_resident_memory_bytes": "Memory of the process.",
    "process_start_time_seconds": "When the process started, as epoch seconds.",
    "up": "1 while Prometheus reaches the worker.",
    "ALERTS": "Alarms that are pending or firing.",
}
