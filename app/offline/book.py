"""The rows of an imported file and what becomes of them, on disk: as many as there may be, in little memory."""

import sqlite3
from collections.abc import Iterator
from typing import Any, Final

import orjson

from app.contract.events import TOUCH_TYPES
from app.importer.evaluate import Row
from app.importer.prepare import Outcome
from app.importer.table import Broken
from app.offline import codes

_CACHE_KIB: Final = 16_384
_PART: Final = 10_000  # rows at once, where each is looked at
_SCHEMA: Final = """
CREATE TABLE rows (
  id INTEGER PRIMARY KEY, line INTEGER, rule TEXT, type TEXT, time_ms INTEGER, advertiser TEXT, user TEXT, platform TEXT,
  name TEXT, event_id TEXT, order_id TEXT, click_id TEXT, adjustment TEXT, named_event TEXT, value REAL,
  status TEXT, reason TEXT, field TEXT, detail TEXT, before_ms INTEGER, window_ms INTEGER, after_ms INTEGER
);
CREATE TABLE verdicts (id INTEGER, key BLOB, platform TEXT, status TEXT, of TEXT, value REAL, PRIMARY KEY (id, key));
"""
_INDEXES: Final = (
    "CREATE INDEX of_rows ON verdicts (key)",
    "CREATE INDEX ids ON rows (event_id)",
    "CREATE INDEX orders ON rows (order_id) WHERE type = 'adjustment'",
    "CREATE INDEX named ON rows (named_event) WHERE type = 'adjustment'",
)
_FIELDS: Final = (
    "event_type",
    "event_time",
    "advertiser_id",
    "user_id",
    "platform",
    "conversion_name",
    "event_id",
    "order_id",
    "click_id",
    "adjustment",
    "conversion_event_id",
    "value",
)


class Book:
    """A row for each event of the file, and for each row that gave none; `note` is what `import_file` calls for each row.

    It lies in a file without a name (TMPDIR says where), of which nothing is left after a kill.
    """

    def __init__(self) -> None:
        self.db = sqlite3.connect("", isolation_level=None)
        self.db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{_CACHE_KIB};")
        self.db.executescript(_SCHEMA)
        self.db.execute("BEGIN")

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()

    def note(self, row: Row | Broken, outcome: Outcome) -> None:
        """What the import makes of a row."""
        if outcome.refusal is not None:
            rule, *why = outcome.refusal
            self._add(row.line, rule, {}, codes.REJECTED, *why)
        elif outcome.skipped is not None:
            self._add(row.line, "", {}, codes.LEFT_OUT, "", "", outcome.skipped)
        for name, record in outcome.events:
            self._add(
                row.line, name, orjson.loads(record.value) | {"event_time": record.time_ms}, codes.SENT, "", "", ""
            )

    def _add(self, line: int, rule: str, event: dict[str, Any], *became: str) -> None:
        said = [event.get(name) for name in _FIELDS]
        self.db.execute(
            f"INSERT INTO rows VALUES (NULL, {', '.join('?' * 18)}, NULL, NULL, NULL)", (line, rule, *said, *became)
        )

    def close_rows(self, by_time: bool) -> None:
        """All rows are noted. Marks those that another row is the same as, which was sent before; `by_time`: in order of time."""
        for index in _INDEXES:
            self.db.execute(index)
        order = "time_ms, id" if by_time else "id"
        self.db.execute(
            f"""UPDATE rows SET status = '{codes.DUPLICATE}', detail = 'line ' || earlier,
                  reason = CASE WHEN type = 'adjustment' THEN '{codes.REPEATED_ADJUSTMENT}'
                                WHEN order_id IS NULL THEN '{codes.REPEATED}' ELSE '{codes.REPEATED_ORDER}' END
                FROM (SELECT id AS this, first_value(line) OVER same AS earlier, row_number() OVER same AS place FROM rows
                      WHERE status = '{codes.SENT}' AND type IN ('conversion', 'adjustment')
                      WINDOW same AS (PARTITION BY type, advertiser, user, platform, name, event_id ORDER BY {order}))
                WHERE this = rows.id AND place > 1"""
        )

    def span_ms(self) -> tuple[int, int] | None:
        """The first and last time (epoch ms) of the conversions and adjustments that were sent; None where none was."""
        first, last = self.db.execute(
            f"SELECT min(time_ms), max(time_ms) FROM rows WHERE status = '{codes.SENT}' AND type NOT IN {TOUCH_TYPES}"
        ).fetchone()
        return None if first is None else (first, last)

    def find(self, condition: str, *values: Any) -> list[int]:
        """The ids of the rows for which an SQL condition holds."""
        return [row_id for (row_id,) in self.db.execute(f"SELECT id FROM rows WHERE {condition}", values)]

    def each(self, columns: str, condition: str) -> Iterator[tuple[Any, ...]]:
        """(id, ...columns) of the rows for which an SQL condition holds; they may be changed meanwhile."""
        last = 0
        select = f"SELECT id, {columns} FROM rows WHERE id > ? AND {condition} ORDER BY id LIMIT {_PART}"
        while found := self.db.execute(select, (last,)).fetchall():
            yield from found
            last = found[-1][0]

    def set(self, row_id: int, status: str, reason: str = "", detail: str = "") -> None:
        """What became of a row."""
        self.db.execute(
            "UPDATE rows SET status = ?, reason = ?, detail = ? WHERE id = ?", (status, reason, detail, row_id)
        )

    def totals(self) -> list[tuple[str, str, int]]:
        """(status, reason, rows), the most frequent first."""
        return self.db.execute(
            "SELECT status, reason, count(*) FROM rows GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
        ).fetchall()

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """(line, rule, event_id, order_id, status, reason, field, detail) of each row, in the file's order."""
        yield from self.db.execute(
            "SELECT line, rule, event_id, order_id, status, reason, field, detail FROM rows ORDER BY id"
        )
