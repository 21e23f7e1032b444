"""What an export writes, run after run: conversions once, then what has changed of them. The topics are lists here."""

import csv
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.contract import rows
from app.offline import export as room
from app.offline.export import Exported, Wish, export
from app.offline.raw import RawTouch
from app.offline.refusal import OfflineError
from app.policy.load import load_policy
from app.settings import Settings

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOW_MS = 1_795_200_000_000
POLICY = load_policy("deploy/policy.yaml")[0]


def row(name: str, status: str = "counted", ago_ms: int = 2 * DAY_MS, **fields: Any) -> rows.AttributedRow:
    """A conversion of user `name`, an hour after its click."""
    happened_ms = NOW_MS - ago_ms
    values = dict.fromkeys(rows.AttributedRow.__struct_fields__) | {
        "advertiser_id": "shop",
        "user_id": name,
        "platform": "google_ads",
        "conversion_name": "purchase",
        "event_id": f"c-{name}",
        "event_time": happened_ms,
        "order_id": f"o-{name}",
        "status": status,
        "conversions": int(status == "counted"),
        "value": 10.0,
        "currency": "EUR",
        "touch_type": "click",
        "touch_event_id": f"k-{name}",
        "touch_time": happened_ms - HOUR_MS,
        "action_class": "macro",
        "intent": "hard",
        "outcome": "revenue",
        "method": "click",
        "policy_version": 1,
        "revision": 1,
    }
    return rows.AttributedRow(**values | fields)


class Topics:
    """The output topic and the raw one. `touches` are made of the rows, unless they are given."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.touches: list[RawTouch] = []

    def write(self, found: rows.AttributedRow, written_ms: int = NOW_MS, deleted: bool = False) -> None:
        key = rows.attributed_key(
            found.advertiser_id, found.user_id, found.platform, found.conversion_name, found.event_id
        )
        value = None if deleted else rows.encode(found)
        self.messages.append(SimpleNamespace(key=lambda: key, value=lambda: value, timestamp=lambda: (1, written_ms)))
        if not deleted and found.touch_event_id:
            self.touch(found, f"G-{found.user_id}")

    def touch(self, found: rows.AttributedRow, click_id: str | None, **fields: Any) -> None:
        said = (found.touch_event_id, found.touch_type, found.touch_time, found.advertiser_id, found.user_id)
        touch = RawTouch(*said, found.platform, click_id)  # type: ignore[arg-type]
        self.touches.append(RawTouch(**{name: getattr(touch, name) for name in touch.__struct_fields__} | fields))


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Topics:
    found = Topics()
    monkeypatch.setattr(room, "committed_spans", lambda *_: None)
    monkeypatch.setattr(room, "KafkaClients", lambda _: None)
    monkeypatch.setattr(room, "read_committed", lambda *_: iter(found.messages))
    monkeypatch.setattr(room, "raw_touches", lambda *_: iter(found.touches))
    return found


Run = Callable[..., Exported]


@pytest.fixture
def run(tmp_path: Path, topics: Topics) -> Run:
    def one(now_ms: int = NOW_MS, **wished: Any) -> Exported:
        wish = Wish(
            "google_ads", "shop", now_ms - 90 * DAY_MS, now_ms, tmp_path, tmp_path / "state", {"purchase": "Sale"}
        )
        return export(Settings(), POLICY, wish._replace(**wished), now_ms)

    return one


def lines(done: Exported, kind: str) -> list[list[str]]:
    found = [path for path in done.files if kind in path.name]
    return [] if not found else list(csv.reader(found[0].read_text().splitlines()))[2:]


def test_a_conversion_is_written_once_and_its_changes_once_each(topics: Topics, run: Run) -> None:
    for name in ("ann", "bob", "eve"):
        topics.write(row(name))
    first = run()
    assert [line[0] for line in lines(first, "conversions")] == ["G-ann", "G-bob", "G-eve"]
    assert lines(first, "conversions")[0][1:] == ["Sale", "2026-11-18 18:40:00", "10", "EUR", "o-ann"]
    assert (run().files, run().conversions) == ([], 0)

    topics.write(row("ann", "retracted", value=0.0), NOW_MS + 5_000)
    topics.write(row("bob", value=4.5), NOW_MS + 6_000)
    topics.write(row("eve", revision=2), NOW_MS + 7_000)  # another revision, nothing that the platform would hear of
    second = run(NOW_MS + HOUR_MS)
    assert lines(second, "adjustments") == [
        ["o-ann", "Sale", "2026-11-20 18:40:05", "RETRACT", "", ""],
        ["o-bob", "Sale", "2026-11-20 18:40:06", "RESTATE", "4.5", "EUR"],
    ]
    assert (second.conversions, run(NOW_MS + HOUR_MS).adjustments) == (0, 0)

    topics.write(row("bob", value=5.0), NOW_MS + 8_000)
    topics.write(row("ann", value=10.0), NOW_MS + 9_000)
    third = run(NOW_MS + 2 * HOUR_MS)
    assert [line[3:5] for line in lines(third, "adjustments")] == [["RESTATE", "5"]]
    assert third.skipped == {"counted_again": 1}


@pytest.mark.parametrize("status", ["retracted", "unattributed", "uncounted", "duplicate"])
def test_whatever_takes_a_count_away_is_a_retraction(topics: Topics, run: Run, status: str) -> None:
    topics.write(row("ann"))
    run()
    topics.write(row("ann", status))
    assert [line[3] for line in lines(run(), "adjustments")] == ["RETRACT"]


def crm_first(topics: Topics, **fields: Any) -> rows.AttributedRow:
    """An earlier report of ann's exported order comes: it is the order now, and what was exported a duplicate of it."""
    first = row("ann", event_id="c-crm", event_time=row("ann").event_time - 5_000, **fields)  # type: ignore[operator]
    topics.write(first, NOW_MS + 5_000)
    topics.write(row("ann", "duplicate", value=0.0, duplicate_of="c-crm"), NOW_MS + 5_000)
    return first


