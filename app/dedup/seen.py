"""Has this event been seen before? Ids of one partition, in generations of stream time that live in Redis.

An id is remembered from the stream time `s` at which it was accepted until stream time reaches `(floor(s / G) + 1) * G
+ window`, where G = window / 4; whole generations expire together. A generation's ids are a table `{tag}:seen:<generation>`,
8 bytes an id. Redis is asked only for ids that the generation's filter may hold, so a new id costs no question.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from app.columns.table import HASH, Command, Lookup, Runner, Table, Turn, among, distinct, record_type
from app.dedup.filter import IdFilter

GENERATIONS_PER_WINDOW: Final = 4
_ID: Final = record_type()


class Question(NamedTuple):
    """What to ask Redis: the commands of each generation's lookup, and the rows (bool) that each one is about."""

    commands: list[Command]
    lookups: list[tuple[int, np.ndarray, Lookup]]


class Seen:
    """The remembered ids of one partition: a filter per live generation, backed by Redis. Times are epoch ms of stream
    time.
    """

    def __init__(self, tag: str, window_ms: int, turn: Turn | None = None) -> None:
        """`turn`: as of a table."""
        self.tag = tag
        self.window_ms = window_ms
        self.span_ms = window_ms // GENERATIONS_PER_WINDOW
        self._turn = turn
        self.filters: dict[int, IdFilter] = {}
        self.tables: dict[int, Table] = {}

    def expires_ms(self, generation: int) -> int:
        """The stream time at which a generation's ids are forgotten."""
        return (generation + 1) * self.span_ms + self.window_ms

    def load(self, generation: int, count: int, run: Runner) -> None:
        """Reads a live generation of so many ids back after this process took the partition over. Raises `StateDamaged`."""
        known, table = self._begin(generation)
        table.load(count, run)
        for hashes in table.hashes(run):
            known.add(hashes.astype(np.int64))

    def _begin(self, generation: int) -> tuple[IdFilter, Table]:
        if generation not in self.tables:
            self.filters[generation] = IdFilter()
            self.tables[generation] = Table(f"{{{self.tag}}}:seen:{generation}", _ID, self._turn)
        return self.filters[generation], self.tables[generation]

    def question(self, ids: np.ndarray, stream_ms: np.ndarray) -> Question:
        """The commands that settle which of `ids` (int64) may have been seen when the stream time was `stream_ms`."""
        question = Question([], [])
        for generation, known in self.filters.items():
            rows = known.may_hold(ids) & (stream_ms < self.expires_ms(generation))
            lookup = self.tables[generation].lookup(ids[rows].astype(np.uint64))
            question.commands.extend(lookup.commands)
            question.lookups.append((generation, rows, lookup))
        return question

    def accept(self, ids: np.ndarray, stream_ms: np.ndarray, question: Question, replies: list[Any]) -> np.ndarray:
        """For each id, in processing order: True if it is new. Judges repeats inside the batch and those that Redis
        knows. Raises `StateDamaged`.
        """
        fresh = np.ones(len(ids), dtype=bool)
        until_ms = np.zeros(len(ids), dtype=np.int64)  # how long Redis remembers each
        at = 0
        for generation, rows, lookup in question.lookups:
            found = self.tables[generation].found(lookup, replies[at : at + len(lookup.commands)])
            at += len(lookup.commands)
            if not len(found):
                continue
            held = rows & among(ids.astype(np.uint64), distinct(found[HASH]))
            until_ms[held] = np.maximum(until_ms[held], self.expires_ms(generation))
        order = np.argsort(ids)
        repeats = ids[order[1:]] == ids[order[:-1]]
        involved = until_ms > 0
        involved[order[1:][repeats]] = involved[order[:-1][repeats]] = True
        remembered: dict[int, int] = {}
        for row in np.flatnonzero(involved).tolist():
            known, now_ms = int(ids[row]), int(stream_ms[row])
            if now_ms < max(remembered.get(known, 0), int(until_ms[row])):
                fresh[row] = False
            else:
                remembered[known] = self.expires_ms(now_ms // self.span_ms)
        return fresh

    def remember(self, ids: np.ndarray, stream_ms: np.ndarray) -> list[Command]:
        """Takes accepted ids into the filters; the commands that store them. An id stays in the generation of its
        acceptance.
        """
        commands: list[Command] = []
        generations = stream_ms // self.span_ms  # which never fall
        begun = generations[np.flatnonzero(np.diff(generations, prepend=-1))].tolist()
        for generation in {*begun, *self.tables}:
            rows = slice(*generations.searchsorted([generation, generation + 1]).tolist())
            known, table = self._begin(generation)
            known.add(ids[rows])
            records = np.empty(rows.stop - rows.start, dtype=_ID)
            records[HASH] = ids[rows]
            commands += table.write(records)
        return commands

    def expire(self, stream_ms: int) -> list[Command]:
        """Forgets the generations that ended by this stream time; the UNLINKs that free them."""
        ended = [generation for generation in self.tables if stream_ms >= self.expires_ms(generation)]
        commands: list[Command] = []
        for generation in ended:
            del self.filters[generation]
            commands.append(("UNLINK", *self.tables.pop(generation).redis_keys()))
        return commands
