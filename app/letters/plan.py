"""Which letters a command would handle, and why it leaves the others."""

from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from app.contract.reasons import UNKNOWN_SCHEMA
from app.contract.rows import DeadLetter
from app.formats.opening import Formats
from app.letters.judging import judge_again
from app.letters.log import Letter, LetterLog, Selection
from app.letters.marks import Marks
from app.letters.original import Original, RawLog
from app.policy.model import Policy
from app.settings import Settings


class Deed(NamedTuple):
    """A letter to handle: `record` is sent again, None drops the letter. `in_spite_of`: what speaks against it, if it is forced."""

    letter: DeadLetter
    record: Original | None
    in_spite_of: str = ""


class Left(NamedTuple):
    """Why a letter is left as it is, in words that many letters share."""

    why: str


Examine: TypeAlias = Callable[[DeadLetter], Deed | Left]


@dataclass
class Plan:
    """`able`: letters that can be handled, by (reason, what speaks against it); `left`: those that cannot, by (reason, why)."""

    able: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)


def dropping(letter: DeadLetter) -> Deed | Left:
    """Any letter can be dropped."""
    return Deed(letter, None)


def retrying(
    settings: Settings,
    policy: Policy,
    formats: Formats | None,
    raw: RawLog,
    force: bool,
    clock_ms: Callable[[], int],
) -> Examine:
    """Sends again what would be accepted now; with `force` also what would be refused once more, or might count twice."""

    def examine(letter: DeadLetter) -> Deed | Left:
        if letter.topic not in settings.events_topics:
            return Left(f"{letter.topic} is not in ONECOUNT_EVENTS_TOPICS: nobody would count it")
        original = raw.original(letter)
        if original is None:
            return Left(
                f"{letter.topic} no longer has the record, and the letter only its beginning: send it from its source"
            )
        now_ms = clock_ms()
        again = judge_again(letter, original, policy, now_ms, formats)
        why = f"would be refused again as {again.refusal.reason}" if again.refusal else _twice(letter, policy, now_ms)
        if not why:
            return Deed(letter, again.record)
        return Deed(letter, again.record, why) if force else Left(why)

    return examine


def _twice(letter: DeadLetter, policy: Policy, now_ms: int) -> str:
    """Why an event might count twice: a schema that is known by now makes its first record an event too, in every recount."""
    if letter.reason != UNKNOWN_SCHEMA or now_ms - letter.timestamp_ms <= policy.bounds.dedup_window_ms:
        return ""
    return "its record is older than dedup_window: a rebuild, which knows the schema, would count record and retry"


def chosen(log: LetterLog, marks: Marks, selection: Selection, states: Container[str]) -> Iterator[Letter]:
    """The letters of a selection that are in one of the states."""
    for letter in log.read():
        if selection.takes(letter) and marks.state(letter.content) in states:
            yield letter


def make_plan(log: LetterLog, marks: Marks, selection: Selection, states: Container[str], examine: Examine) -> Plan:
    """Looks at every letter of the selection, and changes nothing."""
    plan = Plan()
    for letter in chosen(log, marks, selection, states):
        found = examine(letter.content)
        if isinstance(found, Left):
            plan.left[letter.content.reason, found.why] += 1
        else:
            plan.able[letter.content.reason, found.in_spite_of] += 1
    return plan


def deeds(
    log: LetterLog, marks: Callable[[], Marks], selection: Selection, states: Container[str], examine: Examine
) -> Iterator[Deed]:
    """What is to be done, by the marks as they are when each letter's turn comes."""
    for letter in log.read():
        if selection.takes(letter) and marks().state(letter.content) in states:
            found = examine(letter.content)
            if isinstance(found, Deed):
                yield found
