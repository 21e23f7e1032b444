"""`onecount import` and `onecount export`."""

import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape

from app.engine.clients import KafkaClients
from app.engine.policy_topic import recorded_policy
from app.importer import Given, apply_given, find_mapping, import_file, load_mapping
from app.letters.log import parse_moment
from app.offline.book import Book
from app.offline.export import Exported, Wish, export
from app.offline.feeds import FEEDS, SKIPPED
from app.offline.refusal import OfflineError
from app.offline.report import print_totals, write_judged, write_report
from app.policy.model import Policy
from app.settings import Settings, from_environment

console: Final = Console()
_ACTION: Final = re.compile(r"\s*([^=]+?)\s*=\s*(.+?)\s*")


def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV, TSV, JSONL (may be .gz) or XLSX")],
    mapping: Annotated[
        str, typer.Option("--map", help="The mapping: a YAML file, or google_ads, google_ads_adjustments, meta.")
    ],
    rejected: Annotated[
        Path | None, typer.Option(help="Where refused rows go (JSONL); default: beside the file")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Where the progress is kept; default: beside the file")] = None,
    resume: Annotated[bool, typer.Option(help="Go on after what an earlier run delivered.")] = True,
    limit: Annotated[int | None, typer.Option(help="At most so many rows (sorted mappings: events).")] = None,
    advertiser: Annotated[
        str | None, typer.Option(help="Whose conversions these are, where the mapping leaves it open.")
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(help='What the file calls an action of the policy: purchase="Offline purchase". Repeatable.'),
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Of times that name none, nor does the file: Europe/Berlin, UTC, +0100.")
    ] = None,
    sheet: Annotated[str | None, typer.Option(help="Of a workbook; default: the first.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge everything as it would be, send nothing.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write what became of each row (CSV): counted, or why not.", dir_okay=False)
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds that the report waits for the counters.")] = 60.0,
) -> None:
    """Send a file's rows as events, each with its own time; refused rows are written to a file of their own.

    Each row is judged by the version of the policy that is in force at its time, of all that are recorded in Kafka; a dry
    run asks Kafka too.
    `onecount import events.csv.gz --map deploy/mappings/shop.yaml`, or an ad platform's file of offline conversions:
    `onecount import leads.xlsx --map google_ads --advertiser shop --action purchase="Offline purchase" --report report.csv`
    """
    settings = from_environment()
    policy = policy_of(settings)
    named = {theirs: ours for ours, theirs in parse_actions(action or [], known_actions(policy)).items()}
    given = Given(advertiser, named, zone)
    ready = apply_given(load_mapping(find_mapping(mapping)), given)
    if report is not None and not report.absolute().parent.is_dir():  # known now, not at the end
        raise typer.BadParameter(f"there is no folder {report.absolute().parent}", param_hint="--report")
    with Book() as book:
        watch = None if report is None else book.note
        import_file(
            settings, policy, file, mapping, rejected, resume, limit, console,
            given=given, sheet=sheet, dry_run=dry_run, watch=watch, state_path=state,
        )  # fmt: skip
        if report is None:
            return
        if dry_run:
            write_judged(book, report, ready.codes, ready.sort_by_time)
            behind = None
        else:
            behind = write_report(settings, policy, book, report, ready.codes, wait, ready.sort_by_time)
        print_totals(console, book, report, ready.codes)
    if behind:
        console.print(f"[yellow]{escape(behind)}[/]", highlight=False, soft_wrap=True)


def policy_of(settings: Settings) -> Policy:
    """All recorded versions, as the counters and `verify` judge by them; the file's while nothing is recorded. Raises
    `OfflineError`, `PolicyError`, `SessionEnded`, KafkaException.
    """
    clients = KafkaClients(settings)
    if settings.policy_topic not in clients.topics([settings.policy_topic]):
        raise OfflineError(f"no such topic: {settings.policy_topic}; run `onecount topics create`")
    return recorded_policy(settings, clients)


def known_actions(policy: Policy) -> Collection[str]:
    """The actions of all versions: a conversion may be of a time when another one was in force."""
    return dict.fromkeys(name for version in policy.versions for name in version.actions)


def parse_actions(said: list[str], known: Collection[str]) -> dict[str, str]:
    """The names that a platform or a file has for the policy's actions, of texts `ours=theirs`."""
    found: dict[str, str] = {}
    for text in said:
        match = _ACTION.fullmatch(text)
        if match is None:
            raise typer.BadParameter(f'{text!r}: write purchase="Offline purchase"', param_hint="--action")
        ours, theirs = match.groups()
        if ours not in known:
            raise typer.BadParameter(
                f"{ours!r} is no action of the policy; it has {', '.join(known)}", param_hint="--action"
            )
        if ours in found or theirs in found.values():
            raise typer.BadParameter(f"{text!r}: each name once", param_hint="--action")
        found[ours] = theirs
    return found


def export_(
    platform: Annotated[
        str, typer.Option("--for", help=f"{' or '.join(FEEDS)}: also the platform's name in the policy.")
    ],
    advertiser: Annotated[str, typer.Option(help="Whose conversions.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="The folder for the files.")] = Path(),
    begin: Annotated[
        str | None,
        typer.Option(
            "--from", help="Conversions since then: 30d, or an ISO time; default: as old as the platform takes."
        ),
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Conversions before then; default: now.")] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(help='What the platform calls an action: purchase="Offline purchase". Repeatable.'),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Meta's DATA_SET_ID.")] = "",
    state: Annotated[
        Path | None, typer.Option(dir_okay=False, help="What is exported already; default: a file in the folder.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="All conversions of the range, exported before or not; the state stays as it is."),
    ] = False,
    user_id: Annotated[
        bool, typer.Option("--user-id", help="A column more, the user_id, for another onecount; not for the platform.")
    ] = False,
) -> None:
    """Write an ad platform's upload files of the conversions that are counted for it, and of what has changed of them.

    What an earlier run exported is not repeated.
    `onecount export --for google_ads --advertiser shop --action purchase="Offline purchase" --out feeds`
    """
    if platform not in FEEDS:
        raise typer.BadParameter(f"{platform!r}: one of {', '.join(FEEDS)}", param_hint="--for")
    if platform == "meta" and not dataset:
        raise typer.BadParameter("Meta drops what names no dataset: give its id", param_hint="--dataset")
    settings = from_environment()
    policy = policy_of(settings)
    now_ms = int(time.time() * 1000)
    default = out / f"onecount-export-{platform}-{quote(advertiser, safe='')}.sqlite"
    wish = Wish(
        platform=platform,
        advertiser=advertiser,
        from_ms=now_ms - FEEDS[platform].max_age_ms if begin is None else parse_moment(begin, now_ms),
        to_ms=now_ms if end is None else parse_moment(end, now_ms),
        folder=out,
        state=None if again else state or default,
        actions=parse_actions(action or [], known_actions(policy)),
        data_set_id=dataset,
        with_user=user_id,
    )
    _print(export(settings, policy, wish, now_ms), policy_knows=platform in policy.platforms(), platform=platform)


def _print(done: Exported, policy_knows: bool, platform: str) -> None:
    lines = [("conversions written", done.conversions), ("adjustments written", done.adjustments)]
    lines += [(f"left out: {SKIPPED[why]}", number) for why, number in done.skipped.most_common()]
    for what, number in lines:
        console.print(f"{number:>12,}  {escape(what)}", highlight=False, soft_wrap=True)
    for path in done.files:
        console.print(escape(str(path)), highlight=False, soft_wrap=True)
    if not policy_knows:
        console.print(f"[yellow]the policy has no platform {platform}: nothing is counted for it[/]", highlight=False)
