"""What the page knows, and how one record of an output topic changes it."""

from dataclasses import dataclass
from typing import Final

import msgspec
import orjson

from app.contract import rows
from app.contract.rows import AttributedRow, CountRow, DeadLetter
from app.page.figures import Figures, fold_count
from app.page.news import News, fold_conversion, fold_final, fold_letter, fold_withdrawal

COUNTS: Final = "counts"
CONVERSIONS: Final = "conversions"
LETTERS: Final = "letters"
_DECODE: Final = {COUNTS: rows.decode_count, CONVERSIONS: rows.decode_attributed, LETTERS: rows.decode_dead_letter}
_NAMES_OF_A_CONVERSION: Final = 5  # advertiser, user, platform, action, event: `attributed_key`


@dataclass
class State:
    """Everything that the page shows of the topics. `unreadable`: records that are no rows of this release."""

    figures: Figures
    news: News
    unreadable: int = 0


def empty_state(max_rows: int) -> State:
    """Nothing read yet; at most `max_rows` rows of counts, and as many conversions, will be held."""
    return State(Figures(max_rows), News(max_rows))


def fold_record(state: State, kind: str, key: bytes | None, value: bytes | None, at_ms: int) -> None:
    """Takes one record in, which lies on its topic since `at_ms`; `kind` says on which. A null value deletes."""
    key = key or b""
    try:
        row = None if value is None else _DECODE[kind](value)
        window = row.window_start if isinstance(row, CountRow) else int(orjson.loads(key)[0]) if kind == COUNTS else 0
        names = tuple(map(str, orjson.loads(key))) if row is None and kind == CONVERSIONS else ()
    except (msgspec.DecodeError, ValueError, TypeError, LookupError):
        state.unreadable += 1
        return
    if isinstance(row, DeadLetter):
        fold_letter(state.news, row, at_ms)
    elif kind == COUNTS:
        before = fold_count(state.figures, key, window, row, at_ms)
        if row is not None:
            fold_final(state.news, before, row, at_ms)
    elif isinstance(row, AttributedRow):
        fold_conversion(state.news, key, row, at_ms)
    elif len(names) == _NAMES_OF_A_CONVERSION:
        fold_withdrawal(state.news, key, names, at_ms)