@pytest.mark.parametrize("from_ms", [NOW_MS - 90 * DAY_MS, row("ann").event_time - 1_000])
def test_an_order_that_an_earlier_report_takes_over_is_the_same_order_there(
    topics: Topics, run: Run, from_ms: int
) -> None:
    topics.write(row("ann"))
    run()
    first = crm_first(topics)
    assert run(NOW_MS + HOUR_MS, from_ms=from_ms).files == []
    topics.write(
        rows.AttributedRow(**{name: getattr(first, name) for name in first.__struct_fields__} | {"value": 4.0})
    )
    assert [line[0] + line[3] for line in lines(run(NOW_MS + 2 * HOUR_MS), "adjustments")] == ["o-annRESTATE"]
    topics.write(row("ann", "retracted", event_id="c-crm", value=0.0))
    assert [line[0] + line[3] for line in lines(run(NOW_MS + 3 * HOUR_MS), "adjustments")] == ["o-annRETRACT"]


def test_an_order_that_is_taken_over_with_another_value_is_restated(topics: Topics, run: Run) -> None:
    topics.write(row("ann"))
    run()
    crm_first(topics, value=12.0)
    done = run(NOW_MS + HOUR_MS)
    assert ([line[3:] for line in lines(done, "adjustments")], done.conversions) == ([["RESTATE", "12", "EUR"]], 0)


def test_an_order_that_is_taken_over_by_a_report_that_does_not_count_is_retracted(topics: Topics, run: Run) -> None:
    topics.write(row("ann"))
    run()
    crm_first(topics, status="unattributed")
    assert [line[3] for line in lines(run(NOW_MS + HOUR_MS), "adjustments")] == ["RETRACT"]


def test_an_adjustment_names_the_order_as_the_platform_was_told_of_it(topics: Topics, run: Run) -> None:
    topics.write(row("ann", order_id=None))
    assert [line[5] for line in lines(run(), "conversions")] == ["c-ann"]
    topics.write(row("ann", order_id="17"))  # which a later report says
    assert run(NOW_MS + HOUR_MS).files == []
    topics.write(row("ann", value=4.0, order_id="17"))
    assert lines(run(NOW_MS + 2 * HOUR_MS), "adjustments")[0][0] == "c-ann"
    topics.write(row("ann", "duplicate", value=0.0, order_id="17", duplicate_of="c-crm"))
    topics.write(row("ann", event_id="c-crm", order_id="17", value=3.0))
    assert lines(run(NOW_MS + 3 * HOUR_MS), "adjustments")[0][::3] == ["c-ann", "RESTATE"]


def test_a_state_without_order_ids_is_read_and_the_row_names_the_order(
    topics: Topics, run: Run, tmp_path: Path
) -> None:
    topics.write(row("ann"))
    run()
    with closing(sqlite3.connect(tmp_path / "state")) as db:
        db.execute("ALTER TABLE exported DROP COLUMN order_id")
    topics.write(row("ann", "retracted"))
    assert lines(run(), "adjustments")[0][::3] == ["o-ann", "RETRACT"]


