"""What the dashboards show, as data: each panel's question in PromQL, its unit, and what it means. grafana.py makes Grafana's JSON
of it.

`python -m app.observe.dashboards deploy/grafana/dashboards docs/runbook.md` writes the files; a test compares what is committed
with the code.
"""

import json
import sys
from pathlib import Path
from typing import Final

from app.observe.grafana import Dashboard, Panel, Variable, alarm_entries, rendered, rendered_runbook

_ON, _WHO = 'job=~"$job"', 'job=~"$job", stage=~"$stage", instance=~"$instance"'
_JOB = Variable("job", "Deployment", "onecount_ready")
_STAGE = Variable("stage", "Stage", "onecount_ready")
_INSTANCE = Variable("instance", "Worker", "onecount_ready")
_PLATFORM = Variable("platform", "Platform", "onecount_conversions_total")


def _rate(metric: str, labels: str, by: str = "") -> str:
    """How many a second, added up."""
    return f"{f'sum by ({by}) ' if by else 'sum'}(rate({metric}{{{labels}}}[$__rate_interval]))"


def _quantile(quantile: float, metric: str, labels: str, by: str) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', labels, f'le, {by}')})"


def _gained(metric: str, labels: str, by: str) -> str:
    """How many more in an hour."""
    return f"sum by ({by}) (increase({metric}{{{labels}}}[1h]))"


_EVENTS = "onecount_events_total"
_PLATFORMS = f'{_ON}, platform=~"$platform"'

