"""What a rebuild reads back of what is published, and what it leaves alone."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from app.contract import rows
from app.engine import aggregator, rebuild
from app.engine.fold import Batch
from app.engine.rebuild import read_back, read_backwards
from app.generate.owner import owner_partition
from app.settings import Settings
from app.windows import deltas
from tests.memory.deployment import Crash, Deployment, deployed
from tests.memory.kafka import MemoryClients
from tests.memory.log import Broker, MemoryMessage
from tests.memory.redis import Memory, MemoryStore
from tests.property.policies import START_MS, UNIT_MS
from tests.property.test_engine_stories import BOUNDS, POLICY, assert_exact, send
from tests.upserts import latest

RETENTION = (BOUNDS.correction_horizon_ms * 2) // UNIT_MS  # of windows, in steps of the grid
TOPIC = "rows"


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """One worker a role over one partition; a broker's clock that is right."""
    monkeypatch.setattr(rebuild, "CLOCK_MS", 0)
    with deployed(Deployment(POLICY)) as found:
        yield found


def count_rows(deployment: Deployment) -> list[rows.CountRow]:
    """Every row of the counts that was ever published."""
    return [rows.decode_count(record.value()) for record in deployment.broker.committed("conversions.counts")]


def lose(deployment: Deployment, role: str) -> None:
    """The role's state goes while its worker is restarted."""
    worker = deployment.workers[f"{role}-0"]
    assert worker.session is not None
    worker.session.close()
    worker.session = None
    deployment.empty_redis(role)


def test_lost_counts_are_taken_over_with_what_was_final_and_nothing_is_published_anew(deployment: Deployment) -> None:
    for at in range(4):
        send(deployment, "click", f"k{at}", at)
        deployment.drain()
    before = count_rows(deployment)
    assert [row.final for row in before] == [False, True, False, True, False, True, False]
    lose(deployment, "aggregator")
    deployment.drain()
    assert deployment.rebuilt["aggregator"] == 1
    assert count_rows(deployment) == before
    send(deployment, "click", "late", 1)
    deployment.drain()
    (late,) = count_rows(deployment)[len(before) :]
    assert (late.final, late.clicks, late.revision) == (True, 2, 3)
    assert_exact(deployment)


def test_a_worker_killed_while_it_takes_counts_over_takes_them_over_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator, "RECONCILED_ROWS", 1)
    for at in range(4):
        send(deployment, "click", f"k{at}", at)
        deployment.drain()
    before = count_rows(deployment)
    for written in range(1, 9):
        lose(deployment, "aggregator")
        left = written

        def crash(step: str) -> None:
            nonlocal left
            left -= step == "state_written"
            if not left:
                raise Crash(step)

        deployment.turn("aggregator-0", at_step=crash)
        deployment.drain()
        assert count_rows(deployment) == before
    send(deployment, "click", "late", 1)
    assert_exact(deployment)


@pytest.mark.parametrize("moves", [0, 1], ids=["the one that is compared", "another one"])
def test_the_group_is_heard_while_a_partition_is_compared(monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    genuine = rebuild.read_back
    with deployed(Deployment(POLICY, partitions=2, counters=2)) as deployment:
        group = deployment.group("counter")
        group.wanted = {0: "counter-0", 1: "counter-0"}
        users = {owner_partition(name.encode(), 2, "murmur2"): name for name in ("ann", "bob", "cat", "dan")}
        assert len(users) == 2
        for at, name in itertools.product(range(4), users.values()):
            send(deployment, "click", f"k{at}{name}", at, user_id=name)
            send(deployment, "conversion", f"c{at}{name}", at + 0.5, user_id=name)
        deployment.drain()
        published = deployment.broker.committed("conversions.attributed")
        owners_then: list[list[int]] = []

        def moving(*arguments: Any) -> Iterator[tuple[bytes, bytes | None]]:
            if group.wanted[moves] == "counter-0" and arguments[2] == 0:
                group.wanted[moves] = "counter-1"
                arguments[-1]()
                owners_then.append(sorted(group.owners))
            yield from genuine(*arguments)

        monkeypatch.setattr(rebuild, "read_back", moving)
        lose(deployment, "counter")
        while not owners_then and not deployment.workers["counter-0"].ended:
            deployment.turn("counter-0")
            if deployment.workers["counter-1"].session is None:
                deployment.turn("counter-1")
        if moves == 0:
            assert "was taken away while its rebuild was compared" in deployment.workers["counter-0"].ended
        else:
            assert owners_then == [[0]]
            assert not deployment.workers["counter-0"].ended
        deployment.drain()
        assert deployment.rebuilt["counter"] == 2
        assert deployment.broker.committed("conversions.attributed") == published
        send(deployment, "conversion", "last", 5)
        assert_exact(deployment)


def test_windows_that_nothing_can_change_any_more_are_not_read_back(deployment: Deployment) -> None:
    for at in range(0, RETENTION * 2, 2):
        send(deployment, "click", f"k{at}", at)
        deployment.drain()
    held = {key for key in deployment.memory.values if b":win:" in key}
    assert len(held) < RETENTION
    lose(deployment, "aggregator")
    deployment.drain()
    assert {key for key in deployment.memory.values if b":win:" in key} == held
    assert_exact(deployment)


def test_conversions_that_nothing_can_change_any_more_are_not_read_back(deployment: Deployment) -> None:
    end = POLICY.conversion_retention_ms() // UNIT_MS * 2
    for at in range(0, end, 2):
        send(deployment, "click", f"k{at}", at)
        send(deployment, "conversion", f"c{at}", at + 0.5)
        deployment.drain()
    published = deployment.broker.committed("conversions.attributed")
    fetched: list[bytes] = []
    genuine = rebuild.read_back

    def watched(*arguments: object) -> Iterator[tuple[bytes, bytes | None]]:
        for key, value in genuine(*arguments):  # type: ignore[arg-type]
            fetched.append(key)
            yield key, value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "read_back", watched)
        lose(deployment, "counter")
        deployment.drain()
    assert 0 < len(fetched) < len(published) * 0.6
    assert deployment.broker.committed("conversions.attributed") == published
    send(deployment, "adjustment", "a1", end - 1, adjustment="retract", conversion_event_id=f"c{end - 2}")
    assert_exact(deployment)


