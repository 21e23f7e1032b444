"""Opens a file of rows, whatever it is: CSV, TSV or JSONL, plain or gzipped, or an XLSX workbook; one row at a time."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from app.importer.evaluate import Row
from app.importer.mapping import Mapping
from app.importer.refusal import ImportRefusedError
from app.importer.table import Broken, read_table, rows_of
from app.importer.workbook import sheet_lines

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZIP_MAGIC: Final = b"PK\x03\x04"
_UNREADABLE: Final = {  # by how they begin
    b"\xd0\xcf\x11\xe0": "is an Excel file of the old kind (.xls) or has a password: save it as .xlsx without one, or as CSV (UTF-8)",
    b"\xff\xfe": "is UTF-16 text: save it as CSV (UTF-8)",
    b"\xfe\xff": "is UTF-16 text: save it as CSV (UTF-8)",
    b"%PDF": "is a PDF: ask for the table as CSV (UTF-8)",
}
_MAX_RAW_CHARACTERS: Final = 1 << 20  # of a line that cannot be read


@dataclass
class Source:
    """An open file: its rows, the mapping with what the file says of itself, and how far it has been read."""

    file: BinaryIO
    rows: Iterator[Row | Broken]
    mapping: Mapping

    @property
    def bytes_read(self) -> int:
        """Of the file as it lies on disk."""
        return self.file.tell()


@contextmanager
def open_source(path: Path, mapping: Mapping, sheet: str | None = None) -> Iterator[Source]:
    """The rows of a file from its first on, in order; what cannot be read as a row comes as `Broken`. `sheet`: of a
    workbook, the first one if not given.

    `MappingError` if the file lacks a column that the mapping uses; `ImportRefusedError` if it cannot be read at all.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImportRefusedError(f"cannot read {path}: {error.strerror}") from error
    with file:
        start = file.read(4)
        file.seek(0)
        for magic, advice in _UNREADABLE.items():
            if start.startswith(magic):
                raise ImportRefusedError(f"{path} {advice}")
        if start == _ZIP_MAGIC:
            if mapping.format == "jsonl":
                raise ImportRefusedError(f"{path} is a workbook or ZIP archive, and the mapping is for JSON lines")
            mapping, rows = rows_of(sheet_lines(file, path, sheet), mapping, path)
        elif sheet is not None:
            raise ImportRefusedError(f"{path} is no XLSX workbook, so it has no sheet {sheet!r}: leave --sheet out")
        else:
            stream = gzip.GzipFile(fileobj=file) if start.startswith(_GZIP_MAGIC) else file
            # Bytes that are not UTF-8 survive as lone surrogates, so that one bad row costs one row and not the file.
            text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
            mapping, rows = _text_rows(text, mapping, path)
        yield Source(file, _last_of_group(rows, mapping.group), mapping)


def _text_rows(text: io.TextIOWrapper, mapping: Mapping, path: Path) -> tuple[Mapping, Iterator[Row | Broken]]:
    try:
        if mapping.format == "jsonl":
            rows = _json_rows(text, mapping)
        else:
            mapping, rows = read_table(text, mapping, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    return mapping, _whole(rows, path)


def _whole(rows: Iterator[Row | Broken], path: Path) -> Iterator[Row | Broken]:
    try:
        yield from rows
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ImportRefusedError:
    return ImportRefusedError(f"{path} is damaged: {error}; the rows before are delivered, fetch the file again")


def _json_rows(text: io.TextIOWrapper, mapping: Mapping) -> Iterator[Row | Broken]:
    nulls = mapping.nulls
    by_alias = {alias: name for name, aliases in mapping.aliases.items() for alias in aliases}
    for line, content in enumerate(text, 1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield Broken(line, content[:_MAX_RAW_CHARACTERS], "unreadable_json", str(error)[:200])
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