OVERVIEW: Final = Dashboard(
    "overview",
    "onecount: overview",
    "Is counting right, and is it on time?",
    (_JOB,),
    (
        (
            "Is counting right?",
            (
                Panel(
                    "Alarms", "Alarms that are firing. Prometheus lists them at /alerts.",
                    (('count(ALERTS{alertname=~"Onecount.*", alertstate="firing"}) or vector(0)', ""),),
                    kind="stat", width=4, height=4, limits=(1,),
                ),
                Panel(
                    "Partitions without an owner", "Their events are counted by nobody. 0, but for seconds in a rebalance.",
                    ((f"max by (stage) (onecount_topic_partitions{{{_ON}}}) - sum by (stage) (onecount_owned_partitions{{{_ON}}})",
                      "{{stage}}"),),
                    kind="stat", width=6, height=4, limits=(1,), alarm="OnecountStandsStill",
                ),
                Panel(
                    "Partitions that are rebuilt", "State that Redis lost is folded again from the log; these publish late.",
                    ((f'sum by (stage) (onecount_owned_partitions{{{_ON}, mode="rebuild"}})', "{{stage}}"),),
                    kind="stat", width=6, height=4, limits=(1,), alarm="OnecountStateLost",
                ),
                Panel(
                    "Refused events", "Refused by judged events of the last minute, of the worst counter or gateway.",
                    ((f"max(onecount_dead_letter_ratio{{{_ON}}})", ""),),
                    "percentunit", "stat", 4, 4, (0.01, 0.05), "OnecountEventsRefused",
                ),
                Panel(
                    "Policy version", "How many workers judge by which version; more than one only for seconds.",
                    ((f'count_values("version", onecount_policy_version{{{_ON}}} > 0)', "version {{version}}"),),
                    kind="stat", width=4, height=4, alarm="OnecountWorkerUnfit",
                ),
                Panel(
                    "Events by outcome",
                    "What became of the events. A duplicate is no trouble, a jump of them is a producer that sends twice.",
                    ((_rate(_EVENTS, _ON, "outcome"), "{{outcome}}"),
                     (_rate("onecount_rejected_events_total", _ON), "rejected")),
                    "eps", stacked=True,
                ),
                Panel(
                    "Conversions by status",
                    "Rows published; a corrected conversion is published again. The exact counts are in conversions.counts.",
                    ((_rate("onecount_conversions_total", _ON, "status"), "{{status}}"),),
                    "cps", stacked=True,
                ),
            ),
        ),
        (
            "Is it on time?",
            (
                Panel(
                    "Latency, 99 %", "From a record's Kafka timestamp to the commit. Both stages added up is end to end.",
                    ((_quantile(0.99, "onecount_latency_seconds", _ON, "stage"), "{{stage}}"),),
                    "s", "stat", 6, 4, (2, 10), "OnecountFallsBehind",
                ),
                Panel(
                    "Waits for", "How long the oldest event that is not counted yet has waited.",
                    ((f"max by (stage) (onecount_lag_seconds{{{_ON}}})", "{{stage}}"),),
                    "s", "stat", 6, 4, (10, 60), "OnecountFallsBehind",
                ),
                Panel(
                    "Log used up", "The share of what Kafka still holds that is not counted yet. At 100 % events are deleted uncounted.",
                    ((f"max by (stage) (onecount_lag_retention_ratio{{{_ON}}})", "{{stage}}"),),
                    "percentunit", "stat", 6, 4, (0.2, 0.5), "OnecountFallsBehind", most=1,
                ),
                Panel(
                    "Watermark delay", "How old the newest counted event is, of the slowest partition; windows become final behind it.",
                    ((f"max by (stage) (onecount_watermark_delay_seconds{{{_ON}}})", "{{stage}}"),),
                    "s", "stat", 6, 4,
                ),
                Panel(
                    "Latency", "From a record's Kafka timestamp to the commit that published what it changed.",
                    ((_quantile(0.5, "onecount_latency_seconds", _ON, "stage"), "{{stage}} 50 %"),
                     (_quantile(0.99, "onecount_latency_seconds", _ON, "stage"), "{{stage}} 99 %")),
                    "s",
                ),
                Panel(
                    "Records behind", "Records in Kafka that are not counted yet.",
                    ((f"sum by (stage) (onecount_lag_records{{{_ON}}})", "{{stage}}"),),
                    "short", alarm="OnecountFallsBehind",
                ),
            ),
        ),
        (
            "What comes in over HTTP?",
            (
                Panel(
                    "Events of requests", "accepted: Kafka has it; rejected: told to the sender; unavailable: to be sent again.",
                    ((_rate("onecount_gateway_events_total", _ON, "outcome"), "{{outcome}}"),
                     (_rate("onecount_gateway_refused_requests_total", _ON, "status"), "requests refused: {{status}}")),
                    "eps", width=8, alarm="OnecountEventsNotTaken",
                ),
                Panel(
                    "Pixels", "lost: no room to wait for Kafka, or it did not take them within 5 minutes. Nobody sends a pixel again.",
                    ((_rate("onecount_gateway_pixels_total", _ON, "outcome"), "{{outcome}}"),
                     (_rate("onecount_gateway_lost_pixels_total", _ON), "lost later")),
                    "eps", width=8, alarm="OnecountEventsNotTaken",
                ),
                Panel(
                    "Rejected by reason", "Requests and pixels. A jump: a sender or a page's tag changed.",
                    ((_rate("onecount_gateway_rejected_events_total", _ON, "reason"), "{{reason}}"),),
                    "eps", width=8, alarm="OnecountEventsRefused",
                ),
                Panel(
                    "Kafka takes", "Until all in-sync replicas have a request's events: half of them, and 99 %.",
                    ((f"histogram_quantile(0.5, {_rate('onecount_gateway_kafka_seconds_bucket', _ON, 'le')})", "half"),
                     (f"histogram_quantile(0.99, {_rate('onecount_gateway_kafka_seconds_bucket', _ON, 'le')})", "99 %")),
                    "s", width=8,
                ),
                Panel(
                    "Waiting for Kafka", "At ONECOUNT_GATEWAY_MAX_WAITING (20,000) of a way no more is taken of it.",
                    ((f"sum by (way) (onecount_gateway_waiting_events{{{_ON}}})", "{{way}}"),),
                    width=8, alarm="OnecountEventsNotTaken",
                ),
                Panel(
                    "Rates not looked up, last hour", "Redis did not answer; rates then let everything in, or nothing.",
                    ((_gained("onecount_gateway_limiter_failures_total", _ON, "instance"), "{{instance}}"),),
                    width=8,
                ),
            ),
        ),
        (
            "Does anybody wait?",
            (
                Panel(
                    "Overdue leads", "They have waited for longer than the policy allows. Who: /leads/overdue of the desk.",
                    ((f"max by (action) (onecount_leads_overdue{{{_ON}}})", "{{action}}"),),
                    kind="stat", width=8, height=7, limits=(1,), alarm="OnecountLeadsOverdue",
                ),
                Panel(
                    "Leads", "By state and temperature. waiting: nobody has followed them up.",
                    ((f"max by (state, temperature) (onecount_leads{{{_ON}}})", "{{state}} {{temperature}}"),),
                    width=8, height=7, stacked=True,
                ),
                Panel(
                    "Rows of the desk", "Leads, overdue ones and rollups published; and follow-ups refused since its last start.",
                    ((_rate("onecount_desk_rows_total", _ON), "rows a second"),
                     (f"max by (topic, reason) (onecount_desk_refused_records{{{_ON}}})", "refused: {{reason}}")),
                    width=8, height=7,
                ),
            ),
        ),
    ),
)  # fmt: skip

