"""From the lines of a table to rows: what stands before the header, the delimiter, the columns' names."""

import csv
import difflib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from app.importer.evaluate import Row
from app.importer.mapping import Mapping, MappingError
from app.importer.refusal import ImportRefusedError
from app.importer.zones import parse_zone

_MAX_FIELD_CHARACTERS: Final = 1 << 20  # also of the text of a row that cannot be read
_MAX_RECORD_LINES: Final = 1_000  # a quote that is never closed must not swallow the file
_HEAD_LINES: Final = 40  # among which the header stands
_PARAMETERS: Final = "parameters:"
_ALIKE: Final = 0.8  # OrderID and Order ID; not Customer ID and User ID
_MIN_END: Final = 4  # characters; ID alone is anything's
_STRAY_QUOTE: Final = 'a quote (") begins a text that does not end as one: take it out, or double those within the text'


class Broken(NamedTuple):
    """A row that cannot be read: what is in its place, and why."""

    line: int
    raw: Any
    reason: str
    detail: str


class Head(NamedTuple):
    """What a table begins with: its columns' names, and the time zone that it says (None: it says none)."""

    header: list[str]
    zone: str | None


def read_table(text: io.TextIOWrapper, mapping: Mapping, path: Path) -> tuple[Mapping, Iterator[Row | Broken]]:
    """The rows of delimited text, and the mapping with what the text says of itself (its time zone).

    `MappingError` if it lacks a column that the mapping uses, `ImportRefusedError` if it has no header.
    """
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    head = list(islice(text, _HEAD_LINES))
    quoting = csv.QUOTE_MINIMAL if mapping.quoted else csv.QUOTE_NONE
    records = _Records(chain(head, text), _delimiter(head, mapping, quoting), quoting)
    lines = iter(records)
    mapping, names = _begin(lines, mapping, path)
    records.columns = len(names)
    return mapping, _rows(lines, names, mapping, False)


class _Records:
    """The records of delimited text with the numbers of their first lines. A quote that is not closed, or not doubled, costs
    the line that it stands in: what the reader took for the rest of its record is read again.

    `columns`: how many a record has, once that is known.
    """

    columns: int | None = None

    def __init__(self, text: Iterator[str], delimiter: str, quoting: int) -> None:
        self._text = text
        self._dialect: Any = {"delimiter": delimiter, "quoting": quoting}
        self._again: deque[str] = deque()
        self._taken: list[str] = []  # the lines of the record at hand

    def __iter__(self) -> Iterator[tuple[int, list[str]] | Broken]:
        taken, line = self._taken, 1
        while True:
            try:
                for values in csv.reader(self._lines(), strict=True, **self._dialect):
                    if len(taken) > 1 and self._hides_rows(values):
                        break
                    yield line, values
                    line += len(taken)
                    taken.clear()
                else:
                    return
            except csv.Error:
                pass
            yield self._alone(line)
            self._again.extendleft(reversed(taken[1:]))
            taken.clear()
            line += 1

    def _lines(self) -> Iterator[str]:
        while len(self._taken) < _MAX_RECORD_LINES:
            line = self._again.popleft() if self._again else next(self._text, None)
            if line is None:
                return
            self._taken.append(line)
            yield line

    def _hides_rows(self, values: list[str]) -> bool:
        """Whether a record of several lines is one only by stray quotes: it has another number of columns than the others, or
        a line within it is a row by itself.
        """
        if self.columns is None:
            return False
        return len(values) != self.columns or any(
            len(cells) == self.columns for line in self._taken[1:-1] for cells in csv.reader((line,), **self._dialect)
        )

    def _alone(self, line: int) -> tuple[int, list[str]] | Broken:
        """The first line taken as it can be read by itself: a quote within a text stands for itself there."""
        text = self._taken[0]
        reader = csv.reader((text, "\n"), **self._dialect)
        try:
            values = next(reader)
        except csv.Error as error:
            return Broken(line, text[:_MAX_FIELD_CHARACTERS], "unreadable_row", str(error))
        if reader.line_num > 1:
            return Broken(line, text[:_MAX_FIELD_CHARACTERS], "unreadable_row", _STRAY_QUOTE)
        return line, values


def rows_of(
    lines: Iterator[tuple[int, list[str]] | Broken], mapping: Mapping, path: Path
) -> tuple[Mapping, Iterator[Row | Broken]]:
    """As `read_table`, of numbered lines of cells, of which empty ones at a line's end may be missing."""
    mapping, names = _begin(lines, mapping, path)
    return mapping, _rows(lines, names, mapping, True)


def _begin(lines: Iterator[tuple[int, list[str]] | Broken], mapping: Mapping, path: Path) -> tuple[Mapping, list[str]]:
    head = _read_head(lines, mapping, path)
    names = _canonical(head.header, mapping, path)
    unread = tuple(name for name in names if name and name not in mapping.columns)
    return replace(_with_zone(mapping, head.zone), unread=unread), names


