"""The index of a run against a plain list, in both of its forms."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.columns import index as index_module
from app.columns.index import Index

# Many that are equal, share their first bits, or stand at an end.
halves = st.one_of(
    st.integers(0, 2**32 - 1),
    st.integers(0, 40).map(lambda number: number % 7 + (number // 7 << 22)),
    st.sampled_from([0, 1, 0xFFFF, 0x1_0000, 2**22 - 1, 2**22, 2**32 - 0x1_0000, 2**32 - 1]),
)


@pytest.mark.parametrize("large", [0, 2**17])
@given(held=st.lists(halves, max_size=60), asked=st.lists(halves, max_size=20))
def test_an_index_says_where_each_half_stands(large: int, held: list[int], asked: list[int]) -> None:
    upper = np.array(sorted(held), dtype=np.uint32)
    with patch.object(index_module, "LARGE", large):
        index = Index(upper)
    assert index.upper().tolist() == upper.tolist()
    wanted = np.array(sorted(asked + held[:10]), dtype=np.uint32)
    found = zip(*(column.tolist() for column in index.find(wanted)), strict=True)
    expected = [
        (row, int(upper.searchsorted(each)), int(upper.searchsorted(each, side="right")))
        for row, each in enumerate(wanted)
        if int(each) in held
    ]
    assert list(found) == expected


def test_a_large_run_takes_less_than_four_bytes_a_record() -> None:
    upper = np.sort(np.random.default_rng(1).integers(0, 2**32, 2**20, dtype=np.uint32))
    index = Index(upper)
    assert index.size_bytes() < 2.3 * len(upper)
    assert (index.upper() == upper).all()
