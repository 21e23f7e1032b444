"""The counting policy changed in mid-stream, contradicted, or lost."""

import time
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from confluent_kafka import OFFSET_BEGINNING

from app.contract import rows
from app.engine.clients import KafkaClients
from app.engine.rebuild import read_partition
from app.policy.record import NOTICE_MS
from tests.faults import topic_changes as changes
from tests.integration import letters
from tests.integration.deployment import POLICY, Deployment

META = "meta: {method: click_then_view, windows: {click: 7d, view: 1d}}"
ONLY_CLICKS = "meta: {method: click, windows: {click: 7d}}"
START_MS = 25_000  # a loaded machine's start of a worker
SKEW_MS = 10_000  # max_clock_skew of the changing policy: a new version must give this notice too
PARTITIONS = 4


def write_policy(path: Path, effective_from_ms: int | None = None, base: str = "") -> Path:
    """The policy with another method for meta."""
    before = base or POLICY.read_text()
    changed = before.replace(META, ONLY_CLICKS)
    assert changed != before
    if effective_from_ms is not None:
        at = datetime.fromtimestamp(effective_from_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        changed = f'effective_from: "{at}"\n{changed}'
    path.write_text(changed)
    return path


def versions_of_rows(deployment: Deployment) -> dict[int, list[int]]:
    """The conversion times of the attributed rows by the policy version that judged them."""
    found: dict[int, list[int]] = {}
    for partition in range(PARTITIONS):
        topic = deployment.settings.attributed_topic
        latest = {}
        for message in read_partition(KafkaClients(deployment.settings), topic, partition, OFFSET_BEGINNING, None):
            latest[message.key()] = message.value()
        for value in filter(None, latest.values()):
            row = rows.decode_attributed(value)
            found.setdefault(row.policy_version, []).append(row.event_time)
    return found


@pytest.mark.timeout(200)
def test_a_changed_method_without_effective_from_is_refused_and_the_others_count_on(
    deployment: Deployment, seed: int, tmp_path: Path
) -> None:
    deployment.start("aggregator")
    deployment.start("counter")
    deployment.wait_until(lambda: len(deployment.owned("counter")) == PARTITIONS, "the counter owns all partitions")
    with deployment.load(seed=seed):
        other = deployment.onecount(
            "run", "counter", "--slot", "1", ONECOUNT_POLICY=str(write_policy(tmp_path / "other.yaml"))
        )
        too_soon = write_policy(tmp_path / "soon.yaml", int(time.time() * 1000) + NOTICE_MS)
        soon = deployment.onecount("run", "aggregator", "--slot", "1", ONECOUNT_POLICY=str(too_soon))
    for refused, words in (
        (other, "platform meta"),
        (other, "effective_from"),
        (soon, "effective_from must be at least"),
    ):
        said = [
            orjson.loads(line) for line in refused.stderr.splitlines() if line.startswith("{")
        ]  # librdkafka's are plain
        lines = [line for line in said if line["event"] == "refused"]
        assert (refused.returncode, len(lines)) == (3, 1), refused.stderr
        assert words in lines[0]["why"]
    assert not deployment.owned("counter", 1), "it counted before it refused"
    deployment.finish()


def begun_anew(deployment: Deployment, role: str, slot: int) -> bool:
    """Whether a worker has begun a new session, which reads the record. Most are told by their look at it every 10 s."""
    return any(event["event"] == "session ended, beginning anew" for event in deployment.events(role, slot))


def restart(deployment: Deployment, role: str, slot: int) -> None:
    """Stops a worker and starts it with the file of now."""
    (running,) = (each for each in deployment.running if each.args[4:7:2] == [role, str(slot)] and each.poll() is None)
    assert deployment.stop(running) == 0, deployment.logs()
    deployment.start(role, slot)


@pytest.mark.timeout(400)
def test_a_new_version_holds_from_its_instant_on_through_a_rolling_restart_under_load(
    deployment: Deployment, seed: int, tmp_path: Path
) -> None:
    """Workers that run take the version up from the record, those that start bring the file; conversions on both sides of
    the instant, late ones too, are judged by their own version."""
    base = f"max_clock_skew: {SKEW_MS // 1000}s\n{POLICY.read_text()}"
    first = tmp_path / "first.yaml"
    first.write_text(base)
    deployment.environment["ONECOUNT_POLICY"] = str(first)
    deployment.settings = deployment.settings.model_copy(update={"policy": first})
    for slot in range(2):
        deployment.start("counter", slot)
        deployment.start("aggregator", slot)
    deployment.wait_until(
        lambda: all(deployment.owned("counter", slot) for slot in range(2)), "both counters own partitions"
    )
    with deployment.load(rate=300, seed=seed):
        changes.wait_until_counted(deployment, 1_000)
        from_ms = int(time.time() * 1000) + NOTICE_MS + SKEW_MS + START_MS
        deployment.environment["ONECOUNT_POLICY"] = str(write_policy(tmp_path / "next.yaml", from_ms, base))
        deployment.start("counter", 2)  # records the version; the other workers have the old file still
        for role, slot in (("counter", 0), ("counter", 1), ("aggregator", 0), ("aggregator", 1)):
            deployment.wait_until(
                lambda role=role, slot=slot: begun_anew(deployment, role, slot), f"{role} {slot} reads the record"
            )
        for role in ("counter", "aggregator"):
            restart(deployment, role, 0)
        deployment.wait_until(lambda: time.time() * 1000 > from_ms + 20_000, "the instant passes", 200)
        assert deployment.owned("counter", 1), "no worker with the old file judged by the new version"
        for role in ("counter", "aggregator"):
            restart(deployment, role, 1)
    deployment.settings = deployment.settings.model_copy(update={"policy": tmp_path / "next.yaml"})
    deployment.finish()
    found = versions_of_rows(deployment)
    assert set(found) == {1, 2}, "there must be conversions on both sides of the instant"
    assert max(found[1]) < from_ms <= min(found[2])


@pytest.mark.timeout(300)
def test_a_platform_that_is_added_counts_from_its_instant_on_and_what_was_refused_before_is_sent_again(
    deployment: Deployment, seed: int, tmp_path: Path
) -> None:
    """Neither `verify` nor a rebuild, which know the platform then, take back that its events were refused before."""
    base = f"max_clock_skew: {SKEW_MS // 1000}s\n{POLICY.read_text()}"
    first, following = tmp_path / "first.yaml", tmp_path / "next.yaml"
    first.write_text(base)
    deployment.environment["ONECOUNT_POLICY"] = str(first)
    deployment.settings = deployment.settings.model_copy(update={"policy": first})
    deployment.start("aggregator")
    deployment.start("counter")
    events = [letters.click("k1", platform="newcomer"), letters.conversion("e1", platform="newcomer")]
    letters.send(deployment, [(b"u1", orjson.dumps(event)) for event in events])
    letters.wait_for_letters(deployment, 2)
    from_ms = int(time.time() * 1000) + NOTICE_MS + SKEW_MS + START_MS
    newcomer = f"{META}\n  newcomer: {{method: click, windows: {{click: 7d}}}}"
    assert META in base
    at = datetime.fromtimestamp(from_ms / 1000, UTC).isoformat()
    following.write_text(f'effective_from: "{at}"\n{base.replace(META, newcomer)}')
    deployment.environment["ONECOUNT_POLICY"] = str(following)
    deployment.settings = deployment.settings.model_copy(update={"policy": following})
    deployment.start("counter", 1)  # records the version
    deployment.wait_until(lambda: begun_anew(deployment, "counter", 0), "the other counter reads the record")
    deployment.assert_exact()
    early = deployment.onecount("dlq", "retry", "--yes")
    assert (early.returncode, "0 sent again; 2 are left as they were" in early.stdout) == (1, True), early.stdout
    deployment.wait_until(lambda: time.time() * 1000 > from_ms, "the instant passes", 200)
    sent = deployment.onecount("dlq", "retry", "--yes")
    assert (sent.returncode, sent.stdout.splitlines()[-1]) == (0, "2 sent again"), sent.stdout
    with deployment.load(seed=seed):
        changes.wait_until_counted(deployment, 1_000)
    deployment.assert_exact()
    refused = [letter.content.detail for letter in letters.dead_letters(deployment)]
    assert len([detail for detail in refused if "newcomer" in detail]) == 2
    deployment.empty_redis()
    deployment.finish()
    assert "e1" in letters.counted(deployment)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("lost", ["recreated", "emptied"])
def test_a_lost_record_of_the_policy_is_refused_and_not_written_anew(
    deployment: Deployment, seed: int, lost: str
) -> None:
    """The file says what holds now, but not since when: what was counted by an older version would be judged anew."""
    settings = deployment.settings
    deployment.start("aggregator")
    deployment.start("counter")
    with deployment.load(seed=seed):
        changes.wait_until_counted(deployment, 3_000)
    deployment.assert_exact()
    for worker in deployment.running:
        if worker.poll() is None:
            assert deployment.stop(worker) == 0
    if lost == "recreated":
        changes.recreate(deployment, settings.policy_topic, 1)
    else:
        changes.allow_deletion(deployment, settings.policy_topic)
        time.sleep(1)
        changes.delete_records(deployment, settings.policy_topic, changes.ends(deployment, settings.policy_topic))
    for role in ("aggregator", "counter"):
        why = changes.start_refused(deployment, role)
        assert f"{settings.policy_topic} holds no policy" in why
        assert "onecount reset" in why
    assert changes.ends(deployment, settings.policy_topic)[0] == 0 or lost == "emptied"
    changes.reset(deployment)
    deployment.start("aggregator")
    deployment.start("counter")
    with deployment.load(seed=seed + 1):
        changes.wait_until_counted(deployment, 2_000)
    deployment.finish()
