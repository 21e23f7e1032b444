"""The example of docs/money.md is what the command prints."""

import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from app.contract.money import decode_reconciliation
from app.desk.reconciliation import Reconciliation
from app.desk.report import print_report, sorted_rows
from tests.desk.money import (
    DESK,
    POLICY,
    SETTINGS,
    Entry,
    attributed,
    conversion,
    letter,
    numbered,
    order,
    report,
    touch,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "money.md"
BEGIN, END = "<!-- example -->\n", "<!-- end -->\n"


def a_week() -> Iterator[Entry]:
    """Five orders a day that meta counts, one of them google_ads too; and what both claim."""
    number = 0
    for day in range(16, 23):
        for hour in range(8, 13):
            number += 1
            time, name, user, order_id = f"2026-11-{day}T{hour:02}:00", f"c{number}", f"u{number}", f"o{number}"
            yield from conversion(time, name, user, order_id=order_id, value=40.0)
            if hour != 11:
                yield order(order_id, time, 40.0, 40.0 if number in (9, 18) else 0.0)
            if hour == 9:
                yield attributed(time, f"d{number}", user, order_id=order_id, value=0.0, status="duplicate")
            if hour == 10:
                yield attributed(time, name, user, "google_ads", order_id=order_id, value=40.0, campaign_id="brand")
        old = touch("meta", "spring", time=1) if day % 2 else None
        nobody = {"status": "unattributed", "campaign_id": None, "credited": None, "first_touch": old}
        yield from conversion(
            f"2026-11-{day}T15:00", f"n{day}", f"v{day}", conversion_name="signup", value=0.0, **nobody
        )
        yield report(f"2026-11-{day}", 6, value=240.0, currency="EUR")
        if day < 20:
            yield report(f"2026-11-{day}", 1, "google_ads", "brand", value=46.0, currency="USD")
    yield from (letter("too_old", "2026-11-17T10:00"), order("counter", "2026-11-18T10:00", 99.0))
    yield report("2026-11-18", 2, campaign="fall", conversion_name="scroll")


def example() -> str:
    """What `onecount reconcile --week 2026-W47` prints of it, as a block of the page."""
    fold = Reconciliation(SETTINGS, POLICY, DESK)
    for each in numbered(a_week()):
        fold.take(each)
    rows = [decode_reconciliation(output.value) for output in fold.rows(0) if output.value is not None]
    out = io.StringIO()
    print_report(sorted_rows(row for row in rows if row.period == "2026-W47"), Console(file=out), 10)
    lines = [f"    {line}".rstrip() for line in out.getvalue().rstrip().splitlines()]
    return "\n".join(["", *lines, "", ""])


def test_the_example_of_the_page_is_what_is_printed() -> None:
    page = PAGE.read_text()
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    assert page[begin:end] == example(), f"put this there:\n{example()}"
