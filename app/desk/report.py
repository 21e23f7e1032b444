"""The revenue check for a person: as tables, as CSV, and as one verdict."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.contract.money import TO_DATE, ReconciledMoney, ReconciliationRow
from app.contract.rows import ALL

FILE_WIDTH: Final = 150  # characters, where the report goes to a file or a pipe
_WORDS: Final = {  # each cause, as it explains what a platform claims beyond what is counted
    "duplicates": "reported twice",
    "outside_window": "before its window",
    "unattributed": "no touch found",
    "uncounted": "beyond one a touch",
    "retracted": "taken back",
    "late": "came too late",
    "refused": "refused",
    "noise": "no action of ours",
}
_MONEY: Final = tuple(name for name in ReconciledMoney.__struct_fields__ if name != "currency")
_PLAIN: Final = tuple(name for name in ReconciliationRow.__struct_fields__ if name != "money")
CSV_COLUMNS: Final = ("level", *_PLAIN, "currency", *(f"money_{name}" for name in _MONEY))
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one


@dataclass(frozen=True)
class Selection:
    """Which rows are asked for. `period`: a week, or `to_date`; what is None or empty leaves all."""

    period: str
    platform: str | None = None
    advertiser_id: str | None = None

    def takes(self, row: ReconciliationRow) -> bool:
        """Whether the row is one of them."""
        return (
            row.period == self.period
            and self.platform in (None, row.platform)
            and self.advertiser_id in (None, row.advertiser_id)
        )


def sorted_rows(rows: Iterable[ReconciliationRow]) -> list[ReconciliationRow]:
    """By advertiser and platform, the sum over all last; a platform before its campaigns, those furthest off first."""
    return sorted(
        rows,
        key=lambda row: (
            row.advertiser_id,
            row.platform == ALL,
            row.platform,
            row.campaign_id is not None,
            -abs(row.difference or 0),
            row.campaign_id or "",
        ),
    )


def beyond_tolerance(rows: Iterable[ReconciliationRow]) -> list[ReconciliationRow]:
    """The platforms whose claims are too far off; their campaigns only say where."""
    return [row for row in rows if row.campaign_id is None and row.within_tolerance is False]


def write_csv(rows: Iterable[ReconciliationRow], path: Path) -> None:
    """A line a row and currency, of a row without money one; columns: `CSV_COLUMNS`. A name that a spreadsheet would take for a
    formula has an apostrophe before it.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for row in rows:
            level = ALL if row.platform == ALL else "platform" if row.campaign_id is None else "campaign"
            plain = [level, *(_cell(getattr(row, name)) for name in _PLAIN)]
            for money in row.money or [None]:
                amounts = [_cell(getattr(money, name)) for name in ("currency", *_MONEY)] if money else []
                writer.writerow([*plain, *(amounts or [""] * (1 + len(_MONEY)))])


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def print_report(rows: list[ReconciliationRow], console: Console, show: int) -> None:
    """Each advertiser's platforms with at most `show` campaigns each, their money, its orders, and the verdict."""
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    for advertiser_id in dict.fromkeys(row.advertiser_id for row in rows):
        own = [row for row in rows if row.advertiser_id == advertiser_id]
        console.print(_heading(own[0]), highlight=False, soft_wrap=True)
        shown, hidden = _shortened(own, show)
        console.print(_claims_table(shown))
        if hidden:
            console.print(f"and {hidden:,} more campaigns: --show, or --csv\n", highlight=False)
        console.print(_money_table([row for row in own if row.campaign_id is None]))
        for line in _notes(own):
            console.print(f"- {line}", highlight=False, soft_wrap=True)
        console.print(_verdict(own), highlight=False, soft_wrap=True)


def _heading(row: ReconciliationRow) -> str:
    first, last = (f"{date.fromisoformat(day):%a %d %b %Y}" for day in (row.from_day, row.to_day))
    name = f"to date, {first}" if row.period == TO_DATE else f"week {row.period}, {first}"
    until = "" if row.period == TO_DATE else f" to {last}"
    return f"[bold]{escape(row.advertiser_id)}[/]: {name}{until} ({row.time_zone})"


def _shortened(rows: list[ReconciliationRow], show: int) -> tuple[list[ReconciliationRow], int]:
    """Of each platform its first campaigns, and how many are left out."""
    kept, hidden, of_platform = [], 0, 0
    for row in rows:
        of_platform = 0 if row.campaign_id is None else of_platform + 1
        if of_platform <= show:
            kept.append(row)
        else:
            hidden += 1
    return kept, hidden


