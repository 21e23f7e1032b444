"""`onecount desk` on a real Kafka: what it publishes, what it answers, and what it refuses."""

import random
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import orjson
import pytest
import yaml
from confluent_kafka import KafkaException

from app.engine.clients import KafkaClients
from app.engine.policy_topic import establish
from app.policy.load import load_desk
from app.settings import Settings
from tests.conftest import Services
from tests.desk import money, oracle
from tests.desk.deployment import HOUR_MS, POLICY, Desks, desks
from tests.desk.made import journey

pytestmark = [pytest.mark.timeout(180)]


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Desks]:
    with desks(services.bootstrap, topic_prefix, tmp_path) as found:
        yield found


def now() -> int:
    return time.time_ns() // 1_000_000


def test_a_day_at_the_desk(deployment: Desks) -> None:
    random_, port = random.Random(1), 0
    deployment.work(random_, now())
    process = deployment.start(ONECOUNT_METRICS_PORT="0")
    deployment.assert_exact()
    port = next(event["port"] for event in deployment.events(process) if event["event"] == "metrics")

    # a lead that is overdue is told within seconds, here, on its topic and in the metrics; and no more once it is followed up
    late = journey("late", "demo_booked", "e1", now() - 4 * HOUR_MS + 3_000)
    with deployment.transaction():
        deployment.convert(late)
    deployment.wait(
        lambda: ("shop", "late", "demo_booked") in deployment.published(deployment.settings.leads_topic), "the lead"
    )
    deployment.assert_exact()
    due_ms = late.event_time + 4 * HOUR_MS
    deployment.wait(lambda: deployment.get(process, "/leads/overdue?user_id=late")[1]["total"] == 1, "it is overdue")
    assert now() - due_ms < 60_000
    overdue = len([key for key in deployment.published(deployment.settings.overdue_topic) if key[2] == "demo_booked"])
    deployment.wait(
        lambda: f'onecount_leads_overdue{{action="demo_booked"}} {overdue}.0' in metrics(port), "the metric", 10
    )
    with deployment.transaction():
        deployment.tell(oracle.Told("contacted", now(), "shop", "late", None))
    deployment.wait(
        lambda: deployment.get(process, "/leads/overdue?user_id=late")[1]["total"] == 0, "it is overdue no more"
    )
    deployment.assert_exact()
    assert "onecount_ready 1.0" in metrics(port)

    # the views
    status, body = deployment.get(process, "/leads?state=waiting&limit=3")
    assert status == 200
    waiting = [
        row for row in deployment.published(deployment.settings.leads_topic).values() if row["state"] == "waiting"
    ]
    assert body["total"] == len(waiting)
    dues = [row["due_time"] for row in body["rows"]]
    assert dues == sorted(row["due_time"] for row in waiting if row["due_time"])[:3]
    status, body = deployment.get(process, "/rollups?period=week&scope=all&advertiser_id=shop&limit=10000")
    weeks = [row for row in deployment.published(deployment.settings.rollups_topic).values()
             if (row["period"], row["scope"], row["advertiser_id"]) == ("week", "all", "shop")]  # fmt: skip
    assert body["total"] == len(weeks) > 0
    assert sorted(map(str, body["rows"])) == sorted(map(str, weeks))
    assert deployment.get(process, "/leads?colour=red")[0] == 400
    assert deployment.get(process, "/leads?state=unheard")[0] == 400
    assert deployment.get(process, "/leads", host="evil.example")[0] == 400
    assert deployment.get(process, "/")[0] == 404
    assert deployment.get(process, "/healthz")[1]["role"] == "active"
    assert deployment.stop(process) == 0
    said = {event["event"] for event in deployment.events(process)}
    late = {each for each in said if each.startswith("Timer ")}  # Faust says so of a busy machine
    assert said - late == {
        "metrics",
        "desk",
        "partitions",
        "active",
        "stopped",
    }


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def _is_established(settings: Settings, clients: KafkaClients) -> bool:
    """Records the policy; False where the topic that was just made has no leader yet."""
    try:
        establish(settings, clients)
    except KafkaException:
        return False
    return True


