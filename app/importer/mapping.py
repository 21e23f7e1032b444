"""Reads a mapping file, and refuses one that cannot work before a row is read."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from dataclasses import field as data_field
from datetime import tzinfo
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

import jsonschema
import yaml

from app.contract.events import parse_time_ms
from app.importer.zones import parse_zone

# Every operator, with the options that go with it; those with a star it cannot do without.
_OPERATORS: Final[dict[str, tuple[str, ...]]] = {
    "column": (),
    "defined": (),
    "given": (),
    "action": (),
    "param": ("of*",),
    "url_path": (),
    "json": ("of",),
    "extract": ("of*",),
    "first": (),
    "lookup": ("of*", "else"),
    "concat": (),
    "hash": (),
    "number": ("times",),
    "time": ("format*", "zone", "start", "plus_ms"),
    "when": ("then*", "else"),
}
_TESTS: Final = ("equals", "in", "matches", "present")
_TIME_FORMATS: Final = ("iso", "epoch_s", "epoch_ms", "offset_s", "offset_ms")


class MappingError(Exception):
    """The mapping cannot be used; the message says where and what to do."""


class Node(NamedTuple):
    """An expression: its operator, the operator's own argument, the expressions that it works on, and its options."""

    operator: str
    argument: Any = None
    inputs: tuple["Node", ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to


class Condition(NamedTuple):
    """What must hold: `test` of the value of `node` against `operand`; for `any`, one of the conditions in `operand`."""

    test: str
    operand: Any
    node: Node | None = None


@dataclass(frozen=True)
class Rule:
    """One event that a row may give: what must hold, and how each field comes about."""

    name: str
    when: tuple[Condition, ...]
    fields: dict[str, Node]


class Bar(NamedTuple):
    """Rows that are rejected: the reason and the field that are told, in words what to do, and what holds for them."""

    reason: str
    field: str
    advice: str
    when: tuple[Condition, ...]


@dataclass(frozen=True)
class Given:
    """What whoever imports a file says of it: whose it is, what it calls the policy's actions (its name -> ours), and the
    zone of times that name none.
    """

    advertiser: str | None = None
    actions: dict[str, str] = data_field(default_factory=dict)
    zone: str | None = None


@dataclass(frozen=True)
class Mapping:
    """A mapping, checked: how to read the rows, and what each becomes."""

    format: str
    delimiter: str
    quoted: bool
    nulls: frozenset[str]
    aliases: dict[str, tuple[str, ...]]
    optional: frozenset[str]
    group: tuple[str, ...]
    sort_by_time: bool
    defined: dict[str, Node]
    skip: tuple[Rule, ...]
    reject: tuple[Bar, ...]
    rules: tuple[Rule, ...]
    columns: frozenset[str]  # all that are used
    sha256: str
    is_fixed_delimiter: bool = True
    any_case: bool = False
    parameters_row: bool = False
    known_actions: bool = False
    one_by_one: bool = False
    codes: str | None = None
    needs_advertiser: bool = False
    given: Given = Given()
    zone: tzinfo | None = None  # of times that name none, before that of the mapping
    unread: tuple[str, ...] = ()  # the file's other columns


def schema() -> dict[str, Any]:
    """The mapping file's own JSON Schema."""
    return json.loads(resources.files("app.importer").joinpath("schema.json").read_text())


def built_in() -> dict[str, Path]:
    """The mappings that come with onecount, by the name that `--map` takes."""
    folder = Path(str(resources.files("app.importer").joinpath("mappings")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_mapping(name: Path | str) -> Path:
    """The file of a mapping, which is one that is there or the name of one that comes with onecount."""
    path = Path(name)
    known = built_in()
    if not path.exists() and str(name) in known:
        return known[str(name)]
    if not path.exists():
        raise MappingError(
            f"there is no mapping {name}: give a file (examples are in deploy/mappings), or one of {', '.join(known)}"
        )
    return path


def apply_given(mapping: Mapping, given: Given) -> Mapping:
    """The mapping with what was said of the file; `MappingError` where that does not fit it."""
    if mapping.needs_advertiser and not given.advertiser:
        raise MappingError("this mapping needs to be told whose conversions these are: --advertiser shop")
    if given.advertiser and not mapping.needs_advertiser:
        raise MappingError("this mapping names the advertiser itself: leave --advertiser out")
    try:
        zone = None if given.zone is None else parse_zone(given.zone)
    except ValueError as error:
        raise MappingError(f"--zone: {error}") from error
    return replace(mapping, given=given, zone=zone)


def load_mapping(path: Path | str) -> Mapping:
    """The mapping of a YAML file; `MappingError` for one that is missing, breaks the schema or cannot work."""
    try:
        document = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise MappingError(f"cannot read the mapping {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise MappingError(f"{path} is not valid YAML: {error}") from error
    return parse_mapping(document, str(path))


def parse_mapping(document: object, name: str = "mapping") -> Mapping:
    """As `load_mapping`, of a document already read."""
    validator = jsonschema.Draft202012Validator(schema())
    problem = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if problem is not None:
        raise MappingError(f"{name}: at {_where(problem.absolute_path)}: {_words(problem)}")
    assert isinstance(document, dict)
    reading = _Reading(name, frozenset(document.get("define", ())), document["format"], set(document.get("group", ())))
    common = document.get("fields", {})
    kind = document["format"]
    return Mapping(
        format=kind,
        delimiter=document.get("delimiter", "\t" if kind == "tsv" else ","),
        quoted=document.get("quoted", kind != "tsv"),
        nulls=frozenset(document.get("nulls", ("",))),
        aliases={key: tuple(value) for key, value in document.get("aliases", {}).items()},
        optional=frozenset(document.get("optional", ())),
        group=tuple(document.get("group", ())),
        sort_by_time=document.get("sort_by_time", False),
        defined=_in_order(reading, document.get("define", {})),
        skip=tuple(
            Rule(rule["why"], _conditions(reading, rule["when"], ("skip", index, "when")), {})
            for index, rule in enumerate(document.get("skip", ()))
        ),
        reject=tuple(
            Bar(
                rule["reason"],
                rule.get("field", ""),
                rule["advice"],
                _conditions(reading, rule["when"], ("reject", index, "when")),
            )
            for index, rule in enumerate(document.get("reject", ()))
        ),
        rules=tuple(_rule(reading, rule, common, ("rows", index)) for index, rule in enumerate(document["rows"])),
        columns=frozenset(reading.columns),
        sha256=hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest(),
        is_fixed_delimiter="delimiter" in document or kind != "csv",
        any_case=document.get("any_case", False),
        parameters_row=document.get("parameters_row", False),
        known_actions=document.get("known_actions", False),
        one_by_one=document.get("one_by_one", False),
        codes=document.get("codes"),
        needs_advertiser=reading.is_given,
    )


@dataclass
class _Reading:
    """What is known while a mapping is read."""

    name: str
    defined: frozenset[str]
    format: str
    columns: set[str]
    is_given: bool = False  # whether the advertiser is

    def wrong(self, path: tuple[object, ...], message: str) -> MappingError:
        return MappingError(f"{self.name}: at {_where(path)}: {message}")


def _where(path: Any) -> str:
    return "/".join(str(part) for part in path) or "the top"


def _words(problem: jsonschema.ValidationError) -> str:
    unknown = re.match(r"Unevaluated properties are not allowed \((.*) (?:was|were) unexpected\)", problem.message)
    return f"unknown: {unknown.group(1)}; see app/importer/schema.json" if unknown else problem.message


def _in_order(reading: _Reading, defined: dict[str, Any]) -> dict[str, Node]:
    """The definitions; one may use those above it only, so that none can use itself."""
    nodes: dict[str, Node] = {}
    everything = reading.defined
    for name, value in defined.items():
        reading.defined = frozenset(nodes)
        nodes[name] = _expression(reading, value, ("define", name))
    reading.defined = everything
    return nodes


def _rule(reading: _Reading, rule: dict[str, Any], common: dict[str, Any], path: tuple[object, ...]) -> Rule:
    fields = {
        key: _expression(reading, value, (*path, "fields", key)) for key, value in (common | rule["fields"]).items()
    }
    for needed in ("event_id", "event_type", "event_time", "advertiser_id"):
        if needed not in fields:
            raise reading.wrong((*path, "fields"), f"every event needs {needed}")
    if "user_id" not in fields and "click_id" not in fields:
        raise reading.wrong((*path, "fields"), "every event needs user_id, or click_id where the policy has click_ids")
    return Rule(rule["event"], _conditions(reading, rule.get("when", ()), (*path, "when")), fields)


def _conditions(reading: _Reading, values: Any, path: tuple[object, ...]) -> tuple[Condition, ...]:
    return tuple(_condition(reading, value, (*path, index)) for index, value in enumerate(values))


def _condition(reading: _Reading, value: dict[str, Any], path: tuple[object, ...]) -> Condition:
    if len(value) == 1 and "any" in value:
        return Condition("any", _conditions(reading, value["any"], (*path, "any")))
    if len(value) == 1 and "last_of_group" in value:
        return Condition("last_of_group", value["last_of_group"])
    tests = [test for test in _TESTS if test in value]
    if len(tests) != 1 or "any" in value or "last_of_group" in value:
        raise reading.wrong(
            path, f"a condition needs exactly one of {', '.join(_TESTS)}, or is `any` or `last_of_group` alone"
        )
    test = tests[0]
    operand = value[test]
    if test == "matches":
        operand = _regex(reading, operand, path)
    elif test == "in":
        operand = frozenset(str(item) for item in operand)
    elif test == "equals":
        operand = str(operand)
    node = _expression(reading, {key: part for key, part in value.items() if key != test}, path)
    return Condition(test, operand, node)


def _regex(reading: _Reading, text: str, path: tuple[object, ...]) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise reading.wrong(path, f"{text!r} is no regular expression: {error}") from error


def _input(reading: _Reading, value: object, path: tuple[object, ...]) -> Node:
    """What an operator works on: a text is a column's name there."""
    return _expression(reading, {"column": value} if isinstance(value, str) else value, path)


def _expression(reading: _Reading, value: object, path: tuple[object, ...]) -> Node:
    if not isinstance(value, dict):
        return Node("constant", value)
    found = [key for key in _OPERATORS if key in value]
    if len(found) != 1:
        raise reading.wrong(
            path,
            f"an expression has exactly one of {', '.join(_OPERATORS)}; this one has {' and '.join(found) or 'none'}",
        )
    operator = found[0]
    options = {key: part for key, part in value.items() if key != operator}
    allowed = {option.rstrip("*") for option in _OPERATORS[operator]}
    for option in options:
        if option not in allowed:
            raise reading.wrong(path, f"`{option}` does not go with `{operator}`")
    for option in _OPERATORS[operator]:
        if option.endswith("*") and option[:-1] not in options:
            raise reading.wrong(path, f"`{operator}` needs `{option[:-1]}`")
    return _node(reading, operator, value[operator], options, path)


def _node(reading: _Reading, operator: str, argument: Any, options: dict[str, Any], path: tuple[object, ...]) -> Node:
    def input_of(value: object, *where: object) -> Node:
        return _input(reading, value, (*path, *where))

    match operator:
        case "column":
            reading.columns.add(argument)
            return Node(operator, argument)
        case "defined":
            if argument not in reading.defined:
                raise reading.wrong(path, f"{argument!r} is not defined (above this place)")
            return Node(operator, argument)
        case "given":
            reading.is_given = True
            return Node(operator, argument)
        case "url_path" | "number" | "action":
            return Node(operator, None, (input_of(argument, operator),), options)
        case "time":
            return Node(operator, None, (input_of(argument, operator),), _time_options(reading, options, path))
        case "first" | "concat" | "hash":
            parts = tuple(_expression(reading, part, (*path, operator, index)) for index, part in enumerate(argument))
            return Node(operator, None, parts)
        case "when":
            branches = {key: _expression(reading, part, (*path, key)) for key, part in options.items()}
            return Node(operator, _conditions(reading, argument, (*path, "when")), (), branches)
        case "lookup":
            table = {str(key): part for key, part in argument.items()}
            other = {"else": _expression(reading, options["else"], (*path, "else"))} if "else" in options else {}
            return Node(operator, table, (input_of(options["of"], "of"),), other)
        case "extract":
            return Node(operator, _regex(reading, argument, path), (input_of(options["of"], "of"),))
        case "json":
            if "of" not in options and reading.format != "jsonl":
                raise reading.wrong(path, "`json` needs `of`, the column that holds JSON, unless the format is jsonl")
            return Node(
                operator, tuple(argument.split(".")), (input_of(options["of"], "of"),) if "of" in options else ()
            )
        case _:
            return Node(operator, argument, (input_of(options["of"], "of"),))  # param


def _time_options(reading: _Reading, options: dict[str, Any], path: tuple[object, ...]) -> dict[str, Any]:
    styles = (options["format"],) if isinstance(options["format"], str) else tuple(options["format"])
    for style in styles:
        if style not in _TIME_FORMATS and "%" not in style:
            raise reading.wrong(
                path,
                f"{style!r} is no time format: one of {', '.join(_TIME_FORMATS)}, or for strptime such as %Y-%m-%d %H:%M:%S",
            )
    ready = {"formats": styles, "plus_ms": options.get("plus_ms", 0), "zone": None, "start_ms": 0}
    if "zone" in options:
        try:
            ready["zone"] = parse_zone(options["zone"])
        except ValueError as error:
            raise reading.wrong(path, str(error)) from error
    if any(style.startswith("offset") for style in styles) != ("start" in options):
        raise reading.wrong(path, "`start` goes with the formats offset_s and offset_ms, and they need it")
    if "start" in options:
        ready["start_ms"] = parse_time_ms(options["start"])
        if ready["start_ms"] is None:
            raise reading.wrong(
                path, f"start {options['start']!r} is not RFC 3339 with a zone, such as 2026-01-01T00:00:00Z"
            )
    return ready
