"""What an aggregator holds of its rows in memory is what Redis holds: one that lives on and one that begins anew with every batch
publish and store the same.
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contract import rows
from app.engine import aggregator
from app.engine.fold import Batch
from app.policy.model import Bounds, Policy
from app.settings import Settings
from app.windows import deltas
from tests.memory.log import MemoryMessage
from tests.memory.redis import Memory, MemoryStore

WIDTH_MS = 60_000
BOUNDS = Bounds(
    window_ms=WIDTH_MS, allowed_lateness_ms=WIDTH_MS, correction_horizon_ms=4 * WIDTH_MS, adjustment_window_ms=0
)
POLICY = Policy(BOUNDS, ())
# a batch: how far the watermark is, in windows, and the changes as (window, campaign, clicks)
changes = st.lists(st.tuples(st.integers(0, 14), st.sampled_from("abc"), st.integers(1, 3)), max_size=6)
batches = st.lists(st.tuples(st.integers(0, 3), changes), max_size=12)


def fold(stage: aggregator.AggregatorStage, store: MemoryStore, end: int, changed: list[tuple[int, str, int]]) -> Any:
    """What one batch publishes."""
    found = [
        (rows.count_key(window * WIDTH_MS, "meta", "shop", [name], "", "").decode(), 0, 0, clicks, 0, 0, 0)
        for window, name, clicks in changed
    ]
    mark = deltas.Mark(0, end * WIDTH_MS, {"ads.events": (0, 1)})
    record = MemoryMessage(("onecount.deltas", 0), 0, value=deltas.encode(deltas.DeltaMessage(1, [mark], found)))
    out = stage.fold({0: Batch([record], {"onecount.deltas": (0, 1)})}, set(), store.run)
    store.run(out.writes[0])
    published = out.outputs["conversions.counts", 0]
    assert len({each["key"] for each in published}) == len(published), "a batch has a row once"
    windows = [rows.decode_count(each["value"]).window_start for each in published]
    assert windows == sorted(windows), "readers take a final row for a sign that what was before it is written"
    return sorted((each["key"], each["value"]) for each in published), out.views[0]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=4))
def test_a_batch_is_as_late_as_its_newest_event(told: list[list[int]]) -> None:
    store = MemoryStore(Memory())
    stage = aggregator.AggregatorStage(Settings(), POLICY)
    stage.open(0, None, store.run)
    for times_ms in told:
        messages = [deltas.encode(deltas.DeltaMessage(1, [], [], newest_ms=time_ms)) for time_ms in times_ms]
        batch = [MemoryMessage(("onecount.deltas", 0), at, value=value) for at, value in enumerate(messages)]
        stage.fold({0: Batch(batch, {"onecount.deltas": (0, len(batch))})}, set(), store.run)
        assert stage.newest_ms == max(times_ms)


@settings(max_examples=80)
@given(batches, st.sampled_from([1, 3, 1000]))
def test_rows_in_memory_are_those_in_redis(course: list[tuple[int, Any]], held_rows: int) -> None:
    living, other = MemoryStore(Memory()), MemoryStore(Memory())
    stage = aggregator.AggregatorStage(Settings(), POLICY)
    stage.open(0, None, living.run)
    view, end = None, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregator, "HELD_ROWS", held_rows)
        for further, changed in course:
            end += further
            again = aggregator.AggregatorStage(Settings(), POLICY)
            again.open(0, view, other.run)
            published, _ = fold(stage, living, end, changed)
            expected, view = fold(again, other, end, changed)
            assert published == expected
            assert living.memory.values == other.memory.values
            opened = stage.opened[0]
            held = {
                window: {key.encode(): aggregator._pack(row) for key, row in found.items()}
                for window, found in opened.rows.items()
            }
            assert held == {window: living.memory.values[opened.key(window).encode()] for window in held}
            assert sum(map(len, held.values())) <= held_rows
