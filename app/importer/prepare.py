"""From a row to the records that it becomes, judged by the contract as the product will judge them."""

import difflib
from typing import Any, Final, NamedTuple

import orjson

from app.contract.events import (
    MAX_TIME_MS,
    Accepted,
    Event,
    Rejection,
    judge_event,
    judge_fields,
    key_of,
    parse_time_ms,
)
from app.contract.reasons import BEYOND_CORRECTION_HORIZON, IN_THE_FUTURE, MISSING_FIELD
from app.importer.evaluate import Row, UnmappableError, all_hold, evaluate
from app.importer.mapping import Mapping
from app.importer.table import Broken
from app.policy.model import Policy

UNKNOWN_ACTION: Final = "unknown_action"
NO_USER_ID: Final = "no_user_id"
_NO_USER_ID: Final = "the row names no user: add a column with the user_id (docs/offline.md); a click id alone finds a user only where the policy has click_ids"
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


class Limits(NamedTuple):
    """What events are held against beside the contract: the policy, its platforms with the time (epoch ms) since which each is
    known, and where rows are judged one by one the earliest and the latest time (epoch ms) that the topic takes.
    """

    policy: Policy
    platforms: dict[str, int]
    not_before_ms: int | None = None
    not_after_ms: int | None = None


class Outcome(NamedTuple):
    """What becomes of a row: records with their rule's name, or a refusal, or the reason why it is left out on
    purpose.
    """

    events: tuple[tuple[str, Prepared], ...] = ()
    refusal: Refusal | None = None
    skipped: str | None = None


def prepare(row: Row | Broken, mapping: Mapping, limits: Limits) -> Outcome:
    """Maps one row. It goes wholly or not at all, so that a repaired row can be imported again as it is."""
    if isinstance(row, Broken):
        return Outcome(refusal=Refusal("", row.reason, "", row.detail))
    name = ""
    events = []
    try:
        for rule in mapping.skip:
            if all_hold(rule.when, row, mapping):
                return Outcome(skipped=rule.name)
        for bar in mapping.reject:
            if all_hold(bar.when, row, mapping):
                return Outcome(refusal=Refusal("", bar.reason, bar.field, bar.advice))
        for rule in mapping.rules:
            name = rule.name
            if not all_hold(rule.when, row, mapping):
                continue
            fields = {
                key: value for key, node in rule.fields.items() if (value := evaluate(node, row, mapping)) is not None
            }
            judged = _judge(fields, mapping, limits)
            if isinstance(judged, Refusal):
                return Outcome(refusal=judged._replace(event=name))
            events.append((name, judged))
    except UnmappableError as error:
        return Outcome(refusal=Refusal(name, error.reason, "", error.detail))
    if not events:
        return Outcome(refusal=Refusal("", "no_rule", "", "no rule of the mapping holds for this row"))
    return Outcome(tuple(events))


def _judge(fields: dict[str, Any], mapping: Mapping, limits: Limits) -> Prepared | Refusal:
    for key, value in fields.items():
        if key not in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool):
            fields[key] = str(value)  # ids are text, also where a JSONL file has them as numbers
    try:
        value = orjson.dumps(fields)
    except TypeError as error:
        return Refusal("", "unencodable", "", str(error)[:200])
    event = judge_event(value, limits.policy.bounds.click_ids is not None)
    judged = event if isinstance(event, Rejection) else _judge_fields(event, limits.platforms)
    if isinstance(judged, Rejection):
        is_userless = (judged.reason, judged.field) == (MISSING_FIELD, "user_id")
        if is_userless and (mapping.codes is not None or "click_id" in fields):
            return Refusal("", NO_USER_ID, "user_id", _NO_USER_ID)
        return Refusal("", judged.reason, judged.field, judged.detail)
    refused = _beyond(judged.event, judged.time_ms, mapping, limits)
    return refused or Prepared(judged.time_ms, key_of(judged.event), value)


def _judge_fields(event: Event, platforms: dict[str, int]) -> Accepted | Rejection:
    """As the counter will: the record's time, by which a platform is known or not yet, is the event's."""
    time_ms = parse_time_ms(event.event_time)
    return judge_fields(event, platforms, MAX_TIME_MS if time_ms is None else time_ms)


def _beyond(event: Event, time_ms: int, mapping: Mapping, limits: Limits) -> Refusal | None:
    """Why an event that keeps the contract would not be counted, as far as that is known now."""
    name = event.conversion_name
    actions = limits.policy.at(time_ms).actions
    if mapping.known_actions and name is not None and name not in actions:
        if any(name in version.actions for version in limits.policy.versions):
            detail = f"{name[:100]!r} is an action of the policy, but not of the version in force at the row's time"
            return Refusal("", UNKNOWN_ACTION, "conversion_name", detail)
        close = difflib.get_close_matches(name, actions, 1, 0.5)
        option = f'--action {close[0] if close else "purchase"}="{name}"'
        return Refusal(
            "",
            UNKNOWN_ACTION,
            "conversion_name",
            f"{name[:100]!r} is no action of the policy; if it is one by another name: {option}",
        )
    if limits.not_before_ms is not None and time_ms < limits.not_before_ms:
        return Refusal(
            "",
            BEYOND_CORRECTION_HORIZON,
            "event_time",
            "older than the topic's newest event by more than correction_horizon: it could not be counted any more",
        )
    if limits.not_after_ms is not None and time_ms > limits.not_after_ms:
        return Refusal("", IN_THE_FUTURE, "event_time", "in the future: is the time zone right?")
    return None
