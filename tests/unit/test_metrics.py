"""What a worker tells of itself: metrics that are there from the start, health while others are down, and log lines."""

import json
import logging
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app.engine.fold import Fold
from app.engine.ledger import Mode
from app.engine.session import Lag
from app.observe.catalogue import CATALOGUE, FOREIGN, SESSION_CAUSES
from app.observe.document import metrics_document
from app.observe.latencies import Latencies
from app.observe.logs import REPEAT_S, KafkaLog
from app.observe.metrics import LIVE_S, Metrics, live_s
from app.policy.load import load_policy
from app.settings import Settings
from tests.integration.deployment import POLICY
from tests.unit.test_alarms import Clock
from tests.unit.test_deploy import ROOT

UNITS = ("_seconds", "_bytes", "_records", "_ratio", "_ratio_limit", "_limit_bytes", "_partitions", "_events")
NO_UNIT = {
    "onecount_ready",
    "onecount_policy_version",
    "onecount_worker_info",
    "onecount_leads",
    "onecount_leads_overdue",
}
CALM = Lag(0, None, 0.0)


class Session:
    """As much of a session as the metrics look at."""

    def __init__(self, modes: dict[int, Mode], lag: Lag = CALM, stream_ms: int = 0) -> None:
        self.owned = {
            partition: SimpleNamespace(mode=mode, opened_as=mode, discarded=None) for partition, mode in modes.items()
        }
        self.partitions = 4
        self.lag = lambda: lag
        self.stage = SimpleNamespace(slowest_stream_ms=lambda: stream_ms, held=lambda: {"ids": 7, "touches": 3})


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("counter", "w-0")
    made.policy(load_policy(POLICY)[0])
    return made


@pytest.fixture
def port(metrics: Metrics) -> int:
    return metrics.serve(0)


def answer(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of one of a worker's pages."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


# --- The catalogue


def test_names_say_what_and_in_which_unit() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    for entry in CATALOGUE:
        assert re.fullmatch(r"onecount_[a-z]+(_[a-z]+)*", entry.name)
        assert (entry.kind == "counter") == entry.name.endswith("_total"), entry.name
        assert entry.kind == "counter" or entry.name.endswith(UNITS) or entry.name in NO_UNIT, entry.name
        assert (entry.kind == "histogram") == bool(entry.buckets), entry.name
        assert entry.help.endswith(".")
        assert entry.meaning
        assert entry.remedy


def test_the_committed_page_is_that_of_the_catalogue() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == metrics_document(), (
        "run: python -m app.observe.document docs/metrics.md"
    )


@pytest.mark.parametrize("role", ["counter", "aggregator", "matcher"])
def test_every_series_is_there_from_the_start_with_zero(role: str) -> None:
    metrics = Metrics(role, "w-0")
    metrics.policy(load_policy(POLICY)[0])
    samples = [
        sample
        for found in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in found.samples
        if sample.name.startswith("onecount_")
    ]
    shown = {sample.name for sample in samples}
    for entry in CATALOGUE:
        suffixes = ("_bucket", "_count", "_sum") if entry.kind == "histogram" else ("",)
        for suffix in suffixes:
            assert (entry.name + suffix in shown) == (role in entry.roles), entry.name
    told = {"onecount_worker_info": 1, "onecount_policy_version": 1, "onecount_dead_letter_ratio_limit": 1}
    assert {sample.name: sample.value for sample in samples if sample.value} == {
        name: value for name, value in told.items() if name in shown
    }
    convert = [sample for sample in samples if sample.name.startswith("onecount_time_to_convert")]
    assert len(convert) in (0, 6 * 6 * 10), "ten series a platform and action"
    assert len(samples) - len(convert) < 350, "so many series a worker, by the policy that comes with onecount"


def test_what_prometheus_client_adds_is_named() -> None:
    text = generate_latest(Metrics("counter", "w-0").registry).decode()
    assert {name for name in FOREIGN if name.startswith("process_")} <= set(re.findall(r"(?m)^(process_\w+) ", text))


def test_a_batch_is_counted_under_its_labels(metrics: Metrics) -> None:
    fold = Fold(stamps_ms=np.array([1_000, 900, 0]))
    fold.counted.update(
        {
            ("accepted", "meta", "view"): 5, ("duplicate", "", "conversion"): 2, ("rejected", "empty"): 3, ("noise",): 4,
            ("conversion", "meta", "click_then_view", "counted"): 6, ("late", "meta"): 7, ("corrected", ""): 8, ("rekeyed",): 9,
            ("merged", "browser"): 10,
        }
    )  # fmt: skip
    metrics.batch(fold, 1_200.0)
    found = metrics.registry.get_sample_value
    expected: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("onecount_events_total", (("outcome", "accepted"), ("platform", "meta"), ("type", "view"))): 5,
        ("onecount_events_total", (("outcome", "duplicate"), ("platform", ""), ("type", "conversion"))): 2,
        ("onecount_rejected_events_total", (("reason", "empty"),)): 3,
        ("onecount_noise_conversions_total", ()): 4,
        (
            "onecount_conversions_total",
            (("method", "click_then_view"), ("platform", "meta"), ("status", "counted")),
        ): 6,
        ("onecount_late_events_total", (("platform", "meta"),)): 7,
        ("onecount_corrections_total", (("platform", ""),)): 8,
        ("onecount_rekeyed_events_total", ()): 9,
        ("onecount_merged_reports_total", (("reported_by", "browser"),)): 10,
        ("onecount_merged_reports_total", (("reported_by", "server"),)): 0,
        ("onecount_latency_seconds_count", ()): 3,
        ("onecount_latency_seconds_bucket", (("le", "0.2"),)): 1,
        ("onecount_latency_seconds_bucket", (("le", "0.3"),)): 2,
    }
    assert {key: found(key[0], dict(key[1])) for key in expected} == expected


