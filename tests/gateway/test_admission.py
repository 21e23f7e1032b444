"""What the gateway admits, the counter accepts: for any bytes, at any door. And nothing that is personal passes."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.events import Accepted, Event, Rejection, decode_event
from app.formats.cloudevents import Opened, opened
from app.gateway import keys, privacy
from app.gateway.admission import Door, Record, Refused, Rules, admit, only
from app.gateway.config import parse_config
from app.settings import Settings
from tests.gateway.harness import CONFIG, SALT, SECRET

NOW_MS = 1_764_000_000_000
PLATFORMS = {"meta": 0, "google_ads": NOW_MS + 1}
AGE_MS, SKEW_MS = 7 * 86_400_000, 300_000
SETTINGS = Settings(gateway_secret=SECRET, gateway_user_salt=SALT)  # type: ignore[arg-type]
SITES = parse_config(CONFIG, SETTINGS, SETTINGS.gateway_config).sites
RULES = Rules(PLATFORMS, AGE_MS, SKEW_MS, SITES, SECRET, SALT)


def anything(event: Event) -> Rejection | None:
    return None


DOORS = [
    Door(anything),
    Door(anything, is_denied=True),
    Door(only("conversion"), {"event_type": b'"conversion"'}),
    Door(
        anything,
        {"user_id": b'"filled"', "event_id": b'"filled"'},
        {"user_id": "cookie"},
        takes_age=True,
        is_browser=True,
    ),
]

texts = st.text(max_size=8) | st.sampled_from(
    ["shop", "hashed", "cautious", "meta", "google_ads", "purchase", "a@b.cd"]
)
times = st.integers(NOW_MS - 2 * AGE_MS, NOW_MS + 2 * SKEW_MS) | texts | st.floats(allow_nan=False)
values = st.none() | texts | times | st.booleans() | st.lists(texts, max_size=2)
fields: dict[str, Any] = {
    "event_type": st.sampled_from(["view", "click", "visit", "conversion", "adjustment", "forget", "other"]) | values,
    "event_time": times | values,
    "consent": st.sampled_from(["granted", "denied", None]) | values,
    "adjustment": st.sampled_from(["retract", "restate"]) | values,
    "age_ms": st.integers(-1, AGE_MS + 1) | values,
    "reported_by": st.sampled_from(["browser", "server", None]) | values,
}
names = (*Event.__struct_fields__, "consent", "age_ms", "unknown")
always = ("event_id", "event_type", "advertiser_id", "user_id")
sent = st.fixed_dictionaries(
    {name: fields.get(name, texts) for name in always},
    optional={name: fields.get(name, values) for name in names if name not in always},
)


@given(event=sent, door=st.sampled_from(DOORS))
def test_an_admitted_event_is_accepted_by_the_counter_and_holds_nothing_personal(
    event: dict[str, Any], door: Door
) -> None:
    admitted = admit(json.dumps(event).encode(), door, RULES, NOW_MS)
    if isinstance(admitted, Refused):
        return
    judged = decode_event(admitted.value, admitted.key, admitted.time_ms, PLATFORMS, AGE_MS, SKEW_MS)
    assert isinstance(judged, Accepted)
    written = json.loads(admitted.value)
    assert written.keys() <= set(Event.__struct_fields__)
    assert b"@b.cd" not in admitted.value
    if door.is_browser:
        assert written.get("reported_by") == ("browser" if written["event_type"] == "conversion" else None)
    else:
        assert written.get("reported_by") == event.get("reported_by")
    if written["event_type"] == "forget":
        assert written["user_id"] in (event.get("user_id"), "cookie") or written["user_id"].startswith(privacy.HASHED)
    elif door.is_denied or event.get("consent") == "denied":
        assert written["user_id"].startswith(privacy.ONE_TIME)
        assert not {"click_id", "order_id", "referrer"} & written.keys()


@given(raw=st.binary(max_size=64) | st.text(max_size=64).map(str.encode), door=st.sampled_from(DOORS))
def test_bytes_that_are_no_event_are_refused_and_nothing_breaks(raw: bytes, door: Door) -> None:
    assert isinstance(admit(raw, door, RULES, NOW_MS), Refused)


@given(event=sent)
def test_a_server_is_refused_just_what_the_contract_refuses(event: dict[str, Any]) -> None:
    event = {name: value for name, value in event.items() if name not in ("consent", "age_ms")}
    raw = json.dumps(event).encode()
    judged = decode_event(raw, None, NOW_MS, PLATFORMS, AGE_MS, SKEW_MS)
    admitted = admit(raw, Door(anything), RULES, NOW_MS)
    if isinstance(admitted, Refused) and admitted.rejection.reason == privacy.PERSONAL_DATA:
        return
    if event.get("advertiser_id") == "cautious" and isinstance(judged, Accepted):
        is_by_order = event["event_type"] == "adjustment" and not event.get("conversion_event_id")
        assert isinstance(admitted, Refused) == is_by_order
        return
    assert isinstance(judged, Accepted) == isinstance(admitted, Record)
    if isinstance(admitted, Refused):
        assert admitted.rejection == judged
    elif event["advertiser_id"] != "hashed":
        assert isinstance(judged, Accepted)
        assert msgspec.json.decode(admitted.value, type=Event) == judged.event, "an event is written as it came"


@pytest.mark.parametrize(
    ("text", "is_email"),
    [
        ("ada@example.com", True),
        ("mailto:Ada.Lovelace+x@mail.example.co.uk", True),
        ("/thanks?m=ada%40example.com", True),
        ("https://medium.example/@user/post.html", False),
        ("a@b", False),
        ("@example.com", False),
        ("u1", False),
    ],
)
def test_what_looks_like_an_email(text: str, is_email: bool) -> None:
    event = Event(event_id="1", event_type="visit", event_time=1, advertiser_id="shop", user_id="u", page=text)
    assert (privacy.find_email(event) is not None) == is_email


@pytest.mark.parametrize("event_id", ["ada@example.com", "ada%40example.com"])
def test_an_email_is_found_in_what_an_envelope_fills_in(event_id: str) -> None:
    event = {"advertiser_id": "shop", "user_id": "u", "page": "/", "event_time": NOW_MS}
    envelope = {"specversion": "1.0", "id": event_id, "source": "s", "type": "visit", "data": event}
    sent = opened(json.dumps(envelope).encode())
    assert isinstance(sent, Opened)
    admitted = admit(sent.data, Door(anything, sent.fills), RULES, NOW_MS)
    assert isinstance(admitted, Refused)
    assert (admitted.rejection.reason, admitted.rejection.field) == (privacy.PERSONAL_DATA, "event_id")


def test_a_key_is_known_by_its_hash_only() -> None:
    key, digest = keys.new_key("shop-2026a")
    assert keys.id_of(key) == "shop-2026a"
    assert digest == keys.digest(key)
    assert key not in digest
    assert keys.id_of("") == keys.id_of("oc") == keys.id_of("other_shop_x") == ""


MATCHED = RULES._replace(click_ids=True)
LEAD = {
    "event_id": "c1",
    "event_type": "conversion",
    "event_time": NOW_MS,
    "advertiser_id": "shop",
    "click_id": "k1",
    "conversion_name": "purchase",
}


@pytest.mark.parametrize("user", [{}, {"user_id": None}], ids=["absent", "null"])
@pytest.mark.parametrize("advertiser", ["shop", "hashed"])
def test_a_click_may_stand_for_its_user_where_the_policy_finds_it(user: dict[str, Any], advertiser: str) -> None:
    raw = json.dumps(LEAD | user | {"advertiser_id": advertiser}).encode()
    admitted = admit(raw, DOORS[0], MATCHED, NOW_MS)
    assert isinstance(admitted, Record)
    assert admitted.key == b"k1"
    assert json.loads(admitted.value) == LEAD | {"advertiser_id": advertiser}
    judged = decode_event(admitted.value, admitted.key, NOW_MS, PLATFORMS, AGE_MS, SKEW_MS, True)
    assert isinstance(judged, Accepted)
    refused = admit(raw, DOORS[0], RULES, NOW_MS)
    assert isinstance(refused, Refused)
    assert refused.rejection.field == "user_id"


def test_without_consent_a_click_leads_to_nobody() -> None:
    admitted = admit(json.dumps(LEAD | {"consent": "denied"}).encode(), DOORS[0], MATCHED, NOW_MS)
    assert isinstance(admitted, Record)
    written = json.loads(admitted.value)
    assert written["user_id"].startswith(privacy.ONE_TIME)
    assert "click_id" not in written


CLICK = {
    "event_id": "Cj0K-the-click-id",
    "event_type": "click",
    "event_time": NOW_MS,
    "advertiser_id": "shop",
    "user_id": "u",
    "platform": "google_ads",
    "campaign_id": "spring",
    "click_id": "Cj0K-the-click-id",
    "consent": "denied",
}


@pytest.mark.parametrize("kind", ["click", "view", "engaged_view"])
def test_without_consent_no_click_id_is_written_as_an_event_id_either(kind: str) -> None:
    raw = json.dumps(CLICK | {"event_type": kind, "platform": "meta"}).encode()
    admitted, repeat = (admit(raw, DOORS[0], RULES, NOW_MS + number) for number in range(2))
    assert isinstance(admitted, Record)
    assert isinstance(repeat, Record)
    assert b"Cj0K" not in admitted.value
    assert (admitted.key, admitted.value) == (repeat.key, repeat.value), "a repeat is found by its id"
    assert admitted.event_id == CLICK["event_id"], "the sender is told of its own id"
    other = admit(raw.replace(b"-the-", b"-another-"), DOORS[0], RULES, NOW_MS)
    assert isinstance(other, Record)
    assert json.loads(other.value)["event_id"] != json.loads(admitted.value)["event_id"]


def test_what_names_no_click_keeps_its_id_and_so_does_a_conversion() -> None:
    bought = {"event_type": "conversion", "conversion_name": "purchase", "platform": "meta"}
    for event in (
        CLICK | bought,
        CLICK | {"click_id": None, "platform": "meta"},
        CLICK | {"consent": "granted"} | bought,
    ):
        admitted = admit(json.dumps(event).encode(), DOORS[0], RULES, NOW_MS)
        assert isinstance(admitted, Record)
        assert json.loads(admitted.value)["event_id"] == CLICK["event_id"]


@given(event=sent, door=st.sampled_from(DOORS), without=st.sampled_from([(), ("user_id",)]))
def test_what_is_admitted_where_clicks_are_matched_is_accepted_there(
    event: dict[str, Any], door: Door, without: tuple[str, ...]
) -> None:
    event = {name: value for name, value in event.items() if name not in without}
    admitted = admit(json.dumps(event).encode(), door, MATCHED, NOW_MS)
    if isinstance(admitted, Record):
        judged = decode_event(admitted.value, admitted.key, admitted.time_ms, PLATFORMS, AGE_MS, SKEW_MS, True)
        assert isinstance(judged, Accepted)
