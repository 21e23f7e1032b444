"""The fold of `conversions.counts`: sums over the last hour and the last day of event time, exact at every moment.

The latest row of each key is held, so that a revision replaces what it corrects. Time is the rows' own: "last" ends with
the newest window, so that history that is imported looks as it did when it happened.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from sys import intern
from typing import Final, NamedTuple

from app.contract.events import to_micros
from app.contract.rows import ALL, CountRow

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS


class Span(NamedTuple):
    """A stretch of event time that the page can show, in bars of `bucket_ms`."""

    name: str
    width_ms: int
    bucket_ms: int

    def begins_ms(self, newest_ms: int) -> int:
        """Where the span that ends with the newest window's bar begins (epoch ms), itself a bar's beginning."""
        return newest_ms // self.bucket_ms * self.bucket_ms + self.bucket_ms - self.width_ms


SPANS: Final = (Span("hour", HOUR_MS, MINUTE_MS), Span("day", 24 * HOUR_MS, 15 * MINUTE_MS))


class Held(NamedTuple):
    """What is kept of a count row; money in millionths."""

    advertiser: str
    platform: str
    campaign: str
    action: str
    currency: str
    views: int
    engaged_views: int
    clicks: int
    conversions: int
    value: int
    cost: int
    final: bool


NUMBERS: Final = ("views", "engaged_views", "clicks", "conversions", "cost")


class Sums:
    """Sums over rows; money in millionths, `value` by currency and never over currencies. `rows`: how many make them."""

    __slots__ = ("clicks", "conversions", "cost", "engaged_views", "rows", "value", "views")

    def __init__(self) -> None:
        self.rows = self.views = self.engaged_views = self.clicks = self.conversions = self.cost = 0
        self.value: dict[str, int] = {}

    def add(self, row: Held, sign: int) -> None:
        """Takes a row in (1) or out (-1)."""
        self.rows += sign
        self.views += sign * row.views
        self.engaged_views += sign * row.engaged_views
        self.clicks += sign * row.clicks
        self.conversions += sign * row.conversions
        self.cost += sign * row.cost
        if row.value:
            self._pay(row.currency, sign * row.value)

    def merge(self, more: "Sums") -> None:
        """Adds other sums to these."""
        self.rows += more.rows
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(more, name))
        for currency, amount in more.value.items():
            self._pay(currency, amount)

    def _pay(self, currency: str, amount: int) -> None:
        total = self.value.get(currency, 0) + amount
        if total:
            self.value[currency] = total
        else:
            self.value.pop(currency, None)


Place = tuple[str, str]  # advertiser and platform: what the page can be filtered by


@dataclass
class Totals:
    """The sums of one span: what each platform counts, and apart from it what is counted once over all of them (`once`, by
    advertiser and action), which is never added to them. What no row is left of has no entry.
    """

    campaigns: dict[tuple[str, str, str], Sums] = field(default_factory=lambda: defaultdict(Sums))
    actions: dict[tuple[str, str, str], Sums] = field(default_factory=lambda: defaultdict(Sums))
    series: dict[Place, dict[int, Sums]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Sums)))
    once: dict[tuple[str, str], Sums] = field(default_factory=lambda: defaultdict(Sums))

    def add(self, row: Held, bucket: int, sign: int) -> None:
        """Takes a row of the bar that begins at `bucket` in (1) or out (-1)."""
        if row.platform == ALL:
            _add(self.once, (row.advertiser, row.action), row, sign)
            return
        place = (row.advertiser, row.platform)
        _add(self.campaigns, (*place, row.campaign), row, sign)
        if row.action:
            _add(self.actions, (*place, row.action), row, sign)
        _add(self.series[place], bucket, row, sign)
        if not self.series[place]:
            del self.series[place]


def _add(sums: dict, key: object, row: Held, sign: int) -> None:  # type: ignore[type-arg]
    found = sums[key]
    found.add(row, sign)
    if not found.rows:
        del sums[key]


@dataclass
class Figures:
    """The fold. Bounded: windows of the widest span, and at most `max_rows` rows, of which the oldest windows go first.

    `newest_ms` begins the newest window, `final_ms` ends the last final one, `published_ms` is the newest row's time on
    its topic; 0 before the first row. `cut_ms`: windows before it had to go, or 0; those after it are exact. `left_out`:
    rows of the newest window beyond the limit, where it alone has too many.
    """

    max_rows: int
    windows: dict[int, dict[bytes, Held]] = field(default_factory=dict)
    totals: dict[str, Totals] = field(default_factory=lambda: {span.name: Totals() for span in SPANS})
    rows: int = 0
    window_ms: int = MINUTE_MS
    newest_ms: int = 0
    final_ms: int = 0
    published_ms: int = 0
    cut_ms: int = 0
    left_out: int = 0


def hold(row: CountRow) -> Held:
    """What the page needs of a row."""
    return Held(
        intern(row.advertiser_id),
        intern(row.platform),
        intern(row.dimensions.get("campaign_id") or ""),
        intern(row.conversion_name),
        intern(row.currency),
        row.views,
        row.engaged_views,
        row.clicks,
        row.conversions,
        to_micros(row.value),
        to_micros(row.cost),
        row.final,
    )


def fold_count(figures: Figures, key: bytes, window: int, row: CountRow | None, published_ms: int) -> Held | None:
    """Takes the latest row of a key in; None deletes it. What was held of the row that it replaces, None if nothing was.

    `window` begins the row's window, `published_ms` is its time on the topic (epoch ms).
    """
    figures.published_ms = max(figures.published_ms, published_ms)
    if row is not None:
        figures.window_ms = row.window_end - row.window_start
        if row.final:
            figures.final_ms = max(figures.final_ms, row.window_end)
        if window > figures.newest_ms:
            _advance(figures, window)
    if window < max(SPANS[-1].begins_ms(figures.newest_ms), figures.cut_ms):
        return None
    rows = figures.windows.setdefault(window, {})
    before = rows.pop(key, None)
    if before is not None:
        figures.rows -= 1
        _count(figures, window, before, -1)
    if row is not None and (figures.rows < figures.max_rows or _make_room(figures, window)):
        held = rows[key] = hold(row)
        figures.rows += 1
        _count(figures, window, held, 1)
    if not rows:
        figures.windows.pop(window, None)
    return before


def _count(figures: Figures, window: int, row: Held, sign: int) -> None:
    for span in SPANS:
        if window >= span.begins_ms(figures.newest_ms):
            figures.totals[span.name].add(row, window // span.bucket_ms * span.bucket_ms, sign)


def _advance(figures: Figures, newest_ms: int) -> None:
    """Moves every span's end to a newer window, and takes out what is before its beginning."""
    former_ms, figures.newest_ms = figures.newest_ms, newest_ms
    for span in SPANS:
        begins_ms, begun_ms = span.begins_ms(newest_ms), span.begins_ms(former_ms)
        if begins_ms == begun_ms:
            continue
        for window in [window for window in figures.windows if begun_ms <= window < begins_ms]:
            for row in figures.windows[window].values():
                figures.totals[span.name].add(row, window // span.bucket_ms * span.bucket_ms, -1)
    for window in [window for window in figures.windows if window < SPANS[-1].begins_ms(newest_ms)]:
        figures.rows -= len(figures.windows.pop(window))


def _make_room(figures: Figures, window: int) -> bool:
    """Takes the oldest window out whole, so that the others stay exact; whether a row of `window` may be added then."""
    oldest = min(each for each, rows in figures.windows.items() if rows)
    if oldest == window == figures.newest_ms:
        figures.left_out += 1
        return False
    if oldest > window:
        figures.cut_ms = window + figures.window_ms
        return False
    for row in figures.windows[oldest].values():
        _count(figures, oldest, row, -1)
    figures.rows -= len(figures.windows.pop(oldest))
    figures.cut_ms, figures.left_out = oldest + figures.window_ms, 0
    return oldest < window
