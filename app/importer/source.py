"""Reads the rows of a CSV, TSV or JSONL file, plain or gzipped, one at a time."""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from app.importer.evaluate import Row
from app.importer.mapping import Mapping, MappingError
from app.importer.refusal import ImportRefusedError

_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_FIELD_CHARACTERS: Final = 1 << 20  # a quote that is never closed must not swallow the file


class Broken(NamedTuple):
    """A row that cannot be read: what is in its place, and why."""

    line: int
    raw: Any
    reason: str
    detail: str


@dataclass
class Source:
    """An open file: its rows, and how far it has been read (bytes as they lie on disk)."""

    file: BinaryIO
    rows: Iterator[Row | Broken]

    @property
    def bytes_read(self) -> int:
        """Of the file as it lies on disk."""
        return self.file.tell()


@contextmanager
def open_source(path: Path, mapping: Mapping) -> Iterator[Source]:
    """The rows of a file from its first on, in order; what cannot be read as a row comes as `Broken`.

    `MappingError` if the file lacks a column that the mapping uses; `ImportRefusedError` if it cannot be read at all.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImportRefusedError(f"cannot read {path}: {error.strerror}") from error
    with file:
        zipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if zipped else file
        # Bytes that are not UTF-8 survive as lone surrogates, so that one bad row costs one row and not the file.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        rows = _json_rows(text, mapping) if mapping.format == "jsonl" else _table_rows(text, mapping, path)
        yield Source(file, _last_of_group(_whole(rows, path), mapping.group))


def _whole(rows: Iterator[Row | Broken], path: Path) -> Iterator[Row | Broken]:
    try:
        yield from rows
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ImportRefusedError(
            f"{path} is damaged: {error}; the rows before are delivered, fetch the file again"
        ) from error


def _table_rows(text: io.TextIOWrapper, mapping: Mapping, path: Path) -> Iterator[Row | Broken]:
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    quoting = csv.QUOTE_MINIMAL if mapping.quoted else csv.QUOTE_NONE
    reader = csv.reader(text, delimiter=mapping.delimiter, quoting=quoting)
    header = next(reader, None)
    if not header:
        raise ImportRefusedError(f"{path} has no header line")
    names = _canonical(header, mapping, path)
    nulls = mapping.nulls
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Broken(line, None, "unreadable_row", str(error))
            continue
        if not values:
            continue
        if len(values) != len(names):
            yield Broken(line, values, "wrong_column_count", f"{len(values)} columns, the header has {len(names)}")
            continue
        yield Row({name: None if value in nulls else value for name, value in zip(names, values, strict=True)}, line)


def _canonical(header: list[str], mapping: Mapping, path: Path) -> list[str]:
    """The header with aliases replaced by the names that the mapping uses."""
    by_alias = {alias: name for name, aliases in mapping.aliases.items() for alias in aliases}
    names = [by_alias.get(name, name) if by_alias.get(name) not in header else name for name in header]
    repeated = sorted({name for name in names if names.count(name) > 1} & mapping.columns)
    if repeated:
        raise MappingError(f"{path} has more than one column {', '.join(repeated)}; which one is meant is unknown")
    missing = sorted(mapping.columns - set(names) - mapping.optional)
    if missing:
        close = difflib.get_close_matches(missing[0], header, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise MappingError(f"{path} lacks the column {', '.join(missing)}{hint}; it has {', '.join(header)}")
    return names


def _json_rows(text: io.TextIOWrapper, mapping: Mapping) -> Iterator[Row | Broken]:
    nulls = mapping.nulls
    by_alias = {alias: name for name, aliases in mapping.aliases.items() for alias in aliases}
    for line, content in enumerate(text, 1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield Broken(line, content[:_MAX_FIELD_CHARACTERS], "unreadable_json", str(error)[:200])
            continue
        if not isinstance(values, dict):
            yield Broken(line, values, "not_an_object", f"a {type(values).__name__} where an object is expected")
            continue
        yield Row(
            {
                by_alias.get(key, key): None if isinstance(value, str) and value in nulls else value
                for key, value in values.items()
            },
            line,
        )


def _last_of_group(rows: Iterator[Row | Broken], group: tuple[str, ...]) -> Iterator[Row | Broken]:
    """Marks each row after which the group's columns change, by looking one row ahead. Broken rows belong to no group."""
    if not group:
        yield from rows
        return
    waiting: list[Row | Broken] = []
    held: Row | None = None
    for row in rows:
        if isinstance(row, Row):
            if held is not None:
                held.last_of_group = any(held.values.get(name) != row.values.get(name) for name in group)
            yield from waiting
            waiting, held = [row], row
        elif held is None:
            yield row
        else:
            waiting.append(row)
    if held is not None:
        held.last_of_group = True
    yield from waiting
