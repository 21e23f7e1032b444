"""What a counter tells the aggregators: changes of count rows, its watermark, and which input the batch was.

One message a batch and deltas partition, not one a row: rows are many and small. A row's partition is a stable hash of
its key.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl
import xxhash

from app.columns.texts import Coded, Names, stir
from app.contract import rows
from app.contract.events import MICROS, TOUCH_TYPES

VERSION: Final = 1  # of a message; one more with every change that an older aggregator would misread
MAX_ROWS_A_MESSAGE: Final = 2_000
TOUCH_MEASURES: Final = tuple(
    {"view": "views", "click": "clicks", "engaged_view": "engaged_views"}[name] for name in TOUCH_TYPES
)
# The order of a delta's numbers: rows.MEASURES, money in millionths.


class Mark(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One owner partition's progress: its watermark (epoch ms), and the half-open offset range that the batch took of
    each input topic.
    """

    partition: int
    watermark_ms: int
    ranges: dict[str, tuple[int, int]]


class DeltaMessage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message of `onecount.deltas`. `partitions`: how many owner partitions there are; a row: key, then the change
    of each measure. `newest_ms`: the Kafka timestamp of the newest event of the batch; 0 where it has none.
    """

    partitions: int
    marks: list[Mark]
    rows: list[tuple[str, int, int, int, int, int, int]]
    version: int = VERSION
    newest_ms: int = 0


class MarksMessage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The same message for who asks for its marks alone; its rows, up to 2,000, are stepped over."""

    partitions: int
    marks: list[Mark]
    rows: msgspec.Raw
    version: int = VERSION


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(DeltaMessage).decode
decode_marks = msgspec.json.Decoder(MarksMessage).decode

Numbers = tuple[int, int, int, int, int, int]


class RowTails:
    """What stands behind the window in the keys of touches' rows, by a code (the hash of their names' codes) that few instructions
    make; emptied where there are too many, since they can be made again.
    """

    def __init__(self, size_max: int = 1_000_000) -> None:
        self.size_max = size_max
        self._names = Names(size_max)
        self._tails: dict[int, bytes] = {}

    def codes(self, keys: list[Coded]) -> np.ndarray:
        """One code (uint64) a touch, from aligned columns: platform, advertiser and the dimensions."""
        codes = np.zeros(len(keys[0].codes), dtype=np.uint64)
        for key in keys:
            codes = stir(codes + key.codes)
        return codes

    def of(self, codes: list[int], keys: list[Coded], touches: np.ndarray) -> list[bytes]:
        """The tail of each code; `touches`: where each one's names are found in the columns."""
        if len(self._tails) > self.size_max:
            self._tails = {}
        missing = [place for place, code in enumerate(codes) if code not in self._tails]
        if missing:
            columns = [self._names.of(key, touches[missing]) for key in keys]
            for place, (platform, advertiser, *dimensions) in zip(missing, zip(*columns, strict=True), strict=True):
                key = rows.count_key(0, platform or "", advertiser or "", list(dimensions), "", "")
                self._tails[codes[place]] = key.removeprefix(b"[0")
        return [self._tails[code] for code in codes]


def touch_deltas(
    times_ms: np.ndarray, types: np.ndarray, costs: np.ndarray, keys: list[Coded], tails: RowTails, window_ms: int
) -> list[tuple[bytes, Numbers]]:
    """Adds up touches (aligned columns) by window and `keys`: platform, advertiser and the dimensions."""
    if not len(times_ms):
        return []
    micros = np.rint(np.nan_to_num(costs) * MICROS).astype(np.int64)
    measures = {name: types == code for code, name in enumerate(TOUCH_MEASURES)}
    columns = {"window": times_ms // window_ms * window_ms, "key": tails.codes(keys)}
    counts = (
        pl.DataFrame(columns | measures | {"cost": micros, "touch": np.arange(len(times_ms))})
        .group_by("window", "key")
        .agg(pl.col("touch").first(), *(pl.col(name).sum() for name in (*TOUCH_MEASURES, "cost")))
    )
    return [
        (b"[%d%b" % (window, tail), (views, engaged_views, clicks, 0, 0, cost))
        for window, tail, views, clicks, engaged_views, cost in zip(
            counts["window"].to_list(),
            tails.of(counts["key"].to_list(), keys, counts["touch"].to_numpy()),
            *(counts[name].to_list() for name in (*TOUCH_MEASURES, "cost")),
            strict=True,
        )
    ]


def messages(
    deltas: Iterable[tuple[bytes, Numbers]],
    marks: list[Mark],
    owner_partitions: int,
    delta_partitions: int,
    newest_ms: int,
) -> list[tuple[int, bytes]]:
    """The batch's messages as (deltas partition, value): at least one to every partition, since each needs the
    watermark.
    """
    by_partition: list[list[Any]] = [[] for _ in range(delta_partitions)]
    for key, numbers in deltas:
        by_partition[xxhash.xxh3_64_intdigest(key) % delta_partitions].append((key.decode(), *numbers))
    found = []
    for partition, part in enumerate(by_partition):
        for start in range(0, max(len(part), 1), MAX_ROWS_A_MESSAGE):
            last = start + MAX_ROWS_A_MESSAGE >= len(part)
            some = part[start : start + MAX_ROWS_A_MESSAGE]
            chunk = DeltaMessage(owner_partitions, marks if last else [], some, newest_ms=newest_ms)
            found.append((partition, encode(chunk)))
    return found
