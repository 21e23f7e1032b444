"""Keeps a copy of onecount's output topics as Parquet, and answers questions from it.

    pip install duckdb confluent-kafka
    python deploy/bi/parquet_copy.py load   --out ./onecount-bi --bootstrap localhost:9092
    python deploy/bi/parquet_copy.py report --out ./onecount-bi

`load` reads what is new up to the topics' ends as of its start, and makes a new snapshot: the latest row of each key,
in one folder a day. Only days in which a row changed are written again, however old; the others are hard links. Rows
and offsets become current together, by one rename of the link `current`, so a load that is killed at any moment has
changed nothing, and the next one does its work. Run it from cron, as often as you like.

    onecount-bi/current/counts/day=2025-11-24/*.parquet
    onecount-bi/current/conversions/...      and so for journeys and models, where their topics are there
    onecount-bi/current/snapshot.json        as of when, and the offsets read

Any tool that reads Parquet may read `current`; resolve the link once a query, so that all files are of one snapshot.
Times are UTC timestamps, but epoch ms within a touch of a journey. On S3, which has no links, write the list of files into one object in place of the link.
"""

import argparse
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import duckdb
from confluent_kafka import KafkaException
from output_topics import Behind, Offsets, OutputTopics, why_from_the_start

ANSWERS: Final = Path(__file__).with_name("answers.sql")
KEPT_SNAPSHOTS: Final = 2  # a query that began on the one before may still be reading it
FORM: Final = 2  # of the tables; one more with every change of their columns


class Table(NamedTuple):
    """How a topic's rows become a table: the JSON's types, and the columns made of them. `day` is the partition."""

    name: str
    value: str
    columns: str


COUNTS: Final = Table(
    "counts",
    """STRUCT(window_start BIGINT, window_end BIGINT, platform VARCHAR, advertiser_id VARCHAR,
        dimensions STRUCT(campaign_id VARCHAR, ad_id VARCHAR, creative_id VARCHAR, landing_page VARCHAR,
                          offer_id VARCHAR, source VARCHAR, medium VARCHAR),
        conversion_name VARCHAR, currency VARCHAR, views BIGINT, engaged_views BIGINT, clicks BIGINT,
        conversions BIGINT, value DECIMAL(24, 6), cost DECIMAL(24, 6), revision BIGINT, final BOOLEAN, scope VARCHAR)""",
    """make_timestamp(value.window_start * 1000) AS window_start, make_timestamp(value.window_end * 1000) AS window_end,
       value.platform, value.advertiser_id, value.dimensions.campaign_id, value.dimensions.ad_id,
       value.dimensions.creative_id, value.dimensions.landing_page, value.dimensions.offer_id,
       value.dimensions.source, value.dimensions.medium, value.conversion_name, value.currency, value.views,
       value.engaged_views, value.clicks, value.conversions, value.value, value.cost, value.revision, value.final,
       coalesce(value.scope, 'platform') AS scope, CAST(make_timestamp(value.window_start * 1000) AS DATE) AS day""",
)
CONVERSIONS: Final = Table(
    "conversions",
    """STRUCT(advertiser_id VARCHAR, user_id VARCHAR, platform VARCHAR, conversion_name VARCHAR, event_id VARCHAR,
        event_time BIGINT, order_id VARCHAR, status VARCHAR, conversions BIGINT, value DECIMAL(24, 6),
        currency VARCHAR, action_class VARCHAR, intent VARCHAR, outcome VARCHAR, method VARCHAR, policy_version BIGINT,
        duplicate_of VARCHAR, touch_type VARCHAR, touch_event_id VARCHAR, touch_time BIGINT, time_to_convert_ms BIGINT,
        campaign_id VARCHAR, ad_id VARCHAR, creative_id VARCHAR, landing_page VARCHAR, offer_id VARCHAR,
        source VARCHAR, medium VARCHAR, revision BIGINT)""",
    """value.advertiser_id, value.user_id, value.platform, value.conversion_name, value.event_id,
       make_timestamp(value.event_time * 1000) AS event_time, value.order_id, value.status, value.conversions,
       value.value, value.currency, value.action_class, value.intent, value.outcome, value.method,
       value.policy_version, value.duplicate_of, value.touch_type, value.touch_event_id,
       make_timestamp(value.touch_time * 1000) AS touch_time, value.time_to_convert_ms, value.campaign_id,
       value.ad_id, value.creative_id, value.landing_page, value.offer_id, value.source, value.medium,
       value.revision, CAST(make_timestamp(value.event_time * 1000) AS DATE) AS day""",
)
TOUCH: Final = """STRUCT(platform VARCHAR, touch_type VARCHAR, event_id VARCHAR, "time" BIGINT, campaign_id VARCHAR,
        ad_id VARCHAR, creative_id VARCHAR, landing_page VARCHAR, offer_id VARCHAR, source VARCHAR, medium VARCHAR)"""
