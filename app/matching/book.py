"""Whose click is whose, and which events wait for their click: the matcher's state of one partition of `onecount.clicks`.

Everything is a function of the partition's rows in their order, however they are cut into batches (docs/counting.md, section 13).

`{tag}:owners:<generation>`   hash: MessagePack of a click id's owners in turn, by the hash of its key; a generation spans a
                              quarter of known_for, by the time of the newest click
`{tag}:waiting:<day>`         hash: the events that wait, by their offset; the day in which they have waited for too long
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Final, NamedTuple

import msgspec
import xxhash

from app.columns.table import StateDamaged
from app.contract import click_ids
from app.contract.click_ids import ClickRow, UserlessRow
from app.policy.model import DAY_MS, ClickIds

Command = tuple[Any, ...]
Run = Callable[[Iterable[Command]], list[Any]]
GENERATIONS: Final = 4  # that known_for spans
OWNERS_MAX: Final = 16  # of one click id on one platform, in turn


class Owner(msgspec.Struct, array_like=True):
    """Whose clicks with one id on one platform are until a time (epoch ms) is no longer known; then the next one's."""

    platform: str
    user_id: str
    time_ms: int


class Step(NamedTuple):
    """One row, by its offset, and the hash of its key."""

    offset: int
    digest: bytes
    row: ClickRow | UserlessRow
    value: bytes  # the row as it came


class Fate(NamedTuple):
    """What becomes of an event: the user whose click it was, or None where no click came in time. `day` and `offset`: where it
    waits in Redis, if `row` is None.
    """

    offset: int
    day: int
    user_id: str | None
    row: UserlessRow | None


class _Waiting(NamedTuple):
    digest: bytes
    platform: str
    until_ms: int
    row: UserlessRow | None  # of this batch; else it is in Redis
    value: bytes


_pack = msgspec.msgpack.Encoder().encode
_unpack_owners = msgspec.msgpack.Decoder(list[Owner]).decode
_unpack_waiting = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode


def kept_ms(click_ids: ClickIds) -> int:
    """How long (ms of stream time) a click id's owner is stored at the most: a generation goes as a whole."""
    return click_ids.known_for_ms + click_ids.known_for_ms // GENERATIONS


def digest_of(key: bytes) -> bytes:
    """16 bytes that stand for a click id's key."""
    return xxhash.xxh3_128_digest(key)


