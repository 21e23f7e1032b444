"""The report of an import: a line for each row, with what became of it in our words and the ad platform's."""

import csv
import os
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.offline import codes
from app.offline.book import Book
from app.offline.refusal import OfflineError
from app.offline.verdicts import read_verdicts
from app.policy.model import Policy
from app.settings import Settings
from app.verify.logs import fix_spans, wait_until_read
from app.verify.records import VerifyError

COLUMNS: Final = ("line", "event", "event_id", "order_id", "status", "reason", "field", "detail", "platform_code")
_ROUNDS: Final = 2  # what a counter finds on another one's partition is counted a round later


def write_report(
    settings: Settings, policy: Policy, book: Book, path: Path, platform: str | None, wait_s: float, by_time: bool
) -> str | None:
    """Fills the book from the output topics and writes it as CSV; `platform`: whose codes stand beside ours. `by_time`:
    the rows were sent in order of time.

    Waits up to `wait_s` seconds for the counters to have counted what the raw topics hold; returns what is to be told where
    they had not by then, so that rows are still to come. Raises `OfflineError`, `LettersError`, `VerifyError`, KafkaException.
    """
    behind = wait_for_counters(settings, wait_s)
    book.close_rows(by_time)
    read_verdicts(settings, policy, book)
    write_lines(book, path, platform)
    return behind


def write_judged(book: Book, path: Path, platform: str | None, by_time: bool) -> None:
    """As `write_report`, of a dry run: what is told of a row is what its file alone says."""
    book.close_rows(by_time)
    book.db.execute(f"UPDATE rows SET status = '{codes.READY}' WHERE status = '{codes.SENT}'")
    write_lines(book, path, platform)


def wait_for_counters(settings: Settings, wait_s: float) -> str | None:
    """Waits until all that the raw topics hold is counted; where it is not in time, says so."""
    for _ in range(_ROUNDS):
        try:
            wait_until_read(settings, settings.counter_group, fix_spans(settings, settings.input_topics()), wait_s)
        except VerifyError as error:
            return f"{error}. Give the same command again later: rows that are unknown now may have an answer then"
    return None


def write_lines(book: Book, path: Path, platform: str | None) -> None:
    """Writes the book as CSV; the file is there only once it is whole."""
    draft = path.with_name(f"{path.name}.new")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for line, rule, event_id, order_id, status, reason, field, detail in book.lines():
                code = codes.platform_code(platform, reason)
                writer.writerow((line, rule, event_id, order_id, status, reason, field, detail, code))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise OfflineError(f"cannot write the report {path}: {error.strerror}; give another path for it") from error


def print_totals(console: Console, book: Book, path: Path, platform: str | None) -> None:
    """How many rows became what."""
    table = Table("became", "why", *(("as the platform says",) if platform else ()), "")
    table.columns[-1].justify = "right"
    for status, reason, number in book.totals():
        says = (codes.platform_code(platform, reason),) if platform else ()
        table.add_row(status, escape(reason), *says, f"{number:,}")
    console.print(table)
    console.print(f"each row's is in {escape(str(path))}", soft_wrap=True, highlight=False)
