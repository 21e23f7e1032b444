"""`onecount dlq list | show | retry | drop`: one function each, thin over the rest of the room."""

import heapq
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from enum import StrEnum
from itertools import count
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console

from app.contract.events import Rejection
from app.contract.reasons import ALL_REASONS
from app.engine.clients import KafkaClients
from app.formats.schemas import RegistryRefused, RegistryUnavailable
from app.letters import words
from app.letters.desk import AGAIN, Desk, carry_out
from app.letters.judging import body_of, formats_in_force, judge_again, policy_in_force
from app.letters.log import Letter, LetterLog, Selection, parse_moment, parse_source
from app.letters.marks import DROPPED, OPEN, RETRIED, Marks, read_marks
from app.letters.original import Original, RawLog, kept_part
from app.letters.plan import Examine, Plan, chosen, deeds, dropping, make_plan, retrying
from app.letters.refusal import LettersError
from app.policy.load import PolicyError
from app.settings import Settings, from_environment

app = typer.Typer(no_args_is_help=True, help="Dead letters: see refused events, send them again, or drop them.")
console = Console()
errors = Console(stderr=True)

FAILED: Final = 1
BUDGET: Final = 10_000
RATE: Final = 500.0


class State(StrEnum):
    """What became of a letter."""

    open = OPEN
    retried = RETRIED
    dropped = DROPPED


class Retriable(StrEnum):
    """What may be sent again: never what was already."""

    open = OPEN
    dropped = DROPPED


