"""The floor: the least that any exactly-once consumer in Python does. Consume, decode, re-produce a seventh, commit.

    python -m tests.bench.floor BOOTSTRAP TOPIC GROUP OUTPUT

It keeps no state, checks nothing and counts nothing. The clients have the same properties as onecount's own. Runs until terminated.
"""

import sys
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, Producer

from app.engine.clients import consumer_properties, producer_properties
from app.settings import Settings

BATCH_EVENTS: Final = 50_000
BATCH_S: Final = 0.2
ONE_ROW_IN: Final = 7
TIMEOUT_S: Final = 30
ASSIGNED: Final = "floor: partitions assigned"


def main() -> None:
    """Runs the loop on the topic that the arguments name."""
    bootstrap, topic, group, output = sys.argv[1:]
    settings = Settings(bootstrap=bootstrap)
    producer = Producer(producer_properties(settings, group))
    producer.init_transactions(TIMEOUT_S)
    properties = consumer_properties(settings, group, group)
    consumer = Consumer(properties | {"auto.offset.reset": "earliest", "enable.partition.eof": False})
    consumer.subscribe([topic], on_assign=lambda *_: print(ASSIGNED, flush=True))
    while True:
        records = consumer.consume(BATCH_EVENTS, BATCH_S)
        if records:
            carry(consumer, producer, output, [record.value() for record in records])


def carry(consumer: Consumer, producer: Producer, output: str, values: list[bytes]) -> None:
    """Decodes a batch, and publishes its rows and the input's offsets in one transaction."""
    try:
        events = [orjson.loads(value) for value in values]
    except orjson.JSONDecodeError:
        events = [decode(value) for value in values]
    rows = [
        {"key": event.get("user_id", "").encode(), "value": value}
        for event, value in zip(events[::ONE_ROW_IN], values[::ONE_ROW_IN], strict=True)
        if type(event) is dict and type(event.get("user_id", "")) is str
    ]
    producer.begin_transaction()
    producer.produce_batch(output, rows)
    producer.send_offsets_to_transaction(
        consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), TIMEOUT_S
    )
    producer.commit_transaction(TIMEOUT_S)


def decode(value: bytes | None) -> Any:
    """One record of a batch in which some are no JSON."""
    try:
        return orjson.loads(value or b"null")
    except orjson.JSONDecodeError:
        return None


if __name__ == "__main__":
    main()
