"""`onecount reconcile`: the same fold as the desk's, read once."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.markup import escape

from app.contract.money import TO_DATE, ReconciliationRow, decode_reconciliation
from app.contract.rows import ALL, DeadLetter, decode_dead_letter
from app.desk.calendar import week_name
from app.desk.log import described
from app.desk.once import read_once
from app.desk.reconciliation import Reconciliation
from app.desk.refusal import DeskError
from app.desk.report import Selection, beyond_tolerance, print_report, sorted_rows, write_csv
from app.engine.clients import KafkaClients
from app.engine.policy_topic import recorded_policy
from app.policy.desk import Desk
from app.policy.load import PolicyError, load_desk, load_policy
from app.settings import Settings, from_environment

FAILED: Final = 1
console = Console()
errors = Console(stderr=True)


def reconcile(
    week: Annotated[
        str | None, typer.Option(help="An ISO week such as 2026-W47; by default the last one that is over.")
    ] = None,
    to_date: Annotated[bool, typer.Option("--to-date", help="Everything that is known, instead of a week.")] = False,
    platform: Annotated[str | None, typer.Option(help=f"Only this one; `{ALL}`: only the sum over all.")] = None,
    advertiser: Annotated[str | None, typer.Option(help="Only this one's.")] = None,
    show: Annotated[
        int, typer.Option(min=0, help="Campaigns to print of each platform, those furthest off first.")
    ] = 10,
    csv: Annotated[Path | None, typer.Option(dir_okay=False, help="Write every row and currency here.")] = None,
) -> None:
    """What platforms claim, what is counted for them and what was paid, of a week; docs/money.md says how to read it.

    Needs no running desk. Exit code 0 if each platform that reports is within its tolerance (the policy's `desk.tolerances`),
    1 if one is not, 2 if nothing is known of that week.

    `onecount reconcile --week 2026-W47 --csv week.csv`
    """
    settings = from_environment()
    policy, _ = load_policy(settings.policy)
    if policy.bounds.journeys is None:
        raise PolicyError(f"{settings.policy}: reconciling needs `journeys`: each order is counted once by them")
    if to_date and week is not None:
        raise typer.BadParameter("either a week or everything", param_hint="--week and --to-date")
    if csv is not None and not csv.absolute().parent.is_dir():  # known now, not at the end
        raise typer.BadParameter(f"there is no folder {csv.absolute().parent}", param_hint="--csv")
    asked = None if week is None else _checked(week)
    clients = KafkaClients(settings)
    described(clients, [settings.policy_topic], DeskError)
    policy = recorded_policy(settings, clients)
    if platform is not None and platform not in (ALL, *policy.platforms()):
        raise typer.BadParameter(f"the policy has no {platform!r}", param_hint="--platform")
    desk = load_desk(settings.policy)
    rows, letters = _computed(settings, Reconciliation(settings, policy, desk))
    _tell_refused(letters)
    found = [row for row in rows if _selection(row, asked, to_date, platform, advertiser, desk).takes(row)]
    if not found:
        raise DeskError(_nothing(rows, TO_DATE if to_date else asked or "the last week"))
    if csv is not None:
        write_csv(sorted_rows(found), csv)
    print_report(sorted_rows(found), console, show)
    if beyond_tolerance(found):
        raise typer.Exit(FAILED)


def _computed(settings: Settings, fold: Reconciliation) -> tuple[list[ReconciliationRow], list[DeadLetter]]:
    """All rows, and the records that were refused."""
    with errors.status("reading ...") as status:
        read_once(settings, fold, lambda count: status.update(f"reading ... {count:,} records"))
    rows, letters = [], []
    for output in fold.rows(0):
        if output.value is not None and output.topic == settings.reconciliation_topic:
            rows.append(decode_reconciliation(output.value))
        elif output.value is not None:
            letters.append(decode_dead_letter(output.value))
    return rows, letters


def _selection(
    row: ReconciliationRow, week: str | None, to_date: bool, platform: str | None, advertiser: str | None, desk: Desk
) -> Selection:
    period = TO_DATE if to_date else week or last_week(datetime.now(UTC), desk.zone(row.advertiser_id))
    return Selection(period, platform, advertiser)


def last_week(now: datetime, zone: ZoneInfo) -> str:
    """The last ISO week that is over there."""
    return week_name((now.astimezone(zone).date() - timedelta(weeks=1)).toordinal())


def _checked(week: str) -> str:
    match = re.fullmatch(r"([0-9]{4})-W([0-9]{2})", week)
    try:
        if match is None:
            raise ValueError
        date.fromisocalendar(int(match[1]), int(match[2]), 1)
    except ValueError:
        raise typer.BadParameter(f"{week!r} is no ISO week; write 2026-W47", param_hint="--week") from None
    return week


def _nothing(rows: list[ReconciliationRow], asked: str) -> str:
    weeks = sorted({row.period for row in rows} - {TO_DATE})
    known = f"weeks of {weeks[0]} to {weeks[-1]} are known" if weeks else "nothing is known yet: do counters run?"
    return f"nothing is known of {asked}, by what was asked for; {known}"


def _tell_refused(letters: list[DeadLetter]) -> None:
    if not letters:
        return
    errors.print(
        f"[yellow]{len(letters):,} records were refused and are in no number[/]; the first ones:", highlight=False
    )
    for letter in letters[:3]:
        errors.print(
            f"  {escape(f'{letter.topic}:{letter.partition}:{letter.offset} {letter.reason} {letter.field}: {letter.detail}')}",
            highlight=False,
            soft_wrap=True,
        )
