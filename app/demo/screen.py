"""From plain numbers to what is seen: pure functions that make rich's tables of a `Tally` and `Figures`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.contract.events import MICROS
from app.contract.rows import STATUSES
from app.demo.figures import DUPLICATES, LATE, NOISE, REKEYED, Figures
from app.demo.tally import Line, Sums, Tally, top_campaigns

WIDE: Final = 128  # columns from which the numbers stand beside the table ...
HIGH: Final = 38  # ... if there are so many lines for them
ROOMY: Final = 92  # columns from which the table has room for whole names and for bars
MOST_LINES: Final = 12
MOST_BESIDE: Final = 20  # where the numbers beside the table take more lines than that
NOTES_SHOWN: Final = 3
_REASONS_SHOWN: Final = 6
_REASONS_BESIDE: Final = 10
_BAR_CELLS: Final = 10
_NUMBERS_WIDTH: Final = 32
_GAP: Final = 3
_LINES_AROUND: Final = 15  # of the screen, without notes, when the numbers stand under the table; one stays free
_COLOURS: Final = ("cyan", "magenta", "yellow", "blue", "green", "bright_blue")
_STATUS_STYLES: Final = {"counted": "bold green", "retracted": "red", "duplicate": "yellow"}


@dataclass
class Picture:
    """All that a frame shows. `share`: how much of the run is over (0 to 1), None while nobody can know. `notes`: markup."""

    tally: Tally
    figures: Figures
    phase: str = "counting"
    clock: str = ""
    share: float | None = None
    notes: list[str] = field(default_factory=list)


def draw(picture: Picture, width: int, height: int) -> RenderableType:
    """A frame for a screen of this size."""
    notes = [Text.from_markup(note, overflow="ellipsis") for note in picture.notes[-NOTES_SHOWN:]]
    for note in notes:
        note.no_wrap = True
    if width >= WIDE and height >= HIGH:
        side = Table.grid(expand=True, padding=(0, _GAP, 0, 0))
        side.add_column(ratio=1)
        side.add_column(width=_NUMBERS_WIDTH)
        table = campaign_table(picture.tally, MOST_BESIDE, width - _NUMBERS_WIDTH - _GAP)
        side.add_row(table, numbers_beside(picture))
        return Group(_headline(picture, width), Text(), side, *notes)
    lines = min(MOST_LINES, max(3, height - _LINES_AROUND - len(notes)))
    table = campaign_table(picture.tally, lines, width)
    return Group(_headline(picture, width), Text(), table, Text(), numbers_under(picture), *notes)


def _headline(picture: Picture, width: int) -> Table:
    line = Table.grid(expand=True, padding=(0, 2, 0, 0))
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    pulsing = picture.share is None
    bar = ProgressBar(
        total=1.0,
        completed=picture.share or 0.0,
        pulse=pulsing,
        width=max(width // 3, 10),
        complete_style="cyan",
        finished_style="green",
        pulse_style="cyan",
    )
    line.add_row("[bold]onecount[/]", f"[cyan]{picture.phase}[/]", bar, picture.clock)
    return line


def campaign_table(tally: Tally, limit: int, width: int) -> Table:
    """The campaigns with the most conversions, one a line, and how many there are beside them."""
    lines = top_campaigns(tally, limit)
    more = len(tally.campaigns) - len(lines)
    currency = only_currency(line.sums for line in lines)
    title = f"{more:,} more campaigns" if more > 0 else None
    table = _table(caption=title)
    table.add_column("platform", no_wrap=True)
    table.add_column("campaign", no_wrap=True, ratio=1, overflow="ellipsis", min_width=12)
    for name in ("views", "clicks", "conversions" if width >= ROOMY else "conv."):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"value {currency}".rstrip(), justify="right", no_wrap=True)
    costs = any(line.sums.cost for line in lines)
    if costs:
        table.add_column("cost/conv.", justify="right", no_wrap=True)
    bars = width >= ROOMY
    if bars:
        table.add_column("", width=_BAR_CELLS, no_wrap=True)
    most = max((line.sums.conversions for line in lines), default=0)
    colours = colours_of(tally)
    for line in lines:
        colour = colours[line.platform]
        cells: list[RenderableType] = [
            Text(line.platform or "(none)", style=colour),
            Text(_shortened(line, width)),
            f"{line.sums.views + line.sums.engaged_views:,}",
            f"{line.sums.clicks:,}",
            Text(f"{line.sums.conversions:,}", style="bold green" if line.sums.conversions else "dim"),
            money(line.sums.value, not currency),
        ]
        if costs:
            cells.append(cost_per_conversion(line.sums))
        if bars:
            cells.append(_bar(line.sums.conversions, most, colour))
        table.add_row(*cells)
    return table


def _table(**options: object) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        expand=True,
        header_style="dim",
        border_style="dim",
        caption_style="dim",
        caption_justify="left",
        **options,  # type: ignore[arg-type]
    )


def colours_of(tally: Tally) -> dict[str, str]:
    """A colour for each platform, the same one in every frame once all platforms are there."""
    names = sorted({platform for platform, _ in tally.campaigns})
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}


def _shortened(line: Line, width: int) -> str:
    """Where room is scarce, a campaign's name does not repeat its platform's."""
    return line.campaign if width >= ROOMY else line.campaign.removeprefix(f"{line.platform}-")


def _bar(number: int, most: int, colour: str) -> ProgressBar:
    return ProgressBar(
        total=max(most, 1), completed=number, width=_BAR_CELLS, complete_style=colour, finished_style=colour
    )


def only_currency(sums: Iterable[Sums]) -> str:
    """The one currency of all these amounts; "" if there are several, or none."""
    found = {currency for each in sums for currency, amount in each.value.items() if amount}
    return found.pop() if len(found) == 1 else ""


def money(value: Counter[str], named: bool) -> str:
    """Amounts, never added up over currencies; `named`: with their currencies."""
    parts = [
        f"{amount / MICROS:,.2f} {currency if named else ''}".rstrip()
        for currency, amount in sorted(value.items())
        if amount
    ]
    return " + ".join(parts) or "-"


def cost_per_conversion(sums: Sums) -> str:
    """What a conversion cost; a dash where there is no cost or no conversion."""
    return f"{sums.cost / sums.conversions / MICROS:,.2f}" if sums.conversions and sums.cost else "-"


def numbers_under(picture: Picture) -> Table:
    """The numbers in four columns, for under the table."""
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    events, troubles, conversions, reasons = _number_groups(picture, _REASONS_SHOWN)
    grid.add_row(_list(*events), _list(*troubles), _list(*conversions), _list(*reasons, expand=True))
    return grid


def numbers_beside(picture: Picture) -> Group:
    """The numbers in one column, for beside the table."""
    parts: list[RenderableType] = []
    for group in _number_groups(picture, _REASONS_BESIDE):
        parts += [_list(*group, expand=True), Text()]
    return Group(*parts[:-1])


Rows = Sequence[tuple[str, str, str]]  # label, number, style


def _number_groups(picture: Picture, reasons_shown: int) -> tuple[tuple[str, Rows], ...]:
    figures, tally, workers = picture.figures, picture.tally, picture.figures.workers
    events = [
        ("produced", f"{figures.produced:,}", ""),
        ("counted", f"{figures.counted:,}", "bold green"),
        ("a second", f"{figures.per_second:,.0f}", ""),
        ("lag", f"{figures.lag:,}", "yellow" if figures.lag > 2 * figures.per_second else ""),
    ]
    troubles = [
        ("duplicates", f"{workers[DUPLICATES]:,}", ""),
        ("rejected", f"{tally.reasons.total():,}", ""),
        ("late", f"{workers[LATE]:,}", ""),
        ("corrected", f"{tally.corrected:,}", ""),
        ("re-keyed", f"{workers[REKEYED]:,}", ""),
        ("noise", f"{workers[NOISE]:,}", ""),
    ]
    statuses = tally.by_status()
    conversions = [(name, f"{statuses[name]:,}", _STATUS_STYLES.get(name, "")) for name in STATUSES]
    common = tally.reasons.most_common()
    shown = common if len(common) <= reasons_shown else common[: reasons_shown - 1]
    reasons = [(name, f"{number:,}", "") for name, number in shown]
    if len(shown) < len(common):
        rest = common[len(shown) :]
        reasons.append((f"{len(rest)} others", f"{sum(number for _, number in rest):,}", "dim"))
    return ("events", events), ("handled", troubles), ("conversions", conversions), ("rejected because", reasons)


def _list(title: str, rows: Rows, expand: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=True, header_style="dim", expand=expand)
    table.add_column(title, no_wrap=True, overflow="ellipsis", ratio=1 if expand else None)
    table.add_column("", justify="right", no_wrap=True, min_width=6)  # so that growing numbers move nothing
    for label, number, style in rows:
        table.add_row(label, Text(number, style=style))
    return table


def plain_line(picture: Picture) -> str:
    """A frame in one line, for an output that is no terminal."""
    figures, tally = picture.figures, picture.tally
    if not figures.produced:
        return picture.phase
    numbers = {
        "produced": figures.produced,
        "counted": figures.counted,
        "lag": figures.lag,
        "duplicates": figures.workers[DUPLICATES],
        "rejected": tally.reasons.total(),
        "late": figures.workers[LATE],
        "corrected": tally.corrected,
        "conversions": tally.by_status()["counted"],
    }
    words = ", ".join(f"{name} {number:,}" for name, number in numbers.items())
    return f"{picture.clock.strip():>5}  {words}, {figures.per_second:,.0f}/s"