def test_latencies_are_the_histogram_that_prometheus_client_would_make() -> None:
    from prometheus_client import Histogram

    bounds = (0.1, 1.0, 5.0)
    values = [0.0, 0.1, 0.10001, 0.9, 1.0, 4.0, 5.0, 6.0, 7200.0]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("h", "text", registry=theirs, buckets=bounds)
    latencies = Latencies("h", "text", bounds, ours)
    for value in values:
        histogram.observe(value)
    for part in (values[:4], [], values[4:]):
        latencies.observe(np.array(part, dtype=float))

    assert generate_latest(ours) == generate_latest(theirs)
    latencies.observe(np.array([-3.0]))  # a producer's clock is fast
    assert ours.get_sample_value("h_bucket", {"le": "0.1"}) == 3
    assert ours.get_sample_value("h_sum") == sum(values)


def test_sessions_transactions_and_partitions_are_counted_by_cause(metrics: Metrics) -> None:
    found = metrics.registry.get_sample_value
    with structlog.testing.capture_logs() as lines:
        metrics.owned(Session({0: Mode.LIVE, 1: Mode.LIVE, 2: Mode.REBUILD}, Lag(12, None, 0.25)))
        metrics.transaction("committed")
        metrics.transaction("ambiguous")
        assert [found("onecount_owned_partitions", {"mode": mode}) for mode in ("live", "replay", "rebuild")] == [
            2,
            0,
            1,
        ]
        metrics.session("redis", "Redis: gone")
    assert [found("onecount_owned_partitions", {"mode": mode}) for mode in ("live", "replay", "rebuild")] == [0, 0, 0]
    assert found("onecount_topic_partitions") == 4, "so that the alarm sees what nobody owns"
    assert found("onecount_lag_records") == 12
    assert found("onecount_lag_retention_ratio") == 0.25
    assert found("onecount_state_records", {"table": "ids"}) == 7
    assert found("onecount_reopenings_total", {"cause": "live"}) == 2
    assert found("onecount_reopenings_total", {"cause": "rebuild"}) == 1
    assert [found("onecount_session_ends_total", {"cause": cause}) for cause in SESSION_CAUSES] == [0, 1, 0, 0, 0, 0, 0]
    assert [found("onecount_transactions_total", {"result": each}) for each in ("committed", "aborted", "ambiguous")] == [
        1, 0, 1,
    ]  # fmt: skip
    assert lines[-1]["cause"] == "redis"


