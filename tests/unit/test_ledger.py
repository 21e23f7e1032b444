"""What the ledger's offsets M and the group's C mean for a partition that is opened."""

import pytest

from app.engine.ledger import Ledger, Mode, Opening, decide, read_ledger, take_commands, write_commands
from app.engine.state import StateRefused

TOPICS = {"ads.events": 0, "onecount.rekeyed": 0}
END = 100  # of each topic's log


def ledger(offsets: dict[str, int], partitions: int | None = 4, rebuilding: bool = False) -> Ledger:
    return Ledger(1, partitions, offsets, None, rebuilding)


def opened(
    state: Ledger,
    committed: dict[str, int | None],
    first: dict[str, int] | None = None,
    begun: dict[str, int | None] | None = None,
) -> Opening:
    log = {topic: (begins, END) for topic, begins in (first or TOPICS).items()}
    return decide(state, 2, 4, committed, begun if begun is not None else dict(state.offsets), log, "counters")


def test_a_new_partition_is_read_live_from_the_log_s_start() -> None:
    found = opened(
        ledger({}, None), {"ads.events": None, "onecount.rekeyed": None}, {"ads.events": 7, "onecount.rekeyed": 0}
    )
    assert found == Opening(Mode.LIVE, {"ads.events": 7, "onecount.rekeyed": 0})


def test_equal_offsets_carry_on_live() -> None:
    both = {"ads.events": 10, "onecount.rekeyed": 3}
    assert opened(ledger(both), dict(both)) == Opening(Mode.LIVE, both)


def test_a_batch_that_was_published_and_not_stored_is_replayed() -> None:
    found = opened(ledger({"ads.events": 10, "onecount.rekeyed": 3}), {"ads.events": 15, "onecount.rekeyed": 3})
    assert found == Opening(Mode.REPLAY, {"ads.events": 10, "onecount.rekeyed": 3})


def test_a_state_that_lost_more_than_the_last_batch_is_folded_on_and_compared_with_what_is_published() -> None:
    state = ledger({"ads.events": 10, "onecount.rekeyed": 3})
    found = opened(state, {"ads.events": 20, "onecount.rekeyed": 3}, begun={"ads.events": 15, "onecount.rekeyed": 3})
    assert found == Opening(Mode.REBUILD, {"ads.events": 10, "onecount.rekeyed": 3})


def test_lost_state_is_rebuilt_from_the_log_s_start() -> None:
    assert opened(ledger({}, None), {"ads.events": 15, "onecount.rekeyed": None}) == Opening(Mode.REBUILD, TOPICS)


def test_an_interrupted_rebuild_goes_on_where_it_was() -> None:
    found = opened(
        ledger({"ads.events": 5, "onecount.rekeyed": 0}, rebuilding=True), {"ads.events": 15, "onecount.rekeyed": 0}
    )
    assert found == Opening(Mode.REBUILD, {"ads.events": 5, "onecount.rekeyed": 0})


@pytest.mark.parametrize(
    ("state", "committed", "first", "words"),
    [
        (ledger({"ads.events": 10}), {"ads.events": 9}, {"ads.events": 0}, "ads.events:2 to 10"),
        (ledger({"ads.events": 10}), {"ads.events": None}, {"ads.events": 0}, "no committed offset"),
        (ledger({"ads.events": 10}, partitions=8), {"ads.events": 10}, {"ads.events": 0}, "8 partitions"),
        (ledger({"ads.events": 10}), {"ads.events": 20}, {"ads.events": 15}, "retention deleted"),
        (ledger({"ads.events": 10}), {"ads.events": 10}, {"ads.events": 15}, "set ads.events:2 to 15"),
        (ledger({"ads.events": 10}), {"ads.events": END + 1}, {"ads.events": 0}, "whose log ends at 100"),
        (ledger({}, None), {"ads.events": END + 1}, {"ads.events": 0}, "whose log ends at 100"),
        (ledger({"gone": 10, "ads.events": 1}), {"ads.events": 1}, {"ads.events": 0}, "no input any more"),
    ],
)
def test_what_was_changed_by_hand_is_refused_with_what_to_do(
    state: Ledger, committed: dict[str, int | None], first: dict[str, int], words: str
) -> None:
    with pytest.raises(StateRefused, match=words) as refused:
        opened(state, committed, first)
    assert "onecount re" in str(refused.value) or "put it back" in str(refused.value)


def test_records_that_retention_deleted_uncounted_are_given_up_where_the_group_was_set_to_the_log_s_start() -> None:
    found = opened(ledger({"ads.events": 10}), {"ads.events": 15}, {"ads.events": 15})
    assert found == Opening(Mode.LIVE, {"ads.events": 15})


def test_what_is_written_is_read_back() -> None:
    (command, *_) = write_commands("k", 4, 7, {"ads.events": 12}, b"view", rebuilding=True)
    fields = [str(part).encode() if not isinstance(part, bytes) else part for part in command[2:]]
    found = read_ledger([3, fields])
    assert found == Ledger(3, 4, {"ads.events": 12}, b"view", True, 0, 7)


def test_epochs_of_an_emptied_redis_are_not_those_that_were_given_out_before() -> None:
    (_, _, _, first), (_, _, _, again) = take_commands("{c0}:ledger")[0], take_commands("{c0}:ledger")[0]
    assert first != again
    assert min(first, again) >= 1
