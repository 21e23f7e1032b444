"""What can hardly change any more, because the newest event of its partition is far ahead of it."""

from collections.abc import Hashable
from typing import Final, Generic, TypeAlias, TypeVar

from app.desk.fold import Input
from app.policy.model import DAY_MS

Item = TypeVar("Item", bound=Hashable)
Partition: TypeAlias = int | None  # None: nobody knows of which one
_NEVER: Final = -(2**40)  # days


class Aging(Generic[Item]):
    """Items by partition and day. A partition's time is that of its newest event, as far as all `topics` have told it, which are
    written in step; what is more than `held_ms` behind it is over. In whole days, so that it moves once a day.
    """

    def __init__(self, held_ms: int, topics: tuple[str, ...]) -> None:
        self._held_days = held_ms // DAY_MS + 1
        self._topics = topics
        self._newest: dict[int, dict[str, int]] = {}  # days by partition and topic
        self._horizon: dict[int, int] = {}  # the first day that is not over
        self._items: dict[Partition, dict[int, set[Item]]] = {}

    def horizon_ms(self, partition: Partition) -> int:
        """What is before this is over: in the partition, or in each one."""
        return self._first_day(partition) * DAY_MS

    def _first_day(self, partition: Partition) -> int:
        if partition is None:
            return min(self._horizon.values(), default=_NEVER)
        return self._horizon.get(partition, _NEVER)

    def put(self, partition: Partition, time_ms: int, item: Item) -> None:
        """Holds an item of that time. It may lie at several ones."""
        day = max(time_ms // DAY_MS, self._first_day(partition))
        self._items.setdefault(partition, {}).setdefault(day, set()).add(item)

    def discard(self, item: Item) -> None:
        """Takes an item out, wherever it lies."""
        for days in self._items.values():
            for items in days.values():
                items.discard(item)

    def move(self, record: Input, time_ms: int) -> set[Item]:
        """Moves the time of the record's partition on to an event's, and takes out the items that are over by then."""
        newest = self._newest.get(record.partition)
        if newest is None:
            newest = self._newest[record.partition] = dict.fromkeys(self._topics, _NEVER)
        day = time_ms // DAY_MS
        if day <= newest[record.topic]:
            return set()
        newest[record.topic] = day
        horizon = min(newest.values()) - self._held_days
        if horizon <= self._first_day(record.partition):
            return set()
        self._horizon[record.partition] = horizon
        return self._take_out(record.partition, horizon)

    def move_unknown(self) -> set[Item]:
        """Takes out the items of no known partition that are over in each one. Only for who has read everything that there is: a
        partition that told no time has no event.
        """
        return self._take_out(None, self._first_day(None))

    def _take_out(self, partition: Partition, horizon: int) -> set[Item]:
        days = self._items.get(partition, {})
        return set().union(*(days.pop(day) for day in sorted(days) if day < horizon))
