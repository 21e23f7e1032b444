"""Small policies: short windows, all of them multiples of a grid of 6 hours, so that their edges are easily met."""

from random import Random
from typing import Final

from app.contract.events import TOUCH_ATTRIBUTES
from app.policy.model import CREDITS, DAY_MS, METHODS, MODELS, Action, Bounds, Journeys, Platform, Policy, Version

MINUTE_MS: Final = 60_000
UNIT_MS: Final = 6 * 3_600_000
START_MS: Final = 19_700 * DAY_MS
MERGE_MS: Final = 5 * MINUTE_MS
FOREVER_MS: Final = 1_000 * DAY_MS
PLATFORMS: Final = ("meta", "tiktok")
ACTIONS: Final = ("purchase", "signup", "cart")
NOISE: Final = ("newsletter", "unheard_of")
COUNTS: Final = ({}, {}, {"*": "one"}, {"purchase": "one"}, {"*": "one", "signup": "every"})


def make_version(chance: Random, number: int, effective_from_ms: int) -> Version:
    """The rules of one version."""
    platforms = {}
    for name in PLATFORMS:
        method = chance.choice([*sorted(METHODS), "click_then_view"])
        windows_ms = {kind: chance.choice([1, 2, 4, 8]) * UNIT_MS for kind in METHODS[method]}
        platforms[name] = Platform(method, windows_ms, dict(chance.choice(COUNTS)))
    actions = {
        "purchase": Action("macro", "hard", "revenue", "every", None),
        "signup": Action("micro", "soft", "retention", chance.choice(["one", "every"]), 5_000_000),
        "cart": Action("micro", "soft", "revenue", chance.choice(["one", "every"]), None),
        "newsletter": Action("micro", "soft", None, "one", None),  # no outcome: noise
    }
    return Version(
        number, effective_from_ms, platforms, actions, merge_reports_ms=chance.choice([0, MERGE_MS, MERGE_MS])
    )


def make_journeys(chance: Random, versions: list[Version]) -> Journeys:
    """Journeys that reach back at least over every window, as the policy's check has it; short lists, so that they overflow."""
    longest_ms = max(
        window_ms
        for version in versions
        for rule in version.platforms.values()
        for window_ms in rule.windows_ms.values()
    )
    orders = chance.choice([(), ("purchase",), ("purchase",), ("purchase", "signup")])
    return Journeys(
        window_ms=longest_ms + chance.choice([0, 0, 1, 4]) * UNIT_MS,
        credit=chance.choice(CREDITS),
        models=tuple(chance.sample(MODELS, chance.choice([0, 2, len(MODELS), len(MODELS)]))),
        half_life_ms=chance.choice([1, MINUTE_MS, UNIT_MS // 2, UNIT_MS, 3 * UNIT_MS + 7]),
        max_touches=chance.choice([2, 3, 50]),
        max_pages=chance.choice([1, 2, 20]),
        orders=orders,
        customer_window_ms=chance.choice([1, 4, 20, 200]) * UNIT_MS,
        abandoned_actions=chance.choice([(), ("cart",), ("cart",), ("cart", "signup")]) if orders else (),
        abandon_after_ms=chance.choice([1, MINUTE_MS, 7 * MINUTE_MS, UNIT_MS]),
    )


def make_policy(chance: Random, shortest_dedup: int = 1) -> Policy:
    """A policy of one or two versions, whose dedup window has at least so many steps of the grid; two of three follow journeys."""
    versions = [make_version(chance, 1, 0)]
    if chance.randrange(4) == 0:
        versions.append(make_version(chance, 2, START_MS + chance.randrange(13) * UNIT_MS))
    dimensions = chance.choice([("campaign_id",), ("campaign_id", "ad_id", "landing_page")])
    bounds = Bounds(
        partitioner=chance.choice(["murmur2", "crc32"]),
        dimensions=dimensions,
        keep=chance.choice([TOUCH_ATTRIBUTES, dimensions]),
        window_ms=chance.choice([60_000, DAY_MS]),
        allowed_lateness_ms=chance.choice([0, 60_000, UNIT_MS]),
        correction_horizon_ms=chance.choice([2, 4, 8, 8]) * UNIT_MS,
        max_event_age_ms=chance.choice([FOREVER_MS] * 5 + [4 * UNIT_MS]),
        max_clock_skew_ms=chance.choice([1, 300_000]),
        dedup_window_ms=chance.choice([shortest_dedup, 4, 8]) * UNIT_MS,
        order_window_ms=chance.choice([1, 4, 10]) * UNIT_MS,
        adjustment_window_ms=chance.choice([1, 4, 10]) * UNIT_MS,
        journeys=make_journeys(chance, versions) if chance.randrange(3) else None,
    )
    return Policy(bounds, tuple(versions))
