"""`onecount reconcile` on a real Kafka: what a marketer is told of a week, with and without a running desk."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
import yaml
from confluent_kafka import Producer

from app.contract.money import decode_return
from app.engine.clients import KafkaClients
from app.engine.rebuild import read_partition
from app.engine.topics import create_topics
from app.policy.load import load_policy
from app.settings import Settings
from tests.conftest import Services
from tests.desk.money import (
    DOCUMENT,
    SETTINGS,
    Entry,
    attributed,
    conversion,
    letter,
    numbered,
    order,
    report,
    spend,
    touches,
)
from tests.desk.money_oracle import reconciliation

pytestmark = pytest.mark.timeout(120)
NAMES = (
    "dlq", "rekeyed", "deltas", "policy", "attributed", "counts", "journeys", "models", "rollups", "leads", "overdue",
    "followups", "orders", "reported", "spend", "reconciliation", "return", "desk_dlq",
)  # fmt: skip
WEEK = [f"2026-11-{day}" for day in range(16, 23)]
PATIENCE_S = 30.0


class Shop:
    """One deployment's topics, and what was written to them."""

    def __init__(self, bootstrap: str, name: str, folder: Path) -> None:
        policy = folder / "policy.yaml"
        policy.write_text(yaml.safe_dump(DOCUMENT))
        own = {f"{each}_topic": f"{name}.{each}" for each in NAMES}
        own |= {"events_topics": f"{name}.events", "bootstrap": bootstrap, "policy": str(policy), "worker_id": name}
        own |= {f"{each}_group": f"{name}.{each}" for each in ("counter", "aggregator", "desk")} | {"desk_port": "0"}
        self.settings = Settings(**own)  # type: ignore[arg-type]
        self.environment = {f"ONECOUNT_{key.upper()}": value for key, value in own.items()}
        self.folder = folder
        self.written: list[Entry] = []
        self._topics = {getattr(SETTINGS, key): value for key, value in own.items() if key.endswith("_topic")}
        self._producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"{name}.tests"})
        self._producer.init_transactions(PATIENCE_S)

    def make_topics(self) -> None:
        create_topics(self.settings, load_policy(self.settings.policy)[0], -1)

    def write(self, *entries: Entry, commit: bool = True) -> None:
        """Writes records in one transaction."""
        self._producer.begin_transaction()
        for topic, key, value in entries:
            raw = value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
            self._producer.produce(self._topics[topic], raw, key)
        if commit:
            self._producer.commit_transaction(PATIENCE_S)
            self.written += entries
        else:
            self._producer.abort_transaction(PATIENCE_S)

    def reconcile(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command as a marketer runs it."""
        command = [sys.executable, "-m", "app", "reconcile", *arguments]
        return subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    def published(self, topic: str) -> dict[bytes, bytes]:
        """The committed rows of a topic of one partition."""
        found: dict[bytes, bytes] = {}
        for message in read_partition(KafkaClients(self.settings), topic, 0, 0, None):
            found.pop(message.key(), None)
            if message.value() is not None:
                found[message.key()] = message.value()
        return found

    def expected(self) -> dict[bytes, Any]:
        """What the oracle makes of all that was written."""
        return reconciliation(numbered(self.written))


@pytest.fixture
def shop(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Shop]:
    return Shop(services.bootstrap, topic_prefix, tmp_path)


def a_week(chance: random.Random) -> Iterator[Entry]:
    """Twenty orders that meta claims, some of them twice, one never paid, one refunded; and what it says of it."""
    for number in range(20):
        time = f"{chance.choice(WEEK)}T{chance.randrange(1, 22):02}:00"
        yield from conversion(time, f"c{number}", f"u{number}", order_id=f"o{number}", value=25.5)
        if number % 5 == 0:
            yield attributed(time, f"d{number}", f"u{number}", order_id=f"o{number}", status="duplicate", value=0.0)
        if number != 7:
            yield order(f"o{number}", time, 25.5, 25.5 if number == 8 else 0.0)
    yield from (order("early", "2026-11-16T00:30", 1.0), order("lost", "2026-11-22T20:00", 99.0))
    yield letter("too_old", "2026-11-17T12:00", "late")
    yield from (report(day, 26 if day == WEEK[0] else 0) for day in WEEK)


def test_a_marketer_checks_a_week(shop: Shop) -> None:
    refused = shop.reconcile("--week", "2026-W47")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "run `onecount topics create`" in refused.stderr

    shop.make_topics()
    empty = shop.reconcile()
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "nothing is known yet" in empty.stderr

    shop.write(*a_week(random.Random(1)), (SETTINGS.orders_topic, b"o", b'{"paid": "much", "broken": true}'))
    shop.write(order("never", "2026-11-20T12:00", 1e6), commit=False)
    path = shop.folder / "week.csv"
    told = shop.reconcile("--week", "2026-W47", "--csv", str(path))
    assert told.returncode == 1, told.stderr
    for words in (
        "shop: week 2026-W47, Mon 16 Nov 2026 to Sun 22 Nov 2026 (Europe/Berlin)",
        "4 reported twice; 1 came too late; 1 unexplained",
        "conversions that platforms count: 20, that there really were: 20; each is claimed 1.00 times",
        "orders that were paid: 21, of them paid back in full: 1",
        "paid orders that never arrived as a conversion: 2 (100.00 EUR)",
        "out of tolerance: meta (tolerance 10.0%)",
    ):
        assert words in told.stdout, told.stdout
    assert "1 records were refused" in told.stderr
    assert f"{shop.settings.orders_topic}:0:21 invalid_field paid" in told.stderr

    expected = {key: row for key, row in shop.expected().items() if row["period"] == "2026-W47"}
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(max(len(row["money"]), 1) for row in expected.values())
    whole = next(line for line in lines if line["level"] == "all")
    assert (whole["orders"], whole["money_paid"], whole["money_net"]) == ("21", "584.5", "559.0")

    # the platform counts each order once now, and its report of the first day is sent again
    shop.write(report(WEEK[0], 21))
    told = shop.reconcile("--week", "2026-W47", "--platform", "meta", "--show", "0")
    assert (told.returncode, "within tolerance" in told.stdout, "spring" in told.stdout) == (0, True, False), (
        told.stdout
    )
    assert shop.reconcile("--to-date").returncode == 0
    other = shop.reconcile("--week", "2026-W40")
    assert (other.returncode, "weeks of 2026-W47 to 2026-W47 are known" in other.stderr) == (2, True)
    for wrong in (
        ("--week", "2026-W54"),
        ("--week", "47"),
        ("--platform", "metta"),
        ("--week", "2026-W47", "--to-date"),
    ):
        assert shop.reconcile(*wrong).returncode == 2, wrong


def test_a_desk_publishes_the_rows_that_the_command_prints(shop: Shop) -> None:
    shop.make_topics()
    stale = b'["shop","2026-W01","meta",null]'  # of an earlier desk, with other time zones
    shop.write(*a_week(random.Random(2)), touches("2026-11-16T12:00", cost=9.0), spend("2026-11-17", 30.0))
    shop.write((SETTINGS.reconciliation_topic, stale, b"{}"))
    shop.written.pop()
    log = (shop.folder / "desk.log").open("wb")
    desk = subprocess.Popen(
        [sys.executable, "-m", "app", "desk"], env=os.environ | shop.environment, stdout=log, stderr=log
    )
    try:
        wait_until_equal(shop, desk)
        shop.write(order("o3", "2026-11-18T12:00", 25.5, 5.5), *conversion("2026-11-18T12:00", "new", "u99"))
        wait_until_equal(shop, desk)
        returned = [decode_return(value) for value in shop.published(shop.settings.return_topic).values()]
        (total,) = [row for row in returned if (row.period, row.level) == ("2026-W47", "total")]
        assert (total.conversions, [(each.currency, each.cost, each.spend) for each in total.money]) == (
            21, [("EUR", 39.0, 30.0)],
        )  # fmt: skip
    finally:
        desk.send_signal(signal.SIGTERM)
        code = desk.wait(30)
        log.close()
    assert code == 0, (shop.folder / "desk.log").read_text()


def wait_until_equal(shop: Shop, desk: subprocess.Popen[bytes]) -> None:
    """Until the topic holds just the oracle's rows."""
    expected, deadline_s = shop.expected(), time.monotonic() + PATIENCE_S
    while True:
        found = {key: orjson.loads(row) for key, row in shop.published(shop.settings.reconciliation_topic).items()}
        if found == expected:
            return
        said = (shop.folder / "desk.log").read_text()
        assert desk.poll() is None, said
        assert time.monotonic() < deadline_s, f"{found.keys() ^ expected.keys()}\n{said}"
        time.sleep(0.2)
