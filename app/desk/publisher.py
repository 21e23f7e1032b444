"""Publishes the desk's rows, in transactions of the one transactional id that all desks share."""

from collections.abc import Iterable

from app.desk.fold import Output
from app.engine.clients import KafkaClients
from app.engine.failpoint import passing
from app.settings import Settings


class Publisher:
    """To make one ends what a former desk left open, and from then on that one's records are refused by the brokers: a desk that
    was paused in mid publication wakes up to an error, never to write what is stale. Raises KafkaException.
    """

    def __init__(self, settings: Settings, clients: KafkaClients) -> None:
        self._timeout_s = settings.request_timeout_ms / 1000
        self._producer = clients.producer(settings.desk_group)
        self._producer.init_transactions(self._timeout_s)

    def publish(self, rows: Iterable[Output]) -> None:
        """All of these rows or none; the next of one key holds. After an error this publisher is of no more use."""
        self._producer.begin_transaction()
        passing("transaction_begun")
        for row in rows:
            self._producer.produce(row.topic, row.value, row.key, partition=0)
        passing("produced")
        self._producer.commit_transaction(self._timeout_s)
        passing("committed")
