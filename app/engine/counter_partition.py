"""What a counter holds of one partition in memory, all of which can be read back from Redis; and the work that a batch
brings for one user.
"""

from typing import Any, Final

import msgspec
import numpy as np

from app.attribution.converters import BUCKETS as CONVERTER_BUCKETS
from app.attribution.converters import Converters, user_field
from app.attribution.merging import Arrived
from app.attribution.state import Adjustment, Conversion
from app.attribution.touches import SegmentKey, touches_of, visits_of
from app.columns.table import Turn
from app.columns.texts import Texts, hash64, stir
from app.contract.events import BROWSER, Event, to_micros
from app.contract.rows import KEPT_BYTES
from app.dedup.seen import Seen
from app.engine.fold import Command, Record, Run
from app.engine.state import StateRefused, check_version, unreadable
from app.policy.model import DAY_MS, Policy
from app.publish import records

SWEPT_USERS: Final = 1_000  # of a bucket with each batch
SWEPT_LATE: Final = 20_000  # where the day before was too short: few batches, or history in a hurry
# of all that a counter keeps in Redis; one more with every change that an older release would misread
VIEW_VERSION: Final = 3  # 2: ids, users and names by another hash; 3: ids and touches in tables


class View(msgspec.Struct, array_like=True):
    """What is stored in the ledger beside the offsets: the stream time, and what is live, with the number of its records."""

    version: int
    keep: tuple[str, ...]
    stream_ms: int
    generations: list[tuple[int, int]]
    segments: list[tuple[SegmentKey, int]]
    slots: list[int]
    days: list[int]
    swept_day: int
    swept_buckets: int
    visits: list[tuple[SegmentKey, int]] = []
    visit_slots: list[int] = []
    swept_to: int = 0


_encode = msgspec.msgpack.Encoder().encode
read_view = msgspec.msgpack.Decoder(View).decode


class CounterPartition:
    """One partition's ids, touches and converted users, and its stream time (epoch ms)."""

    def __init__(self, tag: str, policy: Policy, turn: Turn | None = None) -> None:
        """`turn`: what the tables of all partitions of a process share, so that they merge one after the other."""
        bounds = policy.bounds
        self.policy = policy
        self.seen = Seen(tag, bounds.dedup_window_ms, turn)
        self.touches = touches_of(tag, policy, turn)
        self.visits = visits_of(tag, policy, turn)
        self.converters = Converters(tag, bounds.correction_horizon_ms)
        stored_ms = max(self.touches.slot_ms, self.visits.slot_ms if self.visits else 0)
        # how long a forget is remembered: until nothing that it concerns is accepted or stored any more
        self.forget_retention_ms = max(stored_ms, policy.conversion_retention_ms())
        self.stream_ms = 0
        self.settled_ms = 0  # the stream time with which the batch before ended
        self.swept_day = -1
        self.swept_buckets = CONVERTER_BUCKETS
        self.swept_to = 0  # Redis's cursor in the bucket that is being looked through

    def load(self, packed: bytes | None, run: Run) -> None:
        """Takes the stored view over and reads the filters and the late index back. Raises `StateRefused`, and
        `StateOutdated` or `StateDamaged` for one that is to be rebuilt.
        """
        if packed is None:
            return
        check_version(packed, VIEW_VERSION, self.seen.tag)
        try:
            view = read_view(packed)
        except msgspec.DecodeError as error:
            raise unreadable(self.seen.tag, error) from error
        if view.keep != self.policy.bounds.keep:
            raise StateRefused(
                f"the stored touches keep {', '.join(view.keep)}; the policy differs: set it back or run `onecount rebuild`"
            )
        self.stream_ms, self.swept_day, self.swept_buckets = view.stream_ms, view.swept_day, view.swept_buckets
        self.swept_to = view.swept_to
        self.settled_ms = view.stream_ms
        self.touches.slots = set(view.slots)
        if self.visits is not None:
            self.visits.slots = set(view.visit_slots)
            for segment, count in view.visits:
                self.visits.load(segment, count, run)
        self.converters.days = set(view.days)
        for segment, count in view.segments:
            self.touches.load(segment, count, run)
        for generation, count in view.generations:
            self.seen.load(generation, count, run)
        if view.days:
            self.converters.load(run([("GET", self.converters.late_key(day)) for day in view.days]))

    def pack(self) -> bytes:
        """The view as it is stored."""
        return _encode(
            View(
                VIEW_VERSION,
                self.policy.bounds.keep,
                self.stream_ms,
                sorted((generation, len(table)) for generation, table in self.seen.tables.items()),
                sorted((segment, len(table)) for segment, table in self.touches.segments.items()),
                sorted(self.touches.slots),
                sorted(self.converters.days),
                self.swept_day,
                self.swept_buckets,
                sorted((segment, len(table)) for segment, table in self.visits.segments.items()) if self.visits else [],
                sorted(self.visits.slots) if self.visits else [],
                self.swept_to,
            )
        )

    def expire(self) -> list[Command]:
        """The UNLINKs for what can no longer matter at the stream time, after a batch is settled."""
        self.settled_ms = self.stream_ms
        return (
            self.seen.expire(self.stream_ms)
            + self.touches.expire(self.stream_ms)
            + (self.visits.expire(self.stream_ms) if self.visits else [])
            + self.converters.expire(self.stream_ms)
        )

    def sweep_command(self) -> Command | None:
        """What reads the users to be looked through next for what can be let go: each day of stream time all of them once, some with
        each batch, since a bucket may hold more than fits into memory.
        """
        day = self.stream_ms // DAY_MS
        if self.swept_buckets >= CONVERTER_BUCKETS:
            if day == self.swept_day:
                return None
            self.swept_day, self.swept_buckets = day, 0
        count = SWEPT_USERS if day == self.swept_day else SWEPT_LATE
        return ("HSCAN", self.converters.key(self.swept_buckets), self.swept_to, "COUNT", count)

    def swept(self, cursor: int) -> None:
        """Takes over how far Redis has come in the bucket; 0 where it is at its end. After a Redis that counts otherwise (a replica) the
        rest of a bucket may be looked through tomorrow.
        """
        self.swept_to = cursor
        if cursor == 0:
            self.swept_buckets += 1


