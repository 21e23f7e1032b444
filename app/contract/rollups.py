"""Rollups: the counts of hours, days and ISO weeks (topic `conversions.rollups`)."""

from typing import Final

import msgspec

HOUR: Final = "hour"
DAY: Final = "day"
WEEK: Final = "week"
PERIODS: Final = (HOUR, DAY, WEEK)


class RollupRow(msgspec.Struct, frozen=True, gc=False):
    """Absolute counts of one period and its dimensions (topic `conversions.rollups`, an upsert by `rollup_key`): the sum of
    the latest rows of `conversions.counts` whose windows begin in it.

    Carries no revision: the same rows always make the same sum. The last record of a key holds.
    """

    period: str
    label: str
    period_start: int
    period_end: int
    time_zone: str
    platform: str
    advertiser_id: str
    dimensions: dict[str, str | None]
    conversion_name: str
    currency: str
    views: int
    engaged_views: int
    clicks: int
    conversions: int
    value: float
    cost: float
    final: bool
    scope: str


decode_rollup = msgspec.json.Decoder(RollupRow).decode


def split_count_key(key: bytes) -> tuple[int, bytes]:
    """The window's start (epoch ms) and the rest of a `count_key`: the JSON of its other parts. Raises ValueError."""
    begin, comma, rest = key.partition(b",")
    if not (comma and begin.startswith(b"[") and rest.endswith(b"]")):
        raise ValueError("no key of a count row")
    return int(begin[1:]), rest[:-1]


def rollup_key(period: str, period_start: int, rest: bytes) -> bytes:
    """The Kafka key of a `RollupRow`: [period, period_start, platform, advertiser_id, ...dimensions, conversion_name, currency];
    `rest` as in `split_count_key`.
    """
    return b'["%s",%d,%s]' % (period.encode(), period_start, rest)


def start_of_rollup(key: bytes) -> int:
    """The period's start (epoch ms) of a `rollup_key`. Raises ValueError."""
    _, _, rest = key.partition(b",")
    return int(rest.partition(b",")[0])