@pytest.mark.faults
def test_what_a_platform_cost_stays_when_a_later_version_of_the_policy_drops_it(
    deployment: Desks, tmp_path: Path
) -> None:
    later, clients = tmp_path / "later.yaml", KafkaClients(deployment.settings)
    document = yaml.safe_load(POLICY.read_text())
    del document["platforms"]["google_ads"]
    document["effective_from"] = datetime.fromtimestamp(now() / 1000 + 900, UTC).isoformat()
    later.write_text(yaml.safe_dump(document))
    deployment.wait(partial(_is_established, deployment.settings, clients), "the policy is recorded, as workers do it")
    _, key, value = money.spend("2026-11-16", 10.0, "google_ads", "brand")
    with deployment.transaction():
        deployment.produce(deployment.settings.spend_topic, key, orjson.dumps(value))

    def cost() -> float | None:
        row = deployment.published(deployment.settings.return_topic).get(("shop", "to_date", "total", None, None))
        return row["money"][0]["cost"] if row else None

    first = deployment.start()
    deployment.wait(lambda: cost() == 10, "the spend")
    establish(deployment.settings.model_copy(update={"policy": later}), clients)
    deployment.wait(lambda: "the policy has a new version" in str(deployment.events(first)), "it is seen")
    deployment.wait(lambda: deployment.is_active(first), "it publishes by both versions, whatever its file says")
    second = deployment.start(ONECOUNT_POLICY=str(later))
    deployment.wait(
        lambda: deployment.get(second, "/healthz")[1]["role"] == "standby", "another one, with the new file"
    )
    assert deployment.stop(first) == 0
    deployment.wait(lambda: deployment.is_active(second), "it takes over")
    assert cost() == 10
    assert deployment.published(deployment.settings.desk_dlq_topic) == {}
    assert deployment.start().wait(60) == 3, "an older file than what is recorded"
    assert "holds an older version" in deployment.logs()
    assert deployment.stop(second) == 0


@pytest.mark.faults
def test_what_is_no_more_true_when_a_desk_begins_is_taken_back(deployment: Desks, tmp_path: Path) -> None:
    with deployment.transaction():
        gone, stays = (journey(user, "demo_booked", "e", now() - 9 * HOUR_MS) for user in ("gone", "stays"))
        deployment.convert(gone)
        deployment.convert(stays)
    first = deployment.start()
    deployment.assert_exact()
    assert deployment.stop(first) == 0
    before = {topic: deployment.published(topic) for topic in deployment.settings.desk_outputs}
    with deployment.transaction():
        deployment.convert(gone, is_deleted=True)
    second = deployment.start()
    deployment.assert_exact()
    after = {topic: deployment.published(topic) for topic in deployment.settings.desk_outputs}
    leads = (deployment.settings.leads_topic, deployment.settings.overdue_topic)
    assert [len(before[topic]) - len(after[topic]) for topic in leads] == [1, 1]
    changed = sum(
        rows.get(key) != after[topic].get(key)
        for topic, rows in before.items()
        for key in rows.keys() | after[topic].keys()
    )
    (active,) = [event for event in deployment.events(second) if event["event"] == "active"]
    assert active["rows"] == changed  # and nothing that was right already

    # a lead that was closed for longer than the policy keeps it is let go by the next desk
    with deployment.transaction():
        deployment.tell(oracle.Told("lost", now() - 30 * HOUR_MS, "shop", "stays", None))
        deployment.convert(journey("stays", "newsletter", "e", now() - 40 * HOUR_MS))
    deployment.assert_exact()
    assert deployment.stop(second) == 0
    policy = tmp_path / "kept.yaml"
    policy.write_text(POLICY.read_text() + "  closed_leads_kept: 1d\n")
    deployment.desk_policy = load_desk(policy)
    stood = deployment.published(deployment.settings.leads_topic)
    deployment.start(ONECOUNT_POLICY=str(policy))
    deployment.assert_exact()
    left = deployment.published(deployment.settings.leads_topic)
    assert set(stood) - set(left) == {("shop", "stays", "newsletter")}


def test_a_desk_without_its_topics_waits_and_a_policy_without_journeys_is_refused(
    services: Services, topic_prefix: str, tmp_path: Path
) -> None:
    with desks(services.bootstrap, topic_prefix, tmp_path) as deployment:
        process = deployment.start(ONECOUNT_LEADS_TOPIC="not.there")
        deployment.wait(lambda: "session ended, beginning anew" in str(deployment.events(process)), "it says so")
        assert "onecount topics create" in str(deployment.events(process))
        assert process.poll() is None
        bare = tmp_path / "bare.yaml"
        bare.write_text((Path(__file__).parents[2] / "tests/desk/policy.yaml").read_text().partition("journeys:")[0])
        refused = deployment.start(ONECOUNT_POLICY=str(bare))
        assert refused.wait(30) == 2
        assert "journeys" in deployment.logs()
