"""What a replay found: told to a person, as JSON, or as CSV with a line a measure."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.contract.rows import ALL, MEASURES
from app.replay.comparison import COUNTS, Comparison, Difference, Place
from app.replay.times import as_time

FILE_WIDTH: Final = 120  # characters, where the report goes to a file or a pipe
CSV_COLUMNS: Final = ("window_start", "platform", "measure", "currency", "live", "replay", "difference", "final")


@dataclass(frozen=True)
class Report:
    """The comparison of a range (epoch ms), and which of its windows and platforms are final. `policy`: the file that judged
    alone; None: the recorded versions. `copied`: records that were counted again. `notes`: what keeps it from being exact.
    """

    replay_id: str
    from_ms: int
    to_ms: int
    policy: str | None
    copied: int
    notes: tuple[str, ...]
    comparison: Comparison
    final: frozenset[Place]

    @property
    def different(self) -> list[Place]:
        """The windows and platforms that differ, final or not."""
        return [place for place in self.comparison.places() if self.comparison.differs(place)]

    @property
    def is_equal(self) -> bool:
        """Whether no final window differs."""
        return not self.final.intersection(self.different)


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON object: the sums of each platform, and every window and platform that differs."""
    compared = report.comparison
    different = report.different
    return {
        "replay_id": report.replay_id,
        "from": as_time(report.from_ms),
        "to": as_time(report.to_ms),
        "policy": report.policy,
        "records_counted": report.copied,
        "equal": report.is_equal,
        "notes": list(report.notes),
        "compared": len(compared.places()),
        "final": len(report.final),
        "different": len(different),
        "different_final": len(report.final.intersection(different)),
        "platforms": {
            platform: [_line_json(line) for line in lines]
            for platform, lines in compared.totals(compared.places()).items()
        },
        "differences": [
            {
                "window_start": as_time(place[0]),
                "platform": place[1],
                "final": place in report.final,
                "rows": compared.rows[place],
                "rows_that_differ": compared.changed_rows[place],
                "measures": [_line_json(line) for line in compared.lines(place, place in report.final)],
            }
            for place in different
        ],
    }


def _line_json(line: Difference) -> dict[str, Any]:
    live, replay, more = line.amounts()
    currency = {"currency": line.currency} if line.measure == "value" else {}
    return {"measure": line.measure, **currency, "live": live, "replay": replay, "difference": more}


def write_csv(report: Report, path: Path) -> None:
    """Every measure of every window and platform that either side counted, equal ones too; columns: `CSV_COLUMNS`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for line in _all_lines(report):
            row = (as_time(line.window_start), line.platform, line.measure, line.currency, *line.amounts())
            writer.writerow((*row, str(line.is_final).lower()))


def _all_lines(report: Report) -> Iterator[Difference]:
    for place in report.comparison.places():
        yield from report.comparison.lines(place, place in report.final)


def print_report(report: Report, console: Console, show: int) -> None:
    """The sums by platform, the first `show` windows that differ, and the verdict."""
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    compared, different = report.comparison, report.different
    if compared.places():
        console.print(_totals_table(compared))
    if different and show:
        console.print(_differences_table(report, different[:show]))
        if len(different) > show:
            console.print(f"and {len(different) - show:,} more: --show, --csv or --json", highlight=False)
    for note in report.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(_verdict(report, len(compared.places()), different), highlight=False, soft_wrap=True)


def _verdict(report: Report, count: int, different: list[Place]) -> str:
    span = f"{as_time(report.from_ms)} to {as_time(report.to_ms)}"
    if not count:
        return f"[yellow]nothing to compare:[/] neither side counts anything in windows of {span}"
    moving = count - len(report.final)
    open_ones = (
        f"; {moving:,} are not final yet, {len(set(different) - report.final):,} of them differ" if moving else ""
    )
    if report.is_equal:
        word = "[bold green]equal:[/]" if report.final else "[yellow]nothing is final yet:[/]"
        return f"{word} {len(report.final):,} final counts (a window of a platform each) are the same, row by row{open_ones}"
    number = len(report.final.intersection(different))
    return f"[bold red]different:[/] {number:,} of {len(report.final):,} final counts (a window of a platform each){open_ones}"


def _totals_table(compared: Comparison) -> Table:
    """A line a platform: what live counts, and below it in bold what the replay counts instead."""
    table = Table(
        title="All windows: live, and → what the replay counts instead", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("platform")
    for name in MEASURES:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for platform, lines in compared.totals(compared.places()).items():
        cells: dict[str, list[str]] = {name: [] for name in MEASURES}
        for line in lines:
            live, replay, more = _amounts(line)
            cells[line.measure].append(f"{live} {escape(line.currency)}".strip())
            if line.live != line.replay:
                cells[line.measure] += [f"[bold]→ {replay}[/]", f"[bold]({more})[/]"]
        if platform == ALL:  # no sum of the lines above
            table.add_section()
        table.add_row(_name(platform), *("\n".join(cells[name]) or "0" for name in MEASURES))
    return table


def _differences_table(report: Report, places: list[Place]) -> Table:
    table = Table(title="Windows that differ", title_justify="left", box=SIMPLE_HEAD)
    for name in ("window", "platform", "measure"):
        table.add_column(name)
    for name in ("live", "replay", "difference"):
        table.add_column(name, justify="right", overflow="fold")
    for place in places:
        is_final = place in report.final
        lines = [line for line in report.comparison.lines(place, is_final) if line.live != line.replay]
        head = (as_time(place[0]) + ("" if is_final else " not final"), _name(place[1]))
        for line in lines:
            table.add_row(*head, _measure(line), *_amounts(line))
            head = ("", "")
        if not lines:
            table.add_row(*head, f"{report.comparison.changed_rows[place]:,} rows, with equal sums", "", "", "")
    return table


def _name(platform: str) -> str:
    return "all, each once" if platform == ALL else escape(platform)


def _measure(line: Difference) -> str:
    return escape(f"{line.measure} {line.currency}".strip())


def _amounts(line: Difference) -> tuple[str, str, str]:
    live, replay, more = line.amounts()
    form = "," if line.measure in COUNTS else ",.2f"
    return f"{live:{form}}", f"{replay:{form}}", f"{more:+{form}}"
