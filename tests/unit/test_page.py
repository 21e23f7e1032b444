"""The live page without Kafka or a browser: the folds, the snapshots, the streams and the answers, with plain data."""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import pytest
from starlette.applications import Starlette

from app.contract import rows
from app.contract.reasons import ALL_REASONS
from app.contract.rows import STATUSES, AttributedRow, CountRow, DeadLetter
from app.page.broadcast import Broadcast
from app.page.figures import HOUR_MS, MINUTE_MS, SPANS, Figures, fold_count
from app.page.fold import CONVERSIONS, COUNTS, LETTERS, State, empty_state, fold_record
from app.page.news import NEWEST_SHOWN
from app.page.reader import Pulse
from app.page.site import FILES, MOST_BROWSERS, site
from app.page.snapshot import (
    ADVERTISERS_SHOWN,
    CAMPAIGNS_OF_EACH,
    CAMPAIGNS_SHOWN,
    news_snapshot,
    span_snapshot,
)

HOUR, DAY = SPANS
T0 = 1_764_000_000_000 // (15 * MINUTE_MS) * (15 * MINUTE_MS)
MEASURES = ("views", "engaged_views", "clicks", "conversions")


def count_row(window: int = T0, **fields: Any) -> CountRow:
    plain: dict[str, Any] = {
        "platform": "meta", "advertiser_id": "shop", "dimensions": {"campaign_id": "spring", "ad_id": "a1"},
        "conversion_name": "", "currency": "", "views": 0, "engaged_views": 0, "clicks": 0, "conversions": 0,
        "value": 0.0, "cost": 0.0, "revision": 1, "final": False,
    }  # fmt: skip
    return CountRow(window_start=window, window_end=window + MINUTE_MS, **plain | fields)


def key_of(row: CountRow) -> bytes:
    return rows.count_key(
        row.window_start,
        row.platform,
        row.advertiser_id,
        list(row.dimensions.values()),
        row.conversion_name,
        row.currency,
    )


def put(state: State, row: CountRow, at_ms: int | None = None) -> None:
    fold_record(state, COUNTS, key_of(row), rows.encode(row), at_ms or row.window_end)


def judged(event: str, status: str = "counted", **fields: Any) -> AttributedRow:
    plain: dict[str, Any] = {
        "advertiser_id": "shop", "user_id": "user-7f3", "platform": "meta", "conversion_name": "purchase", "event_id": event,
        "event_time": T0, "order_id": "order-12", "conversions": int(status == "counted"), "value": 99.5, "currency": "EUR",
        "action_class": "macro", "intent": "hard", "outcome": "revenue", "method": "click", "policy_version": 1,
        "duplicate_of": None, "touch_type": "click", "touch_event_id": "t1", "touch_time": T0 - 1000, "time_to_convert_ms": 1000,
        "campaign_id": "spring", "ad_id": "a1", "creative_id": None, "landing_page": None, "offer_id": None, "source": None,
        "medium": None, "revision": 1,
    }  # fmt: skip
    return AttributedRow(status=status, **plain | fields)


def judge(state: State, row: AttributedRow, at_ms: int = T0) -> None:
    key = rows.attributed_key(row.advertiser_id, row.user_id, row.platform, row.conversion_name, row.event_id)
    fold_record(state, CONVERSIONS, key, rows.encode(row), at_ms)


def refuse(state: State, reason: str, field: str = "", at_ms: int = T0) -> None:
    letter = DeadLetter(reason, field, "", "ads.events", 0, 1, at_ms, None, 1, "", False, None)
    fold_record(state, LETTERS, None, rows.encode(letter), at_ms)


def sums(lines: list[dict[str, Any]], *by: str) -> Counter[Any]:
    """Each measure, and each currency's value, of lines with the same names."""
    found: Counter[Any] = Counter()
    for line in lines:
        place = tuple(line[name] for name in by)
        for name in MEASURES:
            found[(*place, name)] += line.get(name, 0)
        for currency, amount in line.get("value", {}).items():
            found[(*place, currency)] += round(amount * 1_000_000)
    return +found


# --- The fold of the counts


def test_a_revision_replaces_what_it_corrects_and_a_null_value_deletes() -> None:
    state = empty_state(1_000)
    put(state, count_row(clicks=3))
    put(state, count_row(clicks=5, revision=2))
    assert sums(span_snapshot(state.figures, HOUR)["campaigns"], "campaign") == {("spring", "clicks"): 5}
    fold_record(state, COUNTS, key_of(count_row()), None, T0)
    assert span_snapshot(state.figures, HOUR)["campaigns"] == []
    assert state.figures.rows == 0


