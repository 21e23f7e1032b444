"""The policy: ONE counting method per platform, the actions that count, and the times that bound them.

A `Policy` is a series of versions. The version in force for a conversion is the one whose `effective_from_ms` is the
latest that is not after the conversion's time, so a change never touches what was counted before it.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from operator import itemgetter
from typing import Final

import msgspec

from app.contract.events import TOUCH_ATTRIBUTES, TOUCH_TYPES

DAY_MS: Final = 86_400_000
# Which kinds of touch a method may credit, the strongest first: a click beats any view inside its own window.
METHODS: Final = {
    "click": ("click",),
    "view": ("view",),
    "click_then_view": ("click", "view"),
    "click_engaged_view": ("click", "engaged_view"),
}
# The rank by which kinds beat each other, whatever their times.
RANK: Final = {"view": 1, "engaged_view": 2, "click": 3}
_NOTHING: Final = (None,) * len(TOUCH_ATTRIBUTES)
MAX_LOOKBACK_MS: Final = 90 * DAY_MS  # the longest window that any of the platforms offers


class Action(msgspec.Struct, frozen=True):
    """What a conversion of this name means. `outcome` None makes it noise; `value_micros` stands in for a value not
    sent.
    """

    action_class: str
    intent: str
    outcome: str | None
    count: str
    value_micros: int | None


class Platform(msgspec.Struct, frozen=True):
    """One platform's counting: its method, the lookback window of each kind of touch (ms), and its own `count` per
    action.
    """

    method: str
    windows_ms: dict[str, int]
    counts: dict[str, str]

    def count(self, name: str, action: Action) -> str:
        """`one` or `every` for an action here: the platform's word on it, else its word on all, else the action's own."""
        return self.counts.get(name) or self.counts.get("*") or action.count


class Version(msgspec.Struct, frozen=True):
    """The counting rules in force from `effective_from_ms` (epoch ms; 0 for the first) on. `merge_reports_ms`: how far apart
    two reports of one conversion may be (event time) whose fields are merged; 0: a repeat is dropped, whatever it says.
    """

    number: int
    effective_from_ms: int
    platforms: dict[str, Platform]
    actions: dict[str, Action]
    formats: tuple[str, ...] = ()  # in which events may be written, beside JSON
    merge_reports_ms: int = 0

    def counted_action(self, name: str) -> Action | None:
        """The action if it names its business outcome; None means noise."""
        action = self.actions.get(name)
        return action if action is not None and action.outcome is not None else None


MODELS: Final = ("first_touch", "last_touch", "linear", "position", "time_decay")
CREDITS: Final = ("last_click", "last_touch", "first_touch")


class Journeys(msgspec.Struct, frozen=True):
    """How conversions are followed back over all platforms: how far, who earns them, how models share them, which actions
    are paid orders, and which are left behind before one.
    """

    window_ms: int = 30 * DAY_MS
    credit: str = "last_click"
    models: tuple[str, ...] = MODELS
    half_life_ms: int = 7 * DAY_MS
    max_touches: int = 50
    max_pages: int = 20
    orders: tuple[str, ...] = ()
    customer_window_ms: int = 730 * DAY_MS
    abandoned_actions: tuple[str, ...] = ()
    abandon_after_ms: int = 3_600_000


class ClickIds(msgspec.Struct, frozen=True):
    """How conversions that name a click id and no user find their user: how long they wait for the click, and how long a click
    is known, both in stream time (ms).
    """

    park_for_ms: int = 7 * DAY_MS
    known_for_ms: int = MAX_LOOKBACK_MS


class Bounds(msgspec.Struct, frozen=True):
    """The times and choices that all versions share; changing one would change what was published, so it needs a
    reset.
    """

    partitioner: str = "murmur2"
    dimensions: tuple[str, ...] = ("campaign_id",)
    keep: tuple[str, ...] = TOUCH_ATTRIBUTES
    window_ms: int = 60_000
    allowed_lateness_ms: int = 60_000
    idle_timeout_ms: int = 30_000
    correction_horizon_ms: int = 7 * DAY_MS
    max_event_age_ms: int = 7 * DAY_MS
    max_clock_skew_ms: int = 300_000
    dedup_window_ms: int = 2 * DAY_MS
    order_window_ms: int = 90 * DAY_MS
    adjustment_window_ms: int = 55 * DAY_MS
    journeys: Journeys | None = None  # None: no visits are kept, and nothing is counted over all platforms
    click_ids: ClickIds | None = None  # None: an event without a user is refused


class Policy(msgspec.Struct, frozen=True, dict=True):
    """Every version of the rules, oldest first, and the bounds that they share."""

    bounds: Bounds
    versions: tuple[Version, ...]

    def at(self, time_ms: int) -> Version:
        """The version in force for a conversion at `time_ms` (epoch ms)."""
        if len(self.versions) == 1:
            return self.versions[0]
        index = bisect_right(self.versions, time_ms, key=lambda version: version.effective_from_ms)
        return self.versions[max(index - 1, 0)]

    def merges_reports(self) -> bool:
        """Whether any version merges what several reports say of one conversion."""
        return self._merges_reports

    @cached_property
    def _merges_reports(self) -> bool:
        return any(version.merge_reports_ms for version in self.versions)

    def reach_ms(self, version: Version, platform: str, kind: str) -> int:
        """The earliest touch (epoch ms) that the version may credit, however long its window.

        A longer window acts forward only: from when it holds, it reaches back over what the windows before it did. Older
        touches, and ones of a kind that no method of the platform credited, were not kept.
        """
        reach_ms, longest_ms = 0, 0
        for each in self.versions[: version.number]:
            rule = each.platforms.get(platform)
            window_ms = rule.windows_ms.get(kind, 0) if rule is not None else 0
            if window_ms > longest_ms:
                if each.number > 1:
                    reach_ms = each.effective_from_ms - longest_ms
                longest_ms = window_ms
        return reach_ms

    def places(self, time_ms: int, platform: str) -> tuple[tuple[str, str], ...]:
        """The (platform, kind) pairs that a conversion at `time_ms` (epoch ms) may be credited to: of the platform that it names,
        of all where it names none ("").
        """
        return self._places[self.at(time_ms).number - 1].get(platform, ())

    @cached_property
    def _places(self) -> tuple[dict[str, tuple[tuple[str, str], ...]], ...]:
        found = []
        for version in self.versions:
            each = {name: tuple((name, kind) for kind in rule.windows_ms) for name, rule in version.platforms.items()}
            found.append({**each, "": tuple(place for places in each.values() for place in places)})
        return tuple(found)

    def shown(self, attributes: tuple[str | None, ...] | None) -> tuple[str | None, ...]:
        """All attributes that a row shows (`TOUCH_ATTRIBUTES`), of those of a touch, which are in the order of `keep`; None: there
        is no touch.
        """
        return _NOTHING if attributes is None else self._shown((*attributes, None))

    def dimensions(self, attributes: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """The values of the dimensions, of a touch's attributes."""
        return self._dimensions((*attributes, None))

    @cached_property
    def _shown(self) -> Callable[[tuple[str | None, ...]], tuple[str | None, ...]]:
        return self._picked(TOUCH_ATTRIBUTES)

    @cached_property
    def _dimensions(self) -> Callable[[tuple[str | None, ...]], tuple[str | None, ...]]:
        return self._picked(self.bounds.dimensions)

    def _picked(self, names: tuple[str, ...]) -> Callable[[tuple[str | None, ...]], tuple[str | None, ...]]:
        """What picks named values out of those of `keep` and one None behind them, which stands for what is not kept."""
        keep = self.bounds.keep
        places = [keep.index(name) if name in keep else -1 for name in names]
        if len(places) > 1:
            return itemgetter(*places)
        # of one place an itemgetter makes no tuple
        return itemgetter(slice(places[0], places[0] + 1 or None) if places else slice(0))

    def platforms(self) -> dict[str, int]:
        """Every platform that any version knows, with the time (epoch ms) of the first that does: a record that names
        another one, or names it before, is refused. Once known, it stays so.
        """
        return {name: version.effective_from_ms for version in reversed(self.versions) for name in version.platforms}

    def counted_actions(self) -> frozenset[str]:
        """The actions that any version counts; conversions of another one are noise, whenever they were."""
        return frozenset(
            name for version in self.versions for name in version.actions if version.counted_action(name) is not None
        )

    def formats(self) -> dict[str, int]:
        """Every format beside JSON that any version takes, with the time (epoch ms) of the first that does: a record of before
        is refused in every replay, as it was at first. Once taken, it stays so.
        """
        return {name: version.effective_from_ms for version in reversed(self.versions) for name in version.formats}

    def lookback_ms(self, kind: str) -> int:
        """How far back (ms) a touch of this kind may matter: the longest window of it over all platforms and versions, and a
        journey's; 0 where it never does.
        """
        journey_ms = self.bounds.journeys.window_ms if self.bounds.journeys else 0
        rules = (rule for version in self.versions for rule in version.platforms.values())
        return max(journey_ms, *(rule.windows_ms.get(kind, 0) for rule in rules))

    def creditable(self) -> frozenset[tuple[str, str]]:
        """The (platform, kind) pairs that some version's method can credit, or all where journeys are followed; any other
        touch is counted but not stored.
        """
        return frozenset(
            (name, kind)
            for version in self.versions
            for name, rule in version.platforms.items()
            for kind in TOUCH_TYPES
            if kind in rule.windows_ms or self.bounds.journeys
        )

    def conversion_retention_ms(self) -> int:
        """How long (ms of stream time) a conversion can still matter: to its order, to its touch, to an adjustment."""
        return self._conversion_retention_ms

    @cached_property
    def _conversion_retention_ms(self) -> int:  # asked for with every user that is settled
        bounds = self.bounds
        longest = max(
            bounds.order_window_ms, bounds.adjustment_window_ms, *(self.lookback_ms(kind) for kind in TOUCH_TYPES)
        )
        return longest + bounds.correction_horizon_ms

    def click_log_ms(self) -> int:
        """How far back (ms) a rebuild reads whose click is whose: a click's row is written up to max_event_age after it."""
        bounds = self.bounds
        return bounds.click_ids.known_for_ms + bounds.max_event_age_ms if bounds.click_ids else 0

    def count_retention_ms(self) -> int:
        """How long (ms of stream time) a window's counts can still change."""
        bounds = self.bounds
        return bounds.correction_horizon_ms + max(bounds.adjustment_window_ms, bounds.correction_horizon_ms)