def test_delays_go_on_growing_while_the_loop_waits(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_000.0
    monkeypatch.setattr("app.observe.metrics.time.time", lambda: now_s)
    metrics.owned(Session({0: Mode.LIVE}, Lag(5, 990_000, 0.0), stream_ms=940_000))
    found = metrics.registry.get_sample_value
    assert (found("onecount_lag_seconds"), found("onecount_watermark_delay_seconds")) == (10, 60)
    now_s = 1_100.0
    metrics.session("kafka", "gone")
    assert (found("onecount_lag_seconds"), found("onecount_watermark_delay_seconds")) == (110, 160)


def test_of_several_redis_servers_the_fullest_and_the_slowest_are_told(metrics: Metrics) -> None:
    def server(used: int, limit: int, latency_s: float) -> SimpleNamespace:
        return SimpleNamespace(number={"used_memory": used, "maxmemory": limit}.__getitem__, latency_s=latency_s)

    found = metrics.registry.get_sample_value
    metrics.redis([server(50, 100, 0.1), server(90, 100, 0.3), server(10, 100, 0.2)])
    assert found("onecount_redis_memory_bytes") == 150
    assert found("onecount_redis_memory_limit_bytes") == 300
    assert found("onecount_redis_memory_ratio") == 0.9
    assert found("onecount_redis_latency_seconds") == 0.3
    metrics.redis([server(50, 100, 0.1), server(90, 0, 0.1)])
    assert found("onecount_redis_memory_limit_bytes") == 0, "one without a limit may take what it likes"
    assert found("onecount_redis_memory_ratio") == 0.5


# --- Health


def test_an_outage_makes_a_worker_not_ready_and_never_dead(metrics: Metrics, port: int) -> None:
    assert answer(port, "/live")[0] == 200
    assert answer(port, "/ready")[0] == 503, "nothing is owned yet"
    metrics.owned(Session({3: Mode.LIVE, 1: Mode.REPLAY}))
    assert answer(port, "/ready")[0] == 200
    assert answer(port, "/info") == (
        200,
        {"version": __version__, "role": "counter", "worker": "w-0", "policy_version": 1, "partitions": {"1": "replay", "3": "live"}},
    )  # fmt: skip
    metrics.session("kafka", "Kafka: gone")
    assert answer(port, "/ready")[0] == 503
    assert answer(port, "/live")[0] == 200
    assert answer(port, "/info")[1]["partitions"] == {}
    assert answer(port, "/nothing")[0] == 404


def test_a_loop_that_hangs_is_dead_and_not_ready(metrics: Metrics, port: int) -> None:
    metrics.owned(Session({3: Mode.LIVE}))
    metrics.beat_at -= LIVE_S + 1
    assert answer(port, "/live")[0] == 503
    assert answer(port, "/ready")[0] == 503
    metrics.beat()
    assert answer(port, "/live")[0] == 200


def test_the_longest_allowed_waits_for_answers_make_no_worker_dead() -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert live_s(defaults["request_timeout_ms"]) == LIVE_S
    # init_transactions takes three times as long as one answer, and looks at Kafka and Redis come before it
    assert live_s(60_000) > (3 + 2) * 60


def test_who_asks_slowly_keeps_nobody_else_from_an_answer(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET /live")
        assert answer(port, "/live")[0] == 200


# --- Logs


def test_a_line_of_librdkafka_is_a_log_line_and_is_counted(metrics: Metrics) -> None:
    log = KafkaLog(metrics.kafka_line, worker="w-0")
    with structlog.testing.capture_logs() as lines:
        log.logger("consumer").log(
            logging.ERROR, "%s [%s] %s", "FAIL", "rdkafka#consumer-4", "broker: refused (after 3ms)"
        )
        log.logger("producer").log(logging.WARNING, "%s [%s] %s", "GETPID", "rdkafka#producer-3", "100 % late")
        log.logger("admin").log(logging.INFO, "something else")
    assert lines == [
        {"event": "librdkafka", "log_level": "error", "client": "consumer", "facility": "FAIL", "text": "broker: refused (after 3ms)",
         "worker": "w-0"},
        {"event": "librdkafka", "log_level": "warning", "client": "producer", "facility": "GETPID", "text": "100 % late", "worker": "w-0"},
        {"event": "librdkafka", "log_level": "info", "client": "admin", "facility": "", "text": "something else", "worker": "w-0"},
    ]  # fmt: skip
    found = metrics.registry.get_sample_value
    assert found("onecount_kafka_log_lines_total", {"client": "consumer", "level": "error"}) == 1


def test_a_line_that_comes_again_and_again_is_logged_twice_a_minute() -> None:
    counted: list[tuple[str, str]] = []
    clock = Clock()
    log = KafkaLog(lambda client, level: counted.append((client, level)), clock)
    with structlog.testing.capture_logs() as lines:
        for number in range(100):
            log.line("consumer", logging.ERROR, "FAIL", f"127.0.0.1:9092/0: refused (after {number}ms in state)")
            clock.now_s += 0.5
        log.line("consumer", logging.ERROR, "FAIL", "127.0.0.1:9093/1: refused (after 1ms in state)")
    assert [line.get("repeats") for line in lines] == [None, int(REPEAT_S / 0.5) - 1, None]
    assert len(counted) == 101


def test_standard_error_is_json_even_where_a_library_warns_or_the_program_breaks() -> None:
    program = (
        "import logging, threading, structlog\n"
        "from app.observe.logs import configure_logs\n"
        "configure_logs()\n"
        "structlog.get_logger().info('own', n=1)\n"
        "logging.getLogger('lib').warning('of a %s', 'library')\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='t')\n"
        "thread.start(); thread.join()\n"
        "raise ValueError('the end')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert ran.returncode == 1
    assert [(line["event"], line["level"]) for line in lines] == [
        ("own", "info"), ("of a library", "warning"), ("crashed", "critical"), ("crashed", "critical"),
    ]  # fmt: skip
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert lines[2]["thread"] == "t"
    assert "ValueError: the end" in lines[3]["exception"]


# --- The desk


def test_the_desk_tells_of_leads_by_state_and_of_overdue_ones_by_action_down_to_zero() -> None:
    desk = Metrics("desk", "d-0")
    desk.leads_of(["demo_booked"])
    value = desk.registry.get_sample_value
    assert value("onecount_leads_overdue", {"action": "demo_booked"}) == 0
    assert value("onecount_leads", {"state": "won", "temperature": "cool"}) == 0
    desk.leads({("waiting", "hot"): 2}, {"newsletter": 3})
    assert value("onecount_leads_overdue", {"action": "newsletter"}) == 3
    desk.leads({}, {})
    assert value("onecount_leads_overdue", {"action": "newsletter"}) == 0
    assert value("onecount_leads", {"state": "waiting", "temperature": "hot"}) == 0
    assert value("onecount_rejected_events_total", {"reason": "empty"}) is None


def test_the_desk_that_publishes_is_ready_and_the_others_are_not() -> None:
    desk = Metrics("desk", "d-0")
    desk.leads_of([])
    value = desk.registry.get_sample_value
    desk.lease(False, 7)
    assert (value("onecount_ready"), value("onecount_lag_records"), value("onecount_topic_partitions")) == (0, 7, 1)
    desk.waiting_since_ms -= 3_000  # type: ignore[operator]
    assert 3 <= value("onecount_lag_seconds") < 60  # type: ignore[operator]
    desk.lease(True, 0)
    assert (value("onecount_ready"), value("onecount_lag_seconds")) == (1, 0)
    assert value("onecount_owned_partitions", {"mode": "live"}) == 1
