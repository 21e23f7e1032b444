"""One session of the desk: from the first record of its topics to the first thing that goes wrong, after which a new one begins
with nothing in mind.

    read everything -> standby: the folds are kept current, nothing is given out
                    -> the lease: fence the former desk, read to the ends of now, publish what differs
                    -> active: publish what changes

Whatever interrupts it, what lies on the output topics is what some desk's folds said of a prefix of the input, and the next one
corrects what differs. A repeat is harmless, and nothing stale follows: only the last desk that fenced the others is heard.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from app.desk.fold import DeskFold, Output
from app.desk.lease import Lease
from app.desk.log import Batch, Ends, Place
from app.desk.published import Published, missing
from app.desk.publisher import Publisher
from app.engine.clients import KafkaClients
from app.engine.failpoint import passing
from app.settings import Settings

STEPS: Final = ("fenced", "compared", "transaction_begun", "produced", "committed")  # where a test may end or pause it
MOST_ROWS: Final = 5_000  # of one transaction, which must end within transaction_timeout_ms
_WAIT_S: Final = 0.05


class DeskEnded(Exception):
    """The session cannot go on. `cause` as in `onecount_session_ends_total`."""

    def __init__(self, cause: str, why: str) -> None:
        super().__init__(why)
        self.cause = cause


class Session:
    """Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        clients: KafkaClients,
        lease: Lease,
        places: list[Place],
        folds: list[DeskFold],
        published: Published,
        now_ms: Callable[[], int],
    ) -> None:
        self.places = places
        self.published = published
        self.folds = folds
        self.read: dict[Place, int] = {}
        self.is_active = self.is_over = False
        self.rows_published = 0
        self._settings, self._clients, self._lease = settings, clients, lease
        self._now_ms = now_ms
        self._publisher: Publisher | None = None
        self._term = 0
        self._lock = asyncio.Lock()  # no record is taken while rows are given out
        self._takers = {
            topic: [fold for fold in folds if topic in fold.inputs] for topic in {topic for topic, _ in places}
        }

    async def take(self, batch: Batch) -> None:
        """Takes what was read."""
        async with self._lock:
            for record in batch.records:
                for fold in self._takers[record.topic]:
                    fold.take(record)
                if record.topic in self.published.rows:
                    self.published.take(record)
            self.read.update(batch.positions)

    def behind(self, ends: dict[Place, int]) -> int:
        """How many offsets lie between what is read and these ends."""
        return sum(max(end - self.read.get(place, 0), 0) for place, end in ends.items())

    async def tick(self) -> None:
        """Publishes what there is to publish, where it is this desk's turn. Raises `DeskEnded` and KafkaException."""
        if self.is_over:
            return
        if self._publisher is not None and self._term != self._lease.term:
            raise DeskEnded("ownership", "another desk may have taken over while this one was away")
        if self._publisher is None and self._lease.is_held:
            await self._take_over()
        elif self._publisher is not None:
            async with self._lock:
                await self._publish(self._publisher, _changed(self.folds, self._now_ms()))

    async def _take_over(self) -> None:
        self._term = self._lease.term
        publisher = await asyncio.to_thread(Publisher, self._settings, self._clients)
        passing("fenced")
        ends = await asyncio.to_thread(Ends(self._settings).ask, self.places)
        while self.behind(ends):
            if self.is_over:
                return
            if self._term != self._lease.term:
                raise DeskEnded("ownership", "the lease went to another desk before this one had read its topics")
            await asyncio.sleep(_WAIT_S)
        async with self._lock:
            passing("compared")
            await self._publish(publisher, missing(self.folds, self.published, self._now_ms()))
        self._publisher = publisher
        self.is_active = not self.is_over

    def end(self) -> None:
        """Nothing more is published."""
        self.is_active, self.is_over = False, True

    async def _publish(self, publisher: Publisher, rows: Iterator[Output]) -> None:
        while part := list(islice(rows, MOST_ROWS)):
            await asyncio.to_thread(publisher.publish, part)
            self.rows_published += len(part)


def _changed(folds: Iterable[DeskFold], now_ms: int) -> Iterator[Output]:
    for fold in folds:
        yield from fold.rows(now_ms)
