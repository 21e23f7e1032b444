"""Deduplication against a naive model: every id with the stream time until which it is remembered."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.dedup.filter import IdFilter
from app.dedup.seen import Seen
from tests.memory.redis import Memory, MemoryStore

WINDOW_MS = 400

batches = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 300)), min_size=1, max_size=12), min_size=1, max_size=8
)


def reopened(seen: Seen, store: MemoryStore) -> Seen:
    """What another process knows after it has taken the partition over."""
    again = Seen(seen.tag, seen.window_ms)
    for generation, table in seen.tables.items():
        again.load(generation, len(table), store.run)
    return again


@given(batches, st.integers(0, 7))
def test_an_id_is_new_exactly_when_it_is_not_remembered_any_more(
    found: list[list[tuple[int, int]]], moved_at: int
) -> None:
    store = MemoryStore(Memory())
    seen = Seen("c0", WINDOW_MS)
    remembered: dict[int, int] = {}
    stream_ms = 0
    for number, batch in enumerate(found):
        if number == moved_at:
            seen = reopened(seen, store)
        ids = np.array([identity * 7_777_777_777 for identity, _ in batch], dtype=np.int64)
        times = np.maximum.accumulate(stream_ms + np.cumsum([step for _, step in batch]))
        stream_ms = int(times[-1])
        question = seen.question(ids, times)
        fresh = seen.accept(ids, times, question, store.run(question.commands))
        for identity, now_ms, is_fresh in zip(ids.tolist(), times.tolist(), fresh.tolist(), strict=True):
            assert is_fresh == (now_ms >= remembered.get(identity, 0))
            if is_fresh:
                remembered[identity] = (now_ms // 100 + 1) * 100 + WINDOW_MS
        store.run(seen.remember(ids[fresh], times[fresh]))
        store.run(seen.expire(stream_ms))


@given(st.lists(st.integers(0, 2**63 - 1), max_size=300), st.lists(st.integers(0, 2**63 - 1), max_size=50))
def test_the_filter_never_forgets_an_id(added: list[int], asked: list[int]) -> None:
    known = IdFilter(capacity=64)
    for start in range(0, len(added), 37):
        known.add(np.array(added[start : start + 37], dtype=np.int64))
    if added:
        assert known.may_hold(np.array(added, dtype=np.int64)).all()
    assert len(known.may_hold(np.array(asked, dtype=np.int64))) == len(asked)


def test_the_filter_believes_few_new_ids_to_be_known() -> None:
    numbers = np.random.default_rng(1)
    known = IdFilter()
    known.add(numbers.integers(0, 2**63 - 1, 100_000))
    assert known.may_hold(numbers.integers(0, 2**63 - 1, 100_000)).mean() < 0.02
