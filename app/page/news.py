"""The folds of what was corrected and what was refused: the newest corrections with what changed, and numbers by reason.

No user, order or event id is kept: the key of a conversion is held as a digest, and only to find its row again.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from app.contract.events import Event, from_micros, to_micros
from app.contract.reasons import ALL_REASONS
from app.contract.rows import MONEY_MEASURES, AttributedRow, CountRow, DeadLetter
from app.page.figures import MINUTE_MS, NUMBERS, SPANS, Held, hold

NEWEST_SHOWN: Final = 100  # corrections of a kind
OTHER: Final = "other"  # a reason that this release does not know
WITHDRAWN: Final = "withdrawn"  # in place of a status, for a row that was deleted
_FIELDS: Final = frozenset(Event.__struct_fields__)  # a dead letter may name any other, which would be without bound
_NOTHING: Final = Held("", "", "", "", "", 0, 0, 0, 0, 0, 0, False)


class Judged(NamedTuple):
    """What is kept of a conversion, to say later what a correction changed; the value in millionths."""

    status: str
    value: int
    currency: str
    campaign: str
    ad: str
    touch: str
    touch_time: int | None


class Recent:
    """Numbers by key, minute by minute of the time on the topic, for the last day of it."""

    def __init__(self) -> None:
        self._minutes: dict[int, Counter[Any]] = {}
        self._newest = 0

    def add(self, key: Any, at_ms: int) -> None:
        """Counts one."""
        minute = at_ms // MINUTE_MS
        self._minutes.setdefault(minute, Counter())[key] += 1
        if minute > self._newest:
            self._newest = minute
            oldest = minute - SPANS[-1].width_ms // MINUTE_MS
            self._minutes = {each: counted for each, counted in self._minutes.items() if each > oldest}

    def sums(self, width_ms: int, until_ms: int) -> Counter[Any]:
        """The numbers of the `width_ms` before `until_ms`."""
        oldest = (until_ms - width_ms) // MINUTE_MS
        found: Counter[Any] = Counter()
        for minute, counted in self._minutes.items():
            if minute > oldest:
                found.update(counted)
        return found


@dataclass
class News:
    """The fold. Bounded: the newest corrections, the last `max_rows` conversions, numbers of a day. `at_ms`: the newest
    record's time on its topic.
    """

    max_rows: int
    judged: dict[bytes, Judged] = field(default_factory=dict)
    conversions: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_SHOWN))
    counts: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=NEWEST_SHOWN))
    corrected: Recent = field(default_factory=Recent)  # by "conversions" and "counts"
    refused: Recent = field(default_factory=Recent)  # by (reason, field)
    refused_ms: dict[tuple[str, str], int] = field(default_factory=dict)  # the newest one's time
    at_ms: int = 0


def fold_letter(news: News, letter: DeadLetter, at_ms: int) -> None:
    """Counts a dead letter by its reason and the field at fault."""
    news.at_ms = max(news.at_ms, at_ms)
    reason = letter.reason if letter.reason in ALL_REASONS else OTHER
    key = (reason, letter.field if letter.field in _FIELDS else "")
    news.refused.add(key, at_ms)
    news.refused_ms[key] = max(news.refused_ms.get(key, 0), at_ms)


def fold_conversion(news: News, key: bytes, row: AttributedRow, at_ms: int) -> None:
    """Holds the latest word on a conversion. A correction of an earlier word is told, with what changed where that one is
    still held.
    """
    news.at_ms = max(news.at_ms, at_ms)
    digest = _digest(key)
    before = news.judged.pop(digest, None)
    after = news.judged[digest] = Judged(
        row.status,
        to_micros(row.value),
        row.currency or "",
        row.campaign_id or "",
        row.ad_id or "",
        row.touch_type or "",
        row.touch_time,
    )
    if len(news.judged) > news.max_rows:
        del news.judged[next(iter(news.judged))]
    if row.revision > 1:
        _tell(
            news.conversions, row.advertiser_id, row.platform, row.conversion_name, at_ms,
            event_ms=row.event_time, campaign=after.campaign, currency=after.currency, status=after.status,
            revision=row.revision, changes=None if before is None else _changes(Judged._fields, before, after),
        )  # fmt: skip
        news.corrected.add("conversions", at_ms)


def fold_withdrawal(news: News, key: bytes, names: Sequence[str], at_ms: int) -> None:
    """Tells of a row that was deleted: it had no platform, then a touch was found, and another row says so. `names` are the
    parts of its key.
    """
    news.at_ms = max(news.at_ms, at_ms)
    before = news.judged.pop(_digest(key), None)
    advertiser, _, platform, action, _ = names
    changes = None if before is None else [["status", before.status, WITHDRAWN]]
    _tell(news.conversions, advertiser, platform, action, at_ms, status=WITHDRAWN, changes=changes)
    news.corrected.add("conversions", at_ms)


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()


def fold_final(news: News, before: Held | None, row: CountRow, at_ms: int) -> None:
    """Tells of a count that changed after its window had been called final. A first revision that is final is one, too:
    its row came late.
    """
    if not row.final or (row.revision > 1 if before is None else not before.final):
        return
    after = hold(row)
    changes = _changes((*NUMBERS, "value"), before or _NOTHING, after)
    if changes:
        news.at_ms = max(news.at_ms, at_ms)
        _tell(
            news.counts, after.advertiser, after.platform, after.action, at_ms,
            event_ms=row.window_start, campaign=after.campaign, currency=after.currency, revision=row.revision, changes=changes,
        )  # fmt: skip
        news.corrected.add("counts", at_ms)


def _changes(names: Iterable[str], before: Any, after: Any) -> list[list[Any]]:
    """[name, before, after] of each field that differs, amounts in their own unit."""
    return [
        [name, from_micros(old), from_micros(new)] if name in MONEY_MEASURES else [name, old, new]
        for name in names
        if (old := getattr(before, name)) != (new := getattr(after, name))
    ]


def _tell(newest: deque[dict[str, Any]], advertiser: str, platform: str, action: str, at_ms: int, **more: Any) -> None:
    newest.appendleft({"at_ms": at_ms, "advertiser": advertiser, "platform": platform, "action": action, **more})