def test_only_what_the_platform_counts_for_this_advertiser_is_written(topics: Topics, run: Run) -> None:
    topics.write(row("ann"))
    topics.write(row("bob", "unattributed", touch_event_id=None))
    topics.write(row("eve", advertiser_id="other"))
    topics.write(row("dan", platform="meta"))
    topics.write(row("kim", ago_ms=91 * DAY_MS))
    assert [line[5] for line in lines(run(), "conversions")] == ["o-ann"]


def test_what_cannot_be_sent_is_counted_by_why(topics: Topics, run: Run) -> None:
    topics.write(row("fresh", ago_ms=2 * HOUR_MS))
    for name, click_id in (("none", None), ("braid", "0AAAAADOnx")):
        topics.write(row(name, touch_event_id=f"other-{name}"))
        topics.touches.pop()
        topics.touch(row(name, touch_event_id=f"other-{name}"), click_id)
    topics.write(row("gone"))
    topics.touches.pop()
    done = run()
    assert done.skipped == {"too_recent": 1, "no_click_id": 1, "gbraid": 1, "touch_gone": 1}
    assert done.files == []
    # what was held back goes into a later run
    assert [line[0] for line in lines(run(NOW_MS + 6 * HOUR_MS), "conversions")] == ["G-fresh"]


def test_a_touch_is_told_by_its_user_and_time_too(topics: Topics, run: Run) -> None:
    ann = row("ann")
    topics.write(ann)
    topics.touches.clear()
    topics.touch(ann, "G-repeat", event_time=ann.touch_time + 1)  # type: ignore[operator] - a click has a time
    topics.touch(ann, "G-stranger", user_id="bob")
    topics.touch(ann, "G-right")
    assert [line[0] for line in lines(run(), "conversions")] == ["G-right"]


def test_adjustments_keep_to_the_platforms_times(topics: Topics, run: Run) -> None:
    topics.write(row("new", ago_ms=20 * HOUR_MS))
    topics.write(row("old", ago_ms=50 * DAY_MS))
    run()
    topics.write(row("new", "retracted", ago_ms=20 * HOUR_MS))
    assert run().skipped == {"adjustment_too_recent": 1}
    assert run(NOW_MS + 5 * HOUR_MS).adjustments == 1
    topics.write(row("old", "retracted", ago_ms=50 * DAY_MS))
    assert run(NOW_MS + 5 * DAY_MS).skipped == {"adjustment_too_old": 1}


def test_a_forgotten_persons_conversions_are_neither_written_nor_retracted(topics: Topics, run: Run) -> None:
    topics.write(row("ann"))
    run()
    topics.write(row("ann"), deleted=True)
    topics.write(row("bob"))
    topics.write(row("bob"), deleted=True)
    done = run()
    assert (done.files, done.skipped) == ([], {})


def test_again_takes_the_range_as_it_stands_and_leaves_the_state(topics: Topics, run: Run) -> None:
    topics.write(row("ann"))
    topics.write(row("bob", ago_ms=5 * DAY_MS))
    run()
    topics.write(row("ann", value=3.0))
    again = run(state=None, from_ms=NOW_MS - 3 * DAY_MS)
    assert [line[3:] for line in lines(again, "conversions")] == [["3", "EUR", "o-ann"]]
    assert again.adjustments == 0
    assert [line[3] for line in lines(run(), "adjustments")] == ["RESTATE"]


def test_a_run_that_fails_is_made_again_by_the_next(topics: Topics, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    topics.write(row("ann"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(room.os, "fsync", full)
        with pytest.raises(OfflineError, match=r"cannot write .*No space left on device"):
            run()
    assert run().conversions == 1


def test_meta_is_told_of_no_adjustments(topics: Topics, run: Run) -> None:
    wished = {"platform": "meta", "state": None, "data_set_id": "77"}
    topics.write(row("ann", platform="meta"))
    topics.write(row("bob", platform="meta", currency=None))
    topics.write(row("eve", platform="meta", ago_ms=8 * DAY_MS))
    done = run(**wished)
    text = done.files[0].read_text().splitlines()
    assert text[0].startswith("DATA_SET_ID,EVENT_NAME,EVENT_TIME")
    assert text[1].endswith(f"o-ann,fb.1.{row('ann').touch_time}.G-ann")
    assert done.skipped == {"no_currency": 1, "too_old": 1}


def test_another_advertisers_file_has_a_name_of_its_own(topics: Topics, run: Run, tmp_path: Path) -> None:
    topics.write(row("ann", advertiser_id="a/b"))
    (path,) = run(advertiser="a/b").files
    assert path.parent == tmp_path
    assert "a%2Fb" in path.name