def _rows(
    lines: Iterator[tuple[int, list[str]] | Broken], names: list[str], mapping: Mapping, is_ragged: bool
) -> Iterator[Row | Broken]:
    nulls = mapping.nulls
    for line in lines:
        if isinstance(line, Broken):
            yield line
            continue
        number, values = line
        if not any(values):
            continue
        if is_ragged:
            values += [""] * (len(names) - len(values))
        if len(values) != len(names):
            yield Broken(number, values, "wrong_column_count", f"{len(values)} columns, the header has {len(names)}")
            continue
        if mapping.any_case:
            values = [value.strip() for value in values]
        yield Row({name: None if value in nulls else value for name, value in zip(names, values, strict=True)}, number)


def _read_head(lines: Iterable[tuple[int, list[str]] | Broken], mapping: Mapping, path: Path) -> Head:
    zone = None
    for line in lines:
        if isinstance(line, Broken):
            break
        cells = [cell.strip() for cell in line[1]]
        first = cells[0] if cells else ""
        if mapping.parameters_row and first.lower().startswith(_PARAMETERS):
            zone = _parameters(first).get("timezone") or zone
        elif any(cells) and not (mapping.parameters_row and first.startswith("#")):
            return Head(line[1], zone)
        elif not mapping.parameters_row:
            break
    raise ImportRefusedError(f"{path} has no header line")


def _parameters(cell: str) -> dict[str, str]:
    """`Parameters:TimeZone=+0100;EntityType=...` by name in lower case."""
    pairs = (part.partition("=") for part in cell[len(_PARAMETERS) :].split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _with_zone(mapping: Mapping, said: str | None) -> Mapping:
    if said is None:
        return mapping
    try:
        zone = parse_zone(said)
    except ValueError as error:
        raise ImportRefusedError(
            f"the line Parameters:TimeZone={said} of the file: {error}. Write the zone there, or take the line out and say --zone"
        ) from error
    if mapping.zone is not None and mapping.zone != zone:
        raise ImportRefusedError(
            f"the file says Parameters:TimeZone={said}, the command --zone {mapping.given.zone}: which one is right is unknown. Leave one out"
        )
    return replace(mapping, zone=zone)


def _delimiter(head: list[str], mapping: Mapping, quoting: int) -> str:
    """The mapping's, or where it fixes none the one by which the header has the columns that are needed."""
    if mapping.is_fixed_delimiter:
        return mapping.delimiter
    for delimiter in (mapping.delimiter, ";", "\t"):
        try:
            for cells in csv.reader(head, delimiter=delimiter, quoting=quoting):
                if not _missing(_renamed(cells, mapping), mapping):
                    return delimiter
        except csv.Error:
            continue
    return mapping.delimiter


def _renamed(header: list[str], mapping: Mapping) -> list[str]:
    """The header with aliases, and where capitals do not matter those too, replaced by the names that the mapping uses."""

    def plain(name: str) -> str:
        return name.strip().casefold() if mapping.any_case else name

    known = {plain(alias): name for name, aliases in mapping.aliases.items() for alias in aliases}
    if mapping.any_case:
        known |= {plain(name): name for name in mapping.columns}
    as_written = set(header)
    return [
        known.get(plain(name), name) if known.get(plain(name)) not in as_written - {name} else name for name in header
    ]


def _missing(names: list[str], mapping: Mapping) -> list[str]:
    return sorted(mapping.columns - set(names) - mapping.optional)


def _canonical(header: list[str], mapping: Mapping, path: Path) -> list[str]:
    names = _renamed(header, mapping)
    repeated = sorted({name for name in names if names.count(name) > 1} & mapping.columns)
    if repeated:
        raise MappingError(f"{path} has more than one column {', '.join(repeated)}; which one is meant is unknown")
    missing = _missing(names, mapping)
    if missing:
        close = difflib.get_close_matches(missing[0], header, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise MappingError(f"{path} lacks the column {', '.join(missing)}{hint}; it has {', '.join(header)}")
    for absent in sorted((mapping.columns & mapping.optional) - set(names)):
        for name in sorted(set(names) - mapping.columns):
            if any(_is_alike(name, known) for known in (absent, *mapping.aliases.get(absent, ()))):
                raise MappingError(
                    f"{path} has a column {name!r}, which is not read, and none {absent!r}: if that is meant, rename it; "
                    "else delete it"
                )
    return names


def _is_alike(name: str, known: str) -> bool:
    """Whether a column's name looks like another spelling of a known one, or its last words: Value for Conversion Value."""
    said, meant = (" ".join(each.casefold().replace("_", " ").split()) for each in (name, known))
    is_end = len(said) >= _MIN_END and meant.endswith(f" {said}")
    return is_end or difflib.SequenceMatcher(None, said, meant).ratio() >= _ALIKE
