"""What a key may send: judged in process, by the door that its requests come in by."""

import json
from typing import Any

import pytest

from app.gateway.admission import NOT_ALLOWED, Record, Refused, admit
from app.gateway.config import parse_config
from app.gateway.servers import server_door
from tests.gateway.harness import CONFIG
from tests.gateway.test_admission import NOW_MS, RULES, SETTINGS

KEYS = parse_config(CONFIG, SETTINGS, SETTINGS.gateway_config).keys
SENT = {"event_id": "1", "event_time": NOW_MS, "advertiser_id": "shop", "user_id": "u"}
CONVERSION = SENT | {"event_type": "conversion", "conversion_name": "purchase"}
RETRACTION = SENT | {"event_type": "adjustment", "adjustment": "retract", "order_id": "17"}
FORGET = SENT | {"event_type": "forget"}


def field_refused(key: str, event: dict[str, Any]) -> str | None:
    """The field for which the event of a key is not allowed; None if it is admitted."""
    judged = admit(json.dumps(event).encode(), server_door(KEYS[key], None), RULES, NOW_MS)
    if isinstance(judged, Record):
        return None
    assert isinstance(judged, Refused)
    assert judged.rejection.reason == NOT_ALLOWED
    return judged.rejection.field


@pytest.mark.parametrize("platform", [{}, {"platform": "meta"}])
@pytest.mark.parametrize("event", [RETRACTION, FORGET])
def test_what_concerns_every_platform_is_not_for_a_key_of_some(event: dict[str, Any], platform: dict[str, str]) -> None:
    assert field_refused("meta", event | platform) == "event_type"
    assert field_refused("all", event | platform) is None


def test_a_key_of_some_platforms_sends_for_these() -> None:
    assert field_refused("meta", CONVERSION | {"platform": "meta"}) is None
    assert field_refused("meta", CONVERSION | {"platform": "google_ads"}) == "platform"
    assert field_refused("meta", CONVERSION) == "platform"
    assert field_refused("meta", CONVERSION | {"platform": "meta", "advertiser_id": "other"}) == "advertiser_id"
