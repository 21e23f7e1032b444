"""The example consumers of deploy/bi on a real run: killed half-way, corrected later, each figure held against the oracle."""

import hashlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
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
from psycopg.types.json import set_json_loads

from app.contract import journeys, rows
from app.contract.rows import CountRow
from app.engine.clients import KafkaClients
from app.engine.policy_topic import recorded_policy
from app.verify.differences import Upsert, fold_log
from app.verify.logs import fix_spans, read_log, to_record
from app.verify.oracle import Answer, answer
from app.verify.sequence import committed_batches
from tests.conftest import Services
from tests.integration.answers import JOURNEYS, as_columns, assert_answers
from tests.integration.deployment import Deployment, deployed
from tests.integration.postgres import local_postgres

BI = Path(__file__).resolve().parents[2] / "deploy" / "bi"
PAGE = BI.parents[1] / "docs" / "contract.md"
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
STEP_S = 20.0
PARTLY = ("conversions.journeys", "conversions.models")  # the page tells some fields of their rows ...
TOLD_MODEL = "linear"  # ... and one of the models
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

    def __init__(self, bootstrap: str, prefix: str, out: Path, postgres: str) -> None:
        """`prefix`: of the topics' names, as a test's deployment has them."""
        self.out, self.postgres = out, postgres
        names = [(f"--{name}-topic", f"{prefix}.{name}") for name in ("counts", "attributed", "journeys", "models")]
        topics = ["--bootstrap", bootstrap, *(word for name in names for word in name)]
        self.load_command = [sys.executable, str(BI / "parquet_copy.py"), "load", "--out", str(out), *topics]
        self.copy_command = [sys.executable, str(BI / "postgres_copy.py"), "--database", postgres, *topics]
        with psycopg.connect(postgres) as database:
            database.execute("DROP TABLE IF EXISTS counts, conversions, journeys, models, copied_to CASCADE")
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
            set_json_loads(partial(json.loads, parse_float=Decimal), database)
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
    settings = deployment.settings
    decode = {
        settings.counts_topic: rows.decode_count,
        settings.attributed_topic: rows.decode_attributed,
        settings.journeys_topic: journeys.decode_journey,
        settings.models_topic: journeys.decode_model,
    }[topic]
    log = read_log(deployment.settings, fix_spans(deployment.settings, [topic]))
    folded = fold_log(
        topic,
        (Upsert(each.partition(), each.offset(), each.key(), each.value()) for each in log),
        decode,  # type: ignore[type-var]
    )
    assert not folded.faults
    return folded.rows


def assert_holds(held: list[dict[str, Any]], must: dict[bytes, Any], but: frozenset[str] = frozenset()) -> None:
    """Whether a copy's table is these rows, no more, no less and no other; `but`: columns that are left out."""
    found = {}
    for row in held:
        key = row["key_sha256"] if "key_sha256" in row else hashlib.sha256(row["key"].encode()).digest()
        assert key not in found, f"twice: {row}"
        found[key] = {name: value for name, value in row.items() if name not in NOT_OF_THE_ROW | but}
    expected = {hashlib.sha256(key).digest(): as_columns(row) for key, row in must.items()}
    assert found == {key: {name: row[name] for name in row.keys() - but} for key, row in expected.items()}


def assert_is_the_answer(deployment: Deployment, copies: Copies) -> Answer:
    """Both copies, row by row and figure by figure."""
    expected = recomputed(deployment)
    settings = deployment.settings
    for held in (copies.parquet, copies.database):
        for table, topic in (
            ("counts", settings.counts_topic),
            ("conversions", settings.attributed_topic),
            ("journeys", settings.journeys_topic),
            ("models", settings.models_topic),
        ):
            assert_holds(held(table), published(deployment, topic))
        counts = [row for row in held("counts") if any(row[name] for name in rows.MEASURES)]
        assert_holds(counts, expected.counts, but=frozenset({"revision", "final"}))
        assert_holds(held("conversions"), expected.attributed, but=frozenset({"revision"}))
        assert_holds(held("journeys"), expected.journeys, but=frozenset({"revision"}))
        assert_holds(held("models"), expected.models, but=frozenset({"revision"}))
    for answers in (copies.parquet_answers(), copies.database_answers()):
        assert all(answers[title] for title in JOURNEYS)
        assert_answers(answers, expected)
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


