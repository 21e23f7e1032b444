"""The hot path's CPU, held against the least that any consumer in Python does with an event: decoding it with orjson.

Both are measured in turn in one process, on the same events (workload W2), as CPU time and never as wall time, so the ratio hardly
depends on the machine. A change that makes the counter dearer by more than the margin fails; one that makes it cheaper lowers RATIO.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

from app.engine.counter import CounterStage
from app.engine.fold import Batch
from app.engine.store import RedisStore
from app.generate.owner import owner_partition
from app.local import local_redis
from app.policy.load import load_policy
from app.settings import Settings
from tests.bench.deployment import PARTITIONS
from tests.bench.floor import decode
from tests.bench.w2 import POLICY, TOPIC, stream
from tests.memory.log import MemoryMessage

RATIO: Final = 4.2  # the counter's fold and its Redis commands over orjson.loads
MARGIN: Final = 1.3
ROUNDS: Final = 9
START_MS: Final = 1_764_000_000_000
EVENTS: Final = 20_000  # a round


def test_the_counter_costs_no_more_than_it_did(record_property: Callable[[str, object], None]) -> None:
    settings = Settings(bootstrap="nowhere", events_topics=(TOPIC,), partitions=PARTITIONS, policy=POLICY)
    with local_redis() as server:
        store = RedisStore(server.url, 30)
        stage = CounterStage(settings, load_policy(POLICY)[0], PARTITIONS, PARTITIONS)
        for partition in range(PARTITIONS):
            stage.open(partition, None, store.run)
        ratios = []
        for batches in rounds():
            values = [message.value() for batch in batches.values() for message in batch.records]
            begun = time.process_time()
            for value in values:
                decode(value)
            floor_s = time.process_time() - begun
            begun = time.process_time()
            fold = stage.fold(batches, set(), store.run)
            assert store.guarded_write([command for commands in fold.writes.values() for command in commands])
            ratios.append((time.process_time() - begun) / floor_s)
        store.close()
    ratio = median(ratios[2:])  # the first rounds learn shapes and names
    record_property("ratio", ratio)
    print(f"hot path: {ratio:.2f} times orjson.loads; stored {RATIO}, margin {MARGIN}")
    assert ratio <= RATIO * MARGIN, f"the counter costs {ratio:.2f} times orjson.loads, it was {RATIO}"


def rounds() -> list[dict[int, Batch]]:
    """The rounds' records, as the counter reads them."""
    found: list[dict[int, Batch]] = []
    offsets = dict.fromkeys(range(PARTITIONS), 0)
    records: dict[int, list[Any]] = {partition: [] for partition in offsets}
    for number, (key, value, stamp_ms, user, foreign, _) in enumerate(stream(ROUNDS * EVENTS, 1, START_MS), 1):
        partition = (owner_partition(user, PARTITIONS, "murmur2") + foreign) % PARTITIONS
        records[partition].append(MemoryMessage((TOPIC, partition), offsets[partition], key, value, stamp_ms))
        offsets[partition] += 1
        if number % EVENTS == 0:
            found.append(
                {
                    each: Batch(part, {TOPIC: (part[0].offset(), offsets[each])})
                    for each, part in records.items()
                    if part
                }
            )
            records = {each: [] for each in offsets}
    return found
