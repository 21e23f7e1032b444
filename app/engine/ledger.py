"""The ledger of a partition: who owns it, and how far its state in Redis is (DESIGN section 4).

    state in Redis = fold(input up to the ledger's offsets M)     what is published = everything up to the committed
    offsets C     M <= C

`{tag}:ledger` is a hash: `epoch` (raised by every new owner), `partitions`, `view` (the stage's), `rebuild` (set while
lost state is being folded anew), `begun` and `written` (how many writes there were) and `next:<topic>`, the first offset that
is not in the state.
"""

import random
from enum import Enum
from typing import Any, Final, NamedTuple

from app.columns.table import StateDamaged
from app.engine.state import OffsetsRefused, StateRefused

Command = tuple[Any, ...]
NEXT: Final = "next:"
BEGUN, WRITTEN = "begun", "written"
EPOCH_STEP_MAX: Final = 2**40  # 2**23 owners reach the end of a Redis integer


class Mode(Enum):
    """How a partition's records are folded: published, left out of the outputs up to C, or left out while lost state
    is rebuilt.
    """

    LIVE = "live"
    REPLAY = "replay"
    REBUILD = "rebuild"


class Ledger(NamedTuple):
    """What Redis says of a partition. `offsets` is M by topic, empty where there is no state. `begun` and `written` are the
    number of writes as Redis and as their writer counted them (see `begin_command`).
    """

    epoch: int
    partitions: int | None
    offsets: dict[str, int]
    view: bytes | None
    rebuilding: bool
    begun: int = 0
    written: int = 0


class Opening(NamedTuple):
    """How to go on with a partition: from which offset of each topic, and how."""

    mode: Mode
    offsets: dict[str, int]


def ledger_key(tag: str, partition: int) -> str:
    """The Redis key of a partition's ledger; its hash tag keeps all keys of the partition on one node."""
    return f"{{{tag}{partition}}}:ledger"


def take_commands(key: str) -> list[Command]:
    """Steps 1 and 2 of `reopen`: raise the epoch, so that the former owner's next write fails its WATCH; then read the
    ledger.

    It is raised by a number drawn at random, so that an emptied Redis does not begin with epochs that were given out before:
    a worker that was thought dead would find its own one again.
    """
    return [("HINCRBY", key, "epoch", random.randint(1, EPOCH_STEP_MAX)), ("HGETALL", key)]


