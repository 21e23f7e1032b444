"""The columnar path of the intake accepts and rejects exactly the events that the strict contract does, with the same reasons."""

import json
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from app.contract.events import Rejection, decode_event
from app.intake.decode import decode_batch
from app.intake.partitioner import owners
from app.policy.model import Bounds
from app.verify.partition import crc32, murmur2
from tests.unit.test_contract import DAY_MS, NOW_MS, PLATFORMS, REFUSED, adjustment, conversion, encoded, view, without

BOUNDS = Bounds(max_event_age_ms=7 * DAY_MS, max_clock_skew_ms=300_000)

texts = st.one_of(
    st.sampled_from(
        [
            "a",
            "http://x.org/?a=b:c",
            'quo"te',
            "back\\slash",
            "new\nline",
            "ü",
            "\u2028",
            "\x7f",
            "\x00",
            "a:b:c",
            ":",
            '":',
            "{",
            "[" * 70,
        ]
    ),
    st.text(max_size=12),
)
times = st.one_of(
    st.integers(NOW_MS - 8 * DAY_MS, NOW_MS + 600_000),
    st.sampled_from(
        [
            NOW_MS,
            "2025-11-24T16:00:00Z",
            "2025-11-24T16:00:00+01:00",
            "2025-11-24",
            True,
            1.5,
            -1,
            2**63,
            2**64,
            None,
            float(NOW_MS),
        ]
    ),
)
values = st.one_of(st.floats(allow_nan=True), st.integers(-5, 10**11), st.sampled_from(["1", True, None, 0, -0.0]))
base = st.sampled_from(
    [view(), view(event_type="click", click_id="k", cost=1.5), view(event_type="engaged_view"), conversion(value=3, currency="USD"),
     without(view(event_type="visit", page="/"), "platform", "campaign_id"), adjustment(), adjustment(adjustment="restate", value=2),
     without(conversion(), "platform"), view(event_type="tick")]
)  # fmt: skip
names = st.sampled_from(
    ["event_id", "user_id", "advertiser_id", "platform", "campaign_id", "landing_page", "page", "referrer", "order_id", "conversion_name",
     "currency", "adjustment", "conversion_event_id", "click_id", "medium", "extra", "event_type"]
)  # fmt: skip


@st.composite
def records(draw: st.DrawFn) -> tuple[bytes | None, bytes | None]:
    """A record's value and key: mostly sound, with one or two things wrong or odd."""
    event: dict[str, Any] = dict(draw(base))
    event |= dict(draw(st.lists(st.tuples(names, texts), max_size=2)))
    if draw(st.booleans()):
        event["event_time"] = draw(times)
    if draw(st.integers(0, 4)) == 0:
        event[draw(st.sampled_from(["value", "cost"]))] = draw(values)
    for name in draw(st.lists(names, max_size=1)):
        if draw(st.booleans()):
            event.pop(name, None)
    ascii_only = draw(st.booleans())
    spaced = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")]))
    raw = json.dumps(event, ensure_ascii=ascii_only, separators=spaced).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 5)) == 0:
        name = draw(names)
        raw = raw[:-1] + f',"{name}":{json.dumps(event.get(name, "again"))}}}'.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(raw)))
        raw = raw[:cut] + draw(st.binary(max_size=3)) + raw[cut:]
    user = event.get("user_id")
    own = user.encode("utf-8", "surrogatepass") if isinstance(user, str) else b"u1"
    key = draw(st.sampled_from([own, own, own, None, b"other", own + b"\n", b""]))
    return draw(st.sampled_from([raw, raw, raw, raw, raw, raw, raw, None, b"", b"\xef\xbb\xbf" + raw, b"null"])), key


def agree(batch: list[tuple[bytes | None, bytes | None]]) -> None:
    """Holds the batch's judgement against the strict one, row by row."""
    stamps = np.full(len(batch), NOW_MS, dtype=np.int64)
    decoded = decode_batch([raw for raw, _ in batch], [key for _, key in batch], stamps, PLATFORMS, BOUNDS)
    accepted = dict(
        zip(decoded.rows.tolist(), zip(decoded.events, decoded.times_ms.tolist(), strict=True), strict=True)
    )
    rejected = dict(decoded.rejections)
    assert not accepted.keys() & rejected.keys()
    for row, (raw, key) in enumerate(batch):
        strict = decode_event(raw, key, NOW_MS, PLATFORMS, BOUNDS.max_event_age_ms, BOUNDS.max_clock_skew_ms)
        if isinstance(strict, Rejection):
            assert rejected.get(row) == strict, (raw, key)
        else:
            assert accepted.get(row) == (strict.event, strict.time_ms), (raw, key)
    touches = [
        index for index, event in enumerate(decoded.events) if event.event_type in ("view", "click", "engaged_view")
    ]
    assert decoded.touches["row"].to_list() == touches
    assert decoded.touches["campaign_id"].to_list() == [decoded.events[index].campaign_id for index in touches]


@given(st.lists(records(), min_size=1, max_size=12))
@example([(encoded(view()), b"u1")])
@example([(encoded(view()), b"u1")] + [(raw, b"u1") for _, raw, _, _ in REFUSED if raw is None or len(raw) < 10_000])
@example([(encoded(view(user_id="a\nb")), b"a"), (encoded(view(user_id="c")), b"b\nc")])
@example([(b'{"event_id" :"e","event_id":"f",' + encoded(view(event_id="e"))[1:], b"u1")])
@example([(encoded(view(landing_page="a:b")).replace(b'"ad_id"', b'"ad_id"'), b"u1")])
def test_the_columnar_and_the_strict_path_judge_every_record_alike(
    batch: list[tuple[bytes | None, bytes | None]],
) -> None:
    agree(batch)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=30), st.integers(1, 64))
def test_the_column_s_partitioners_are_those_of_the_producers(users: list[bytes], partitions: int) -> None:
    assert owners(users, partitions, "murmur2").tolist() == [
        (murmur2(user) & 0x7FFFFFFF) % partitions for user in users
    ]
    assert owners(users, partitions, "crc32").tolist() == [crc32(user) % partitions for user in users]


def test_murmur2_gives_the_values_of_kafka_s_own_tests() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    known = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    }
    for key, value in known.items():
        assert owners([key], 2**31, "murmur2").tolist() == [value & 0x7FFFFFFF]