def test_values_are_added_up_by_currency_and_never_over_currencies() -> None:
    state = empty_state(1_000)
    for currency, value in (("EUR", 10.1), ("USD", 20.2), ("EUR", 0.2)):
        name = f"{currency}{value}"
        put(state, count_row(dimensions={"campaign_id": name}, conversion_name="purchase", currency=currency, conversions=1, value=value))  # fmt: skip
    (line,) = span_snapshot(state.figures, HOUR)["series"]
    assert line["value"] == {"EUR": 10.3, "USD": 20.2}
    assert sum(line["bars"]["value EUR"]) == pytest.approx(10.3)
    assert "cost" not in line


def test_what_is_counted_once_over_all_platforms_is_added_to_no_platform() -> None:
    state = empty_state(1_000)
    for platform in ("meta", "tiktok"):
        put(state, count_row(platform=platform, conversion_name="purchase", currency="EUR", conversions=1, value=9.5))
    assert span_snapshot(state.figures, HOUR)["once"] == []
    put(
        state,
        count_row(platform="all", scope="all", conversion_name="purchase", currency="EUR", conversions=1, value=9.5),
    )
    found = span_snapshot(state.figures, HOUR)
    assert found["once"] == [{"advertiser": "shop", "action": "purchase", "conversions": 1, "value": {"EUR": 9.5}}]
    for part in ("series", "actions", "campaigns"):
        assert {line["platform"] for line in found[part]} == {"meta", "tiktok"}
        assert sums(found[part])["conversions",] == 2
    put(state, count_row(platform="all", scope="all", conversion_name="purchase", currency="EUR", revision=2))
    assert span_snapshot(state.figures, HOUR)["once"] == [{"advertiser": "shop", "action": "purchase"}]


def test_the_spans_end_with_the_newest_window_whatever_the_clock_says() -> None:
    state = empty_state(1_000)
    put(state, count_row(T0, clicks=1))
    put(state, count_row(T0 + 30 * MINUTE_MS, clicks=10))
    put(state, count_row(T0 + 60 * MINUTE_MS, clicks=100))
    hour, day = (span_snapshot(state.figures, span) for span in SPANS)
    assert sums(hour["series"]) == {("clicks",): 110}
    assert sums(day["series"]) == {("clicks",): 111}
    (bars,) = (line["bars"]["clicks"] for line in hour["series"])
    assert (len(bars), bars[29], bars[59]) == (60, 10, 100)
    assert hour["ends_ms"] == T0 + 61 * MINUTE_MS
    put(state, count_row(T0 + 25 * HOUR_MS, clicks=1000))
    assert sums(span_snapshot(state.figures, DAY)["series"]) == {("clicks",): 1000}
    put(state, count_row(T0, clicks=2, revision=2))  # too late for the page
    assert state.figures.rows == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_sums_are_those_of_the_latest_rows_of_the_span_whatever_came(seed: int) -> None:
    """Against a fold that keeps every row and adds up anew."""
    chance = random.Random(seed)
    state, latest = empty_state(100_000), {}
    newest = T0
    for step in range(3_000):
        newest = max(newest, T0 + step * 40_000) // MINUTE_MS * MINUTE_MS
        window = newest - chance.choice((0, 0, 0, 1, 5, 59, 60, 300, 1425, 1440, 2000)) * MINUTE_MS
        action = chance.choice(("", "purchase"))
        row = count_row(
            window, platform=chance.choice(("a", "b", "all") if action else "ab"), advertiser_id=chance.choice("xy"),
            dimensions={"campaign_id": chance.choice(("c", None)), "ad_id": chance.choice("12")},
            conversion_name=action, currency="EUR" if action else "", views=0 if action else chance.randrange(9),
            conversions=chance.randrange(4) if action else 0, value=chance.randrange(999) / 7 if action else 0.0,
        )  # fmt: skip
        if chance.random() < 0.05:
            latest.pop(key_of(row), None)
            fold_record(state, COUNTS, key_of(row), None, newest)
        else:
            latest[key_of(row)] = row
            put(state, row)
    assert state.unreadable == 0
    top = max(row.window_start for row in latest.values())
    assert state.figures.newest_ms >= top
    for span in SPANS:
        begins_ms = span.begins_ms(state.figures.newest_ms)
        expected: Counter[Any] = Counter()
        for row in latest.values():
            if row.window_start >= begins_ms:
                for name in MEASURES:
                    expected[row.advertiser_id, row.platform, name] += getattr(row, name)
                expected[row.advertiser_id, row.platform, row.currency] += round(row.value * 1_000_000)
        found = span_snapshot(state.figures, span)
        once = {
            (advertiser, name): expected.pop((advertiser, platform, name))
            for advertiser, platform, name in list(expected)
            if platform == "all"
        }
        assert sums(found["once"], "advertiser") == +Counter(once)
        assert sums(found["series"], "advertiser", "platform") == +expected
        assert sums(found["campaigns"], "advertiser", "platform") == +expected
        paid = {key: number for key, number in expected.items() if key[2] in ("conversions", "EUR") and number}
        assert sums(found["actions"], "advertiser", "platform") == paid
        for line in found["series"]:
            assert sum(line["bars"].get("views", [])) == line.get("views", 0)


