"""`onecount export`: the counted conversions of one platform, and what has changed of them, as the platform's own files."""

import csv
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import orjson

from app.contract import rows
from app.contract.events import to_micros
from app.engine.clients import KafkaClients
from app.letters.log import committed_spans, read_committed
from app.offline.exported import digest, open_exported
from app.offline.feeds import FEEDS, Change, Feed, Sale, adjustment_cells, order_id_of
from app.offline.raw import raw_touches
from app.offline.refusal import OfflineError
from app.policy.model import Policy
from app.settings import Settings

_COLUMNS: Final = (
    "key, user, name, event_id, order_id, time_ms, value_micros, currency, is_counted, duplicate_of, in_range, "
    "touch_type, touch_id, touch_ms, written_ms"
)
_NEW: Final = "is_counted AND in_range AND key NOT IN (SELECT key FROM exported)"


class Wish(NamedTuple):
    """What is to be exported. `from_ms`, `to_ms`: conversions of then (epoch ms; the end is exclusive). `actions`: the
    platform's names of the policy's actions. `state`: what earlier runs exported; None takes the whole range and keeps
    nothing. `with_user`: a column more, for onecount's own import.
    """

    platform: str
    advertiser: str
    from_ms: int
    to_ms: int
    folder: Path
    state: Path | None
    actions: dict[str, str]
    data_set_id: str = ""
    with_user: bool = False


@dataclass
class Exported:
    """What was written: conversions, adjustments, the files, and how many of which were left out why."""

    conversions: int = 0
    adjustments: int = 0
    files: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def export(settings: Settings, policy: Policy, wish: Wish, now_ms: int) -> Exported:
    """Writes the files. What is in them counts as exported only once they are there whole, so a run that was killed is made
    again by the next one, and may leave the same rows in two files; the platforms drop those.

    Raises `OfflineError`, `LettersError`, KafkaException.
    """
    feed = FEEDS[wish.platform]
    if not wish.folder.is_dir():
        raise OfflineError(f"there is no folder {wish.folder}: make it, or give another one with --out")
    about = {"platform": wish.platform, "advertiser": wish.advertiser, "topic": settings.attributed_topic}
    done = Exported()
    db = open_exported(wish.state, about)
    try:
        read_conversions(settings, policy, wish, db)
        find_click_ids(settings, policy, wish, db)
        db.execute("BEGIN IMMEDIATE")  # another run waits, or is refused
        follow_orders(db)
        name = f"{wish.platform}-{quote(wish.advertiser, safe='')}-{{}}-{_stamp(now_ms)}.csv"
        sales = _sales(db, feed, wish, now_ms, done.skipped)
        done.conversions = _write(wish.folder / name.format("conversions"), feed, feed.conversions, sales, wish, done)
        if feed.adjustments is not None:
            changes = _changes(db, feed, wish, now_ms, done.skipped)
            done.adjustments = _write(
                wish.folder / name.format("adjustments"), feed, feed.adjustments, changes, wish, done
            )
        else:
            done.skipped["no_adjustments"] += sum(1 for _ in db.execute(_CHANGED))
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise OfflineError(f"the state file {wish.state}: {error}; is another export running?") from error
    finally:
        db.close()
    done.skipped = +done.skipped
    return done


def read_conversions(settings: Settings, policy: Policy, wish: Wish, db: sqlite3.Connection) -> None:
    """Takes the latest row of each conversion that the platform judged, and of the orders that those may be further reports
    of. A row that was deleted is a forgotten person's: what was counted of it stays counted, here as there.
    """
    topic = settings.attributed_topic
    earliest_ms = wish.from_ms - policy.bounds.order_window_ms
    db.execute("BEGIN")
    for message in read_committed(KafkaClients(settings), topic, committed_spans(settings, topic)):
        advertiser, user, platform, name, event_id = orjson.loads(message.key())
        if advertiser != wish.advertiser or platform != wish.platform:
            continue
        key, value = digest(message.key()), message.value()
        if value is None:
            db.execute("DELETE FROM seen WHERE key = ?", (key,))
            continue
        row = rows.decode_attributed(value)
        if not earliest_ms <= row.event_time < wish.to_ms:
            continue
        worth = to_micros(row.value)
        order_id = order_id_of(row.order_id, event_id)
        touch = row.touch_type, row.touch_event_id, row.touch_time
        is_counted = row.status == rows.COUNTED
        db.execute(
            f"INSERT OR REPLACE INTO seen ({_COLUMNS}) VALUES ({', '.join('?' * 15)})",
            (
                key,
                user,
                name,
                event_id,
                order_id,
                row.event_time,
                worth,
                row.currency,
                is_counted,
                row.duplicate_of,
                row.event_time >= wish.from_ms,
                *touch,
                message.timestamp()[1],
            ),
        )
    db.execute("COMMIT")


