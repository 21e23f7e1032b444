"""What is said of rows, and how conversions are written for ad platforms."""

import re
import sqlite3
from pathlib import Path

import pytest

from app.contract import reasons
from app.importer import find_mapping, load_mapping
from app.importer.evaluate import Row
from app.importer.prepare import Outcome, Prepared, Refusal
from app.importer.table import Broken
from app.offline import codes
from app.offline.book import Book
from app.offline.commands import parse_actions
from app.offline.exported import open_exported
from app.offline.feeds import FEEDS, SKIPPED, Change, Sale, adjustment_cells, order_id_of
from app.offline.refusal import OfflineError
from app.offline.verdicts import _why

DAY_MS = 86_400_000
GOOGLE, META = FEEDS["google_ads"], FEEDS["meta"]
# 2026-11-20T18:00:00Z
AT_MS = 1_795_197_600_000
SALE = Sale("Purchase", "o-1", AT_MS, 99_500_000, "EUR", AT_MS - 1_000, "click", "u1")


def test_the_page_has_the_reasons_of_the_code() -> None:
    page = Path("docs/offline.md").read_text()
    assert codes.with_table(page) == page, "run python -m app.offline.codes docs/offline.md"


def test_every_reason_that_a_row_can_be_refused_for_is_explained() -> None:
    source = "".join(path.read_text() for path in Path("app/importer").glob("*.py"))
    raised = set(re.findall(r'UnmappableError\(\s*"([a-z_]+)"', source))
    broken = set(re.findall(r'Broken\([^"]*"([a-z_]+)"', source))
    by_mappings = {
        bar.reason
        for name in ("google_ads", "google_ads_adjustments", "meta")
        for bar in load_mapping(find_mapping(name)).reject
    }
    # a record of ours is JSON, an object and shallow; its key is its user
    impossible = {
        reasons.NULL_RECORD, reasons.EMPTY, reasons.INVALID_UTF8, reasons.INVALID_JSON, reasons.TOO_DEEP,
        reasons.NOT_AN_OBJECT, reasons.DUPLICATE_KEY, reasons.KEY_MISMATCH, *reasons.SCHEMA_REASONS,
    }  # fmt: skip
    known = raised | broken | by_mappings | (set(reasons.ALL_REASONS) - impossible)
    assert len(raised) >= 5
    assert len(broken) >= 3
    assert known - codes.CODES.keys() == set()


def test_a_platform_has_its_own_word_or_none() -> None:
    assert codes.platform_code("google_ads", codes.PRECEDES_CLICK) == "CONVERSION_PRECEDES_EVENT"
    assert codes.platform_code("meta", reasons.TOO_OLD).startswith("2804003")
    assert codes.platform_code(None, codes.PRECEDES_CLICK) == ""
    assert codes.platform_code("google_ads", "") == ""


def test_every_column_that_is_exported_is_read_again() -> None:
    for mapping, columns in (
        ("google_ads", (*GOOGLE.conversions, GOOGLE.user_column)),
        ("google_ads_adjustments", (*(GOOGLE.adjustments or ()), GOOGLE.user_column)),
        ("meta", (*META.conversions, META.user_column)),
    ):
        # of another currency than the conversion's an adjustment can't be; the others are Meta's own business
        unread = {"Adjusted Value Currency", "DATA_SET_ID", "ACTION_SOURCE"}
        assert set(columns) - unread <= load_mapping(find_mapping(mapping)).columns, mapping


def test_a_conversion_is_written_as_google_wants_it() -> None:
    cells = ("click", "Purchase", "2026-11-20 18:00:00", "99.5", "EUR", "o-1")
    assert GOOGLE.write(SALE, "") == cells
    assert GOOGLE.write(SALE._replace(time_ms=AT_MS + 999), "")[2] == "2026-11-20 18:00:00"
    in_its_second = SALE._replace(time_ms=AT_MS + 999, touch_ms=AT_MS + 998)
    assert GOOGLE.write(in_its_second, "")[2] == "2026-11-20 18:00:01"
    assert GOOGLE.refuse(SALE._replace(click_id="0AAAAADOof_x")) == "gbraid"


@pytest.mark.parametrize(
    ("micros", "text"), [(0, "0"), (100_000_000, "100"), (99_500_000, "99.5"), (1, "0.000001"), (10**16, "10000000000")]
)
def test_money_is_written_without_an_exponent(micros: int, text: str) -> None:
    assert GOOGLE.write(SALE._replace(value_micros=micros), "")[3] == text


def test_a_change_is_a_retraction_or_a_new_value() -> None:
    change = Change("Purchase", "o-1", AT_MS, None, "EUR", "u1")
    assert adjustment_cells(change) == ("o-1", "Purchase", "2026-11-20 18:00:00", "RETRACT", "", "")
    restated = change._replace(value_micros=4_000_000)
    assert adjustment_cells(restated) == ("o-1", "Purchase", "2026-11-20 18:00:00", "RESTATE", "4", "EUR")


