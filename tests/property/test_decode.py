"""The columnar path of the intake accepts and rejects exactly the events that the strict contract does, with the same reasons."""

import json
import math
from random import Random
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from app.columns.texts import texts_of
from app.contract.events import EVENT_TYPES, TOUCH_TYPES, Rejection, decode_event
from app.intake.decode import decode_batch
from app.intake.partitioner import owners
from app.intake.shapes import WORTH_LEARNING, Shapes
from app.intake.walk import CLICK_ID, COLUMNS
from app.policy.model import Bounds, ClickIds
from app.verify.partition import crc32, murmur2
from tests.unit.test_contract import DAY_MS, NOW_MS, PLATFORMS, REFUSED, adjustment, conversion, encoded, view, without

BOUNDS = Bounds(max_event_age_ms=7 * DAY_MS, max_clock_skew_ms=300_000)
BY_CLICK = Bounds(max_event_age_ms=7 * DAY_MS, max_clock_skew_ms=300_000, click_ids=ClickIds())

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
            "browser",
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
     "currency", "adjustment", "conversion_event_id", "click_id", "medium", "extra", "event_type", "reported_by"]
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


def agree(
    batch: list[tuple[bytes | None, bytes | None]], shapes: Shapes | None = None, bounds: Bounds = BOUNDS
) -> None:
    """Holds the batch's judgement against the strict one, row by row and field by field."""
    stamps = np.full(len(batch), NOW_MS, dtype=np.int64)
    values, keys = [raw for raw, _ in batch], [key for _, key in batch]
    decoded = decode_batch(values, keys, stamps, PLATFORMS, bounds, shapes or Shapes())
    index_of = {row: index for index, row in enumerate(decoded.rows.tolist())}
    rejected, userless = dict(decoded.rejections), dict(decoded.userless)
    assert len(index_of) + len(rejected) + len(userless) == len(batch)
    columns = {name: texts.to_list() for name, texts in decoded.texts.items()}
    for row, (raw, key) in enumerate(batch):
        strict = decode_event(
            *(raw, key, NOW_MS, PLATFORMS, bounds.max_event_age_ms, bounds.max_clock_skew_ms),
            bounds.click_ids is not None,
        )
        if isinstance(strict, Rejection):
            assert rejected.get(row) == strict, (raw, key)
            continue
        if strict.event.user_id is None:
            assert userless.get(row) == strict, (raw, key)
            continue
        assert row in index_of, (raw, key)
        index, event = index_of[row], strict.event
        assert int(decoded.times_ms[index]) == strict.time_ms
        assert EVENT_TYPES[decoded.types[index]] == event.event_type
        assert {name: column[index] for name, column in columns.items()} == {
            name: getattr(event, name) for name in columns
        }
        cost = float(decoded.costs[index])
        assert (None if math.isnan(cost) else cost) == event.cost
        assert decoded.events.get(index) == (None if event.event_type in TOUCH_TYPES else event)


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


NUMBERS = ("0", "12", "0.25", "12.50", "-1", "01", "1.", ".5", "1e3", "00", "0.0", "-0", "1.2.3", "+1", "1_0", "9" * 15, "9" * 16,
           "10000000000", "10000000000.5", "0.1234567890123", "123456789.123456", "NaN", "", "5 ", " 5", "0x1", "null", "true", '"1"')  # fmt: skip
TIMES = (
    *(str(NOW_MS + shift) for shift in (0, 1, -8 * DAY_MS, 301_000)), "0" + str(NOW_MS)[1:], str(NOW_MS)[:-1],
    f"{NOW_MS}0", f"{NOW_MS}.0", "1e12", f"0{NOW_MS}", f"{str(NOW_MS)[:-1]}x",
)  # fmt: skip
CHANGES = (
    b"",
    b'"',
    b"\\",
    b"{",
    b"}",
    b":",
    b",",
    b" ",
    b"\x00",
    b"\n",
    b"\x7f",
    b"\xc3\xbc",
    b"\xff",
    b"0",
    b"9",
    b"a",
    b"-",
    b".",
    b"null",
)


TOUCHES = (view(), view(event_type="click", click_id="k"), view(event_type="engaged_view", source="s", medium="m"))
OTHERS = (
    conversion(value=3, currency="USD"),
    without(view(event_type="visit", page="/"), "platform", "campaign_id"),
    adjustment(),
    view(event_type="tick"),
)
ADDED = (
    {},
    {"cost": "COST"},
    {"cost": "COST"},
    {"extra": "COST"},
    {"cost": "COST", "ctx": {"event_id": "e"}},
    {"cost": None},
    {"extra": "text", "flag": True},
)
LONG = {"event_id": 129, "landing_page": 2049, "ad_id": 129, "user_id": 129, "click_id": 513, "advertiser_id": 129}


def stamp(chance: Random, years: tuple[int, int] = (2025, 2025)) -> str:
    """A time as text, mostly a sound one: of these years, and in the seven days before NOW_MS where they are 2025."""
    year, month, day = chance.randint(*years), chance.randint(1, 12), chance.randint(1, 31)
    if years == (2025, 2025):
        month, day = 11, chance.randint(17, 24)
    odd = chance.random() < 0.2
    hour, minute, second = (chance.randint(0, most + odd) for most in (23, 59, 59))
    fraction = chance.choice(["", "", f".{chance.randrange(1000):03}", "." + "987654321098"[: chance.randint(1, 10)]])
    zone = chance.choice(["Z", "Z", "z", f"{chance.choice('+-')}{chance.randint(0, 25):02}:{chance.randint(0, 61):02}"])
    text = f"{year:04}-{month:02}-{day:02}{chance.choice('TTTt ')}{hour:02}:{minute:02}:{second:02}{fraction}{zone}"
    if chance.random() < 0.1:
        at = chance.randrange(len(text))
        text = (
            text[:at]
            + chance.choice(["", "0", "9", "-", ":", ".", "T", "Z", "+", "x"])
            + text[at + chance.randint(0, 1) :]
        )
    return json.dumps(text)