class Part:
    """Conversions and adjustments in the order in which they came. `until_ms`: of the forget behind them (epoch ms)."""

    __slots__ = ("adjustments", "arrived", "until_ms")

    def __init__(self) -> None:
        self.arrived: list[Arrived] = []
        self.adjustments: list[Adjustment] = []
        self.until_ms: int | None = None

    def is_empty(self) -> bool:
        """Whether nothing came, and no forget stands behind it."""
        return not (self.arrived or self.adjustments) and self.until_ms is None

    def conversions(self) -> list[Conversion]:
        """The conversions that are no repeats."""
        return [conversion for conversion, is_repeat in self.arrived if not is_repeat]


class UserWork:
    """What a batch brings for one (advertiser, user) that must be settled: one part, and one more behind each forget."""

    __slots__ = ("advertiser_id", "base", "is_late", "parts", "user_id")

    def __init__(self, advertiser_id: str, user_id: str, base: int) -> None:
        self.advertiser_id, self.user_id = advertiser_id, user_id
        self.base = base  # the user's hash
        self.is_late = False  # whether a touch came that stands before a conversion which is held
        self.parts = [Part()]

    @staticmethod
    def of(users: "dict[str, UserWork]", advertiser_id: str, user_id: str, base: int) -> "UserWork":
        """The user's work in `users`, begun if there is none yet."""
        field = user_field(advertiser_id, user_id)
        if field not in users:
            users[field] = UserWork(advertiser_id, user_id, base)
        return users[field]

    def is_forgotten(self) -> bool:
        """Whether the batch brings a forget."""
        return len(self.parts) > 1

    def looks_back(self) -> bool:
        """Whether conversions that are held may be credited anew."""
        return self.is_late or self.is_forgotten()

    def is_judged_whole(self, policy: Policy) -> bool:
        """Whether what comes may concern all that is held of the user, and not just what shares an id with it."""
        return self.looks_back() or bool(self.parts[0].adjustments) or policy.bounds.journeys is not None

    def conversions(self) -> list[Conversion]:
        """The conversions of all parts that are no repeats."""
        if len(self.parts) == 1:
            return self.parts[0].conversions()
        return [conversion for part in self.parts for conversion in part.conversions()]

    def add(self, event: Event, time_ms: int, message: Record, is_repeat: bool = False) -> None:
        """Adds one accepted conversion, adjustment or forget, or a repeat of a conversion, and where its record lies."""
        part = self.parts[-1]
        if event.event_type == "forget":
            part.until_ms = time_ms
            self.parts.append(Part())
            return
        value_micros = None if event.value is None else to_micros(event.value)
        order_id = event.order_id or None
        if event.event_type == "conversion":
            name: Any = event.conversion_name
            part.arrived.append(
                Arrived(
                    Conversion(
                        event.event_id,
                        name,
                        event.platform or "",
                        time_ms,
                        value_micros,
                        event.currency,
                        order_id,
                        {},
                        {},
                        is_browser=event.reported_by == BROWSER,
                    ),
                    is_repeat,
                )
            )
        else:
            part.adjustments.append(
                Adjustment(
                    event.event_id,
                    event.platform or "",
                    event.adjustment or "",
                    time_ms,
                    value_micros,
                    order_id,
                    event.conversion_event_id,
                    records.source_of(message),
                    message.key(),
                    (message.value() or b"")[:KEPT_BYTES],
                    event.conversion_name or "",
                    currency=event.currency,
                )
            )


def user_hashes(users: Texts, advertisers: np.ndarray) -> np.ndarray:
    """The 64-bit hash (uint64) that stands for each (advertiser, user) in touch records and the late index; advertisers by
    the codes of their names.
    """
    return hash64(users) + stir(advertisers)
