"""Which touches are late, against a plain dictionary: users that share a place, growth, loading and expiry."""

from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.attribution import converters
from app.attribution.converters import Converters
from app.policy.model import DAY_MS

users = st.integers(0, 40).map(lambda number: number % 5 + (number // 5 << 20))  # many have the same last bits
pairs = st.lists(st.tuples(users, st.integers(0, 3 * DAY_MS)), max_size=12)


@given(st.lists(pairs, max_size=6), pairs, st.sampled_from((0, 2 * DAY_MS, 3 * DAY_MS + 1)))
def test_late_is_what_is_older_than_a_conversion_of_its_user(
    batches: list[list[tuple[int, int]]], touches: list[tuple[int, int]], stream_ms: int
) -> None:
    with patch.object(converters, "_PLACES_MIN", 4), patch.object(converters, "_RECENT_MIN", 3):
        found = Converters("c0", horizon_ms=0)
        stored: dict[str, bytes] = {}
        for batch in batches:
            for _, key, value in found.note(batch):
                stored[key] = stored.get(key, b"") + value
        loaded = Converters("c0", horizon_ms=0)
        loaded.days = set(found.days)
        loaded.load(stored.values())
        noted = [pair for batch in batches for pair in batch]
        for each, held in ((found, noted), (loaded, noted)):
            _check(each, held, touches)
            if each.expire(stream_ms):
                _check(each, [pair for pair in held if pair[1] >= stream_ms], [t for t in touches if t[1] >= stream_ms])
                each.note(touches)
                _check(each, [pair for pair in (*held, *touches) if pair[1] >= stream_ms], touches, since_ms=stream_ms)


def _check(found: Converters, noted: list[tuple[int, int]], touches: list[tuple[int, int]], since_ms: int = 0) -> None:
    asked = [touch for touch in touches if touch[1] >= since_ms]
    latest: dict[int, int] = {}
    for user, time_ms in noted:
        latest[user] = max(time_ms, latest.get(user, -1))
    expected = [row for row, (user, time_ms) in enumerate(asked) if latest.get(user, -1) > time_ms]
    hashes = np.array([user for user, _ in asked], dtype=np.uint64)
    times_ms = np.array([time_ms for _, time_ms in asked], dtype=np.int64)
    assert found.late(hashes, times_ms).tolist() == expected
