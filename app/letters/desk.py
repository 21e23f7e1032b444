"""Handles letters, each in one Kafka transaction with its mark. There is one transactional id for all commands of a deployment.

A command that begins ends what an earlier one left open and reads the marks; an earlier one that still runs is fenced by then,
so it commits nothing any more. A commit whose answer is lost is settled in the same way: by a new producer, and the marks.
"""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app.engine.clients import KafkaClients, explained, producer_properties
from app.engine.failpoint import passing
from app.letters import marks as letter_marks
from app.letters.log import ERRORS_ONLY
from app.letters.marks import DROPPED, RETRIED, Mark, Marks, key_of, read_marks
from app.letters.plan import Deed
from app.letters.refusal import LettersError
from app.publish.producer import PARTITIONERS
from app.settings import Settings

BATCH_LETTERS: Final = 200
BATCH_BYTES: Final = 4 * 2**20
_TRIES: Final = 3  # of one batch whose commit was in doubt and had not been done
_RECORD_BYTES_MAX: Final = 10**9  # librdkafka's own limit: the topic's decides
_FENCED: Final = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
)
# What passes by itself: the brokers are away or busy with an election.
_PASSING: Final = (
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._MSG_TIMED_OUT,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
)
AGAIN: Final = "run the same command again: what is done is marked, and is not done twice"


def transactional_id(settings: Settings) -> str:
    """The one id of all commands: whoever comes last has it."""
    return f"{settings.counter_group}.dlq"