def _claims_table(rows: list[ReconciliationRow]) -> Table:
    table = Table(title="Conversions", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("platform, campaign", overflow="fold")
    for name in ("it reports", "counted", "difference", "", "once over all"):
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_column("what a platform may count too", overflow="fold")
    for row in rows:
        counted = f"{row.compared if row.reported is not None else row.counted:,}"
        if row.reported is not None and row.compared != row.counted:
            counted += f" of {row.counted:,}"
        table.add_row(
            _name(row),
            _number(row.reported),
            counted,
            _signed(row.difference),
            "" if row.ratio is None else f"{row.ratio - 1:+.1%}",
            f"{row.deduplicated:,}",
            {True: "[green]ok[/]", False: "[red]off[/]", None: ""}[row.within_tolerance],
            _why(row),
        )
    return table


def _name(row: ReconciliationRow) -> str:
    if row.campaign_id is not None:
        return f"   {escape(row.campaign_id) or '(no campaign)'}"
    return f"[bold]{'all platforms' if row.platform == ALL else escape(row.platform) or '(no platform)'}[/]"


def _why(row: ReconciliationRow) -> str:
    found = [f"{getattr(row, cause):,g} {words}" for cause, words in _WORDS.items() if getattr(row, cause)]
    if row.unexplained:
        found.append(
            f"[bold]{abs(row.unexplained):,g} {'unexplained' if row.unexplained > 0 else 'it does not report'}[/]"
        )
    return "; ".join(found)


def _money_table(rows: list[ReconciliationRow]) -> Table:
    table = Table(title="Money", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("platform")
    table.add_column("")
    for name in ("it reports", "counted", "difference", "once over all", "paid", "refunded", "net"):
        table.add_column(name, justify="right")
    for row in rows:
        name = _name(row)
        for money in row.money:
            table.add_row(
                name,
                escape(money.currency) or "(none)",
                _amount(money.reported),
                _amount(money.compared if money.reported is not None else money.counted),
                "" if money.difference is None or _is_foreign(row, money) else f"{money.difference:+,.2f}",
                *(_amount(each) for each in (money.deduplicated, money.paid, money.refunded, money.net)),
            )
            name = ""
    return table


def _notes(rows: list[ReconciliationRow]) -> list[str]:
    """What of an advertiser's orders and claims does not fit together."""
    whole = next((row for row in rows if row.platform == ALL), None)
    if whole is None:
        return []
    found = []
    if whole.deduplicated:
        found.append(
            f"conversions that platforms count: {whole.counted:,}, that there really were: {whole.deduplicated:,}; each is claimed "
            f"{whole.counted / whole.deduplicated:.2f} times"
        )
    if whole.orders:
        found.append(
            f"orders that were paid: {whole.orders:,}{_of(whole.orders_refunded, ', of them paid back in full: {}')}"
        )
    else:
        found.append("no order is known of these days: nothing can be said of what was paid")
    found += [
        line
        for line in (
            _of(whole.orders_without_conversion, "paid orders that never arrived as a conversion: {}")
            + _sums(whole, "orders_without_conversion"),
            _of(whole.without_order, "conversions whose order was not paid, or is another user's: {}")
            + _sums(whole, "without_order"),
            _of(whole.without_order_id, "paid actions that name no order, so nobody can tell: {}"),
            _of(whole.counted_refunded, "conversions that count though their order was paid back (retract them): {}"),
            *(_other_currency(row) for row in rows if row.campaign_id is None and row.platform != ALL),
        )
        if line
    ]
    return found


def _other_currency(row: ReconciliationRow) -> str:
    """Where a platform reports in a currency that nothing is counted in."""
    reported = [each.currency for each in row.money if _is_foreign(row, each)]
    counted = [each.currency or "none" for each in row.money if each.compared]
    if not reported:
        return ""
    return (
        f"{escape(row.platform)} reports in {escape(', '.join(reported))}, what is counted is in {escape(', '.join(counted))}: "
        "amounts are not compared"
    )


def _is_foreign(row: ReconciliationRow, money: ReconciledMoney) -> bool:
    """Whether something is reported in a currency in which nothing is counted, while something is in another one."""
    return bool(money.reported and not money.compared and any(each.compared for each in row.money))


def _of(count: int, text: str) -> str:
    return text.format(f"{count:,}") if count else ""


def _sums(row: ReconciliationRow, name: str) -> str:
    sums = [f"{getattr(each, name):,.2f} {escape(each.currency)}".strip() for each in row.money if getattr(each, name)]
    return f" ({', '.join(sums)})" if sums and getattr(row, name) else ""


def _verdict(rows: list[ReconciliationRow]) -> str:
    platforms = [row for row in rows if row.campaign_id is None and row.platform not in ("", ALL)]
    off = beyond_tolerance(platforms)
    silent = [escape(row.platform) for row in platforms if row.reported is None]
    partial = [
        f"{escape(row.platform)} until {row.reported_to}"
        for row in platforms
        if row.reported is not None and not row.complete and row.period != TO_DATE
    ]
    notes = (f"; nothing reported: {', '.join(silent)}" if silent else "") + (
        f"; not all days are reported: {', '.join(partial)}" if partial else ""
    )
    if off:
        told = ", ".join(f"{escape(row.platform)} (tolerance {row.tolerance:.1%})" for row in off)
        return f"[bold red]out of tolerance:[/] {told}{notes}\n"
    if any(row.within_tolerance for row in platforms):
        return f"[bold green]within tolerance[/]{notes}\n"
    return f"[yellow]nothing to compare[/]{notes}\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+,g}" if abs(value) < 1e6 else f"{value:+,.0f}"


def _amount(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"