def find_click_ids(settings: Settings, policy: Policy, wish: Wish, db: sqlite3.Connection) -> None:
    """Looks up the credited touches of the conversions that are new, since only the raw event holds the click id."""
    db.execute("BEGIN")
    db.execute("CREATE INDEX temp.touches ON seen (touch_id)")
    missing, since_ms = db.execute(f"SELECT count(*), min(touch_ms) FROM seen WHERE {_NEW}").fetchone()
    if not missing:
        db.execute("COMMIT")
        return
    wanted = f"""SELECT key FROM seen WHERE touch_id = ? AND user = ? AND touch_type = ? AND touch_ms = ? AND NOT has_touch
                 AND {_NEW}"""
    for touch in raw_touches(settings, policy, since_ms - policy.bounds.max_clock_skew_ms):
        if (touch.platform, touch.advertiser_id) != (wish.platform, wish.advertiser):
            continue
        found = db.execute(wanted, (touch.event_id, touch.user_id, touch.event_type, touch.time_ms)).fetchall()
        for (key,) in found:
            db.execute("UPDATE seen SET has_touch = 1, click_id = ? WHERE key = ?", (touch.click_id, key))
        missing -= len(found)
        if not missing:
            break
    db.execute("COMMIT")


def follow_orders(db: sqlite3.Connection) -> None:
    """What was exported as a report that turned out not to be its order's first is from now on that first one, if it counts:
    the platform has the order once, whichever report told of it. Where the first one was exported too, the platform has it
    twice, and the report is retracted like all that no longer counts.
    """
    moves = db.execute(
        """SELECT first.key, exported.key FROM exported JOIN seen AS report ON report.key = exported.key
           JOIN seen AS first ON first.event_id = report.duplicate_of AND first.user = report.user AND first.name = report.name
           WHERE NOT retracted AND first.is_counted ORDER BY report.time_ms, exported.key"""
    ).fetchall()
    db.executemany("UPDATE OR IGNORE exported SET key = ? WHERE key = ?", moves)


def _sales(
    db: sqlite3.Connection, feed: Feed, wish: Wish, now_ms: int, skipped: Counter[str]
) -> Iterator[tuple[str, ...]]:
    """The lines of the conversions that are new, in order of time; what is written counts as exported."""
    new = db.execute(  # sorted before the first one comes, so that it does not matter what is added meanwhile
        f"""SELECT key, name, order_id, time_ms, value_micros, currency, touch_ms, click_id, user, has_touch FROM seen
            WHERE {_NEW} ORDER BY time_ms, order_id, key"""
    )
    for key, name, *said, has_touch in new:
        sale = Sale(wish.actions.get(name, name), *said)
        why = _why_not(sale, feed, now_ms, bool(has_touch))
        if why:
            skipped[why] += 1
            continue
        db.execute("INSERT INTO exported VALUES (?, ?, ?, 0, ?)", (key, sale.time_ms, sale.value_micros, sale.order_id))
        yield *feed.write(sale, wish.data_set_id), *((sale.user_id,) if wish.with_user else ())


def _why_not(sale: Sale, feed: Feed, now_ms: int, has_touch: bool) -> str:
    if now_ms - sale.time_ms > feed.max_age_ms:
        return "too_old"
    if not sale.click_id:
        return "no_click_id" if has_touch else "touch_gone"
    return feed.refuse(sale) or ("too_recent" if now_ms - sale.touch_ms < feed.click_hold_ms else "")


_CHANGED: Final = """
SELECT seen.key, name, coalesce(exported.order_id, seen.order_id), written_ms, CASE WHEN is_counted THEN seen.value_micros END, currency, user, seen.time_ms
FROM seen JOIN exported ON exported.key = seen.key
WHERE NOT retracted AND in_range AND (NOT is_counted OR seen.value_micros != exported.value_micros) ORDER BY seen.time_ms, 3, seen.key
"""


def _changes(
    db: sqlite3.Connection, feed: Feed, wish: Wish, now_ms: int, skipped: Counter[str]
) -> Iterator[tuple[str, ...]]:
    """The lines of what has changed since it was exported: no longer counted, or another value."""
    again = "SELECT count(*) FROM seen JOIN exported USING (key) WHERE retracted AND is_counted AND in_range"
    skipped["counted_again"] += db.execute(again).fetchone()[0]
    for key, name, order_id, written_ms, value_micros, currency, user, time_ms in db.execute(_CHANGED):
        if now_ms - time_ms < feed.adjustment_hold_ms:
            skipped["adjustment_too_recent"] += 1
            continue
        if now_ms - time_ms > feed.adjustment_max_age_ms:
            skipped["adjustment_too_old"] += 1
            continue
        change = Change(
            wish.actions.get(name, name), order_id, max(written_ms, time_ms + 1_000), value_micros, currency, user
        )
        db.execute(
            "UPDATE exported SET retracted = ?1 IS NULL, value_micros = coalesce(?1, value_micros) WHERE key = ?2",
            (value_micros, key),
        )
        yield *adjustment_cells(change), *((user,) if wish.with_user else ())


def _write(
    path: Path, feed: Feed, header: tuple[str, ...], lines: Iterable[tuple[str, ...]], wish: Wish, done: Exported
) -> int:
    """Writes a file if there is a line for it; it is there only once it is whole."""
    if path.exists():  # two runs within a second
        path = path.with_name(f"{path.stem}-{os.getpid()}.csv")
    draft = path.with_name(f"{path.name}.new")
    number = 0
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer: Any = csv.writer(file, lineterminator="\n")
            writer.writerows([each] for each in feed.preamble)
            writer.writerow((*header, *((feed.user_column,) if wish.with_user else ())))
            for line in lines:
                writer.writerow(line)
                number += 1
            file.flush()
            os.fsync(file.fileno())
        if number:
            draft.replace(path)
            done.files.append(path)
        else:
            draft.unlink()
    except OSError as error:
        raise OfflineError(f"cannot write {path}: {error.strerror}; give another folder with --out") from error
    return number


def _stamp(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