class Desk:
    """Where letters are handled. `states`: those in which a letter may be; `partitioner`: the policy's, where events
    are sent; `tell`: takes a line about a commit in doubt.

    Raises `LettersError` for whatever stops it; `done` is how many letters are handled for certain by then.
    """

    def __init__(
        self, settings: Settings, partitioner: str | None, states: Container[str], tell: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self.states = states
        self.tell = tell
        self.done = 0
        self.marks = Marks()
        self._timeout_s = settings.request_timeout_ms / 1000
        self._properties = producer_properties(settings, transactional_id(settings)) | {
            "message.max.bytes": _RECORD_BYTES_MAX,
            "linger.ms": 0,
            "client.id": "onecount-dlq",
            "log_level": ERRORS_ONLY,
        }
        if partitioner is not None:
            self._properties["partitioner"] = PARTITIONERS[partitioner]
        self._producer: Any = None

    def open(self) -> None:
        """Fences every other command, ends what it left open, and reads what is done. Raises KafkaException, `LettersError`."""
        self._producer = None
        producer = Producer(self._properties)
        producer.init_transactions(3 * self._timeout_s)
        marks = read_marks(self.settings, KafkaClients(self.settings))
        self.marks.close()
        self._producer, self.marks = producer, marks

    def close(self) -> None:
        """Ends the transaction that an interruption left open, so that no reader waits for it."""
        if self._producer is not None:
            with suppress(KafkaException):
                self._producer.purge()
                self._producer.abort_transaction(self._timeout_s)
        self._producer = None
        self.marks.close()

    def handle(self, batch: Sequence[Deed]) -> None:
        """Handles the letters of a batch that still may be, all or none of them."""
        for _ in range(_TRIES):
            # two letters of one record, if ever there are, are one
            by_key = {key_of(deed.letter): deed for deed in batch if self.marks.state(deed.letter) in self.states}
            left = list(by_key.values())
            if not left:
                return
            try:
                self.marks.add(self._transact(left))
            except KafkaException as error:
                if not self._settle(left, error):
                    continue
            self.done += len(left)
            return
        raise LettersError(f"{len(batch)} letters are not handled, their commit failed {_TRIES} times: {AGAIN}")

    def _transact(self, batch: Sequence[Deed]) -> list[tuple[bytes, bytes, int]]:
        places: list[Message | None] = [None] * len(batch)
        failures: list[KafkaError] = []

        def reported(number: int) -> Callable[[KafkaError | None, Message], None]:
            def report(error: KafkaError | None, message: Message) -> None:
                places[number] = message
                if error is not None:
                    failures.append(error)

            return report

        def acknowledged() -> None:
            if self._producer.flush(self._timeout_s):
                raise KafkaException(failures[0] if failures else KafkaError(KafkaError._TIMED_OUT, "not acknowledged"))
            if failures:
                raise KafkaException(failures[0])

        self._producer.begin_transaction()
        for number, deed in enumerate(batch):
            if deed.record is not None:
                topic, (key, value, headers) = deed.letter.topic, deed.record
                self._producer.produce(topic, value, key, on_delivery=reported(number), headers=list(headers))
        acknowledged()
        passing("letters_produced")
        marks = [
            (key_of(deed.letter), letter_marks.encode(_mark(deed, place)))
            for deed, place in zip(batch, places, strict=True)
        ]
        for key, value in marks:
            self._producer.produce(self.settings.handled_topic, value, key, partition=0, on_delivery=reported(0))
        acknowledged()
        passing("letters_marked")
        self._producer.commit_transaction(self._timeout_s)
        passing("letters_committed")
        now_ms = int(time.time() * 1000)
        return [(key, value, now_ms) for key, value in marks]

    def _settle(self, batch: Sequence[Deed], error: KafkaException) -> bool:
        """Whether a batch whose transaction failed was committed all the same. Raises `LettersError` where going on cannot help."""
        if self._is_fenced(error):
            raise LettersError(
                "another `onecount dlq` command took over, or this one stood still for longer than "
                f"{self.settings.transaction_timeout_ms / 1000:g} s; what became of the last {len(batch)} letters is in their marks. To go on, {AGAIN}"
            ) from error
        try:
            self.open()
        except (KafkaException, LettersError) as unreachable:
            raise LettersError(
                f"the commit of {len(batch)} letters is in doubt ({explained(error)}), and Kafka does not tell what became of it "
                f"({explained(unreachable)}). Once it answers, {AGAIN}"
            ) from error
        if all(self.marks.state(deed.letter) not in self.states for deed in batch):
            self.tell(
                f"the answer to a commit of {len(batch)} letters was lost ({explained(error)}): their marks say that it was done"
            )
            return True
        found = error.args[0]
        if not (found.retriable() or found.code() in _PASSING):
            first = batch[0].letter
            raise LettersError(
                f"{len(batch)} letters, {first.topic}:{first.partition}:{first.offset} the first of them, are not handled: {explained(error)}"
            ) from error
        self.tell(
            f"a commit of {len(batch)} letters failed ({explained(error)}): they have no marks, so it was not done, and is tried again"
        )
        return False

    def _is_fenced(self, error: KafkaException) -> bool:
        """Whether somebody else has the transactional id now; where the error itself may come of that, an abort tells."""
        if error.args[0].code() in _FENCED:
            return True
        if not error.args[0].txn_requires_abort():
            return False
        try:
            self._producer.abort_transaction(self._timeout_s)
        except KafkaException as refused:
            return refused.args[0].code() in _FENCED
        return False


def _mark(deed: Deed, place: Message | None) -> Mark:
    if place is None:
        return Mark(DROPPED, deed.letter.reason)
    return Mark(RETRIED, deed.letter.reason, place.partition(), place.offset())


def batches(found: Iterable[Deed], letters_max: int, bytes_max: int = BATCH_BYTES) -> Iterator[list[Deed]]:
    """The deeds in lists of at most so many letters and, but for one that is larger alone, so many bytes."""
    batch: list[Deed] = []
    size = 0
    for deed in found:
        bytes_of = len(deed.record.value or b"") if deed.record is not None else 0
        if batch and (len(batch) == letters_max or size + bytes_of > bytes_max):
            yield batch
            batch, size = [], 0
        batch.append(deed)
        size += bytes_of
    if batch:
        yield batch


def carry_out(desk: Desk, found: Iterable[Deed], budget: int, rate: float, on_progress: Callable[[int], None]) -> None:
    """Handles at most `budget` letters, about `rate` a second. `on_progress` is given the number so far after each commit."""
    letters_max = max(1, min(BATCH_LETTERS, int(rate)))
    begun_s = time.monotonic()
    for batch in batches(islice(found, budget), letters_max):
        time.sleep(max(0.0, begun_s + desk.done / rate - time.monotonic()))
        desk.handle(batch)
        on_progress(desk.done)
