"""What became of the rows that were sent, as far as the output topics tell."""

import base64
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import orjson

from app.contract import reasons, rows
from app.contract.events import TOUCH_TYPES, to_micros
from app.engine.clients import KafkaClients
from app.letters.log import LetterLog, committed_spans, read_committed
from app.offline import codes
from app.offline.book import Book
from app.offline.raw import raw_touches
from app.policy.model import Policy
from app.settings import Settings

_DAY_MS: Final = 86_400_000
_BEST_FIRST: Final = (codes.COUNTED, codes.UNCOUNTED, codes.DUPLICATE, codes.RETRACTED, codes.UNATTRIBUTED)
_REASONS: Final = {codes.UNCOUNTED: codes.ONE_PER_CLICK, codes.RETRACTED: codes.ADJUSTED}


def read_verdicts(settings: Settings, policy: Policy, book: Book) -> None:
    """Sets the status of every row that was sent. Raises `LettersError`, KafkaException."""
    span = book.span_ms()
    if span is None:
        return
    read_rows(settings, book)
    read_letters(settings, book, span)
    settle_rows(book)
    settle_unseen(book, policy)
    find_clicks(settings, policy, book)


def read_rows(settings: Settings, book: Book) -> None:
    """Takes the latest row of each conversion of the file, and of each order that an adjustment of it names."""
    topic = settings.attributed_topic
    has_adjustments = bool(book.find("type = 'adjustment' LIMIT 1"))
    for message in read_committed(KafkaClients(settings), topic, committed_spans(settings, topic)):
        key, value = message.key(), message.value()
        if value is None:
            book.db.execute("DELETE FROM verdicts WHERE key = ?", (key,))
            continue
        advertiser, user, platform, name, event_id = orjson.loads(key)
        concerned = book.find(
            "status = 'sent' AND event_id = ? AND type = 'conversion' AND name = ? AND advertiser = ? AND (user IS NULL OR user = ?)",
            event_id,
            name,
            advertiser,
            user,
        )
        if not concerned and not has_adjustments:
            continue
        row = rows.decode_attributed(value)
        if has_adjustments:
            concerned += _adjusting(book, row)
        for row_id in concerned:
            verdict = (row_id, key, platform, row.status, row.duplicate_of, row.value)
            book.db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", verdict)


def _adjusting(book: Book, row: rows.AttributedRow) -> list[int]:
    whose = """status = 'sent' AND type = 'adjustment' AND advertiser = ? AND (user IS NULL OR user = ?)
               AND (name IS NULL OR name = ?)"""
    said = row.advertiser_id, row.user_id, row.conversion_name
    found = book.find(f"named_event = ? AND {whose}", row.event_id, *said)
    if row.order_id:
        found += book.find(f"order_id = ? AND {whose}", row.order_id, *said)
    return found


def read_letters(settings: Settings, book: Book, span: tuple[int, int]) -> None:
    """Marks the rows of which there is a dead letter."""
    for letter in LetterLog(settings, KafkaClients(settings)).read():
        content = letter.content
        if not span[0] <= content.timestamp_ms <= span[1] or content.value_base64 is None:
            continue
        try:
            event = orjson.loads(base64.b64decode(content.value_base64))
        except orjson.JSONDecodeError:  # no row of a file: the import sends JSON, and short enough
            continue
        if not isinstance(event, dict):
            continue
        said = [event.get(name) for name in ("event_id", "event_type", "advertiser_id", "conversion_name", "user_id")]
        if not all(isinstance(each, str | None) for each in said):
            continue
        for row_id in book.find(
            "status = 'sent' AND event_id = ? AND type = ? AND advertiser = ? AND name IS ? AND (user IS NULL OR user IS ?)",
            *said,
        ):
            book.set(row_id, codes.REFUSED, content.reason, content.detail)


def settle_rows(book: Book) -> None:
    """Sets what the platforms' rows say of each conversion, and whether an adjustment's orders are as it wants them."""
    verdicts = book.db.execute("SELECT id, platform, status, of, value FROM verdicts ORDER BY id, platform")
    for row_id, said in groupby(verdicts, itemgetter(0)):
        kind, status, adjustment, value, event_id = book.db.execute(
            "SELECT type, status, adjustment, value, event_id FROM rows WHERE id = ?", (row_id,)
        ).fetchone()
        if kind == "conversion":  # accepted, whatever a letter of an earlier try says
            book.set(row_id, *_conversion(book, event_id, list(said)))
        elif status == codes.SENT:  # else its letter tells more
            book.set(row_id, *_adjustment(adjustment, value, list(said)))


def _conversion(book: Book, event_id: str, verdicts: list[tuple[Any, ...]]) -> tuple[str, str, str]:
    said = {status for _, _, status, _, _ in verdicts}
    status = next(each for each in _BEST_FIRST if each in said)
    reason, detail = _REASONS.get(status, ""), ""
    if status == codes.DUPLICATE:
        first = next(of for _, _, each, of, _ in verdicts if each == status)
        known = book.db.execute(
            "SELECT min(line) FROM rows WHERE event_id = ? AND event_id != ? AND type = 'conversion'", (first, event_id)
        ).fetchone()[0]
        reason = codes.REPEATED_ORDER if known else codes.DUPLICATE_ORDER
        detail = f"line {known}" if known else f"of the conversion {first}"
    if len(verdicts) > 1:
        by_platform = ", ".join(f"{platform} {each}" for _, platform, each, _, _ in verdicts)
        detail = f"{detail}; {by_platform}" if detail else by_platform
    return status, reason, detail


