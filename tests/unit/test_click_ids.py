"""The book of click ids: a function of its rows in their order, however they are cut; and the contract of events without a user."""

import json
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.columns.table import StateDamaged
from app.contract import click_ids
from app.contract.click_ids import ClickRow, UserlessRow
from app.contract.events import (
    MAX_EVENT_BYTES,
    Accepted,
    Event,
    Rejection,
    decode_event,
    judge_bytes,
    judge_event,
    key_of,
)
from app.matching.book import Book, Fate, Step, digest_of
from app.policy.load import PolicyError, parse_policy
from app.policy.model import DAY_MS, ClickIds
from tests.memory.redis import Memory, MemoryStore

HOUR_MS = 3_600_000
RULES = ClickIds(park_for_ms=7 * HOUR_MS, known_for_ms=20 * HOUR_MS)
PLATFORMS = {"meta": 0}
EVENT = {"event_id": "c1", "event_type": "conversion", "event_time": 1_000, "advertiser_id": "shop", "click_id": "k1"}
EVENT |= {"conversion_name": "purchase"}


def row_of(chance: Random, now_ms: int) -> ClickRow | UserlessRow:
    """A click or an event without a user, of about now."""
    time_ms = max(now_ms - chance.choice([0, 0, 1, HOUR_MS, 6 * HOUR_MS, 7 * HOUR_MS, 19 * HOUR_MS, 20 * HOUR_MS]), 0)
    if chance.randrange(2):
        return ClickRow(chance.choice(["meta", "tiktok"]), chance.choice(["ann", "bob"]), time_ms, "e")
    return UserlessRow(chance.choice(["", "", "meta", "nowhere"]), time_ms, "ads.events", 0, now_ms, 0, None, "{}")


def play(
    steps: list[Step], cuts: list[int], reopened: bool
) -> tuple[list[tuple[int, str | None]], dict[bytes, Any], Any]:
    """The fates of the rows in batches that end at `cuts`, what Redis holds then, and the book. `reopened`: by a new owner for each batch."""
    memory = Memory()
    store = MemoryStore(memory)
    book = Book("m0", RULES)
    fates: list[tuple[int, str | None]] = []
    for begin, end in zip([0, *cuts], [*cuts, len(steps)], strict=True):
        batch = steps[begin:end]
        if not batch:
            continue
        found = book.settle(batch, store.run(book.question(batch)))
        assert len(book.read(found, store.run)) == len(found)
        store.run(book.writes(found))
        fates += [(fate.offset, fate.user_id) for fate in found]
        if reopened:
            view = book.stream_ms, dict(book.generations), dict(book.days)
            book = Book("m0", RULES)
            book.stream_ms = view[0]
            book.load(*view[1:], store.run)
    return fates, memory.values, book


@given(st.integers(0, 2**32), st.lists(st.integers(0, 40), max_size=6), st.booleans())
def test_fates_and_state_are_the_same_however_the_rows_are_cut(seed: int, cuts: list[int], reopened: bool) -> None:
    chance = Random(seed)
    steps, now_ms = [], 100 * HOUR_MS
    for offset in range(40):
        now_ms += chance.choice([0, 0, 0, HOUR_MS, 5 * HOUR_MS])
        row = row_of(chance, now_ms)
        steps.append(Step(offset * 2, digest_of(chance.choice([b"k1", b"k2", b"k3"])), row, click_ids.encode(row)))
    whole, whole_state, whole_book = play(steps, [], False)
    fates, state, book = play(steps, sorted(cuts), reopened)
    assert fates == whole
    assert (book.stream_ms, book.days, sorted(book.waiting)) == (
        whole_book.stream_ms,
        whole_book.days,
        sorted(whole_book.waiting),
    )
    # a generation ends with a batch, so a cut may free one sooner; what is known is the same
    assert {key: value for key, value in state.items() if b":waiting:" in key} == {
        key: value for key, value in whole_state.items() if b":waiting:" in key
    }
    assert sum(map(len, (value for key, value in state.items() if b":owners:" in key))) == book.generations.total()


def clicks_of(users: list[str], times_h: list[int]) -> list[Step]:
    rows = [ClickRow("meta", user, at * HOUR_MS, "e") for user, at in zip(users, times_h, strict=True)]
    return [Step(offset, digest_of(b"k1"), row, click_ids.encode(row)) for offset, row in enumerate(rows)]