def customers(day_ms: int) -> list[dict[str, Any]]:
    """People who left a cart for hours, came back by an ad or by themselves, and bought; some of them a second time, and
    one whose order is reported again later, from before.
    """
    found: list[dict[str, Any]] = []
    for number in range(9):
        who = {"advertiser_id": "shop", "user_id": f"customer{number}"}
        times = [day_ms + number * 1_000 + hours * HOUR_MS for hours in (0, 1, 4, 5, 9)]
        ad = {"event_type": "click", "platform": ("meta", "google_ads")[number % 2], "campaign_id": f"back{number % 4}"}
        order = {"event_type": "conversion", "conversion_name": "purchase", "currency": "EUR"}
        events: list[dict[str, Any]] = [
            {"event_type": "visit", "event_time": times[0], "page": f"/page{number % 3}", "referrer": "https://blog.example/"},
            {"event_type": "conversion", "event_time": times[1], "conversion_name": "add_to_cart"},
            *([ad | {"event_time": times[2], "source": f"source{number % 2}", "landing_page": "/cart"}] if number % 3 else []),
            {"event_type": "visit", "event_time": times[2] + 1, "page": "/cart"},
            order | {"event_time": times[3], "value": 10.01 * number, "order_id": f"order{number}"},
            *([order | {"event_time": times[4], "value": 99.0, "order_id": f"again{number}"}] if number % 2 else []),
        ]  # fmt: skip
        found += [event | who | {"event_id": f"cu{number}-{at}"} for at, event in enumerate(events)]
    return found


def reported_before(customer: list[dict[str, Any]]) -> dict[str, Any]:
    """The first purchase of these events once more, with a time before it: this is its order's first report now."""
    order = next(event for event in customer if event.get("conversion_name") == "purchase")
    return order | {"event_id": f"{order['event_id']}-before", "event_time": order["event_time"] - 1}


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
    """A row but for what depends on when it was written, which no row of a person does."""
    left_out = ("revision", "final") if isinstance(row, CountRow) else ()
    return {name: value for name, value in msgspec.to_builtins(row).items() if name not in left_out}


def changes(before: dict[Place, dict[str, Any]], after: dict[Place, dict[str, Any]]) -> dict[Place, Any]:
    """What the page must tell of a step, by topic and key: new rows, the changed fields of others, None for deleted ones."""
    found: dict[Place, Any] = dict.fromkeys(before.keys() - after.keys())
    for place, row in after.items():
        old = before.get(place, {})
        found[place] = {name: value for name, value in row.items() if name not in old or old[name] != value}
    return {place: change for place, change in found.items() if change != {}}


def told(found: dict[Place, Any], must: dict[Place, Any]) -> dict[Place, Any]:
    """The changes as the page tells them: all of each, but of journeys and models the parts that it shows, and of the models
    one.
    """
    return {
        (topic, key): shown(change, must.get((topic, key), {})) if topic in PARTLY else change
        for (topic, key), change in found.items()
        if topic != "conversions.models" or orjson.loads(key)[-1] == TOLD_MODEL
    }


def shown(value: Any, part: Any) -> Any:
    """Of a value what stands in a part of it, too."""
    if isinstance(value, dict) and isinstance(part, dict):
        return {name: shown(value[name], part[name]) for name in part if name in value}
    if isinstance(value, list) and isinstance(part, list) and len(value) == len(part):
        return [shown(*each) for each in zip(value, part, strict=True)]
    return value


@pytest.mark.timeout(120)
def test_the_story_of_the_page_is_what_happens(deployment: Deployment) -> None:
    # first of this module, since its events are older than those of the others
    settings = deployment.settings
    topics = {
        "conversions.attributed": settings.attributed_topic,
        "conversions.counts": settings.counts_topic,
        "conversions.journeys": settings.journeys_topic,
        "conversions.models": settings.models_topic,
    }

    def rows_now() -> dict[Place, dict[str, Any]]:
        return {
            (name, key): without_progress(row)
            for name, topic in topics.items()
            for key, row in published(deployment, topic).items()
        }

    steps = told_story()
    assert len(steps) >= 5
    before: dict[Place, dict[str, Any]] = {}
    for events, records in steps:
        send(deployment, events, at_their_time=True)
        must = {(each["topic"], orjson.dumps(each["key"])): each["value"] for each in records}
        for (topic, _), value in must.items():
            if topic == "conversions.counts":
                del value["revision"]
                value.pop("final", None)
        deadline = time.monotonic() + STEP_S
        while (found := told(changes(before, after := rows_now()), must)) != must and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == must
        before = after
    deployment.assert_exact()


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_copies_are_the_answer_after_kills_and_late_corrections(
    deployment: Deployment, postgres: str, tmp_path: Path
) -> None:
    settings = deployment.settings
    copies = Copies(settings.bootstrap, settings.worker_id, tmp_path / "bi", postgres)
    bought = customers(int(time.time() * 1000) - 2 * DAY_MS)
    lonely = [conversion(number, days_ago=number % 4) for number in range(12)]  # no platform and no touch: a row of ""
    send(deployment, lonely + bought)
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
    send(deployment, [*corrections(deployment), *(click_before(each) for each in lonely), reported_before(bought)])
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
    assert before.journeys.keys() - after.journeys.keys()
    assert before.models.keys() - after.models.keys()
    assert {row.customer for row in after.journeys.values()} == {"new", "returning", None}
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


