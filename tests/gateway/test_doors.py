"""The doors of servers and the pixel, over a real Kafka: what is accepted is there, what is refused is told, nothing else."""

import gzip
import json
import time
import uuid
from typing import Any

import pytest

from app.contract.events import Accepted, decode_event
from app.gateway import keys
from app.policy.load import load_policy
from tests.gateway.harness import KEY, META_KEY, ORIGIN, SECRET, Gateway, conversion, now_ms, taken, visit
from tests.integration.deployment import POLICY

ADS = {"platform": "meta", "campaign_id": "spring"}


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex[:12]


def statuses(answer: Any) -> list[tuple[str, str | None, str | None]]:
    return [(each["status"], each.get("reason"), each.get("field")) for each in answer.json()["events"]]


# --- Servers


def test_what_is_accepted_is_in_kafka_and_the_counter_accepts_it_too(gateway: Gateway, prefix: str) -> None:
    sent = [conversion(f"{prefix}-{number}", user_id=f"user-{number}", value=9.5) for number in range(50)]
    answer = gateway.post(sent)
    assert answer.status_code == 202
    assert abs(answer.json().pop("time") - now_ms()) < 10_000
    assert answer.json() | {"time": 0, "events": []} == {
        "time": 0,
        "accepted": 50,
        "rejected": 0,
        "unavailable": 0,
        "events": [],
    }
    assert [each["event_id"] for each in answer.json()["events"]] == [event["event_id"] for event in sent]
    found = taken(gateway.deployment, prefix)
    assert sorted(found, key=lambda event: event["event_id"]) == sorted(sent, key=lambda event: event["event_id"])
    policy, _ = load_policy(POLICY)
    bounds = policy.bounds
    for event in found:
        value, key = json.dumps(event).encode(), event["user_id"].encode()
        judged = decode_event(
            value, key, now_ms(), policy.platforms(), bounds.max_event_age_ms, bounds.max_clock_skew_ms
        )
        assert isinstance(judged, Accepted)


@pytest.mark.parametrize("form", ["one", "array", "lines", "gzip"])
def test_one_event_an_array_lines_and_gzip_are_taken(gateway: Gateway, prefix: str, form: str) -> None:
    events = [visit(f"{prefix}-{number}") for number in range(1 if form == "one" else 3)]
    headers = {}
    body: Any = events[0] if form == "one" else events
    if form == "lines":
        body = b"\n".join(json.dumps(event).encode() for event in events) + b"\n\r\n"
        headers["content_type"] = "application/x-ndjson; charset=utf-8"
    if form == "gzip":
        body = gzip.compress(json.dumps(events).encode())
        headers["content_encoding"] = "gzip"
    assert gateway.post(body, **headers).status_code == 202
    assert len(taken(gateway.deployment, prefix)) == len(events)


def test_each_event_is_told_its_own_fate(gateway: Gateway, prefix: str) -> None:
    doubled = b'{"event_id":"x","event_id":"y","event_type":"visit","event_time":1,"advertiser_id":"s","user_id":"u","page":"/"}'
    lines = [
        json.dumps(conversion(f"{prefix}-sound")).encode(),
        b"no json",
        json.dumps(conversion(f"{prefix}-bad", value=-1)).encode(),
        json.dumps(conversion(f"{prefix}-mail", user_id="ada@example.com")).encode(),
        json.dumps(visit(f"{prefix}-page", page="/thanks?mail=ada%40example.com")).encode(),
        json.dumps(conversion(f"{prefix}-old", event_time=1)).encode(),
        json.dumps(conversion(f"{prefix}-platform", platform="nobody")).encode(),
        doubled,
    ]
    answer = gateway.post(b"\n".join(lines), content_type="application/x-ndjson")
    assert answer.status_code == 207
    assert statuses(answer) == [
        ("accepted", None, None),
        ("rejected", "invalid_json", ""),
        ("rejected", "invalid_field", "value"),
        ("rejected", "personal_data", "user_id"),
        ("rejected", "personal_data", "page"),
        ("rejected", "too_old", "event_time"),
        ("rejected", "unknown_platform", "platform"),
        ("rejected", "duplicate_key", "event_id"),
    ]
    assert [event["event_id"] for event in taken(gateway.deployment, prefix)] == [f"{prefix}-sound"]
    assert gateway.post({}).status_code == 422