def _adjustment(adjustment: str, value: float | None, verdicts: list[tuple[Any, ...]]) -> tuple[str, str, str]:
    if adjustment == "retract":
        is_applied = any(status == codes.RETRACTED for _, _, status, _, _ in verdicts)
    else:
        worth = to_micros(value or 0)
        is_applied = any(
            to_micros(each) == worth and status not in (codes.RETRACTED, codes.DUPLICATE)
            for _, _, status, _, each in verdicts
        )
    if is_applied:
        return codes.APPLIED, "", ""
    return codes.UNKNOWN, codes.NOT_SEEN, "its order is there, and not as the adjustment says"


def settle_unseen(book: Book, policy: Policy) -> None:
    """Sets what is left: noise, which has no row; adjustments of no known order; and what nothing tells of."""
    unseen = f"status = 'sent' AND type NOT IN {TOUCH_TYPES} AND type != 'visit'"
    for row_id, kind, name, time_ms in book.each("type, name, time_ms", unseen):
        version = policy.at(time_ms)
        if kind == "adjustment":
            book.set(row_id, codes.UNKNOWN, codes.CONVERSION_NOT_FOUND)
        elif kind == "conversion" and version.counted_action(name) is None:
            book.set(row_id, codes.NOISE, codes.NO_OUTCOME if name in version.actions else codes.UNKNOWN_ACTION, name)
        else:
            book.set(row_id, codes.UNKNOWN, codes.NOT_SEEN)


def find_clicks(settings: Settings, policy: Policy, book: Book) -> None:
    """Sets why the unattributed conversions are so, by the raw topics: these hold what the rows do not, clicks that nothing was
    credited to. They are looked for by click id where the row has one, else by user.
    """
    earliest_ms = book.db.execute(f"SELECT min(time_ms) FROM rows WHERE status = '{codes.UNATTRIBUTED}'").fetchone()[0]
    if earliest_ms is None:
        return
    for column, other in (("click_id", "click_id IS NOT NULL"), ("user", "click_id IS NULL")):
        book.db.execute(
            f"CREATE INDEX wanted_{column} ON rows ({column}) WHERE status = '{codes.UNATTRIBUTED}' AND {other}"
        )
    lookback_ms = max(policy.lookback_ms(kind) for kind in TOUCH_TYPES)
    # twice the window: a click that is too old for it shall be told from one that is not there
    for touch in raw_touches(settings, policy, earliest_ms - 2 * lookback_ms - policy.bounds.max_clock_skew_ms):
        touched_ms = touch.time_ms
        if touched_ms is None:
            continue
        for row_id, time_ms in _concerned(book, touch.advertiser_id, touch.platform, touch.user_id, touch.click_id):
            version = policy.at(time_ms)
            rule = version.platforms.get(touch.platform)
            if rule is not None and touch.event_type in rule.windows_ms:
                # a longer window acts forward only
                reach_ms = policy.reach_ms(version, touch.platform, touch.event_type)
                _see(book, row_id, touched_ms, time_ms, min(rule.windows_ms[touch.event_type], time_ms - reach_ms))
    found = "platform, time_ms, before_ms, window_ms, after_ms"
    for row_id, platform, time_ms, *touches in book.each(found, f"status = '{codes.UNATTRIBUTED}'"):
        if platform is None or platform in policy.at(time_ms).platforms:
            book.set(row_id, codes.UNATTRIBUTED, *_why(time_ms, *touches))
        else:
            book.set(row_id, codes.UNATTRIBUTED, reasons.UNKNOWN_PLATFORM, f"{platform} was not counted then")


def _concerned(
    book: Book, advertiser: str, platform: str, user: str, click_id: str | None
) -> Iterator[tuple[int, int]]:
    select = f"SELECT id, time_ms FROM rows WHERE status = '{codes.UNATTRIBUTED}'"
    same = "AND advertiser = ? AND (platform IS NULL OR platform = ?)"
    if click_id is not None:
        query = f"{select} AND click_id IS NOT NULL AND click_id = ? {same}"
        yield from book.db.execute(query, (click_id, advertiser, platform)).fetchall()
    query = f"{select} AND click_id IS NULL AND user = ? {same}"
    yield from book.db.execute(query, (user, advertiser, platform)).fetchall()


def _see(book: Book, row_id: int, touched_ms: int, time_ms: int, window_ms: int) -> None:
    if touched_ms >= time_ms:
        book.db.execute(
            "UPDATE rows SET after_ms = min(coalesce(after_ms, ?1), ?1) WHERE id = ?2", (touched_ms, row_id)
        )
    else:
        book.db.execute(
            "UPDATE rows SET before_ms = ?1, window_ms = ?2 WHERE id = ?3 AND (before_ms IS NULL OR before_ms < ?1)",
            (touched_ms, window_ms, row_id),
        )


def _why(time_ms: int, before_ms: int | None, window_ms: int | None, after_ms: int | None) -> tuple[str, str]:
    """(reason, detail), by the last touch before the conversion and the first one that is not before it."""
    if before_ms is not None and window_ms is not None:
        since_ms = time_ms - before_ms
        if since_ms > window_ms:
            return codes.EXPIRED_CLICK, f"{since_ms / _DAY_MS:.1f} days before, the window is {window_ms / _DAY_MS:.4g}"
        return codes.CLICK_NOT_CREDITED, ""
    if after_ms is not None:
        return codes.PRECEDES_CLICK, f"the click is {(after_ms - time_ms) / 1000:,.0f} s later"
    return codes.CLICK_NOT_FOUND, ""