def test_the_oldest_windows_go_first_where_there_are_too_many_rows_and_the_page_is_told() -> None:
    state = empty_state(100)
    for minute in range(30):
        for campaign in range(10):
            put(state, count_row(T0 + minute * MINUTE_MS, dimensions={"campaign_id": str(campaign)}, clicks=1))
    figures = state.figures
    assert figures.rows == 100
    found = span_snapshot(figures, HOUR)
    assert found["cut_ms"] == T0 + 20 * MINUTE_MS
    assert sums(found["series"]) == {("clicks",): 100}
    put(state, count_row(T0 + 3 * MINUTE_MS, clicks=7))  # one that was cut stays out
    assert sums(span_snapshot(figures, HOUR)["series"]) == {("clicks",): 100}


def test_a_newest_window_with_too_many_rows_is_told_and_memory_stays_bounded() -> None:
    state = empty_state(100)
    for campaign in range(130):
        put(state, count_row(dimensions={"campaign_id": str(campaign)}, clicks=1))
    assert (state.figures.rows, state.figures.left_out) == (100, 30)
    put(state, count_row(T0 + MINUTE_MS, clicks=4))
    found = span_snapshot(state.figures, HOUR)
    assert (found["left_out"], found["cut_ms"]) == (0, T0 + MINUTE_MS)
    assert sums(found["series"]) == {("clicks",): 4}