def asked(offset: int, at_h: int, platform: str = "meta") -> Step:
    row = UserlessRow(platform, at_h * HOUR_MS, "ads.events", 0, 0, 0, None, "{}")
    return Step(offset, digest_of(b"k1"), row, click_ids.encode(row))


def test_a_click_id_is_of_its_first_click_that_is_known() -> None:
    clicks = clicks_of(["ann", "bob", "ann", "cat", "ann"], [0, 5, 10, 7, 30])
    for at_h, user in ((19, "ann"), (20, "bob"), (24, "bob"), (25, "ann")):
        fates, _, _ = play([*clicks[:4], asked(9, at_h)], [4], True)
        assert fates == [(9, user)], at_h
    fates, _, _ = play([*clicks, asked(9, 30)], [], False)
    assert fates == [(9, "ann")]
    fates, _, _ = play([*clicks[:4], asked(9, 30)], [], False)
    assert fates == [], "it waits"


@given(st.integers(0, 2**32))
def test_whose_a_click_id_is_hangs_on_nothing_older_than_known_for(seed: int) -> None:
    chance = Random(seed)
    now_h, users, times_h = 100, [], []
    for _ in range(30):
        now_h += chance.choice([0, 0, 1, 4, 9])
        users.append(chance.choice("abc"))
        times_h.append(now_h - chance.choice([0, 0, 0, 1, 5, 19, 25]))
    steps = clicks_of(users, times_h)
    newest_h = max(times_h)
    left = [step for step in steps if step.row.time_ms > (newest_h - 20) * HOUR_MS]
    kept = [step for step in steps if step.offset >= left[0].offset]
    ask = asked(99, newest_h)
    assert play([*steps, ask], [], False)[0] == play([*kept, ask], [], False)[0] == [(99, left[0].row.user_id)]


def test_of_many_users_of_one_click_id_the_last_one_gives_way() -> None:
    clicks = clicks_of([f"u{number}" for number in range(40)], [number // 3 for number in range(40)])
    clicks = [step._replace(row=ClickRow("meta", step.row.user_id, step.offset, "e")) for step in clicks]
    _, state, _ = play(clicks, [], False)
    ((packed,),) = [list(values.values()) for key, values in state.items() if b":owners:" in key]
    assert [owner[1] for owner in msgspec.msgpack.decode(packed)] == [*(f"u{number}" for number in range(15)), "u39"]


def test_what_expired_leaves_redis() -> None:
    steps = []
    for number in range(50):
        row = ClickRow("meta", "ann", number * HOUR_MS, "e")
        steps.append(Step(number, digest_of(b"%d" % number), row, click_ids.encode(row)))
    _, state, book = play(steps, list(range(1, 50)), True)
    assert 20 <= book.generations.total() <= 25, "20 h, and what is left of the oldest generation"
    assert len(state) == len(book.generations) <= 5


def test_a_book_that_lacks_what_was_written_is_damaged() -> None:
    store = MemoryStore(Memory())
    with pytest.raises(StateDamaged, match="click ids"):
        Book("m0", RULES).load({3: 1}, {}, store.run)
    with pytest.raises(StateDamaged, match="waiting"):
        Book("m0", RULES).load({}, {3: 2}, store.run)
    with pytest.raises(StateDamaged, match="is gone"):
        Book("m0", RULES).read([Fate(7, 3, "ann", None)], store.run)


# --- The contract of events without a user


def judged(event: dict[str, Any], may: bool = True, key: bytes | None = b"any") -> Accepted | Rejection:
    return decode_event(json.dumps(event).encode(), key, 1_000, PLATFORMS, DAY_MS, 0, may)


@pytest.mark.parametrize("user", [{}, {"user_id": None}], ids=["absent", "null"])
def test_a_conversion_may_name_a_click_instead_of_its_user(user: dict[str, Any]) -> None:
    found = judged(EVENT | user)
    assert isinstance(found, Accepted)
    assert found.event.user_id is None
    assert key_of(found.event) == b"k1"
    refused = judged(EVENT | user, may=False)
    assert isinstance(refused, Rejection)
    assert refused.field == "user_id"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"click_id": ""}, "user_id"),
        ({"click_id": None}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": 5}, "user_id"),
        ({"event_type": "visit", "page": "/"}, "user_id"),
        ({"event_type": "click", "platform": "meta", "campaign_id": "c"}, "user_id"),
        ({"event_type": "forget"}, "user_id"),
        ({"currency": "euro"}, "currency"),
        ({"platform": "nowhere"}, "platform"),
        ({"event_type": "adjustment", "adjustment": "retract"}, "order_id"),
        ({"click_id": "k" * 513}, "click_id"),
        ({"conversion_name": None}, "conversion_name"),
        ({"event_time": 2_000}, "event_time"),
    ],
)
def test_everything_else_of_it_is_judged_as_ever(changes: dict[str, Any], field: str) -> None:
    found = judged(EVENT | changes)
    assert isinstance(found, Rejection)
    assert found.field == field