COUNTING: Final = Dashboard(
    "counting",
    "onecount: counting by platform",
    "Events, conversions, duplicates, late events and corrections, by platform. The exact counts are in conversions.counts.",
    (_JOB, _PLATFORM),
    (
        (
            "Events",
            (
                Panel(
                    "Accepted events by platform", "Visits, adjustments and conversions that name no platform are under none.",
                    ((_rate(_EVENTS, f'{_PLATFORMS}, outcome="accepted"', "platform"), "{{platform}}"),),
                    "eps", stacked=True,
                ),
                Panel(
                    "Accepted events by type", "Views and clicks are what conversions are credited to.",
                    ((_rate(_EVENTS, f'{_PLATFORMS}, outcome="accepted"', "type"), "{{type}}"),),
                    "eps", stacked=True,
                ),
                Panel(
                    "Duplicates", "Repeats by all events, over 5 minutes. A jump: a producer or a platform sends twice.",
                    ((f'sum by (platform) (rate({_EVENTS}{{{_PLATFORMS}, outcome="duplicate"}}[5m])) / '
                      f"(sum by (platform) (rate({_EVENTS}{{{_PLATFORMS}}}[5m])) > 0)", "{{platform}}"),),
                    "percentunit", width=8,
                ),
                Panel(
                    "Late touches", "Touches older than a conversion of their user that was settled already. A jump: a producer is behind.",
                    ((_rate("onecount_late_events_total", _PLATFORMS, "platform"), "{{platform}}"),),
                    "eps", width=8,
                ),
                Panel(
                    "Events on a foreign partition", "They go through Kafka twice. Set the producers' partitioner to the policy's.",
                    ((_rate("onecount_rekeyed_events_total", _ON), "rekeyed"),),
                    "eps", width=8,
                ),
                Panel(
                    "Events that name only a click", "Conversions and adjustments without a user, and those that found theirs; where the policy has click_ids.",
                    ((_rate("onecount_userless_events_total", _ON), "came"),
                     (_rate("onecount_matched_events_total", _ON), "matched")),
                    "eps", width=12,
                ),
                Panel(
                    "Events that wait for their click", "Up to park_for after their time; then click_not_found. Growing: clicks come without click_id.",
                    ((f'sum(onecount_state_records{{{_ON}, table="waiting"}})', "waiting"),),
                    width=12,
                ),
            ),
        ),
        (
            "Conversions",
            (
                Panel(
                    "Conversions of the last hour", "An estimate: Prometheus interpolates, and corrected ones are published again.",
                    ((_gained("onecount_conversions_total", _PLATFORMS, "status"), "{{status}}"),),
                    kind="stat", width=24, height=4,
                ),
                Panel(
                    "Counted conversions by platform and method", "Each platform counts by its one method.",
                    ((_rate("onecount_conversions_total", f'{_PLATFORMS}, status="counted"', "platform, method"),
                      "{{platform}} ({{method}})"),),
                    "cps", stacked=True,
                ),
                Panel(
                    "Conversions without a touch",
                    "Unattributed ones by all that were judged for a platform, over 5 minutes. Many: touches are missing, or user ids differ.",
                    ((f'sum by (platform) (rate(onecount_conversions_total{{{_PLATFORMS}, status="unattributed"}}[5m])) / '
                      f"(sum by (platform) (rate(onecount_conversions_total{{{_PLATFORMS}}}[5m])) > 0)", "{{platform}}"),),
                    "percentunit", most=1,
                ),
                Panel(
                    "Time to convert", "Half of the conversions, and 9 of 10, come within this of their credited touch.",
                    ((_quantile(0.5, "onecount_time_to_convert_seconds", _PLATFORMS, "platform"), "{{platform}}, half"),
                     (_quantile(0.9, "onecount_time_to_convert_seconds", _PLATFORMS, "platform"), "{{platform}}, 9 of 10")),
                    "s",
                ),
                Panel(
                    "Corrections", "Published decisions that a later event changed: late touches, earlier duplicates, adjustments, further reports. "
                    "And the reports of one conversion that were merged, by who made them.",
                    ((_rate("onecount_corrections_total", _PLATFORMS, "platform"), "{{platform}}"),
                     (_rate("onecount_merged_reports_total", _ON, "reported_by"), "merged, of a {{reported_by}}")),
                    "cps",
                ),
                Panel(
                    "Count rows published", "Upserts of conversions.counts.",
                    ((_rate("onecount_count_rows_total", _ON), "rows"),),
                    "wps",
                ),
            ),
        ),
        (
            "Refused, or in no count",
            (
                Panel(
                    "Refused events by reason", "Each is on the dead-letter topic with its reason and its first 16 KiB.",
                    ((_rate("onecount_rejected_events_total", _ON, "reason"), "{{reason}}"),),
                    "eps", stacked=True, alarm="OnecountEventsRefused",
                ),
                Panel(
                    "Refused events by limit", "Dead letters by judged events of the last minute, by counter, and the limit of the alarm.",
                    ((f"onecount_dead_letter_ratio{{{_ON}}}", "{{instance}}"),
                     (f"max(onecount_dead_letter_ratio_limit{{{_ON}}})", "limit")),
                    "percentunit", width=6, alarm="OnecountEventsRefused",
                ),
                Panel(
                    "Noise and forgotten", "Conversions of unknown actions, or without a business outcome: add the action to the policy, or stop sending "
                    "it. And what still comes of persons who were forgotten.",
                    ((_rate("onecount_noise_conversions_total", _ON), "noise"),
                     (_rate("onecount_forgotten_events_total", _ON), "forgotten")),
                    "cps", width=6,
                ),
            ),
        ),
        (
            "Do the platforms agree?",
            (
                Panel(
                    "Claims beyond what is counted",
                    "Reported less counted, by counted, of each platform's last whole week, where it is furthest off. Why: onecount reconcile.",
                    ((f"max by (platform) (onecount_reported_difference_ratio{{{_PLATFORMS}}})", "{{platform}}"),),
                    "percentunit", width=16, alarm="OnecountClaimsDiffer",
                ),
                Panel(
                    "By tolerance", "How much of its tolerance a platform takes; above 100 % there is an alarm.",
                    ((f"max by (platform) (abs(onecount_reported_difference_ratio{{{_PLATFORMS}}})) / "
                      f"max by (platform) (onecount_reported_tolerance_ratio{{{_PLATFORMS}}} > 0)", "{{platform}}"),),
                    "percentunit", "stat", 8, 8, (0.8, 1.0), "OnecountClaimsDiffer",
                ),
            ),
        ),
    ),
)  # fmt: skip

