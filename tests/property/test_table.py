"""Tables against a plain list: what was written is found, by hash, in the order in which it was written."""

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.columns import index as index_module
from app.columns import table as table_module
from app.columns.table import HASH, StateDamaged, Table, Turn, record_type
from tests.memory.redis import Memory, MemoryStore

RECORD = record_type([("number", "<u4"), ("text", "S3")])
# Few hashes, of which some share their upper half, some their lower one.
HASHES = [0, 1, 2**32, 2**32 + 1, 5 * 2**32 + 1, 2**64 - 1, 2**64 - 2**32, 2**63]

batches = st.lists(
    st.tuples(
        st.lists(st.sampled_from(HASHES), max_size=9),
        st.lists(st.sampled_from(HASHES), max_size=4),
        st.sampled_from(["", "", "", "flush", "reopen"]),
    ),
    max_size=40,
)


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Runs, merges and their limit are reached by few records."""
    with (
        patch.object(table_module, "NEW_MAX", 8),
        patch.object(table_module, "FAN_OUT", 3),
        patch.object(table_module, "RUN_MAX_BYTES", 60 * RECORD.itemsize),
        patch.object(index_module, "LARGE", 20),  # so the merged runs' index is the other one
    ):
        yield


def records_of(hashes: list[int], first: int) -> np.ndarray:
    records = np.empty(len(hashes), dtype=RECORD)
    records[HASH] = np.array(hashes, dtype=np.uint64)
    records["number"] = np.arange(first, first + len(hashes))
    records["text"] = [str(number % 1000).encode() for number in range(first, first + len(hashes))]
    return records


def find(table: Table, store: MemoryStore, hashes: list[int]) -> np.ndarray:
    lookup = table.lookup(np.array(hashes, dtype=np.uint64))
    return table.found(lookup, store.run(lookup.commands))


def reopened(table: Table, store: MemoryStore) -> Table:
    again = Table(table.key, table.record)
    again.load(len(table), store.run)
    return again


@given(batches)
def test_a_table_finds_what_was_written_in_the_order_in_which_it_was(
    found: list[tuple[list[int], list[int], str]],
) -> None:
    store = MemoryStore(Memory())
    table = Table("{c0}:t", RECORD)
    written: list[tuple[int, int]] = []
    for hashes, wanted, then in found:
        got = find(table, store, wanted)
        expected = [(each, number) for each, number in written if each in wanted]
        assert sorted(zip(got[HASH].tolist(), got["number"].tolist(), strict=True)) == sorted(expected)
        assert got["text"].tolist() == [str(number % 1000).encode() for number in got["number"].tolist()]
        for each in wanted:
            numbers = got["number"][got[HASH] == np.uint64(each)].tolist()
            assert numbers == [number for known, number in expected if known == each]
        records = records_of(hashes, len(written))
        written += zip(records[HASH].tolist(), records["number"].tolist(), strict=True)
        assert store.guarded_write(table.write(records, flush=then == "flush"))
        if then == "reopen":
            table = reopened(table, store)
        assert len(table) == len(written)
        held = np.concatenate([np.empty(0, dtype=np.uint64), *table.hashes(store.run)])
        assert sorted(held.tolist()) == sorted(each for each, _ in written)
        assert set(store.memory.values) <= {key.encode() for key in table.redis_keys()}
    store.run([("UNLINK", *table.redis_keys())])
    assert not store.memory.values


def test_runs_are_merged_so_that_few_are_asked() -> None:
    store = MemoryStore(Memory())
    table = Table("{c0}:t", RECORD)
    for number in range(200):
        find(table, store, [])
        assert store.guarded_write(table.write(records_of([number * 2**32], number)))
    assert [run.count for run in table.runs] == [48, 48, 48, 24, 24, 8]
    assert sum(run.count for run in table.runs) + table.new_count == 200


def test_of_several_tables_one_merges_in_a_batch() -> None:
    store, turn = MemoryStore(Memory()), Turn()
    tables = [Table(f"{{c0}}:{name}", RECORD, turn) for name in "abc"]
    found = []
    for number in range(6):
        turn.begin()
        for table in tables:
            find(table, store, [])
            assert store.guarded_write(table.write(records_of([number], number), flush=True))
        found.append([len(table.runs) for table in tables])
    assert found == [[1, 1, 1], [2, 2, 2], [3, 3, 3], [2, 4, 4], [3, 3, 5], [4, 4, 4]]


def test_a_table_whose_turn_never_comes_merges_when_it_has_twice_as_many_runs() -> None:
    store, turn = MemoryStore(Memory()), Turn()
    assert turn.take()
    table = Table("{c0}:t", RECORD, turn)
    found = []
    for number in range(10):
        find(table, store, [])
        assert store.guarded_write(table.write(records_of([number], number), flush=True))
        found.append(len(table.runs))
    assert found == [1, 2, 3, 4, 5, 6, 5, 6, 7, 6]


@pytest.mark.parametrize("part", ["{c0}:t:1", "{c0}:t:1:at", "{c0}:t:runs", "{c0}:t:new"])
@pytest.mark.parametrize("loss", ["gone", "cut"])
def test_a_table_of_which_a_part_is_lost_is_damaged(part: str, loss: str) -> None:
    store = MemoryStore(Memory())
    table = Table("{c0}:t", RECORD)
    store.run(table.write(records_of(HASHES, 0)))
    store.run(table.write(records_of(HASHES[:3], 8)))
    key = part.encode()
    if loss == "gone":
        del store.memory.values[key]
    else:
        store.memory.values[key] = store.memory.values[key][:-1]
    with pytest.raises(StateDamaged):
        find(reopened(table, store), store, HASHES)
