"""What has been exported: a small file that keeps runs from repeating each other, and tells what has changed since.

It holds no user ids or click ids: a conversion stands in it as a hash of its key, and by the order id that the platform knows
it by, which stays the same there whatever is learnt later.
"""

import hashlib
import sqlite3
from pathlib import Path
from typing import Final

from app.offline.refusal import OfflineError

_CACHE_KIB: Final = 16_384
_APPLICATION_ID: Final = 0x6F6E6365  # how SQLite's header tells that a file is ours
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS exported (
  key BLOB PRIMARY KEY, time_ms INTEGER, value_micros INTEGER, retracted INTEGER, order_id TEXT
) WITHOUT ROWID;
"""
_SEEN: Final = """
CREATE TEMP TABLE seen (
  key BLOB PRIMARY KEY, user TEXT, name TEXT, event_id TEXT, order_id TEXT, time_ms INTEGER, value_micros INTEGER,
  currency TEXT, is_counted INTEGER, duplicate_of TEXT, in_range INTEGER, touch_type TEXT, touch_id TEXT,
  touch_ms INTEGER, written_ms INTEGER, click_id TEXT, has_touch INTEGER DEFAULT 0
);
"""


def digest(key: bytes) -> bytes:
    """A conversion's key (advertiser, user, platform, action, event) as it stands in the file."""
    return hashlib.blake2b(key, digest_size=16).digest()


def open_exported(path: Path | None, about: dict[str, str]) -> sqlite3.Connection:
    """The state of earlier runs (None: of none, and nothing is kept), with an empty table `seen` for this one.

    `about`: whose export it is. `OfflineError` where the file is another one's, or none.
    """
    try:
        db = sqlite3.connect("" if path is None else path, isolation_level=None)
        db.executescript(f"PRAGMA temp_store=FILE; PRAGMA cache_size=-{_CACHE_KIB}; PRAGMA synchronous=FULL;")
        if path is not None and path.exists() and path.stat().st_size:
            found = db.execute("PRAGMA application_id").fetchone()[0]
            if found != _APPLICATION_ID:
                raise OfflineError(f"{path} is no state of an export; give another path with --state")
        db.executescript(f"PRAGMA application_id={_APPLICATION_ID}; {_SCHEMA} {_SEEN}")
        if "order_id" not in {column[1] for column in db.execute("PRAGMA table_info(exported)")}:
            db.execute("ALTER TABLE exported ADD COLUMN order_id TEXT")  # an older state: null, the row's own is told
        known = dict(db.execute("SELECT name, value FROM about"))
        if known and known != about:
            said = ", ".join(f"{name} {value}" for name, value in known.items())
            raise OfflineError(f"{path} is the state of another export ({said}); give another path with --state")
        db.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", about.items())
        return db
    except sqlite3.Error as error:
        raise OfflineError(f"cannot use the state file {path}: {error}; give another path with --state") from error
