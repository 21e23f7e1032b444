"""Puts records in order of time on disk, so that a file of any size needs the memory of one run."""

import heapq
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from app.importer.prepare import Prepared

RUN_RECORDS: Final = 200_000  # some 100 MB of memory
_HEAD: Final = struct.Struct("<qII")  # time, length of the key, length of the value


def write_runs(records: Iterable[Prepared], folder: Path, run_records: int = RUN_RECORDS) -> list[Path]:
    """Writes the records to files of the folder, each in order of time; returns them in the order of the input."""
    runs: list[Path] = []
    source = iter(records)
    while run := list(islice(source, run_records)):
        run.sort(key=_time)
        path = folder / f"run-{len(runs):05d}"
        with path.open("wb") as file:
            for time_ms, key, value in run:
                file.write(_HEAD.pack(time_ms, len(key), len(value)) + key + value)
        runs.append(path)
    return runs


def merge_runs(runs: list[Path]) -> Iterator[Prepared]:
    """All records in order of time; records of one time keep the order of the input."""
    return heapq.merge(*map(_read_run, runs), key=_time)


def _time(record: Prepared) -> int:
    return record.time_ms


def _read_run(path: Path) -> Iterator[Prepared]:
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            time_ms, key_length, value_length = _HEAD.unpack(head)
            yield Prepared(time_ms, file.read(key_length), file.read(value_length))
