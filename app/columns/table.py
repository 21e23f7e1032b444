"""Many fixed-size records by the 64-bit hash of whom they belong to, in few Redis strings: written a batch at a time, read
by hash.

New records are appended to `<key>:new` and held in memory. NEW_MAX of them become a *run*, which is sorted by hash and
never changes: `<key>:<run>:at` are the upper halves of its hashes, held in memory too (an `Index`), `<key>:<run>` is the
rest of its records. FAN_OUT runs of a level are merged into one of the next. So a batch costs one APPEND however much
is stored, a record is rewritten once or twice in its life, and a lookup reads just the records that it wants: a
log-structured merge tree (O'Neil et al., 1996) whose index is in memory. `<key>:runs` lists the runs.

Records may have a time. Then a lookup can ask for the latest one before some time alone, and reads no run all of which is
older than one that has a record of that hash.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from app.columns.index import Index

NEW_MAX: Final = 1 << 14  # records that are not in a run yet
FAN_OUT: Final = 16
RUN_MAX_BYTES: Final = 12 << 20  # of a run: merging takes some four times as much memory, and holds the batch up
HASH: Final = "hash"  # the last field of every record
TIME: Final = "time"  # the field of those that have a time, a uint32
_HALF: Final = 4  # bytes of half a hash
_UPPER: Final = np.uint64(32)
_SLICES: Final = 8  # of the hashes, merged one after the other
_MARKS: Final = 1 << 14
_LAST_BITS: Final = np.uint64(_MARKS - 1)

Command = tuple[Any, ...]
Runner = Callable[[Iterable[Command]], list[Any]]


class StateDamaged(Exception):
    """Redis does not hold what was written to it: it lost some, or another worker has taken the partition over."""


class Run(msgspec.Struct, array_like=True):
    """One run as it is listed: its number, how often its records were merged, how many they are, and their smallest and
    largest time where they have one.
    """

    number: int
    level: int
    count: int
    first: int = 0
    last: int = 2**32 - 1


class Turn:
    """Whose turn it is to merge runs: in each batch that of the first table which has enough of them, since many tables of many
    partitions get there at once, and a merge takes several times its runs' memory.
    """

    def __init__(self) -> None:
        self._is_free = True

    def begin(self) -> None:
        """A batch begins."""
        self._is_free = True

    def take(self) -> bool:
        """Whether nobody had it in this batch yet; takes it."""
        was_free, self._is_free = self._is_free, False
        return was_free


class Latest(NamedTuple):
    """That of each hash only the latest record before some times is wanted: the first of these times, and since when records
    can be that one, which a lookup raises. Aligned int64.
    """

    before: np.ndarray
    since: np.ndarray


class Lookup(NamedTuple):
    """What to ask Redis for some hashes: `commands`; `spans` says which records of which run each reply holds."""

    hashes: np.ndarray  # uint64, sorted, each once
    spans: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]  # place of the run; first, last + 1, and upper half
    merged: list[int]  # places of runs that are read whole to be merged
    commands: list[Command]
    trusted: dict[int, np.ndarray]  # by place of a run: whose older records are not asked for, since it has one
    mistaken: list[np.ndarray]  # of those, found by `found`, who has none there: the upper half was another's


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Run]).decode


def record_type(fields: Iterable[tuple[str, str]] = ()) -> np.dtype[Any]:
    """The layout of a table's records: these fields, then the hash (uint64)."""
    return np.dtype([*fields, (HASH, "<u8")])


