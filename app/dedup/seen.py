"""Has this event been seen before? Ids of one partition, in generations of stream time that live in Redis sets.

An id is remembered from the stream time `s` at which it was accepted until stream time reaches `(floor(s / G) + 1) * G
+ window`, where G = window / 4; whole generations expire together. An id's set `{tag}:seen:<generation>:<bucket>`
stays an intset of 8 bytes an id. Redis is asked only for ids that the generation's filter may hold, so a new id costs
no question.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np

from app.dedup.filter import IdFilter

BUCKETS: Final = 512
GENERATIONS_PER_WINDOW: Final = 4

Command = tuple[Any, ...]


class Question(NamedTuple):
    """What to ask Redis: one SMISMEMBER per entry of `commands`; `rows` and `generation` say what each answer is
    about.
    """

    commands: list[Command]
    rows: list[np.ndarray]
    generations: list[int]


class Seen:
    """The remembered ids of one partition: a filter per live generation, backed by Redis. Times are epoch ms of stream
    time.
    """

    def __init__(self, tag: str, window_ms: int) -> None:
        self.tag = tag
        self.window_ms = window_ms
        self.span_ms = window_ms // GENERATIONS_PER_WINDOW
        self.filters: dict[int, IdFilter] = {}

    def key(self, generation: int, bucket: int) -> str:
        """The Redis key of one bucket of a generation."""
        return f"{{{self.tag}}}:seen:{generation}:{bucket}"

    def expires_ms(self, generation: int) -> int:
        """The stream time at which a generation's ids are forgotten."""
        return (generation + 1) * self.span_ms + self.window_ms

    def load_commands(self, generation: int) -> list[Command]:
        """Reads a generation back, for `load`."""
        return [("SMEMBERS", self.key(generation, bucket)) for bucket in range(BUCKETS)]

    def load(self, generation: int, replies: Iterable[Iterable[bytes]]) -> None:
        """Fills the filter of a live generation after this process took the partition over."""
        self.filters[generation] = IdFilter()
        ids = [int(member) for members in replies for member in members]
        self.filters[generation].add(np.array(ids, dtype=np.int64))

    def question(self, ids: np.ndarray, stream_ms: np.ndarray) -> Question:
        """The commands that settle which of `ids` (int64) may have been seen when the stream time was `stream_ms`."""
        question = Question([], [], [])
        for generation, known in self.filters.items():
            live = stream_ms < self.expires_ms(generation)
            rows = np.flatnonzero(known.may_hold(ids) & live)
            for bucket, members in _by_bucket(ids, rows):
                question.commands.append(("SMISMEMBER", self.key(generation, bucket), *ids[members].tolist()))
                question.rows.append(members)
                question.generations.append(generation)
        return question

    def accept(
        self, ids: np.ndarray, stream_ms: np.ndarray, question: Question, replies: list[list[int]]
    ) -> np.ndarray:
        """For each id, in processing order: True if it is new. Judges repeats inside the batch and those that Redis
        knows.
        """
        fresh = np.ones(len(ids), dtype=bool)
        remembered: dict[int, int] = {}
        for rows, generation, answers in zip(question.rows, question.generations, replies, strict=True):
            until_ms = self.expires_ms(generation)
            for row, answer in zip(rows.tolist(), answers, strict=True):
                if answer:
                    known = int(ids[row])
                    remembered[known] = max(until_ms, remembered.get(known, 0))
        unique, counts = np.unique(ids, return_counts=True)
        repeated = unique[counts > 1]
        involved = np.isin(
            ids, np.concatenate([repeated, np.fromiter(remembered, dtype=np.int64, count=len(remembered))])
        )
        for row in np.flatnonzero(involved).tolist():
            known, now_ms = int(ids[row]), int(stream_ms[row])
            if now_ms < remembered.get(known, 0):
                fresh[row] = False
            else:
                remembered[known] = self.expires_ms(now_ms // self.span_ms)
        return fresh

    def remember(self, ids: np.ndarray, stream_ms: np.ndarray) -> list[Command]:
        """Takes accepted ids into the filters; the SADDs that store them. An id stays in the generation of its
        acceptance.
        """
        commands: list[Command] = []
        generations = stream_ms // self.span_ms
        for generation in np.unique(generations).tolist():
            rows = np.flatnonzero(generations == generation)
            self.filters.setdefault(generation, IdFilter()).add(ids[rows])
            commands += [
                ("SADD", self.key(generation, bucket), *ids[members].tolist())
                for bucket, members in _by_bucket(ids, rows)
            ]
        return commands

    def expire(self, stream_ms: int) -> list[Command]:
        """Forgets the generations that ended by this stream time; the UNLINKs that free them."""
        ended = [generation for generation in self.filters if stream_ms >= self.expires_ms(generation)]
        for generation in ended:
            del self.filters[generation]
        return [("UNLINK", *(self.key(generation, bucket) for bucket in range(BUCKETS))) for generation in ended]


def _by_bucket(ids: np.ndarray, rows: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """Splits rows by the bucket of their id."""
    if not len(rows):
        return []
    buckets = ids[rows] & (BUCKETS - 1)
    order = np.argsort(buckets, kind="stable")
    ordered = buckets[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    starts = [0, *cuts.tolist()]
    return zip(ordered[starts].tolist(), np.split(rows[order], cuts), strict=True)
