"""What a mapping says: every expression, condition and time format, and the errors of one that cannot work."""

from pathlib import Path
from typing import Any

import pytest

from app.importer import MappingError, load_mapping, parse_mapping
from app.importer.evaluate import Row, UnmappableError, evaluate, holds

# 2025-03-01T12:00:00Z
NOON_MS = 1_740_830_400_000


def clicks(fields: dict[str, object] | None = None, when: list | None = None, **document: object) -> dict[str, Any]:
    """A mapping that makes a click of every row of id,user,at; further keys as given."""
    base: dict[str, object] = {
        "event_id": {"column": "id"},
        "event_type": "click",
        "event_time": {"time": "at", "format": "iso"},
        "advertiser_id": "shop",
        "user_id": {"column": "user"},
        "platform": "default",
        "campaign_id": "spring",
    }
    rule = {"event": "click", "fields": base | (fields or {})} | ({"when": when} if when else {})
    return {"format": "csv", "rows": [rule]} | document


def value_of(expression: object, nulls: tuple[str, ...] = ("",), define: dict | None = None, **columns: Any) -> Any:
    """The value of one expression for one row."""
    return _evaluated(expression, nulls, define, Row(columns_without(columns, nulls), 1))


def columns_without(columns: dict[str, Any], nulls: tuple[str, ...]) -> dict[str, Any]:
    return {name: None if value in nulls else value for name, value in columns.items()}


def _evaluated(expression: object, nulls: tuple[str, ...], define: dict | None, row: Row) -> Any:
    document = clicks(fields={"click_id": expression}, nulls=list(nulls), define=define or {})
    mapping = parse_mapping(document)
    return evaluate(mapping.rules[0].fields["click_id"], row, mapping)


@pytest.mark.parametrize(
    ("expression", "columns", "expected"),
    [
        ("fixed", {}, "fixed"),
        ({"column": "a"}, {"a": "x"}, "x"),
        ({"column": "a"}, {"a": ""}, None),
        ({"param": "gclid", "of": "url"}, {"url": "https://x.example/p?a=1&gclid=G%201"}, "G 1"),
        ({"param": "gclid", "of": "url"}, {"url": "https://x.example/p?gclid="}, None),
        ({"param": "g", "of": "url"}, {"url": "https://x.example/?g=&g=second"}, "second"),
        ({"url_path": "url"}, {"url": "https://x.example/a/b?c=d#e"}, "/a/b"),
        ({"url_path": "url"}, {"url": "https://x.example"}, "/"),
        ({"json": "user.emails.1", "of": "data"}, {"data": '{"user":{"emails":["a","b"]}}'}, "b"),
        ({"json": "user.phone", "of": "data"}, {"data": '{"user":{}}'}, None),
        ({"json": "user", "of": "data"}, {"data": '{"user":{}}'}, None),
        ({"json": "n", "of": "data"}, {"data": '{"n":7}'}, 7),
        ({"extract": "^(..)-", "of": "a"}, {"a": "de-1"}, "de"),
        ({"extract": "^..", "of": "a"}, {"a": "de-1"}, "de"),
        ({"extract": "^z", "of": "a"}, {"a": "de-1"}, None),
        ({"first": [{"column": "a"}, {"column": "b"}, "none"]}, {"a": "", "b": "y"}, "y"),
        ({"first": [{"column": "a"}, "none"]}, {"a": ""}, "none"),
        ({"lookup": {"1": "one"}, "of": "a"}, {"a": "1"}, "one"),
        ({"lookup": {"1": "one"}, "of": "a"}, {"a": "2"}, None),
        ({"lookup": {"1": "one"}, "of": "a", "else": "many"}, {"a": "2"}, "many"),
        ({"lookup": {"1": "one"}, "of": "a", "else": "many"}, {"a": ""}, "many"),
        ({"concat": ["c-", {"column": "a"}]}, {"a": "1"}, "c-1"),
        ({"concat": ["c-", {"column": "a"}]}, {"a": ""}, None),
        ({"number": "a"}, {"a": " 12.50 "}, 12.5),
        ({"number": "a", "times": 0.1}, {"a": "3"}, 0.3),
        ({"number": "a"}, {"a": "100"}, 100),
        ({"when": [{"column": "a", "present": True}], "then": "yes"}, {"a": "1"}, "yes"),
        ({"when": [{"column": "a", "present": True}], "then": "yes"}, {"a": ""}, None),
        ({"when": [{"column": "a", "present": True}], "then": "yes", "else": "no"}, {"a": ""}, "no"),
    ],
)
def test_an_expression_says_what_a_row_holds(expression: object, columns: dict[str, Any], expected: object) -> None:
    assert value_of(expression, **columns) == expected


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("2025-03-01T12:00:00Z", {"format": "iso"}, NOON_MS),
        ("2025-03-01 12:00:00.123456+00:00", {"format": "iso"}, NOON_MS + 123),
        ("2025-03-01T13:00:00", {"format": "iso", "zone": "Europe/Berlin"}, NOON_MS),
        ("2025-03-01T14:00:00", {"format": "iso", "zone": "+02:00"}, NOON_MS),
        ("2026-10-25 02:30:00", {"format": "iso", "zone": "Europe/Berlin"}, 1_792_888_200_000),  # the first of two
        ("2026-03-29 03:00:00", {"format": "iso", "zone": "Europe/Berlin"}, 1_774_746_000_000),
        ("20250301200000456", {"format": "%Y%m%d%H%M%S%f", "zone": "Asia/Shanghai"}, NOON_MS + 456),
        ("01/03/2025 12:00", {"format": "%d/%m/%Y %H:%M", "zone": "UTC"}, NOON_MS),
        ("1740830400", {"format": "epoch_s"}, NOON_MS),
        ("1740830400.25", {"format": "epoch_s"}, NOON_MS + 250),
        ("1740830400000", {"format": "epoch_ms"}, NOON_MS),
        ("60", {"format": "offset_s", "start": "2025-03-01T11:59:00Z"}, NOON_MS),
        ("60", {"format": "offset_ms", "start": "2025-03-01T12:00:00Z", "plus_ms": 1000}, NOON_MS + 1060),
    ],
)
def test_a_time_is_read_in_its_format_and_zone(text: str, options: dict[str, object], expected: int) -> None:
    assert value_of({"time": "at", **options}, at=text) == expected