def test_what_the_contract_does_not_know_reaches_no_topic(gateway: Gateway, prefix: str) -> None:
    event = conversion(f"{prefix}-1")
    assert (
        gateway.post(event | {"name": "Ada Lovelace", "email": "ada@example.com", "ip": "10.1.2.3"}).status_code == 202
    )
    assert taken(gateway.deployment, prefix) == [event]


def test_conversions_and_adjustments_have_doors_of_their_own(gateway: Gateway, prefix: str) -> None:
    made = conversion(f"{prefix}-c")
    del made["event_type"]
    assert gateway.post(made, "/v1/conversions").status_code == 202
    retraction = {key: value for key, value in made.items() if key != "conversion_name"} | {
        "event_id": f"{prefix}-a",
        "adjustment": "retract",
        "conversion_event_id": f"{prefix}-c",
    }
    assert gateway.post(retraction, "/v1/adjustments").status_code == 202
    assert {event["event_type"] for event in taken(gateway.deployment, prefix)} == {"conversion", "adjustment"}
    assert statuses(gateway.post(visit("v"), "/v1/conversions")) == [("rejected", "not_allowed", "event_type")]


def test_a_key_sends_only_for_whom_it_was_made(gateway: Gateway, prefix: str) -> None:
    wrong = [None, "nonsense", "oc_all_wrong", "oc_nobody_for-tests-only", "oc_old_for-tests-only", KEY + "x"]
    for key in wrong:
        answer = gateway.post(conversion(prefix), key=key)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), key
        assert answer.headers["content-type"] == "application/problem+json"
    events = [
        conversion(f"{prefix}-1", platform="meta"),
        conversion(f"{prefix}-2", platform="tiktok"),
        conversion(f"{prefix}-3", platform="meta", advertiser_id="other"),
    ]
    assert statuses(gateway.post(events, key=META_KEY)) == [
        ("accepted", None, None),
        ("rejected", "not_allowed", "platform"),
        ("rejected", "not_allowed", "advertiser_id"),
    ]
    assert len(taken(gateway.deployment, prefix)) == 1


def test_a_key_has_its_rate_and_a_refused_request_takes_nothing(gateway: Gateway, prefix: str) -> None:
    events = [visit(f"{prefix}-{number}") for number in range(700)]
    assert gateway.post(events, key="oc_slow_for-tests-only").status_code == 202
    answer = gateway.post(events, key="oc_slow_for-tests-only")
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 40
    assert len(taken(gateway.deployment, prefix)) == 700


def test_bodies_that_are_none_are_refused_as_a_whole(gateway: Gateway) -> None:
    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    for status, body, headers in [
        (400, b"", {}),
        (400, b"[]", {}),
        (400, b'[{"event_id": 1}, {', {}),
        (400, b"[" * 100_000, {}),
        (400, b"not gzip", {"content_encoding": "gzip"}),
        (400, gzip.compress(b"[]")[:-3], {"content_encoding": "gzip"}),
        (413, bomb, {"content_encoding": "gzip"}),
        (413, b" " * (2**20 + 1), {}),
        (413, b"{}\n" * 1_001, {"content_type": "application/x-ndjson"}),
        (415, b"{}", {"content_type": "application/xml"}),
        (415, b"{}", {"content_encoding": "br"}),
    ]:
        answer = gateway.post(body, **headers)
        assert answer.status_code == status, (status, body[:20], answer.text)
        assert answer.json()["status"] == status
    assert gateway.get("/nowhere").status_code == 404
    assert gateway.get("/v1/events").status_code == 405


# --- Consent


