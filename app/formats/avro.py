"""Events in Avro, by the schema that they were written with."""

import io
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from app.formats.schemas import NoSchema, Read, SchemaUnfit

MAX_PARTS: Final = 10_000  # of a schema, named types written out
_SIZES: Final = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1}
# What fastavro raises for bytes that do not follow the schema.
_BROKEN: Final = (EOFError, ValueError, IndexError, KeyError, OverflowError, TypeError, ArithmeticError, struct.error)


def reader(text: str, referenced: Sequence[str]) -> Read:
    """What reads events of a schema. `referenced`: the schemas whose types it names, each after those that it names itself.

    Raises `SchemaUnfit` for a schema by which no event can be read, `NoSchema` for a text that is no JSON, so no schema at all.
    """
    named: dict[str, Any] = {}
    try:
        for each in referenced:
            fastavro.parse_schema(json.loads(each), named)
        schema = fastavro.parse_schema(json.loads(text), named)
        if not isinstance(schema, dict) or schema.get("type") != "record":
            raise SchemaUnfit("an event is a record")
        _Walk(named).fewest_bytes(schema, frozenset())
    except json.JSONDecodeError as error:
        raise NoSchema(f"{type(error).__name__}: {error}") from error
    except (ValueError, SchemaParseException, UnknownType, KeyError, TypeError, RecursionError) as error:
        raise SchemaUnfit(f"fastavro does not read it: {type(error).__name__}: {error}") from error

    def read(data: bytes) -> Mapping[str, Any]:
        stream = io.BytesIO(data)
        try:
            values = fastavro.schemaless_reader(stream, schema, None)
        except _BROKEN as error:
            raise SchemaUnfit(f"{type(error).__name__}: {str(error)[:200]}") from error
        if stream.read(1):
            raise SchemaUnfit(f"{len(data) - stream.tell() + 1} bytes are left behind the record")
        assert isinstance(values, dict)
        return values

    return read


class _Walk:
    """Looks for what would let a few bytes take all time, memory or stack: fastavro knows no limit."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._parts = 0

    def fewest_bytes(self, schema: Any, within: frozenset[str]) -> int:
        """The fewest bytes that a value of the schema takes. Raises `SchemaUnfit`."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise SchemaUnfit(f"it has more than {MAX_PARTS} parts once its named types are written out")
        if isinstance(schema, list):
            return 1 + min(self.fewest_bytes(branch, within) for branch in schema) if schema else 1
        if isinstance(schema, str):
            if schema in _SIZES:
                return _SIZES[schema]
            if schema in within:
                raise SchemaUnfit(f"{schema} holds itself, so an event could nest without end")
            return self.fewest_bytes(self._named[schema], within)
        kind = schema["type"]
        if kind in ("record", "error"):
            inside = within | {schema["name"]}
            return sum(self.fewest_bytes(field["type"], inside) for field in schema["fields"])
        if kind in ("array", "map"):
            fewest = self.fewest_bytes(schema["items" if kind == "array" else "values"], within)
            if kind == "array" and not fewest:
                raise SchemaUnfit("an array of what takes no bytes could have any length")
            return 1
        if kind == "enum":
            return 1
        return int(schema["size"]) if kind == "fixed" else self.fewest_bytes(kind, within)
