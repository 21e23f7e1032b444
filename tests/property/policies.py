"""Small policies: short windows, all of them multiples of a grid of 6 hours, so that their edges are easily met."""

from typing import Final

import hypothesis.strategies as st

from app.contract.events import TOUCH_ATTRIBUTES
from app.policy.model import DAY_MS, METHODS, Action, Bounds, Platform, Policy, Version

UNIT_MS: Final = 6 * 3_600_000
START_MS: Final = 19_700 * DAY_MS
FOREVER_MS: Final = 1_000 * DAY_MS
PLATFORMS: Final = ("meta", "tiktok")
ACTIONS: Final = ("purchase", "signup", "newsletter", "unheard_of")


def units(*counts: int) -> st.SearchStrategy[int]:
    """Durations of so many steps of the grid, in milliseconds."""
    return st.sampled_from([count * UNIT_MS for count in counts])


@st.composite
def versions(draw: st.DrawFn, number: int, effective_from_ms: int) -> Version:
    """The rules of one version."""
    platforms = {}
    for name in PLATFORMS:
        method = draw(st.sampled_from([*sorted(METHODS), "click_then_view"]))
        windows_ms = {kind: draw(units(1, 2, 4, 8)) for kind in METHODS[method]}
        counts = draw(st.sampled_from([{}, {}, {"*": "one"}, {"purchase": "one"}, {"*": "one", "signup": "every"}]))
        platforms[name] = Platform(method, windows_ms, counts)
    actions = {
        "purchase": Action("macro", "hard", "revenue", "every", None),
        "signup": Action("micro", "soft", "retention", draw(st.sampled_from(["one", "every"])), 5_000_000),
        "newsletter": Action("micro", "soft", None, "one", None),  # no outcome: noise
    }
    return Version(number, effective_from_ms, platforms, actions)


@st.composite
def policies(draw: st.DrawFn, shortest_dedup: int = 1) -> Policy:
    """A policy of one or two versions, whose dedup window has at least so many steps of the grid."""
    dimensions = draw(st.sampled_from([("campaign_id",), ("campaign_id", "ad_id", "landing_page")]))
    bounds = Bounds(
        partitioner=draw(st.sampled_from(["murmur2", "crc32"])),
        dimensions=dimensions,
        keep=draw(st.sampled_from([TOUCH_ATTRIBUTES, dimensions])),
        window_ms=draw(st.sampled_from([60_000, DAY_MS])),
        allowed_lateness_ms=draw(st.sampled_from([0, 60_000, UNIT_MS])),
        correction_horizon_ms=draw(units(2, 4, 8, 8)),
        max_event_age_ms=draw(st.sampled_from([FOREVER_MS] * 5 + [4 * UNIT_MS])),
        max_clock_skew_ms=draw(st.sampled_from([1, 300_000])),
        dedup_window_ms=draw(units(shortest_dedup, 4, 8)),
        order_window_ms=draw(units(1, 4, 10)),
        adjustment_window_ms=draw(units(1, 4, 10)),
    )
    found = [draw(versions(1, 0))]
    if draw(st.integers(0, 3)) == 0:
        found.append(draw(versions(2, START_MS + draw(st.integers(0, 12)) * UNIT_MS)))
    return Policy(bounds, tuple(found))
