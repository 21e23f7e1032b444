"""Recounting a range beside live workers: the same policy gives the same counts, another one the oracle's differences, and
nothing live is touched.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from app.contract.events import to_micros
from app.engine.keys import find_keys
from app.engine.store import open_store
from app.generate import produce
from app.generate.mix import Mix
from app.policy.load import load_policy
from app.policy.model import Policy
from app.replay.comparison import Sums, measures
from app.replay.published import committed_offsets
from app.replay.shadow import leftovers
from app.replay.times import as_time
from app.verify.logs import fix_spans, read_log, to_record
from app.verify.oracle import answer
from app.verify.sequence import committed_batches
from tests.conftest import Services
from tests.integration.deployment import POLICY, Deployment, deployed

HOUR_MS = 3_600_000
EVENTS = 8_000
HOURS = 6
START_MS = int(time.time() * 1000) // HOUR_MS * HOUR_MS - 2 * HOURS * HOUR_MS
FROM_MS, TO_MS = START_MS + HOUR_MS, START_MS + (HOURS - 1) * HOUR_MS
# repeats carry another time, and often another window: which one counts depends on the order in which topics and partitions were read
MIX = Mix(users=400, foreign=0.1, repeats=0.08, late_clicks=0.2, adjustments=0.3, conversions=0.08)


@pytest.fixture(scope="module")
def live(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Live workers that have counted six hours of two raw topics, with every trouble that real events have."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    topics = {"events_topics": f"{name}.events,{name}.more"}
    with deployed(services.bootstrap, services.redis_url, name, tmp_path_factory.mktemp("replay"), **topics) as running:
        running.start("counter")
        running.start("aggregator")
        rate = EVENTS / HOURS / 3600
        policy = load_policy(POLICY)[0]
        made = produce(running.settings, policy, seed=31, mix=MIX, count=EVENTS, start_ms=START_MS, events_per_s=rate)
        assert made.failed == 0
        running.assert_exact()
        yield running


def begin(live: Deployment, *arguments: str) -> subprocess.Popen[str]:
    """The command as an operator runs it, under way."""
    span = ("--from", as_time(FROM_MS), "--to", as_time(TO_MS))
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "replay", *span, *arguments],
        env=os.environ | live.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    live.running.append(process)  # type: ignore[arg-type]
    return process


def replayed(live: Deployment, *arguments: str) -> tuple[int, dict[str, Any]]:
    """A whole replay: its exit code and its report."""
    process = begin(live, "--json", *arguments)
    said, told = process.communicate(timeout=90)
    assert process.returncode in (0, 1), told
    return process.returncode, json.loads(said)


def keys_of(live: Deployment, pattern: str) -> dict[bytes, Any]:
    """The Redis keys of a glob pattern, each with all that it holds."""
    with closing(open_store(live.settings.redis_url.get_secret_value(), 10)) as store:
        keys = sorted(find_keys(store, pattern))
        return dict(zip(keys, store.run([("DUMP", key) for key in keys]), strict=True))


def all_that_is_live(live: Deployment) -> tuple[Any, ...]:
    """The ends of every topic, the offsets of both groups, and every Redis key with its value."""
    settings = live.settings
    topics = sorted(set(live.topics()))
    groups = (settings.counter_group, settings.input_topics()), (settings.aggregator_group, (settings.deltas_topic,))
    return (
        fix_spans(settings, topics),
        [committed_offsets(settings, group, read) for group, read in groups],
        keys_of(live, f"{{{settings.namespace}.[ca][0-9]*}}:*"),
    )


def shadow_groups(live: Deployment) -> list[str]:
    admin = AdminClient(live.settings.client())
    found = admin.list_consumer_groups(request_timeout=10).result().valid
    return [
        each.group_id
        for each in found
        if each.group_id.startswith(live.settings.worker_id) and "replay" in each.group_id
    ]


def assert_nothing_is_left(live: Deployment) -> None:
    assert leftovers(live.settings) == {}
    topics = AdminClient(live.settings.client()).list_topics(timeout=10).topics
    assert [name for name in topics if name.startswith(live.settings.worker_id) and "replay" in name] == []
    assert shadow_groups(live) == []
    assert keys_of(live, f"{{{live.settings.namespace}-replay-*") == {}


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_an_unchanged_policy_gives_the_live_counts_row_by_row_beside_running_workers(live: Deployment) -> None:
    topics = [*live.settings.input_topics(), live.settings.policy_topic]
    before = fix_spans(live.settings, topics)
    code, report = replayed(live, "--workers", "2")
    assert (code, report["differences"]) == (0, [])
    assert report["equal"] is True
    assert report["notes"] == []
    assert report["final"] == report["compared"] > 500
    clicks = {line["measure"]: line["live"] for line in report["platforms"]["google_ads"]}
    assert clicks["clicks"] > 100
    assert clicks["conversions"] > 10
    once = {line["measure"]: line["live"] for line in report["platforms"]["all"]}  # no sum of the platforms'
    assert once.keys() == {"conversions", "value"}
    assert once["conversions"] > 10
    assert fix_spans(live.settings, topics) == before
    assert_nothing_is_left(live)
    assert all(worker.poll() is None for worker in live.running[:2])


def answers(live: Deployment, policy: Policy) -> dict[tuple[int, str], Sums]:
    """The independent computation of everything, with this policy: the sums by window and platform."""
    settings = live.settings
    inputs = fix_spans(settings, settings.input_topics())
    deltas = {where: span for where, span in fix_spans(settings, [settings.deltas_topic]).items() if where[1] == 0}
    order = committed_batches(message.value() or b"" for message in read_log(settings, deltas))
    records = [to_record(message) for message in read_log(settings, inputs)]
    found = answer(records, policy, settings.partitions, order, settings.rekeyed_topic)
    assert found.faults == []
    sums: dict[tuple[int, str], Sums] = {}
    for row in found.counts.values():
        sums.setdefault((row.window_start, row.platform), Counter()).update(measures(row))
    return sums


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_another_method_differs_as_the_independent_computation_says_and_nothing_live_is_touched(
    live: Deployment, tmp_path: Path
) -> None:
    for worker in live.running[:2]:  # so that all that stands still must stand still
        assert live.stop(worker) == 0
    before = all_that_is_live(live)
    other = tmp_path / "other.yaml"
    text = POLICY.read_text()
    changed = text.replace(
        "meta: {method: click_then_view, windows: {click: 7d, view: 1d}}", "meta: {method: click, windows: {click: 1h}}"
    )
    assert changed != text
    other.write_text(changed)
    lines = tmp_path / "lines.csv"
    code, report = replayed(live, "--policy", str(other), "--csv", str(lines))
    assert code == 1
    assert all_that_is_live(live) == before
    assert_nothing_is_left(live)
    one, two = (answers(live, load_policy(path)[0]) for path in (POLICY, other))
    expected = {}
    for place in one.keys() | two.keys():
        if FROM_MS <= place[0] < TO_MS:
            more = Counter(two.get(place, Counter()))
            more.subtract(one.get(place, Counter()))
            if any(more.values()):
                expected[as_time(place[0]), place[1]] = {measure: amount for measure, amount in more.items() if amount}
    assert {platform for _, platform in expected} == {"meta", "all"}
    assert len(expected) > 10
    found = {
        (each["window_start"], each["platform"]): {
            (line["measure"], line.get("currency", "")): to_micros(line["difference"])
            if line["measure"] in ("value", "cost")
            else line["difference"]
            for line in each["measures"]
            if line["difference"]
        }
        for each in report["differences"]
    }
    assert {place: lines for place, lines in found.items() if lines} == expected
    with lines.open() as file:
        rows = [row for row in csv.DictReader(file) if float(row["difference"])]
    assert {(row["window_start"], row["platform"]) for row in rows} == expected.keys()


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_policy_without_journeys_is_compared_by_what_the_platforms_count(live: Deployment, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    document = yaml.safe_load(POLICY.read_text())
    del document["journeys"], document["desk"]
    other.write_text(yaml.safe_dump(document))
    assert load_policy(other)[0].bounds.journeys is None
    code, report = replayed(live, "--policy", str(other))
    assert (code, report["differences"]) == (0, [])
    assert report["final"] > 500
    assert "all" not in report["platforms"]
    assert any("only one of the two policies follows journeys" in note for note in report["notes"])
    assert_nothing_is_left(live)


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)])
def test_a_replay_that_is_stopped_leaves_nothing_and_one_that_is_killed_only_what_clean_removes(
    live: Deployment, number: signal.Signals
) -> None:
    before = fix_spans(live.settings, live.settings.input_topics())
    process = begin(live)
    live.wait_until(lambda: keys_of(live, f"{{{live.settings.namespace}-replay-*"), "the shadow workers have state")
    process.send_signal(number)
    said, told = process.communicate(timeout=60)
    assert said == ""
    if number == signal.SIGKILL:
        [(replay_id, topics)] = leftovers(live.settings).items()
        assert len(topics) == 9
        assert all(name.endswith(f".replay-{replay_id}") for name in topics)
        assert live.onecount("replay", "--leftovers").stdout.startswith(f"{replay_id}: ")
        cleaned = live.onecount("replay", "--clean", replay_id)
        assert cleaned.returncode == 0, cleaned.stderr
        assert "deleted 9 topics" in cleaned.stdout
    else:
        assert process.returncode == 128 + number, told
    assert_nothing_is_left(live)
    assert fix_spans(live.settings, live.settings.input_topics()) == before


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_range_whose_records_retention_has_deleted_is_refused_and_nothing_is_made(live: Deployment) -> None:
    topic = live.settings.events_topics[1]
    admin = AdminClient(live.settings.client())
    for future in admin.delete_records([TopicPartition(topic, 0, 5)]).values():
        future.result(10)
    process = begin(live)
    said, told = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, ""), told
    assert "retention has deleted records" in told
    assert "--inexact" in told
    assert_nothing_is_left(live)
