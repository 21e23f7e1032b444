"""The stream: one record a position, of the kinds and in the disorder that a `Mix` asks for."""

from collections.abc import Callable, Iterator
from heapq import heappop
from itertools import accumulate, chain, repeat
from itertools import count as counting
from typing import Final

from app.generate.conversions import convert, start_conversion, visit
from app.generate.faults import invalid_record
from app.generate.mix import Mix
from app.generate.scene import (
    RECENT_TOUCHES,
    Generated,
    Scene,
    open_scene,
    push,
    record_of,
    remember_click,
    time_text,
    trouble,
    trouble_odds,
)
from app.generate.world import pick_users
from app.policy.model import Policy

# Draws of chance are made for so many positions at once, which is several times faster than one by one.
_CHUNK: Final = 4_096
_TOUCHES: Final = frozenset(("view", "click", "engaged_view"))
# What starts at the stream's last moment is over by then: a late click, its conversion's second report, an
# adjustment, and that one again.
LONGEST_STORY_MS: Final = 45 * 60_000

__all__ = ["LONGEST_STORY_MS", "Generated", "events"]


def events(
    seed: int,
    count: int | None,
    start_ms: int,
    policy: Policy,
    mix: Mix | None = None,
    events_per_s: float = 1_000.0,
    time_at: Callable[[int], int] | None = None,
) -> Iterator[Generated]:
    """`count` records (None: without end), in the order in which they are sent. The same arguments give the same
    records, byte for byte.

    Event time starts at `start_ms` (epoch ms) and passes at `events_per_s` records a second. The last records are
    those that are still under way then (repeats, late clicks, adjustments), up to `LONGEST_STORY_MS` later.
    `time_at(position)` (epoch ms) replaces that clock by another, such as the wall clock; then what is under way at
    the end stays out.
    """
    scene = open_scene(seed, policy, mix or Mix())
    pending = scene.pending
    draws = _draws(scene)
    odds = trouble_odds(scene.mix)
    ends = count is not None and time_at is None
    for position in range(count) if count is not None else counting():
        now_ms = time_at(position) if time_at else start_ms + int(position * 1000 / events_per_s)
        while True:
            if pending and (pending[0][0] <= now_ms or (ends and len(pending) >= count - position)):
                record = heappop(pending)[2]
                break
            kind, user, ad, lag_ms, cost, luck = next(draws)
            if kind in _TOUCHES:
                record = _touch(scene, kind, now_ms, user, ad, lag_ms, cost, luck, odds)
                if record is not None:
                    break
            elif kind == "invalid":
                record = invalid_record(scene, now_ms, user, ad)
                break
            elif kind == "visit":
                record = visit(scene, user, ad, now_ms)
                break
            else:
                start_conversion(scene, now_ms, user, ad)
        yield record


def _draws(scene: Scene) -> Iterator[tuple[str, int, int, int, str, float]]:
    """Without end: what happens next, to whom, by which ad, how long its event was under way (ms), its cost as JSON,
    and its luck.
    """
    mix, world = scene.mix, scene.world
    weights = {
        "view": mix.views,
        "click": mix.clicks,
        "engaged_view": mix.engaged_views,
        "visit": mix.visits,
        "conversion": mix.conversions,
        "invalid": mix.invalid,
    }
    kinds, kind_weights, ads = list(weights), list(accumulate(weights.values())), range(len(world.ads))
    priced = round(len(world.costs) * mix.costs)
    costs = world.costs[:priced] + [""] * (len(world.costs) - priced)
    # Most events are under way for a few ms, some for three seconds: so a stream is never quite in order.
    lags = [int(3_000 * (step / 256) ** 4) for step in range(256)]
    rng = scene.rng

    def draw_chunk(_: None) -> Iterator[tuple[str, int, int, int, str, float]]:
        return zip(
            rng.choices(kinds, cum_weights=kind_weights, k=_CHUNK),
            pick_users(rng, mix.users, _CHUNK),
            rng.choices(ads, cum_weights=world.ad_weights, k=_CHUNK),
            rng.choices(lags, k=_CHUNK),
            rng.choices(costs, k=_CHUNK),
            [rng.random() for _ in range(_CHUNK)],
            strict=True,
        )

    return chain.from_iterable(map(draw_chunk, repeat(None)))


def _touch(
    scene: Scene, kind: str, now_ms: int, user: int, ad: int, lag_ms: int, cost: str, luck: float, odds: float
) -> Generated | None:
    """A view, click or engaged view; None for a click that arrives later (it is scheduled, perhaps with a conversion
    before it).
    """
    world = scene.world
    time_ms = now_ms - lag_ms
    time = time_text(scene, time_ms)
    event_id = f"{scene.prefix}{next(scene.numbers)}"
    clicked = f',"click_id":"c-{event_id}"' if kind == "click" else ""
    json = (
        f'{{"event_id":"{event_id}","event_type":"{kind}","event_time":{time},"user_id":"{world.users[user]}"'
        f",{world.ads[ad].json}{cost}{clicked}}}"
    )
    if len(scene.recent) < RECENT_TOUCHES:
        scene.recent.append((user, ad))
    else:
        scene.touched = (scene.touched + 1) % RECENT_TOUCHES
        scene.recent[scene.touched] = (user, ad)
    if clicked and scene.bounds.click_ids:
        remember_click(scene, user, ad, f"c-{event_id}")
    if clicked and scene.rng.random() < scene.mix.late_clicks:
        _delay_click(scene, record_of(scene, user, json, now_ms, "late_click"), user, ad)
        return None
    key = world.user_keys[user]
    record = Generated(key, json.encode(), now_ms, key, False, kind)
    return record if luck >= odds else trouble(scene, record, time, time_ms, luck)


def _delay_click(scene: Scene, click: Generated, user: int, ad: int) -> None:
    """Schedules a click for up to half an hour later, and perhaps a conversion of its user in between."""
    rng = scene.rng
    late_ms = rng.randrange(1_000, 1_800_001)
    push(scene, click.timestamp_ms + late_ms, click._replace(timestamp_ms=click.timestamp_ms + late_ms))
    if rng.random() < scene.mix.late_clicks_that_matter:
        convert(scene, click.timestamp_ms + rng.randrange(500, late_ms), user, ad)
