"""What a report makes of the output topics, which are lists here; tests/integration/test_offline.py has real ones."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from app.contract import rows
from app.contract.events import Rejection
from app.importer.evaluate import Row
from app.importer.prepare import Outcome, Prepared
from app.offline import verdicts as room
from app.offline.book import Book
from app.offline.codes import platform_code
from app.offline.raw import RawTouch
from app.offline.verdicts import read_verdicts
from app.policy.load import load_policy
from app.settings import Settings

DAY_MS = 86_400_000
AT_MS = 1_795_197_600_000
POLICY = load_policy("deploy/policy.yaml")[0]


def conversion(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "event_id": f"c-{name}", "event_type": "conversion", "event_time": AT_MS, "advertiser_id": "shop",
        "user_id": name, "platform": "google_ads", "conversion_name": "purchase", "order_id": f"o-{name}",
    } | fields  # fmt: skip


def adjustment(name: str, kind: str = "retract", **fields: Any) -> dict[str, Any]:
    return {
        "event_id": f"a-{name}", "event_type": "adjustment", "event_time": AT_MS, "advertiser_id": "shop",
        "user_id": name, "adjustment": kind, "order_id": f"o-{name}",
    } | fields  # fmt: skip


def row(name: str, status: str, platform: str = "google_ads", **fields: Any) -> tuple[bytes, bytes]:
    values = dict.fromkeys(rows.AttributedRow.__struct_fields__) | {
        "advertiser_id": "shop", "user_id": name, "platform": platform, "conversion_name": "purchase",
        "event_id": f"c-{name}", "event_time": AT_MS, "order_id": f"o-{name}", "status": status, "conversions": 0,
        "value": 10.0, "action_class": "macro", "intent": "hard", "outcome": "revenue", "method": "click",
        "policy_version": 1, "revision": 1,
    }  # fmt: skip
    found = rows.AttributedRow(**values | fields)
    key = rows.attributed_key(found.advertiser_id, found.user_id, platform, found.conversion_name, found.event_id)
    return key, rows.encode(found)


def letter(event: dict[str, Any], reason: str) -> Any:
    content = rows.dead_letter(
        Rejection(reason, "", "why"), "ads.events", 0, 7, event["event_time"], b"key", orjson.dumps(event)
    )
    return SimpleNamespace(content=content)


Judge = Callable[..., dict[str, tuple[str, str, str]]]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """(status, reason, detail) of each event by its id, by what lies in the topics."""

    def judged(
        events: list[dict[str, Any]],
        found: list[tuple[bytes, bytes | None]] = (),  # type: ignore[assignment]
        letters: list[Any] = (),  # type: ignore[assignment]
        touches: list[RawTouch] = (),  # type: ignore[assignment]
    ) -> dict[str, tuple[str, str, str]]:
        messages = [SimpleNamespace(key=lambda key=key: key, value=lambda value=value: value) for key, value in found]
        monkeypatch.setattr(room, "KafkaClients", lambda _: None)
        monkeypatch.setattr(room, "committed_spans", lambda *_: None)
        monkeypatch.setattr(room, "read_committed", lambda *_: iter(messages))
        monkeypatch.setattr(room, "LetterLog", lambda *_: SimpleNamespace(read=lambda: iter(letters)))
        monkeypatch.setattr(room, "raw_touches", lambda *_: iter(touches))
        with Book() as book:
            for line, event in enumerate(events, 2):
                record = Prepared(event["event_time"], b"", orjson.dumps(event))
                book.note(Row({}, line), Outcome(((event["event_type"], record),)))
            book.close_rows(True)
            read_verdicts(Settings(), POLICY, book)
            return {event_id: (status, reason, detail) for _, _, event_id, _, status, reason, _, detail in book.lines()}

    return judged


@pytest.mark.parametrize(
    ("status", "reason"),
    [("counted", ""), ("uncounted", "one_per_click"), ("retracted", "adjusted"), ("unattributed", "click_not_found")],
)
def test_a_row_tells_its_conversions_status(judge: Judge, status: str, reason: str) -> None:
    assert judge([conversion("ann")], [row("ann", status)]) == {"c-ann": (status, reason, "")}


def test_the_latest_row_holds_and_a_deleted_one_does_not(judge: Judge) -> None:
    key, value = row("ann", "counted")
    assert judge([conversion("ann")], [row("ann", "unattributed"), (key, value)])["c-ann"][0] == "counted"
    assert judge([conversion("ann")], [(key, value), (key, None)])["c-ann"][:2] == ("unknown", "not_seen")


def test_of_several_platforms_one_that_counts_it_is_enough(judge: Judge) -> None:
    event = conversion("ann", platform=None)
    found = judge([event], [row("ann", "counted", "meta"), row("ann", "unattributed", "google_ads")])
    assert found["c-ann"] == ("counted", "", "google_ads unattributed, meta counted")


def test_another_advertisers_users_or_actions_rows_are_no_answer(judge: Judge) -> None:
    others = [
        row("ann", "counted", advertiser_id="other"),
        row("bob", "counted", event_id="c-ann"),
        row("ann", "counted", conversion_name="signup"),
    ]
    assert judge([conversion("ann")], others)["c-ann"][:2] == ("unknown", "not_seen")


def test_a_conversion_that_names_no_user_takes_the_row_of_whoever_it_was(judge: Judge) -> None:
    event = conversion("ann", user_id=None, click_id="G-1")
    assert judge([event], [row("found", "counted", event_id="c-ann")])["c-ann"][0] == "counted"


def test_a_duplicate_says_of_what_it_is_one(judge: Judge) -> None:
    events = [conversion("ann"), conversion("bob", user_id="ann", order_id="o-ann"), conversion("eve")]
    found = judge(
        events,
        [
            row("ann", "counted"),
            row("ann", "duplicate", event_id="c-bob", duplicate_of="c-ann"),
            row("eve", "duplicate", duplicate_of="c-long-ago"),
        ],
    )
    assert found["c-bob"] == ("duplicate", "repeated_order_in_file", "line 2")
    assert found["c-eve"] == ("duplicate", "duplicate_order", "of the conversion c-long-ago")


def test_a_dead_letter_tells_the_reason(judge: Judge) -> None:
    event = conversion("ann")
    assert judge([event], [], [letter(event, "beyond_correction_horizon")])["c-ann"] == (
        "refused",
        "beyond_correction_horizon",
        "why",
    )
    for other in (event | {"user_id": "bob"}, event | {"event_id": 7}, event | {"event_time": AT_MS - 1}):
        assert judge([event], [], [letter(other, "too_old")])["c-ann"][0] == "unknown"


def test_what_was_refused_once_and_counts_since_is_counted(judge: Judge) -> None:
    event = conversion("ann", user_id=None, click_id="G-1")
    found = judge([event], [row("ann", "counted")], [letter(event, "click_not_found")])
    assert found["c-ann"] == ("counted", "", "")


def test_a_row_without_a_user_has_the_letter_of_the_user_that_its_click_had(judge: Judge) -> None:
    event = conversion("ann", user_id=None, click_id="G-1")
    found = judge([event], [], [letter(event | {"user_id": "ann"}, "beyond_correction_horizon")])
    assert found["c-ann"][:2] == ("refused", "beyond_correction_horizon")


def test_noise_has_no_row_and_is_told_from_what_was_not_seen(judge: Judge) -> None:
    event = conversion("ann", conversion_name="no action")
    assert judge([event])["c-ann"] == ("noise", "unknown_action", "no action")


def test_an_adjustment_is_judged_by_its_orders_row(judge: Judge) -> None:
    events = [
        adjustment("ann"),
        adjustment("bob", "restate", value=4),
        adjustment("eve", "restate", value=4),
        adjustment("dan"),
        adjustment("kim", order_id=None, conversion_event_id="c-kim"),
        adjustment("tom"),
    ]
    found = judge(
        events,
        [
            row("ann", "retracted", value=0.0),
            row("bob", "counted", value=4.0),
            row("eve", "counted", value=5.0),
            row("kim", "retracted", value=0.0),
            row("tom", "retracted", value=0.0),
        ],
        [letter(events[-1], "adjustment_twice")],
    )
    assert {name: (status, reason) for name, (status, reason, _) in found.items()} == {
        "a-ann": ("applied", ""),
        "a-bob": ("applied", ""),
        "a-eve": ("unknown", "not_seen"),
        "a-dan": ("unknown", "conversion_not_found"),
        "a-kim": ("applied", ""),
        "a-tom": ("refused", "adjustment_twice"),
    }


def test_an_adjustment_is_judged_by_the_order_of_its_own_action(judge: Judge) -> None:
    events = [adjustment("ann", conversion_name="signup"), adjustment("bob", conversion_name="purchase")]
    found = judge(events, [row("ann", "retracted", value=0.0), row("bob", "retracted", value=0.0)])
    assert [found[name][:2] for name in ("a-ann", "a-bob")] == [("unknown", "conversion_not_found"), ("applied", "")]


def test_a_repeated_adjustment_has_a_reason_of_its_own() -> None:
    with Book() as book:
        for line, event in enumerate([adjustment("ann"), adjustment("ann"), adjustment("bob")], 2):
            record = Prepared(AT_MS, b"", orjson.dumps(event))
            book.note(Row({}, line), Outcome((("adjustment", record),)))
        book.close_rows(True)
        said = [(status, reason, detail) for _, _, _, _, status, reason, _, detail in book.lines()]
    assert said == [("sent", "", ""), ("duplicate", "repeated_adjustment_in_file", "line 2"), ("sent", "", "")]
    assert platform_code("google_ads", "repeated_adjustment_in_file") == "DUPLICATE_ADJUSTMENT_IN_REQUEST"


def test_google_has_no_word_for_a_second_restatement() -> None:
    assert platform_code("google_ads", "adjustment_twice") == ""


def click(user: str, time_ms: int, click_id: str | None = None, **fields: Any) -> RawTouch:
    values = {"event_type": "click", "advertiser_id": "shop", "platform": "google_ads"} | fields
    return RawTouch(event_id="k", event_time=time_ms, user_id=user, click_id=click_id, **values)


@pytest.mark.parametrize(
    ("touches", "reason"),
    [
        ([], "click_not_found"),
        ([click("other", AT_MS - 1, "G-1")], "click_not_credited"),
        ([click("other", AT_MS - 31 * DAY_MS, "G-1")], "expired_click"),
        ([click("other", AT_MS, "G-1")], "precedes_click"),
        ([click("other", AT_MS + 5, "G-1"), click("other", AT_MS - 40 * DAY_MS, "G-1")], "expired_click"),
        ([click("ann", AT_MS - 1, "G-2")], "click_not_found"),  # by the click id, where there is one
        ([click("other", AT_MS - 1, "G-1", platform="meta")], "click_not_found"),
        ([click("other", AT_MS - 1, "G-1", advertiser_id="a2")], "click_not_found"),
        ([click("other", AT_MS - 1, "G-1", event_type="view")], "click_not_found"),  # Google's method counts none
    ],
)
def test_the_raw_topics_tell_why_a_click_was_not_credited(judge: Judge, touches: list[RawTouch], reason: str) -> None:
    event = conversion("ann", click_id="G-1")
    assert judge([event], [row("ann", "unattributed")], touches=touches)["c-ann"][1] == reason


def test_without_a_click_id_the_users_touches_are_looked_at(judge: Judge) -> None:
    found = judge([conversion("ann")], [row("ann", "unattributed")], touches=[click("ann", AT_MS + 2_000)])
    assert found["c-ann"] == ("unattributed", "precedes_click", "the click is 2 s later")


def test_a_touch_is_sent_and_has_no_row(judge: Judge) -> None:
    assert judge([conversion("ann") | {"event_type": "click"}])["c-ann"] == ("sent", "", "")
