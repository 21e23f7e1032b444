"""Conversions and what comes with them: page views before, second reports of one order, retractions and restatements."""

from app.generate.scene import Generated, Scene, named, new_id, push, record_of, time_text, trouble

UNKNOWN_ACTION = "scrolled_far"  # in no catalogue: noise


def start_conversion(scene: Scene, now_ms: int, user: int, ad: int) -> None:
    """Schedules what leads to one conversion, the first record of it now: mostly of somebody who was touched lately."""
    rng, mix = scene.rng, scene.mix
    if scene.recent and rng.random() < mix.after_touch:
        user, ad = rng.choice(scene.recent)
    at_ms = now_ms
    if rng.random() < mix.visited_before:
        for _ in range(rng.randint(1, 3)):
            push(scene, at_ms, visit(scene, user, ad, at_ms))
            at_ms += rng.randrange(2_000, 30_000)
    convert(scene, at_ms, user, ad)


def visit(scene: Scene, user: int, ad: int, sent_ms: int) -> Generated:
    """A page view on the site of the ad's advertiser."""
    world = scene.world
    time_ms = sent_ms - scene.rng.randrange(500)
    time = time_text(scene, time_ms)
    json = (
        f'{{"event_id":"{new_id(scene)}","event_type":"visit","event_time":{time},"user_id":"{world.users[user]}"'
        f',"advertiser_id":"{world.advertisers[world.ads[ad].advertiser]}",{scene.rng.choice(world.pages)}}}'
    )
    return trouble(scene, record_of(scene, user, json, sent_ms, "visit"), time, time_ms)


def convert(scene: Scene, at_ms: int, user: int, ad: int) -> None:
    """Schedules one conversion for `at_ms` (epoch ms): an order with all that may follow, or a plain step."""
    rng, mix, world = scene.rng, scene.mix, scene.world
    if rng.random() < mix.unknown_actions:
        report(scene, at_ms, at_ms, user, ad, UNKNOWN_ACTION, world.ads[ad].platform, "", "unknown_action")
        return
    action = rng.choices(world.actions, cum_weights=world.action_weights)[0]
    platform = None if rng.random() < mix.without_platform else world.ads[ad].platform
    kind = "conversion" if platform else "conversion_without_platform"
    if action in world.orders:
        _order(scene, at_ms, user, ad, action, platform, kind)
    else:
        report(scene, at_ms, at_ms, user, ad, action, platform, "", kind)


def report(
    scene: Scene,
    due_ms: int,
    time_ms: int,
    user: int,
    ad: int,
    action: str,
    platform: str | None,
    details: str,
    kind: str,
    event_id: str = "",
) -> str:
    """Schedules one report of a conversion, sent at `due_ms`, about `time_ms`; returns its event_id, a new one if none is
    given. `details`: further JSON members.
    """
    world = scene.world
    event_id = event_id or new_id(scene)
    time = time_text(scene, time_ms)
    on = f',"platform":"{platform}"' if platform else ""
    who, is_userless = named(scene, user, ad, platform)
    json = (
        f'{{"event_id":"{event_id}","event_type":"conversion","event_time":{time},{who}'
        f',"advertiser_id":"{world.advertisers[world.ads[ad].advertiser]}"{on},"conversion_name":"{action}"{details}}}'
    )
    push(scene, due_ms, trouble(scene, record_of(scene, user, json, due_ms, kind, is_userless), time, time_ms))
    return event_id


