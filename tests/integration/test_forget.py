"""`onecount forget` on a real Kafka and Redis, as an operator runs it."""

import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from app.contract import rows
from app.engine.clients import KafkaClients
from app.engine.policy_topic import recorded_policy
from app.engine.rebuild import read_partition
from app.privacy.rows import row_topics
from app.verify.partition import owner_of
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed
from tests.integration.letters import click, conversion, now_ms, send

OLD_MS = 200 * 86_400_000


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path) as running:
        yield running


def published(deployment: Deployment) -> dict[str, list[tuple[bytes, bytes | None]]]:
    """Everything on the topics with rows of persons."""
    settings, clients = deployment.settings, KafkaClients(deployment.settings)
    topics = row_topics(settings, recorded_policy(settings, clients))
    return {
        topic: [
            (message.key(), message.value())
            for partition in range(settings.partitions)
            for message in read_partition(clients, topic, partition, 0, None)
        ]
        for topic in topics
    }


def standing(deployment: Deployment, advertiser_id: str, user_id: str) -> dict[str, int]:
    """How many rows of a person stand, by topic without the deployment's name."""
    who = [advertiser_id, user_id]
    return {
        topic.rpartition(".")[2]: sum(orjson.loads(key)[:2] == who for key, value in dict(found).items() if value)
        for topic, found in published(deployment).items()
    }


def publish_a_row_of_long_ago(deployment: Deployment) -> None:
    """What a counter wrote before its state and its raw events expired."""
    settings = deployment.settings
    row = next(
        rows.decode_attributed(value)
        for key, value in published(deployment)[settings.attributed_topic]
        if value and orjson.loads(key)[:2] == ["a1", "u1"]
    )
    fields = {name: getattr(row, name) for name in row.__struct_fields__}
    old = rows.AttributedRow(**fields | {"event_id": "old", "event_time": row.event_time - OLD_MS})
    key = rows.attributed_key("a1", "u1", old.platform, old.conversion_name, "old")
    producer = Producer(settings.client())
    partition = owner_of("u1", settings.partitions, "murmur2")
    producer.produce(settings.attributed_topic, rows.encode(old), key, partition)
    assert producer.flush(30) == 0


@pytest.mark.timeout(180)
def test_a_person_is_forgotten_for_good_and_every_count_stays(deployment: Deployment) -> None:
    counter = deployment.start("counter")
    deployment.start("aggregator")
    events = [
        click("k1"),
        conversion("c1", order_id="o1"),
        click("k2", advertiser_id="a2"),
        conversion("c2", advertiser_id="a2"),
    ]
    send(deployment, ((b"u1", orjson.dumps(event)) for event in events))
    deployment.assert_exact()
    publish_a_row_of_long_ago(deployment)
    assert standing(deployment, "a1", "u1") == {"attributed": 2, "journeys": 1, "models": 5}

    found = deployment.onecount("forget", "u1", "--advertiser", "a1")
    assert found.returncode == 0, found.stdout + found.stderr
    name = deployment.settings.attributed_topic
    assert f"{name}: 2, 1 of them older than the counters' state" in found.stdout
    assert "Counts stay as they were" in found.stdout
    assert "no end is set on the topic" in found.stdout  # the raw topics of a test are kept for ever
    assert standing(deployment, "a1", "u1") == {"attributed": 0, "journeys": 0, "models": 0}
    assert standing(deployment, "a2", "u1") == {"attributed": 1, "journeys": 1, "models": 5}
    report = deployment.assert_exact()
    assert (report.forgets, report.forgotten, report.attributed_rows) == (1, 0, {"counted": 1})

    send(deployment, [(b"u1", orjson.dumps(conversion("c3", event_time=events[1]["event_time"])))])  # too late
    assert deployment.assert_exact().forgotten == 1
    before = published(deployment)
    assert deployment.stop(counter) == 0
    deployment.empty_redis()
    deployment.start("counter")
    send(deployment, [(b"u2", orjson.dumps(click("k3", user_id="u2")))])
    deployment.assert_exact()
    assert published(deployment) == before

    again = deployment.onecount("forget", "u1", "--advertiser", "a1")
    assert again.returncode == 0
    assert "There was none." in again.stdout