class Book:
    """One partition's click ids and waiting events, and its stream time (epoch ms)."""

    def __init__(self, tag: str, click_ids: ClickIds) -> None:
        self.tag = tag
        self.park_for_ms, self.known_for_ms = click_ids.park_for_ms, click_ids.known_for_ms
        self.span_ms = max(self.known_for_ms // GENERATIONS, 1)
        self.stream_ms = 0
        self.generations: Counter[int] = Counter()  # how many click ids each has
        self.days: Counter[int] = Counter()  # how many events wait in each
        self.waiting: dict[int, _Waiting] = {}
        self._by_click: dict[bytes, list[int]] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._owners: dict[bytes, list[Owner]] = {}  # of this batch's click ids
        self._found_in: dict[bytes, int] = {}
        self._changed: dict[bytes, None] = {}

    def _owners_key(self, generation: int) -> str:
        return f"{{{self.tag}}}:owners:{generation}"

    def _waiting_key(self, day: int) -> str:
        return f"{{{self.tag}}}:waiting:{day}"

    def load(self, generations: dict[int, int], days: dict[int, int], run: Run) -> None:
        """Takes the state over, of so many records in each generation and day. Raises `StateDamaged` where some are missing."""
        self.generations, self.days = Counter(generations), Counter(days)
        sizes = run([("HLEN", self._owners_key(generation)) for generation in generations])
        if sizes != list(generations.values()):
            raise StateDamaged(
                f"{self.tag}: of the click ids {sizes} are there, {list(generations.values())} were written"
            )
        for day, count in days.items():
            pairs = run([("HGETALL", self._waiting_key(day))])[0]
            if len(pairs) != 2 * count:
                raise StateDamaged(f"{self.tag}: of {count} waiting events {len(pairs) // 2} are there")
            for offset, packed in zip(pairs[::2], pairs[1::2], strict=True):
                digest, value = _unpack_waiting(packed)
                row = click_ids.decode(value)
                self._wait(int(offset), _Waiting(digest, row.platform, row.time_ms + self.park_for_ms, None, b""))
        for offsets in self._by_click.values():
            offsets.sort()

    def question(self, steps: Sequence[Step]) -> list[Command]:
        """The commands that read what is known of these rows' click ids."""
        digests = dict.fromkeys(step.digest for step in steps)
        return [("HMGET", self._owners_key(generation), *digests) for generation in self.generations]

    def settle(self, steps: Sequence[Step], replies: Sequence[list[bytes | None]]) -> list[Fate]:
        """Takes the rows in, in their order; what becomes of which events. `replies`: to `question`."""
        digests = list(dict.fromkeys(step.digest for step in steps))
        self._owners = {digest: [] for digest in digests}
        self._found_in, self._changed = {}, {}
        for generation, reply in zip(self.generations, replies, strict=True):
            for digest, packed in zip(digests, reply, strict=True):
                if packed is not None:
                    self._owners[digest], self._found_in[digest] = _unpack_owners(packed), generation
        fates: list[Fate] = []
        for step in steps:
            self.stream_ms = max(self.stream_ms, step.row.time_ms)
            self._run_out(fates)
            if isinstance(step.row, ClickRow):
                self._own(step.digest, step.row)
                self._release(step.digest, fates)
            else:
                self._ask(step, step.row, fates)
        return fates

    def _run_out(self, fates: list[Fate]) -> None:
        while self._deadlines and self._deadlines[0][0] <= self.stream_ms:
            _, offset = heappop(self._deadlines)
            if offset in self.waiting:
                fates.append(self._leave(offset, None))

    def _own(self, digest: bytes, click: ClickRow) -> None:
        if not self._is_known(click.time_ms):
            return
        owners = self._owners[digest] = [owner for owner in self._owners[digest] if self._is_known(owner.time_ms)]
        in_turn = [owner for owner in owners if owner.platform == click.platform]
        last = in_turn[-1] if in_turn else None
        if last is None or (last.user_id != click.user_id and last.time_ms < click.time_ms):
            if last is not None and len(in_turn) == OWNERS_MAX:
                owners.remove(last)
            owners.append(Owner(click.platform, click.user_id, click.time_ms))
        elif last.time_ms < click.time_ms:
            last.time_ms = click.time_ms
        else:  # it is known for no longer than one that came before it
            return
        self._changed[digest] = None

    def _release(self, digest: bytes, fates: list[Fate]) -> None:
        for offset in list(self._by_click.get(digest, ())):
            user_id = self._owner(digest, self.waiting[offset].platform)
            if user_id is not None:
                fates.append(self._leave(offset, user_id))

    def _ask(self, step: Step, row: UserlessRow, fates: list[Fate]) -> None:
        user_id = self._owner(step.digest, row.platform)
        until_ms = row.time_ms + self.park_for_ms
        if user_id is not None or until_ms <= self.stream_ms:
            fates.append(Fate(step.offset, 0, user_id, row))
        else:
            self._wait(step.offset, _Waiting(step.digest, row.platform, until_ms, row, step.value))
            self.days[until_ms // DAY_MS] += 1

    def _owner(self, digest: bytes, platform: str) -> str | None:
        known = [owner for owner in self._owners[digest] if self._is_known(owner.time_ms)]
        named = platform or min((owner.platform for owner in known), default="")
        return next((owner.user_id for owner in known if owner.platform == named), None)

    def _is_known(self, time_ms: int) -> bool:
        return time_ms + self.known_for_ms > self.stream_ms

    def _wait(self, offset: int, waiting: _Waiting) -> None:
        self.waiting[offset] = waiting
        self._by_click.setdefault(waiting.digest, []).append(offset)
        heappush(self._deadlines, (waiting.until_ms, offset))

    def _leave(self, offset: int, user_id: str | None) -> Fate:
        waiting = self.waiting.pop(offset)
        offsets = self._by_click[waiting.digest]
        offsets.remove(offset)
        if not offsets:
            del self._by_click[waiting.digest]
        if len(self._deadlines) > 2 * len(self.waiting) + GENERATIONS:  # most are of events that found their click
            self._deadlines = [(each.until_ms, at) for at, each in self.waiting.items()]
            heapify(self._deadlines)
        day = waiting.until_ms // DAY_MS
        self.days[day] -= 1
        return Fate(offset, day, user_id, waiting.row)

    def read(self, fates: Sequence[Fate], run: Run) -> list[UserlessRow]:
        """The events of these fates. Raises `StateDamaged`."""
        stored = [fate for fate in fates if fate.row is None]
        replies = iter(run([("HGET", self._waiting_key(fate.day), fate.offset) for fate in stored]) if stored else ())
        rows = []
        for fate in fates:
            row: Any = fate.row
            if row is None:
                packed = next(replies)
                if packed is None:
                    raise StateDamaged(f"{self.tag}: the waiting event {fate.offset} is gone")
                row = click_ids.decode(_unpack_waiting(packed)[1])
            rows.append(row)
        return rows

    def writes(self, fates: Sequence[Fate]) -> list[Command]:
        """The commands that store what the batch changed."""
        commands = self._write_owners()
        for fate in fates:
            if fate.row is None:
                commands.append(("HDEL", self._waiting_key(fate.day), fate.offset))
        for offset in reversed(self.waiting):  # the newest come last
            waiting = self.waiting[offset]
            if waiting.row is None:
                break
            packed = _pack((waiting.digest, waiting.value))
            commands.append(("HSET", self._waiting_key(waiting.until_ms // DAY_MS), offset, packed))
            self.waiting[offset] = waiting._replace(row=None, value=b"")
        self.days = +self.days
        return commands

    def _write_owners(self) -> list[Command]:
        commands: list[Command] = []
        for digest in self._changed:
            owners = self._owners[digest]
            generation = max(owner.time_ms for owner in owners) // self.span_ms
            before = self._found_in.get(digest)
            if before is not None and before != generation:
                commands.append(("HDEL", self._owners_key(before), digest))
                self.generations[before] -= 1
            if before != generation:
                self.generations[generation] += 1
            commands.append(("HSET", self._owners_key(generation), digest, _pack(owners)))
        ended = [each for each in self.generations if not self._is_known((each + 1) * self.span_ms - 1)]
        for generation in ended:
            del self.generations[generation]
        if ended:
            commands.append(("UNLINK", *(self._owners_key(generation) for generation in ended)))
        self.generations = +self.generations
        return commands