JOURNEYS: Final = Table(
    "journeys",
    f"""STRUCT(advertiser_id VARCHAR, user_id VARCHAR, conversion_name VARCHAR, event_id VARCHAR, event_time BIGINT,
        order_id VARCHAR, scope VARCHAR, status VARCHAR, conversions BIGINT, value DECIMAL(24, 6), currency VARCHAR,
        action_class VARCHAR, intent VARCHAR, outcome VARCHAR, policy_version BIGINT, credit VARCHAR, credited {TOUCH},
        time_to_convert_ms BIGINT, counted_by VARCHAR[], first_touch {TOUCH}, touches {TOUCH}[], views BIGINT,
        engaged_views BIGINT, clicks BIGINT, visits BIGINT, pages VARCHAR[], first_visit_time BIGINT,
        first_page VARCHAR, first_referrer VARCHAR, time_from_first_touch_ms BIGINT, time_from_first_visit_ms BIGINT,
        customer VARCHAR, abandoned_action VARCHAR, abandoned_time BIGINT, returned_by {TOUCH}, revision BIGINT)""",
    """value.advertiser_id, value.user_id, value.conversion_name, value.event_id,
       make_timestamp(value.event_time * 1000) AS event_time, value.order_id, value.scope, value.status,
       value.conversions, value.value, value.currency, value.action_class, value.intent, value.outcome,
       value.policy_version, value.credit, value.credited, value.time_to_convert_ms, value.counted_by,
       value.first_touch, value.touches, value.views, value.engaged_views, value.clicks, value.visits, value.pages,
       make_timestamp(value.first_visit_time * 1000) AS first_visit_time, value.first_page, value.first_referrer,
       value.time_from_first_touch_ms, value.time_from_first_visit_ms, value.customer, value.abandoned_action,
       make_timestamp(value.abandoned_time * 1000) AS abandoned_time, value.returned_by, value.revision,
       CAST(make_timestamp(value.event_time * 1000) AS DATE) AS day""",
)
MODELS: Final = Table(
    "models",
    f"""STRUCT(advertiser_id VARCHAR, user_id VARCHAR, conversion_name VARCHAR, event_id VARCHAR, event_time BIGINT,
        model VARCHAR, value DECIMAL(24, 6), currency VARCHAR,
        credits STRUCT(touch {TOUCH}, share DECIMAL(7, 6), value DECIMAL(24, 6))[], revision BIGINT)""",
    """value.advertiser_id, value.user_id, value.conversion_name, value.event_id,
       make_timestamp(value.event_time * 1000) AS event_time, value.model, value.value, value.currency, value.credits,
       value.revision, CAST(make_timestamp(value.event_time * 1000) AS DATE) AS day""",
)
TABLES: Final = (COUNTS, CONVERSIONS, JOURNEYS, MODELS)
# A row a touch that has a share in a conversion by a model.
SHARES: Final = """CREATE VIEW shares AS
    SELECT advertiser_id, user_id, conversion_name, event_id, event_time, model, currency, each.share, each.value,
           each.touch.platform, each.touch.touch_type, each.touch.event_id AS touch_event_id,
           make_timestamp(each.touch."time" * 1000) AS touch_time, each.touch.campaign_id, each.touch.ad_id,
           each.touch.creative_id, each.touch.landing_page, each.touch.offer_id, each.touch.source, each.touch.medium
    FROM models, unnest(credits) AS credited(each)"""


class Snapshot(NamedTuple):
    """One state of the copy: its folder, the ids and offsets of the topics it was read from, when (epoch s), and in which
    `FORM` its tables are.
    """

    folder: Path | None
    topic_ids: dict[str, str]
    next_offsets: Offsets
    read_at_s: float
    form: int


EMPTY: Final = Snapshot(None, {}, {}, 0.0, FORM)


def current(out: Path) -> Snapshot:
    """The snapshot that `current` links to; `EMPTY` before the first load."""
    if not (out / "current").exists():
        return EMPTY
    folder = (out / "current").resolve()
    found = json.loads((folder / "snapshot.json").read_text())
    offsets = {
        (topic, int(number)): at for topic, parts in found["next_offsets"].items() for number, at in parts.items()
    }
    return Snapshot(folder, found["topic_ids"], offsets, found["read_at_s"], found.get("form", 1))


