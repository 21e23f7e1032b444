"""The tables of the end: what came out of a file, and the words after it."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.contract.rows import STATUSES
from app.demo.screen import cost_per_conversion, money, only_currency
from app.demo.tally import Line, Sums, Tally, platforms, top_campaigns, total
from app.policy.model import METHODS, Policy

CAMPAIGNS_SHOWN: Final = 12
EXAMPLES_SHOWN: Final = 3


def touch_table(title: str, lines: Iterable[Line], whole: Sums, with_campaign: bool) -> Table:
    """Touches and what was credited to them, a line for each platform (and campaign), and their sum."""
    lines = list(lines)
    currency = only_currency([whole])
    table = _table(title)
    table.add_column("platform", no_wrap=True)
    if with_campaign:
        table.add_column("campaign", overflow="ellipsis", no_wrap=True)
    columns = ["views", "engaged", "clicks", "conversions", f"revenue {currency}".rstrip()]
    if not whole.engaged_views:
        columns.remove("engaged")
    if whole.cost:
        columns += ["cost", "per conv."]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        names = [line.platform or "(none)", *([line.campaign or "(none)"] if with_campaign else [])]
        table.add_row(*map(Text, names), *_cells(line.sums, whole, currency))
    if len(lines) != 1:
        table.add_section()
        table.add_row("all", *([""] if with_campaign else []), *_cells(whole, whole, currency), style="bold")
    return table


def _cells(sums: Sums, whole: Sums, currency: str) -> list[str]:
    cells = [f"{sums.views:,}", f"{sums.clicks:,}", f"{sums.conversions:,}", money(sums.value, not currency)]
    if whole.engaged_views:
        cells.insert(1, f"{sums.engaged_views:,}")
    if whole.cost:
        cells += [money(Counter({"": sums.cost}), named=False), cost_per_conversion(sums)]
    return cells


def conversion_table(tally: Tally) -> Table:
    """Conversions by action and status; the value is that of the counted ones."""
    actions = sorted({action for (action, _), number in tally.statuses.items() if number})
    whole = Sums()
    for value in tally.value.values():
        whole.value.update(value)
    currency = only_currency([whole])
    table = _table("Conversions by action and status, one for each platform that judged it")
    table.add_column("action", no_wrap=True)
    for name in (*STATUSES, f"revenue {currency}".rstrip()):
        table.add_column(name, justify="right", no_wrap=True)
    for action in actions:
        numbers = [f"{tally.statuses[action, status]:,}" for status in STATUSES]
        table.add_row(Text(action), *numbers, money(tally.value.get(action, Counter()), not currency))
    if len(actions) != 1:
        statuses = tally.by_status()
        table.add_section()
        totals = [f"{statuses[status]:,}" for status in STATUSES]
        table.add_row("all", *totals, money(whole.value, not currency), style="bold")
    return table


def outcome_tables(tally: Tally, limit: int = CAMPAIGNS_SHOWN) -> list[Table]:
    """All that came out: by platform, by action and status, and the first campaigns."""
    whole, top = total(tally), top_campaigns(tally, limit)
    more = len(tally.campaigns) - len(top)
    campaigns = touch_table("Campaigns with the most conversions" if more > 0 else "Campaigns", top, whole, True)
    if more > 0:
        campaigns.caption = f"and {more:,} more campaigns"
    return [touch_table("By platform", platforms(tally), whole, False), conversion_table(tally), campaigns]


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="dim",
    )


def never_credited(tally: Tally, policy: Policy) -> list[str]:
    """Words about each platform whose touches are all of kinds that its method never credits."""
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


def import_table(done: dict[str, Any]) -> Table:
    """What became of the file's rows."""
    table = _table("From rows to events")
    table.add_column("rows and events")
    table.add_column("number", justify="right")
    table.add_row("rows read", f"{done['rows']:,}")
    for words, numbers in (("left out", done["skipped"]), ("rejected", done["rejected"]), ("event", done["events"])):
        for name, number in sorted(numbers.items(), key=lambda item: -item[1]):
            table.add_row(Text(f"  {words}: {name}"), f"{number:,}")
    table.add_row("events sent", f"{done['sent']:,}", style="bold")
    return table


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
        "foreign": "on a partition not their user's",
    }
    found = [f"{kinds[kind]:,} {words}" for kind, words in troubles.items() if kinds[kind]]
    found += [f"{number:,} retractions and restatements" for number in [kinds["retract"] + kinds["restate"]] if number]
    return escape(f"{done['sent']:,} events" + (", among them " + ", ".join(found) if found else ""))
