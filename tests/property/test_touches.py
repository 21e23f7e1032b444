"""The store of touches against a plain list: of each user the latest one before each conversion is found, whatever was stored and is left unread."""

from collections.abc import Iterator
from itertools import chain
from operator import itemgetter
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.attribution.state import Touch
from app.attribution.touches import Batch, Pool, Touches
from app.columns import table as table_module
from app.columns.table import HASH, TIME, distinct
from app.columns.texts import coded, texts_of
from tests.memory.redis import Memory, MemoryStore

DAY_MS = 86_400_000
STEP_MS = DAY_MS // 4
KINDS = ("view", "click")
# Few users, of whom some share the upper half of their hash, by which alone runs are searched.
USERS = [1, 2, 2**32 + 1, 5 * 2**32, 5 * 2**32 + 1]
IDS = [b"a", b"b", b"an id that is longer than the others"]

moments = st.integers(0, 30).map(lambda step: step * STEP_MS)
lags = st.integers(0, 3).map(lambda step: step * STEP_MS)
touches = st.tuples(st.sampled_from([0, 1, 1, 1]), st.sampled_from(USERS), lags, st.sampled_from(IDS))
asked = st.tuples(st.sampled_from([0, 1, 1]), st.sampled_from(USERS), lags)
# The time near which all of a batch lies, since what is stored together comes together; its touches and conversions; who is read
# whole; and whether the store is opened anew behind it.
batches = st.lists(
    st.tuples(
        moments,
        st.lists(touches, max_size=9),
        st.lists(asked, max_size=5),
        st.lists(st.sampled_from(USERS), max_size=1),
        st.booleans(),
    ),
    min_size=4,
    max_size=16,
)

Stored = tuple[int, int, int, bytes, str]  # kind, user, time (ms), event_id, campaign


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Runs and merges are reached by few records."""
    with (
        patch.object(table_module, "NEW_MAX", 4),
        patch.object(table_module, "FAN_OUT", 3),
        patch.object(table_module, "RUN_MAX_BYTES", 1200),
    ):
        yield


def opened(store: MemoryStore, before: Touches | None = None) -> Touches:
    windows_ms = {"view": 2 * DAY_MS, "click": 3 * DAY_MS}
    found = Touches("c0", windows_ms, windows_ms, 30 * DAY_MS, 1)
    if before is not None:
        found.slots = before.slots
        for segment, table in before.segments.items():
            found.load(segment, len(table), store.run)
    return found


def batch_of(found: list[Stored]) -> Batch:
    kinds, users, times_ms, ids, names = zip(*found, strict=True)
    columns = np.array(kinds, dtype=np.int64), np.array(users, dtype=np.uint64), np.array(times_ms, dtype=np.int64)
    return Batch(*columns, texts_of(list(ids)), [coded(texts_of([name.encode() for name in names]))])


def best_of(stored: list[Stored], kind: int, user: int, time_ms: int) -> Touch | None:
    """The latest, of those the one with the largest id, of those the first that was stored."""
    fitting = [each for each in stored if each[:2] == (kind, user) and each[2] < time_ms]
    if not fitting:
        return None
    *_, at_ms, event_id, name = max(fitting, key=itemgetter(2, 3))
    return Touch(KINDS[kind], at_ms, event_id.decode(), (name,))


@given(batches)
@settings(max_examples=500)
def test_the_latest_touch_before_a_conversion_is_found_whatever_is_left_unread(
    found: list[tuple[int, list[tuple[int, int, int, bytes]], list[tuple[int, int, int]], list[int], bool]],
) -> None:
    store = MemoryStore(Memory())
    held = opened(store)
    stored: list[Stored] = []
    for stream_ms, new, wanted, whole, is_reopened in sorted(found, key=itemgetter(0)):
        near = [
            (kind, user, stream_ms + lag_ms, event_id, f"campaign {at}")
            for at, (kind, user, lag_ms, event_id) in enumerate(new, len(stored))
        ]
        places = [(kind, user, stream_ms + lag_ms) for kind, user, lag_ms in wanted]
        records, names = held.encode(batch_of(near), stream_ms) if near else ({}, [])
        by_kind = {
            name: (
                np.array([user for kind, user, _ in places if KINDS[kind] == name], dtype=np.uint64),
                np.array([time_ms for kind, _, time_ms in places if KINDS[kind] == name], dtype=np.int64),
            )
            for name in {KINDS[kind] for kind, *_ in places}
        }
        everyone = np.array(whole, dtype=np.uint64)
        question = held.wanted(by_kind, everyone)
        users = distinct(np.concatenate([everyone, *(users for users, _ in by_kind.values())]))
        parts = held.read(question, store.run(question.commands), records, users, store.run)
        stored += near
        pool = Pool(parts, held.span_ms)
        for kind, user, time_ms in places:
            (best,) = pool.best(KINDS[kind], np.array([user], dtype=np.uint64), np.array([time_ms], dtype=np.int64))
            must = best_of(stored, kind, user, time_ms)
            # what no conversion may be credited to any more need not be found
            if best is not None or (must is not None and time_ms - must.time_ms <= held.lookback_ms[KINDS[kind]]):
                assert best is not None
                codes = held.unknown_codes([best])
                held.learn(codes, store.run(held.names_commands(codes)))
                assert held.touch(best) == must
        read = sorted(chain.from_iterable(_told(held, segment, rows, whole) for segment, rows in parts))
        assert read == sorted(each[:4] for each in stored if each[1] in whole)
        assert store.guarded_write([*names, *held.store(records)])
        if is_reopened:
            held = opened(store, held)


def _told(
    held: Touches, segment: tuple[str, int, int], rows: np.ndarray, whole: list[int]
) -> Iterator[tuple[int, int, int, bytes]]:
    """What was read of some users."""
    kind, number, _ = segment
    for row in rows:
        if int(row[HASH]) in whole:
            yield KINDS.index(kind), int(row[HASH]), number * held.span_ms[kind] + int(row[TIME]), bytes(row["id"])
