"""What is worth waking somebody for: the dead-letter ratio, and the alarms of Prometheus."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
import yaml

from app.engine.fold import Fold
from app.observe.catalogue import CATALOGUE
from app.observe.dead_letters import SPAN_S, DeadLetterRatio
from app.observe.metrics import Metrics
from app.settings import Settings
from tests.unit.test_deploy import PROMETHEUS, ROOT, _metrics

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
        self.stage = SimpleNamespace(slowest_stream_ms=lambda: 0)

    def lag_records(self) -> int:
        return 0


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
        metrics.batch(fold, 100)
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
    series = {entry.name for entry in CATALOGUE} | {"up"}
    for rule in RULES:
        assert _metrics(rule["expr"]) - series == set(), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_prometheus_reads_the_alarms_that_are_mounted_beside_its_configuration() -> None:
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    assert {job["job_name"] for job in PROMETHEUS["scrape_configs"]} == {"onecount"}  # which `up` is asked for


CASES = """\
rule_files: [{rules}]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - {{series: 'onecount_dead_letter_ratio{{instance="counter-1:9464"}}', values: '0x8 0.2x8 0.01x20'}}
      - {{series: 'onecount_dead_letter_ratio{{instance="counter-2:9464"}}', values: '0.04x40'}}
      - {{series: 'onecount_dead_letter_ratio_limit{{instance="counter-1:9464"}}', values: '0.05x40'}}
      - {{series: 'onecount_dead_letter_ratio_limit{{instance="counter-2:9464"}}', values: '0.05x40'}}
      - {{series: 'up{{job="onecount", instance="counter-2:9464"}}', values: '1x4 0x40'}}
    alert_rule_test:
      - {{eval_time: 1m, alertname: OnecountDeadLetters, exp_alerts: []}}
      - eval_time: 3m
        alertname: OnecountDeadLetters
        exp_alerts:
          - exp_labels: {{severity: warning, instance: "counter-1:9464"}}
            exp_annotations:
              summary: "counter-1:9464 refused 20% of the last minute's events"
              description: "{description}"
      - {{eval_time: 6m, alertname: OnecountDeadLetters, exp_alerts: []}}
      - {{eval_time: 1m, alertname: OnecountWorkerDown, exp_alerts: []}}
"""


def test_the_alarms_fire_when_they_should(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here; it comes with Prometheus, on Debian: apt-get install prometheus")
    checked = subprocess.run(
        [promtool, "check", "config", FOLDER / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    cases = tmp_path / "cases.yml"
    (letters,) = [rule for rule in RULES if rule["alert"] == "OnecountDeadLetters"]
    cases.write_text(CASES.format(rules=FOLDER / "alerts.yml", description=letters["annotations"]["description"]))
    ran = subprocess.run([promtool, "test", "rules", cases], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
