"""How letters are shown: tables and pages for people, objects for scripts. Producers' text is never let loose on a terminal."""

import base64
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.contract.events import MAX_EVENT_BYTES
from app.contract.reasons import EXPLAINED
from app.letters.log import Letter
from app.letters.marks import OPEN, RETRIED, STATES, Known
from app.letters.original import Original
from app.letters.plan import Plan

SHOWN_CHARACTERS: Final = 4_000
SHOWN_IN_A_FIELD: Final = 200


@dataclass
class Group:
    """Letters of one reason and source topic: how many by state, the first and last refusal (epoch ms), an example."""

    states: Counter[str] = field(default_factory=Counter)
    oldest_ms: int = 2**63
    newest_ms: int = 0
    example: str = ""
    example_rank: tuple[bool, int] = (False, -1)

    def add(self, letter: Letter, state: str) -> None:
        """Takes a letter in; the newest open one is the example, if any is open."""
        self.states[state] += 1
        self.oldest_ms = min(self.oldest_ms, letter.refused_ms)
        self.newest_ms = max(self.newest_ms, letter.refused_ms)
        rank = (state == OPEN, letter.refused_ms)
        if rank > self.example_rank:
            self.example, self.example_rank = letter.coordinates, rank


def moment(time_ms: int) -> str:
    """A time for people, in UTC; the number itself where no calendar has it."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"


def harmless(text: str, allowed: str = "") -> str:
    """The text with everything that a terminal might obey written out but for what is `allowed`; safe for rich's markup."""
    return escape("".join(each if each.isprintable() or each in allowed else repr(each)[1:-1] for each in text))


def groups_table(groups: dict[tuple[str, str], Group]) -> Table:
    """The aggregate, the most open letters first."""
    table = Table("reason", "source", *STATES, "newest", "example", header_style="bold", box=None)
    for column in (2, 3, 4):
        table.columns[column].justify = "right"
    for column in (0, 6):
        table.columns[column].overflow = "fold"
    for (reason, topic), group in sorted(groups.items(), key=lambda item: (-item[1].states[OPEN], item[0])):
        counts = [f"{group.states[state]:,}" for state in STATES]
        table.add_row(harmless(reason), harmless(topic), *counts, moment(group.newest_ms), harmless(group.example))
    return table


def group_object(reason: str, topic: str, group: Group) -> dict[str, Any]:
    """A row of the aggregate for scripts."""
    return {
        "reason": reason,
        "topic": topic,
        **{state: group.states[state] for state in STATES},
        "oldest_ms": group.oldest_ms,
        "newest_ms": group.newest_ms,
        "example": group.example,
    }


def letter_line(letter: Letter, state: str) -> str:
    """One letter in a line for people."""
    content = letter.content
    where = f" ({content.field})" if content.field else ""
    return harmless(
        f"{moment(letter.refused_ms)}  {state:7}  {letter.coordinates}  {content.reason}{where}: {content.detail}"
    )


def letter_object(letter: Letter, known: Known | None) -> dict[str, Any]:
    """One letter for scripts, without its value."""
    content = letter.content
    return {
        "coordinates": letter.coordinates,
        "state": OPEN if known is None else known.mark.state,
        "reason": content.reason,
        "field": content.field,
        "detail": content.detail,
        "refused_ms": letter.refused_ms,
        "timestamp_ms": content.timestamp_ms,
        "size_bytes": content.size_bytes,
        "sha256": content.sha256,
        "handled_ms": None if known is None else known.handled_ms,
        "sent_again": sent_again(letter, known),
    }


def sent_again(letter: Letter, known: Known | None) -> str | None:
    """The coordinates of a retried event's new record."""
    if known is None or known.mark.state != RETRIED:
        return None
    return f"{letter.content.topic}:{known.mark.partition}:{known.mark.offset}"


def event_text(value: bytes | None) -> str:
    """The event for people: its JSON laid out, or its bytes as they are; the beginning of a long one."""
    if value is None:
        return "(no value)"
    text = value.decode("utf-8", "backslashreplace")
    if len(value) <= MAX_EVENT_BYTES:
        with suppress(ValueError, RecursionError):
            event = json.loads(text)
            if isinstance(event, dict):
                event = {name: _shortened(value) for name, value in event.items()}
            text = json.dumps(event, indent=2, ensure_ascii=False)
    shown = harmless(text[:SHOWN_CHARACTERS], "\n")
    if len(text) <= SHOWN_CHARACTERS:
        return shown
    return f"{shown} ...\n({len(text):,} characters in all; --json prints them)"


def _shortened(value: object) -> object:
    if not isinstance(value, str) or len(value) <= SHOWN_IN_A_FIELD:
        return value
    return f"{value[:SHOWN_IN_A_FIELD]} ... ({len(value):,} characters in all; --json prints them)"


def value_object(original: Original) -> dict[str, Any]:
    """Key, value and the headers that are part of the event for scripts, every byte."""
    headers = {name: base64.b64encode(said or b"").decode() for name, said in original.headers}
    return {
        "headers_base64": headers,
        "key_base64": None if original.key is None else base64.b64encode(original.key).decode(),
        "value_base64": None if original.value is None else base64.b64encode(original.value).decode(),
    }


def print_letter(console: Console, letter: Letter, known: Known | None, became: str, retry: str) -> None:
    """All about one letter but its event. `became`: what came of a retry; `retry`: whether one would help now."""
    content = letter.content
    explained = EXPLAINED.get(content.reason)
    lines = [
        (
            "letter",
            f"{letter.coordinates}, {known.mark.state + ' ' + moment(known.handled_ms) if known else OPEN}{became}",
        ),
        ("refused", f"{moment(letter.refused_ms)}; its record's timestamp is {moment(content.timestamp_ms)}"),
        ("reason", content.reason + (f": {explained.means}" if explained else "")),
        ("field", content.field),
        ("detail", content.detail),
        ("mend", explained.remedy if explained else ""),
        ("retry", retry),
        ("size", f"{content.size_bytes:,} bytes, sha256 {content.sha256}"),
    ]
    for name, text in lines:
        if text:
            console.print(f"[bold]{name:8}[/] {harmless(text)}", highlight=False, soft_wrap=True)


def print_plan(console: Console, plan: Plan, verb: str, count: int, remain: int) -> None:
    """What a command is about to do, and what it leaves."""
    for (reason, why), number in plan.able.most_common():
        hint = EXPLAINED[reason].retry if verb == "send again" and reason in EXPLAINED else ""
        note = f"[yellow]forced: {harmless(why)}[/]" if why else f"[dim]{harmless(hint)}[/]"
        console.print(f"{number:>9,}  {harmless(reason)}  {note}", highlight=False, soft_wrap=True)
    for (reason, why), number in plan.left.most_common():
        console.print(
            f"{number:>9,}  {harmless(reason)}  [yellow]left: {harmless(why)}[/]", highlight=False, soft_wrap=True
        )
    more = f"; {remain:,} more remain for another run (--budget, --limit)" if remain else ""
    console.print(f"to {verb}: {count:,} of {plan.able.total():,}{more}", highlight=False, soft_wrap=True)
