"""The first pass over a file: what it holds, which rows are rejected, whether its order and its times can be imported."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from app.importer.evaluate import Row
from app.importer.mapping import Mapping
from app.importer.prepare import Outcome, Prepared, prepare
from app.importer.source import Broken, Source


@dataclass
class Survey:
    """What the first pass found. Times are epoch ms; None where no row gives an event."""

    rows: int = 0
    events: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    oldest_ms: int | None = None
    newest_ms: int | None = None
    oldest_unsent_ms: int | None = None  # of the rows that are still to be sent
    late: int = 0  # events older than the newest one before them by more than the correction horizon


def outcomes(
    source: Source, mapping: Mapping, platforms: frozenset[str], rows: int | None
) -> Iterator[tuple[Row | Broken, Outcome]]:
    """Each of the first `rows` rows (None: all) with what becomes of it."""
    return ((row, prepare(row, mapping, platforms)) for row in islice(source.rows, rows))


def survey(
    found: Survey,
    source: Source,
    mapping: Mapping,
    platforms: frozenset[str],
    horizon_ms: int,
    rejected_path: Path,
    sent_rows: int = 0,
    rows: int | None = None,
    on_row: Callable[[Survey], None] | None = None,
) -> Iterator[Prepared]:
    """Every record of the first `rows` rows in the file's order; `found` is filled and the rejected rows are written
    on the way.

    `sent_rows`: how many rows an earlier run has delivered. `on_row` is called for each row, for the progress bar.
    """
    with rejected_path.open("w", encoding="utf-8") as rejected:
        for row, outcome in outcomes(source, mapping, platforms, rows):
            found.rows += 1
            if outcome.refusal is not None:
                found.rejected[outcome.refusal.reason] += 1
                rejected.write(_rejected_line(row, outcome))
            elif outcome.skipped is not None:
                found.skipped[outcome.skipped] += 1
            for name, record in outcome.events:
                found.events[name] += 1
                _note_time(found, record.time_ms, horizon_ms, found.rows > sent_rows)
                yield record
            if on_row:
                on_row(found)


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


def _rejected_line(row: Row | Broken, outcome: Outcome) -> str:
    """A JSON line; bytes that are not UTF-8 stand as \\udcXX in it."""
    refusal = outcome.refusal
    assert refusal is not None
    raw: Any = row.raw if isinstance(row, Broken) else row.values
    line = {
        "line": row.line,
        "reason": refusal.reason,
        "field": refusal.field,
        "detail": refusal.detail,
        "event": refusal.event,
        "row": raw,
    }
    return json.dumps(line, default=str) + "\n"
