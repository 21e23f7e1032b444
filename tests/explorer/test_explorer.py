"""The explorer can fail: it finds the way in which each guard of the engine, once taken away, is missed."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from app.engine import ledger, owned
from app.engine.ledger import Mode, Opening
from app.engine.session import Session
from tests.explorer.explore import Bounds, explore, replay
from tests.explorer.world import Scene, Violation
from tests.memory.log import Broker

SCENE = Scene({("in", 0): "ab-cd"})
MANY_BATCHES = Scene({("in", 0): "abcde"}, grants=(1, 3))
Patch = pytest.MonkeyPatch


def seek_to_c(patch: Patch) -> None:
    """The state's missing records are skipped."""
    decide = ledger.decide

    def mutant(taken: Any, partition: int, partitions: int, committed: dict[str, int | None], *rest: Any) -> Opening:
        opening = decide(taken, partition, partitions, committed, *rest)
        return opening._replace(offsets={topic: committed[topic] or 0 for topic in opening.offsets})

    patch.setattr(ledger, "decide", mutant)


def publish_in_replay(patch: Patch) -> None:
    """What is published already is published again."""
    decide = ledger.decide
    patch.setattr(ledger, "decide", lambda *told: decide(*told)._replace(mode=Mode.LIVE))


def take_several_batches_for_one(patch: Patch) -> None:
    """What several batches published is replayed as one."""
    decide = ledger.decide

    def mutant(*told: Any) -> Opening:
        opening = decide(*told)
        return opening._replace(mode=Mode.REPLAY) if told[0].offsets and opening.mode is Mode.REBUILD else opening

    patch.setattr(ledger, "decide", mutant)


def do_not_cut_at_c(patch: Patch) -> None:
    """A replayed batch takes records in that were not in it."""
    patch.setattr(owned, "_cut", lambda runs, offset: (runs, []))


def do_not_mark_the_rebuild(patch: Patch) -> None:
    """State that is half rebuilt looks whole."""
    write = ledger.write_commands
    patch.setattr(ledger, "write_commands", lambda *told: write(*told[:-1], False))


def do_not_watch(patch: Patch) -> None:
    """A former owner writes its state over the new owner's."""
    patch.setattr(Session, "watch", lambda session, partitions: None)


def do_not_raise_the_epoch(patch: Patch) -> None:
    """The new owner reads the ledger without fencing the former one. Asking for C again happens to catch the same within
    these bounds, and is left out too.
    """
    take = ledger.take_commands
    patch.setattr(Session, "confirm_offsets", lambda session, partitions: None)

    def mutant(key: str) -> list[tuple[Any, ...]]:
        return [("HINCRBY", key, "epoch", 0), *take(key)[1:]]

    patch.setattr(ledger, "take_commands", mutant)


def do_not_compare_what_is_watched(patch: Patch) -> None:
    """A former owner that begins its batch after the takeover watches the new owner's ledger."""

    def mutant(session: Session, partitions: Sequence[int]) -> None:
        keys = [ledger.ledger_key(session.stage.tag, partition) for partition in partitions]
        session.store.run([("UNWATCH",), ("WATCH", *keys)])

    patch.setattr(Session, "watch", mutant)


def do_not_wait_for_stable_offsets(patch: Patch) -> None:
    """C is read while a former owner's transaction may still move it."""
    patch.setattr(Broker, "is_unstable", lambda broker, group, places: False)


def commit_offsets_outside_the_transaction(patch: Patch) -> None:
    """The outputs are there before their offsets."""
    publish = Session.publish

    def mutant(session: Session, fold: Any, offsets: dict[int, dict[str, int]]) -> None:
        publish(session, fold, {})
        broker, begun = session.clients.broker, session.owned
        broker.offsets.setdefault(session.reading.group, {}).update(
            ((topic, number), (offset, str(begun[number].next[topic])))
            for number, found in offsets.items()
            for topic, offset in found.items()
        )

    patch.setattr(Session, "publish", mutant)


def write_before_the_commit(patch: Patch) -> None:
    """The state is ahead of what is published."""
    publish, write = Session.publish, Session.write

    def mutant(session: Session, fold: Any, offsets: dict[int, dict[str, int]]) -> None:
        write(session, fold, offsets, set())
        publish(session, fold, offsets)

    patch.setattr(Session, "publish", mutant)


@pytest.mark.parametrize(
    ("mutate", "within"),
    [
        pytest.param(
            *(mutate, Bounds(*within)),
            id=mutate.__name__,
            marks=[pytest.mark.faults] if mutate is do_not_raise_the_epoch else [],  # the longest one
        )
        for mutate, within in (
            (seek_to_c, (1, 0)),
            (publish_in_replay, (1, 0)),
            (take_several_batches_for_one, (1, 0)),
            (do_not_cut_at_c, (1, 0)),
            (do_not_mark_the_rebuild, (2, 0)),
            (do_not_watch, (1, 1)),
            (do_not_raise_the_epoch, (2, 1)),
            (do_not_compare_what_is_watched, (2, 1)),
            (do_not_wait_for_stable_offsets, (1, 1)),
            (commit_offsets_outside_the_transaction, (1, 0)),
            (write_before_the_commit, (1, 0)),
        )
    ],
)
def test_the_explorer_finds_out_what_each_guard_is_for(
    mutate: Callable[[Patch], None], within: Bounds, monkeypatch: Patch, record_property: Callable[[str, object], None]
) -> None:
    mutate(monkeypatch)
    scene = MANY_BATCHES if mutate is take_several_batches_for_one else SCENE
    explored = explore(scene, within)
    assert explored.violation, f"nothing is missed, in {explored.states} states"
    counterexample = [*explored.story, explored.violation]
    record_property("counterexample", counterexample)
    print(*counterexample, sep="\n  ")  # noqa: T201 - shown with pytest -s
    with pytest.raises((Violation, Exception)):
        replay(scene, explored.deviations)