def written_alike(chance: Random) -> list[tuple[bytes | None, bytes | None]]:
    """So many records written alike that their shape is learnt, and among them some with one thing that is odd."""
    event = dict(chance.choice(TOUCHES * 3 + OTHERS)) | chance.choice(ADDED)
    usual = chance.choice([TIMES[0], '"2025-11-24T16:00:00Z"'])
    separators = chance.choice([(",", ":"), (", ", ": ")])
    user = event["user_id"].encode()

    def written(number: str = "0.25", time: str = usual, **fields: str) -> bytes:
        text = json.dumps(event | {"event_time": "TIME"} | fields, separators=separators)
        return text.replace('"COST"', number).replace('"TIME"', time).encode()

    def odd() -> tuple[bytes, bytes | None]:
        kind = chance.choice(["number", "time", "key", "length", "platform", "byte", "byte", "byte", "field"])
        raw = written(chance.choice(["0", "0.25", "12"]))
        if kind == "number":
            return written(chance.choice(NUMBERS)), user
        if kind == "time":
            return written(time=chance.choice([*TIMES, *(stamp(chance) for _ in TIMES)])), user
        if kind == "key":
            return raw, chance.choice([None, b"other", user + b"0", user[:-1]])
        if kind == "length":
            name = chance.choice([*LONG])
            text = chance.choice(["", "x", "x" * (LONG[name] - 1), "x" * LONG[name]])
            return written(**{name: text}), (text.encode() if name == "user_id" else user)
        if kind == "platform":
            return written(platform=chance.choice([*PLATFORMS, "nowhere", "met", "metaa"])), user
        if kind == "field":
            return written(**{chance.choice([*event]): chance.choice(["text", "view", "clic", "clickk"])}), user
        at = chance.randrange(len(raw) + 1)
        return raw[:at] + chance.choice(CHANGES) + raw[at + chance.randrange(3) :], user

    found = [(written(), user) for _ in range(WORTH_LEARNING)] + [odd() for _ in range(12)]
    chance.shuffle(found)
    return found


@given(st.integers(0, 2**64))
def test_records_that_are_nearly_of_a_shape_met_before_are_judged_like_any_other(seed: int) -> None:
    chance, shapes = Random(seed), Shapes()
    for _ in range(3):
        agree(written_alike(chance), shapes)


@given(st.integers(0, 2**64))
def test_a_time_as_text_is_read_alike_whatever_its_century(seed: int) -> None:
    chance, shapes = Random(seed), Shapes()
    ages = Bounds(max_event_age_ms=1000 * 366 * DAY_MS, max_clock_skew_ms=1000 * 366 * DAY_MS)
    times = ['"2025-11-24T16:00:00Z"'] * WORTH_LEARNING + [stamp(chance, (1968, 2290)) for _ in range(40)]
    texts = [encoded(view(event_time="TIME")).replace(b'"TIME"', time.encode()) for time in times]
    agree([(text, b"u1") for text in texts], shapes, ages)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=30), st.integers(1, 64))
def test_the_column_s_partitioners_are_those_of_the_producers(users: list[bytes], partitions: int) -> None:
    assert owners(texts_of(users), partitions, "murmur2").tolist() == [
        (murmur2(user) & 0x7FFFFFFF) % partitions for user in users
    ]
    assert owners(texts_of(users), partitions, "crc32").tolist() == [crc32(user) % partitions for user in users]


def test_murmur2_gives_the_values_of_kafka_s_own_tests() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    known = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    }
    for key, value in known.items():
        assert owners(texts_of([key]), 2**31, "murmur2").tolist() == [value & 0x7FFFFFFF]


@given(
    st.lists(records(), min_size=1, max_size=20),
    st.lists(st.sampled_from(["absent", "null", "empty", "there"]), min_size=20, max_size=20),
)
def test_events_that_name_a_click_and_no_user_are_judged_as_the_contract_does(
    batch: list[tuple[bytes | None, bytes | None]], users: list[str]
) -> None:
    rewritten = []
    for (raw, key), user in zip(batch, users, strict=False):
        if raw is not None and user != "there":
            value = {"absent": b"", "null": b'"user_id":null,', "empty": b'"user_id":"",'}[user]
            raw = raw.replace(b'"user_id":"u1",', value).replace(b'"user_id": "u1", ', value)
            raw = raw.replace(b'{"', b'{"click_id":"k1","', 1) if b"click_id" not in raw else raw
        rewritten.append((raw, key))
    agree(rewritten, Shapes((*COLUMNS, CLICK_ID)), BY_CLICK)
    agree(rewritten, Shapes())


def test_the_click_ids_of_touches_are_read_where_they_are_asked_for() -> None:
    clicks = [view(event_id=f"e{n}", event_type="click", click_id=f"k{n}") for n in range(2 * WORTH_LEARNING)]
    batch = [(encoded(event), None) for event in [*clicks, view(), view(event_type="click", click_id="")]]
    for shapes in (Shapes((*COLUMNS, CLICK_ID)), Shapes()):
        for _ in range(2):  # the second time the shape is known
            agree(batch, shapes, BY_CLICK)
