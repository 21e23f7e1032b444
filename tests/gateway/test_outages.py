"""Kafka goes and comes back, Redis goes, the gateway is stopped and killed: what was told `accepted` is in Kafka, all of it, and
what is sent again counts once. On services of the tests' own; `make faults` runs them.
"""

import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from app.local import local_kafka, local_redis
from app.local.kafka import LocalKafka
from app.local.redis_server import LocalRedis
from tests.gateway.harness import KEY, Gateway, conversion, taken
from tests.integration.deployment import Deployment, deployed

pytestmark = pytest.mark.faults
USERS = 40


@pytest.fixture(scope="module")
def kafka() -> Iterator[LocalKafka]:
    with local_kafka() as running:
        yield running


@pytest.fixture(scope="module")
def redis_server() -> Iterator[LocalRedis]:
    with local_redis() as running:
        yield running


@pytest.fixture
def deployment(kafka: LocalKafka, redis_server: LocalRedis, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(kafka.bootstrap, redis_server.url, topic_prefix, tmp_path) as running:
        yield running


class Client(threading.Thread):
    """A careful sender: what is not accepted it sends again, as it is, until it is."""

    def __init__(self, gateway: Gateway, prefix: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.gateway, self.prefix = gateway, prefix
        self.accepted: set[str] = set()
        self.sent: set[str] = set()
        self.statuses: dict[int, int] = {}
        self.done = threading.Event()
        self._chance = random.Random(seed)

    def run(self) -> None:
        number = 0
        while not self.done.is_set():
            batch = []
            for _ in range(self._chance.randint(1, 40)):
                number += 1
                user = f"user-{self._chance.randrange(USERS)}"
                batch.append(conversion(f"{self.prefix}-{number}", user_id=user, platform="meta", value=1.0))
            self.sent |= {event["event_id"] for event in batch}
            while batch and not (self.done.is_set() and self.gateway.process.poll() is not None):
                batch = self._send(batch)

    def _send(self, batch: list[dict[str, object]]) -> list[dict[str, object]]:
        """Sends a batch; what is to be sent again."""
        try:
            headers = {"authorization": f"Bearer {KEY}"}
            answer = requests.post(f"{self.gateway.url}/v1/events", json=batch, headers=headers, timeout=30)
        except requests.RequestException:
            time.sleep(0.1)
            return batch
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        told = answer.json().get("events", [])
        accepted = {event["event_id"] for event in told if event["status"] == "accepted"}
        assert not any(event["status"] == "rejected" for event in told), told
        self.accepted |= accepted
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            time.sleep(0.2)
        return [event for event in batch if event["event_id"] not in accepted]


def clients(gateway: Gateway, count: int = 4) -> list[Client]:
    started = [Client(gateway, f"{uuid.uuid4().hex[:8]}-{number}", number) for number in range(count)]
    for client in started:
        client.start()
    return started


def finish(senders: list[Client]) -> None:
    for sender in senders:
        sender.done.set()
    for sender in senders:
        sender.join(60)
        assert not sender.is_alive()


def assert_nothing_lost(deployment: Deployment, senders: list[Client]) -> None:
    """Each event that was told `accepted` is in Kafka, and none that was not sent."""
    found = {event["event_id"] for event in taken(deployment, "")}
    accepted = set().union(*(sender.accepted for sender in senders))
    sent = set().union(*(sender.sent for sender in senders))
    assert accepted, "nothing was accepted"
    assert accepted <= found, f"lost: {sorted(accepted - found)[:5]}"
    assert found <= sent


@pytest.mark.timeout(240)
def test_an_outage_of_kafka_is_told_and_what_is_sent_again_counts_once(
    deployment: Deployment, kafka: LocalKafka
) -> None:
    deployment.start("counter")
    deployment.start("aggregator")
    gateway = Gateway(deployment, gateway_ack_timeout_ms=1_000).ready()
    senders = clients(gateway)
    time.sleep(3)
    kafka.kill(0)
    deployment.wait_until(lambda: all(sender.statuses.get(503, 0) > 1 for sender in senders), "everybody is told", 30)
    assert gateway.get("/healthz").status_code == 503
    assert gateway.get("/live").status_code == 200
    pixel = "/p.gif?advertiser_id=shop&event_type=visit&page=/&event_id=" + senders[0].prefix
    answer = gateway.get(pixel, referer="https://www.shop.example/")
    assert (answer.status_code, answer.headers["onecount"]) == (200, "taken"), "a pixel waits"
    senders[0].sent.add(senders[0].prefix)
    begun = time.monotonic()
    for _ in range(5):
        assert gateway.post(conversion("while-down")).status_code == 503
    assert time.monotonic() - begun < 8, "once Kafka is known to be down the answer does not wait each time"
    senders[0].sent.add("while-down")
    before = {sender.prefix: len(sender.accepted) for sender in senders}
    kafka.start(0)
    deployment.wait_until(
        lambda: all(len(sender.accepted) > before[sender.prefix] + 20 for sender in senders), "all go on", 90
    )
    finish(senders)
    assert all(sender.accepted == sender.sent - {sender.prefix, "while-down"} for sender in senders)
    deployment.wait_until(
        lambda: senders[0].prefix in {event["event_id"] for event in taken(deployment, "")}, "the pixel arrives", 30
    )
    assert_nothing_lost(deployment, senders)
    report = deployment.assert_exact(90)
    assert report.ok
    assert gateway.stop() == 0


@pytest.mark.timeout(120)
def test_after_an_outage_the_gateway_is_fit_again_though_nobody_sends(
    deployment: Deployment, kafka: LocalKafka
) -> None:
    gateway = Gateway(deployment, gateway_ack_timeout_ms=1_000).ready()
    kafka.kill(0)
    try:
        deployment.wait_until(lambda: gateway.post(conversion("down-1")).status_code == 503, "Kafka is away", 30)
        for _ in range(10):
            assert gateway.get("/healthz").status_code == 503
            time.sleep(0.5)
    finally:
        kafka.start(0)
    deployment.wait_until(lambda: gateway.get("/healthz").status_code == 200, "it is fit again", 30)
    assert gateway.post(conversion("again-2")).status_code == 202
    assert gateway.stop() == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_and_a_kill_lose_nothing_that_was_told_accepted(deployment: Deployment, number: signal.Signals) -> None:
    gateway = Gateway(deployment).ready()
    senders = clients(gateway)
    time.sleep(2)
    pixels = [f"{senders[0].prefix}-pixel-{at}" for at in range(50)]
    for event_id in pixels:
        path = f"/p.gif?advertiser_id=shop&event_type=visit&page=/&event_id={event_id}"
        assert gateway.get(path, referer="https://www.shop.example/").headers["onecount"] == "taken"
    senders[0].sent |= set(pixels)
    gateway.process.send_signal(number)
    code = gateway.process.wait(40)
    finish(senders)
    assert_nothing_lost(deployment, senders)
    if number == signal.SIGTERM:
        assert code == 0
        assert set(pixels) <= {event["event_id"] for event in taken(deployment, "")}, "a stop sends what waits"
        assert "without Kafka's acknowledgement" not in gateway.log.read_text()
        assert "Traceback" not in gateway.log.read_text()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fails", ["open", "closed"])
def test_without_redis_the_limiter_does_what_it_is_set_to(
    deployment: Deployment, redis_server: LocalRedis, fails: str
) -> None:
    gateway = Gateway(deployment, gateway_limiter_fails=fails).ready()
    slow = "oc_slow_for-tests-only"
    batch = [conversion(f"{fails}-{number}") for number in range(900)]
    assert gateway.post(batch, key=slow).status_code == 202
    assert gateway.post(batch, key=slow).status_code == 429
    redis_server.kill()
    try:
        for _ in range(3):
            begun = time.monotonic()
            assert gateway.post(batch, key=slow).status_code == (202 if fails == "open" else 503)
            assert time.monotonic() - begun < 5
    finally:
        redis_server.start()
    time.sleep(1.5)
    assert gateway.post(batch, key=slow).status_code in (202, 429)
    assert gateway.post(batch, key=slow).status_code == 429, "the limits hold again"
    assert gateway.stop() == 0


@pytest.mark.timeout(120)
def test_more_than_may_wait_is_refused_at_once_and_nothing_of_it_is_taken(
    deployment: Deployment, kafka: LocalKafka
) -> None:
    gateway = Gateway(deployment, gateway_max_waiting=100, gateway_ack_timeout_ms=10_000).ready()
    kafka.kill(0)
    try:
        waiting = [
            threading.Thread(target=gateway.post, args=([conversion(f"waits-{at}-{number}") for number in range(50)],))
            for at in range(2)
        ]
        for thread in waiting:
            thread.start()
        time.sleep(1)
        begun = time.monotonic()
        answer = requests.post(
            f"{gateway.url}/v1/events",
            json=[conversion("refused-1")],
            headers={"authorization": f"Bearer {KEY}"},
            timeout=10,
        )
        assert answer.status_code == 503
        assert time.monotonic() - begun < 2
        for thread in waiting:
            thread.join(30)
    finally:
        kafka.start(0)
    gateway.deployment.wait_until(lambda: gateway.post(conversion("again-1")).status_code == 202, "it goes on", 60)
    assert taken(deployment, "refused") == []
    assert len(taken(deployment, "again")) >= 1
    assert gateway.stop() == 0
