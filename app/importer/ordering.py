"""Keeps judged records on disk until they are sent, in the file's order or in order of time, in the memory of one run."""

import heapq
import io
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter, itemgetter
from typing import BinaryIO, Final

from app.importer.prepare import Prepared

RUN_RECORDS: Final = 100_000  # some 50 MB of memory
_BUFFER_BYTES: Final = 1 << 16  # for each run while they are merged
_HEAD: Final = struct.Struct("<qII")  # time, length of the key, length of the value
_time = attrgetter("time_ms")


@dataclass
class Spool:
    """Records in a file that has no name, so that nothing is left of it after a kill. `runs`: (start, end) in bytes."""

    file: BinaryIO
    runs: list[tuple[int, int]] = field(default_factory=list)
    records: int = 0


def write_spool(file: BinaryIO, records: Iterable[Prepared], by_time: bool, run_records: int = RUN_RECORDS) -> Spool:
    """Writes the records to the file run by run, each run in order of time if asked for."""
    spool = Spool(file)
    # packed as they come: bytes of orjson take 4 KiB for as long as they are kept
    source = ((time_ms, _HEAD.pack(time_ms, len(key), len(value)) + key + value) for time_ms, key, value in records)
    end = 0
    while run := list(islice(source, run_records)):
        if by_time:
            run.sort(key=itemgetter(0))
        start = end
        for _, packed in run:
            end += file.write(packed)
        spool.runs.append((start, end))
        spool.records += len(run)
    file.flush()
    return spool


def read_spool(spool: Spool, by_time: bool) -> Iterator[Prepared]:
    """All records in order of time (those of one time in the input's order), or in the input's order."""
    runs = [_read_run(spool.file.fileno(), start, end) for start, end in spool.runs]
    return heapq.merge(*runs, key=_time) if by_time else chain.from_iterable(runs)


def _read_run(descriptor: int, start: int, end: int) -> Iterator[Prepared]:
    file = io.BufferedReader(_Segment(descriptor, start, end), _BUFFER_BYTES)
    while head := file.read(_HEAD.size):
        time_ms, key_length, value_length = _HEAD.unpack(head)
        yield Prepared(time_ms, file.read(key_length), file.read(value_length))


class _Segment(io.RawIOBase):
    """A part of a file, read without moving the file's own position: many are read in turn from one descriptor."""

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._descriptor, self._position, self._end = descriptor, start, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        wanted = memoryview(buffer)[: self._end - self._position]
        read = os.preadv(self._descriptor, [wanted], self._position) if wanted else 0
        self._position += read
        return read
