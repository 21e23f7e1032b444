"""The commands: one function each, thin over the rooms that do the work."""

import os
import re
import sys
from contextlib import closing
from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import KafkaError, KafkaException
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from app import __version__
from app.contract.events import parse_time_ms
from app.desk.commands import reconcile
from app.engine.clients import KafkaClients, explained, why_unreachable
from app.engine.session import SessionEnded
from app.engine.state import StateRefused
from app.engine.store import StoreRefused, StoreUnavailable, look_at, open_store, unsafe_settings
from app.formats.opening import OF_A_REGISTRY, open_formats
from app.formats.schemas import RegistryRefused, RegistryUnavailable
from app.gateway import GatewayError
from app.gateway.commands import app as gateway_app
from app.letters.commands import app as dlq_app
from app.letters.refusal import LettersError
from app.offline import OfflineError
from app.offline.commands import export_, import_
from app.policy.load import PolicyError, duration_ms, load_policy, warnings
from app.policy.model import Policy
from app.settings import Settings, from_environment

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # they can show local variables, passwords among them
    help="Counts ad conversions, exactly once.",
)
topics_app = typer.Typer(no_args_is_help=True, help="Create onecount's topics, or compare what is there.")
app.add_typer(topics_app, name="topics")
app.add_typer(dlq_app, name="dlq")
app.add_typer(gateway_app, name="gateway")
console = Console()
errors = Console(stderr=True)

FAILED = 1
MISUSED = 2


def main() -> None:
    """The entry point: known errors end in one clear line and exit code 2, never a traceback."""
    from app.desk.refusal import DeskError
    from app.engine.maintenance import StillRunning
    from app.generate import DeliveryError
    from app.importer import ImportRefusedError, MappingError
    from app.local import LocalServiceError
    from app.page import PageError
    from app.privacy import ForgetRefused
    from app.replay import ReplayRefused
    from app.verify.records import VerifyError

    try:
        app()
    except ValidationError as error:
        for problem in error.errors():
            name = (
                "ONECOUNT_" + "_".join(str(part) for part in problem["loc"]).upper() if problem["loc"] else "settings"
            )
            errors.print(f"[red]{name}[/]: {escape(problem['msg'])}", highlight=False)
        sys.exit(MISUSED)
    except (
        PolicyError,
        StateRefused,
        StoreRefused,
        StoreUnavailable,
        StillRunning,
        DeliveryError,
        DeskError,
        MappingError,
        ImportRefusedError,
        GatewayError,
        LettersError,
        LocalServiceError,
        OfflineError,
        PageError,
        RegistryRefused,
        RegistryUnavailable,
        ForgetRefused,
        ReplayRefused,
        VerifyError,
    ) as error:
        errors.print(f"[red]{escape(str(error))}[/]", highlight=False, soft_wrap=True)
        sys.exit(MISUSED)
    except SessionEnded as error:
        errors.print(f"[red]{escape(explained(error))}[/]", highlight=False, soft_wrap=True)
        sys.exit(MISUSED)
    except KafkaException as error:
        errors.print(f"[red]{escape(_kafka_trouble(from_environment(), error))}[/]", highlight=False, soft_wrap=True)
        sys.exit(MISUSED)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    """Settings come from ONECOUNT_* environment variables; `onecount check` shows and tries them."""
    if show:
        console.print(f"onecount {__version__}", highlight=False)
        raise typer.Exit