def read_ledger(replies: list[Any]) -> Ledger:
    """The ledger from the replies to `take_commands`."""
    epoch, pairs = replies
    fields = {name.decode(): value for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
    offsets = {name.removeprefix(NEXT): int(value) for name, value in fields.items() if name.startswith(NEXT)}
    partitions = int(fields["partitions"]) if "partitions" in fields else None
    counts = (int(fields.get(name, 0)) for name in (BEGUN, WRITTEN))
    return Ledger(int(epoch), partitions, offsets, fields.get("view"), "rebuild" in fields, *counts)


def begin_command(key: str) -> Command:
    """Comes first in each write of a partition. Redis counts it, and the write's end says what its writer expects the count
    to be. So a write that Redis took back, and later ran after all beside another one, shows: Redis 7.0 leaves the beginning of a
    MULTI in a torn append-only file, and runs it with the next one when it starts once more.
    """
    return ("HINCRBY", key, BEGUN, 1)


def refuse_torn(ledger: Ledger, key: str) -> None:
    """Raises `StateDamaged` where a write was run that was never finished, or twice."""
    if ledger.begun != ledger.written:
        raise StateDamaged(
            f"Redis ran {ledger.begun} writes of {key}, its last writer knows of {ledger.written}: its append-only file was torn"
        )


def write_commands(
    key: str, partitions: int, written: int, offsets: dict[str, int], view: bytes | None, rebuilding: bool
) -> list[Command]:
    """Moves the ledger; part of the same MULTI as the state that it describes."""
    pairs: list[Any] = ["partitions", partitions, WRITTEN, written]
    for topic, offset in offsets.items():
        pairs += [NEXT + topic, offset]
    if view is not None:
        pairs += ["view", view]
    if rebuilding:
        pairs += ["rebuild", 1]
    command: Command = ("HSET", key, *pairs)
    return [command] if rebuilding else [command, ("HDEL", key, "rebuild")]


def decide(
    ledger: Ledger,
    partition: int,
    partitions: int,
    committed: dict[str, int | None],
    begun: dict[str, int | None],
    log: dict[str, tuple[int, int]],
    group: str,
) -> Opening:
    """Steps 3 and 4 of `reopen`: how the ledger's offsets M and the group's C say to go on.

    `committed` is C by topic (None: nothing committed), `begun` where the batch that ended there began, `log` the first
    offset that each topic still holds and its end. Raises `StateRefused`.
    """
    first = {topic: begins for topic, (begins, _) in log.items()}
    known = {topic: offset for topic, offset in committed.items() if offset is not None}
    _refuse_impossible(ledger, partition, partitions, known, log, group)
    if not ledger.offsets:
        return Opening(Mode.REBUILD if known else Mode.LIVE, dict(first))
    # where C was set to the log's start (see above), what lies before it is given up
    start = {topic: max(ledger.offsets.get(topic, 0), first[topic]) for topic in first}
    if ledger.rebuilding:
        return Opening(Mode.REBUILD, start)
    if not any(offset < known.get(topic, offset) for topic, offset in start.items()):
        return Opening(Mode.LIVE, start)
    # A Redis that lost its last second is behind by several batches. Cut otherwise than they were, they would end in other
    # revisions, so what they published is read back, as after a rebuild.
    is_one_batch = all(begun.get(topic) == offset for topic, offset in start.items() if topic in known)
    return Opening(Mode.REPLAY if is_one_batch else Mode.REBUILD, start)


def _refuse_impossible(
    ledger: Ledger,
    partition: int,
    partitions: int,
    known: dict[str, int],
    log: dict[str, tuple[int, int]],
    group: str,
) -> None:
    """Raises `StateRefused` where M, C (`known`) and the log cannot be what this deployment left."""
    if ledger.partitions is not None and ledger.partitions != partitions:
        raise StateRefused(
            f"partition {partition}: the state was built for {ledger.partitions} partitions, {next(iter(log))} has {partitions} partitions: users have moved; "
            "stop all workers and run `onecount reset`"
        )
    for topic, reached in known.items():
        if reached > log[topic][1]:
            way = f"set them to the state's ({_as_offsets(ledger, partition)}), or " if ledger.offsets else ""
            raise OffsetsRefused(
                f"partition {partition}: the group {group} has committed offset {reached} of {topic}, whose log ends at {log[topic][1]}: it lost "
                f"records, or the offsets were set by hand; {way}run `onecount reset`"
            )
    for topic, offset in ledger.offsets.items():
        if topic not in log:
            raise StateRefused(
                f"partition {partition}: the state holds events of {topic}, which is no input any more: put it back or run `onecount reset`"
            )
        reached = known.get(topic)
        if reached is None:
            raise OffsetsRefused(
                f"partition {partition}: the group {group} has no committed offset for {topic}, but the state reaches to {offset}: they expired or "
                f"were deleted; set them to the state's ({_as_offsets(ledger, partition)}), or run `onecount reset`"
            )
        if offset > reached:
            raise OffsetsRefused(
                f"partition {partition}: the state reaches to offset {offset} of {topic}, but the group {group} has committed {reached} only: they were set "
                f"back by hand; set them to the state's ({_as_offsets(ledger, partition)}), or run `onecount reset`"
            )
        first = log[topic][0]
        if offset < first != reached:
            way = f"to go on without them set {topic}:{partition} to {first}, or " if reached == offset else ""
            raise StateRefused(
                f"partition {partition}: {topic} now begins at offset {first}, the state reaches to {offset}: retention deleted records that "
                f"are not in it; {way}run `onecount reset`"
            )


def _as_offsets(ledger: Ledger, partition: int) -> str:
    """The state's offsets, as an operator sets them."""
    return ", ".join(f"{topic}:{partition} to {offset}" for topic, offset in sorted(ledger.offsets.items()))
