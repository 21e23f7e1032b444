"""Events in every format on one topic, through a real Kafka: each counts once, whatever it was written in, and a registry that is
away refuses nothing.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from app.contract import reasons
from app.policy.model import DAY_MS
from tests.conftest import Services
from tests.formats.registry import Registry, fresh, registry
from tests.formats.written import AVSC, Headers, Writers, binary, structured
from tests.integration.deployment import POLICY, Deployment, deployed
from tests.integration.letters import (
    FLUSH_S,
    click,
    conversion,
    counted,
    dead_letters,
    now_ms,
    states,
    wait_for_letters,
)

Sent = tuple[dict[str, Any], bytes, Headers | None]


@pytest.fixture
def held() -> Iterator[Registry]:
    with registry() as found:
        yield found


@pytest.fixture
def writers(held: Registry) -> Iterator[Writers]:
    with closing(Writers(held.url)) as found:
        yield found


@pytest.fixture
def deployment(held: Registry, services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.read_text() + "\nformats: [cloudevents, avro, protobuf]\n")
    timeout_s = 2.0
    told = {
        "policy": str(policy),
        "schema_registry": json.dumps({"url": held.url}),
        "request_timeout_ms": int(1000 * timeout_s),
    }
    with (
        fresh(held.url, timeout_s),
        deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path, **told) as running,
    ):
        yield running


def send(deployment: Deployment, sent: list[Sent], foreign: bool = False) -> None:
    """To the owners' partitions, or all to partition 0."""
    producer = Producer(deployment.settings.client(**{"partitioner": "murmur2_random"}))
    for event, value, headers in sent:
        key = str(event["user_id"]).encode()
        place = {"partition": 0} if foreign else {}
        producer.produce(deployment.settings.events_topics[0], value, key, headers=headers, **place)
    assert producer.flush(FLUSH_S) == 0


def in_every_format(writers: Writers, events: list[dict[str, Any]]) -> list[Sent]:
    """One format after the other."""
    ways = (
        lambda event: (orjson.dumps(event), None),
        lambda event: (writers.avro(event), None),
        lambda event: (writers.protobuf(event), None),
        structured,
        binary,
        lambda event: (writers.avro(event), binary(event)[1]),
    )
    return [(event, *ways[number % len(ways)](event)) for number, event in enumerate(events)]


def journeys(count: int, since: int = 0) -> list[dict[str, Any]]:
    """A click of each user, and then a conversion of each."""
    users = range(since, since + count)
    clicks = [click(f"k{user}", user_id=f"u{user}", event_time=now_ms() - 60_000) for user in users]
    return clicks + [conversion(f"c{user}", user_id=f"u{user}") for user in users]


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_events_count_once_whatever_they_are_written_in(
    deployment: Deployment, held: Registry, writers: Writers
) -> None:
    counter, aggregator = deployment.start("counter"), deployment.start("aggregator")
    events = journeys(18)
    send(deployment, in_every_format(writers, events))
    send(deployment, in_every_format(writers, events[1:]))  # each once more, in another format
    far = journeys(12, since=100)
    send(deployment, in_every_format(writers, far), foreign=True)  # most belong elsewhere
    cut = writers.avro(click("cut"))[:-3]
    aged = structured(click("aged", event_time=now_ms() - 8 * DAY_MS))
    mismatched = binary(click("mismatched", user_id="u2"))
    stray = b"\0\0\0\0\x63" + writers.avro(conversion("later", user_id="u1"))[5:]  # schema 99
    broken: list[Sent] = [
        (click("x"), cut, None),
        (click("x"), *aged),
        (click("x"), *mismatched),
        (click("x"), stray, None),
    ]
    send(deployment, broken)
    letters = wait_for_letters(deployment, len(broken))
    assert {letter.content.reason for letter in letters} == {
        reasons.UNDECODABLE, reasons.TOO_OLD, reasons.KEY_MISMATCH, reasons.UNKNOWN_SCHEMA,
    }  # fmt: skip
    report = deployment.assert_exact()
    assert report.produced == len(events) * 2 - 1 + len(far) + len(broken)
    assert report.duplicates == len(events) - 1
    once = {event["event_id"]: 1 for event in (*events, *far) if event["event_type"] == "conversion"}
    assert counted(deployment) == once

    # dead letters are shown as their JSON, and sent again with all that belongs to the event
    places = {letter.content.reason: letter.coordinates for letter in letters}
    shown = deployment.onecount("dlq", "show", places[reasons.KEY_MISMATCH])
    assert '"user_id": "u2"' in shown.stdout, shown.stdout + shown.stderr
    assert '"event_id": "mismatched"' in shown.stdout, "which only its envelope says"
    held.schemas[0x63] = {"schema": AVSC}
    retried = deployment.onecount("dlq", "retry", "--yes", "--json")
    assert orjson.loads(retried.stdout)["done"] == 2, retried.stdout + retried.stderr
    deployment.wait_until(lambda: counted(deployment).get("later") == 1, "the retried conversion counts")
    report = deployment.assert_exact()
    assert report.rejected == {reasons.UNDECODABLE: 1, reasons.TOO_OLD: 1, reasons.KEY_MISMATCH: 1}
    assert states(deployment) == {"open": 2, "retried": 2}

    # the log is all that a lost state needs, and the schemas
    deployment.stop(counter)
    deployment.empty_redis()
    counter = deployment.start("counter")
    send(deployment, in_every_format(writers, journeys(6, since=200)))
    deployment.assert_exact()
    assert len(dead_letters(deployment)) == len(broken), "nothing was refused anew"
    assert [deployment.stop(worker) for worker in (counter, aggregator)] == [0, 0]


@pytest.mark.faults
@pytest.mark.timeout(120)
def test_a_registry_that_is_away_stops_counting_and_refuses_nothing(
    deployment: Deployment, held: Registry, writers: Writers
) -> None:
    records = in_every_format(writers, journeys(6))
    held.broken = (503, "down for maintenance")
    counter, aggregator = deployment.start("counter"), deployment.start("aggregator")
    send(deployment, records)

    def ends() -> list[dict[str, Any]]:
        return [event for event in deployment.events("counter") if event["event"].startswith("session ended")]

    deployment.wait_until(lambda: len(ends()) >= 2, "the worker says that the registry is away, and tries again")
    assert {event["cause"] for event in ends()} == {"registry"}
    assert f"the schema registry {held.url} does not tell its schemas: HTTP 503" in ends()[0]["why"]
    assert "does not tell its schemas" in deployment.onecount("check").stdout
    assert dead_letters(deployment) == []
    assert counted(deployment) == {}
    held.broken = None
    report = deployment.assert_exact()
    assert report.rejected == {}
    assert counted(deployment) == {f"c{user}": 1 for user in range(6)}
    assert ", the schema registry and Redis are fit for counting" in deployment.onecount("check").stdout
    assert [deployment.stop(worker) for worker in (counter, aggregator)] == [0, 0]


def test_a_worker_without_a_registry_refuses_what_needs_one(
    services: Services, topic_prefix: str, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.read_text() + "\nformats: [avro]\n")
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path, policy=str(policy)) as deployment:
        assert deployment.wait_for_death(deployment.start("counter")) == 3
        (refused,) = [event for event in deployment.events("counter") if event["event"] == "refused"]
        assert "set ONECOUNT_SCHEMA_REGISTRY" in refused["why"]
