"""The import: a first pass that judges every row, then a second one that sends, in steps that Kafka acknowledges."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaError, Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.generate.client import open_producer
from app.importer.checkpoint import Checkpoint, resume_checkpoint, save_checkpoint, start_checkpoint
from app.importer.mapping import Mapping, load_mapping
from app.importer.ordering import merge_runs, write_runs
from app.importer.prepare import Prepared
from app.importer.refusal import ImportRefusedError
from app.importer.source import open_source
from app.importer.survey import Survey, outcomes, survey
from app.importer.topic import TopicState, describe_topic, refuse_impossible
from app.policy.model import Policy
from app.settings import Settings

BATCH_RECORDS: Final = 10_000  # between two acknowledged positions
_FLUSH_TIMEOUT_S: Final = 60.0
_PROGRESS_EVERY_ROWS: Final = 1_000

Step = tuple[Prepared, ...]  # what is sent wholly or not yet: a row's events; of a sorted import, one event


@dataclass
class Summary:
    """What an import did. `sent` events are acknowledged; `rows` and the counters are of the whole file (or up to
    `limit`).
    """

    rows: int = 0
    sent: int = 0
    resumed_at: int = 0  # rows (of a sorted import: events) that an earlier run had delivered
    complete: bool = False
    events: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    oldest_ms: int | None = None
    newest_ms: int | None = None
    rejected_path: Path | None = None
    seconds: float = 0.0


def import_file(
    settings: Settings,
    policy: Policy,
    path: Path,
    mapping_path: Path,
    rejected_path: Path | None = None,
    resume: bool = True,
    limit: int | None = None,
    console: Console | None = None,
    *,
    topic: str | None = None,
    state_path: Path | None = None,
    open_with: Callable[..., Any] = open_producer,
    look_up: Callable[[Settings, str], TopicState] = describe_topic,
) -> Summary:
    """Sends a file's rows to a raw topic (the first of `events_topics` if not given), each with its own time as Kafka
    timestamp.

    `rejected_path` and `state_path` stand next to the file if not given. `resume` carries on after what an earlier run
    delivered. `limit`: at most so many rows (of a mapping with sort_by_time: events) in this run. Nothing is sent
    before the whole file is judged. Raises `MappingError` for a mapping that cannot work, `ImportRefusedError` for
    everything else that stops it.
    """
    started = time.monotonic()
    topic = topic or settings.events_topics[0]
    rejected_path = rejected_path or path.with_name(f"{path.name}.rejected.jsonl")
    state_path = state_path or path.with_name(f"{path.name}.import-state.json")
    mapping = load_mapping(mapping_path)
    checkpoint = start_checkpoint(path, mapping.sha256, topic)
    if resume:
        checkpoint = resume_checkpoint(state_path, checkpoint)
    summary = Summary(resumed_at=checkpoint.delivered, complete=checkpoint.complete, rejected_path=rejected_path)
    if not checkpoint.complete:
        state = look_up(settings, topic)
        with tempfile.TemporaryDirectory(prefix="onecount-import-") as folder, _bar(console) as bar:
            found, runs = _judge_all(path, mapping, policy, rejected_path, checkpoint, limit, Path(folder), bar)
            _take_over(summary, found)
            refuse_impossible(
                found,
                state,
                settings,
                topic,
                policy.bounds.correction_horizon_ms,
                mapping.sort_by_time,
                int(time.time() * 1000),
            )
            save_checkpoint(state_path, checkpoint)  # finds out now whether it can be written
            with _steps(path, mapping, policy, runs) as steps:
                send = _Sending(settings, policy, topic, open_with, summary, checkpoint, state_path)
                total = sum(found.events.values()) if mapping.sort_by_time else found.rows
                send.run(
                    islice(steps, checkpoint.delivered, None if limit is None else checkpoint.delivered + limit),
                    total,
                    bar,
                )
                summary.complete = checkpoint.complete
    summary.seconds = time.monotonic() - started
    if console:
        _print(console, summary, path, topic)
    return summary


def _judge_all(
    path: Path,
    mapping: Mapping,
    policy: Policy,
    rejected_path: Path,
    checkpoint: Checkpoint,
    limit: int | None,
    folder: Path,
    bar: Progress,
) -> tuple[Survey, list[Path]]:
    """The first pass. A mapping that sorts gets its records written to the folder, in sorted runs."""
    rows = None if limit is None or mapping.sort_by_time else checkpoint.delivered + limit
    sent_rows = 0 if mapping.sort_by_time else checkpoint.delivered
    task = bar.add_task("judging", total=checkpoint.file_bytes)
    found = Survey()
    with open_source(path, mapping) as source:

        def on_row(so_far: Survey) -> None:
            if so_far.rows % _PROGRESS_EVERY_ROWS == 0:
                bar.update(task, completed=source.bytes_read)

        horizon_ms = policy.bounds.correction_horizon_ms
        records = survey(found, source, mapping, policy.platforms(), horizon_ms, rejected_path, sent_rows, rows, on_row)
        try:
            runs = write_runs(records, folder) if mapping.sort_by_time else []
            for _ in records:
                pass
        except OSError as error:
            where = error.filename or rejected_path
            raise ImportRefusedError(f"cannot write {where}: {error.strerror}; give another path for it") from error
    bar.update(task, completed=checkpoint.file_bytes)
    if runs:
        first_unsent = next(islice(merge_runs(runs), checkpoint.delivered, None), None)
        found.oldest_unsent_ms = first_unsent.time_ms if first_unsent else None
    return found, runs


@contextmanager
def _steps(path: Path, mapping: Mapping, policy: Policy, runs: list[Path]) -> Iterator[Iterator[Step]]:
    """Everything that is to be sent, from the first step on, always in the same order."""
    if mapping.sort_by_time:
        yield ((record,) for record in merge_runs(runs))
        return
    with open_source(path, mapping) as source:
        yield (
            tuple(record for _, record in outcome.events)
            for _, outcome in outcomes(source, mapping, policy.platforms(), None)
        )


@dataclass
class _Sending:
    """The second pass: sends steps in batches, and moves the checkpoint over each batch that Kafka has acknowledged."""

    settings: Settings
    policy: Policy
    topic: str
    open_with: Callable[..., Any]
    summary: Summary
    checkpoint: Checkpoint
    state_path: Path
    failures: Counter[str] = field(default_factory=Counter)

    def run(self, steps: Iterator[Step], total: int, bar: Progress) -> None:
        """Sends all steps. `ImportRefusedError` as soon as one is not acknowledged."""
        producer = self.open_with(self.settings, self.policy.bounds.partitioner, self._on_failure)
        task = bar.add_task("sending", total=total, completed=self.checkpoint.delivered)
        # After a kill a batch is sent again. Its ids must not have been forgotten by then, so it may not span
        # more of event time.
        span_ms = self.policy.bounds.dedup_window_ms // 2
        taken = records = 0
        newest_ms = batch_start_ms = -1
        for step in steps:
            for time_ms, key, value in step:
                newest_ms = max(newest_ms, time_ms)
                if batch_start_ms < 0:
                    batch_start_ms = newest_ms
                self._send(producer, time_ms, key, value)
            taken += 1
            records += len(step)
            if records >= BATCH_RECORDS or newest_ms - batch_start_ms > span_ms or taken >= 10 * BATCH_RECORDS:
                self._acknowledge(producer, taken, records)
                bar.update(task, completed=self.checkpoint.delivered)
                taken = records = 0
                batch_start_ms = newest_ms
        self._acknowledge(producer, taken, records)
        self.checkpoint.complete = self.checkpoint.delivered >= total
        save_checkpoint(self.state_path, self.checkpoint)
        bar.update(task, completed=self.checkpoint.delivered)

    def _on_failure(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self.failures[error.str()] += 1

    def _send(self, producer: Any, time_ms: int, key: bytes, value: bytes) -> None:
        while True:
            try:
                producer.produce(self.topic, value, key, -1, None, None, time_ms)
                return
            except BufferError:
                producer.poll(0.05)

    def _acknowledge(self, producer: Any, taken: int, records: int) -> None:
        left = producer.flush(_FLUSH_TIMEOUT_S)
        if left:
            self.failures[f"not acknowledged within {_FLUSH_TIMEOUT_S:.0f} s"] += left
        if self.failures:
            why = ", ".join(f"{count} x {reason}" for reason, count in self.failures.items())
            raise ImportRefusedError(
                f"{self.failures.total()} records were not delivered ({why}). Resume once Kafka is well: they are sent again"
            )
        self.checkpoint.delivered += taken
        self.summary.sent += records
        save_checkpoint(self.state_path, self.checkpoint)


def _take_over(summary: Summary, found: Survey) -> None:
    summary.rows, summary.events, summary.rejected, summary.skipped = (
        found.rows,
        found.events,
        found.rejected,
        found.skipped,
    )
    summary.oldest_ms, summary.newest_ms = found.oldest_ms, found.newest_ms


def _bar(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=console is None or not console.is_terminal)


def _print(console: Console, summary: Summary, path: Path, topic: str) -> None:
    if summary.complete and not summary.rows:
        console.print(
            f"{path.name} was imported completely before; nothing sent. Start anew without resuming to send it again."
        )
        return
    table = Table(title=f"{path.name} -> {topic}", title_justify="left")
    table.add_column("what")
    table.add_column("number", justify="right")
    table.add_row("rows read", f"{summary.rows:,}")
    for name, number in summary.events.most_common():
        table.add_row(f"events: {name}", f"{number:,}")
    for reason, number in summary.skipped.most_common():
        table.add_row(f"rows left out: {reason}", f"{number:,}")
    for reason, number in summary.rejected.most_common():
        table.add_row(f"rows rejected: {reason}", f"{number:,}")
    table.add_row("sent in this run", f"{summary.sent:,}")
    console.print(table)
    if summary.resumed_at:
        console.print(f"resumed after {summary.resumed_at:,} that an earlier run had delivered")
    if summary.rejected:
        console.print(f"the rejected rows are in {summary.rejected_path}")
    if not summary.complete:
        console.print("not finished (limit): resume to send the rest")