def test_many_windows_become_final_with_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregator, "CLOSED_ROWS", 4)
    store = MemoryStore(Memory())
    stage = aggregator.AggregatorStage(Settings(), POLICY)
    stage.open(0, None, store.run)
    finals: Counter[int] = Counter()

    def fold(watermarks: dict[int, int], windows: Iterable[int] = ()) -> int:
        """How many rows the batch published as final."""
        keys = [rows.count_key(window, "meta", "shop", [name], "", "").decode() for window in windows for name in "ab"]
        marks = [deltas.Mark(owner, reached_ms, {"ads.events": (0, 1)}) for owner, reached_ms in watermarks.items()]
        message = deltas.DeltaMessage(2, marks, [(key, 1, 0, 0, 0, 0, 0) for key in keys])
        record = MemoryMessage(("onecount.deltas", 0), 0, value=deltas.encode(message))
        found = stage.fold({0: Batch([record], {"onecount.deltas": (0, 1)})}, set(), store.run)
        store.run(found.writes[0])
        published = [rows.decode_count(each["value"]) for each in found.outputs.get(("conversions.counts", 0), ())]
        finals.update(row.window_start for row in published if row.final)
        return sum(row.final for row in published)

    width = BOUNDS.window_ms
    windows = range(START_MS, START_MS + 7 * width, width)
    end_ms = windows[-1] + 2 * width + BOUNDS.allowed_lateness_ms
    assert fold({0: end_ms}, windows) == 0  # the other partition has not been heard of
    assert [fold({1: end_ms}), fold({}), fold({}), fold({}), fold({})] == [4, 4, 4, 2, 0]
    assert finals == dict.fromkeys(windows, 2)


def test_an_event_that_was_just_in_time_is_so_in_a_rebuild() -> None:
    owner = owner_partition(b"ann", 2, "murmur2")

    def arrive(partition: int, kind: str, event_id: str, at: float) -> None:
        event = {"event_id": event_id, "event_type": kind, "event_time": START_MS + round(at * UNIT_MS)}
        event |= {"advertiser_id": "shop", "user_id": "ann", "platform": "meta", "campaign_id": "c1"}
        event |= {"conversion_name": "purchase"} if kind == "conversion" else {}
        value = json.dumps(event).encode()
        deployment.broker.append("ads.events", partition, value=value, timestamp=event["event_time"])

    with deployed(Deployment(POLICY, partitions=2)) as deployment:
        arrive(1 - owner, "click", "k1", 8.9)  # re-keyed, and so is what follows it, 7.95 later than it should
        arrive(1 - owner, "conversion", "c1", 0.95)
        deployment.drain()
        arrive(owner, "click", "k2", 9.5)  # within the span of k1: a rebuild reads it first, and c1 is 8.55 late
        assert_exact(deployment)
        lose(deployment, "counter")
        assert_exact(deployment)


@pytest.mark.parametrize("since", range(-1, 7))
def test_at_least_what_was_written_since_a_time_is_read_back_even_behind_an_open_transaction(
    monkeypatch: pytest.MonkeyPatch, since: int
) -> None:
    monkeypatch.setattr(rebuild, "CLOCK_MS", 0)
    broker = Broker({TOPIC: 1})
    clients = MemoryClients(broker)
    producer = clients.producer("writer")
    producer.init_transactions()
    for at in range(1, 6):
        broker.now_ms = START_MS + at
        producer.begin_transaction()
        producer.produce(TOPIC, key=f"k{at % 4}", value=str(at))
        if at < 5:  # the last one stays open until it times out
            producer.commit_transaction()
    found = latest(read_back(clients, TOPIC, 0, START_MS + since))
    assert found.items() >= {
        (f"k{at % 4}".encode(), str(at).encode()) for at in (1, 2, 3, 4) if at >= since and at + 4 > 5
    }


@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_a_log_is_read_backwards_whole_up_to_an_offset(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(rebuild, "STRETCH", length)
    broker = Broker({TOPIC: 1})
    clients = MemoryClients(broker)
    producer = clients.producer("writer")
    producer.init_transactions()
    for at in range(12):
        producer.begin_transaction()
        for _ in range(at % 3):
            producer.produce(TOPIC, value=json.dumps(at))
        producer.commit_transaction()
    written = broker.committed(TOPIC)
    for end in range(len(broker.logs[TOPIC, 0].entries) + 1):
        stretches = list(read_backwards(clients, TOPIC, 0, 2, end))
        found = [record.offset() for stretch in reversed(stretches) for record in stretch]
        assert found == [record.offset() for record in written if 2 <= record.offset() < end]
