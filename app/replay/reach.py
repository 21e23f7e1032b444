"""How far back a recount must read so that it decides as live counting did, and whether the log still holds that."""

import time
from dataclasses import dataclass
from typing import Final

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from app.policy.model import Bounds, Policy
from app.replay.refusal import ReplayRefused
from app.replay.streams import Where
from app.replay.times import as_duration, as_time
from app.replay.wish import Wish
from app.settings import Settings
from app.verify.logs import Spans, fix_spans, read_log

ID_GENERATIONS: Final = 4  # an id is remembered for its window and at most a quarter of it more


@dataclass(frozen=True)
class Reach:
    """Where reading begins in each partition, and the first time (epoch ms) that can be recounted exactly, 0 if any can be."""

    starts: dict[Where, int]
    records: int  # how many offsets there are from there to the ends of now
    exact_from_ms: int


def warm_up_ms(policy: Policy) -> int:
    """How much of the log before a window can still matter to it: what lost state would be rebuilt from, and at the least what
    ids are remembered for. An event's record may be as much earlier as its clock was fast.
    """
    bounds = policy.bounds
    ids_ms = bounds.dedup_window_ms + bounds.dedup_window_ms // ID_GENERATIONS + bounds.correction_horizon_ms
    return max(policy.conversion_retention_ms(), ids_ms) + bounds.max_clock_skew_ms


def aftermath_ms(bounds: Bounds) -> int:
    """How long after a window's events records may arrive that change it: adjustments are the last, and stream time decides
    which of them are too late.
    """
    return (
        bounds.adjustment_window_ms + bounds.max_event_age_ms + bounds.correction_horizon_ms + bounds.max_clock_skew_ms
    )


def shortfalls(wish: Wish, needed_ms: int, warm_ms: int, exact_from_ms: int, after_ms: int) -> list[str]:
    """What may make the recount differ from the live counts though nothing else does, a line each.

    `needed_ms`, `warm_ms`: how much before the range matters, and is read. `exact_from_ms`: as in `Reach`. `after_ms`: how long
    after the range records matter. Raises `ReplayRefused` where the log is too short, unless that was asked for.
    """
    found = []
    if warm_ms < needed_ms:
        found.append(
            f"inexact: {as_duration(warm_ms)} before the range were read, the policy looks back {as_duration(needed_ms)}"
        )
    if wish.from_ms < exact_from_ms:
        why = (
            f"retention has deleted records that windows before {as_time(exact_from_ms)} rest on "
            f"({as_duration(warm_ms)} before a window are read for it)"
        )
        if not wish.inexact:
            raise ReplayRefused(f"{why}: choose a --from of then or later, or go on with what is left: --inexact")
        found.append(f"inexact: {why}")
    if wish.until_ms is not None and wish.until_ms < wish.to_ms + after_ms:
        found.append(f"inexact: records of {as_time(wish.until_ms)} and later were left out, the live counts have them")
    return found


def find_reach(settings: Settings, start_ms: int, warm_ms: int) -> Reach:
    """Where the input topics' records of `start_ms` (epoch ms) and later begin. `warm_ms`: how much of them is warm-up."""
    spans = fix_spans(settings, settings.input_topics())
    # ends first: what comes after them is read whatever its time
    starts = {where: end for where, (_, end) in spans.items()}
    starts |= _first_at(settings, spans, start_ms)
    records = sum(spans[where][1] - offset for where, offset in starts.items())
    gone_ms = max(_deleted_until_ms(settings, spans).values(), default=0)
    return Reach(starts, records, gone_ms + warm_ms if gone_ms else 0)


def _first_at(settings: Settings, spans: Spans, time_ms: int) -> dict[Where, int]:
    """The first offset of each partition that has a record of this time or later."""
    if time_ms <= 0:
        return {where: first for where, (first, _) in spans.items()}
    admin = AdminClient(settings.client())
    places = {TopicPartition(*where): OffsetSpec.for_timestamp(time_ms) for where in spans}
    futures = admin.list_offsets(
        places,
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        request_timeout=settings.request_timeout_ms / 1000,
    )
    found = {(place.topic, place.partition): future.result().offset for place, future in futures.items()}
    return {where: offset for where, offset in found.items() if offset >= 0}


def _deleted_until_ms(settings: Settings, spans: Spans) -> dict[Where, int]:
    """The latest time (epoch ms) that a record had which retention has deleted, by partition; those that are whole are left out.

    Where the log is empty, only its topic's retention tells.
    """
    cut = {where: span for where, span in spans.items() if span[0] > 0}
    found = {
        (message.topic(), message.partition()): message.timestamp()[1]
        for message in read_log(settings, cut, only_first=True)
    }
    now_ms = int(time.time() * 1000)
    for where in cut.keys() - found.keys():
        found[where] = max(now_ms - _retention_ms(settings, where[0]), 1)
    return found


def _retention_ms(settings: Settings, topic: str) -> int:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient(settings.client())
    config = admin.describe_configs([resource])[resource].result(settings.request_timeout_ms / 1000)
    return max(int(config["retention.ms"].value), 0)