def test_windows_longer_than_a_bar_are_bars_of_their_own() -> None:
    figures = Figures(1_000)
    for hour in range(3):
        row = count_row(T0 // HOUR_MS * HOUR_MS + hour * HOUR_MS, clicks=hour + 1)
        fold_count(
            figures,
            key_of(row),
            row.window_start,
            msgspec.structs.replace(row, window_end=row.window_start + HOUR_MS),
            T0,
        )
    found = span_snapshot(figures, DAY)
    assert found["bucket_ms"] == HOUR_MS
    (line,) = found["series"]
    assert [number for number in line["bars"]["clicks"] if number] == [1, 2, 3]
    assert len(line["bars"]["clicks"]) == 24


def test_a_snapshot_is_bounded_and_leaves_no_number_out() -> None:
    state = empty_state(100_000)
    for advertiser in range(40):
        for campaign in range(30):
            put(state, count_row(advertiser_id=f"shop{advertiser}", dimensions={"campaign_id": f"c{campaign}"}, clicks=advertiser + 1))  # fmt: skip
    found = span_snapshot(state.figures, HOUR)
    assert len({line["advertiser"] for line in found["series"]}) == ADVERTISERS_SHOWN + 1
    assert found["other_advertisers"] == 40 - ADVERTISERS_SHOWN
    named = [line for line in found["campaigns"] if line["campaign"] is not None]
    assert len(named) <= CAMPAIGNS_SHOWN + ADVERTISERS_SHOWN * CAMPAIGNS_OF_EACH
    everything = {("clicks",): 30 * sum(range(1, 41))}
    assert sums(found["series"]) == everything
    assert sums(found["campaigns"]) == everything
    assert sum(line.get("number", 1) for line in found["campaigns"]) == 40 * 30


# --- Corrections and dead letters


def test_a_correction_of_a_conversion_says_what_changed_and_names_no_user() -> None:
    state = empty_state(1_000)
    judge(state, judged("event-1"))
    judge(state, judged("event-2", "unattributed", campaign_id=None, touch_type=None, touch_time=None, ad_id=None))
    judge(state, judged("event-1", "retracted", value=0.0, revision=2), T0 + 1)
    judge(state, judged("event-2", revision=2), T0 + 2)
    judge(state, judged("event-3", revision=5), T0 + 3)  # what it was before is not known
    judge(state, judged("event-4"), T0 + 4)  # no correction
    found = news_snapshot(state.news, state.figures)
    told = [(line["at_ms"] - T0, line["changes"]) for line in found["conversions"]]
    assert told == [
        (3, None),
        (2, [["status", "unattributed", "counted"], ["campaign", "", "spring"], ["ad", "", "a1"], ["touch", "", "click"], ["touch_time", None, T0 - 1000]]),
        (1, [["status", "counted", "retracted"], ["value", 99.5, 0.0]]),
    ]  # fmt: skip
    assert found["corrected"]["hour"] == {"conversions": 3}
    everything = json.dumps(found) + repr(state.news.judged)
    assert not any(secret in everything for secret in ("user-7f3", "order-12", "event-1", "event-3"))


def test_a_deleted_row_is_told_as_withdrawn() -> None:
    state = empty_state(1_000)
    row = judged("e1", "unattributed", platform="")
    judge(state, row)
    key = rows.attributed_key("shop", "user-7f3", "", "purchase", "e1")
    fold_record(state, CONVERSIONS, key, None, T0 + 5)
    (line,) = news_snapshot(state.news, state.figures)["conversions"]
    assert (line["status"], line["changes"]) == ("withdrawn", [["status", "unattributed", "withdrawn"]])


def test_a_count_is_corrected_once_it_was_final_and_not_before() -> None:
    state = empty_state(1_000)
    put(state, count_row(clicks=3))
    put(state, count_row(clicks=4, revision=2))
    put(state, count_row(clicks=4, revision=3, final=True))  # its window ends
    assert news_snapshot(state.news, state.figures)["counts"] == []
    put(state, count_row(clicks=4, revision=4, final=True))  # the same again
    put(state, count_row(clicks=6, revision=5, final=True))
    put(state, count_row(platform="tiktok", clicks=1, final=True))  # a row that came late
    late, changed = news_snapshot(state.news, state.figures)["counts"]
    assert (changed["revision"], changed["changes"]) == (5, [["clicks", 4, 6]])
    assert (late["platform"], late["changes"]) == ("tiktok", [["clicks", 0, 1]])


def test_final_rows_met_in_the_middle_of_the_log_are_no_corrections() -> None:
    state = empty_state(1_000)
    put(state, count_row(clicks=6, revision=5, final=True))
    assert news_snapshot(state.news, state.figures)["counts"] == []


def test_corrections_and_what_they_are_compared_with_are_bounded() -> None:
    state = empty_state(100)
    for number in range(500):
        judge(state, judged(f"e{number}", revision=2))
    assert len(news_snapshot(state.news, state.figures)["conversions"]) == NEWEST_SHOWN
    assert len(state.news.judged) == 100


def test_dead_letters_are_counted_by_reason_and_field_for_an_hour_and_a_day() -> None:
    state = empty_state(1_000)
    refuse(state, "too_old", "event_time", T0)
    refuse(state, "invalid_json", at_ms=T0 + 2 * HOUR_MS)
    refuse(state, "duplicate_key", "anything an outsider wrote", T0 + 2 * HOUR_MS)
    refuse(state, "of_a_newer_release", at_ms=T0 + 2 * HOUR_MS)
    lines = {(line["reason"], line["field"]): line for line in news_snapshot(state.news, state.figures)["refused"]}
    assert set(lines) == {("too_old", "event_time"), ("invalid_json", ""), ("duplicate_key", ""), ("other", "")}
    assert (lines["too_old", "event_time"]["hour"], lines["too_old", "event_time"]["day"]) == (0, 1)
    assert (lines["invalid_json", ""]["hour"], lines["invalid_json", ""]["at_ms"]) == (1, T0 + 2 * HOUR_MS)
    refuse(state, "invalid_json", at_ms=T0 + 27 * HOUR_MS)
    (line,) = news_snapshot(state.news, state.figures)["refused"]
    assert line["day"] == 1


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b'{"window_start": "x"}', b"[]"])
def test_what_is_no_row_is_left_out_and_counted(value: bytes) -> None:
    state = empty_state(1_000)
    for kind in (COUNTS, CONVERSIONS, LETTERS):
        fold_record(state, kind, b"[]", value, T0)
    fold_record(state, COUNTS, b"no JSON", None, T0)
    assert state.unreadable == 4


def test_kafka_is_silent_after_five_seconds() -> None:
    pulse = Pulse(answered_ms=T0)
    assert not pulse.is_silent(T0 + 5_000)
    assert pulse.is_silent(T0 + 5_001)


# --- What browsers get


