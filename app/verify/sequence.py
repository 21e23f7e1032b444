"""In which order an owner partition processes its events (docs/counting.md, section 1)."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from app.verify.records import Arrival, Order, Record

# A record of a topic-partition, and the event that it brings to this owner: None if it was refused or is foreign.
Step: TypeAlias = tuple[Record, Arrival | None]
# Every topic-partition that brings events to one owner partition, each by offset.
Streams: TypeAlias = dict[tuple[str, int], list[Step]]


class _Mark(msgspec.Struct, array_like=True, gc=False):
    partition: int
    watermark_ms: int
    ranges: dict[str, tuple[int, int]]


class _DeltaMessage(msgspec.Struct, array_like=True, gc=False):
    partitions: int
    marks: list[_Mark]
    rows: msgspec.Raw


def committed_batches(values: Iterable[bytes]) -> Order:
    """The batches of every owner partition, of the values of ONE partition of `onecount.deltas`, by offset.

    Every batch sends its marks to each partition of that topic. Raises msgspec's ValidationError for other bytes.
    """
    order = defaultdict(list)
    decode = msgspec.json.Decoder(_DeltaMessage).decode
    for value in values:
        for mark in decode(value).marks:
            if mark.ranges:  # without any it only moves the watermark
                order[mark.partition].append(mark.ranges)
    return order


def by_time(streams: Streams) -> list[list[Arrival]]:
    """Every event when no batches are known, each as a batch of its own: by offset within a topic-partition.

    Of the topic-partitions' next records, the smallest (Kafka timestamp, topic, partition, offset) goes first.
    """
    # On lists that are not sorted themselves, merge compares just the heads, which is what is meant here.
    merged = heapq.merge(*streams.values(), key=lambda step: (step[0].timestamp_ms, *step[0].coordinates))
    return [[arrival] for _, arrival in merged if arrival is not None]


def by_batches(
    streams: Streams, owner: int, batches: Sequence[Mapping[str, tuple[int, int]]]
) -> tuple[list[list[Arrival]], list[str]]:
    """The events of each batch as the committed batches took them, and what is wrong with those: a record in two of them or in none.

    A record that no batch took is processed all the same, so that the answer stays that of the whole input.
    """
    taken_batches: list[list[Arrival]] = []
    faults: list[str] = []
    taken = dict.fromkeys(streams, 0)
    for batch in batches:
        arrivals: list[Arrival] = []
        for topic in sorted(batch):  # "each batch is processed in order of (topic, partition, offset)"
            first, end = batch[topic]
            stream = streams.get((topic, owner), [])
            at = taken.get((topic, owner), 0)
            if at > 0 and stream[at - 1][0].offset >= first:
                faults.append(f"{topic}/{owner}: offset {first} lies in two batches")
            if at < len(stream) and stream[at][0].offset < first:
                faults.append(f"{topic}/{owner}: offsets {stream[at][0].offset} to {first - 1} lie in no batch")
            while at < len(stream) and stream[at][0].offset < end:
                _, arrival = stream[at]
                if arrival is not None:
                    arrivals.append(arrival)
                at += 1
            taken[topic, owner] = at
        taken_batches.append(arrivals)
    left = {where: stream[taken[where] :] for where, stream in streams.items()}
    for (topic, partition), steps in left.items():
        if steps and partition == owner:  # another partition's is an event that was never copied: told by its own fault
            faults.append(f"{topic}/{owner}: no batch reaches offset {steps[0][0].offset} and beyond")
    return taken_batches + by_time(left), faults