def test_an_event_with_a_user_is_judged_alike_whether_clicks_are_matched_or_not() -> None:
    assert judged(EVENT | {"user_id": "ann"}, True, b"ann") == judged(EVENT | {"user_id": "ann"}, False, b"ann")
    assert judged(EVENT | {"user_id": "ann"}, True, b"bob") == judged(EVENT | {"user_id": "ann"}, False, b"bob")


def test_a_key_twice_is_told() -> None:
    raw = json.dumps(EVENT).encode().replace(b'"k1"', b'"k1", "click_id": "k2"')
    found = judge_event(raw, True)
    assert isinstance(found, Rejection)
    assert (found.reason, found.field) == ("duplicate_key", "click_id")


def test_with_its_user_an_event_says_the_same_in_the_contracts_fields_and_is_no_larger_than_an_event_may_be() -> None:
    event = EVENT | {"value": 12.345678, "order_id": "o-1", "page": "\u00fc\n" * 900, "user_id": None}
    padding = {"unknown": ["x" * 1_000, 1e300, {"n": 2}], "more": "x" * (MAX_EVENT_BYTES - 10_000)}
    found = judge_bytes(click_ids.with_user(json.dumps(event | padding), 'a"nn'))
    assert isinstance(found, Event)
    assert found == judge_bytes(json.dumps(event | {"user_id": 'a"nn'}).encode())


def test_numbers_beyond_all_bounds_in_fields_that_nobody_knows_do_no_harm() -> None:
    raw = json.dumps(EVENT)[:-1] + ', "unknown": 1e999, "huge": ' + "9" * 400 + "}"
    assert not isinstance(judge_event(raw.encode(), True), Rejection)
    assert b"unknown" not in click_ids.with_user(raw, "ann")


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_row_comes_back_as_it_was(platform: str, value: str) -> None:
    for row in (
        ClickRow(platform, value, 7, "e"),
        UserlessRow(platform, 7, "t", 1, 2, 3, b"\xff\x00", value),
        UserlessRow(platform, 7, "t", 1, 2, 3, None, value),
    ):
        assert click_ids.decode(click_ids.encode(row)) == row


# --- The policy


def policy_of(**click_ids_: str) -> Any:
    return parse_policy(
        {
            "correction_horizon": "8d",
            "platforms": {"meta": {"method": "click", "windows": {"click": "30d"}}},
            "actions": {"purchase": {"class": "macro", "intent": "hard", "outcome": "revenue", "count": "every"}},
            "click_ids": click_ids_,
        }
    )[0]


def test_the_policy_says_how_long() -> None:
    assert policy_of().bounds.click_ids == ClickIds(7 * DAY_MS, 90 * DAY_MS)
    assert policy_of(park_for="2d", known_for="32d").bounds.click_ids == ClickIds(2 * DAY_MS, 32 * DAY_MS)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"park_for": "0d"}, "park_for must be above 0"),
        ({"park_for": "8d"}, r"correction_horizon must be at least 8/7 of it \(9.14d\), or park_for at most .* \(7d\)"),
        ({"known_for": "36d"}, r"known_for must be at least the longest click window and park_for \(37d\)"),
        ({"park_fro": "2d"}, "click_ids"),
        ({"park_for": "soon"}, "click_ids/park_for"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, str], why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        policy_of(**values)