async def take(stream: AsyncIterator[bytes]) -> list[str]:
    """The names of the next parts."""
    chunk = await asyncio.wait_for(anext(stream), 1)
    return re.findall(r"event: (\w+)", chunk.decode())


def test_a_browser_gets_the_newest_parts_and_then_only_what_changed() -> None:
    async def story() -> None:
        broadcast = Broadcast()
        broadcast.publish({"hour": b"1", "day": b"1", "news": b"1"})
        stream = broadcast.stream(("hour", "news"))
        assert await take(stream) == ["hour", "news"]
        broadcast.publish({"hour": b"1", "news": b"2"})
        assert await take(stream) == ["news"]
        for number in range(1_000):  # while a slow browser takes nothing, nothing is queued for it
            broadcast.publish({"hour": b"%d" % number})
        assert b"999" in await asyncio.wait_for(anext(stream), 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        assert broadcast.listeners == 0  # the cancelled one has left

    asyncio.run(story())


def test_browsers_share_one_serialised_part_and_closing_ends_all_streams() -> None:
    async def story() -> None:
        broadcast = Broadcast()
        broadcast.publish({"hour": b"1"})
        streams = [broadcast.stream(("hour",)) for _ in range(50)]
        first = [await anext(stream) for stream in streams]
        assert len(set(first)) == 1
        assert broadcast.listeners == 50
        broadcast.close()
        for stream in streams:
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert broadcast.listeners == 0

    asyncio.run(story())


@asynccontextmanager
async def _nothing(_: Starlette) -> AsyncIterator[None]:
    yield


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]


def ask(path: str, host: str = "localhost", listeners: int = 0, **headers: str) -> Answer:
    """One request to the application itself, without a server."""

    async def call() -> Answer:
        broadcast = Broadcast()
        broadcast.listeners = listeners
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        given = {"host": f"{host}:8420"} | {name.replace("_", "-"): value for name, value in headers.items()}
        raw = [(name.encode(), value.encode()) for name, value in given.items()]
        scope = {"type": "http", "method": "GET", "path": path, "headers": raw, "query_string": b""}
        await site(broadcast, ["localhost"], _nothing)(scope, receive, send)
        return Answer(sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]})

    return asyncio.run(call())


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/icon.svg", "/live", "/nowhere"])
def test_every_answer_forbids_frames_foreign_content_and_inline_script(path: str) -> None:
    answer = ask(path)
    assert answer.status == (404 if path == "/nowhere" else 200)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_another_host_name_is_refused() -> None:
    """Else a page of somebody else's could point its own name here and read what stands on it."""
    answer = ask("/", host="evil.example")
    assert answer.status == 400
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_one_browser_too_many_is_told_to_come_back() -> None:
    answer = ask("/events/hour", listeners=MOST_BROWSERS)
    assert answer.status == 503
    assert answer.headers["retry-after"]


def test_a_file_that_has_not_changed_is_not_sent_again() -> None:
    first = ask("/page.js")
    assert ask("/page.js", if_none_match=first.headers["etag"]).status == 304


def test_the_page_needs_nothing_from_elsewhere_and_has_no_inline_script_or_style() -> None:
    names = {path.name for path in FILES.iterdir()}
    for path in FILES.iterdir():
        text = path.read_text()
        foreign = [url for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text) if "www.w3.org" not in url]
        assert not foreign, path.name
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", text)
            assert set(re.findall(r'(?:href|src)="/([\w.]+)"', text)) <= names
        if path.suffix == ".js":
            assert "innerHTML" not in text
            assert set(re.findall(r'from "\./([\w.]+)"', text)) <= names


def test_every_reason_and_status_has_words() -> None:
    text = (FILES / "words.js").read_text()
    assert [name for name in (*ALL_REASONS, *STATUSES) if not re.search(rf"^  {name}: ", text, re.MULTILINE)] == []


# --- Contrast


def tones(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", text))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_bars_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    light, dark = (FILES / "page.css").read_text().split("@media (prefers-color-scheme: dark)", 1)
    colours = tones(light) if scheme == "light" else tones(light) | tones(dark.split("\n}\n", 1)[0])
    for ground in ("card", "ground", "soft"):
        for text in ("text", "quiet", "accent"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for text, ground in (
        ("bad", "bad-soft"),
        ("warn", "warn-soft"),
        ("text", "calm-soft"),
        ("good", "card"),
        ("bad", "card"),
    ):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    bars = {name: contrast(colour, colours["card"]) for name, colour in colours.items() if name.startswith("tone-")}
    assert len(bars) == 9
    assert min(bars.values()) >= 3, bars
