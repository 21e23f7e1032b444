"""What is worth waking somebody for: the dead-letter ratio, and the alarms of Prometheus."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
import yaml

from app.engine.fold import Fold
from app.engine.session import Lag
from app.observe.catalogue import CATALOGUE, FOREIGN
from app.observe.dead_letters import SPAN_S, DeadLetterRatio
from app.observe.grafana import alarm_entries, runbook_path
from app.observe.metrics import Metrics
from app.settings import Settings
from tests.promql import metric_names
from tests.unit.test_deploy import COMPOSE, PROMETHEUS, ROOT

FOLDER = ROOT / "deploy/prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class QuietSession:
    """As much of a session as the metrics look at."""

    def __init__(self) -> None:
        self.owned: dict[int, object] = {}
        self.stage = SimpleNamespace(slowest_stream_ms=lambda: 0, held=dict)
        self.partitions = 4

    def lag(self) -> Lag:
        return Lag(0, None, 0.0)


def test_the_ratio_is_of_the_last_minute() -> None:
    clock = Clock()
    letters = DeadLetterRatio(0.05, clock)
    for _ in range(30):
        letters.add(judged=100, refused=20)
        clock.now_s += 1
    assert letters.ratio() == pytest.approx(0.2)
    for _ in range(45):
        letters.add(judged=100, refused=0)
        clock.now_s += 1
    assert 0 < letters.ratio() < 0.2
    clock.now_s += SPAN_S
    assert letters.ratio() == 0.0
    assert (letters.judged, letters.refused, len(letters.batches)) == (0, 0, 0)


def test_many_batches_a_second_are_held_as_one() -> None:
    clock = Clock()
    letters = DeadLetterRatio(0.05, clock)
    for _ in range(100_000):
        letters.add(judged=1, refused=0)
        clock.now_s += 0.001
    assert len(letters.batches) <= SPAN_S + 40  # what is past is dropped when it is looked at
    assert letters.ratio() == 0.0
    assert len(letters.batches) <= SPAN_S + 1


def test_a_single_broken_event_of_a_few_raises_no_alarm() -> None:
    letters = DeadLetterRatio(0.05, Clock())
    letters.add(judged=3, refused=1)
    assert not letters.changed()


def test_the_alarm_is_raised_once_above_the_limit_and_ends_well_below_it() -> None:
    clock = Clock()
    letters = DeadLetterRatio(0.05, clock)
    letters.add(judged=1_000, refused=50)
    assert not letters.changed(), "at the limit is not above it"
    letters.add(judged=0, refused=1)
    assert letters.changed()
    assert letters.raised
    assert not letters.changed(), "told once"
    letters.add(judged=100, refused=0)
    assert letters.ratio() < letters.limit
    assert not letters.changed(), "just below the limit it would come and go"
    letters.add(judged=1_000, refused=0)
    assert letters.changed()
    assert not letters.raised


def test_the_workers_metrics_and_log_tell_of_it() -> None:
    metrics = Metrics("counter", "w-0", dead_letter_ratio_limit=0.05)
    fold = Fold()
    fold.counted.update({("accepted", "meta", "view"): 85, ("duplicate", "meta", "view"): 5, ("rejected", "empty"): 10})
    with structlog.testing.capture_logs() as lines:
        metrics.batch(fold, 0.0)
        metrics.owned(QuietSession())
        metrics.looked_at = 0
        metrics.owned(QuietSession())
    assert [(line["event"], line["log_level"], line["ratio"]) for line in lines] == [
        ("too many dead letters", "warning", 0.1)
    ]
    assert metrics.registry.get_sample_value("onecount_dead_letter_ratio") == 0.1
    assert metrics.registry.get_sample_value("onecount_dead_letter_ratio_limit") == 0.05


@pytest.mark.parametrize("limit", ["-0.1", "1.5", "much"])
def test_a_limit_that_is_no_ratio_is_refused(limit: str) -> None:
    with pytest.raises(ValueError, match="dead_letter_ratio_limit"):
        Settings(dead_letter_ratio_limit=limit)


def test_an_alarm_asks_only_for_metrics_of_the_catalogue_and_says_what_to_do() -> None:
    entries = alarm_entries((ROOT / "docs/runbook.md").read_text())
    series = {entry.name for entry in CATALOGUE} | FOREIGN.keys()
    for rule in RULES:
        assert metric_names(rule["expr"]) - series == set(), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, rule["alert"]
        assert rule["annotations"]["runbook_url"].endswith(runbook_path(rule["alert"], entries)), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
    assert list(entries) == list(dict.fromkeys(rule["alert"] for rule in RULES))
    assert len(entries) <= 10, "more than an operator keeps apart"
    told = {(rule["alert"], rule["labels"]["severity"]) for rule in RULES}
    assert len(told) == len(RULES), "of two rules of one name nobody could tell which one fires"


def test_an_alarms_runbook_opens_in_the_grafana_of_compose() -> None:
    (port,) = COMPOSE["services"]["grafana"]["ports"]
    for rule in RULES:
        assert rule["annotations"]["runbook_url"].startswith(f"http://localhost:{port.rpartition(':')[2]}/d/")


def test_prometheus_reads_the_alarms_that_are_mounted_beside_its_configuration() -> None:
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    assert {job["job_name"] for job in PROMETHEUS["scrape_configs"]} == {"onecount"}  # which `up` is asked for


COUNTER = {"job": "onecount", "stage": "counter"}
ONE, TWO = (COUNTER | {"instance": f"counter-{number}:9464"} for number in (1, 2))
DESK = {"job": "onecount", "stage": "desk", "instance": "desk-1:9464"}
MATCHER = {"job": "onecount", "stage": "matcher", "instance": "matcher-1:9464"}
AGGREGATOR = {"job": "onecount", "stage": "aggregator", "instance": "aggregator-1:9464"}


def series(name: str, labels: dict[str, str]) -> str:
    """A series as PromQL writes it."""
    return f"{name}{{{', '.join(f'{label}={value!r}' for label, value in labels.items())}}}".replace("'", '"')


GATEWAY = {"job": "onecount", "stage": "gateway", "instance": "gateway-1:9464"}
ZERO = "0x80"


def not_taken(**values: str) -> list["Given"]:
    """What a gateway counts of events that it did not take; 0 where nothing is said."""
    names = {
        "unavailable": ("onecount_gateway_events_total", {"door": "/v1/events", "outcome": "unavailable"}),
        "refused": ("onecount_gateway_refused_requests_total", {"status": "503"}),
        "no_room": ("onecount_gateway_pixels_total", {"outcome": "lost"}),
        "lost": ("onecount_gateway_lost_pixels_total", {}),
    }
    return [(name, GATEWAY | labels, values.get(each, ZERO)) for each, (name, labels) in names.items()]


# By alarm and severity: series a quarter of a minute apart, in promtool's notation; when it must be silent; when it must fire, with
# which labels and summary.
Given = tuple[str, dict[str, str], str]
CASES: dict[tuple[str, str], list[tuple[list[Given], tuple[str, ...], tuple[str, dict[str, str], str]]]] = {
    ("OnecountWorkerUnfit", "critical"): [
        ([("up", ONE, "1x4 0x40"), ("up", TWO, "1x44")], ("1m", "1m45s"), ("4m", ONE, "counter-1:9464 does not answer")),
    ],
    ("OnecountWorkerUnfit", "warning"): [
        (
            [
                ("onecount_policy_version", ONE, "1x20 2x60"),
                ("onecount_policy_version", TWO, "1x22 2x18 1x60"),  # half a minute later; then it is an old one
                ("onecount_policy_version", AGGREGATOR, "0x4 1x18 2x60"),  # has begun to start
            ],
            ("1m", "5m15s", "9m", "11m"),
            ("13m", TWO, "counter-2:9464 judges by version 1 of the policy, which is an old one"),
        ),
    ],
    ("OnecountStandsStill", "critical"): [
        (
            [("onecount_ready", ONE, "1x4 0x40"), ("onecount_ready", TWO, "1x12 0x40"), ("onecount_ready", AGGREGATOR, "1x60")],
            ("2m30s", "4m45s"),
            ("6m", COUNTER, "No counter is ready"),
        ),
        (  # a gateway owns nothing
            [("onecount_ready", GATEWAY, "1x20 0x40"), ("onecount_ready", ONE, "1x60")],
            ("5m", "7m"),
            ("8m", {"job": "onecount", "stage": "gateway"}, "No gateway is ready"),
        ),
        (
            [
                ("onecount_ready", ONE, "1x80"),
                ("onecount_topic_partitions", ONE, "4x60"),
                ("onecount_topic_partitions", TWO, "4x60"),
                ("onecount_owned_partitions", ONE | {"mode": "live"}, "2x20 1x60"),
                ("onecount_owned_partitions", ONE | {"mode": "rebuild"}, "0x60"),
                ("onecount_owned_partitions", TWO | {"mode": "live"}, "2x8 0x3 2x60"),  # a rebalance on the way
            ],
            ("2m30s", "4m45s", "7m"),
            ("8m", COUNTER, "1 partitions have no counter"),
        ),
    ],
    ("OnecountStandsStill", "warning"): [
        (
            [
                ("onecount_userless_events_total", ONE, "0x20 0+1x60"),
                ("onecount_userless_events_total", TWO, "0x80"),
                ("onecount_owned_partitions", MATCHER | {"mode": "live"}, "4x28 _x60"),  # is taken away
                ("onecount_owned_partitions", ONE | {"mode": "live"}, "4x80"),
            ],
            ("4m", "8m"),
            ("16m", {"job": "onecount"}, "Conversions that name only a click id come, and no matcher runs"),
        ),
    ],
    ("OnecountEventsRefused", "warning"): [
        (
            [
                ("onecount_dead_letter_ratio", ONE, "0x8 0.2x8 0.01x20"),
                ("onecount_dead_letter_ratio", TWO, "0.04x40"),
                ("onecount_dead_letter_ratio_limit", ONE, "0.05x40"),
                ("onecount_dead_letter_ratio_limit", TWO, "0.05x40"),
            ],
            ("1m", "6m"),
            ("3m", ONE, "counter-1:9464 refused 20% of the last minute's events"),
        ),
    ],
    ("OnecountEventsNotTaken", "critical"): [
        (
            not_taken(unavailable="0x20 0+2x40", lost="0x60"),
            ("5m", "7m30s", "18m30s"),
            ("10m", GATEWAY, "gateway-1:9464 has turned events away for minutes"),
        ),
        (not_taken(no_room="0x20 0+1x40"), ("5m", "7m30s"), ("10m", GATEWAY, "gateway-1:9464 has turned events away for minutes")),
        (  # an election of a leader, and a minute of trouble: senders sent it again
            not_taken(refused="0x8 9x20 9+1x4 13x8 13+3x40"),
            ("3m", "9m", "11m"),
            ("16m", GATEWAY, "gateway-1:9464 has turned events away for minutes"),
        ),
    ],
    ("OnecountFallsBehind", "warning"): [
        (
            [
                ("onecount_lag_seconds", ONE, "10x20 70+15x60"),
                ("onecount_lag_records", ONE, "500x20 1000+500x60"),
                ("onecount_lag_seconds", TWO, "600x20 595-5x60"),  # catches up
                ("onecount_lag_records", TWO, "9000x20 8000-100x60"),
            ],
            ("5m", "9m"),
            ("11m", ONE, "counter-1:9464 is 6m 55s behind, and it grows"),
        ),
    ],
    ("OnecountFallsBehind", "critical"): [
        (
            [("onecount_lag_retention_ratio", ONE, "0.1x20 0.6x60"), ("onecount_lag_retention_ratio", TWO, "0.5x80")],
            ("5m", "9m"),
            ("11m", ONE, "counter-1:9464 has not counted 60% of what Kafka still holds"),
        ),
    ],
    ("OnecountStateLost", "warning"): [
        (
            [
                ("onecount_reopenings_total", ONE | {"cause": "rebuild"}, "0x20 1x100"),
                ("onecount_reopenings_total", TWO | {"cause": "rebuild"}, "0x120"),
                ("onecount_reopenings_total", TWO | {"cause": "live"}, "0x20 4x100"),
                ("onecount_owned_partitions", TWO | {"mode": "rebuild"}, "0x120"),
            ],
            ("4m", "17m"),
            ("6m", ONE, "counter-1:9464 rebuilds state that Redis lost"),
        ),
        (  # it had begun before Prometheus saw the worker
            [
                ("onecount_reopenings_total", ONE | {"cause": "rebuild"}, "2x120"),
                ("onecount_owned_partitions", ONE | {"mode": "rebuild"}, "2x20 0x100"),
            ],
            ("17m",),
            ("6m", ONE, "counter-1:9464 rebuilds state that Redis lost"),
        ),
    ],
    ("OnecountBeginsAnew", "warning"): [
        (
            [
                ("onecount_session_ends_total", ONE | {"cause": "kafka"}, "0x20 0+1x8 8x60"),
                ("onecount_session_ends_total", ONE | {"cause": "redis"}, "0x90"),
                ("onecount_session_ends_total", TWO | {"cause": "redis"}, "0x20 3x70"),
            ],
            ("5m", "14m"),
            ("8m", ONE, "counter-1:9464 began 8 new sessions in 5 minutes"),
        ),
    ],
    ("OnecountRedisFills", "warning"): [
        (
            [("onecount_redis_memory_ratio", ONE, "0.8x20 0.9x60"), ("onecount_redis_memory_ratio", AGGREGATOR, "0.8x20 0.9x60")],
            ("5m", "9m"),
            ("11m", {"job": "onecount"}, "A Redis server is 90% full"),
        ),
    ],
    ("OnecountLeadsOverdue", "warning"): [
        (
            [
                ("onecount_leads_overdue", DESK | {"action": "demo_booked"}, "0x20 3x12 0x60"),
                ("onecount_leads_overdue", DESK | {"action": "demo_booked", "instance": "desk-2:9464"}, "0x21 3x12 0x60"),
                ("onecount_leads_overdue", DESK | {"action": "newsletter"}, "0x20 1x2 0x60"),  # followed up at once
            ],
            ("5m", "6m", "9m"),
            ("7m", {"job": "onecount", "action": "demo_booked"}, "3 leads of demo_booked have waited for too long"),
        ),
    ],
    ("OnecountClaimsDiffer", "warning"): [
        (
            [
                ("onecount_reported_difference_ratio", DESK | {"platform": "meta"}, "0.02x20 -0.25x300 0.02x100"),
                ("onecount_reported_tolerance_ratio", DESK | {"platform": "meta"}, "0.1x420"),
                ("onecount_reported_difference_ratio", DESK | {"platform": "meta", "instance": "desk-2:9464"}, "0.02x420"),
                ("onecount_reported_tolerance_ratio", DESK | {"platform": "meta", "instance": "desk-2:9464"}, "0.1x420"),
                ("onecount_reported_difference_ratio", DESK | {"platform": "tiktok"}, "0.05x420"),
                ("onecount_reported_tolerance_ratio", DESK | {"platform": "tiktok"}, "0.05x420"),
            ],
            ("4m", "60m", "90m"),
            ("70m", {"job": "onecount", "platform": "meta"}, "meta's claims are 25% off what is counted"),
        ),
    ],
}  # fmt: skip


def promtool(*arguments: object) -> None:
    """Runs it, and shows what it says if it finds anything wrong."""
    program = shutil.which("promtool")
    assert program is not None, "promtool comes with Prometheus; run: make test-machine"
    ran = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_prometheus_takes_the_configuration_and_the_alarms() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")


def test_every_alarm_has_a_case() -> None:
    assert list(CASES) == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


@pytest.mark.parametrize(("alarm", "severity"), CASES)
def test_an_alarm_fires_when_it_should_and_only_then(alarm: str, severity: str, tmp_path: Path) -> None:
    (rule,) = [rule for rule in RULES if (rule["alert"], rule["labels"]["severity"]) == (alarm, severity)]
    tests = []
    for given, silent, (minute, labels, summary) in CASES[alarm, severity]:
        fired = {
            "exp_labels": labels | rule["labels"],
            "exp_annotations": rule["annotations"] | {"summary": summary},
        }
        checks = [{"eval_time": each, "alertname": alarm, "exp_alerts": []} for each in silent]
        checks.append({"eval_time": minute, "alertname": alarm, "exp_alerts": [fired]})
        tests.append(
            {
                "interval": "15s",
                "input_series": [{"series": series(name, each), "values": values} for name, each, values in given],
                "alert_rule_test": checks,
            }
        )
    cases = tmp_path / "cases.yml"
    cases.write_text(
        yaml.safe_dump({"rule_files": [str(FOLDER / "alerts.yml")], "evaluation_interval": "15s", "tests": tests})
    )
    promtool("test", "rules", cases)
