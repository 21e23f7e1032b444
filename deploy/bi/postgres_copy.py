"""Keeps onecount's output topics as PostgreSQL tables, always the latest row of each key.

    pip install "psycopg[binary]" confluent-kafka
    python deploy/bi/postgres_copy.py --database postgresql://bi@localhost/bi --bootstrap localhost:9092
    psql postgresql://bi@localhost/bi -f deploy/bi/answers.sql

Goes on until stopped; `--once` ends at what is committed now. The rows of a batch and the offsets that they end at are
one database transaction, and Kafka is told nothing: whatever is killed when, no row is lost, doubled or outdated.

What guards what:
- A row is overwritten by a larger offset of its key only, which all lie on one partition. `revision` would not do: a
  deletion has none, and a row that comes back after one may begin at 1 again.
- The offsets move on only from where this process saw them: of two copies that run at once one ends with an error.
- Topics that were made anew (`onecount reset`) have another id: the tables are emptied and filled from the start, in
  the transaction of the first batch. The same where the copy stood still for longer than Kafka keeps deletions.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from confluent_kafka import KafkaException
from output_topics import Behind, Offsets, OutputTopics, Record, why_from_the_start
from psycopg.types.json import Jsonb

SCHEMA: Final = Path(__file__).with_name("postgres.sql")
PAUSE_S: Final = 1.0
PROOF_OF_READING_S: Final = 60.0
EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - the tables hold UTC without a zone
PLACE: Final = ("key_sha256", "kafka_partition", "kafka_offset")
TIMES: Final = ("window_start", "window_end", "event_time", "touch_time", "first_visit_time", "abandoned_time")
TOUCHES: Final = ("credited", "first_touch", "touches", "returned_by", "credits")  # jsonb, in which times stay epoch ms


class Table(NamedTuple):
    """A table, and its columns behind those of `PLACE`."""

    name: str
    columns: tuple[str, ...]

    def upsert(self) -> str:
        """Writes a row, unless the table holds what its key said later."""
        columns = (*PLACE, *self.columns)
        changes = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
        return (
            f"INSERT INTO {self.name} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))}) "
            f"ON CONFLICT (key_sha256) DO UPDATE SET {changes} WHERE {self.name}.kafka_offset < excluded.kafka_offset"
        )

    def delete(self) -> str:
        """Removes a row, unless the table holds what its key said later."""
        return f"DELETE FROM {self.name} WHERE key_sha256 = %s AND kafka_offset < %s"


DIMENSIONS: Final = ("campaign_id", "ad_id", "creative_id", "landing_page", "offer_id", "source", "medium")
COUNTS: Final = Table(
    "counts",
    ("window_start", "window_end", "platform", "advertiser_id", *DIMENSIONS, "conversion_name", "currency", "views",
     "engaged_views", "clicks", "conversions", "value", "cost", "revision", "final", "scope"),
)  # fmt: skip
CONVERSIONS: Final = Table(
    "conversions",
    ("advertiser_id", "user_id", "platform", "conversion_name", "event_id", "event_time", "order_id", "status",
     "conversions", "value", "currency", "action_class", "intent", "outcome", "method", "policy_version",
     "duplicate_of", "touch_type", "touch_event_id", "touch_time", "time_to_convert_ms", *DIMENSIONS, "revision"),
)  # fmt: skip
JOURNEYS: Final = Table(
    "journeys",
    ("advertiser_id", "user_id", "conversion_name", "event_id", "event_time", "order_id", "scope", "status",
     "conversions", "value", "currency", "action_class", "intent", "outcome", "policy_version", "credit", "credited",
     "time_to_convert_ms", "counted_by", "first_touch", "touches", "views", "engaged_views", "clicks", "visits",
     "pages", "first_visit_time", "first_page", "first_referrer", "time_from_first_touch_ms",
     "time_from_first_visit_ms", "customer", "abandoned_action", "abandoned_time", "returned_by", "revision"),
)  # fmt: skip
MODELS: Final = Table(
    "models",
    ("advertiser_id", "user_id", "conversion_name", "event_id", "event_time", "model", "value", "currency", "credits",
     "revision"),
)  # fmt: skip
TABLES: Final = (COUNTS, CONVERSIONS, JOURNEYS, MODELS)


def copy_once(database: psycopg.Connection, source: OutputTopics, tables: dict[str, Table]) -> int:
    """Copies all that is committed now, a transaction a batch; how many records. `tables`: by topic."""
    ids = source.ids()
    reached, known_ids, caught_up_s = _reached(database)
    why = why_from_the_start(known_ids, ids, caught_up_s) if reached else None
    if why:
        print(f"reading from the start, since {why}", file=sys.stderr)
    began_s = time.time()
    ends = source.ends(ids)
    nexts: Offsets = {} if why else reached
    copied, forget = 0, why is not None
    for batch in source.read(nexts, ends):
        nexts = nexts | {(record.topic, record.partition): record.offset + 1 for record in batch}
        with database.transaction():
            if forget:
                reached, forget = _forget(database, tables.values()), False
            _write(database, batch, tables)
            _move(database, reached, nexts, ids, began_s, is_end=False)
        reached = nexts
        copied += len(batch)
    # The ends lie behind the last records; and the time of having caught up is kept up while nothing comes.
    if forget or reached != ends or began_s - caught_up_s > PROOF_OF_READING_S:
        with database.transaction():
            if forget:
                reached = _forget(database, tables.values())
            _move(database, reached, ends, ids, began_s, is_end=True)
    return copied


def _reached(database: psycopg.Connection) -> tuple[Offsets, dict[str, str], float]:
    """The offsets to go on from, the ids of the topics they are of, and when all had been read last (epoch s)."""
    with database.transaction():
        found = database.execute(
            "SELECT topic, partition, topic_id, next_offset, extract(epoch FROM caught_up_at) FROM copied_to"
        ).fetchall()
    offsets = {(topic, partition): next_offset for topic, partition, _, next_offset, _ in found}
    ids = {topic: topic_id for topic, _, topic_id, _, _ in found}
    return offsets, ids, min((float(caught_up_s) for *_, caught_up_s in found), default=0.0)


def _forget(database: psycopg.Connection, tables: Iterable[Table]) -> Offsets:
    """Empties the tables; where the copy stands now: nowhere."""
    for table in tables:
        database.execute(f"DELETE FROM {table.name}")
    database.execute("DELETE FROM copied_to")
    return {}


def _write(database: psycopg.Connection, batch: list[Record], tables: dict[str, Table]) -> None:
    """The last record of each key: an upsert, or a deletion."""
    latest = {(record.topic, record.key): record for record in batch}
    with database.cursor() as cursor:
        for topic, table in tables.items():
            records = [record for record in latest.values() if record.topic == topic]
            gone = [record for record in records if record.value is None]
            cursor.executemany(table.delete(), [(_hash(record.key), record.offset) for record in gone])
            cursor.executemany(table.upsert(), [_row(record, table) for record in records if record.value is not None])


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _row(record: Record, table: Table) -> tuple[Any, ...]:
    row = {"scope": "platform"} | json.loads(record.value or b"", parse_float=Decimal)
    row |= row.get("dimensions", {})
    for name in TIMES:
        if row.get(name) is not None:
            row[name] = EPOCH + timedelta(milliseconds=row[name])
    for name in TOUCHES:
        if row.get(name) is not None:
            row[name] = Jsonb(row[name], dumps=partial(json.dumps, default=float))
    return _hash(record.key), record.partition, record.offset, *(row.get(column) for column in table.columns)


def _move(
    database: psycopg.Connection, reached: Offsets, nexts: Offsets, ids: dict[str, str], began_s: float, is_end: bool
) -> None:
    """Moves the offsets from where they were seen to `nexts`; `Behind` if somebody else has moved them.

    `is_end`: all that was there at `began_s` has been read now, which is what the age of a copy is measured from.
    """
    with database.cursor() as cursor:
        for (topic, partition), at in nexts.items():
            cursor.execute(
                """INSERT INTO copied_to VALUES (%s, %s, %s, %s, to_timestamp(%s))
                   ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset,
                       caught_up_at = CASE WHEN %s THEN excluded.caught_up_at ELSE copied_to.caught_up_at END
                   WHERE copied_to.next_offset = %s AND copied_to.topic_id = excluded.topic_id""",
                (topic, partition, ids[topic], at, began_s, is_end, reached.get((topic, partition))),
            )
            if cursor.rowcount != 1:
                raise Behind(f"another copy writes to this database: it has moved {topic}/{partition}; run only one")


def main() -> None:
    """The command line; known troubles end in one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--database", required=True, help="postgresql://user@host/name; a password in PGPASSWORD")
    parser.add_argument("--once", action="store_true", help="end at what is committed now")
    parser.add_argument("--bootstrap", default="localhost:9092", help="Kafka brokers")
    parser.add_argument("-X", action="append", default=[], metavar="NAME=VALUE", help="a librdkafka property")
    parser.add_argument("--counts-topic", default="conversions.counts")
    parser.add_argument("--attributed-topic", default="conversions.attributed")
    parser.add_argument("--journeys-topic", default="conversions.journeys")
    parser.add_argument("--models-topic", default="conversions.models")
    told = parser.parse_args()
    topics = (told.counts_topic, told.attributed_topic, told.journeys_topic, told.models_topic)
    tables = dict(zip(topics, TABLES, strict=True))
    properties = {"bootstrap.servers": told.bootstrap} | dict(each.split("=", 1) for each in told.X)
    try:
        with (
            psycopg.connect(told.database, autocommit=True) as database,
            OutputTopics(tables, topics[2:], properties) as source,
        ):
            database.execute(SCHEMA.read_text())
            while True:
                copied = copy_once(database, source, tables)
                if told.once or copied:
                    print(f"{datetime.now(UTC):%H:%M:%S} {copied:,} records copied", flush=True)
                if told.once:
                    return
                time.sleep(PAUSE_S)
    except (Behind, KafkaException, psycopg.Error) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