def journey() -> tuple[bytes, bytes]:
    touch = journeys.PathTouch("meta", "click", "k", 1, "spring", None, None, "/", None, "facebook", None)
    row = journeys.JourneyRow(
        "shop", "u", "purchase", "c", 2, None, "all", "counted", 1, 9.5, "EUR", "macro", "hard", "revenue", 1, "last_click",
        touch, 1, ["meta"], touch, [touch], 0, 0, 1, 0, [], None, None, None, 1, None, "new", None, None, None, 1,
    )  # fmt: skip
    return journeys.journey_key("shop", "u", "purchase", "c"), rows.encode(row)


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
    copies = Copies(services.bootstrap, topic_prefix, tmp_path / "bi", postgres)
    nowhere = [run(copies.load_command), run([*copies.copy_command, "--once"])]
    assert [each.returncode for each in nowhere] == [1, 1]
    assert all("cannot be read" in each.stderr and "Traceback" not in each.stderr for each in nowhere)

    make_topics(admin, names, [count(0), count(60_000)], services.bootstrap)
    copies.bring_up_to_date()
    assert len(copies.parquet("counts")) == len(copies.database("counts")) == 2
    for answers in (copies.parquet_answers(), copies.database_answers()):  # of a deployment that follows no journeys
        assert answers["7. Conversions that do not count, and why"] == []
        assert [answers[title] for title in JOURNEYS] == [[]] * len(JOURNEYS)

    for future in admin.delete_topics(names).values():
        future.result(20)
    wait_until(lambda: not set(names) & set(admin.list_topics(timeout=10).topics))
    make_topics(admin, names, [count(0, views=7, revision=1)] * 3 + [count(120_000)], services.bootstrap)
    assert copies.bring_up_to_date().count("made anew") == 2
    for held in (copies.parquet("counts"), copies.database("counts")):
        assert sorted((row["window_start"].minute, row["views"]) for row in held) == [(0, 7), (2, 1)]

    # The copy of a former release, which knew of no scope; and journeys that come later.
    about = copies.snapshot() / "snapshot.json"
    about.write_text(json.dumps({name: told for name, told in json.loads(about.read_text()).items() if name != "form"}))
    with psycopg.connect(postgres) as database:
        database.execute("UPDATE counts SET platform = 'all' WHERE views = 1")
        database.execute("DROP TABLE journeys, models CASCADE")
        database.execute("ALTER TABLE counts DROP COLUMN scope")
    make_topics(admin, [f"{topic_prefix}.journeys", f"{topic_prefix}.models"], [journey()], services.bootstrap)
    assert "another release" in copies.bring_up_to_date()
    assert {row["scope"] for row in copies.parquet("counts")} == {"platform"}
    assert sorted((row["platform"], row["scope"]) for row in copies.database("counts")) == [
        ("all", "all"),
        ("meta", "platform"),
    ]
    assert len(copies.parquet("journeys")) == len(copies.database("journeys")) == 1
    assert copies.bring_up_to_date().count("0 of ") == 4

    # As after a long pause in which Kafka forgot a deletion: the row that only the copies hold goes.
    with psycopg.connect(postgres) as database:
        given = {"key_sha256": b"gone", "kafka_partition": 0, "kafka_offset": 0}
        given |= as_columns(msgspec.json.decode(count(180_000)[1], type=CountRow))
        places = ", ".join(f"%({name})s" for name in given)
        database.execute(f"INSERT INTO counts ({', '.join(given)}) VALUES ({places})", given)
        database.execute("UPDATE copied_to SET caught_up_at = caught_up_at - interval '15 days'")
    about = copies.snapshot() / "snapshot.json"  # another snapshot by now
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