def load(out: Path, tables: dict[str, Table], properties: dict[str, str]) -> str:
    """Makes a snapshot of all that is committed now; what was done, in words. `tables`: by topic; those of journeys may have
    none.
    """
    out.mkdir(parents=True, exist_ok=True)
    may_be_missing = [topic for topic, table in tables.items() if table in (JOURNEYS, MODELS)]
    with _only_one(out), OutputTopics(tables, may_be_missing, properties) as source:
        base, ids, read_at_s, note = current(out), source.ids(), time.time(), ""
        tables = {topic: table for topic, table in tables.items() if topic in ids}
        why = _why_from_the_start(base, ids) if base.folder else None
        if why:
            base, note = EMPTY, f"; read from the start, since {why}"
        ends = source.ends(ids)
        number = 1 + max((int(path.name) for path in _snapshots(out)), default=0)
        partial = out / "snapshots" / f"{number:06}.partial"
        _remove_unfinished(out)
        partial.mkdir(parents=True)
        files = {topic: partial / f"{table.name}.jsonl" for topic, table in tables.items()}
        records = _write_records(source, base.next_offsets, ends, files)
        days = {}
        for topic, table in tables.items():
            days[table.name] = _merge(table, base.folder, files[topic], partial)
            files[topic].unlink()
        offsets: dict[str, dict[int, int]] = {}
        for (topic, place), end in sorted(ends.items()):
            offsets.setdefault(topic, {})[place] = end
        about = {"form": FORM, "read_at_s": read_at_s, "topic_ids": ids, "next_offsets": offsets}
        (partial / "snapshot.json").write_text(json.dumps(about, indent=1) + "\n")
        _make_current(out, partial)
    changes = ", ".join(f"{records[topic]:,} of {topic} in {days[table.name]} days" for topic, table in tables.items())
    return f"snapshot {number}: {changes}{note}"


def _why_from_the_start(base: Snapshot, ids: dict[str, str]) -> str | None:
    if base.form != FORM:
        return "another release of this program made the snapshot"
    return why_from_the_start(base.topic_ids, ids, base.read_at_s)


def _write_records(source: OutputTopics, start: Offsets, ends: Offsets, files: dict[str, Path]) -> Counter[str]:
    """Writes the new records as one JSON object a line, a file a topic; how many of each."""
    written: Counter[str] = Counter()
    opened = {topic: path.open("wb") for topic, path in files.items()}
    try:
        for batch in source.read(start, ends):
            for topic, partition, offset, key, value in batch:
                head = b'{"partition":%d,"offset":%d,"key":%b,"value":' % (
                    partition,
                    offset,
                    json.dumps(key.decode()).encode(),
                )
                opened[topic].write(head + (value or b"null") + b"}\n")
                written[topic] += 1
    finally:
        for file in opened.values():
            file.close()
    return written


def _merge(table: Table, base: Path | None, records: Path, folder: Path) -> int:
    """Writes the days in which a row changed, links the others; how many days were written."""
    target = folder / table.name
    target.mkdir()
    with duckdb.connect() as database:
        database.execute(
            f"""CREATE TABLE latest AS FROM read_json($records, format = 'newline_delimited', columns = {{
                    partition: 'INTEGER', "offset": 'BIGINT', key: 'VARCHAR', value: '{table.value}'}})
                QUALIFY row_number() OVER (PARTITION BY key ORDER BY "offset" DESC) = 1""",
            {"records": str(records)},
        )
        database.execute(
            f"""CREATE VIEW fresh AS SELECT key, partition AS kafka_partition, "offset" AS kafka_offset, {table.columns}
                FROM latest WHERE value IS NOT NULL"""
        )
        held = base / table.name if base is not None and (base / table.name).is_dir() else None
        database.execute(f"CREATE VIEW held AS {_reading(held)}" if held and any(held.glob("*/*.parquet")) else
                         "CREATE VIEW held AS FROM fresh LIMIT 0")  # fmt: skip
        database.execute(
            """CREATE TABLE days AS SELECT day FROM fresh UNION SELECT day FROM held SEMI JOIN latest USING (key)"""
        )
        database.execute(
            f"""COPY (SELECT held.* FROM held SEMI JOIN days USING (day) ANTI JOIN latest USING (key)
                      UNION ALL BY NAME FROM fresh)
                TO '{_quoted(target)}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (day), OVERWRITE_OR_IGNORE)"""
        )
        written = {f"day={day}" for (day,) in database.execute("SELECT day FROM days").fetchall()}
    for day in sorted(held.iterdir()) if held else ():
        if day.name not in written:
            shutil.copytree(day, target / day.name, copy_function=os.link)
    return len(written)


