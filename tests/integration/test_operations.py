"""What an operator does: check, rebuild, reset, a changed policy; and what the supervisor does."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from app.engine.topics import all_specs_of
from app.policy.load import load_policy
from app.run import REFUSED
from tests.conftest import Services
from tests.integration.deployment import POLICY, Deployment, deployed


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path) as running:
        yield running


def test_check_finds_a_sound_deployment_sound_and_names_what_is_missing(deployment: Deployment) -> None:
    sound = deployment.onecount("check")
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert "fit for counting" in sound.stdout
    missing = deployment.onecount("check", ONECOUNT_COUNTS_TOPIC="nowhere")
    assert missing.returncode == 1
    assert "nowhere is missing" in missing.stdout
    no_broker = deployment.onecount("check", ONECOUNT_BOOTSTRAP="127.0.0.1:1", ONECOUNT_REQUEST_TIMEOUT_MS="1000")
    assert no_broker.returncode == 1
    assert "Kafka at 127.0.0.1:1" in no_broker.stdout
    assert "Traceback" not in missing.stderr + no_broker.stderr


@pytest.mark.timeout(60)
def test_topics_check_names_each_difference_and_the_command_that_mends_it(deployment: Deployment) -> None:
    admin, settings = AdminClient({"bootstrap.servers": deployment.settings.bootstrap}), deployment.settings

    def alter(topic: str, **values: str) -> None:
        entries = [
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for name, value in values.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(10)

    assert deployment.onecount("topics", "check").returncode == 0
    alter(settings.events_topics[0], retention_bytes="1000000", retention_ms="3600000")
    alter(settings.counts_topic, cleanup_policy="delete", delete_retention_ms="86400000")
    alter(
        settings.attributed_topic, delete_retention_ms=str(90 * 86_400_000), max_compaction_lag_ms="86400000"
    )  # as good
    alter(settings.models_topic, max_compaction_lag_ms=str(90 * 86_400_000))
    admin.create_partitions([NewPartitions(settings.deltas_topic, 6)])[settings.deltas_topic].result(10)
    found = deployment.onecount("topics", "check", ONECOUNT_REPLICATION="3")
    assert found.returncode == 1
    lines = found.stdout.splitlines()
    topics = all_specs_of(settings, load_policy(settings.policy)[0])
    assert len(lines) == 6 + len(topics), found.stdout
    assert sum("replicas, ONECOUNT_REPLICATION is 3" in line for line in lines) == len(topics)
    assert any("retention.bytes is 1000000, it must be -1" in line for line in lines)
    assert any("delete.retention.ms is 86400000, it must be at least 1209600000" in line for line in lines)
    assert any("max.compaction.lag.ms is 7776000000, it must be at most 604800000" in line for line in lines)

    for line in deployment.onecount("topics", "check").stdout.splitlines():
        command = line.partition(": kafka-")[2].split()
        if command[0] == "topics":
            topic, partitions = command[command.index("--topic") + 1], int(command[command.index("--partitions") + 1])
            admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(10)
        else:
            name, value = command[command.index("--add-config") + 1].split("=")
            alter(command[command.index("--entity-name") + 1], **{name.replace(".", "_"): value})
    mended = deployment.onecount("topics", "check")
    assert mended.returncode == 0, mended.stdout


def test_impossible_settings_are_refused_at_start_in_one_line(deployment: Deployment) -> None:
    found = deployment.onecount("run", "counter", ONECOUNT_TRANSACTION_TIMEOUT_MS="30000")
    assert found.returncode == 2
    assert "transaction_timeout_ms must be below session_timeout_ms" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_rebuild_and_reset_refuse_running_workers_and_end_in_exact_counts(deployment: Deployment) -> None:
    counter, aggregator = deployment.start("counter"), deployment.start("aggregator")
    assert deployment.generate("--count", "15000", "--seed", "21").wait(60) == 0
    deployment.assert_exact()
    refused = deployment.onecount("rebuild")
    assert refused.returncode == 2
    assert "stop them first" in refused.stderr
    assert deployment.stop(counter) == 0
    assert deployment.stop(aggregator) == 0
    assert deployment.onecount("rebuild").returncode == 0
    counter, aggregator = deployment.start("counter"), deployment.start("aggregator")
    assert deployment.generate("--count", "5000", "--seed", "22").wait(60) == 0
    deployment.assert_exact()
    assert deployment.stop(counter) == 0
    assert deployment.stop(aggregator) == 0
    assert deployment.onecount("reset", "--yes").returncode == 0
    deployment.start("counter")
    deployment.start("aggregator")
    deployment.assert_exact()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_changed_method_is_refused_unless_it_holds_from_a_future_instant_on(
    deployment: Deployment, tmp_path: Path
) -> None:
    counter = deployment.start("counter")
    log = deployment.folder / "counter-0.log"
    deployment.wait_until(lambda: '"owned": [0, 1, 2, 3]' in log.read_text(), "the first counter owns all partitions")
    changed = POLICY.read_text().replace(
        "meta: {method: click_then_view, windows: {click: 7d, view: 1d}}", "meta: {method: click, windows: {click: 7d}}"
    )
    assert changed != POLICY.read_text()
    other = tmp_path / "changed.yaml"
    other.write_text(changed)
    second = deployment.onecount("run", "counter", "--slot", "1", ONECOUNT_POLICY=str(other))
    assert second.returncode == REFUSED
    assert "platform meta" in second.stderr
    assert "effective_from" in second.stderr
    later = (datetime.now(UTC) + timedelta(minutes=10)).strftime("%Y-%m-%dT%H:%M:%SZ")
    other.write_text(f'effective_from: "{later}"\n{changed}')
    deployment.environment["ONECOUNT_POLICY"] = str(other)
    third = deployment.start("counter", slot=2)
    time.sleep(6)
    assert third.poll() is None, deployment.logs()
    assert deployment.stop(third) == 0
    assert deployment.stop(counter) == 0


def is_running(pid: str) -> bool:
    """Whether a process runs; one that ended and that its new parent has not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(60)
def test_workers_stop_when_their_supervisor_is_killed(deployment: Deployment) -> None:
    command = [sys.executable, "-m", "app", "run", "aggregator", "--workers", "2"]
    supervisor = subprocess.Popen(command, env=os.environ | deployment.environment, stderr=subprocess.DEVNULL)
    deployment.running.append(supervisor)
    workers = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
    deployment.wait_until(lambda: len(workers.read_text().split()) == 2, "the supervisor starts two workers")
    pids = workers.read_text().split()
    time.sleep(3)
    supervisor.kill()
    supervisor.wait()
    deployment.wait_until(lambda: not any(is_running(pid) for pid in pids), "the workers stop")
