"""Real desks on a real Kafka: processes, the records that they are told, and what they publish, held against the oracle."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

import orjson
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from app.contract.journeys import JourneyRow
from app.contract.rows import CountRow, encode
from app.engine.topics import create_topics
from app.policy.load import load_desk, load_policy
from app.settings import Settings
from tests.desk import money_oracle, oracle
from tests.desk.made import ORDERS, count, journey, key_of, told
from tests.desk.money import SETTINGS, numbered
from tests.integration.deployment import names_of

POLICY = Path(__file__).with_name("policy.yaml")
PATIENCE_S = 60.0
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
ADVERTISERS = ("shop", "far")
Rows = dict[tuple[Any, ...], dict[str, Any]]


class Desks:
    """One deployment's desks. What was produced is kept, so that the oracle knows it."""

    def __init__(self, bootstrap: str, name: str, folder: Path, **settings: object) -> None:
        own = names_of(name) | {
            "bootstrap": bootstrap,
            "policy": str(POLICY),
            "worker_id": name,
            "session_timeout_ms": 6_000,
            "transaction_timeout_ms": 5_000,
            "desk_port": 0,
            "namespace": name[-20:],
        }
        values = own | settings
        self.environment = {f"ONECOUNT_{key.upper()}": str(value) for key, value in values.items()}
        self.settings = Settings(**values)  # type: ignore[arg-type]
        self.policy, self.desk_policy = load_policy(POLICY)[0], load_desk(POLICY)
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.journeys: dict[bytes, JourneyRow | None] = {}
        self.counts: dict[bytes, CountRow] = {}
        self.told: list[oracle.Told] = []
        self.refused = 0
        create_topics(self.settings, self.policy, -1)
        self._producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"{name}.tests"})
        self._producer.init_transactions(PATIENCE_S)

    # --- Processes

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """One more `onecount desk`; its log is `desk-<number>.log`."""
        with (self.folder / f"desk-{len(self.processes)}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "desk"],
                env=os.environ | self.environment | environment,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def onecount(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command as an operator runs it."""
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def remake(self, *topics: str) -> None:
        """Deletes topics and makes them anew."""
        admin = AdminClient({"bootstrap.servers": self.settings.bootstrap})
        for future in admin.delete_topics(list(topics), operation_timeout=PATIENCE_S).values():
            future.result()
        made: set[str] = set()

        def is_made() -> bool:
            made.update(create_topics(self.settings, self.policy, -1))
            return made >= set(topics)

        self.wait(is_made, "they are made anew")

    def events(self, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        """What a process has logged."""
        raw = (self.folder / f"desk-{self.processes.index(process)}.log").read_bytes()
        return [orjson.loads(line) for line in raw.splitlines() if line.startswith(b"{") and line.endswith(b"}")]

    def url(self, process: subprocess.Popen[bytes]) -> str:
        """Where it serves, once it does: it says so a moment before it listens."""
        self.wait(lambda: any("url" in event for event in self.events(process)), "the desk serves")
        url = next(event["url"] for event in self.events(process) if "url" in event).removesuffix("/leads")
        self.wait(lambda: process.poll() is not None or listens(url), "the desk listens")
        return url

    def get(self, process: subprocess.Popen[bytes], path: str, host: str | None = None) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        request = urllib.request.Request(self.url(process) + path, headers={"Host": host} if host else {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, orjson.loads(answer.read())
        except urllib.error.HTTPError as error:
            body = error.read()
            return error.code, orjson.loads(body) if body.startswith(b"{") else body.decode()
        except urllib.error.URLError as error:
            raise AssertionError(f"{error} (exit code {process.poll()})\n{self.logs()}") from error

    def is_active(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it said that it publishes, and not since that it begins anew."""
        said = [event["event"] for event in self.events(process)]
        return (
            "active" in said and "session ended, beginning anew" not in said[len(said) - said[::-1].index("active") :]
        )

    def logs(self) -> str:
        """The ends of the logs, for a failure's message."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def wait(self, holds: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Polls a condition; an error that names it after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}\n{self.logs()}"
            time.sleep(0.1)

    # --- What the desks are told

    def produce(self, topic: str, key: bytes | None, value: bytes | None, partition: int | None = None) -> None:
        """One record of the transaction at hand."""
        where = {} if partition is None else {"partition": partition}
        while True:
            try:
                return self._producer.produce(topic, value, key, **where)
            except BufferError:
                self._producer.poll(0.1)

    @contextmanager
    def transaction(self, commit: bool = True) -> Iterator[None]:
        """What is produced in the block becomes readable together, or, aborted, never."""
        self._producer.begin_transaction()
        yield
        if commit:
            self._producer.commit_transaction(PATIENCE_S)
        else:
            self._producer.flush(PATIENCE_S)
            self._producer.abort_transaction(PATIENCE_S)

    def convert(self, row: JourneyRow, is_deleted: bool = False) -> None:
        """A row of `conversions.journeys`."""
        self.journeys[key_of(row)] = None if is_deleted else row
        self.produce(self.settings.journeys_topic, key_of(row), None if is_deleted else encode(row))

    def count(self, key: bytes, row: CountRow) -> None:
        """A row of `conversions.counts`."""
        self.counts[key] = row
        self.produce(self.settings.counts_topic, key, encode(row), self.partition_of(key))

    def partition_of(self, key: bytes) -> int:
        """Where a row of `conversions.counts` lies."""
        return crc32(key) % self.settings.partitions

    def tell(self, each: oracle.Told) -> None:
        """A follow-up."""
        self.told.append(each)
        value = told(each.kind, each.time_ms, each.user_id, each.action, each.advertiser_id)
        self.produce(self.settings.followups_topic, each.user_id.encode(), value)

    def tell_nonsense(self, value: bytes | None) -> None:
        """A follow-up that breaks the contract."""
        self.refused += 1
        self.produce(self.settings.followups_topic, b"?", value)

    def work(self, random: random.Random, now_ms: int, rows: int = 200) -> None:
        """Some of everything, in one transaction, and an aborted one that nobody may ever see."""
        with self.transaction():
            for _ in range(rows):
                self._one(random, now_ms)
        with self.transaction(commit=False):
            row = journey("ghost", "demo_booked", "g", now_ms - DAY_MS)
            self.produce(self.settings.journeys_topic, key_of(row), encode(row))
            self.produce(
                self.settings.counts_topic, *(lambda key, row: (key, encode(row)))(*count(now_ms, "ghost", views=1))
            )

    def _one(self, random: random.Random, now_ms: int) -> None:
        # whole hours, and a quarter off: nothing falls due while a test compares
        time_ms = now_ms // HOUR_MS * HOUR_MS - random.randrange(1, 200) * HOUR_MS - 900_000
        user, advertiser = f"u{random.randrange(60)}", random.choice(ADVERTISERS)
        kind = random.random()
        if kind < 0.4:
            action = random.choice(("demo_booked", "newsletter", "signup", "purchase"))
            status = random.choice(("counted", "counted", "unattributed", "retracted"))
            row = journey(user, action, f"e{random.randrange(4)}", time_ms, status=status, advertiser=advertiser)
            self.convert(row, is_deleted=random.random() < 0.05)
        elif kind < 0.6:
            told = random.choice(("contacted", "sent", "won", "lost"))
            self.tell(oracle.Told(told, time_ms, advertiser, user, random.choice(("demo_booked", "newsletter", None))))
        elif kind < 0.62:
            self.tell_nonsense(random.choice((b"", None, b"{}", b"\xff", b'{"kind":"phoned"}')))
        else:
            window_ms = time_ms + 900_000 + random.randrange(60) * 60_000
            campaign = random.choice(("spring", "brand", None))
            names = {"advertiser": advertiser, "platform": random.choice(("meta", "all"))}
            key, row = count(window_ms, campaign, **names, clicks=random.randrange(50), cost=random.randrange(10**6) / 1e4,
                             final=random.random() < 0.5)  # fmt: skip
            self.count(key, row)

    # --- What they publish

    def published(self, topic: str) -> Rows:
        """The committed rows of a topic by key, the last of each."""
        consumer = Consumer(
            {"bootstrap.servers": self.settings.bootstrap, "group.id": "look", "isolation.level": "read_committed",
             "auto.offset.reset": "earliest", "enable.partition.eof": True}
        )  # fmt: skip
        found: Rows = {}
        with closing(consumer):
            consumer.assign([TopicPartition(topic, 0, 0)])
            while True:
                message = consumer.poll(10)
                assert message is not None, f"{topic} is not read to its end"
                if message.error() is not None:
                    assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                    return found
                key = tuple(orjson.loads(message.key()))
                found.pop(key, None)
                if message.value() is not None:
                    found[key] = orjson.loads(message.value())

    def wanted(self, now_ms: int) -> dict[str, Rows]:
        """What must lie on the topics of leads, rollups and money, by the oracles."""
        leads = oracle.leads(
            [row for row in self.journeys.values() if row is not None], self.told, self.desk_policy, ORDERS
        )
        held_ms = self.policy.count_retention_ms() + 8 * DAY_MS
        return {
            self.settings.leads_topic: oracle.kept(leads, self.desk_policy, now_ms),
            self.settings.overdue_topic: oracle.overdue(leads, now_ms),
            self.settings.rollups_topic: oracle.rollups(
                ((self.partition_of(key), row) for key, row in self.counts.items()),
                self.desk_policy,
                held_ms,
                self.settings.partitions,
            ),
        } | self._wanted_of_money()

    def _wanted_of_money(self) -> dict[str, Rows]:
        records = numbered(
            [
                *((SETTINGS.journeys_topic, key, row) for key, row in self.journeys.items()),
                *((SETTINGS.counts_topic, key, row) for key, row in self.counts.items()),
            ]
        )
        found = {
            self.settings.reconciliation_topic: money_oracle.reconciliation(records),
            self.settings.return_topic: money_oracle.returns(records),
        }
        return {topic: {tuple(orjson.loads(key)): row for key, row in rows.items()} for topic, rows in found.items()}

    def differences(self) -> dict[str, tuple[int, int]]:
        """By topic, how many rows are wrong or missing, and how many too many; nothing where all is right."""
        found = {}
        for topic, wanted in self.wanted(time.time_ns() // 1_000_000).items():
            rows = self.published(topic)
            wrong = sum(rows.get(key) != row for key, row in wanted.items())
            extra = len(rows.keys() - wanted.keys())
            if wrong or extra:
                found[topic] = (wrong, extra)
        refused = len(self.published(self.settings.refused_followups_topic))
        return found | ({"refused": (self.refused, refused)} if refused != self.refused else {})

    def assert_exact(self, timeout_s: float = PATIENCE_S) -> None:
        """Waits until every row of every output topic is the oracle's."""
        deadline_s = time.monotonic() + timeout_s
        while found := self.differences():
            assert time.monotonic() < deadline_s, f"(wrong, too many) rows: {found}\n{self.logs()}"
            time.sleep(0.3)

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM; the exit code."""
        process.send_signal(signal.SIGTERM)
        return process.wait(PATIENCE_S)


def listens(url: str) -> bool:
    """Whether anybody takes connections there."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port), 10).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def desks(bootstrap: str, name: str, folder: Path, **settings: object) -> Iterator[Desks]:
    """A deployment whose processes end with the test."""
    deployment = Desks(bootstrap, name, folder, **settings)
    try:
        yield deployment
    finally:
        for process in deployment.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
