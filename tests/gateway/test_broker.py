"""The way into Kafka by itself, on librdkafka's own mock cluster: what is waited for, what is refused, and a producer that ends."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from app.gateway.admission import Record
from app.gateway.broker import PROBE_S, PROBE_TIMEOUT_S, Broker
from app.observe.logs import KafkaLog
from app.settings import Settings

SETTINGS = Settings(kafka='{"test.mock.num.brokers": "1"}', bootstrap="mock")  # type: ignore[arg-type]
SLOW = Settings(kafka='{"test.mock.num.brokers": "1", "test.mock.broker.rtt": "400"}', bootstrap="mock")  # type: ignore[arg-type]


class Fatal:
    """An error that ends an idempotent producer."""

    def fatal(self) -> bool:
        return True


def record(number: int) -> Record:
    return Record(b"user", b"{}", 1_764_000_000_000, str(number))


def run(
    case: Callable[[Broker], Awaitable[None]],
    room: int = 1_000,
    patience_ms: int = 5_000,
    settings: Settings = SETTINGS,
) -> None:
    async def within() -> None:
        logger: Any = KafkaLog(lambda client, level: None).logger("producer")
        broker = Broker(settings, "raw", "murmur2", room, patience_ms, 1, logger)
        await case(broker)
        assert await broker.close(5) == 0

    asyncio.run(within())


def test_all_records_are_acknowledged_before_the_answer() -> None:
    async def case(broker: Broker) -> None:
        assert await broker.send([]) == []
        answers = await asyncio.gather(*(broker.send([record(number) for number in range(50)]) for _ in range(20)))
        assert answers == [[True] * 50] * 20
        assert broker.waiting == 0

    run(case)


def test_posted_records_are_sent_before_the_end() -> None:
    async def case(broker: Broker) -> None:
        assert all(broker.post(record(number)) for number in range(100))
        assert broker.waiting == 100
        assert await broker.close(5) == 0
        assert broker.lost == 0

    run(case)


def test_there_is_room_for_so_many_and_no_more() -> None:
    async def case(broker: Broker) -> None:
        assert broker.has_room(10)
        assert not broker.has_room(11)
        sending = asyncio.create_task(broker.send([record(number) for number in range(8)]))
        await asyncio.sleep(0)
        assert broker.has_room(2)
        assert not broker.has_room(3)
        assert [broker.post(record(number)) for number in range(3)] == [True, True, False]
        assert await sending == [True] * 8

    run(case, room=10)


def test_a_producer_that_ended_is_replaced_and_what_waited_is_told_as_not_taken() -> None:
    async def case(broker: Broker) -> None:
        assert await broker.send([record(0)]) == [True]
        waiting = asyncio.create_task(broker.send([record(1)]))
        await asyncio.sleep(0)
        broker._complain(Fatal())  # type: ignore[arg-type]
        assert len(await waiting) == 1, "it is answered either way"
        assert await broker.send([record(2)]) == [True]
        assert not broker.is_down

    run(case)


@pytest.mark.timeout(30)
def test_without_kafka_the_answer_comes_in_time_and_one_at_a_time_looks_whether_it_is_back() -> None:
    async def case() -> None:
        settings = Settings(bootstrap="127.0.0.1:1")
        logger: Any = KafkaLog(lambda client, level: None).logger("producer")
        broker = Broker(settings, "raw", "murmur2", 100, 600, 1, logger)
        assert broker.post(record(9))
        assert await broker.send([record(0), record(1)]) == [False, False]
        assert broker.is_down
        await broker.close(2)
        assert broker.lost == 1
        assert broker.has_room(1)
        looking = asyncio.create_task(broker.send([record(2)]))
        await asyncio.sleep(0)
        assert not broker.has_room(1)
        assert await looking == [False]
        await broker.close(1)

    asyncio.run(case())


@pytest.mark.timeout(30)
def test_that_kafka_is_back_is_found_out_while_nobody_sends() -> None:
    async def case(broker: Broker) -> None:
        assert await broker.send([record(0)]) == [False], "it is acknowledged later than 200 ms"
        assert broker.is_down
        async with asyncio.timeout(10):
            while broker.is_down:  # a load balancer has taken the gateway out, so no request comes
                await asyncio.sleep(0.05)
        assert broker.has_room(1_000)

    run(case, patience_ms=200, settings=SLOW)


def test_one_look_at_a_time_finds_out_whether_kafka_is_back() -> None:
    async def case(broker: Broker) -> None:
        for _ in range(5):  # acknowledgements and failures in turn, within a second
            broker.waiting += 2
            broker._report(KafkaError(KafkaError._MSG_TIMED_OUT))
            assert broker.is_down
            broker._report(None)
            assert not broker.is_down
        names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
        assert names.count("Broker._probe") == 1

    run(case)


@pytest.mark.timeout(30)
def test_a_log_line_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError("standard output is gone")

    monkeypatch.setattr("app.gateway.broker._log", SimpleNamespace(info=fail, warning=fail, error=fail))

    async def case(broker: Broker) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with asyncio.timeout(10):
            assert await broker.send([record(0), record(1)]) == [False, False], "they are answered"
            assert broker.is_down
            while broker.is_down:
                await asyncio.sleep(0.05)
            broker._complain(Fatal())  # type: ignore[arg-type]
            await asyncio.sleep(0.2)
            assert not broker._is_broken, "the producer is a new one"
            assert await broker.send([record(2)]) == [False], "it is polled as before"
        assert broker.waiting == 0

    run(case, patience_ms=200, settings=SLOW)


@pytest.mark.timeout(30)
def test_kafka_that_does_not_answer_stays_down() -> None:
    async def case() -> None:
        logger: Any = KafkaLog(lambda client, level: None).logger("producer")
        broker = Broker(Settings(bootstrap="127.0.0.1:1"), "raw", "murmur2", 100, 500, 1, logger)
        assert await broker.send([record(0)]) == [False]
        await asyncio.sleep(PROBE_S + PROBE_TIMEOUT_S + 0.5)
        assert broker.is_down
        await broker.close(1)

    asyncio.run(case())