def test_without_consent_an_event_is_a_total_that_belongs_to_nobody(gateway: Gateway, prefix: str) -> None:
    denied = {"consent": "denied", "click_id": "gclid-1", "order_id": "o-1"}
    for _ in range(2):  # a repeat must stay one
        sent = [conversion(f"{prefix}-1", **denied), conversion(f"{prefix}-2", **denied)]
        assert gateway.post(sent).status_code == 202
    found = taken(gateway.deployment, prefix)
    users = {event["event_id"]: event["user_id"] for event in found}
    assert len(found) == 4
    assert len(set(users.values())) == 2, "each event has a user of its own"
    assert {event["user_id"] for event in found} == set(users.values()), "a repeat has the same one"
    assert all(user.startswith("once-") and "user-1" not in user for user in users.values())
    assert not any({"click_id", "order_id", "consent"} & event.keys() for event in found)
    retraction = conversion(f"{prefix}-3", event_type="adjustment", adjustment="retract", consent="denied")
    assert statuses(gateway.post(retraction | {"order_id": "o-1"})) == [
        ("rejected", "missing_field", "conversion_event_id")
    ]
    assert gateway.post(retraction | {"conversion_event_id": f"{prefix}-1"}).status_code == 202
    (adjusted,) = taken(gateway.deployment, f"{prefix}-3")
    assert adjusted["user_id"] == users[f"{prefix}-1"], "the adjustment finds its conversion"
    assert statuses(gateway.post(conversion("x", consent="maybe"))) == [("rejected", "invalid_field", "consent")]


def test_where_consent_is_asked_silence_is_none(gateway: Gateway, prefix: str) -> None:
    asked = {"advertiser_id": "cautious"}
    gateway.post([conversion(f"{prefix}-1", **asked), conversion(f"{prefix}-2", **asked, consent="granted")])
    users = {event["event_id"]: event["user_id"] for event in taken(gateway.deployment, prefix)}
    assert users[f"{prefix}-1"].startswith("once-")
    assert users[f"{prefix}-2"] == "user-1"


def test_hashed_users_stay_one_user_and_differ_by_advertiser(gateway: Gateway, prefix: str) -> None:
    for number in range(2):
        assert gateway.post(conversion(f"{prefix}-{number}", advertiser_id="hashed")).status_code == 202
    users = {event["user_id"] for event in taken(gateway.deployment, prefix)}
    assert users == {"h-" + keys.token("t" * 40, "user", "hashed", "user-1")}


# --- The pixel


def signed(query: str, key_id: str = "p1", advertiser: str = "shop") -> str:
    query = f"advertiser_id={advertiser}&key={key_id}&{query}"
    return f"{query}&sig={keys.sign(query.encode(), keys.pixel_secret(SECRET, advertiser, key_id))}"


def test_the_pixel_is_an_image_whatever_comes(gateway: Gateway, prefix: str) -> None:
    view = f"event_type=view&platform=meta&campaign_id=spring&event_id={prefix}"
    page = {"referer": f"{ORIGIN}/landing?x=1"}
    cases: list[tuple[str, dict[str, str], str]] = [
        (f"advertiser_id=shop&{view}-1", page, "taken"),
        (f"advertiser_id=shop&{view}-2", {"referer": "https://a.brand.example/"}, "taken"),
        (signed(f"{view}-3&user_id=user-9"), {}, "taken"),
        (signed(f"{view}-4", "p2") + "", {}, "taken"),
        (signed(f"{view}-5&expires={int(time.time()) + 60}"), {}, "taken"),
        (f"advertiser_id=shop&{view}-n1", {}, "rejected; not_allowed; "),
        (f"advertiser_id=shop&{view}-n2", {"referer": "https://shop.example.evil.example/"}, "rejected; not_allowed; "),
        (f"advertiser_id=nobody&{view}-n3", page, "rejected; not_allowed; advertiser_id"),
        (f"advertiser_id=cautious&{view}-n4", page, "rejected; not_allowed; sig"),
        (signed(f"{view}-n5", "p3"), {}, "rejected; not_allowed; key"),
        (signed(f"{view}-n6") + "0", {}, "rejected; not_allowed; sig"),
        (signed(f"{view}-n7").replace("spring", "autumn"), {}, "rejected; not_allowed; sig"),
        (signed(f"{view}-n8&expires=1"), {}, "rejected; not_allowed; expires"),
        (f"advertiser_id=shop&{view}-n9&event_type=click", page, "rejected; invalid_field; "),
        (f"advertiser_id=shop&{view}-n10&cost=nan", page, "rejected; invalid_field; "),
        (f"advertiser_id=shop&event_id={prefix}-n11", page, "rejected; missing_field; event_type"),
        ("%ff%fe&&&=", page, "rejected; invalid_field; "),
        ("", {}, "rejected; not_allowed; advertiser_id"),
    ]
    for query, headers, outcome in cases:
        answer = gateway.get(f"/p.gif?{query}", **headers)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/gif"), query
        assert answer.content.startswith(b"GIF89a")
        assert answer.headers["onecount"] == outcome, query
        assert "set-cookie" not in answer.headers
    found = {event["event_id"]: event for event in taken(gateway.deployment, prefix)}
    assert sorted(found) == [f"{prefix}-{number}" for number in range(1, 6)]
    assert found[f"{prefix}-3"]["user_id"] == "user-9"


