"""Events that must be refused: one example of every way in which a producer can break the contract."""

from collections.abc import Callable
from typing import Final, NamedTuple

from app.contract import reasons
from app.contract.events import MAX_EVENT_BYTES
from app.generate.scene import Generated, Scene, new_id
from app.policy.model import DAY_MS

_DEPTH: Final = 1_500
_NESTED: Final = "[" * _DEPTH + "]" * _DEPTH
_OBJECTS: Final = '{"a":' * _DEPTH + "1" + "}" * _DEPTH
_PADDING: Final = "x" * MAX_EVENT_BYTES
_HOUR_MS: Final = 3_600_000


class Fault(NamedTuple):
    """A way to be wrong: the reason of `app.contract.reasons` that it must be refused for, how often it comes, and the
    spoiling.

    `spoil` gets the members of a sound click by name, each as JSON text, and gives the record's bytes.
    """

    reason: str
    weight: int
    spoil: Callable[[dict[str, str]], bytes | None]


def _json(members: dict[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}"


def _with(**changed: str) -> Callable[[dict[str, str]], bytes]:
    return lambda members: _json(members | changed).encode()


def _without(name: str) -> Callable[[dict[str, str]], bytes]:
    return lambda members: _json({key: value for key, value in members.items() if key != name}).encode()


def _only(text: bytes | None) -> Callable[[dict[str, str]], bytes | None]:
    return lambda members: text


def _conversion(**members: str) -> Callable[[dict[str, str]], bytes]:
    return _with(event_type='"conversion"', conversion_name='"purchase"', **members)


def _adjustment(**members: str) -> Callable[[dict[str, str]], bytes]:
    return _with(event_type='"adjustment"', **members)


# The heavy ones (a quarter of a megabyte, deep nesting) come rarely, so that they do not set the stream's speed.
FAULTS: Final[dict[str, Fault]] = {
    "null_record": Fault(reasons.NULL_RECORD, 20, _only(None)),
    "empty": Fault(reasons.EMPTY, 20, _only(b"")),
    "too_large": Fault(reasons.TOO_LARGE, 1, _with(padding=f'"{_PADDING}"')),
    "invalid_utf8": Fault(reasons.INVALID_UTF8, 20, lambda members: _json(members).encode()[:-2] + b'\xff"}'),
    "utf16": Fault(reasons.INVALID_UTF8, 10, lambda members: b"\xff\xfe" + _json(members).encode("utf-16-le")),
    "byte_order_mark": Fault(reasons.INVALID_JSON, 20, lambda members: b"\xef\xbb\xbf" + _json(members).encode()),
    "truncated": Fault(reasons.INVALID_JSON, 20, lambda members: _json(members).encode()[:-9]),
    "two_events": Fault(reasons.INVALID_JSON, 10, lambda members: f"{_json(members)}\n{_json(members)}".encode()),
    "not_a_number": Fault(reasons.INVALID_JSON, 20, _with(cost="NaN")),
    "infinity": Fault(reasons.INVALID_JSON, 10, _with(cost="-Infinity")),
    "raw_newline": Fault(reasons.INVALID_JSON, 20, _with(ad_id='"two\nlines"')),
    "lone_surrogate": Fault(reasons.INVALID_JSON, 10, _with(ad_id='"\\ud800"')),
    "deep_arrays": Fault(reasons.TOO_DEEP, 2, _with(extra=_NESTED)),
    "deep_objects": Fault(reasons.TOO_DEEP, 2, _with(extra=_OBJECTS)),
    "an_array": Fault(reasons.NOT_AN_OBJECT, 10, lambda members: f"[{_json(members)}]".encode()),
    "a_string": Fault(reasons.NOT_AN_OBJECT, 10, _only(b'"click"')),
    "json_null": Fault(reasons.NOT_AN_OBJECT, 10, _only(b"null")),
    "duplicate_key": Fault(
        reasons.DUPLICATE_KEY, 20, lambda members: _json(members).encode()[:-1] + b',"event_id":"other"}'
    ),
    "no_user": Fault(reasons.MISSING_FIELD, 20, _without("user_id")),
    "no_campaign": Fault(reasons.MISSING_FIELD, 20, _without("campaign_id")),
    "no_conversion_name": Fault(reasons.MISSING_FIELD, 20, _with(event_type='"conversion"')),
    "no_page": Fault(reasons.MISSING_FIELD, 10, _with(event_type='"visit"')),
    "adjustment_of_nothing": Fault(reasons.MISSING_FIELD, 10, _adjustment(adjustment='"retract"', order_id='""')),
    "restated_without_value": Fault(reasons.MISSING_FIELD, 10, _adjustment(adjustment='"restate"', order_id='"o"')),
    "long_id": Fault(reasons.INVALID_FIELD, 20, _with(event_id=f'"{"i" * 129}"')),
    "long_order_id": Fault(reasons.INVALID_FIELD, 10, _conversion(order_id=f'"{"o" * 65}"')),
    "empty_id": Fault(reasons.INVALID_FIELD, 10, _with(advertiser_id='""')),
    "control_character": Fault(reasons.INVALID_FIELD, 10, _with(campaign_id='"a\\u0000b"')),
    "number_for_text": Fault(reasons.INVALID_FIELD, 10, _with(campaign_id="42")),
    "beyond_float": Fault(reasons.INVALID_FIELD, 20, _with(cost="1e400")),
    "beyond_uint64": Fault(reasons.INVALID_FIELD, 20, _with(cost=str(2**64))),
    "negative_value": Fault(reasons.INVALID_FIELD, 10, _conversion(value="-1", currency='"USD"')),
    "lower_case_currency": Fault(reasons.INVALID_FIELD, 10, _conversion(value="1", currency='"usd"')),
    "unknown_adjustment": Fault(reasons.INVALID_FIELD, 10, _adjustment(adjustment='"undo"', order_id='"o"')),
    "true_for_a_time": Fault(reasons.INVALID_TIME, 20, _with(event_time="true")),
    "time_beyond_uint64": Fault(reasons.INVALID_TIME, 20, _with(event_time=str(2**64))),
    "fractional_time": Fault(reasons.INVALID_TIME, 10, _with(event_time="1764000000000.5")),
    "time_without_zone": Fault(reasons.INVALID_TIME, 10, _with(event_time='"2026-01-01T00:00:00"')),
    "unknown_type": Fault(reasons.UNKNOWN_EVENT_TYPE, 20, _with(event_type='"impression"')),
    "unknown_platform": Fault(reasons.UNKNOWN_PLATFORM, 20, _with(platform='"geocities"')),
    "key_of_another_user": Fault(reasons.KEY_MISMATCH, 20, _with()),
    "too_old": Fault(reasons.TOO_OLD, 20, _with()),
    "in_the_future": Fault(reasons.IN_THE_FUTURE, 20, _with()),
    # Refused only once its partition has seen something recent; the first record of a partition is always in time.
    "beyond_correction_horizon": Fault(reasons.BEYOND_CORRECTION_HORIZON, 20, _with()),
}
_NAMES: Final = list(FAULTS)
_WEIGHTS: Final = [fault.weight for fault in FAULTS.values()]


def invalid_record(scene: Scene, now_ms: int, user: int, ad: int, name: str | None = None) -> Generated:
    """A record that must be refused, sent at `now_ms` (epoch ms); `name`: which of `FAULTS`, by chance if not given."""
    world, bounds = scene.world, scene.bounds
    name = name or scene.rng.choices(_NAMES, weights=_WEIGHTS)[0]
    time_ms = sent_ms = now_ms
    key = user_key = world.user_keys[user]
    if name == "too_old":
        time_ms = now_ms - bounds.max_event_age_ms - _HOUR_MS
    elif name == "in_the_future":
        time_ms = now_ms + bounds.max_clock_skew_ms + _HOUR_MS
    elif name == "beyond_correction_horizon":
        # A producer that comes back after days and sends what it had kept, with the timestamps of then.
        time_ms = now_ms - bounds.correction_horizon_ms - DAY_MS
        sent_ms = min(time_ms + bounds.max_event_age_ms // 2, now_ms)
    elif name == "key_of_another_user":
        key = world.user_keys[user - 1]
        if key == user_key:
            key = b"nobody"
    place = world.ads[ad]
    members = {
        "event_id": f'"{new_id(scene)}"',
        "event_type": '"click"',
        "event_time": str(time_ms),
        "advertiser_id": f'"{world.advertisers[place.advertiser]}"',
        "user_id": f'"{world.users[user]}"',
        "platform": f'"{place.platform}"',
        "campaign_id": '"campaign"',
        "source": '"producer with a fault"',
    }
    return Generated(key, FAULTS[name].spoil(members), sent_ms, user_key, False, f"invalid/{name}")