def test_meta_gets_an_fbc_and_no_value_without_its_currency() -> None:
    cells = (
        "77",
        "Purchase",
        "2026-11-20 18:00:00",
        "physical_store",
        "99.5",
        "EUR",
        "o-1",
        f"fb.1.{AT_MS - 1_000}.click",
    )
    assert META.write(SALE, "77") == cells
    assert META.write(SALE._replace(click_id="fb.1.5.click"), "77")[-1] == "fb.1.5.click"
    assert META.refuse(SALE._replace(currency=None)) == "no_currency"
    assert META.refuse(SALE._replace(currency=None, value_micros=0)) == ""


def test_everything_that_is_left_out_has_words() -> None:
    source = Path("app/offline/export.py").read_text() + Path("app/offline/feeds.py").read_text()
    told = set(re.findall(r'skipped\["([a-z_]+)"\]|return "([a-z_]+)"', source))
    assert {left or right for left, right in told} - {""} <= SKIPPED.keys()


def test_an_order_id_is_what_can_be_adjusted_later() -> None:
    assert order_id_of("o-1", "e-1") == "o-1"
    assert order_id_of("", "e-1") == order_id_of(None, "e-1") == "e-1"
    assert len(order_id_of(None, "e" * 128)) == 32
    assert order_id_of(None, "e" * 128) != order_id_of(None, "e" * 127 + "f")


def test_actions_are_named_once_and_known() -> None:
    known = {"purchase": None, "signup": None}
    assert parse_actions(['purchase=Offline = "sale"', "signup = Lead"], known) == {
        "purchase": 'Offline = "sale"',
        "signup": "Lead",
    }
    for wrong in (["purchase"], ["sale=Sale"], ["purchase=A", "purchase=B"], ["purchase=A", "signup=A"]):
        with pytest.raises(Exception, match=r"write purchase=|no action|each name once"):
            parse_actions(wrong, known)


@pytest.mark.parametrize(
    ("before", "window", "after", "reason"),
    [
        (None, None, None, codes.CLICK_NOT_FOUND),
        (None, None, AT_MS, codes.PRECEDES_CLICK),
        (AT_MS - DAY_MS, DAY_MS, None, codes.CLICK_NOT_CREDITED),
        (AT_MS - DAY_MS - 1, DAY_MS, AT_MS + 5, codes.EXPIRED_CLICK),
    ],
)
def test_why_a_conversion_is_unattributed_follows_from_its_clicks(
    before: int | None, window: int | None, after: int | None, reason: str
) -> None:
    assert _why(AT_MS, before, window, after)[0] == reason


def event(event_id: str, time_ms: int = AT_MS, order: str = "") -> Outcome:
    text = f'{{"event_id":"{event_id}","event_type":"conversion","advertiser_id":"a","user_id":"u","conversion_name":"purchase"{order}}}'
    return Outcome((("conversion", Prepared(time_ms, b"u", text.encode())),))


def test_of_rows_that_are_the_same_the_one_that_is_sent_first_is_the_one() -> None:
    for by_time, expected in ((True, [3, 2]), (False, [2, 3])):
        with Book() as book:
            book.note(Row({}, 2), event("c1", AT_MS + 5))
            book.note(Row({}, 3), event("c1", AT_MS))
            book.note(Row({}, 4), event("c2"))
            book.note(Broken(5, None, "unreadable_row", ""), Outcome(refusal=Refusal("", "unreadable_row", "", "why")))
            book.close_rows(by_time)
            found = {line: (status, detail) for line, _, _, _, status, _, _, detail in book.lines()}
        first, second = expected
        assert found[first] == ("sent", "")
        assert found[second] == ("duplicate", f"line {first}")
        assert found[4] == ("sent", "")
        assert found[5] == ("rejected", "why")


def test_a_state_file_is_one_exports_own(tmp_path: Path) -> None:
    about = {"platform": "google_ads", "advertiser": "shop"}
    path = tmp_path / "state.sqlite"
    open_exported(path, about).close()
    open_exported(path, about).close()
    with pytest.raises(OfflineError, match=r"state of another export \(platform google_ads, advertiser shop\)"):
        open_exported(path, about | {"advertiser": "other"})
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(OfflineError, match=r"is no state of an export; give another path"):
        open_exported(other, about)
    (tmp_path / "text").write_text("not a data base at all, and long enough to be looked at as one" * 20)
    with pytest.raises(OfflineError, match=r"cannot use the state file .*give another path"):
        open_exported(tmp_path / "text", about)