@app.command()
def run(
    role: Annotated[str, typer.Argument(help="counter, aggregator, or matcher (where the policy has click_ids)")],
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes, each with one consumer; a supervisor restarts them.")
    ] = 1,
    slot: Annotated[int, typer.Option(hidden=True)] = 0,
    supervisor: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Count until stopped (SIGTERM or Ctrl-C drains and exits 0).

    `onecount run counter --workers 2`
    """
    from app.engine.stages import ROLES
    from app.run import run_worker, supervise

    if role not in ROLES:
        raise typer.BadParameter(f"{role!r}: one of {', '.join(ROLES)}", param_hint="ROLE")
    settings = from_environment()
    load_policy(settings.policy)
    raise typer.Exit(
        run_worker(settings, role, slot, supervisor) if workers == 1 else supervise(settings, role, workers)
    )


@topics_app.command("create")
def topics_create(
    keep_forever: Annotated[bool, typer.Option(help="Raw topics without a retention, for importing history.")] = False,
) -> None:
    """Create the topics that are missing; may be repeated.

    `ONECOUNT_PARTITIONS=12 ONECOUNT_REPLICATION=3 onecount topics create`
    """
    from app.engine.topics import create_topics

    settings = from_environment()
    created = create_topics(settings, load_policy(settings.policy)[0], -1 if keep_forever else None)
    console.print(f"created {', '.join(created)}" if created else "all topics are there", highlight=False)


@topics_app.command("check")
def topics_check() -> None:
    """Compare the topics with what they must be; exit code 1 if one differs."""
    from app.engine.topics import check_topics

    settings = from_environment()
    found = check_topics(settings, load_policy(settings.policy)[0])
    _report(found, "the topics are as they must be")


@app.command()
def check() -> None:
    """Try configuration, policy, brokers, topics and Redis; one line a finding, exit code 1 if one is bad."""
    settings = from_environment()
    console.print(f"[green]ok[/]   settings: {settings!r}", highlight=False, soft_wrap=True)
    policy, _ = load_policy(settings.policy)
    console.print(
        f"[green]ok[/]   policy {settings.policy}: {', '.join(f'{name} {rule.method}' for name, rule in policy.versions[0].platforms.items())}"
    )
    for warning in warnings(policy):
        console.print(f"[yellow]note[/] policy: {warning}")
    found = [*_kafka_findings(settings), *_redis_findings(settings), *_registry_findings(settings, policy)]
    registry = "" if set(policy.formats()).isdisjoint(OF_A_REGISTRY) else ", the schema registry"
    _report(found, f"Kafka, its topics, the recorded policy{registry} and Redis are fit for counting")


def _kafka_findings(settings: Settings) -> list[str]:
    from app.engine.policy_topic import recorded_policy
    from app.engine.topics import check_topics

    try:
        found = [f"topics: {line}" for line in check_topics(settings, load_policy(settings.policy)[0])]
        if not any(settings.policy_topic in line for line in found):
            recorded_policy(settings, KafkaClients(settings))
        return found
    except KafkaException as error:
        return [_kafka_trouble(settings, error)]
    except SessionEnded as error:
        return [explained(error)]
    except PolicyError as error:
        return [f"policy: {error}"]


def _kafka_trouble(settings: Settings, error: KafkaException) -> str:
    """What Kafka did not do and why, in one line; of brokers that only do not answer, it is asked once more."""
    found = error.args[0]
    if found.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
        why = why_unreachable(settings) or f"{found.str()}; is it running, and is ONECOUNT_BOOTSTRAP right?"
    else:
        why = explained(error)
    return f"Kafka at {settings.bootstrap}: {why}"


def _redis_findings(settings: Settings) -> list[str]:
    try:
        with closing(open_store(settings.redis_url.get_secret_value(), settings.request_timeout_ms / 1000)) as store:
            return [f"Redis: {line}" for line in unsafe_settings(look_at(store))]
    except (StoreUnavailable, StoreRefused) as error:
        return [str(error)]


def _registry_findings(settings: Settings, policy: Policy) -> list[str]:
    try:
        formats = open_formats(policy.formats(), settings.registry, settings.request_timeout_ms / 1000)
        if formats is not None:
            formats.probe()
    except (RegistryRefused, RegistryUnavailable) as error:
        return [str(error)]
    return []


def _report(found: list[str], fine: str) -> None:
    for line in found:
        console.print(f"[red]bad[/]  {line}", highlight=False, soft_wrap=True)
    if found:
        raise typer.Exit(FAILED)
    console.print(f"[green]ok[/]   {fine}", highlight=False, soft_wrap=True)


@app.command()
def generate(
    rate: Annotated[float | None, typer.Option(help="Events a second, with the current time.")] = None,
    count: Annotated[int | None, typer.Option(help="How many events.")] = None,
    duration: Annotated[float | None, typer.Option(help="How many seconds.")] = None,
    speed: Annotated[
        float, typer.Option(min=0.01, help="With a rate: event time passes so many times faster than the clock.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 1,
) -> None:
    """Produce made-up events with every trouble real ones have: repeats, late clicks, invalid bytes, adjustments.

    `onecount generate --rate 2000 --duration 60` or `onecount generate --count 1000000`
    """
    from app.generate import produce

    settings = from_environment()
    policy, _ = load_policy(settings.policy)
    result = produce(settings, policy, seed=seed, rate=rate, count=count, duration_s=duration, speed=speed)
    console.print(
        f"{result.delivered:,} events delivered in {result.seconds:.1f} s, {result.failed:,} failed", highlight=False
    )
    for why, number in result.failures.items():
        console.print(f"[red]{number:,} failed:[/] {escape(why)}", highlight=False)
    raise typer.Exit(FAILED if result.failed else 0)


app.command("import")(import_)
app.command("export")(export_)


@app.command()
def verify(
    show: Annotated[int, typer.Option(help="How many differences to print.")] = 10,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the workers to catch up.")] = 60.0,
    processes: Annotated[
        int,
        typer.Option(min=1, help="How many partitions of a long log to work off at once; each takes 4 kB a record."),
    ] = os.cpu_count() or 1,
) -> None:
    """Recompute everything from the raw topics, slowly and independently, and compare it row by row with what is
    published.

    Exit code 0 if all rows are equal.
    """
    from app.engine.policy_topic import recorded_policy
    from app.verify.compare import verify as compare

    settings = from_environment()
    policy = recorded_policy(settings, KafkaClients(settings))
    report = compare(settings, policy, show=show, wait_s=wait, processes=processes, console=console)
    raise typer.Exit(0 if report.ok else FAILED)


@app.command()
def forget(
    user: Annotated[str, typer.Argument(help="The user_id, as it stands in the topics.")],
    advertiser: Annotated[str, typer.Option(help="Whose user; of other advertisers nothing is forgotten.")],
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the counters to come past it.")] = 60.0,
) -> None:
    """Forget a person: remove the state and the rows of up to now, for good, and say what remains until when.

    `onecount forget u-4711 --advertiser shop`
    """
    from app.engine.policy_topic import recorded_policy
    from app.privacy import forget as forget_person
    from app.privacy import print_report

    settings = from_environment()
    policy = recorded_policy(settings, KafkaClients(settings))

    def tell(line: str) -> None:
        errors.print(escape(line), highlight=False, soft_wrap=True)

    print_report(forget_person(settings, policy, advertiser, user, wait, tell), console)


@app.command()
def replay(
    begin: Annotated[
        str | None,
        typer.Option("--from", help="The first window's start: RFC 3339 with a zone, a UTC date, or epoch ms."),
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Windows that start here or later are left out.")] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Judges everything; without it, the recorded versions do, as live."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Counter processes.")] = 1,
    until_arrived: Annotated[
        str | None,
        typer.Option(help="Leave out records of this time and later; by default all that is counted is read."),
    ] = None,
    warm_up: Annotated[
        str | None, typer.Option(help="How much before --from is read (7d); by default what the policy looks back.")
    ] = None,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="Go on where retention has deleted what is needed.")
    ] = False,
    show: Annotated[int, typer.Option(min=0, help="How many windows that differ to print.")] = 20,
    csv: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write every window, platform and measure here.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the shadow topics (for a week), groups and keys.")] = False,
    clean: Annotated[str | None, typer.Option(metavar="ID", help="Remove what a replay left that was killed.")] = None,
    leftovers: Annotated[bool, typer.Option("--leftovers", help="List the replays that --clean could remove.")] = False,
) -> None:
    """Recount a time range into shadow topics, and say how the counts differ from the live ones, which stay untouched.

    Exit code 0 if all final windows are equal, 1 if one differs, 2 if it was refused.

    `onecount replay --from 2026-07-01 --to 2026-07-02 --policy other.yaml`
    """
    from app import replay as room

    settings = from_environment()
    if leftovers or clean is not None:
        for line in room.remove(settings, clean) if clean is not None else _leftovers(settings):
            console.print(line, highlight=False, soft_wrap=True)
        return
    if begin is None or end is None:
        raise typer.BadParameter("a replay needs both", param_hint="--from and --to")
    if csv is not None and not csv.absolute().parent.is_dir():  # known now, not at the end
        raise typer.BadParameter(f"there is no folder {csv.absolute().parent}", param_hint="--csv")
    wish = room.Wish(
        from_ms=_moment(begin, "--from"),
        to_ms=_moment(end, "--to"),
        policy=policy,
        until_ms=None if until_arrived is None else _moment(until_arrived, "--until-arrived"),
        warm_ms=None if warm_up is None else duration_ms(warm_up),
        inexact=inexact,
        workers=workers,
        keep=keep,
    )
    try:
        report = room.replay(settings, wish, errors)
    except room.Stopped as stopped:
        raise typer.Exit(128 + stopped.number) from None
    if csv is not None:
        room.write_csv(report, csv)
    if json:
        print(dumps(room.as_json(report), indent=2))
    else:
        room.print_report(report, console, show)
    raise typer.Exit(0 if report.is_equal else FAILED)


def _leftovers(settings: Settings) -> list[str]:
    from app.replay import leftovers

    found = leftovers(settings)
    return [f"{replay_id}: {', '.join(topics)}" for replay_id, topics in found.items()] or ["no replay left anything"]


def _moment(text: str, option: str) -> int:
    """Epoch ms of what a person writes for a time."""
    day = re.fullmatch(r"\d{4}-\d\d-\d\d", text)
    found = parse_time_ms(int(text) if text.isdecimal() else f"{text}T00:00:00Z" if day else text)
    if found is None:
        raise typer.BadParameter(
            f"{text!r}: write 2026-07-01T12:00:00Z, 2026-07-01 (its first moment in UTC), or epoch milliseconds",
            param_hint=option,
        )
    return found


@app.command()
def serve() -> None:
    """Show the counts, corrections, dead letters and the delay in a browser, live, until stopped.

    http://127.0.0.1:8420 unless ONECOUNT_PAGE_HOST and ONECOUNT_PAGE_PORT say otherwise. It has no login.
    """
    from app.page.serve import serve as serve_page

    raise typer.Exit(serve_page(from_environment()))


@app.command()
def desk() -> None:
    """Keep the leads and their deadlines, and the counts by hour, day and week, until stopped. Several may run: one publishes.

    Answers http://127.0.0.1:8421/leads, /leads/overdue and /rollups, unless ONECOUNT_DESK_HOST and ONECOUNT_DESK_PORT say
    otherwise. It has no login.
    """
    from app.desk.run import run_desk

    raise typer.Exit(run_desk(from_environment()))


app.command()(reconcile)


@app.command()
def rebuild(
    role: Annotated[str | None, typer.Argument(help="counter, aggregator or matcher; all if not given")] = None,
) -> None:
    """Empty the state in Redis of stopped workers; their next start rebuilds it from Kafka and corrects what differs."""
    from app.engine.maintenance import rebuild as empty
    from app.engine.stages import ROLES

    if role is not None and role not in ROLES:
        raise typer.BadParameter(f"{role!r}: one of {', '.join(ROLES)}", param_hint="ROLE")
    removed = empty(from_environment(), (role,) if role else ROLES)
    console.print(f"{removed:,} keys removed; start the workers, they rebuild", highlight=False)


@app.command()
def reset(yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Forget all that was counted (state, offsets, output topics) and count the raw topics from their start."""
    from app.engine.maintenance import reset as forget

    settings = from_environment()
    if not yes:
        typer.confirm(f"Delete the counts and the state of {settings.bootstrap}? The raw events stay.", abort=True)
    for line in forget(settings, load_policy(settings.policy)[0]):
        console.print(line, highlight=False)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=5, help="How long to generate events.")] = 40.0,
    rate: Annotated[float, typer.Option(min=1, help="Events a second.")] = 2_000.0,
    file: Annotated[
        Path | None, typer.Option("--input", exists=True, dir_okay=False, help="Count this file's rows instead.")
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option("--map", exists=True, dir_okay=False, help="Its mapping; known files need none.")
    ] = None,
) -> None:
    """Run the whole thing here: a real Kafka, a real Redis, workers, events, a live table, and `verify` at the end."""
    from app.demo import run_demo

    raise typer.Exit(run_demo(console, seconds=seconds, rate=rate, file=file, mapping=mapping))