def _order(scene: Scene, at_ms: int, user: int, ad: int, action: str, platform: str | None, kind: str) -> None:
    """Schedules the reports of one order: the pixel's, perhaps the server's and another platform's, perhaps
    adjustments.
    """
    rng, mix, world = scene.rng, scene.mix, scene.world
    order_id = f"o-{new_id(scene)}"
    if rng.random() < mix.reused_order_ids and scene.last_order_id:
        order_id, kind = scene.last_order_id, "reused_order_id"
    elif rng.random() < mix.empty_order_ids:
        order_id, kind = "", "empty_order_id"
    scene.last_order_id = order_id or scene.last_order_id
    value = rng.randrange(500, 40_000) / 100
    details = f',"value":{value},"currency":"USD","order_id":"{order_id}"'
    adjusted = rng.random() < mix.adjustments
    early = adjusted and rng.random() < mix.adjustments_early
    # An adjustment can only come first if the conversion's report is held up on its way.
    due_ms = at_ms + rng.randrange(40_000, 90_000) if early else at_ms
    if not adjusted and rng.random() < mix.shared_reports:
        pages = f',"value":{value},"currency":"USD","reported_by":"browser"'
        event_id = report(scene, due_ms, at_ms, user, ad, action, platform, pages, "page_report")
        apart_ms = rng.randrange(1_000, 60_001)
        sent_ms, time_ms = due_ms + apart_ms, at_ms + apart_ms
        report(scene, sent_ms, time_ms, user, ad, action, platform, details, kind, event_id)
    else:
        event_id = report(scene, due_ms, at_ms, user, ad, action, platform, details, kind)
    if rng.random() < mix.second_reports:
        # The server does not know the value of the discount, so every fifth time it reports a little more.
        other = details if rng.random() < 0.8 else details.replace(f'"value":{value}', f'"value":{value + 5:.2f}')
        apart_ms = rng.randrange(1_000, 60_001)
        report(scene, due_ms + apart_ms, at_ms + apart_ms, user, ad, action, platform, other, "second_report")
    if rng.random() < mix.other_platform_reports and len(world.platforms) > 1:
        rival = rng.choice([name for name in world.platforms if name != platform])
        apart_ms = rng.randrange(1_000, 60_001)
        report(scene, due_ms + apart_ms, at_ms + apart_ms, user, ad, action, rival, details, "other_platform_report")
    if adjusted:
        _adjust(scene, at_ms, early, user, ad, order_id, event_id)


def _adjust(scene: Scene, order_ms: int, early: bool, user: int, ad: int, order_id: str, event_id: str) -> None:
    """Schedules an adjustment of the order of `order_ms` (epoch ms), and perhaps another one of the same kind."""
    rng, mix = scene.rng, scene.mix
    retracted = rng.random() < 0.5
    what = '"retract"' if retracted else f'"restate","value":{rng.randrange(100, 30_000) / 100}'
    which = f'"order_id":"{order_id}"' if order_id and rng.random() < 0.5 else f'"conversion_event_id":"{event_id}"'
    kind = "retract" if retracted else "restate"
    due_ms = time_ms = order_ms + rng.randrange(1_000, 39_000 if early else 600_000)
    if early:
        kind = "early_adjustment"
    elif rng.random() < mix.adjustments_preceding:
        time_ms, kind = order_ms - rng.randrange(1_000, 60_000), "preceding_adjustment"
    _push_adjustment(scene, due_ms, time_ms, user, ad, f'"adjustment":{what},{which}', kind)
    if rng.random() < mix.adjustments_twice:
        later_ms = rng.randrange(1_000, 120_000)
        members = f'"adjustment":{what},{which}'
        _push_adjustment(scene, due_ms + later_ms, time_ms + later_ms, user, ad, members, "second_adjustment")


def _push_adjustment(scene: Scene, due_ms: int, time_ms: int, user: int, ad: int, members: str, kind: str) -> None:
    world = scene.world
    time = time_text(scene, time_ms)
    who, is_userless = named(scene, user, ad, None)
    json = (
        f'{{"event_id":"{new_id(scene)}","event_type":"adjustment","event_time":{time},{who}'
        f',"advertiser_id":"{world.advertisers[world.ads[ad].advertiser]}",{members}}}'
    )
    push(scene, due_ms, trouble(scene, record_of(scene, user, json, due_ms, kind, is_userless), time, time_ms))
