"""Reads a sheet of an XLSX workbook row by row. The sheet is streamed; only the workbook's table of texts is held whole."""

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO, Final
from xml.etree.ElementTree import ParseError

from app.importer.refusal import ImportRefusedError
from app.importer.table import Broken

_MAX_UNPACKED_BYTES: Final = 4 << 30  # a full sheet of eight columns is a tenth of it
_MAX_TEXTS_BYTES: Final = 256 << 20  # held in memory, three to four times as large
_EXACT: Final = 1e15  # Excel keeps 15 digits
_TEXTS: Final = "xl/sharedStrings.xml"
_AS_CSV: Final = "save the sheet as CSV (UTF-8), which has no limits"


def sheet_lines(file: BinaryIO, path: Path, sheet: str | None) -> Iterator[tuple[int, list[str]] | Broken]:
    """The rows of a sheet (the first one, or the one named) as texts, with their numbers; empty ones have no cells.

    A date is given as ISO text without a zone, for that is all that Excel knows of it. `ImportRefusedError` for what is no
    workbook, is damaged, or would take too much memory.
    """
    from openpyxl import load_workbook  # takes a third of a second, and only workbooks need it

    _refuse_unfit(file, path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of styles and extensions that are left out
            book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, ParseError) as error:
        raise ImportRefusedError(f"{path} is no workbook that can be read ({error}); {_AS_CSV}") from error
    names = [each.title for each in book.worksheets]
    if sheet is not None and sheet not in names:
        raise ImportRefusedError(f"{path} has no sheet {sheet!r}; it has {', '.join(names)}")
    if not names:
        raise ImportRefusedError(f"{path} has no sheet with cells")
    return _lines(book[sheet or names[0]], path)


def _lines(sheet: Any, path: Path) -> Iterator[tuple[int, list[str]] | Broken]:
    sheet.reset_dimensions()  # some programs write them wrong, and then rows would be cut off
    try:
        for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
            texts = [_text(cell) for cell in cells]
            while texts and not texts[-1]:
                texts.pop()
            yield number, texts
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, zlib.error, ParseError, EOFError) as error:
        raise ImportRefusedError(f"{path} is damaged: {error}; fetch the file again, or {_AS_CSV}") from error


def _text(value: Any) -> str:
    """As the cell would stand in a CSV file; a whole number without decimals, as order numbers are meant. One of more digits
    than Excel keeps has an exponent, by which it can be told.
    """
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return str(int(value)) if abs(value) < _EXACT else f"{value:.14E}"
    if isinstance(value, datetime | date | time):
        return value.isoformat(sep=" ") if isinstance(value, datetime) else value.isoformat()
    return str(value)


def _refuse_unfit(file: BinaryIO, path: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            parts = {part.filename: part.file_size for part in archive.infolist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise ImportRefusedError(f"{path} is damaged: {error}; fetch the file again") from error
    if "xl/workbook.xml" not in parts:
        raise ImportRefusedError(f"{path} is a ZIP archive and no XLSX workbook: unpack it and import the file in it")
    if sum(parts.values()) > _MAX_UNPACKED_BYTES or parts.get(_TEXTS, 0) > _MAX_TEXTS_BYTES:
        raise ImportRefusedError(
            f"{path} unpacks to {sum(parts.values()) >> 20:,} MiB, {parts.get(_TEXTS, 0) >> 20:,} MiB of it texts that must be held in memory: {_AS_CSV}"
        )
    file.seek(0)