@pytest.mark.parametrize(
    ("expression", "text", "reason"),
    [
        ({"time": "a", "format": "iso"}, "yesterday", "unreadable_time"),
        ({"time": "a", "format": "epoch_s"}, "NaN", "unreadable_time"),
        ({"time": "a", "format": "iso"}, "2025-03-01T12:00:00", "time_without_zone"),
        ({"time": "a", "format": "iso", "zone": "Europe/Berlin"}, "2026-03-29 02:00:00", "unreadable_time"),
        ({"time": "a", "format": "iso"}, "2026-03-29 02:59:59 Europe/Berlin", "unreadable_time"),
        ({"number": "a"}, "1,000", "unreadable_number"),
        ({"number": "a"}, "NaN", "unreadable_number"),
        ({"number": "a"}, "1e400", "unreadable_number"),
        ({"number": "a"}, "1e9999999", "unreadable_number"),
        ({"number": "a", "times": 0.01}, "1e9999999999999999999", "unreadable_number"),
        ({"number": "a"}, "1_000", "unreadable_number"),
        ({"number": "a"}, "\uff11\uff10", "unreadable_number"),
        ({"number": "a"}, True, "unreadable_number"),
        ({"time": "a", "format": "epoch_s"}, "1e5000", "unreadable_time"),
        ({"time": "a", "format": ["epoch_ms", "iso"]}, "1_795_197_600_000", "unreadable_time"),
        ({"time": "a", "format": "epoch_ms"}, "-1", "unreadable_time"),
        ({"time": "a", "format": "iso"}, "1969-12-31T23:59:59Z", "unreadable_time"),
        ({"json": "x", "of": "a"}, "{", "unreadable_json"),
        ({"param": "x", "of": "a"}, "https://[broken?x=1", "unreadable_url"),
    ],
)
def test_a_text_that_is_not_what_it_is_taken_for_has_a_reason(expression: object, text: str, reason: str) -> None:
    with pytest.raises(UnmappableError) as caught:
        value_of(expression, a=text)
    assert caught.value.reason == reason


