"""What `onecount verify` found, and how it is printed."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.verify.differences import Difference
from app.verify.records import Coordinates, show


@dataclass(frozen=True)
class Report:
    """The figures of the recomputed answer, and every way in which what was published is not that answer.

    `rejected` and `refused_adjustments` are by reason, `attributed_rows` and `journey_rows` by status, `differences` by
    topic.
    `shown`: the first differences. `events`: the raw values behind those.
    """

    produced: int
    accepted: int
    duplicates: int
    rejected: Mapping[str, int]
    refused_adjustments: Mapping[str, int]
    noise: int
    matched: int
    waiting: int
    forgets: int
    forgotten: int
    attributed_rows: Mapping[str, int]
    count_rows: int
    journey_rows: Mapping[str, int]
    model_rows: int
    seconds: float
    differences: Mapping[str, int]
    shown: tuple[Difference, ...]
    events: Mapping[Coordinates, bytes | None]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything published is the answer."""
        return not self.differences


def print_report(report: Report, console: Console) -> None:
    """A summary if all is well, else the first differences, each with the events behind it."""
    for note in report.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    if not report.ok:
        _print_differences(report, console)
    console.print(_summary(report))
    if report.ok:
        console.print("[bold green]verified:[/] what is published is the answer to what was produced, to the last row")


def _summary(report: Report) -> Table:
    style = "green" if report.ok else "red"
    table = Table(show_header=False, border_style=style, title="onecount verify", title_style=style)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("events produced", f"{report.produced:,}")
    table.add_row("accepted", f"{report.accepted:,}")
    table.add_row("duplicates", f"{report.duplicates:,}")
    table.add_row("rejected", f"{sum(report.rejected.values()):,}")
    for reason, number in sorted(report.rejected.items()):
        table.add_row(f"  {reason}", f"{number:,}")
    table.add_row("adjustments refused", f"{sum(report.refused_adjustments.values()):,}")
    for reason, number in sorted(report.refused_adjustments.items()):
        table.add_row(f"  {reason}", f"{number:,}")
    table.add_row("noise", f"{report.noise:,}")
    if report.matched or report.waiting:
        table.add_row("matched by click id", f"{report.matched:,}")
        table.add_row("  wait for their click", f"{report.waiting:,}")
    if report.forgets:
        table.add_row("forgets", f"{report.forgets:,}")
        table.add_row("  ignored since", f"{report.forgotten:,}")
    table.add_row("conversion rows", f"{sum(report.attributed_rows.values()):,}")
    for status, number in sorted(report.attributed_rows.items()):
        table.add_row(f"  {status}", f"{number:,}")
    table.add_row("count rows", f"{report.count_rows:,}")
    if report.journey_rows:
        table.add_row("journey rows", f"{sum(report.journey_rows.values()):,}")
        for status, number in sorted(report.journey_rows.items()):
            table.add_row(f"  {status}", f"{number:,}")
        table.add_row("model rows", f"{report.model_rows:,}")
    table.add_row("differences", f"{sum(report.differences.values()):,}")
    table.add_row("seconds", f"{report.seconds:.1f}")
    return table


def _print_differences(report: Report, console: Console) -> None:
    total = sum(report.differences.values())
    by_topic = ", ".join(f"{number:,} in {topic}" for topic, number in report.differences.items())
    console.print(f"[bold red]{total:,} differences[/] ({escape(by_topic)}); the first {len(report.shown)}:")
    for number, difference in enumerate(report.shown, 1):
        console.print(f"\n[bold]{number}. {escape(difference.topic)}[/] {escape(difference.about)}", highlight=False)
        for line in difference.details:
            console.print(f"   {escape(line)}", highlight=False, soft_wrap=True)
        for coordinates in difference.behind:
            value = report.events.get(coordinates)
            text = "null" if value is None else value[:1024].decode(errors="replace")
            console.print(f"   [dim]{escape(show(coordinates))}[/] {escape(text)}", highlight=False, soft_wrap=True)
    console.print()
