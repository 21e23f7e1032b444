"""A policy that asks for the impossible is refused before anything starts, and the message says where it is and why."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.policy.load import PolicyError, load_desk, load_policy, parse_policy
from app.policy.model import DAY_MS

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "policy.yaml"
SOUND: dict[str, Any] = {
    "platforms": {
        "meta": {"method": "click_then_view", "windows": {"click": "7d", "view": "1d"}},
        "google_ads": {"method": "click", "windows": {"click": "30d"}},
    },
    "actions": {
        "purchase": {"class": "macro", "intent": "hard", "outcome": "revenue", "count": "every"},
        "add_to_cart": {"class": "micro", "intent": "soft", "outcome": "revenue", "count": "one"},
        "demo": {"class": "macro", "intent": "hard", "outcome": "revenue", "count": "one"},
        "scroll": {"class": "micro", "intent": "soft", "count": "one"},
    },
    "journeys": {"window": "30d", "orders": ["purchase"], "abandonment": {"actions": ["add_to_cart"], "after": "1h"}},
    "desk": {
        "advertisers": {"shop": {"time_zone": "Europe/Berlin", "cost_currency": "EUR"}},
        "follow_ups": {"demo": {"what": "call", "within": "4h"}},
        "tolerances": {"default": 0.05, "meta": 0.1},
        "closed_leads_kept": "30d",
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The sound policy with one thing changed; None takes it out."""
    document = deepcopy(SOUND)
    *parents, last = path.split("/")
    place = document
    for name in parents:
        place = place.setdefault(name, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def test_the_sound_one_and_the_shipped_one_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(SOUND))
    assert load_policy(path)[0].bounds.journeys is not None
    assert load_desk(path).closed_kept_ms == 30 * DAY_MS
    assert load_desk(SHIPPED).closed_kept_ms == 90 * DAY_MS
    parse_policy({key: value for key, value in SOUND.items() if key not in ("journeys", "desk")})


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("platforms/meta/windows", {"click": "7d"}, "needs a window for click and view"),
        ("platforms/meta/windows/view", "0d", "the view window must be above 0"),
        (
            "platforms/meta/actions",
            {"order": {"count": "one"}},
            "overrides the action 'order', which the catalogue lacks",
        ),
        ("platforms/all", {"method": "click", "windows": {"click": "1d"}}, "no platform may be called all"),
        ("window", "7m", "divide a day"),
        ("dedup_window", "59m", "at least 1h"),
        ("max_event_age", "0s", "max_event_age must be above 0"),
        ("journeys/window", "29d", "shorter than the click window of google_ads"),
        ("journeys/window", "91d", "at most 90d"),
        ("journeys/half_life", "0s", "half_life must be above 0"),
        ("journeys/customer_window", "0s", "customer_window must be above 0"),
        ("journeys/orders", ["scroll"], "'scroll' is no action of the catalogue that names an outcome"),
        ("journeys/orders", ["order"], "'order' is no action of the catalogue"),
        ("journeys/orders", ["purchase", "add_to_cart"], "add_to_cart cannot be both in orders and in abandonment"),
        ("journeys/orders", None, "abandonment needs orders"),
        ("journeys/abandonment/actions", ["purchase"], "purchase cannot be both in orders and in abandonment"),
        ("journeys/abandonment/actions", ["scroll"], "'scroll' is no action of the catalogue that names an outcome"),
        ("journeys/abandonment/after", "0s", "abandon_after must be above 0"),
        ("journeys/abandonment/after", "31d", "after is longer than window"),
        ("journeys", None, "desk needs journeys"),
        ("desk/follow_ups/purchase", {"what": "thank", "within": "1d"}, "'purchase' is one of journeys.orders"),
        ("desk/follow_ups/scroll", {"what": "call", "within": "1d"}, "'scroll' is no action of the catalogue"),
        ("desk/follow_ups/demo/within", "0h", "demo: within must be above 0"),
        ("desk/follow_ups/demo/within", "soon", "at desk/follow_ups/demo/within"),
        ("desk/tolerances/tiktok", 0.1, "the policy has no platform 'tiktok'"),
        ("desk/tolerances/meta", -0.1, "at desk/tolerances/meta"),
        ("desk/advertisers/shop/time_zone", "Berlin", "'Berlin' is no time zone"),
        ("desk/advertisers/shop/cost_currency", "euro", "at desk/advertisers/shop/cost_currency"),
        ("desk/closed_leads_kept", "23h", "closed_leads_kept must be at least 1d"),
        ("desk/colour", "red", "at desk"),
    ],
)
def test_the_impossible_is_refused_and_the_message_says_what(path: str, value: Any, says: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse_policy(changed(path, value))
    assert says in str(refused.value)


def test_a_dimension_that_is_not_kept_is_refused() -> None:
    with pytest.raises(PolicyError, match="dimensions ad_id are not in keep"):
        parse_policy(changed("keep", ["campaign_id"]) | {"dimensions": ["campaign_id", "ad_id"]})


def test_a_catalogue_without_an_outcome_counts_nothing_and_is_refused() -> None:
    document = {key: value for key, value in SOUND.items() if key not in ("journeys", "desk")}
    with pytest.raises(PolicyError, match="no action names an outcome"):
        parse_policy(document | {"actions": {"scroll": SOUND["actions"]["scroll"]}})
