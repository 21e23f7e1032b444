"""Columns of texts: hashed as the reference does it, compared byte by byte, picked and read back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.columns.loops import hash_all, is_same
from app.columns.texts import (
    KnownCodes,
    Names,
    coded,
    hash64,
    texts_of,
    words_of,
)

MASK = 2**64 - 1
M = 0xC6A4A7935BD1E995
raws = st.lists(st.one_of(st.none(), st.binary(max_size=40)), min_size=1, max_size=20)


def murmur64a(data: bytes, seed: int = 0) -> int:
    """Austin Appleby's MurmurHash64A, word by word."""
    hashed = seed ^ (len(data) * M & MASK)
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        word = int.from_bytes(data[at : at + 8], "little") * M & MASK
        hashed = (hashed ^ ((word ^ (word >> 47)) * M & MASK)) * M & MASK
    if whole < len(data):
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * M & MASK
    hashed = (hashed ^ (hashed >> 47)) * M & MASK
    return hashed ^ (hashed >> 47)


def test_a_column_of_another_type_is_refused_and_one_that_lies_otherwise_is_not() -> None:
    words = np.arange(8, dtype=np.uint64)[::2]
    words.flags.writeable = False
    starts, lengths, hashes = np.zeros(1, dtype=np.int64), np.full(1, 8), np.zeros(1, dtype=np.uint64)
    hash_all(words, starts, lengths, words[:1], hashes)
    assert hashes[0] == murmur64a(bytes(8))
    with pytest.raises(TypeError):
        hash_all(words, starts.astype(np.int32), lengths, words[:1], hashes)


@given(raws, st.integers(0, MASK))
def test_hashes_are_the_reference_s(values: list[bytes | None], seed: int) -> None:
    expected = [0 if value is None else murmur64a(value, seed) or 1 for value in values]
    assert hash64(texts_of(values), np.full(len(values), seed, dtype=np.uint64)).tolist() == expected


def test_a_hash_is_stable_over_releases_since_state_holds_it() -> None:
    assert hash64(texts_of([b"", b"meta", b"google_ads"])).tolist() == [1, 4071116533376431935, 5816871575631687079]


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_bytes_are_the_same_where_all_of_them_are(left: bytes, right: bytes, at: int, other: int, size: int) -> None:
    right = right[:other] + left[at : at + size] + right[other:]
    for one, two, length in [(at, min(other, len(right)), size), (0, 0, min(len(left), len(right)))]:
        length = max(0, min(length, len(left) - one, len(right) - two))
        expected = left[one : one + length] == right[two : two + length]
        words = [words_of(np.frombuffer(data + bytes(8), dtype=np.uint8)) for data in (left, right)]
        assert bool(is_same(words[0], one, words[1], two, length)) == expected


def test_names_are_found_again_by_their_codes_and_forgotten_where_they_are_too_many() -> None:
    column = coded(texts_of([b"meta", None, "zoë".encode(), b"meta", b""]))
    names = Names(size_max=2)
    for _ in range(3):
        assert names.of(column, np.arange(5)) == ["meta", None, "zoë", "meta", ""]
    assert len(names) <= 4


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 4096, 4097, 2**63, 2**64 - 1, 5 * 4096]), max_size=20)))
def test_a_code_is_met_once(batches: list[list[int]]) -> None:
    known, met = KnownCodes(), {0}
    for batch in batches:
        rows = known.meet(np.array(batch, dtype=np.uint64))
        assert sorted(batch[row] for row in rows) == sorted(set(batch) - met)
        met |= set(batch)
    assert len(known) == len(met)


def test_many_codes_are_met_once() -> None:
    known = KnownCodes()
    codes = np.random.default_rng(1).integers(1, 2**63, 100_000).astype(np.uint64)
    assert sum(len(known.meet(codes[first : first + 1000])) for first in range(0, 100_000, 1000)) == 100_000
    assert known.meet(codes) == []