def test_a_pixel_keeps_its_visitor_by_cookie_unless_the_browser_objects(gateway: Gateway, prefix: str) -> None:

    def beacon(event_id: str, **headers: str) -> Any:
        event = {"event_type": "visit", "page": "/", "event_id": event_id, "consent": "granted", "user_id": "v" * 24}
        return gateway.post(event, "/v1/browser?advertiser_id=cautious", None, origin=ORIGIN, **headers)

    seen = f"/p.gif?advertiser_id=remembered&event_type=visit&page=/&event_id={prefix}"
    given = gateway.get(f"{seen}-p1", referer=ORIGIN).headers["set-cookie"].partition(";")[0]
    assert given in gateway.get(f"{seen}-p2", referer=ORIGIN, cookie=given).headers["set-cookie"]
    for refusing in ({"sec_gpc": "1"}, {"dnt": "1"}):
        assert "set-cookie" not in gateway.get(f"{seen}-p3", referer=ORIGIN, **refusing).headers
    first = beacon(f"{prefix}-1")
    assert first.status_code == 202, first.text
    cookie = first.headers["set-cookie"]
    assert cookie == f"oc_id={'v' * 24}; Domain=shop.example; Path=/; Max-Age=34560000; Secure; HttpOnly; SameSite=Lax"
    beacon(f"{prefix}-2", cookie=f"oc_id={'w' * 24}")
    for name in ("sec_gpc", "dnt"):
        answer = beacon(f"{prefix}-{name}", cookie=f"oc_id={'w' * 24}", **{name: "1"})
        assert "Max-Age=0" in answer.headers["set-cookie"]
    users = {event["event_id"]: event["user_id"] for event in taken(gateway.deployment, prefix)}
    assert f"oc_id={users[f'{prefix}-p1']}" == f"oc_id={users[f'{prefix}-p2']}" == given
    assert users[f"{prefix}-p3"].startswith("once-")
    assert users[f"{prefix}-1"] == "v" * 24
    assert users[f"{prefix}-2"] == "w" * 24
    assert all(users[f"{prefix}-{name}"].startswith("once-") for name in ("sec_gpc", "dnt"))


