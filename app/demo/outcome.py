"""The tables of the end: what came out of a file, and the words after it."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.contract.events import MICROS
from app.contract.rows import STATUSES
from app.demo.screen import cost_per_conversion, money, only_currency
from app.demo.tally import Line, Sums, Tally, platforms, top_campaigns, total, without
from app.policy.model import METHODS, Policy

CAMPAIGNS_SHOWN: Final = 12
EXAMPLES_SHOWN: Final = 3


def touch_table(title: str, lines: Iterable[Line], whole: Sums, with_campaign: bool) -> Group:
    """Touches and what was credited to them, a line for each platform (and campaign), what is in none of them, and all.

    Measures of which there is nothing at all have no column.
    """
    lines = list(lines)
    currency = only_currency([whole])
    columns = _columns(whole, currency)
    names = ["platform", "campaign"] if with_campaign else ["platform"]
    table = _table()
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        about = [line.platform or "(none)", line.campaign or "(none)"][: len(names)]
        table.add_row(*map(Text, about), *(cell(line.sums) for cell in columns.values()))
    rest = without(whole, (line.sums for line in lines))
    if len(lines) == 1 and rest == Sums():
        return _titled(title, table)
    table.add_section()
    if rest != Sums():
        about = ["others", "(less conversions)"][: len(names)]
        table.add_row(*about, *(cell(rest) for cell in columns.values()), style="dim")
    table.add_row("all", *[""] * (len(names) - 1), *(cell(whole) for cell in columns.values()), style="bold")
    return _titled(title, table)


def _columns(whole: Sums, currency: str) -> dict[str, Callable[[Sums], str]]:
    """Titles, and what stands in a cell under each."""
    columns: dict[str, Callable[[Sums], str]] = {}
    if whole.views:
        columns["views"] = lambda sums: f"{sums.views:,}"
    if whole.engaged_views:
        columns["engaged"] = lambda sums: f"{sums.engaged_views:,}"
    if whole.clicks:
        columns["clicks"] = lambda sums: f"{sums.clicks:,}"
    columns["conversions"] = lambda sums: f"{sums.conversions:,}"
    if +whole.value:
        columns[f"revenue {currency}".rstrip()] = lambda sums: money(sums.value, not currency)
    if whole.cost:
        columns["cost"] = lambda sums: f"{sums.cost / MICROS:,.2f}"
    if whole.cost and whole.conversions:
        columns["a conversion"] = cost_per_conversion
    return columns


def conversion_table(tally: Tally) -> Group:
    """Conversions by action and status; the revenue is that of the counted ones."""
    actions = sorted({action for (action, _), number in tally.statuses.items() if number})
    totals = tally.by_status()
    statuses = [status for status in STATUSES if totals[status]]
    whole: Counter[str] = Counter()
    for value in tally.value.values():
        whole.update(value)
    currency = only_currency([Sums(value=whole)])
    table = _table()
    table.add_column("action", no_wrap=True, overflow="ellipsis")
    revenue = [f"revenue {currency}".rstrip()] if +whole else []
    for name in (*statuses, *revenue):
        table.add_column(name, justify="right", no_wrap=True)
    for action in actions:
        numbers = [f"{tally.statuses[action, status]:,}" for status in statuses]
        table.add_row(Text(action), *numbers, *([money(tally.value[action], not currency)] if revenue else []))
    if len(actions) > 1:
        table.add_section()
        numbers = [f"{totals[status]:,}" for status in statuses]
        table.add_row("all", *numbers, *([money(whole, not currency)] if revenue else []), style="bold")
    return _titled("Conversions by action and status, one for each platform that judged it", table)


def outcome_tables(tally: Tally, limit: int = CAMPAIGNS_SHOWN) -> list[Group]:
    """All that came out: by platform, by action and status, and the first campaigns."""
    whole, top = total(tally), top_campaigns(tally, limit)
    more = len(tally.campaigns) - len(top)
    title = f"By campaign, {more:,} of them added up" if more > 0 else "By campaign"
    tables = [touch_table("By platform", platforms(tally), whole, False)]
    if tally.attributed:
        tables.append(conversion_table(tally))
    return [*tables, touch_table(title, top, whole, True)]


def _titled(title: str, table: Table) -> Group:
    return Group(Text(title, style="bold"), table)


def _table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
        border_style="dim",
    )


def never_credited(tally: Tally, policy: Policy) -> list[str]:
    """Words about each platform whose touches are all of kinds that its method never credits."""
    if not tally.attributed:
        return []
    rules = policy.versions[-1].platforms
    words = []
    for line in platforms(tally):
        kinds = {"view": line.sums.views, "engaged_view": line.sums.engaged_views, "click": line.sums.clicks}
        present = {kind for kind, number in kinds.items() if number}
        rule = rules.get(line.platform)
        if rule is not None and present and not present & set(METHODS[rule.method]):
            names = " and ".join(sorted(kind.replace("_", " ") for kind in present))
            words.append(
                f"Nothing is credited on {line.platform}: all its touches are {names}s, and the policy's method there is "
                f"{rule.method}. Another policy: ONECOUNT_POLICY=FILE"
            )
    return words


def claimed_words(tally: Tally) -> str | None:
    """What the platforms claim together, and what there was; None where no journeys are followed."""
    if tally.once is None:
        return None
    return f"Platforms claim {_conversions(total(tally))}. Counted once over all of them: {_conversions(tally.once)}."


def _conversions(sums: Sums) -> str:
    worth = f" ({money(sums.value, named=True)})" if +sums.value else ""
    return f"{sums.conversions:,} conversion{'s' if sums.conversions != 1 else ''}{worth}"


def import_table(done: dict[str, Any]) -> Group:
    """What became of the file's rows."""
    table = _table()
    table.add_column("rows and events")
    table.add_column("number", justify="right")
    table.add_row("rows read", f"{done['rows']:,}")
    for words, numbers in (("left out", done["skipped"]), ("rejected", done["rejected"]), ("event", done["events"])):
        for name, number in sorted(numbers.items(), key=lambda item: -item[1]):
            table.add_row(Text(f"  {words}: {name}"), f"{number:,}")
    table.add_row("events sent", f"{done['sent']:,}", style="bold")
    return _titled("From rows to events", table)


def rejected_examples(path: Path, limit: int = EXAMPLES_SHOWN) -> list[str]:
    """The first rejected row of each reason, in words: its line in the file, and why."""
    first: dict[str, str] = {}
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                row = json.loads(line)
                where = f" {row['field']}" if row["field"] else ""
                first.setdefault(row["reason"], f"line {row['line']:,}: {row['reason']}{where}: {row['detail'][:120]}")
    return list(first.values())[:limit]


def generated_words(done: dict[str, Any]) -> str:
    """What was in the generated stream, the troubles by name."""
    kinds = Counter(done["kinds"])
    troubles = {
        "repeat": "repeats with another time",
        "retry": "producer's retries",
        "late_click": "late clicks",
        "invalid": "broken records",
        "second_report": "orders reported twice",
        "page_report": "by the page and the server",
        "foreign": "on a partition not their user's",
    }
    found = [f"{kinds[kind]:,} {words}" for kind, words in troubles.items() if kinds[kind]]
    found += [f"{number:,} retractions and restatements" for number in [kinds["retract"] + kinds["restate"]] if number]
    return escape(f"{done['sent']:,} events" + (", among them " + ", ".join(found) if found else ""))
