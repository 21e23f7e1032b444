"""In which order the records of a partition's topics were folded at first, as each batch tells in the deltas.

Whether an event is a repeat or too late hangs on what the partition had read before it, of all its topics. So a rebuild folds
them in that order, and comes to the same state.
"""

from collections.abc import Callable, Iterator
from typing import Final

from confluent_kafka import OFFSET_BEGINNING

from app.engine.aggregator import read_progress
from app.engine.clients import Clients
from app.engine.owned import Ranges
from app.engine.rebuild import read_partition

# Of each partition's course until it is rebuilt: what a batch adds to the counts may be many kilobytes, and its marks are few bytes.
_AT_ONCE: Final = 100
_AHEAD_BYTES: Final = 256 * 1024


def read_course(clients: Clients, deltas_topic: str, partition: int, since_ms: Callable[[], int]) -> Iterator[Ranges]:
    """The half-open offset ranges of each batch of a partition, by topic, from the oldest on that took a record of a time
    (epoch ms) or later, and that the deltas still hold. Every partition of the deltas has the marks of all batches.
    """
    # asked for when the first one is wanted; a batch was published after its records were written
    for message in read_partition(clients, deltas_topic, 0, OFFSET_BEGINNING, None, since_ms(), _AT_ONCE, _AHEAD_BYTES):
        for mark in read_progress(message).marks:
            if mark.partition == partition and mark.ranges:
                yield mark.ranges
