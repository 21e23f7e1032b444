"""The example consumers of deploy/bi on a real run: killed half-way, corrected later, each figure held against the oracle."""

import hashlib
import json
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import msgspec
import orjson
import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from app.contract import rows
from app.contract.rows import AttributedRow, CountRow
from app.engine.clients import KafkaClients
from app.engine.policy_topic import recorded_policy
from app.verify.differences import Upsert, fold_log
from app.verify.logs import fix_spans, read_log, to_record
from app.verify.oracle import Answer, answer
from app.verify.sequence import committed_batches
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed
from tests.integration.postgres import local_postgres

BI = Path(__file__).resolve().parents[2] / "deploy" / "bi"
PAGE = BI.parents[1] / "docs" / "contract.md"
DAY_MS = 86_400_000
DIMENSIONS = {  # of the questions that count by something
    "2. Conversions, rate and value by platform": ("platform",),
    "3. Conversions, rate and value by campaign": ("advertiser_id", "platform", "campaign_id"),
    "4. Conversions, rate and value by creative": ("advertiser_id", "platform", "campaign_id", "creative_id"),
    "5. Conversions, rate and value by landing page": ("advertiser_id", "platform", "landing_page"),
    "6. Conversions, rate and value by offer": ("advertiser_id", "platform", "offer_id"),
}
STEP_S = 20.0
Place: TypeAlias = tuple[str, bytes]  # topic, key
NOT_OF_THE_ROW = {"key", "key_sha256", "kafka_partition", "kafka_offset", "day"}
HALTED = """
    CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(120); RETURN NEW; END $$;
    CREATE TRIGGER halt BEFORE INSERT OR UPDATE ON copied_to FOR EACH ROW EXECUTE FUNCTION halt()"""
HALTED_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with local_postgres() as address:
        yield address