class Table:
    """The records of one kind. Whoever reads or writes it holds the partition's ledger; nothing here is safe by itself."""

    def __init__(self, key: str, record: np.dtype[Any], turn: Turn | None = None) -> None:
        """`turn`: what tables share that merge one after the other; None: this one waits for no other."""
        self.key = key
        self.record = record
        # as a run holds a record, in two parts; the first ends with the lower half of the hash
        self._halves = np.dtype([("rest", f"V{record.itemsize - _HALF}"), ("upper", "<u4")])
        lower = {"names": ["lower"], "formats": ["<u4"], "offsets": [record.itemsize - 2 * _HALF]}
        self._lower = np.dtype({**lower, "itemsize": record.itemsize - _HALF})
        self.runs: list[Run] = []  # the oldest first
        self._turn = turn
        self._indexes: list[Index] = []  # aligned with `runs`
        # room for the records that are in no run, of which `new_count` are there; plain bytes, which are copied as such
        self._new = np.empty(0, dtype=f"V{record.itemsize}")
        self.new_count = 0
        self._merging: dict[int, bytes] = {}  # runs that were read to be merged, by place

    def __len__(self) -> int:
        return self.new_count + sum(run.count for run in self.runs)

    def _run_key(self, run: Run) -> str:
        return f"{self.key}:{run.number}"

    def redis_keys(self) -> Iterator[str]:
        """All Redis keys of the table."""
        yield from (f"{self.key}:new", f"{self.key}:runs")
        for run in self.runs:
            yield from (self._run_key(run), f"{self._run_key(run)}:at")

    def load(self, count: int, run: Runner) -> None:
        """Reads back what is held in memory of a table of `count` records. Raises `StateDamaged`."""
        new, listed = run([("MGET", f"{self.key}:new", f"{self.key}:runs")])[0]
        try:
            self.runs = _decode(listed) if listed else []
        except msgspec.DecodeError as error:
            raise StateDamaged(f"the list {self.key}:runs is unreadable: {error}") from error
        held = run([("MGET", *(f"{self._run_key(each)}:at" for each in self.runs))])[0] if self.runs else []
        self._indexes = []
        for each, upper in zip(self.runs, held, strict=True):
            self._expect(upper, each.count * _HALF)
            self._indexes.append(Index(np.frombuffer(upper, dtype="<u4")))
        self._new, self.new_count = np.empty(0, dtype=self._new.dtype), 0
        if new:
            self._expect(new, len(new) // self.record.itemsize * self.record.itemsize)
            self._hold(np.frombuffer(new, dtype=self.record))
        if len(self) != count:
            raise StateDamaged(f"Redis holds {len(self)} records of {self.key}, {count} were written")

    def hashes(self, run: Runner) -> Iterator[np.ndarray]:
        """Every record's hash (uint64), a part at a time; reads whole runs."""
        yield self._fresh()[HASH]
        for place, each in enumerate(self.runs):
            yield self._whole(place, run([("GET", self._run_key(each))])[0])[HASH]

    def lookup(self, hashes: np.ndarray, latest: Latest | None = None) -> Lookup:
        """The commands that `found` needs to find the records of these hashes (uint64). With `latest`, which is aligned with
        them, they are sorted and each is there once.
        """
        hashes = distinct(hashes) if latest is None else hashes
        upper = (hashes >> _UPPER).astype(np.uint32)
        size = self.record.itemsize - _HALF
        found = Lookup(hashes, [], self._due(), [], {}, [])
        found.commands.extend(("GET", self._run_key(self.runs[place])) for place in found.merged)
        for place in reversed(range(len(self.runs))):  # the newest first, which spares most of the others
            each = self.runs[place]
            rows = None if latest is None else np.flatnonzero(latest.since <= each.last)
            asked = upper if rows is None else upper[rows]
            at, first, last = self._indexes[place].find(asked)
            if not len(at):
                continue
            if latest is not None and rows is not None:
                sure = rows[at]
                sure = sure[each.last < latest.before[sure]]
                latest.since[sure] = np.maximum(latest.since[sure], each.first)
                found.trusted[place] = hashes[sure]
            once = np.flatnonzero(np.diff(first, prepend=-1))  # two hashes may share their upper half
            first, last = first[once], last[once]
            found.spans.append((place, first, last, asked[at[once]]))
            if place in found.merged:
                continue
            key = self._run_key(each)
            found.commands.extend(
                ("GETRANGE", key, start * size, end * size - 1)
                for start, end in zip(first.tolist(), last.tolist(), strict=True)
            )
        return found

    def found(self, lookup: Lookup, replies: list[bytes]) -> np.ndarray:
        """The records of the hashes, in the order in which they were written. Raises `StateDamaged`."""
        at, size = len(lookup.merged), self.record.itemsize - _HALF
        self._merging = dict(zip(lookup.merged, replies, strict=False))
        for place, whole in self._merging.items():
            self._expect(whole, self.runs[place].count * size)
        parts: dict[int, np.ndarray] = {}
        for place, first, last, upper in lookup.spans:
            counts = last - first
            if place in self._merging:
                whole = self._merging[place]
                found = [whole[s * size : e * size] for s, e in zip(first.tolist(), last.tolist(), strict=True)]
            else:
                found = replies[at : at + len(first)]
                at += len(first)
            rest = b"".join(found)
            self._expect(rest, int(counts.sum()) * size)
            parts[place] = self._joined(np.repeat(upper, counts), rest)
        for place, hashes in lookup.trusted.items():
            lookup.mistaken.append(hashes[~among(hashes, parts[place][HASH])])
        if not len(lookup.hashes):
            return np.empty(0, dtype=self.record)
        read = [self._all_of([parts[place] for place in sorted(parts)])] if parts else []
        chosen = [records[among(records[HASH], lookup.hashes)] for records in (*read, self._fresh())]
        return self._all_of(chosen) if read else chosen[0]

    def write(self, records: np.ndarray, flush: bool = False) -> list[Command]:
        """The commands that store new records, and what comes due with them. `flush`: make a run of the new ones anyway."""
        commands: list[Command] = []
        if self._merging:
            commands += self._merge()
        self._hold(records)
        if self.new_count >= NEW_MAX or (flush and self.new_count):
            fresh = self._fresh()
            self._new, self.new_count = np.empty(0, dtype=self._new.dtype), 0
            commands += [("UNLINK", f"{self.key}:new"), *self._sorted(fresh)]
        elif len(records):
            commands.append(("APPEND", f"{self.key}:new", records.tobytes()))
        return commands

    def _hold(self, records: np.ndarray) -> None:
        count = self.new_count + len(records)
        if count > len(self._new):
            grown = np.empty(max(count, 2 * len(self._new)), dtype=self._new.dtype)
            grown[: self.new_count] = self._new[: self.new_count]
            self._new = grown
        if len(records):
            self._new[self.new_count : count] = np.ascontiguousarray(records).view(self._new.dtype)
        self.new_count = count

    def _fresh(self) -> np.ndarray:
        return self._new[: self.new_count].view(self.record)

    def _all_of(self, parts: list[np.ndarray]) -> np.ndarray:
        """Records in a row. NumPy looks at each field of each part before it joins them, unless they are mere bytes."""
        return np.concatenate([part.view(self._new.dtype) for part in parts]).view(self.record)

    def _due(self) -> list[int]:
        """The places of the runs to merge next: the oldest of the newest level that has FAN_OUT of them, or more than fit into one;
        so many as fit. Where it is not this table's turn, there are none until a level has twice as many.
        """
        for level in sorted({run.level for run in self.runs}):
            places = [place for place, run in enumerate(self.runs) if run.level == level]
            counts = np.cumsum([self.runs[place].count for place in places])
            fitting = int(np.searchsorted(counts, RUN_MAX_BYTES // self.record.itemsize, side="right"))
            if fitting <= 1 or (len(places) < FAN_OUT and len(places) <= fitting):
                continue
            if self._turn is None or self._turn.take() or len(places) >= 2 * FAN_OUT:
                return places[: min(fitting, FAN_OUT)]
        return []

    def _merge(self) -> list[Command]:
        """Puts one run in the place of those that were read, which stand side by side."""
        places = sorted(self._merging)
        old = [self.runs[place] for place in places]
        uppers = [self._indexes[place].upper() for place in places]
        parts = [np.frombuffer(self._merging[place], dtype=self._lower) for place in places]
        self._merging = {}
        upper, rest = self._sorted_together(uppers, parts)
        del uppers, parts
        run = Run(max(each.number for each in (*old, *self.runs)) + 1, old[0].level + 1, len(upper))
        run.first, run.last = min(each.first for each in old), max(each.last for each in old)
        del self.runs[places[0] : places[-1] + 1], self._indexes[places[0] : places[-1] + 1]
        gone = [key for each in old for key in (self._run_key(each), f"{self._run_key(each)}:at")]
        return [("UNLINK", *gone), *self._store(places[0], run, upper, rest)]

    def _sorted_together(self, uppers: list[np.ndarray], parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The upper halves and the rest of the records of several runs, sorted; a part of all hashes at a time, since what sorting
        takes is more than what is sorted.
        """
        bounds = (np.arange(1, _SLICES, dtype=np.uint64) << _UPPER) // np.uint64(_SLICES)
        ends = [[0, *upper.searchsorted(bounds.astype(np.uint32)).tolist(), len(upper)] for upper in uppers]
        count, done = sum(map(len, uppers)), 0
        upper, rest = np.empty(count, dtype=np.uint32), np.empty(count, dtype=self._halves["rest"])
        for at in range(_SLICES):
            cuts = [slice(each[at], each[at + 1]) for each in ends]
            hashes = np.concatenate([each[cut] for each, cut in zip(uppers, cuts, strict=True)]).astype(np.uint64)
            chosen = np.concatenate([part[cut].view(rest.dtype) for part, cut in zip(parts, cuts, strict=True)])
            hashes = hashes << _UPPER | chosen.view(self._lower)["lower"]
            # equal hashes stay in the order in which they were written; runs, which are sorted, are sorted faster so
            order = np.argsort(hashes, kind="stable")
            target = slice(done, done + len(order))
            upper[target], rest[target] = hashes[order] >> _UPPER, chosen[order]
            done += len(order)
        return upper, rest

    def _sorted(self, records: np.ndarray) -> list[Command]:
        """Makes a run of new records; the commands that write it."""
        run = Run(max((each.number for each in self.runs), default=0) + 1, 0, len(records))
        if TIME in (self.record.names or ()):
            run.first, run.last = int(records[TIME].min()), int(records[TIME].max())
        order = _order(np.ascontiguousarray(records[HASH]))
        ordered = records.view(self._new.dtype).take(order).view(self._halves)
        return self._store(len(self.runs), run, np.ascontiguousarray(ordered["upper"]), ordered["rest"])

    def _store(self, place: int, run: Run, upper: np.ndarray, rest: np.ndarray) -> list[Command]:
        """Takes a run in; the commands that write it."""
        self.runs.insert(place, run)
        self._indexes.insert(place, Index(upper))
        key = self._run_key(run)
        return [
            ("SET", f"{key}:at", upper.tobytes()),
            ("SET", key, rest.tobytes()),
            ("SET", f"{self.key}:runs", _encode(self.runs)),
        ]

    def _whole(self, place: int, rest: bytes | None) -> np.ndarray:
        self._expect(rest, self.runs[place].count * (self.record.itemsize - _HALF))
        return self._joined(self._indexes[place].upper(), rest or b"")

    def _joined(self, upper: np.ndarray, rest: bytes) -> np.ndarray:
        """Records from the two parts in which a run holds them."""
        records = np.empty(len(upper), dtype=self._halves)
        records["rest"], records["upper"] = np.frombuffer(rest, dtype=self._halves["rest"]), upper
        return records.view(self.record)

    def _expect(self, held: bytes | None, size_bytes: int) -> None:
        if held is None or len(held) != size_bytes:
            size = "nothing" if held is None else f"{len(held)} bytes"
            raise StateDamaged(f"Redis holds {size} where {size_bytes} bytes of {self.key} were written")


def distinct(values: np.ndarray) -> np.ndarray:
    """Integers in their order, each once: `numpy.unique` by sorting, which is several times as fast."""
    ordered = np.sort(values)
    return ordered[np.flatnonzero(np.concatenate([np.ones(len(values[:1]), dtype=bool), ordered[1:] != ordered[:-1]]))]


def _order(hashes: np.ndarray) -> np.ndarray:
    """The stable order of hashes that are hardly sorted: NumPy's fast sort is not stable, so equal ones are put right behind it."""
    hashes = np.ascontiguousarray(hashes)
    order = np.argsort(hashes)
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        order[tied] = order[tied[np.lexsort((order[tied], ordered[tied]))]]
    return order


def among(hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of `hashes` (uint64) are one of `wanted`, which is sorted."""
    found = np.zeros(len(hashes), dtype=bool)
    if not len(wanted) or not len(hashes):
        return found
    marks = np.zeros(_MARKS, dtype=bool)  # most are none of them, which their last bits tell at once
    marks[(wanted & _LAST_BITS).astype(np.int64)] = True
    from app.columns import loops

    loops.look_all(hashes, wanted, marks, found)
    return found