def test_beacons_come_from_the_advertisers_own_pages_and_say_only_what_they_may(gateway: Gateway, prefix: str) -> None:
    path = "/v1/browser?advertiser_id=cautious"
    seen = {"event_id": prefix, "event_type": "visit", "page": "/", "user_id": "v" * 24}
    for origin in ("https://evil.example", "null", "http://www.shop.example", ""):
        answer = gateway.post(seen, path, None, origin=origin)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    answer = gateway.post(
        [
            seen,
            seen | {"event_type": "conversion", "conversion_name": "purchase"},
            seen | {"advertiser_id": "shop"},
            seen | {"user_id": "u1"},
            seen | {"age_ms": -1},
        ],
        path,
        None,
        origin=ORIGIN,
        content_type="text/plain;charset=UTF-8",
    )
    assert statuses(answer) == [
        ("accepted", None, None),
        ("rejected", "not_allowed", "event_type"),
        ("rejected", "not_allowed", "advertiser_id"),
        ("rejected", "invalid_field", "user_id"),
        ("rejected", "invalid_field", "age_ms"),
    ]
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["vary"] == "Origin"
    preflight = gateway.session.options(gateway.url + path, headers={"origin": ORIGIN}, timeout=5)
    assert (preflight.status_code, preflight.headers["access-control-allow-methods"]) == (204, "POST")
    assert (
        gateway.session.options(gateway.url + path, headers={"origin": "https://evil.example"}, timeout=5).status_code
        == 403
    )
    (event,) = taken(gateway.deployment, prefix)
    assert event["user_id"].startswith("once-"), "consent is asked there, and the page said nothing"
    assert abs(event["event_time"] - now_ms()) < 10_000


def test_who_reports_a_conversion_is_known_by_its_door(gateway: Gateway, prefix: str) -> None:
    bought = "event_type=conversion&conversion_name=purchase&reported_by=server"
    for query in (f"advertiser_id=shop&{bought}&event_id={prefix}-pixel", signed(f"{bought}&event_id={prefix}-signed")):
        assert gateway.get(f"/p.gif?{query}", referer=f"{ORIGIN}/thanks").headers["onecount"] == "taken"
    said = conversion(f"{prefix}-beacon", user_id="v" * 24, reported_by="server")
    assert gateway.post(said, "/v1/browser?advertiser_id=shop", None, origin=ORIGIN).status_code == 202
    relayed = conversion(f"{prefix}-relayed", reported_by="browser")
    assert gateway.post([conversion(f"{prefix}-server"), relayed]).status_code == 202
    found = {event["event_id"]: event.get("reported_by") for event in taken(gateway.deployment, prefix)}
    browsers = dict.fromkeys((f"{prefix}-{door}" for door in ("pixel", "signed", "beacon", "relayed")), "browser")
    assert found == browsers | {f"{prefix}-server": None}


# --- CloudEvents


@pytest.mark.parametrize("mode", ["structured", "batch", "binary"])
def test_cloud_events_are_taken(gateway: Gateway, prefix: str, mode: str) -> None:
    data = conversion(prefix)
    said = {name: data.pop(name) for name in ("event_id", "event_time", "event_type")}
    envelope = {"specversion": "1.0", "id": said["event_id"], "source": "/shop", "type": "com.example.conversion"}
    envelope["time"] = "2026-01-01T00:00:00Z"
    told = gateway.post(envelope | {"data": data}, content_type="application/cloudevents+json")
    assert statuses(told) == [("rejected", "too_old", "event_time")], "the envelope's time holds"
    data["event_time"] = said["event_time"]
    if mode == "binary":
        headers = {f"ce_{name}": value for name, value in envelope.items()}
        answer = gateway.post(data, **headers)
    elif mode == "structured":
        answer = gateway.post(envelope | {"data": data}, content_type="application/cloudevents+json; charset=utf-8")
    else:
        other = envelope | {"id": f"{prefix}-2", "type": "visit", "data": visit("own-id", event_time=now_ms())}
        for name in ("specversion", "data"):
            broken = {key: value for key, value in other.items() if key != name}
            refused = gateway.post([broken], content_type="application/cloudevents-batch+json")
            assert refused.status_code == 422, refused.text
        answer = gateway.post([envelope | {"data": data}, other], content_type="application/cloudevents-batch+json")
        assert answer.json()["events"][1]["event_id"] == "own-id", "the event's own word goes before its envelope's"
    assert answer.status_code == 202, answer.text
    assert taken(gateway.deployment, prefix) == [conversion(prefix, event_time=said["event_time"])]