def test_a_hash_keeps_its_parts_apart_and_is_null_only_if_all_are() -> None:
    both = {"hash": [{"column": "a"}, {"column": "b"}]}
    assert len(value_of(both, a="ab", b="c")) == 64
    assert value_of(both, a="ab", b="c") != value_of(both, a="a", b="bc")
    assert value_of(both, a="x", b="") != value_of(both, a="", b="x")
    assert value_of(both, a="", b="") is None


def test_a_definition_may_use_those_above_it() -> None:
    define = {"id": {"column": "a"}, "long": {"concat": ["id-", {"defined": "id"}]}}
    assert value_of({"defined": "long"}, define=define, a="7") == "id-7"


def test_null_markers_count_everywhere_a_value_is_read() -> None:
    nulls = ("", r"\N", "EMPTY")
    assert value_of({"column": "a"}, nulls, a=r"\N") is None
    assert value_of({"param": "g", "of": "a"}, nulls, a="https://x.example/?g=EMPTY") is None
    assert value_of({"json": "g", "of": "a"}, nulls, a='{"g":"EMPTY"}') is None


@pytest.mark.parametrize(
    ("condition", "text", "expected"),
    [
        ({"column": "a", "equals": 1}, "1", True),
        ({"column": "a", "equals": "x"}, "", False),
        ({"column": "a", "in": ["x", "y"]}, "y", True),
        ({"column": "a", "in": ["x", "y"]}, "z", False),
        ({"column": "a", "matches": "^x.z$"}, "xyz", True),
        ({"column": "a", "matches": "^x.z$"}, "", False),
        ({"column": "a", "present": False}, "", True),
        ({"any": [{"column": "a", "equals": "x"}, {"column": "a", "equals": "y"}]}, "y", True),
        ({"param": "gclid", "of": "a", "present": True}, "https://x.example/?gclid=1", True),
    ],
)
def test_a_condition_holds_or_not(condition: dict, text: str, expected: bool) -> None:
    mapping = parse_mapping(clicks(when=[condition]))
    row = Row(columns_without({"a": text}, ("",)), 1)
    assert holds(mapping.rules[0].when[0], row, mapping) is expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (clicks(format="xml"), r"at format: 'xml' is not one of"),
        (clicks(fields={"colour": "red"}), "'colour' is not one of"),
        (clicks(rows=[{"event": "click", "fields": {}}]), "at rows/0/fields: every event needs event_id"),
        (clicks(fields={"source": {"collumn": "a"}}), "at rows/0/fields/source: unknown: 'collumn'"),
        (clicks(fields={"source": {"column": "a", "json": "b"}}), "exactly one of .* column and json"),
        (clicks(fields={"source": {"param": "a"}}), "at rows/0/fields/source: `param` needs `of`"),
        (clicks(fields={"source": {"column": "a", "zone": "UTC"}}), "`zone` does not go with `column`"),
        (clicks(fields={"source": {"defined": "nothing"}}), "'nothing' is not defined"),
        (clicks(define={"a": {"defined": "b"}, "b": "x"}), "at define/a: 'b' is not defined"),
        (clicks(fields={"source": {"extract": "(", "of": "a"}}), r"'\(' is no regular expression"),
        (clicks(fields={"event_time": {"time": "at", "format": "ISO"}}), "'ISO' is no time format"),
        (clicks(fields={"event_time": {"time": "at", "format": "iso", "zone": "Mars/Base"}}), "no time zone"),
        (clicks(fields={"event_time": {"time": "at", "format": "offset_s"}}), "`start` goes with"),
        (clicks(when=[{"column": "a"}]), "at rows/0/when/0: a condition needs exactly one of"),
        (clicks(fields={"source": {"json": "a"}}), "`json` needs `of`"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_with_the_place(document: object, message: str) -> None:
    with pytest.raises(MappingError, match=message):
        parse_mapping(document)


def test_a_mapping_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"cannot read the mapping .*gone\.yaml"):
        load_mapping(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_text("rows: [")
    with pytest.raises(MappingError, match=r"bad\.yaml is not valid YAML"):
        load_mapping(tmp_path / "bad.yaml")


@pytest.mark.parametrize("path", sorted(Path("deploy/mappings").glob("*.yaml")), ids=lambda path: path.name)
def test_the_mappings_that_come_with_onecount_can_be_read(path: Path) -> None:
    assert load_mapping(path).rules