@pytest.fixture(scope="module")
def deployment(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    with deployed(services.bootstrap, services.redis_url, name, tmp_path_factory.mktemp("bi")) as running:
        running.start("counter")
        running.start("aggregator")
        # the broker is fresh, and `verify` asks it at once where the groups stand
        running.wait_until(
            lambda: len(running.owned("counter")) == len(running.owned("aggregator")) == 4, "both own all"
        )
        yield running


class Copies:
    """The two example consumers as their users run them, and what they hold."""

    def __init__(self, bootstrap: str, counts: str, attributed: str, out: Path, postgres: str) -> None:
        self.out, self.postgres = out, postgres
        topics = ["--bootstrap", bootstrap, "--counts-topic", counts, "--attributed-topic", attributed]
        self.load_command = [sys.executable, str(BI / "parquet_copy.py"), "load", "--out", str(out), *topics]
        self.copy_command = [sys.executable, str(BI / "postgres_copy.py"), "--database", postgres, *topics]
        with psycopg.connect(postgres) as database:
            database.execute("DROP TABLE IF EXISTS counts, conversions, copied_to")
            database.execute((BI / "postgres.sql").read_text())

    def bring_up_to_date(self) -> str:
        """Runs both; what they said."""
        said = [run(self.load_command), run([*self.copy_command, "--once"])]
        assert [each.returncode for each in said] == [0, 0], said
        return "".join(each.stdout + each.stderr for each in said)

    def snapshot(self) -> Path:
        return (self.out / "current").resolve()

    def parquet(self, table: str) -> list[dict[str, Any]]:
        with duckdb.connect() as database:
            found = database.execute(
                f"FROM read_parquet('{self.snapshot()}/{table}/*/*.parquet', hive_partitioning=true)"
            )
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def database(self, table: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.postgres, row_factory=psycopg.rows.dict_row) as database:
            return database.execute(f"SELECT * FROM {table}").fetchall()

    def parquet_answers(self) -> dict[str, list[dict[str, Any]]]:
        said = run([sys.executable, str(BI / "parquet_copy.py"), "report", "--json", "--out", str(self.out)])
        assert said.returncode == 0, said
        return json.loads(said.stdout)

    def database_answers(self) -> dict[str, list[dict[str, Any]]]:
        """As `psql -f answers.sql` would print them, by title."""
        statements = dict(each.split("\n", 1) for each in (BI / "answers.sql").read_text().split("\n-- ")[1:])
        with psycopg.connect(self.postgres, row_factory=psycopg.rows.dict_row) as database:
            return {title: database.execute(text).fetchall() for title, text in statements.items()}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def wait_until(holds: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- What must be there


def recomputed(deployment: Deployment) -> Answer:
    """The oracle's answer to the raw events, which shares nothing with the counting or the copies."""
    settings = deployment.settings
    spans = fix_spans(settings, settings.input_topics())
    deltas = {(settings.deltas_topic, 0): fix_spans(settings, [settings.deltas_topic])[settings.deltas_topic, 0]}
    order = committed_batches(message.value() for message in read_log(settings, deltas))
    policy = recorded_policy(settings, KafkaClients(settings))
    records = [to_record(message) for message in read_log(settings, spans)]
    return answer(records, policy, settings.partitions, order, settings.rekeyed_topic)


def published(deployment: Deployment, topic: str) -> dict[bytes, Any]:
    """The topic's latest rows, read from its start."""
    decode = rows.decode_count if topic == deployment.settings.counts_topic else rows.decode_attributed
    log = read_log(deployment.settings, fix_spans(deployment.settings, [topic]))
    folded = fold_log(
        topic, (Upsert(each.partition(), each.offset(), each.key(), each.value()) for each in log), decode
    )
    assert not folded.faults
    return folded.rows


def as_columns(row: AttributedRow | CountRow) -> dict[str, Any]:
    """A row as the copies hold it: times as UTC timestamps, money exact, dimensions as columns."""
    found = msgspec.structs.asdict(row)
    if isinstance(row, CountRow):
        found |= dict.fromkeys(("campaign_id", "ad_id", "creative_id", "landing_page", "offer_id", "source", "medium"))
        found |= found.pop("dimensions")
    for name in ("window_start", "window_end", "event_time", "touch_time"):
        if found.get(name) is not None:
            found[name] = datetime(1970, 1, 1) + timedelta(milliseconds=found[name])  # noqa: DTZ001 - UTC without a zone
    return found | {name: Decimal(str(found[name])) for name in rows.MONEY_MEASURES if name in found}


def assert_holds(held: list[dict[str, Any]], must: dict[bytes, Any], but: frozenset[str] = frozenset()) -> None:
    """Whether a copy's table is these rows, no more, no less and no other; `but`: columns that are left out."""
    found = {}
    for row in held:
        key = row["key_sha256"] if "key_sha256" in row else hashlib.sha256(row["key"].encode()).digest()
        assert key not in found, f"twice: {row}"
        found[key] = {name: value for name, value in row.items() if name not in NOT_OF_THE_ROW | but}
    expected = {hashlib.sha256(key).digest(): as_columns(row) for key, row in must.items()}
    assert found == {key: {name: row[name] for name in row.keys() - but} for key, row in expected.items()}


def by(counts: dict[bytes, CountRow], dimensions: tuple[str, ...]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Views, clicks, conversions, rate and value by dimensions, action and currency, added up from the oracle's rows."""
    touches: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    earned: dict[tuple[Any, ...], list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
    for row in map(as_columns, counts.values()):
        place = tuple(row[name] for name in dimensions)
        for index, name in enumerate(("views", "clicks", "conversions")):
            touches[place][index] += row[name]
        if row["conversion_name"]:
            earned[*place, row["conversion_name"], row["currency"]][0] += row["conversions"]
            earned[*place, row["conversion_name"], row["currency"]][1] += row["value"]
    found = {}
    for (*place, action, currency), (conversions, value) in earned.items():
        views, clicks, _ = touches[tuple(place)]
        if conversions:
            found[*place, action, currency] = (
                views,
                clicks,
                int(conversions),
                hundredths(value),
                rate(conversions, clicks),
            )
    for place, (views, clicks, conversions) in touches.items():
        if not conversions:
            found[*place, "", ""] = (views, clicks, 0, 0, rate(0, clicks))
    return found


def rate(conversions: Decimal | int, clicks: int) -> Any:
    """Conversions per 100 clicks, as something that is printed with two digits; null without clicks."""
    return pytest.approx(100 * float(conversions) / clicks, abs=0.00501) if clicks else None


def hundredths(amount: Any) -> int | None:
    return None if amount is None else int((Decimal(str(amount)) * 100).to_integral_value(ROUND_HALF_UP))


def assert_answers(answers: dict[str, list[dict[str, Any]]], expected: Answer) -> None:
    """Whether every figure of every question is the one that follows from the raw events."""
    for title, dimensions in DIMENSIONS.items():
        found = {
            tuple(row[name] for name in (*dimensions, "action", "currency")): (
                *(int(row[name]) for name in ("views", "clicks", "conversions")),
                hundredths(row["value"]),
                row["per_100_clicks"] if row["per_100_clicks"] is None else float(row["per_100_clicks"]),
            )
            for row in answers[title]
        }
        assert len(found) == len(answers[title])
        assert found == by(expected.counts, dimensions), title
    attributed = [as_columns(row) for row in expected.attributed.values()]
    not_counted: dict[Any, list[Any]] = defaultdict(lambda: [0, 0])
    once: dict[Any, list[Any]] = defaultdict(lambda: [0, 0, 0])
    platforms: dict[Any, list[Any]] = defaultdict(list)
    for row in attributed:
        if row["status"] == "counted":
            platforms[row["advertiser_id"], row["user_id"], row["conversion_name"], row["event_id"]].append(row)
        else:
            each = not_counted[row["platform"], row["conversion_name"], row["status"], row["currency"]]
            each[0] += 1
            each[1] += row["value"]
    for earned in platforms.values():
        each = once[earned[0]["conversion_name"], earned[0]["currency"]]
        each[:] = each[0] + 1, each[1] + earned[0]["value"], each[2] + (len(earned) > 1)
    found = {
        (row["platform"], row["action"], row["status"], row["currency"]): [row["conversions"], hundredths(row["value"])]
        for row in answers["7. Conversions that do not count, and why"]
    }
    assert found == {key: [number, hundredths(value)] for key, (number, value) in not_counted.items()}
    found = {
        (row["action"], row["currency"]): [
            row["conversions"],
            hundredths(row["value"]),
            row["earned_by_several_platforms"],
        ]
        for row in answers["8. Each conversion once, however many platforms earned it"]
    }
    assert found == {key: [number, hundredths(value), several] for key, (number, value, several) in once.items()}
    cohorts = answers["9. Of a day's clicks, how many have converted by now"]
    clicked = [row for row in attributed if row["status"] == "counted" and row["touch_type"] == "click"]
    assert sum(row["conversions"] for row in cohorts) == len(clicked)
    assert sum(int(row["clicks"]) for row in cohorts) == sum(row.clicks for row in expected.counts.values())
    took = answers["10. How long a counted conversion takes from its touch"]
    assert sum(row["conversions"] for row in took) == sum(row["status"] == "counted" for row in attributed)


def assert_is_the_answer(deployment: Deployment, copies: Copies) -> Answer:
    """Both copies, row by row and figure by figure."""
    expected = recomputed(deployment)
    settings = deployment.settings
    for held in (copies.parquet, copies.database):
        assert_holds(held("counts"), published(deployment, settings.counts_topic))
        assert_holds(held("conversions"), published(deployment, settings.attributed_topic))
        counts = [row for row in held("counts") if any(row[name] for name in rows.MEASURES)]
        assert_holds(counts, expected.counts, but=frozenset({"revision", "final"}))
        assert_holds(held("conversions"), expected.attributed, but=frozenset({"revision"}))
    assert_answers(copies.parquet_answers(), expected)
    assert_answers(copies.database_answers(), expected)
    return expected


# --- What happens


def send(deployment: Deployment, events: list[dict[str, Any]], at_their_time: bool = False) -> None:
    """Produces events as an outside producer does; `at_their_time`: with the records' timestamps of then."""
    producer = Producer({"bootstrap.servers": deployment.settings.bootstrap, "partitioner": "murmur2_random"})
    for event in events:
        when = {"timestamp": event["event_time"]} if at_their_time else {}
        producer.produce(
            deployment.settings.events_topics[0], json.dumps(event).encode(), event["user_id"].encode(), **when
        )
    assert producer.flush(20) == 0


def conversion(number: int, days_ago: int, **fields: object) -> dict[str, Any]:
    time_ms = int(time.time() * 1000) - days_ago * DAY_MS - number
    return {"event_id": f"c{number}", "event_type": "conversion", "event_time": time_ms, "advertiser_id": "shop",
            "user_id": f"u{number}", "conversion_name": "purchase", "value": number + 0.1, "currency": "EUR"} | fields  # fmt: skip


def click_before(conversion: dict[str, Any], **fields: object) -> dict[str, Any]:
    same = {name: conversion[name] for name in ("advertiser_id", "user_id")}
    return {"event_id": f"k-{conversion['event_id']}", "event_type": "click", "event_time": conversion["event_time"] - 1,
            "platform": "meta", "campaign_id": "late", "creative_id": "film", "landing_page": "/" + "ä" * 2000} | same | fields  # fmt: skip


def corrections(deployment: Deployment) -> list[dict[str, Any]]:
    """Retractions, restatements and late clicks for conversions that the copies hold already."""
    found = []
    counted = [
        row for row in published(deployment, deployment.settings.attributed_topic).values() if row.status == "counted"
    ]
    for number, row in enumerate(sorted(counted, key=lambda row: row.event_id)[:60]):
        event = {
            "event_id": row.event_id,
            "event_time": row.event_time,
            "advertiser_id": row.advertiser_id,
            "user_id": row.user_id,
        }
        adjustment = event | {"event_id": f"a{number}", "event_type": "adjustment", "event_time": row.event_time + 1,
                              "conversion_event_id": row.event_id}  # fmt: skip
        found.append(
            [adjustment | {"adjustment": "retract"}, adjustment | {"adjustment": "restate", "value": 1234.567891},
             click_before(event, platform=row.platform)][number % 3]
        )  # fmt: skip
    return found


def kill_half_way(command: list[str], is_half_way: Callable[[], object]) -> None:
    """Runs a command until a moment that lies between its first and its last write, and kills it there."""
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(is_half_way)
        assert killed.poll() is None
    finally:
        killed.kill()
        killed.wait()


# --- The page's examples


def told_story() -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The story of docs/contract.md: what is sent, and the records that come of it, step by step."""
    section = PAGE.read_text().partition("\n## A story\n")[2].partition("\n## ")[0]
    decoder, objects = json.JSONDecoder(), []
    for block in section.split("```json\n")[1:]:
        rest = block.partition("```")[0].strip()
        while rest:
            found, end = decoder.raw_decode(rest)
            objects.append(found)
            rest = rest[end:].strip()
    runs = [list(found) for _, found in groupby(objects, key=lambda each: "topic" in each)]
    return list(zip(runs[::2], runs[1::2], strict=True))


def without_progress(row: Any) -> dict[str, Any]:
    """A row but for what depends on when it was written; an attributed row's revision does not."""
    found = msgspec.structs.asdict(row)
    return {
        name: value
        for name, value in found.items()
        if isinstance(row, AttributedRow) or name not in ("revision", "final")
    }


def changes(before: dict[Place, dict[str, Any]], after: dict[Place, dict[str, Any]]) -> dict[Place, Any]:
    """What the page must tell of a step, by topic and key: new rows, the changed fields of others, None for deleted ones."""
    found: dict[Place, Any] = dict.fromkeys(before.keys() - after.keys())
    for place, row in after.items():
        old = before.get(place, {})
        found[place] = {name: value for name, value in row.items() if name not in old or old[name] != value}
    return {place: change for place, change in found.items() if change != {}}


@pytest.mark.timeout(120)
def test_the_story_of_the_page_is_what_happens(deployment: Deployment) -> None:
    # first of this module, since its events are older than those of the others
    settings = deployment.settings
    topics = {"conversions.attributed": settings.attributed_topic, "conversions.counts": settings.counts_topic}

    def rows_now() -> dict[Place, dict[str, Any]]:
        return {
            (name, key): without_progress(row)
            for name, topic in topics.items()
            for key, row in published(deployment, topic).items()
        }

    steps = told_story()
    assert len(steps) >= 5
    before: dict[Place, dict[str, Any]] = {}
    for events, told in steps:
        send(deployment, events, at_their_time=True)
        must = {(each["topic"], orjson.dumps(each["key"])): each["value"] for each in told}
        for (topic, _), value in must.items():
            if topic == "conversions.counts":
                del value["revision"]
                value.pop("final", None)
        deadline = time.monotonic() + STEP_S
        while (found := changes(before, after := rows_now())) != must and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == must
        before = after
    deployment.assert_exact()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_copies_are_the_answer_after_kills_and_late_corrections(
    deployment: Deployment, postgres: str, tmp_path: Path
) -> None:
    settings = deployment.settings
    copies = Copies(settings.bootstrap, settings.counts_topic, settings.attributed_topic, tmp_path / "bi", postgres)
    lonely = [conversion(number, days_ago=number % 4) for number in range(12)]  # no platform and no touch: a row of ""
    send(deployment, lonely)
    assert deployment.generate("--count", "3000", "--seed", "31").wait(60) == 0
    deployment.assert_exact()

    # Killed in the first load, before anything holds; then again, as cron would.
    partial = tmp_path / "bi" / "snapshots"
    kill_half_way(copies.load_command, lambda: list(partial.glob("*.partial/*.jsonl")))
    assert not (tmp_path / "bi" / "current").exists()
    with psycopg.connect(postgres, autocommit=True) as database:
        database.execute(HALTED)
        kill_half_way(copies.copy_command, lambda: database.execute(HALTED_BACKENDS).fetchone())
        for (backend,) in database.execute(HALTED_BACKENDS).fetchall():
            database.execute("SELECT pg_terminate_backend(%s, 10000)", (backend,))
        assert database.execute("SELECT count(*) FROM counts").fetchone() == (0,)
        database.execute("DROP FUNCTION halt CASCADE")
    copies.bring_up_to_date()
    before = assert_is_the_answer(deployment, copies)
    assert before.attributed.keys() >= {rows.attributed_key("shop", "u1", "", "purchase", "c1")}

    # Late corrections of what the copies hold, of days ago too, and more events; both are killed on the way again.
    first = copies.snapshot()
    send(deployment, corrections(deployment) + [click_before(each) for each in lonely])
    assert deployment.generate("--count", "1000", "--seed", "32").wait(60) == 0
    deployment.assert_exact()
    kill_half_way(copies.load_command, lambda: list(partial.glob("*.partial/counts/*")))
    assert copies.snapshot() == first
    with subprocess.Popen(copies.copy_command, stdout=subprocess.PIPE) as endless:
        try:
            assert endless.stdout is not None
            assert b"records copied" in endless.stdout.readline()
        finally:
            endless.kill()
    copies.bring_up_to_date()
    after = assert_is_the_answer(deployment, copies)

    gone = before.attributed.keys() - after.attributed.keys()
    assert rows.attributed_key("shop", "u1", "", "purchase", "c1") in gone  # deleted by a null value
    days = {int(row.event_time // DAY_MS) for row in after.attributed.values() if row.campaign_id == "late"}
    assert len(days) >= 4  # the corrections reach back over days
    assert sum(after.attributed[key] != row for key, row in before.attributed.items() if key not in gone) >= 40
    held = copies.parquet("counts"), copies.database("conversions")
    copies.bring_up_to_date()  # nothing new: nothing changes
    assert held == (copies.parquet("counts"), copies.database("conversions"))


# --- Topics that were made anew, and a copy that stood still for too long


def count(window_start: int, **fields: object) -> tuple[bytes, bytes]:
    row = CountRow(
        window_start,
        window_start + 60_000,
        "meta",
        "shop",
        {"campaign_id": "spring"},
        "",
        "",
        1,
        0,
        0,
        0,
        0.0,
        0.5,
        1,
        True,
    )
    key = rows.count_key(window_start, "meta", "shop", ["spring"], "", "")
    return key, rows.encode(msgspec.structs.replace(row, **fields))


def make_topics(admin: AdminClient, names: list[str], counts: list[tuple[bytes, bytes | None]], bootstrap: str) -> None:
    for future in admin.create_topics([NewTopic(name, 2, 1) for name in names]).values():
        future.result(20)
    producer = Producer({"bootstrap.servers": bootstrap})
    for key, value in counts:
        producer.produce(names[0], value, key)
    assert producer.flush(20) == 0


@pytest.mark.timeout(60)
def test_the_copies_begin_anew_where_the_topics_did_or_where_deletions_may_be_missed(
    services: Services, topic_prefix: str, postgres: str, tmp_path: Path
) -> None:
    names = [f"{topic_prefix}.counts", f"{topic_prefix}.attributed"]
    admin = AdminClient({"bootstrap.servers": services.bootstrap})
    copies = Copies(services.bootstrap, names[0], names[1], tmp_path / "bi", postgres)
    nowhere = [run(copies.load_command), run([*copies.copy_command, "--once"])]
    assert [each.returncode for each in nowhere] == [1, 1]
    assert all("cannot be read" in each.stderr and "Traceback" not in each.stderr for each in nowhere)

    make_topics(admin, names, [count(0), count(60_000)], services.bootstrap)
    copies.bring_up_to_date()
    assert len(copies.parquet("counts")) == len(copies.database("counts")) == 2
    assert copies.parquet_answers()["7. Conversions that do not count, and why"] == []

    for future in admin.delete_topics(names).values():
        future.result(20)
    wait_until(lambda: not set(names) & set(admin.list_topics(timeout=10).topics))
    make_topics(admin, names, [count(0, views=7, revision=1)] * 3 + [count(120_000)], services.bootstrap)
    assert copies.bring_up_to_date().count("made anew") == 2
    for held in (copies.parquet("counts"), copies.database("counts")):
        assert sorted((row["window_start"].minute, row["views"]) for row in held) == [(0, 7), (2, 1)]

    # As after a long pause in which Kafka forgot a deletion: the row that only the copies hold goes.
    with psycopg.connect(postgres) as database:
        given = {"key_sha256": b"gone", "kafka_partition": 0, "kafka_offset": 0}
        given |= as_columns(msgspec.json.decode(count(180_000)[1], type=CountRow))
        places = ", ".join(f"%({name})s" for name in given)
        database.execute(f"INSERT INTO counts ({', '.join(given)}) VALUES ({places})", given)
        database.execute("UPDATE copied_to SET caught_up_at = caught_up_at - interval '15 days'")
    about = copies.snapshot() / "snapshot.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"read_at_s": time.time() - 15 * 86_400}))
    assert copies.bring_up_to_date().count("has not caught up for more than 14 days") == 2
    assert len(copies.parquet("counts")) == len(copies.database("counts")) == 2


@pytest.mark.timeout(60)
def test_what_is_read_twice_never_overwrites_what_came_later(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BI))
    import output_topics
    import postgres_copy

    key, old = count(0, views=1)
    latest = output_topics.Record("counts", 0, 7, key, count(0, views=9)[1])
    with psycopg.connect(postgres) as database:
        database.execute((BI / "postgres.sql").read_text())
        database.execute("DELETE FROM counts")
        for record in (latest, latest._replace(offset=3, value=old), latest._replace(offset=5, value=None)):
            postgres_copy._write(database, [record], {"counts": postgres_copy.COUNTS})
            assert database.execute("SELECT views, kafka_offset FROM counts").fetchall() == [(9, 7)]
        postgres_copy._write(database, [latest._replace(offset=8, value=None)], {"counts": postgres_copy.COUNTS})
        assert database.execute("SELECT count(*) FROM counts").fetchone() == (0,)


@pytest.mark.timeout(60)
def test_of_two_copies_at_once_one_ends_with_an_error(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BI))
    import output_topics
    import parquet_copy
    import postgres_copy

    place = ("counts", 0)
    with psycopg.connect(postgres, autocommit=True) as database:
        database.execute((BI / "postgres.sql").read_text())
        database.execute("DELETE FROM copied_to")
        postgres_copy._move(database, {}, {place: 5}, {"counts": "id"}, 1, is_end=False)
        postgres_copy._move(database, {place: 5}, {place: 9}, {"counts": "id"}, 2, is_end=False)
        for stale in ({}, {place: 5}):
            with pytest.raises(output_topics.Behind, match="another copy writes to this database"):
                postgres_copy._move(database, stale, {place: 10}, {"counts": "id"}, 3, is_end=True)
        assert postgres_copy._reached(database) == ({place: 9}, {"counts": "id"}, 1.0)  # it has not caught up since
        postgres_copy._move(database, {place: 9}, {place: 9}, {"counts": "id"}, 4, is_end=True)
        assert postgres_copy._reached(database) == ({place: 9}, {"counts": "id"}, 4.0)
        database.execute("DELETE FROM copied_to")
    with (
        parquet_copy._only_one(tmp_path),
        pytest.raises(output_topics.Behind, match="another load"),
        parquet_copy._only_one(tmp_path),
    ):
        pass


def test_a_report_without_a_load_says_what_to_do(tmp_path: Path) -> None:
    said = run([sys.executable, str(BI / "parquet_copy.py"), "report", "--out", str(tmp_path)])
    assert said.returncode == 1
    assert "run load first" in said.stderr
