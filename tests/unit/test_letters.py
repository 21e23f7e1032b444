"""Dead letters: which are meant, what a retry would come to, what is remembered of them, and how they are shown."""

import io
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import typer
from rich.console import Console

from app.contract import reasons
from app.contract.events import Rejection, decode_event, judge_bytes
from app.contract.rows import KEPT_BYTES, DeadLetter, dead_letter
from app.letters import commands, words
from app.letters.desk import batches
from app.letters.judging import judge_again
from app.letters.log import Letter, Selection, Source, parse_moment, parse_source
from app.letters.marks import DROPPED, OPEN, RETRIED, Mark, Marks, encode, key_of
from app.letters.original import Original, kept_part
from app.letters.plan import Deed
from app.letters.refusal import LettersError
from app.policy.load import load_policy
from app.policy.model import ClickIds
from tests.unit.test_contract import DAY_MS, NOW_MS, REFUSED, adjustment, conversion, encoded, view, without

ROOT = Path(__file__).resolve().parents[2]
POLICY = load_policy(ROOT / "deploy" / "policy.yaml")[0]


def letter(reason: str = "empty", offset: int = 1, value: bytes | None = b"", **fields: object) -> DeadLetter:
    found = {"topic": "ads.events", "partition": 0, "offset": offset, "timestamp_ms": NOW_MS, "key": b"u1"} | fields
    return dead_letter(Rejection(reason, "", "because"), value=value, **found)  # type: ignore[arg-type]


# --- Reasons


def test_every_reason_is_explained_in_words_and_in_the_runbook() -> None:
    assert list(reasons.EXPLAINED) == list(reasons.ALL_REASONS)
    page = (ROOT / "docs" / "dead-letters.md").read_text()
    for reason, explained in reasons.EXPLAINED.items():
        assert f"| `{reason}` | {explained.means} | {explained.remedy} | {explained.retry} |" in page


