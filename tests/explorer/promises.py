"""What must hold in every state that the explorer reaches, and what at the end."""

from collections.abc import Iterator

from app.engine.ledger import Ledger, ledger_key, read_ledger
from tests.explorer.chain import TAG, TOTAL, Row, Rows, decode, rows_key
from tests.explorer.world import GAP, GROUP, PUBLISHED, Violation, World
from tests.memory.log import MemoryMessage, Outcome, Place, Transaction


def check(world: World) -> None:
    """Raises `Violation` where a state breaks a promise."""
    for partition in world.scene.partitions:
        snapshots = list(_published(world, partition))
        committed = _committed(world, partition)
        _check_ledger(world, partition, committed, snapshots)


def check_end(world: World) -> None:
    """At the end, everything is published, everything is in the state, and nothing is left open."""
    for partition in world.scene.partitions:
        *_, (rows, committed) = ({}, {}), *_published(world, partition)
        letters = {letter for (_, number), log in world.scene.logs.items() if number == partition for letter in log}
        missing = letters - {GAP} - set(rows[TOTAL].history if rows else "")
        if missing:
            raise Violation(f"partition {partition}: never published: {''.join(sorted(missing))}")
        ledger = _ledger(world, partition)
        if ledger.offsets != committed or ledger.rebuilding:
            raise Violation(
                f"partition {partition}: published up to {committed}, the state reaches to {ledger.offsets}"
            )


def _published(world: World, partition: int) -> Iterator[tuple[Rows, dict[str, int]]]:
    """What was published, after each transaction: the latest rows, and the offsets up to which they account."""
    rows: Rows = {}
    offsets: dict[str, int] = {}
    for transaction, messages in _transactions(world, partition):
        for message in messages:
            key, row = message.key() or b"", decode(message.value() or b"")
            if key in rows and row.revision <= rows[key].revision:
                raise Violation(f"{key.decode()} was published as {rows[key]}, and then as {row}")
            if key in rows and key != TOTAL and len(world.scene.topics) == 1:
                raise Violation(f"{key.decode()} was published twice: as {rows[key]} and as {row}")
            rows[key] = row
        found = transaction.offsets.get(GROUP, {})
        offsets = offsets | {topic: place[0] for (topic, number), place in found.items() if number == partition}
        _check_rows(world, partition, rows, offsets)
        yield dict(rows), offsets


def _transactions(world: World, partition: int) -> Iterator[tuple[Transaction, list[MemoryMessage]]]:
    """The committed transactions of the output, in order, with what they published."""
    found: dict[int, tuple[Transaction, list[MemoryMessage]]] = {}
    for message, transaction in world.broker.logs[PUBLISHED, partition].entries:
        if message is not None and transaction is not None and transaction.outcome is Outcome.COMMITTED:
            found.setdefault(id(transaction), (transaction, []))[1].append(message)
    yield from found.values()


def _check_rows(world: World, partition: int, rows: Rows, offsets: dict[str, int]) -> None:
    """The rows are the fold of the input before `offsets`, each record once, each topic in order."""
    history = rows[TOTAL].history
    for topic in world.scene.topics:
        log = world.scene.logs[topic, partition]
        counted = "".join(letter for letter in history if letter in log)
        wanted = log[: offsets.get(topic, 0)].replace(GAP, "")
        if counted != wanted:
            raise Violation(f"partition {partition}: published {counted!r} of {topic}, committed {wanted!r}")
    wanted_rows = {letter.encode(): history[: place + 1] for place, letter in enumerate(history)}
    found = {key: row.history for key, row in rows.items() if key != TOTAL}
    if found != wanted_rows:
        raise Violation(f"partition {partition}: the total is {history!r}, but the rows are {found}")


def _check_ledger(
    world: World, partition: int, committed: dict[str, int], snapshots: list[tuple[Rows, dict[str, int]]]
) -> None:
    """M <= C, and the state is what was published up to M, unless it is being rebuilt."""
    ledger = _ledger(world, partition)
    for topic, offset in ledger.offsets.items():
        if offset > committed.get(topic, 0):
            raise Violation(f"M > C: the state reaches to {offset} of {topic}, committed is {committed.get(topic)}")
    if not ledger.offsets or ledger.rebuilding:
        return
    pairs = world.memory.values.get(rows_key(partition).encode(), {})
    state: Rows = {key: decode(value) for key, value in pairs.items()}
    fitting = [rows for rows, offsets in snapshots if offsets == ledger.offsets]
    if fitting and ledger.offsets == committed:
        fitting = fitting[-1:]
    if state not in fitting:
        raise Violation(
            f"partition {partition}: the state is {_shown(state)} at {ledger.offsets}, published was {list(map(_shown, fitting))}"
        )
    if (ledger.view or b"").decode() != state[TOTAL].history:
        raise Violation(f"partition {partition}: the view is {ledger.view!r}, the state {_shown(state)}")


def _ledger(world: World, partition: int) -> Ledger:
    fields = world.memory.values.get(ledger_key(TAG, partition).encode(), {})
    return read_ledger([0, [part for pair in fields.items() for part in pair]])


def _committed(world: World, partition: int) -> dict[str, int]:
    known: dict[Place, tuple[int, str]] = world.broker.offsets.get(GROUP, {})
    return {topic: offset for (topic, number), (offset, _) in known.items() if number == partition}


def _shown(rows: dict[bytes, Row]) -> str:
    return " ".join(f"{key.decode()}={row.history}|{row.revision}" for key, row in rows.items())
