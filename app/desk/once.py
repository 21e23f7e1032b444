"""A desk fold without a desk: reads its topics to their ends of now, once, and joins nobody's work."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Final

from app.desk.fold import DeskFold
from app.desk.log import Batch, Ends, Place, described, places_of, read_log
from app.desk.refusal import DeskError
from app.engine.clients import KafkaClients
from app.settings import Settings

SILENCE_S: Final = 60.0  # without a record that is due: nobody answers
_LOOK_S: Final = 0.5


def read_once(settings: Settings, fold: DeskFold, tell: Callable[[int], None] = lambda count: None) -> int:
    """Gives the fold every committed record of its topics; how many there were. `tell` hears of it as it goes.

    Raises `DeskError` for topics that are missing and for silence, KafkaException where the brokers refuse.
    """
    clients = KafkaClients(settings)
    places = places_of(described(clients, fold.inputs, DeskError))
    ends = {place: end for place, end in Ends(settings).ask(places).items() if end > 0}
    reading = _Reading(fold, ends)
    if not ends:
        return 0
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(read_log, clients, list(ends), reading.take, reading.stop)
        try:
            while not wait([done], _LOOK_S).done:
                tell(reading.count)
                if time.monotonic() - reading.heard_s > SILENCE_S:
                    raise DeskError(f"no record came for {SILENCE_S:.0f} s: {', '.join(reading.unread())} are not read")
        finally:
            reading.stop.set()
    done.result()
    return reading.count


class _Reading:
    def __init__(self, fold: DeskFold, ends: dict[Place, int]) -> None:
        self.count = 0
        self.heard_s = time.monotonic()
        self.stop = Event()
        self._fold = fold
        self._left = dict(ends)

    def take(self, batch: Batch) -> None:
        for record in batch.records:
            self._fold.take(record)
        self.count += len(batch.records)
        self.heard_s = time.monotonic()
        for place, position in batch.positions.items():
            if position >= self._left.get(place, position + 1):
                del self._left[place]
        if not self._left:
            self.stop.set()

    def unread(self) -> list[str]:
        return [f"{topic}/{partition}" for topic, partition in self._left]
