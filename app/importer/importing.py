"""The import: first every row is judged, then what was judged is sent, in batches that Kafka acknowledges."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.importer.checkpoint import Checkpoint, resume_checkpoint, save_checkpoint, start_checkpoint
from app.importer.evaluate import Row
from app.importer.mapping import Given, Mapping, apply_given, find_mapping, load_mapping
from app.importer.ordering import Spool, read_spool, write_spool
from app.importer.prepare import Limits, Outcome
from app.importer.progress import Told
from app.importer.refusal import ImportRefusedError
from app.importer.sending import batches, open_producer, send_batch
from app.importer.source import open_source
from app.importer.survey import Survey, survey
from app.importer.table import Broken
from app.importer.topic import TopicState, describe_topic, refuse_impossible
from app.policy.model import Policy
from app.settings import Settings

Watcher: TypeAlias = Callable[[Row | Broken, Outcome], None]  # is told of each row what becomes of it

_NOTHING_GIVEN: Final = Given()


@dataclass
class Summary:
    """What an import did. `sent` events are acknowledged; `rows` and the counters are of all rows that were judged."""

    rows: int = 0
    sent: int = 0
    resumed_at: int = 0  # events that an earlier run had delivered
    complete: bool = False
    events: Counter[str] = field(default_factory=Counter)  # by rule of the mapping
    rejected: Counter[str] = field(default_factory=Counter)  # rows by reason
    skipped: Counter[str] = field(default_factory=Counter)  # rows by why
    unread: tuple[str, ...] = ()  # columns that the mapping does not use
    oldest_ms: int | None = None
    newest_ms: int | None = None
    rejected_path: Path | None = None
    seconds: float = 0.0


def import_file(
    settings: Settings,
    policy: Policy,
    path: Path,
    mapping_path: Path | str,
    rejected_path: Path | None = None,
    resume: bool = True,
    limit: int | None = None,
    console: Console | None = None,
    *,
    given: Given = _NOTHING_GIVEN,
    sheet: str | None = None,
    dry_run: bool = False,
    watch: Watcher | None = None,
    topic: str | None = None,
    state_path: Path | None = None,
    open_with: Callable[..., Any] = open_producer,
    look_up: Callable[[Settings, str], TopicState] = describe_topic,
) -> Summary:
    """Sends a file's rows to a raw topic (the first of `events_topics` if not given), each at its own time.

    Nothing is sent before all of it is judged; until then it lies in a temporary file (TMPDIR says where).
    `rejected_path` and `state_path` stand next to the file if not given. `resume` carries on after the events that an
    earlier run delivered. `limit`: at most so many events in this run. `dry_run`: everything but the sending, and no state
    is kept. `watch` is told of every row that is judged, also where all of it was delivered before.
    Raises `MappingError` for a mapping that cannot work, `ImportRefusedError` for everything else that stops it.
    """
    started = time.monotonic()
    topic = topic or settings.events_topics[0]
    rejected_path = rejected_path or path.with_name(f"{path.name}.rejected.jsonl")
    state_path = state_path or path.with_name(f"{path.name}.import-state.json")
    mapping = apply_given(load_mapping(find_mapping(mapping_path)), given)
    checkpoint = start_checkpoint(path, _rules(mapping, policy), topic, sheet)
    if resume and not dry_run:
        checkpoint = resume_checkpoint(state_path, checkpoint)
    was_complete = checkpoint.complete
    summary = Summary(resumed_at=checkpoint.delivered, complete=checkpoint.complete, rejected_path=rejected_path)
    if not checkpoint.complete or watch is not None:
        state = look_up(settings, topic)
        if mapping.one_by_one:
            if checkpoint.not_after_ms is None:
                _fix_limits(checkpoint, state, policy)
            state = replace(state, newest_ms=None)  # what is too old for it now is rejected by itself
        with tempfile.TemporaryFile() as file, Told(console) as told:
            judged = _judge(path, mapping, policy, rejected_path, checkpoint, limit, sheet, watch, file, told)
            _take_over(summary, judged.found)
            summary.unread = judged.unread
            horizon_ms = policy.bounds.correction_horizon_ms
            if not checkpoint.complete:
                refuse_impossible(
                    judged.found, state, settings, topic, horizon_ms, mapping.sort_by_time, int(time.time() * 1000)
                )
            if not checkpoint.complete and not dry_run:
                save_checkpoint(state_path, checkpoint)  # finds out before the first record whether it can be written
                _send(settings, policy, mapping, judged, limit, checkpoint, state_path, open_with, summary, told)
    summary.complete = checkpoint.complete
    summary.seconds = time.monotonic() - started
    if console:
        _print(console, summary, path, topic, dry_run, was_complete)
    return summary


def _rules(mapping: Mapping, policy: Policy) -> list[Any]:
    """What decides which events the rows give; an import is not resumed by other ones."""
    given = mapping.given
    actions: list[Any] = _actions(policy) if mapping.known_actions else []
    said = [actions, given.advertiser, sorted(given.actions.items()), given.zone]
    platforms = [[name, since_ms] if since_ms else name for name, since_ms in sorted(policy.platforms().items())]
    return [mapping.sha256, *platforms, *(said if any(said) else [])]


def _actions(policy: Policy) -> list[Any]:
    """The actions, where they were always the same; else since when which."""
    found: list[tuple[int, list[str]]] = []
    for version in policy.versions:
        names = sorted(version.actions)
        if not found or found[-1][1] != names:
            found.append((version.effective_from_ms, names))
    return found if len(found) > 1 else found[0][1]


def _fix_limits(checkpoint: Checkpoint, state: TopicState, policy: Policy) -> None:
    """What the topic takes is fixed at the start, so that a resumed run gives the same events."""
    if state.newest_ms is not None:
        checkpoint.not_before_ms = state.newest_ms - policy.bounds.correction_horizon_ms
    checkpoint.not_after_ms = int(time.time() * 1000) + policy.bounds.max_clock_skew_ms


@dataclass
class _Judged:
    found: Survey
    spool: Spool
    whole: bool  # it holds all of the file
    unread: tuple[str, ...]


def _judge(
    path: Path,
    mapping: Mapping,
    policy: Policy,
    rejected_path: Path,
    checkpoint: Checkpoint,
    limit: int | None,
    sheet: str | None,
    watch: Watcher | None,
    file: BinaryIO,
    told: Told,
) -> _Judged:
    """Judges the rows and writes their records to `file`, no more of them than `limit` needs if the order allows."""
    needed = None if limit is None or mapping.sort_by_time else checkpoint.delivered + limit
    limits = Limits(policy, policy.platforms(), checkpoint.not_before_ms, checkpoint.not_after_ms)
    found = Survey()
    with open_source(path, mapping, sheet) as source:
        told.begin("bytes judged", checkpoint.file_bytes)

        def on_row(row: Row | Broken, outcome: Outcome) -> None:
            if watch is not None:
                watch(row, outcome)
            if told.is_time():
                told.reached(min(source.bytes_read, checkpoint.file_bytes))

        all_records = survey(found, source, limits, rejected_path, checkpoint.delivered, on_row)
        try:
            spool = write_spool(file, islice(all_records, needed), mapping.sort_by_time)
            whole = next(all_records, None) is None
            all_records.close()
        except OSError as error:
            where = error.filename or f"to {tempfile.gettempdir()} (set TMPDIR to have it elsewhere)"
            raise ImportRefusedError(f"cannot write {where}: {error.strerror}") from error
        told.reached(checkpoint.file_bytes)
    if mapping.sort_by_time:
        first = next(islice(read_spool(spool, True), checkpoint.delivered, None), None)
        found.oldest_unsent_ms = first.time_ms if first else None
    return _Judged(found, spool, whole, source.mapping.unread)


def _send(
    settings: Settings,
    policy: Policy,
    mapping: Mapping,
    judged: _Judged,
    limit: int | None,
    checkpoint: Checkpoint,
    state_path: Path,
    open_with: Callable[..., Any],
    summary: Summary,
    told: Told,
) -> None:
    """Sends what is not delivered yet, and moves the checkpoint over each batch that Kafka has acknowledged."""
    told.begin("events sent", judged.spool.records, checkpoint.delivered)
    failures: Counter[str] = Counter()

    def on_failure(error: Any, _: Any) -> None:
        if error is not None:
            failures[error.str()] += 1

    producer = open_with(settings, policy.bounds.partitioner, on_failure)
    until = None if limit is None else checkpoint.delivered + limit
    records = islice(read_spool(judged.spool, mapping.sort_by_time), checkpoint.delivered, until)
    # After a kill a batch is sent again. Its ids must not have been forgotten by then, so it may not span more.
    for batch in batches(records, policy.bounds.dedup_window_ms // 2):
        send_batch(producer, checkpoint.topic, batch, failures)
        summary.sent += len(batch)
        checkpoint.delivered += len(batch)
        save_checkpoint(state_path, checkpoint)
        told.reached(checkpoint.delivered)
    checkpoint.complete = judged.whole and checkpoint.delivered >= judged.spool.records
    save_checkpoint(state_path, checkpoint)


def _take_over(summary: Summary, found: Survey) -> None:
    summary.rows, summary.events = found.rows, found.events
    summary.rejected, summary.skipped = found.rejected, found.skipped
    summary.oldest_ms, summary.newest_ms = found.oldest_ms, found.newest_ms


def _print(console: Console, summary: Summary, path: Path, topic: str, dry_run: bool, was_complete: bool) -> None:
    name = escape(path.name)
    if was_complete:
        console.print(f"{name} is imported already; nothing sent. Import without resuming to send it again.")
        return
    console.print(f"{name} -> {escape(topic)}", highlight=False)
    table = Table("what")
    table.add_column("number", justify="right")
    table.add_row("rows read", f"{summary.rows:,}")
    for words, counter in (
        ("events: ", summary.events),
        ("rows left out: ", summary.skipped),
        ("rows rejected: ", summary.rejected),
    ):
        for what, number in counter.most_common():
            table.add_row(escape(words + what), f"{number:,}")
    table.add_row("events sent in this run", "none: a dry run" if dry_run else f"{summary.sent:,}")
    console.print(table)
    if summary.unread:
        console.print(f"columns not read: {escape(', '.join(summary.unread))}", soft_wrap=True, highlight=False)
    if summary.resumed_at:
        console.print(f"resumed after {summary.resumed_at:,} events that an earlier run had delivered")
    if summary.rejected:
        console.print(f"the rejected rows are in {escape(str(summary.rejected_path))}", soft_wrap=True)
    if not summary.complete and not dry_run:
        console.print("not all of it: resume to send the rest")
