"""Who and what there is: advertisers, users and ads, with the constant parts of their events' JSON built once."""

import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from app.generate.mix import Mix
from app.policy.model import Policy

# Where the clicks of a platform say they come from; a platform that is not here is its own source.
_SOURCES: Final = {
    "google_ads": (("google", "cpc"),),
    "meta": (("facebook", "paid_social"), ("instagram", "paid_social")),
    "tiktok": (("tiktok", "paid_social"),),
    "linkedin": (("linkedin", "paid_social"),),
    "microsoft_ads": (("bing", "cpc"),),
    "default": (("newsletter", "email"), ("partner-7", "affiliate")),
}
_GOALS: Final = ("brand", "prospecting", "retargeting", "lookalike", "seasonal", "clearance", "launch")
_PAGES: Final = (
    "/",
    "/products/mattress",
    "/products/topper?size=queen",
    "/cart",
    "/checkout",
    "/pricing",
    "/blog/better-sleep",
)
_ZIPF_SHIFT = 20  # the most active user is seen some hundred times as often as the median one, not a million times


@dataclass(frozen=True, slots=True)
class Ad:
    """One ad with its landing page and offer: who pays for it, where it runs, and its part of a touch's JSON."""

    advertiser: int
    platform: str
    json: str


@dataclass(frozen=True)
class World:
    """Everything that does not change while a stream is generated."""

    users: list[str]
    user_keys: list[bytes]
    advertisers: list[str]
    platforms: list[str]
    ads: list[Ad]
    ad_weights: list[float]  # cumulative
    ads_of: list[dict[str, list[int]]]  # advertiser -> platform -> its ads
    costs: list[str]
    pages: list[str]
    actions: list[str]
    action_weights: list[float]  # cumulative
    orders: frozenset[str]  # the actions that carry an order_id


def build_world(mix: Mix, policy: Policy) -> World:
    """The world of a policy's newest version; no chance in it, so that only the stream depends on the seed."""
    version = policy.versions[-1]
    platforms, actions = list(version.platforms), list(version.actions)
    advertisers = [f"adv-{number:02d}" for number in range(1, mix.advertisers + 1)]
    ads, weights = _ads(mix, advertisers, platforms)
    ads_of: list[dict[str, list[int]]] = [{platform: [] for platform in platforms} for _ in advertisers]
    for index, ad in enumerate(ads):
        ads_of[ad.advertiser][ad.platform].append(index)
    users = [f"u{number:07d}" for number in range(mix.users)]
    prices = random.Random("costs")
    return World(
        users=users,
        user_keys=[user.encode() for user in users],
        advertisers=advertisers,
        platforms=platforms,
        ads=ads,
        ad_weights=list(accumulate(weights)),
        ads_of=ads_of,
        costs=[f',"cost":{prices.randrange(1, 400) / 100}' for _ in range(500)],
        pages=[f'"page":"https://shop.example{page}"' for page in _PAGES],
        actions=actions,
        # Small steps are commoner than orders, in about the ratio of a shop's funnel but less steep, so that
        # orders show up soon.
        action_weights=list(
            accumulate(3.0 if version.actions[name].action_class == "micro" else 4.0 for name in actions)
        ),
        orders=frozenset(name for name in actions if version.actions[name].action_class == "macro"),
    )


def _ads(mix: Mix, advertisers: list[str], platforms: list[str]) -> tuple[list[Ad], list[float]]:
    """Every ad and how often it is seen: the first campaign of a platform the most, the last the least."""
    ads, weights = [], []
    for advertiser, name in enumerate(advertisers):
        for platform in platforms:
            sources = _SOURCES.get(platform, ((platform, "paid"),))
            for campaign in range(mix.campaigns):
                campaign_id = f"{platform}-{_GOALS[campaign % len(_GOALS)]}-{advertiser + 1:02d}{campaign + 1:02d}"
                for ad in range(mix.ads):
                    source, medium = sources[ad % len(sources)]
                    json = (
                        f'"advertiser_id":"{name}","platform":"{platform}","campaign_id":"{campaign_id}"'
                        f',"ad_id":"{campaign_id}-ad{ad + 1}","creative_id":"cr-{campaign_id}-{ad % 3 + 1}"'
                        f',"landing_page":"/lp/{_GOALS[campaign % len(_GOALS)]}/{ad % 2 + 1}","offer_id":"offer-{campaign % 3 + 1}"'
                        f',"source":"{source}","medium":"{medium}"'
                    )
                    ads.append(Ad(advertiser, platform, json))
                    weights.append(1 / (campaign + 1) / (ad + 1))
    return ads, weights


def pick_users(rng: random.Random, users: int, count: int) -> list[int]:
    """`count` indexes of users, Zipf-like: the density falls with (rank + 20) ** -0.9."""
    low = _ZIPF_SHIFT**0.1
    span = (users + _ZIPF_SHIFT) ** 0.1 - low
    draw = rng.random
    last = users - 1
    return [min(int((low + span * draw()) ** 10) - _ZIPF_SHIFT, last) for _ in range(count)]
