"""What the web views answer: the rows of the output topics, filtered, the most urgent first."""

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from app.contract.events import parse_time_ms
from app.contract.leads import STATES, LeadRow, OverdueRow, decode_lead, decode_overdue
from app.contract.money import (
    LEVELS,
    TO_DATE,
    ReconciliationRow,
    ReturnRow,
    decode_reconciliation,
    decode_return,
)
from app.contract.rollups import PERIODS, RollupRow, decode_rollup
from app.contract.rows import ALL, SCOPES

MOST_ROWS: Final = 10_000
DEFAULT_ROWS: Final = 100
_NEVER_MS: Final = 2**63


class View(NamedTuple):
    """One kind of row: which fields may be asked for (with their values, where they are few), and the order of the answer."""

    decode: Callable[[bytes], Any]
    fields: Mapping[str, tuple[str, ...]]
    order: Callable[[Any], Any]
    dated: str = ""  # the field that `from` and `to` bound; "": they may not be asked for


class AskedWrongly(Exception):
    """The query cannot be answered; the message says why."""


def _urgency(row: LeadRow) -> tuple[Any, ...]:
    return (_NEVER_MS if row.due_time is None else row.due_time, row.temperature != "hot", row.opened_time, row.user_id)


def _lateness(row: OverdueRow) -> tuple[Any, ...]:
    return (row.due_time, row.temperature != "hot", row.user_id)


def _newest(row: RollupRow) -> tuple[Any, ...]:
    names = (row.platform, row.advertiser_id, *(value or "" for value in row.dimensions.values()))
    return (-row.period_start, PERIODS.index(row.period), *names, row.conversion_name, row.currency)


def _best(row: ReturnRow) -> tuple[Any, ...]:
    """Of a period and level first what brought the most new customers, then the most conversions and leads."""
    brought = (-row.new_customers, -row.conversions, -row.leads, -row.clicks)
    names = (row.platform or "", row.value or "")
    return (row.advertiser_id, *_latest(row), LEVELS.index(row.level), *brought, *names)


def _furthest(row: ReconciliationRow) -> tuple[Any, ...]:
    """Of a period and platform the campaigns that are furthest off first; the sum over all platforms last."""
    places = (row.platform == ALL, row.platform, row.campaign_id is not None, -abs(row.difference or 0))
    return (row.advertiser_id, *_latest(row), *places, row.campaign_id or "")


def _latest(row: ReturnRow | ReconciliationRow) -> tuple[Any, ...]:
    """All that is known first, then the newest period. To date, rows begin on days of their own."""
    if row.period == TO_DATE:
        return (0, 0, row.period)
    return (1, -date.fromisoformat(row.from_day).toordinal(), row.period)


_WHOSE: Final[dict[str, tuple[str, ...]]] = {"advertiser_id": (), "user_id": (), "conversion_name": (), "platform": ()}
_TEMPERATURES: Final = ("hot", "cool")
LEADS: Final = View(
    decode_lead, _WHOSE | {"campaign_id": (), "state": STATES, "temperature": _TEMPERATURES}, _urgency, "opened_time"
)
OVERDUE: Final = View(decode_overdue, _WHOSE | {"campaign_id": (), "temperature": _TEMPERATURES}, _lateness, "due_time")
ROLLUPS: Final = View(
    decode_rollup,
    {"advertiser_id": (), "platform": (), "conversion_name": (), "currency": (), "period": PERIODS, "scope": SCOPES},
    _newest,
    "period_start",
)
RETURN: Final = View(
    decode_return, {"advertiser_id": (), "period": (), "level": LEVELS, "platform": (), "value": ()}, _best
)
RECONCILIATION: Final = View(
    decode_reconciliation,
    {"advertiser_id": (), "period": (), "scope": SCOPES, "platform": (), "campaign_id": ()},
    _furthest,
)


def answer(view: View, rows: Iterable[bytes], query: Mapping[str, str]) -> bytes:
    """The answer as JSON: `total`, how many rows fit the query, and the first `limit` of them. Raises `AskedWrongly`."""
    asked = dict(query)
    dates = ("from", "to") if view.dated else ()
    for name in asked:
        if name not in (*view.fields, *dates, "limit"):
            raise AskedWrongly(f"{name!r}: one of {', '.join((*view.fields, *dates, 'limit'))}")
    limit = _limit(asked.pop("limit", str(DEFAULT_ROWS)))
    from_ms, to_ms = _moment(asked.pop("from", None), 0), _moment(asked.pop("to", None), _NEVER_MS)
    for name, value in asked.items():
        if view.fields[name] and value not in view.fields[name]:
            raise AskedWrongly(f"{name} {value!r}: one of {', '.join(view.fields[name])}")
    found = []
    for raw in rows:
        try:
            row = view.decode(raw)
        except msgspec.DecodeError:
            continue  # somebody else wrote to the topic
        if (not view.dated or from_ms <= getattr(row, view.dated) < to_ms) and all(
            (getattr(row, name) or "") == value for name, value in asked.items()
        ):
            found.append(row)
    found.sort(key=view.order)
    return orjson.dumps({"total": len(found), "rows": [msgspec.to_builtins(row) for row in found[:limit]]})


def _limit(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= MOST_ROWS:
        raise AskedWrongly(f"limit {text!r}: a whole number up to {MOST_ROWS}")
    return int(text)


def _moment(text: str | None, default_ms: int) -> int:
    if text is None:
        return default_ms
    found = parse_time_ms(int(text) if text.isdecimal() else text)
    if found is None:
        raise AskedWrongly(f"{text!r}: epoch milliseconds, or RFC 3339 with a zone")
    return found
