"""The fingerprint of a world: two worlds that have the same one behave alike from here on.

Numbers that only grow (owner epochs, producer epochs, memberships, versions of keys, offsets of the output) are told relative
to what they are compared with, or else no state would ever come again.
"""

from typing import Any

from app.engine.ledger import ledger_key
from app.engine.session import Session
from tests.explorer.chain import TAG
from tests.explorer.world import GROUP, PUBLISHED, Process, World
from tests.memory.log import Outcome, Transaction


def fingerprint(world: World, in_step: bool, with_disks: bool) -> int:
    """A number for the state. The worker whose turn it is matters in mid step only, the disks while Redis may fall back."""
    epochs = {number: _epoch(world, world.memory.values, number) for number in world.scene.partitions}
    parts = (
        world.healing,
        _redis(world, world.memory.values, epochs),
        tuple(_redis(world, disk, epochs) for disk in world.disks) if with_disks else None,
        tuple(_output(world, number) for number in world.scene.partitions),
        tuple(sorted(world.broker.offsets.get(GROUP, {}).items())),
        tuple(sorted(world.group.wanted.items())),
        tuple(_process(world, process, epochs) for process in world.processes()),
        (world.current.name, world.current.dead) if in_step else None,
    )
    return hash(parts)


def _epoch(world: World, values: dict[bytes, Any], partition: int) -> int:
    return int(values.get(ledger_key(TAG, partition).encode(), {}).get(b"epoch", 0))


def _redis(world: World, values: dict[bytes, Any], epochs: dict[int, int]) -> Any:
    plain = tuple(
        (key, tuple(sorted(pair for pair in value.items() if pair[0] != b"epoch")))
        for key, value in sorted(values.items())
    )
    return plain, tuple(_epoch(world, values, number) - epoch for number, epoch in epochs.items())


def _output(world: World, partition: int) -> Any:
    """The committed records in order, and how many of them are hidden behind an open transaction."""
    log = world.broker.logs[PUBLISHED, partition]
    stable = log.stable_end()
    return tuple(
        (message.key(), message.value(), message.offset() < stable)
        for message, transaction in log.entries
        if message is not None and transaction is not None and transaction.outcome is Outcome.COMMITTED
    )


def _process(world: World, process: Process, epochs: dict[int, int]) -> Any:
    told = None if process.session is None else _session(world, process.session, epochs)
    return process.name, process.dead, process.paused, tuple(process.passed), told


def _session(world: World, session: Session, epochs: dict[int, int]) -> Any:
    consumer, producer, store = session.consumer, session.producer, session.store
    entry = world.broker.transactional_id(producer.name)
    watched = tuple(
        sorted((key, world.memory.versions.get(key, 0) == version) for key, version in store.watched.items())
    )
    return (
        consumer.member in world.group.members,
        tuple(number for number, owner in sorted(world.group.owners.items()) if owner == consumer.member),
        tuple(sorted(consumer.places.items())),
        tuple(sorted(consumer.told.items())),
        consumer.grant,
        producer.broken or producer.epoch != entry.epoch,
        _transaction(producer.transaction),
        entry.late is not None,
        tuple(entry.fates),
        watched,
        store.life == world.memory.life,
        tuple(store.lost),
        store.refuse_reads,
        str(session.failure),
        tuple(session.stage.histories.items()),
        session.stage.folding,
        tuple((number, *_owned(world, session, number, epoch)) for number, epoch in epochs.items()),
    )


def _owned(world: World, session: Session, partition: int, epoch: int) -> Any:
    taker = world.takers.get(ledger_key(TAG, partition))
    standing = (taker is session.store, world.openers.get(partition) is session.producer)
    owned = session.owned.get(partition)
    if owned is None:
        return standing
    plain = {name: value for name, value in vars(owned).items() if name not in ("epoch", "opened_at", "pending")}
    pending = {topic: [(run.first, run.last) for run in runs] for topic, runs in owned.pending.items()}
    stored = getattr(session, "stored", {}).get(partition)
    return *standing, owned.epoch - epoch, _frozen(plain), _frozen(pending), _frozen(stored)


def _frozen(value: Any) -> Any:
    """The value as something that can be hashed."""
    if isinstance(value, dict):
        return tuple((key, _frozen(part)) for key, part in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return frozenset(value) if isinstance(value, set) else value


def _transaction(transaction: Transaction | None) -> Any:
    if transaction is None:
        return None
    offsets = tuple(sorted(transaction.offsets.get(GROUP, {}).items()))
    return transaction.outcome, offsets, tuple(sorted(log.place for log in transaction.logs))