Reason = Annotated[list[str] | None, typer.Option("--reason", help="Only letters of this reason; may be repeated.")]
Since = Annotated[str | None, typer.Option(help="Only letters written since: 30m, 2h, 7d ago, or an ISO time (UTC).")]
Until = Annotated[str | None, typer.Option(help="Only letters written before: 30m, 2h, 7d ago, or an ISO time (UTC).")]
Place = Annotated[str | None, typer.Option("--source", help="Only events refused there: topic[:partition[:offset]].")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts: JSON, a line an object; all else to stderr.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many letters.")]
Budget = Annotated[int, typer.Option(min=1, help="The most that one command handles, whatever it was asked for.")]
Rate = Annotated[float, typer.Option(min=0.1, help="At most about so many letters a second.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command("list")
def list_(
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    source: Place = None,
    state: Annotated[State | None, typer.Option(help="Only letters in this state.")] = None,
    each: Annotated[bool, typer.Option("--each", help="A line a letter; with --limit the newest ones.")] = False,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Count the dead letters by reason and source, or list them one by one.

    `onecount dlq list --since 2h` or `onecount dlq list --each --limit 20 --reason unknown_platform`
    """
    settings = from_environment()
    clients = KafkaClients(settings)
    selection = _selection(reason, since, until, source)
    states = tuple(State) if state is None else (state,)
    log = LetterLog(settings, clients, selection.since_ms)
    with closing(read_marks(settings, clients)) as marks:
        found = chosen(log, marks, selection, states)
        if each:
            for letter in found if limit is None else _newest(found, limit):
                known = marks.of(letter.content)
                if as_json:
                    _put(words.letter_object(letter, known))
                else:
                    line = words.letter_line(letter, OPEN if known is None else known.mark.state)
                    console.print(line, highlight=False, soft_wrap=True)
        else:
            groups: dict[tuple[str, str], words.Group] = defaultdict(words.Group)
            for letter in found:
                groups[letter.content.reason, letter.content.topic].add(letter, marks.state(letter.content))
            if as_json:
                for (name, topic), group in sorted(groups.items()):
                    _put(words.group_object(name, topic, group))
            elif groups:
                console.print(words.groups_table(groups))
                example = next(iter(sorted(groups.values(), key=lambda group: -group.states[OPEN]))).example
                console.print(f"one of them: onecount dlq show {example}", highlight=False, soft_wrap=True)
            else:
                console.print("no dead letters" + (" of this selection" if selection != Selection() or state else ""))
    _tell_unreadable(log)


@app.command()
def show(
    coordinates: Annotated[
        str, typer.Argument(help="The refused record: topic:partition:offset, as `list` prints it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Print one dead letter: its event, why it was refused, what to do, and what became of it.

    `onecount dlq show ads.events:3:1207`
    """
    place = parse_source(coordinates)
    if place.offset is None:
        raise LettersError(f"{coordinates!r} is not a single record: write topic:partition:offset")
    settings = from_environment()
    clients = KafkaClients(settings)
    log = LetterLog(settings, clients)
    with closing(read_marks(settings, clients)) as marks, closing(RawLog(settings)) as raw:
        found = [letter for letter in log.read() if Selection(source=place).takes(letter)]
        for letter in found:
            _show(settings, clients, log, marks, raw, letter, as_json)
    if not found:
        errors.print(f"no dead letter of {words.harmless(coordinates)}; `onecount dlq list` tells what there is")
        raise typer.Exit(FAILED)


def _show(
    settings: Settings, clients: KafkaClients, log: LetterLog, marks: Marks, raw: RawLog, letter: Letter, as_json: bool
) -> None:
    known = marks.of(letter.content)
    again = words.sent_again(letter, known)
    refused_again = _reason_at(log, again) if again is not None else None
    original = raw.original(letter.content)
    whole = original or kept_part(letter.content)
    if original is None:
        retry = "no: the raw log no longer has the record, and the letter only its beginning"
    else:
        retry = _retry_words(settings, clients, letter, whole)
    if as_json:
        more = {"refused_again": refused_again, "retry": retry, "is_whole": original is not None}
        _put(words.letter_object(letter, known) | more | words.value_object(whole))
        return
    became = ""
    if again is not None:
        became = f", sent again as {again}" + (f", refused again as {refused_again}" if refused_again else "")
    words.print_letter(console, letter, known, became, retry)
    console.print(words.event_text(_shown(settings, clients, whole)), highlight=False, soft_wrap=True)


def _shown(settings: Settings, clients: KafkaClients, original: Original) -> bytes | None:
    """The event's JSON where it can be read, else the record's bytes."""
    try:
        body = body_of(original, formats_in_force(settings, policy_in_force(settings, clients)), _now_ms())
    except (PolicyError, RegistryRefused, RegistryUnavailable):
        return original.value
    return original.value if isinstance(body, Rejection) else body


def _retry_words(settings: Settings, clients: KafkaClients, letter: Letter, original: Original) -> str:
    try:
        policy = policy_in_force(settings, clients)
        formats = formats_in_force(settings, policy)
        refusal = judge_again(letter.content, original, policy, _now_ms(), formats).refusal
    except (PolicyError, RegistryRefused, RegistryUnavailable) as error:
        return f"not judged: {error}"
    if refusal is None:
        return "would be accepted now, as far as can be known beforehand"
    return f"would be refused again now as {refusal.reason}: {refusal.detail}"


def _reason_at(log: LetterLog, coordinates: str) -> str | None:
    selection = Selection(source=parse_source(coordinates))
    return next((letter.content.reason for letter in log.read() if selection.takes(letter)), None)


@app.command()
def retry(
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    source: Place = None,
    state: Annotated[Retriable, typer.Option(help="Which to send again.")] = Retriable.open,
    limit: Limit = None,
    budget: Budget = BUDGET,
    rate: Rate = RATE,
    force: Annotated[bool, typer.Option("--force", help="Also what would be refused again.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send refused events again, each exactly once, to the topic in which they were found.

    `onecount dlq retry --reason unknown_platform --since 2d`
    """
    settings = from_environment()
    policy = policy_in_force(settings, KafkaClients(settings))
    with closing(RawLog(settings)) as raw:
        _handle(
            settings,
            _selection(reason, since, until, source),
            (str(state),),
            retrying(settings, policy, formats_in_force(settings, policy), raw, force, _now_ms),
            lambda states, tell: Desk(settings, policy.bounds.partitioner, states, tell),
            ("send again", "sent again"),
            min(budget, limit or budget),
            rate,
            yes,
            as_json,
        )


@app.command()
def drop(
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    source: Place = None,
    limit: Limit = None,
    budget: Budget = BUDGET,
    rate: Rate = RATE,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Mark letters as dropped: nobody is to send them again. Nothing is deleted; `retry --state dropped` takes it back.

    `onecount dlq drop --reason invalid_json --until 7d`
    """
    settings = from_environment()
    _handle(
        settings,
        _selection(reason, since, until, source),
        (OPEN,),
        dropping,
        lambda states, tell: Desk(settings, None, states, tell),
        ("drop", "dropped"),
        min(budget, limit or budget),
        rate,
        yes,
        as_json,
    )


def _handle(
    settings: Settings,
    selection: Selection,
    states: tuple[str, ...],
    examine: Examine,
    make_desk: Callable[[tuple[str, ...], Callable[[str], None]], Desk],
    verbs: tuple[str, str],
    budget: int,
    rate: float,
    yes: bool,
    as_json: bool,
) -> None:
    """Plans, asks, acts, and says what was done and what remains."""
    out = errors if as_json else console
    clients = KafkaClients(settings)
    log = LetterLog(settings, clients, selection.since_ms)
    with closing(read_marks(settings, clients)) as marks:
        plan = make_plan(log, marks, selection, states, examine)
    _tell_unreadable(log)
    able = plan.able.total()
    wanted = min(able, budget)
    words.print_plan(out, plan, verbs[0], wanted, able - wanted)
    if wanted and not yes:
        typer.confirm(f"{verbs[0].capitalize()} {wanted:,} letters?", abort=True, err=as_json)
    desk = make_desk(states, lambda line: errors.print(words.harmless(line), highlight=False, soft_wrap=True))
    try:
        if wanted:
            desk.open()
            found = deeds(log, lambda: desk.marks, selection, states, examine)
            carry_out(desk, found, wanted, rate, _progress(wanted, verbs[1]))
    finally:
        desk.close()
        _result(out, plan, desk.done, able, verbs[1], as_json)
    if plan.left:
        raise typer.Exit(FAILED)


def _result(out: Console, plan: Plan, done: int, able: int, verb: str, as_json: bool) -> None:
    if as_json:
        left = [{"reason": reason, "why": why, "letters": number} for (reason, why), number in plan.left.most_common()]
        _put({"done": done, "remaining": max(able - done, 0), "left": left})
        return
    rest = f"; {able - done:,} remain: {AGAIN}" if able > done else ""
    left = f"; {plan.left.total():,} are left as they were" if plan.left else ""
    out.print(f"{done:,} {verb}{rest}{left}", highlight=False, soft_wrap=True)


def _progress(wanted: int, verb: str) -> Callable[[int], None]:
    """Says about every ten seconds how far it is; a short command says nothing."""
    last_s = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > 10 and done < wanted:
            last_s = time.monotonic()
            errors.print(f"{done:,} of {wanted:,} {verb}", highlight=False)

    return tell


def _selection(reason: list[str] | None, since: str | None, until: str | None, source: str | None) -> Selection:
    unknown = [name for name in reason or () if name not in ALL_REASONS]
    if unknown:
        raise LettersError(f"{unknown[0]!r} is no reason; one of {', '.join(ALL_REASONS)}")
    now_ms = _now_ms()
    return Selection(
        frozenset(reason or ()),
        None if since is None else parse_moment(since, now_ms),
        None if until is None else parse_moment(until, now_ms),
        None if source is None else parse_source(source),
    )


def _newest(letters: Iterator[Letter], limit: int) -> list[Letter]:
    """The newest letters, the newest first; no more of them are held."""
    numbers = count()
    kept: list[tuple[int, int, Letter]] = []
    for letter in letters:
        entry = (letter.refused_ms, next(numbers), letter)
        if len(kept) < limit:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    return [letter for _, _, letter in sorted(kept, reverse=True)]


def _tell_unreadable(log: LetterLog) -> None:
    if log.unreadable:
        errors.print(f"[yellow]{log.unreadable:,} records of {log.topic} are no dead letters: who wrote them?[/]")


def _put(found: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))


def _now_ms() -> int:
    return int(time.time() * 1000)