def _reading(folder: Path) -> str:
    return f"FROM read_parquet('{_quoted(folder)}/*/*.parquet', hive_partitioning = true, hive_types = {{day: DATE}})"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Holds the copy's lock; two loads at a time would each leave out what the other wrote."""
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Behind(f"another load of {out} is running; let it finish") from None
        yield


def _snapshots(out: Path) -> list[Path]:
    return sorted(path for path in (out / "snapshots").glob("*") if path.name.isdigit())


def _remove_unfinished(out: Path) -> None:
    for path in (out / "snapshots").glob("*.partial"):
        shutil.rmtree(path)


def _make_current(out: Path, partial: Path) -> None:
    """The one step that counts: `current` links to the new snapshot. Those before the last are removed."""
    finished = partial.rename(partial.with_suffix(""))
    os.sync()  # the files before the link, also through a power cut
    link = out / "current.next"
    link.unlink(missing_ok=True)
    link.symlink_to(finished.relative_to(out))
    link.replace(out / "current")
    for old in _snapshots(out)[:-KEPT_SNAPSHOTS]:
        shutil.rmtree(old)


def open_copy(out: Path) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with a view a table on the current snapshot, and `SHARES`."""
    snapshot = current(out)
    if snapshot.folder is None:
        raise Behind(f"{out} holds no snapshot yet: run load first")
    database = duckdb.connect()
    for table in TABLES:
        if any((snapshot.folder / table.name).glob("*/*.parquet")):
            database.execute(f"CREATE VIEW {table.name} AS {_reading(snapshot.folder / table.name)}")
        else:
            database.execute(
                f"""CREATE VIEW {table.name} AS SELECT NULL::VARCHAR AS key, NULL::INTEGER AS kafka_partition,
                    NULL::BIGINT AS kafka_offset, {table.columns} FROM (SELECT NULL::{table.value} AS value) LIMIT 0"""
            )
    database.execute(SHARES)
    return database


def questions() -> dict[str, str]:
    """The statements of answers.sql by their titles, the lines that begin with two dashes."""
    parts = ANSWERS.read_text().split("\n-- ")[1:]
    titled = dict(part.split("\n", 1) for part in parts)
    return {title: statement.strip().rstrip(";") for title, statement in titled.items() if statement.strip()}


def report(out: Path, as_json: bool) -> None:
    """Prints the answer to every question, as tables or as one JSON object."""
    with open_copy(out) as database:
        if as_json:
            answers = {}
            for title, statement in questions().items():
                found = database.execute(statement)
                names = [column[0] for column in found.description]
                answers[title] = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
            print(json.dumps(answers, default=str))
            return
        print(f"as of {datetime.fromtimestamp(current(out).read_at_s, UTC):%Y-%m-%d %H:%M:%S} UTC")
        for title, statement in questions().items():
            print(f"\n{title}")
            database.sql(statement).show(max_width=200, max_rows=40)


def main() -> None:
    """The command line; known troubles end in one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    loading = commands.add_parser("load", help="make a snapshot of all that is committed now")
    loading.add_argument("--bootstrap", default="localhost:9092", help="Kafka brokers")
    loading.add_argument("-X", action="append", default=[], metavar="NAME=VALUE", help="a librdkafka property")
    loading.add_argument("--counts-topic", default="conversions.counts")
    loading.add_argument("--attributed-topic", default="conversions.attributed")
    loading.add_argument("--journeys-topic", default="conversions.journeys")
    loading.add_argument("--models-topic", default="conversions.models")
    reporting = commands.add_parser("report", help="answer the questions of answers.sql")
    reporting.add_argument("--json", action="store_true", help="one JSON object in place of tables")
    for command in (loading, reporting):
        command.add_argument("--out", type=Path, required=True, help="the folder of the copy")
    told = parser.parse_args()
    try:
        if told.command == "report":
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # so that `| head` ends it quietly
            report(told.out, told.json)
            return
        properties = {"bootstrap.servers": told.bootstrap} | dict(each.split("=", 1) for each in told.X)
        topics = (told.counts_topic, told.attributed_topic, told.journeys_topic, told.models_topic)
        print(load(told.out, dict(zip(topics, TABLES, strict=True)), properties))
    except (Behind, KafkaException) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
