"""What a row says: the one function that evaluates a mapping's expressions, and the one that tests its conditions."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from app.contract.events import MAX_TIME_MS
from app.importer.mapping import Condition, Mapping, Node
from app.importer.zones import split_zone

_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NUMBERS: Final = {"epoch_s": 1000, "offset_s": 1000, "epoch_ms": 1, "offset_ms": 1}  # ms of their unit


class UnmappableError(Exception):
    """A row's value is not what the mapping takes it for: (reason, detail)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class Row:
    """One row: its columns (null markers are None already), and where it stands in the file."""

    values: dict[str, Any]
    line: int
    last_of_group: bool = False
    defined: dict[str, Any] = field(default_factory=dict)  # what has been evaluated


def evaluate(node: Node, row: Row, mapping: Mapping) -> Any:
    """The value of an expression for a row; None is null. Raises `UnmappableError` for a text that cannot be read as
    told.
    """
    operator, argument, inputs, options = node
    match operator:  # the frequent ones first
        case "column":
            return row.values.get(argument)
        case "defined":
            if argument not in row.defined:
                row.defined[argument] = evaluate(mapping.defined[argument], row, mapping)
            return row.defined[argument]
        case "constant":
            return argument
        case "given":
            return mapping.given.advertiser
        case "when":
            branch = options.get("then" if all_hold(argument, row, mapping) else "else")
            return None if branch is None else evaluate(branch, row, mapping)
        case "first":
            for part in inputs:
                value = evaluate(part, row, mapping)
                if value is not None:
                    return value
            return None
        case "concat":
            parts = [evaluate(part, row, mapping) for part in inputs]
            return None if None in parts else "".join(map(str, parts))
        case "hash":
            parts = [evaluate(part, row, mapping) for part in inputs]
            return None if parts.count(None) == len(parts) else _hash(parts)
    value = evaluate(inputs[0], row, mapping) if inputs else row.values
    if value is None:
        return evaluate(options["else"], row, mapping) if "else" in options else None
    match operator:
        case "param":
            found = _url(str(value))[1].get(argument, ())
            return next((text for text in found if text not in mapping.nulls), None)
        case "url_path":
            return _url(str(value))[0]
        case "json":
            return _walk(value, argument, mapping.nulls)
        case "extract":
            match = argument.search(str(value))
            return match and match.group(1 if argument.groups else 0)
        case "lookup":
            if str(value) in argument:
                return argument[str(value)]
            return evaluate(options["else"], row, mapping) if "else" in options else None
        case "action":
            return mapping.given.actions.get(str(value), value)
        case "number":
            return _number(value, options.get("times", 1))
        case "time":
            return _time_ms(value, file_zone=mapping.zone, **options)
    raise AssertionError(operator)


def all_hold(conditions: tuple[Condition, ...], row: Row, mapping: Mapping) -> bool:
    """Whether every condition holds for a row; so it is where there is none."""
    for condition in conditions:  # noqa: SIM110 - half as fast again as all()
        if not holds(condition, row, mapping):
            return False
    return True


def holds(condition: Condition, row: Row, mapping: Mapping) -> bool:
    """Whether a condition holds for a row; a null value equals nothing and matches nothing."""
    if condition.test == "any":
        return any(holds(part, row, mapping) for part in condition.operand)
    if condition.test == "last_of_group":
        return row.last_of_group == condition.operand
    value = evaluate(condition.node, row, mapping)
    if condition.test == "present":
        return (value is not None) == condition.operand
    if value is None:
        return False
    text = str(value)
    if condition.test == "equals":
        return text == condition.operand
    if condition.test == "in":
        return text in condition.operand
    return condition.operand.search(text) is not None


def _hash(parts: list[Any]) -> str:
    """As a JSON array, so that ("ab", "c") and ("a", "bc") differ."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


@lru_cache(maxsize=64)  # the rules of a row ask for several parts of one URL
def _url(text: str) -> tuple[str, dict[str, list[str]]]:
    try:
        parts = urlsplit(text)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as error:
        raise UnmappableError("unreadable_url", f"{text[:200]!r}: {error}") from error
    parameters: dict[str, list[str]] = {}
    for name, value in pairs:
        parameters.setdefault(name, []).append(value)
    return parts.path or "/", parameters


@lru_cache(maxsize=16)
def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnmappableError("unreadable_json", f"{text[:200]!r}: {error}") from error


def _walk(value: Any, path: tuple[str, ...], nulls: frozenset[str]) -> Any:
    """What stands at a path of a JSON text or value; None where it leads nowhere or to an object or array."""
    here = _parse(value) if isinstance(value, str) else value
    for step in path:
        if isinstance(here, dict):
            here = here.get(step)
        elif isinstance(here, list) and step.isdigit() and int(step) < len(here):
            here = here[int(step)]
        else:
            return None
    return None if isinstance(here, dict | list) or (isinstance(here, str) and here in nulls) else here


def _decimal(text: str) -> Decimal:
    """A number as files have it: no thousands, and no `1_000`, which Python would take. ArithmeticError for any other text."""
    if _DECIMAL.fullmatch(text) is None:
        raise InvalidOperation
    return Decimal(text)


def _number(value: Any, times: float) -> int | float:
    """Decimal on the way, so that 0.1 * 3 is 0.3 and an integer stays one."""
    try:
        number = _decimal(str(value).strip()) * Decimal(str(times))
    except ArithmeticError as error:
        raise UnmappableError("unreadable_number", f"{str(value)[:200]!r} is no number") from error
    if math.isinf(float(number)):
        raise UnmappableError("unreadable_number", f"{str(value)[:200]!r} is too large")
    return int(number) if number == number.to_integral_value() else float(number)


def _time_ms(value: Any, formats: tuple[str, ...], plus_ms: int, zone: Any, start_ms: int, file_zone: Any) -> int:
    """By the first format that fits. The zone is the time's own, else the file's, else the mapping's."""
    text = str(value).strip()
    for style in formats:
        try:
            if style in _NUMBERS:
                time_ms: Decimal | int = start_ms + _decimal(text) * _NUMBERS[style] + plus_ms
            else:
                time_ms = _moment_ms(text, style, file_zone or zone) + plus_ms
        except (ValueError, ArithmeticError):
            continue
        if 0 <= time_ms <= MAX_TIME_MS:
            return round(time_ms)
    raise UnmappableError("unreadable_time", f"{text[:200]!r} is not {' or '.join(formats)}")


def _moment_ms(text: str, style: str, zone: Any) -> int:
    bare, named = split_zone(text)
    moment = datetime.fromisoformat(bare) if style == "iso" else datetime.strptime(bare, style)  # noqa: DTZ007 - the zone follows
    if moment.tzinfo is None or named is not None:
        if named is None and zone is None:
            raise UnmappableError(
                "time_without_zone",
                f"{text[:200]!r} names no zone and neither does the file: say it with --zone, or as `zone` of the mapping",
            )
        moment = moment.replace(tzinfo=named or zone)
        if moment.utcoffset() < moment.replace(fold=1).utcoffset():  # type: ignore[operator] - it has a zone (PEP 495)
            raise UnmappableError("unreadable_time", f"{text[:200]!r} never was: clocks went forward over it")
    return int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000