WORKERS: Final = Dashboard(
    "workers",
    "onecount: workers and Kafka",
    "Who works, what takes the time, and what Kafka says.",
    (_JOB, _STAGE, _INSTANCE),
    (
        (
            "Who works",
            (
                Panel(
                    "Workers", "Who they are. Several versions at once only in a rolling upgrade.",
                    ((f"onecount_worker_info{{{_WHO}}}", ""),),
                    kind="table", width=8, height=7, alarm="OnecountWorkerUnfit",
                ),
                Panel(
                    "Reached and ready", "up: Prometheus reaches it; ready: it owns partitions. A worker too many is never ready.",
                    ((f"sum(up{{{_WHO}}})", "up"), (f"sum(onecount_ready{{{_WHO}}})", "ready")),
                    kind="stat", width=4, height=7, alarm="OnecountStandsStill",
                ),
                Panel(
                    "Partitions by owner", "How many each worker has, by how they are folded. Replay and rebuild publish nothing.",
                    ((f"sum by (instance, mode) (onecount_owned_partitions{{{_WHO}}}) > 0", "{{instance}} {{mode}}"),),
                    width=12, height=7, stacked=True, alarm="OnecountStandsStill",
                ),
                Panel(
                    "Records behind by worker", "One that grows alone: its partitions have more events, or its host is slow.",
                    ((f"onecount_lag_records{{{_WHO}}}", "{{instance}}"),),
                    width=8, alarm="OnecountFallsBehind",
                ),
                Panel(
                    "CPU by worker", "In cores; a worker uses hardly more than one.",
                    ((f"rate(process_cpu_seconds_total{{{_WHO}}}[$__rate_interval])", "{{instance}}"),),
                    "short", width=8,
                ),
                Panel(
                    "Memory by worker", "Filters and indexes of its partitions' state, and the batch at hand.",
                    ((f"process_resident_memory_bytes{{{_WHO}}}", "{{instance}}"),),
                    "bytes", width=8,
                ),
            ),
        ),
        (
            "What takes the time",
            (
                Panel(
                    "Share of the loop by step",
                    "read waits for records: the less of it, the busier. publish: Kafka; watch and write: Redis; fold: counting.",
                    ((f"sum by (step) (rate(onecount_batch_seconds_sum{{{_WHO}}}[$__rate_interval])) / ignoring (step) group_left () "
                      f"(sum(rate(onecount_batch_seconds_sum{{{_WHO}}}[$__rate_interval])) > 0)", "{{step}}"),),
                    "percentunit", stacked=True, most=1,
                ),
                Panel(
                    "Slow batches by step", "99 % of the batches take less.",
                    ((_quantile(0.99, "onecount_batch_seconds", _WHO, "step"), "{{step}}"),),
                    "s",
                ),
            ),
        ),
        (
            "What goes wrong",
            (
                Panel(
                    "Transactions by result",
                    "aborted: counted anew; ambiguous: the commit was not answered, and the next session finds out what became of it.",
                    ((_rate("onecount_transactions_total", _WHO, "result"), "{{result}}"),),
                    "ops", width=8,
                ),
                Panel(
                    "Sessions that ended, last hour", "By cause. The log line `session ended, beginning anew` says why.",
                    ((_gained("onecount_session_ends_total", _WHO, "cause"), "{{cause}}"),),
                    width=8, stacked=True, alarm="OnecountBeginsAnew",
                ),
                Panel(
                    "Partitions opened, last hour", "live: nothing was in flight; replay: one batch; rebuild: Redis lost its state.",
                    ((_gained("onecount_reopenings_total", _WHO, "cause"), "{{cause}}"),),
                    width=8, stacked=True, alarm="OnecountStateLost",
                ),
                Panel(
                    "What Kafka's client logs, last hour", "Quiet when healthy. The lines are in the worker's log as `librdkafka`.",
                    ((_gained("onecount_kafka_log_lines_total", _WHO, "client, level"), "{{client}} {{level}}"),),
                    stacked=True,
                ),
                Panel(
                    "Running for", "Since each worker's process started.",
                    ((f"time() - process_start_time_seconds{{{_WHO}}}", "{{instance}}"),),
                    "s", alarm="OnecountWorkerUnfit",
                ),
            ),
        ),
    ),
)  # fmt: skip

