"""An event of another format, as the JSON that the contract judges. So every rule is the contract's, and is there once."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from app.contract import reasons
from app.contract.events import Event, Rejection

FIELDS: Final = Event.__struct_fields__
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


def written(values: Mapping[str, Any]) -> bytes | Rejection:
    """The event's JSON, of its fields by name. None: the event lacks the field; what onecount does not know is left out.

    A moment becomes epoch milliseconds. A rejection for what JSON has no word for, or would say as something else.
    """
    fields = {name: value for name in FIELDS if (value := values.get(name)) is not None}
    for name, value in fields.items():
        if type(value) is str or type(value) is int:
            continue
        if type(value) is datetime:
            fields[name] = value.isoformat() if value.tzinfo is None else (value - _EPOCH) // _MS
        elif type(value) is float and not math.isfinite(value):
            return _refused(name, f"{value} is no number that JSON has")
        elif type(value) not in (float, Decimal, UUID):
            return _refused(name, f"a text or a number is needed, not {type(value).__name__}")
    return _encode(fields)


def _refused(name: str, why: str) -> Rejection:
    return Rejection(reasons.INVALID_TIME if name == "event_time" else reasons.INVALID_FIELD, name, why)
