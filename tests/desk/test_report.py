"""What `onecount reconcile` prints and writes, without a Kafka."""

import csv
import io
import re
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import typer
from rich.console import Console

from app.contract.money import ReconciliationRow, decode_reconciliation
from app.desk import commands
from app.desk.reconciliation import Reconciliation
from app.desk.report import Selection, beyond_tolerance, print_report, sorted_rows, write_csv
from tests.desk.money import DESK, POLICY, SETTINGS, Entry, attributed, conversion, numbered, report

NOON = "2026-11-16T12:00"


def rows_of(*entries: Entry) -> list[ReconciliationRow]:
    """The week's rows."""
    fold = Reconciliation(SETTINGS, POLICY, DESK)
    for each in numbered(entries):
        fold.take(each)
    rows = [decode_reconciliation(output.value) for output in fold.rows(0) if output.value is not None]
    return sorted_rows(row for row in rows if Selection("2026-W47").takes(row))


def printed(rows: list[ReconciliationRow], show: int = 10) -> str:
    """What a person reads."""
    out = io.StringIO()
    print_report(rows, Console(file=out), show)
    return out.getvalue()


def test_the_campaigns_that_are_furthest_off_come_first_and_the_rest_is_counted() -> None:
    rows = rows_of(
        *(report("2026-11-16", number, campaign=f"c{number}") for number in range(1, 6)),
        *conversion(NOON, campaign_id="c9"),
    )
    told = printed(rows, show=2)
    assert re.findall(r"(?m)^ {5}(\w+) ", told) == ["c5", "c4"]
    assert "and 5 more campaigns" in told


def test_names_are_shown_as_they_are() -> None:
    told = printed(rows_of(report("2026-11-16", 1, campaign="[bold]sale[/]"), *conversion(NOON, user="u[/]")))
    assert "[bold]sale[/]" in told


def test_what_is_not_known_is_said() -> None:
    told = printed(rows_of(*conversion(NOON)))
    assert "nothing to compare; nothing reported: meta" in told
    assert "no order is known of these days" in told
    told = printed(rows_of(*conversion(NOON), report("2026-11-16", 1)))
    assert "within tolerance; not all days are reported: meta until 2026-11-16" in told


def test_a_campaign_that_is_off_makes_no_platform_be() -> None:
    rows = rows_of(
        *conversion(NOON, "c1"),
        *conversion(NOON, "c2", campaign_id="fall"),
        report("2026-11-16", 2),
    )
    assert {row.campaign_id: row.within_tolerance for row in rows if row.platform == "meta"} == {
        None: True, "spring": False, "fall": False,
    }  # fmt: skip
    assert beyond_tolerance(rows) == []


def test_a_file_has_a_line_a_currency_and_no_formula(tmp_path: Path) -> None:
    rows = rows_of(
        attributed(NOON, "c1", campaign_id='=HYPERLINK("http://x")'),
        attributed(NOON, "c2", campaign_id='=HYPERLINK("http://x")', currency="USD"),
        attributed(NOON, "c3", campaign_id="free", value=0.0),
        report("2026-11-16", 1),
    )
    write_csv(rows, tmp_path / "week.csv")
    with (tmp_path / "week.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = [(line["level"], line["campaign_id"], line["currency"], line["money_counted"]) for line in lines]
    assert found == [
        ("platform", "", "EUR", "10.0"),
        ("platform", "", "USD", "10.0"),
        ("campaign", '\'=HYPERLINK("http://x")', "EUR", "10.0"),
        ("campaign", '\'=HYPERLINK("http://x")', "USD", "10.0"),
        ("campaign", "free", "", ""),
        ("campaign", "spring", "", ""),
        ("all", "", "EUR", "10.0"),
        ("all", "", "USD", "10.0"),
    ]
    assert {line["within_tolerance"] for line in lines} == {"false", ""}
    assert {line["difference"] for line in lines} == {"-2.0", "-1.0", "1.0"}, "numbers stay numbers"


@pytest.mark.parametrize("week", ["2026-W54", "2025-W53", "2026-W00", "2026-47", "W47", "2026-w47", "0000-W01"])
def test_a_week_that_is_none_is_told(week: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no ISO week"):
        commands._checked(week)


@pytest.mark.parametrize(
    ("now", "week"),
    [("2027-01-03T22:59", "2026-W52"), ("2027-01-03T23:00", "2026-W53"), ("2027-01-10T23:00", "2027-W01")],
)
def test_the_last_week_is_the_one_that_is_over_there(now: str, week: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert commands.last_week(moment, ZoneInfo("Europe/Berlin")) == week
