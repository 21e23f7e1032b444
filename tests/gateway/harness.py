"""A gateway as a process of its own, over a deployment's Kafka and Redis, and the events that a test sends it."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import orjson
import requests
import yaml
from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from app.engine.clients import KafkaClients
from app.gateway import keys
from tests.integration.deployment import Deployment

SECRET = "s" * 40
SALT = "t" * 40
KEY = "oc_all_for-tests-only"
META_KEY = "oc_meta_for-tests-only"
ORIGIN = "https://www.shop.example"
CONFIG: dict[str, Any] = {
    "keys": {
        "all": {"sha256": keys.digest(KEY), "advertisers": ["*"], "events_per_s": 1_000_000},
        "meta": {"sha256": keys.digest(META_KEY), "advertisers": ["shop"], "platforms": ["meta"]},
        "old": {
            "sha256": keys.digest("oc_old_for-tests-only"),
            "advertisers": ["shop"],
            "expires": "2020-01-01T00:00:00Z",
        },
        "slow": {
            "sha256": keys.digest("oc_slow_for-tests-only"),
            "advertisers": ["shop"],
            "events_per_s": 10,
            "burst": 1_000,
        },
    },
    "advertisers": {
        "shop": {
            "origins": [ORIGIN, "https://*.brand.example"],
            "pixel_keys": ["p1", "p2"],
            "events_per_s": 100_000,
        },
        "cautious": {
            "origins": [ORIGIN],
            "consent": "asked",
            "unsigned_pixels": False,
            "browser_events": ["visit"],
            "cookie": {"domain": "shop.example"},
        },
        "remembered": {"origins": [ORIGIN], "cookie": {"domain": "shop.example"}},
        "hashed": {"origins": [ORIGIN], "hash_user_ids": True},
    },
}


class Gateway:
    """One running gateway; ended by whoever ends the deployment's processes."""

    def __init__(self, deployment: Deployment, config: dict[str, Any] = CONFIG, **settings: object) -> None:
        self.deployment = deployment
        self.log = deployment.folder / f"gateway-{len(deployment.running)}.log"
        file = self.log.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(config))
        own = {
            "gateway_port": 0,
            "gateway_config": file,
            "gateway_secret": SECRET,
            "gateway_user_salt": SALT,
        } | settings
        environment = {f"ONECOUNT_{name.upper()}": str(value) for name, value in own.items()}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "gateway"],
                env=os.environ | deployment.environment | environment,
                stdout=log,
                stderr=log,
            )
        deployment.running.append(self.process)
        deployment.wait_until(lambda: b'"url"' in self.log.read_bytes(), "the gateway listens")
        self.url = next(orjson.loads(line)["url"] for line in self.log.read_bytes().splitlines() if b'"url"' in line)
        self.port = int(self.url.rpartition(":")[2])
        self.session = requests.Session()

    def ready(self) -> "Gateway":
        """Waits until it takes events."""
        self.deployment.wait_until(lambda: self.get("/healthz").status_code == 200, "the gateway takes events")
        return self

    def get(self, path: str, **headers: str) -> requests.Response:
        """A GET of one of its addresses."""
        return self.session.get(self.url + path, headers=named(headers), timeout=20, allow_redirects=False)

    def post(self, body: Any, path: str = "/v1/events", key: str | None = KEY, **headers: str) -> requests.Response:
        """A POST of bytes as they are, or of anything else as JSON."""
        given = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.session.post(self.url + path, data=data, headers=given | named(headers), timeout=30)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


def named(headers: dict[str, str]) -> dict[str, str]:
    """content_type -> content-type."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def conversion(event_id: str, **fields: Any) -> dict[str, Any]:
    """A sound conversion."""
    return {
        "event_id": event_id,
        "event_type": "conversion",
        "event_time": now_ms(),
        "advertiser_id": "shop",
        "user_id": "user-1",
        "conversion_name": "purchase",
    } | fields


def visit(event_id: str, **fields: Any) -> dict[str, Any]:
    """A sound visit."""
    event = conversion(event_id, **{"event_type": "visit", "page": "/"} | fields)
    del event["conversion_name"]
    return event


def taken(deployment: Deployment, prefix: str) -> list[dict[str, Any]]:
    """The events of the raw topic whose ids begin so, each as it was produced; repeats stand there more than once."""
    consumer = KafkaClients(deployment.settings).reader()
    topic = deployment.settings.events_topics[0]
    try:
        found, ended = [], set()
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(4)])
        deadline = time.monotonic() + 30
        while len(ended) < 4:
            assert time.monotonic() < deadline, "the topic can't be read to its end"
            for message in consumer.consume(1_000, 0.2):
                if message.error() is not None:
                    ended.add(message.partition())
                    continue
                event = orjson.loads(message.value())
                if event["event_id"].startswith(prefix):
                    assert message.key() == event["user_id"].encode()
                    found.append(event)
        return found
    finally:
        consumer.close()
