"""From a row to the records that it becomes, judged by the contract as the product will judge them."""

from typing import Any, Final, NamedTuple

import orjson

from app.contract.events import MAX_TIME_MS, Rejection, judge_bytes, judge_fields
from app.importer.evaluate import Row, UnmappableError, all_hold, evaluate
from app.importer.mapping import Mapping
from app.importer.source import Broken

_NUMBERS: Final = frozenset(("event_time", "value", "cost"))


class Prepared(NamedTuple):
    """One record, ready to be sent: the event's time (epoch ms), which is also its Kafka timestamp, and its bytes."""

    time_ms: int
    key: bytes
    value: bytes


class Refusal(NamedTuple):
    """Why a row is rejected: the rule that it broke on ("" for the row itself), the reason, the field, and words for a
    person.
    """

    event: str
    reason: str
    field: str
    detail: str


class Outcome(NamedTuple):
    """What becomes of a row: records with their rule's name, or a refusal, or the reason why it is left out on
    purpose.
    """

    events: tuple[tuple[str, Prepared], ...] = ()
    refusal: Refusal | None = None
    skipped: str | None = None


def prepare(row: Row | Broken, mapping: Mapping, platforms: dict[str, int]) -> Outcome:
    """Maps one row. It goes wholly or not at all, so that a repaired row can be imported again as it is."""
    if isinstance(row, Broken):
        return Outcome(refusal=Refusal("", row.reason, "", row.detail))
    name = ""
    events = []
    try:
        for rule in mapping.skip:
            if all_hold(rule.when, row, mapping):
                return Outcome(skipped=rule.name)
        for rule in mapping.rules:
            name = rule.name
            if not all_hold(rule.when, row, mapping):
                continue
            fields = {
                key: value for key, node in rule.fields.items() if (value := evaluate(node, row, mapping)) is not None
            }
            judged = _judge(fields, platforms)
            if isinstance(judged, Refusal):
                return Outcome(refusal=judged._replace(event=name))
            events.append((name, judged))
    except UnmappableError as error:
        return Outcome(refusal=Refusal(name, error.reason, "", error.detail))
    if not events:
        return Outcome(refusal=Refusal("", "no_rule", "", "no rule of the mapping holds for this row"))
    return Outcome(tuple(events))


def _judge(fields: dict[str, Any], platforms: dict[str, int]) -> Prepared | Refusal:
    for key, value in fields.items():
        if key not in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool):
            fields[key] = str(value)  # ids are text, also where a JSONL file has them as numbers
    try:
        value = orjson.dumps(fields)
    except TypeError as error:
        return Refusal("", "unencodable", "", str(error)[:200])
    event = judge_bytes(value)
    judged = event if isinstance(event, Rejection) else judge_fields(event, platforms, MAX_TIME_MS)
    if isinstance(judged, Rejection):
        return Refusal("", judged.reason, judged.field, judged.detail)
    return Prepared(judged.time_ms, judged.event.user_id.encode(), value)