REDIS: Final = Dashboard(
    "redis",
    "onecount: Redis",
    "How full it is, what it holds, and how fast it answers, as the workers see it.",
    (_JOB,),
    (
        (
            "How full",
            (
                Panel(
                    "Fullest server", "Memory in use by maxmemory. When it is full Redis refuses writes, and counting waits.",
                    ((f"max(onecount_redis_memory_ratio{{{_ON}}})", ""),),
                    "percentunit", "stat", 6, 4, (0.7, 0.85), "OnecountRedisFills", most=1,
                ),
                Panel(
                    "Memory of all servers", "Others' keys in the same Redis are in it.",
                    ((f"max(onecount_redis_memory_bytes{{{_ON}}})", ""),),
                    "bytes", "stat", 6, 4,
                ),
                Panel(
                    "Bytes per event", "Memory by the events that are remembered; it grows until the longest window is full.",
                    ((f'max(onecount_redis_memory_bytes{{{_ON}}}) / (sum(onecount_state_records{{{_ON}, table="ids"}}) > 0)', ""),),
                    "bytes", "stat", 6, 4,
                ),
                Panel(
                    "Answers in", "One INFO, asked every 10 s, of the slowest server and worker.",
                    ((f"max(onecount_redis_latency_seconds{{{_ON}}})", ""),),
                    "s", "stat", 6, 4, (0.02, 0.1),
                ),
                Panel(
                    "Memory and limit", "Of all servers. A limit of 0: there is none, and the kernel decides.",
                    ((f"max(onecount_redis_memory_bytes{{{_ON}}})", "in use"),
                     (f"max(onecount_redis_memory_limit_bytes{{{_ON}}})", "maxmemory")),
                    "bytes", alarm="OnecountRedisFills",
                ),
                Panel(
                    "Records held", "ids for dedup_window, touches for their lookback window and the correction horizon, click ids for known_for.",
                    ((f"sum by (table) (onecount_state_records{{{_ON}}})", "{{table}}"),),
                ),
            ),
        ),
        (
            "How fast",
            (
                Panel(
                    "Round trip", "99 % of the batches' first round trip (WATCH and the ledger) takes less; and one INFO.",
                    ((_quantile(0.99, "onecount_batch_seconds", f'{_ON}, step="watch"', "stage"), "{{stage}} watch"),
                     (f"max by (stage) (onecount_redis_latency_seconds{{{_ON}}})", "{{stage}} INFO")),
                    "s",
                ),
                Panel(
                    "Writes", "99 % of the batches' MULTI/EXEC take less.",
                    ((_quantile(0.99, "onecount_batch_seconds", f'{_ON}, step="write"', "stage"), "{{stage}}"),),
                    "s",
                ),
                Panel(
                    "Sessions that Redis ended, last hour", "No answer, or an error. The worker waits and resumes by itself.",
                    ((_gained("onecount_session_ends_total", f'{_ON}, cause=~"redis|state"', "cause"), "{{cause}}"),),
                    width=12, alarm="OnecountBeginsAnew",
                ),
                Panel(
                    "Partitions rebuilt, last hour", "State that Redis lost or that was damaged.",
                    ((_gained("onecount_reopenings_total", f'{_ON}, cause="rebuild"', "stage"), "{{stage}}"),),
                    width=12, alarm="OnecountStateLost",
                ),
            ),
        ),
    ),
)  # fmt: skip

DASHBOARDS: Final = (OVERVIEW, COUNTING, WORKERS, REDIS)


def documents(runbook: str) -> dict[str, str]:
    """Every dashboard's text by its file name, the alarms' entries of the runbook among them."""
    entries = alarm_entries(runbook)
    found = {dashboard.name: rendered(dashboard, entries) for dashboard in DASHBOARDS}
    found["runbook"] = rendered_runbook(entries)
    return {f"{name}.json": json.dumps(content, indent=2) + "\n" for name, content in found.items()}


if __name__ == "__main__":
    for name, text in documents(Path(sys.argv[2]).read_text()).items():
        (Path(sys.argv[1]) / name).write_text(text)
