"""What one user has done that can still change a count: conversions with the best touch so far, and adjustments.

Plain structs that are stored as one MessagePack value per (advertiser, user).
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from app.policy.model import RANK

STATE_VERSION: Final = 1
NEVER_MS: Final = -1  # before any event
TAKEN_OVER: Final = "\x1f"  # in the name of an adjustment that no event made


class Touch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A view, click or engaged view that a conversion may be credited to; `attributes` in the order of the policy's
    `keep`.
    """

    kind: str
    time_ms: int
    event_id: str
    attributes: tuple[str | None, ...]

    def strength(self) -> tuple[int, int, str]:
        """What decides between eligible touches: the stronger kind, then the later, then the larger event_id (by code
        point).
        """
        return RANK[self.kind], self.time_ms, self.event_id


class Path(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What stood before a conversion within the journey's window (docs/counting.md, section 8): how many of each, and those
    that its row shows. Touches are (platform, touch).
    """

    views: int
    engaged_views: int
    clicks: int
    visits: int
    first: tuple[str, Touch] | None
    touches: list[tuple[str, Touch]]  # the creditable ones, shortened
    credited: tuple[str, Touch] | None
    first_visit: tuple[int, str, str | None] | None  # time (ms), page, referrer
    pages: list[str]


NO_PATH: Final = Path(0, 0, 0, 0, None, [], None, None, [])


class Report(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one report says of a conversion, and when it says that it happened (epoch ms)."""

    time_ms: int
    is_browser: bool
    value_micros: int | None
    currency: str | None
    order_id: str | None

    def said(self) -> tuple[bool, int | None, str | None, str | None]:
        """What it says, and who does."""
        return self.is_browser, self.value_micros, self.currency, self.order_id


class Conversion(msgspec.Struct, array_like=True, gc=False):
    """One accepted conversion event as its first report has it, the best touch known per platform, the revision of each row
    published for it, and what further reports of it say (docs/counting.md, section 14).
    """

    event_id: str
    name: str
    platform: str  # "" where it names none
    time_ms: int
    value_micros: int | None
    currency: str | None
    order_id: str | None
    credits: dict[str, Touch]
    revisions: dict[str, int]
    path: Path = NO_PATH  # where the policy follows journeys
    is_browser: bool = False  # who made the first report
    reports: list[Report] = []  # the further ones, where the policy merges reports

    def identity(self) -> tuple[str, str, str]:
        """What makes two events of one user the same conversion event."""
        return self.platform, self.name, self.event_id

    def shared_ids(self) -> list[str]:
        """The ids by which it may be judged together with others."""
        ids = [self.event_id, *[touch.event_id for touch in self.credits.values()]]
        if self.order_id:
            ids.append(self.order_id)
        return ids + [report.order_id for report in self.reports if report.order_id]


class Adjustment(msgspec.Struct, array_like=True, gc=False):
    """One accepted retraction or restatement, with its record's coordinates for the dead letter that a refusal
    becomes.
    """

    event_id: str
    platform: str
    kind: str
    time_ms: int
    value_micros: int | None
    order_id: str | None
    conversion_event_id: str | None
    source: tuple[str, int, int, int]  # topic, partition, offset, timestamp (ms)
    key: bytes | None
    raw: bytes
    name: str = ""  # the conversion_name that it carries; part of its identity
    is_refused: bool = False  # its dead letter was written; a second one would count one event twice
    currency: str | None = None  # of its value, where it says so

    def identity(self) -> tuple[str, str, str]:
        """What makes two events of one user the same adjustment."""
        return self.platform, self.name, self.event_id

    def action(self) -> str:
        """The action whose orders alone it concerns; "" for those of any. Where it was taken over from a row, the row's event_id
        stands behind it, after a character that no name has.
        """
        return self.name.partition(TAKEN_OVER)[0]


class UserState(msgspec.Struct, gc=False):
    """Everything held for one (advertiser, user), or what of it a step must judge."""

    conversions: list[Conversion]
    adjustments: list[Adjustment]
    last_order: tuple[int, str, str] | None = None  # of the paid orders no longer held: time (ms), event_id, name
    forgotten_ms: int = NEVER_MS  # the person was forgotten up to and including this time
    others: list[msgspec.Raw] = []  # the conversions that are not judged in this step, as they are stored

    def is_empty(self) -> bool:
        """Whether nothing is left to hold."""
        is_known = self.last_order is not None or self.forgotten_ms != NEVER_MS
        return not (self.conversions or self.adjustments or self.others or is_known)


class _Stored(msgspec.Struct, array_like=True, gc=False):
    """The stored form. `version` guards against reading what another release wrote."""

    version: int
    conversions: list[msgspec.Raw]
    adjustments: list[Adjustment]
    last_order: tuple[int, str, str] | None = None
    forgotten_ms: int = NEVER_MS


class _Dated(msgspec.Struct, array_like=True, gc=False):
    """When a conversion happened, and what stands before that in its stored form."""

    event_id: msgspec.Raw
    name: msgspec.Raw
    platform: msgspec.Raw
    time_ms: int


class _StoredDates(msgspec.Struct, array_like=True, gc=False):
    """When the conversions of a stored state happened, and what else it holds."""

    version: int
    conversions: list[_Dated]
    adjustments: list[msgspec.Raw]
    last_order: tuple[int, str, str] | None = None
    forgotten_ms: int = NEVER_MS


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode
_decode_dates = msgspec.msgpack.Decoder(_StoredDates).decode
_conversion = msgspec.msgpack.Decoder(Conversion).decode


class UnknownStateVersion(Exception):
    """The stored state was written by another release of onecount; it must be rebuilt, never guessed at."""


def pack(state: UserState) -> bytes:
    """The stored form of a user's state."""
    conversions = [*state.others, *state.conversions]
    return _encode((STATE_VERSION, conversions, state.adjustments, state.last_order, state.forgotten_ms))


def unpack(data: bytes | None) -> UserState:
    """A user's state from its stored form; None is a user without any. Raises `UnknownStateVersion`."""
    if data is None:
        return UserState([], [])
    return _whole(_read(data))


def unpack_tied(data: bytes | None, ids: Iterable[str]) -> UserState:
    """Of a user's state the conversions that may be judged together with new ones, whose `shared_ids` and touches' ids are `ids`;
    the rest of them stay as they are stored. So a step costs hardly more for a user who did much before. Raises
    `UnknownStateVersion`.

    Conversions are judged together where they share their event_id, their order or their touch (docs/counting.md, sections 4 and
    14), and with those that such ones are judged with. Where adjustments are held it is all of them. Where an adjustment comes or
    journeys are followed, in which an order hangs on those before it, the whole state must be judged: `unpack`.
    """
    if data is None:
        return UserState([], [])
    stored = _read(data)
    if stored.adjustments or any(_encode(each) in data for each in ids):
        state = _whole(stored)
        return state if stored.adjustments else _tied(state, stored.conversions, set(ids))
    return UserState([], [], stored.last_order, stored.forgotten_ms, stored.conversions)


def is_younger(data: bytes, floor_ms: int) -> bool:
    """Whether a stored state holds nothing but conversions of `floor_ms` (epoch ms) and later; in a fifth of the time in which it is
    unpacked.
    """
    stored = _decode_dates(data)
    others = stored.adjustments or stored.last_order is not None or stored.forgotten_ms != NEVER_MS
    if others or stored.version != STATE_VERSION:
        return False
    return min((conversion.time_ms for conversion in stored.conversions), default=floor_ms) >= floor_ms


def _tied(state: UserState, stored: list[msgspec.Raw], shared: set[str]) -> UserState:
    """The state with those conversions alone that are tied to the ids, at once or by others; in their order."""
    tied: set[int] = set()
    count = -1
    while len(tied) != count:
        count = len(tied)
        for at, conversion in enumerate(state.conversions):
            ids = conversion.shared_ids()
            if at not in tied and not shared.isdisjoint(ids):
                tied.add(at)
                shared.update(ids)
    state.others = [each for at, each in enumerate(stored) if at not in tied]
    state.conversions = [each for at, each in enumerate(state.conversions) if at in tied]
    return state


def _whole(stored: _Stored) -> UserState:
    conversions = [_conversion(each) for each in stored.conversions]
    return UserState(conversions, stored.adjustments, stored.last_order, stored.forgotten_ms)


def _read(data: bytes) -> _Stored:
    stored = _decode(data)
    if stored.version != STATE_VERSION:
        raise UnknownStateVersion(
            f"state version {stored.version}, this release reads {STATE_VERSION}: run `onecount rebuild`"
        )
    return stored
