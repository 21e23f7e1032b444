"""What a stream remembers while it is generated, and the records that any kind of event is made of."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from heapq import heappush
from itertools import count
from typing import NamedTuple

from app.generate.mix import Mix
from app.generate.world import World, build_world
from app.policy.model import Bounds, Policy

RECENT_TOUCHES = 65_536  # a conversion follows one of these


class Generated(NamedTuple):
    """One record as its producer sends it; records come in the order in which they are sent.

    `timestamp_ms` is the Kafka timestamp (epoch ms). `foreign`: it goes to a partition that does not own `user`, and
    `key` is then null or `user`. `kind` says what the record is an example of, for tests and summaries; the product
    never sees it.
    """

    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    user: bytes
    foreign: bool
    kind: str


@dataclass(slots=True)
class Scene:
    """A stream under way: its chance, its world, what is still to come, and what conversions can refer back to."""

    rng: random.Random
    world: World
    mix: Mix
    bounds: Bounds
    prefix: str  # of every id, so that streams of different seeds never share one
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    pending: list[tuple[int, int, Generated]] = field(default_factory=list)  # a heap: due (ms), tie breaker, record
    recent: list[tuple[int, int]] = field(default_factory=list)  # a ring of (user, ad)
    touched: int = 0
    last_order_id: str = ""
    clicked: dict[tuple[int, int], tuple[str, str]] = field(
        default_factory=dict
    )  # (user, advertiser) -> platform, click id


def open_scene(seed: int, policy: Policy, mix: Mix) -> Scene:
    """A stream at its beginning."""
    return Scene(random.Random(seed), build_world(mix, policy), mix, policy.bounds, f"g{seed}-")


def remember_click(scene: Scene, user: int, ad: int, click_id: str) -> None:
    """The click that may stand for its user from now on."""
    advertiser, platform = scene.world.ads[ad].advertiser, scene.world.ads[ad].platform
    scene.clicked.pop((user, advertiser), None)
    scene.clicked[user, advertiser] = platform, click_id
    if len(scene.clicked) > RECENT_TOUCHES:
        del scene.clicked[next(iter(scene.clicked))]


def named(scene: Scene, user: int, ad: int, platform: str | None) -> tuple[str, bool]:
    """Who it was, as a JSON member: mostly the user, now and then only a click of theirs; whether it is that."""
    clicked_on, click_id = scene.clicked.get((user, scene.world.ads[ad].advertiser), ("", ""))
    may_be = scene.bounds.click_ids is not None and click_id and platform in (None, clicked_on)
    if not may_be or scene.rng.random() >= scene.mix.by_click:
        return f'"user_id":"{scene.world.users[user]}"', False
    if scene.rng.random() < scene.mix.by_unknown_click:
        click_id = f"unknown-{click_id}"
    return f'"click_id":"{click_id}"', True


def new_id(scene: Scene) -> str:
    """An id that no other event of any seed has."""
    return f"{scene.prefix}{next(scene.numbers)}"


def push(scene: Scene, due_ms: int, record: Generated) -> None:
    """Has a record sent at `due_ms` (epoch ms); equal times keep the order of the calls."""
    heappush(scene.pending, (due_ms, next(scene.numbers), record))


def time_text(scene: Scene, time_ms: int) -> str:
    """An event time as JSON: mostly epoch milliseconds, now and then RFC 3339, in UTC or with an offset."""
    if scene.rng.random() >= scene.mix.rfc3339_times:
        return str(time_ms)
    zone = UTC if scene.rng.random() < 0.5 else timezone(timedelta(minutes=scene.rng.choice((-300, 60, 330))))
    moment = datetime.fromtimestamp(time_ms // 1000, zone).replace(microsecond=time_ms % 1000 * 1000)
    return f'"{moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")}"'


def trouble_odds(mix: Mix) -> float:
    """How likely it is that something happens to a sound record on its way."""
    return mix.repeats + mix.retries + mix.foreign


def record_of(scene: Scene, user: int, json: str, sent_ms: int, kind: str, is_userless: bool = False) -> Generated:
    """A sound record as it is sent the first time."""
    key = scene.world.user_keys[user]
    return Generated(None if is_userless else key, json.encode(), sent_ms, key, False, kind)


def trouble(scene: Scene, record: Generated, time: str, time_ms: int, luck: float | None = None) -> Generated:
    """The record as it is sent, perhaps on a foreign partition; perhaps with a repeat of it scheduled.

    `time` is its event time (`time_ms`) as it stands in the JSON. `luck` (0 to 1): below `trouble_odds` there is some.
    """
    rng, mix = scene.rng, scene.mix
    luck = rng.random() if luck is None else luck
    if luck < mix.repeats:
        later_ms = rng.randrange(1_000, 46_001)
        value = record.value.replace(f'"event_time":{time}'.encode(), f'"event_time":{time_ms + later_ms}'.encode())
        sent_ms = record.timestamp_ms + later_ms
        push(scene, sent_ms, record._replace(value=value, timestamp_ms=sent_ms, kind="repeat"))
        return record
    luck -= mix.repeats
    if luck < mix.retries:
        push(scene, record.timestamp_ms + rng.randrange(5_000), record._replace(kind="retry"))
        return record
    luck -= mix.retries
    if luck < mix.foreign:
        key = record.key if rng.random() < 0.5 else None
        return record._replace(key=key, foreign=True, kind="foreign")
    return record