@pytest.mark.parametrize(("name", "raw", "reason"), [case[:3] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_bytes_that_were_refused_would_be_refused_again_for_the_same_reason(
    name: str, raw: bytes | None, reason: str
) -> None:
    again = judge_again(letter(reason, value=raw), Original(b"u1", raw), POLICY, NOW_MS)
    assert again.record.value == raw
    if reason == reasons.KEY_MISMATCH:
        assert again.refusal is None
        assert again.record.key == judge_bytes(raw).user_id.encode()  # type: ignore[union-attr]
    else:
        assert again.refusal is not None
        assert again.refusal.reason == reason


def test_a_retry_is_judged_by_the_time_at_which_it_is_sent() -> None:
    raw = encoded(view(event_time=NOW_MS + 300_001))
    early = letter(reasons.IN_THE_FUTURE, value=raw)
    judged = [judge_again(early, Original(b"u1", raw), POLICY, NOW_MS + later) for later in (0, 1, 8 * DAY_MS)]
    assert [each.refusal.reason if each.refusal else None for each in judged] == ["in_the_future", None, "too_old"]


def test_a_platform_is_known_from_its_version_on() -> None:
    later = msgspec.structs.replace(
        POLICY.versions[0],
        number=2,
        effective_from_ms=NOW_MS,
        platforms={"newcomer": POLICY.versions[0].platforms["meta"]},
    )
    policy = msgspec.structs.replace(POLICY, versions=(*POLICY.versions, later))
    assert policy.platforms() == dict.fromkeys(POLICY.platforms(), 0) | {"newcomer": NOW_MS}
    raw = encoded(view(platform="newcomer"))
    refused = letter(reasons.UNKNOWN_PLATFORM, value=raw)
    judged = [judge_again(refused, Original(b"u1", raw), policy, NOW_MS + later_ms) for later_ms in (-1, 0)]
    assert [each.refusal.reason if each.refusal else None for each in judged] == ["unknown_platform", None]


def test_what_rests_on_other_events_is_not_sent_again_though_its_bytes_are_sound() -> None:
    raw = encoded(adjustment())
    assert not isinstance(decode_event(raw, b"u1", NOW_MS, POLICY.platforms(), DAY_MS, 1), Rejection)
    for reason in (*reasons.ADJUSTMENT_REASONS, reasons.BEYOND_CORRECTION_HORIZON):
        again = judge_again(letter(reason, value=raw), Original(b"u1", raw), POLICY, NOW_MS)
        assert again.refusal is not None
        assert again.refusal.reason == reason


def test_an_event_that_found_no_click_is_sent_again_as_it_was_while_it_is_young_enough() -> None:
    raw = encoded(without(conversion(), "user_id") | {"click_id": "k1"})
    lost = letter(reasons.CLICK_NOT_FOUND, value=raw)
    bounds = msgspec.structs.replace(POLICY.bounds, click_ids=ClickIds())
    policy = msgspec.structs.replace(POLICY, bounds=bounds)
    judged = [judge_again(lost, Original(b"any", raw), policy, NOW_MS + later_ms) for later_ms in (0, 8 * DAY_MS)]
    assert [each.refusal.reason if each.refusal else None for each in judged] == [None, "too_old"]
    assert judged[0].record == Original(b"any", raw)


def test_an_event_without_a_key_is_sent_again_under_its_user() -> None:
    raw = encoded(conversion())
    assert judge_again(letter(value=raw), Original(None, raw), POLICY, NOW_MS).record == Original(b"u1", raw)


def test_every_command_of_the_documents_is_one() -> None:
    program = typer.main.get_command(commands.app)
    found = set()
    for page in sorted((ROOT / "docs").glob("*.md")):
        for line in re.findall(r"onecount dlq ((?:list|show|retry|drop) [^`#\n]+)", page.read_text()):
            name, *arguments = shlex.split(line)
            program.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
            found.add(name)
    assert found == {"list", "show", "retry", "drop"}


# --- Selections


def test_a_selection_takes_by_reason_time_and_source() -> None:
    one = Letter(letter("too_old", offset=7, partition=3), 1_000)
    assert Selection().takes(one)
    for selection, takes in (
        (Selection(reasons=frozenset({"too_old", "empty"})), True),
        (Selection(reasons=frozenset({"empty"})), False),
        (Selection(since_ms=1_000, until_ms=1_001), True),
        (Selection(since_ms=1_001), False),
        (Selection(until_ms=1_000), False),
        (Selection(source=Source("ads.events")), True),
        (Selection(source=Source("ads.events", 3)), True),
        (Selection(source=Source("ads.events", 3, 7)), True),
        (Selection(source=Source("ads.events", 0)), False),
        (Selection(source=Source("ads.events", 3, 0)), False),
        (Selection(source=Source("ads")), False),
    ):
        assert selection.takes(one) is takes, selection


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("ads.events", ("ads.events", None, None)),
        ("ads.events:0", ("ads.events", 0, None)),
        ("a_b-c.d:12:9223372036854775807", ("a_b-c.d", 12, 2**63 - 1)),
    ],
)
def test_a_source_is_a_topic_a_partition_or_a_record(text: str, source: tuple[object, ...]) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize("text", ["", "a:b", "a:1:", "a:-1", "a/1/2", "a:1:2:3", "a b", "a:1:x"])
def test_what_names_no_source_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(LettersError, match="write topic, topic:partition or topic:partition:offset"):
        parse_source(text)


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2h", NOW_MS - 7_200_000),
        ("7d", NOW_MS - 7 * DAY_MS),
        ("2026-03-01", 1_772_323_200_000),
        ("2026-03-01T14:00", 1_772_373_600_000),
        ("2026-03-01T14:00Z", 1_772_373_600_000),
        ("2026-03-01T15:00:00.5+01:00", 1_772_373_600_500),
    ],
)
def test_a_moment_is_so_long_ago_or_an_iso_time(text: str, time_ms: int) -> None:
    assert parse_moment(text, NOW_MS) == time_ms


@pytest.mark.parametrize("text", ["", "yesterday", "2 hours", "-2h", "2026-13-01", "14:00"])
def test_what_is_no_time_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(LettersError, match="write 30m, 2h, 7d or an ISO time"):
        parse_moment(text, NOW_MS)


# --- Marks