def desk_rows(deployment: Deployment) -> dict[str, dict[str, int]]:
    """Of each user how many rows stand on the topics of leads, by topic."""
    clients, settings = KafkaClients(deployment.settings), deployment.settings
    found: dict[str, dict[str, int]] = {}
    for topic in (settings.leads_topic, settings.overdue_topic):
        latest = {message.key(): message.value() for message in read_partition(clients, topic, 0, 0, None)}
        for key in [key for key, value in latest.items() if value]:
            users = found.setdefault(topic.rpartition(".")[2], {})
            users[orjson.loads(key)[1]] = users.get(orjson.loads(key)[1], 0) + 1
    return found


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_what_a_desk_made_of_a_person_is_gone_within_seconds(deployment: Deployment) -> None:
    settings = deployment.settings
    deployment.start("counter")
    desk = deployment.desk()
    demo = {
        "conversion_name": "demo_booked",
        "event_time": now_ms() - 5 * 3_600_000,
    }  # owed an answer within four hours
    events = [
        conversion("c1", **demo),
        conversion("c2", conversion_name="signup"),
        conversion("c3", user_id="u2", **demo),
    ]
    send(deployment, ((str(event["user_id"]).encode(), orjson.dumps(event)) for event in events))
    told = {"kind": "sent", "event_time": now_ms(), "advertiser_id": "a1", "user_id": "u1", "conversion_name": "signup"}
    producer = Producer(settings.client())
    producer.produce(settings.followups_topic, orjson.dumps(told), b"u1")
    assert producer.flush(30) == 0
    stood = {"leads": {"u1": 2, "u2": 1}, "overdue": {"u1": 1, "u2": 1}}
    deployment.wait_until(lambda: desk_rows(deployment) == stood, "the leads")
    deployment.wait_until(lambda: deployment.shown("/leads?user_id=u1&state=answered")["total"] == 1, "it is answered")
    deployment.wait_until(lambda: deployment.shown("/leads/overdue?user_id=u1")["total"] == 1, "it is overdue")

    found = deployment.onecount("forget", "u1", "--advertiser", "a1")
    begun = time.monotonic()
    assert found.returncode == 0, found.stdout + found.stderr
    assert "still stand" not in found.stdout
    left = {"leads": {"u2": 1}, "overdue": {"u2": 1}}
    assert desk_rows(deployment) == left
    for view in ("/leads", "/leads/overdue"):
        deployment.wait_until(lambda view=view: deployment.shown(f"{view}?user_id=u1")["total"] == 0, "it is not shown")
        assert deployment.shown(view)["total"] == 1
    assert time.monotonic() - begun < 10
    assert deployment.stop(desk) == 0

    again = deployment.desk()  # it reads the follow-up anew, and makes no lead of it
    deployment.wait_until(lambda: [e["event"] for e in deployment.events("desk")].count("active") == 2, "it is active")
    assert deployment.shown("/leads?user_id=u1")["total"] == 0
    assert desk_rows(deployment) == left
    assert deployment.stop(again) == 0


@pytest.mark.timeout(120)
def test_without_a_counter_the_command_says_what_holds_and_what_does_not(deployment: Deployment) -> None:
    begun = time.monotonic()
    found = deployment.onecount("forget", "u1", "--advertiser", "a1", "--wait", "1")
    assert found.returncode == 2
    assert "no counter has come past it in 1 s" in found.stderr
    assert "give the same command again" in found.stderr
    assert time.monotonic() - begun < 30
    nobody = deployment.onecount("forget", "u\t1", "--advertiser", "a1")
    assert nobody.returncode == 2
    assert "user_id: control characters are not allowed" in nobody.stderr
    for shown in (found, nobody):
        assert "Traceback" not in shown.stderr
