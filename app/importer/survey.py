"""Judges a file: what it holds, which rows are rejected, and whether its order and times can be imported."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.importer.evaluate import Row
from app.importer.prepare import Limits, Outcome, Prepared, Refusal, prepare
from app.importer.source import Source
from app.importer.table import Broken


@dataclass
class Survey:
    """What has been found so far. Times are epoch ms; None where no row has given an event."""

    rows: int = 0
    events: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    oldest_ms: int | None = None
    newest_ms: int | None = None
    oldest_unsent_ms: int | None = None  # of the events that are still to be sent
    late: int = 0  # events older than the newest one before them by more than the correction horizon


def survey(
    found: Survey,
    source: Source,
    limits: Limits,
    rejected_path: Path,
    delivered: int,
    on_row: Callable[[Row | Broken, Outcome], None],
) -> Iterator[Prepared]:
    """Every record in the file's order; on the way `found` is filled and the rejected rows are written.

    `delivered`: how many records an earlier run has sent. `on_row` is called for each row with what becomes of it.
    """
    records = 0
    horizon_ms = limits.policy.bounds.correction_horizon_ms
    with rejected_path.open("w", encoding="utf-8") as rejected:
        for row in source.rows:
            outcome = prepare(row, source.mapping, limits)
            events, refusal, skipped = outcome
            found.rows += 1
            if refusal is not None:
                found.rejected[refusal.reason] += 1
                rejected.write(_rejected_line(row, refusal))
            elif skipped is not None:
                found.skipped[skipped] += 1
            on_row(row, outcome)
            for name, record in events:
                records += 1
                found.events[name] += 1
                _note_time(found, record.time_ms, horizon_ms, records > delivered)
                yield record


def _note_time(found: Survey, time_ms: int, horizon_ms: int, unsent: bool) -> None:
    if found.oldest_ms is None or found.newest_ms is None:
        found.oldest_ms = found.newest_ms = time_ms
    elif time_ms > found.newest_ms:
        found.newest_ms = time_ms
    elif time_ms < found.newest_ms - horizon_ms:
        found.late += 1
    found.oldest_ms = min(found.oldest_ms, time_ms)
    if unsent and (found.oldest_unsent_ms is None or time_ms < found.oldest_unsent_ms):
        found.oldest_unsent_ms = time_ms


def _rejected_line(row: Row | Broken, refusal: Refusal) -> str:
    """A JSON line; bytes that are not UTF-8 stand as \\udcXX in it."""
    raw: Any = row.raw if isinstance(row, Broken) else row.values
    line = {"line": row.line, **refusal._asdict(), "row": raw}
    return json.dumps(line, default=str) + "\n"