def test_the_last_mark_of_a_letter_holds_and_a_null_one_opens_it_again() -> None:
    marks = Marks()
    one, other = letter(offset=1), letter(offset=2)
    dropped, retried = encode(Mark(DROPPED, "empty")), encode(Mark(RETRIED, "empty", 3, 99))
    assert marks.state(one) == OPEN
    marks.add([(key_of(one), dropped, 10), (key_of(one), retried, 11), (key_of(other), dropped, 12)])
    known = marks.of(one)
    assert known is not None
    assert (known.mark.state, known.mark.partition, known.mark.offset, known.handled_ms) == (RETRIED, 3, 99, 11)
    assert marks.state(other) == DROPPED
    marks.add([(key_of(other), None, 13)])
    assert marks.state(other) == OPEN
    assert marks.count() == 1


def test_a_topic_that_was_made_anew_does_not_inherit_marks() -> None:
    marks = Marks()
    marks.add([(key_of(letter(timestamp_ms=NOW_MS)), encode(Mark(RETRIED, "empty", 0, 1)), 10)])
    assert marks.state(letter(timestamp_ms=NOW_MS + 1)) == OPEN


# --- Batches


def test_batches_are_bounded_by_letters_and_bytes() -> None:
    def sizes(lengths: Sequence[int], letters_max: int, bytes_max: int) -> list[int]:
        found = [Deed(letter(offset=place), Original(None, b"x" * length)) for place, length in enumerate(lengths)]
        cut = list(batches(found, letters_max, bytes_max))
        assert [deed for batch in cut for deed in batch] == found
        return [len(batch) for batch in cut]

    assert sizes([1] * 7, 3, 100) == [3, 3, 1]
    assert sizes([60, 60, 30, 10, 1], 3, 100) == [1, 3, 1]
    assert sizes([500, 1, 500], 3, 100) == [1, 1, 1]
    assert sizes([], 3, 100) == []


# --- What is shown


def printed(text: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(text, highlight=False, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_a_producer_wrote_is_let_loose_neither_on_the_terminal_nor_on_the_markup() -> None:
    text = "a\x1b[31mb\x07 [bold]c[/] \u202ed\né"
    assert printed(words.harmless(text)) == "a\\x1b[31mb\\x07 [bold]c[/] \\u202ed\\né\n"
    assert printed(words.harmless(text, "\n")).endswith("d\né\n")


@pytest.mark.parametrize(
    ("value", "begins"),
    [
        (None, "(no value)"),
        (b'{"a":1}', '{\n  "a": 1\n}'),
        (b'{"a', '{"a'),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"[" * 3_000, "[[["),
        (
            b'{"a":"' + b"x" * 10_000 + b'","b":2}',
            '{\n  "a": "' + "x" * 200 + ' ... (10,000 characters in all; --json prints them)",\n',
        ),
        (b"x" * 10_000, "xxx"),
    ],
    ids=["null", "JSON", "cut", "no UTF-8", "deep", "long field", "long"],
)
def test_an_event_is_laid_out_where_it_is_json_and_bounded_always(value: bytes | None, begins: str) -> None:
    shown = printed(words.event_text(value))
    assert shown.startswith(begins)
    assert len(shown) < 1.2 * words.SHOWN_CHARACTERS


def test_a_groups_example_is_its_newest_open_letter() -> None:
    group = words.Group()
    for offset, refused_ms, state in ((1, 50, DROPPED), (2, 10, OPEN), (3, 20, OPEN), (4, 15, OPEN), (5, 90, RETRIED)):
        group.add(Letter(letter(offset=offset), refused_ms), state)
    assert (group.example, group.oldest_ms, group.newest_ms) == ("ads.events:0:3", 10, 90)
    row = words.group_object("empty", "ads.events", group)
    assert (row["open"], row["retried"], row["dropped"]) == (3, 1, 1)
    json.dumps(row)


def test_a_long_event_is_only_partly_in_its_letter() -> None:
    long = letter(value=b"x" * (KEPT_BYTES + 1))
    assert long.truncated
    assert kept_part(long) == Original(b"u1", b"x" * KEPT_BYTES)
