"""The canonical answer for one user: whatever the order and the cuts in which its events come, the last rows and the sum of the deltas are the same."""

from collections import Counter
from itertools import accumulate, pairwise
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.attribution.expiry import prune
from app.attribution.merging import Arrived
from app.attribution.settle import credit
from app.attribution.state import Adjustment, Conversion, Touch, UserState, is_younger, pack, unpack, unpack_tied
from app.attribution.users import answer, changes, ids_of, take_in
from app.policy.load import parse_policy

POLICY, _ = parse_policy(
    {
        "keep": ["campaign_id"],
        "window": "1m",
        "order_window": "400s",
        "adjustment_window": "300s",
        "correction_horizon": "200s",
        "merge_reports": "60s",
        "platforms": {
            "meta": {"method": "click_then_view", "windows": {"click": "200s", "view": "60s"}},
            "tiktok": {"method": "view", "windows": {"view": "100s"}},
        },
        "actions": {
            "purchase": {"class": "macro", "intent": "hard", "outcome": "revenue", "count": "every"},
            "signup": {"class": "micro", "intent": "soft", "outcome": "retention", "count": "one", "value": 2},
        },
    }
)
SECOND_MS = 1000
platforms = st.sampled_from(["meta", "tiktok"])
moments = st.integers(0, 60).map(lambda step: step * 10 * SECOND_MS)

touches = st.builds(
    lambda platform, kind, time_ms, number: (platform, Touch(kind, time_ms, f"t{number}", (f"c{number}",))),
    platforms, st.sampled_from(["view", "click"]), moments, st.integers(0, 4),
)  # fmt: skip
conversions = st.builds(
    lambda platform, name, time_ms, number, order, value, currency, is_browser: Conversion(
        f"x{number}", name, platform, time_ms, value, currency, order, {}, {}, is_browser=is_browser
    ),
    st.sampled_from(["", "meta", "tiktok"]), st.sampled_from(["purchase", "signup"]), moments, st.integers(0, 6),
    st.sampled_from([None, None, "o1", "o2"]), st.sampled_from([None, 1_000_000, 7_500_000]), st.sampled_from([None, "USD"]), st.booleans(),
)  # fmt: skip
adjustments = st.builds(
    lambda kind, time_ms, number, order, event, name, currency: Adjustment(
        f"a{number}", "", kind, time_ms, 3_000_000, order, event, ("t", 0, number, 0), None, b"", name, currency=currency
    ),
    st.sampled_from(["retract", "restate"]), moments, st.integers(0, 5), st.sampled_from([None, "o1", "o2"]), st.sampled_from([None, "x1", "x2"]),
    st.sampled_from(["", "", "purchase", "signup"]), st.sampled_from([None, "USD", "EUR"]),
)  # fmt: skip
histories = st.lists(st.one_of(touches, touches, conversions, conversions, adjustments), max_size=14)


def run(batches: list[list[Any]]) -> tuple[dict[bytes, Any], Counter[tuple[Any, ...]], dict[bytes, list[int]]]:
    """Takes the batches in, one step each, as the counter does: where a touch is late all that are stored are offered again, else
    the best ones of each new conversion.
    """
    packed: bytes | None = None
    rows: dict[bytes, Any] = {}
    counts: Counter[tuple[Any, ...]] = Counter()
    revisions: dict[bytes, list[int]] = {}
    stored: list[Any] = []
    for batch in batches:
        state = unpack(packed)
        stored += touches_in(batch)
        arrived = arrived_in(batch)
        latest_ms = max((conversion.time_ms for conversion in state.conversions), default=0)
        is_late = any(touch.time_ms < latest_ms for _, touch in touches_in(batch))
        offered = stored if is_late else best_of(arrived, stored)
        adjusted = adjustments_in(batch)
        if not is_late and not adjusted:
            state = unpack_tied(packed, ids_of(arrived, offered))
        taken = take_in(state, arrived, adjusted, offered, {}, POLICY, 0)
        change = changes("a", "u", state, taken.before, POLICY)
        for key, row in change.rows:
            if row is None:
                rows.pop(key)
            else:
                rows[key] = row.__class__(
                    **{name: getattr(row, name) for name in row.__struct_fields__} | {"revision": 0}
                )
                revisions.setdefault(key, []).append(row.revision)
        for delta in change.deltas:
            counts[(*delta[:6], "conversions")] += delta.conversions
            counts[(*delta[:6], "value")] += delta.value_micros
        packed = pack(state)
    return rows, Counter({key: count for key, count in counts.items() if count}), revisions


def arrived_in(events: list[Any]) -> list[Arrived]:
    """The conversions and their repeats, as copies, since a state keeps what it takes in."""
    found = []
    for event in events:
        if isinstance(event, Conversion | Arrived):
            conversion, is_repeat = event if isinstance(event, Arrived) else Arrived(event)
            copy = unpack(pack(UserState([conversion], []))).conversions[0]
            found.append(Arrived(copy, is_repeat))
    return found


def best_of(arrived: list[Arrived], stored: list[Any]) -> list[Any]:
    """Of stored touches those that the conversions will be credited to."""
    copies = [copy for copy, _ in arrived_in(list(arrived))]
    for copy in copies:
        credit(copy, stored, POLICY)
    return [credited for copy in copies for credited in copy.credits.items()]


def adjustments_in(events: list[Any]) -> list[Adjustment]:
    return [event for event in events if isinstance(event, Adjustment)]


def touches_in(events: list[Any]) -> list[Any]:
    return [event for event in events if type(event) is tuple]


def distinct(history: list[Any]) -> list[Any]:
    """One event an identity, as deduplication leaves them; of conversions the repeats too, as such."""
    known: set[Any] = set()
    found = []
    for item in history:
        key = (item[0], item[1].kind, item[1].event_id) if isinstance(item, tuple) else (type(item), item.identity())
        if key not in known:
            known.add(key)
            found.append(item)
        elif isinstance(item, Conversion):
            found.append(Arrived(item, is_repeat=True))
    return found


def first_before_repeats(events: list[Any]) -> list[Any]:
    """The events in their order, but no repeat before what it repeats."""
    firsts = {event.identity(): event for event in events if isinstance(event, Conversion)}
    found: list[Any] = []
    for event in events:
        first = firsts.pop(event.conversion.identity(), None) if isinstance(event, Arrived) else None
        found += [event] if first is None else [first, event]
        if isinstance(event, Conversion) and firsts.pop(event.identity(), None) is None:
            found.pop()  # it was put before its repeat
    return found


@given(histories, st.randoms(use_true_random=False))
def test_neither_the_order_nor_the_cuts_change_the_answer(history: list[Any], chance: Any) -> None:
    events = distinct(history)
    whole = run([events])
    shuffled = events[:]
    chance.shuffle(shuffled)
    shuffled = first_before_repeats(shuffled)
    cuts = sorted(chance.randint(0, len(shuffled)) for _ in range(3))
    parts = [shuffled[start:end] for start, end in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]
    pieces = run(parts)
    assert pieces[0] == whole[0]
    assert pieces[1] == whole[1]
    for seen in pieces[2].values():
        assert seen == sorted(set(seen)), "a revision went back or stood twice"


@given(histories, st.integers(0, 3000))
def test_what_is_pruned_changes_no_decision_on_what_is_kept(history: list[Any], stream_s: int) -> None:
    state = UserState([], [])
    events = distinct(history)
    take_in(state, arrived_in(events), adjustments_in(events), touches_in(events), {}, POLICY, 0)
    changes("a", "u", state, take_in(UserState([], []), [], [], [], {}, POLICY, 0).before, POLICY)
    whole = unpack(pack(state))
    prune(state, stream_s * SECOND_MS - POLICY.conversion_retention_ms())
    kept = answer(state, POLICY).settlement.decisions
    before = answer(whole, POLICY).settlement.decisions
    assert kept == {key: before[key] for key in kept}


def moved(event: Any, by_ms: int, suffix: str) -> Any:
    """An event at a later time, of another id; but a touch keeps its id, as one that comes again when it was forgotten."""
    if isinstance(event, Arrived):
        return event._replace(conversion=moved(event.conversion, by_ms, suffix))
    if isinstance(event, tuple):
        platform, touch = event
        return platform, msgspec.structs.replace(touch, time_ms=touch.time_ms + by_ms)
    new: dict[str, Any] = {"event_id": event.event_id + suffix, "time_ms": event.time_ms + by_ms}
    if isinstance(event, Adjustment) and event.conversion_event_id:
        new["conversion_event_id"] = event.conversion_event_id + suffix
    return msgspec.structs.replace(event, **new)


def time_of(event: Any) -> int:
    if isinstance(event, tuple):
        return time_of(event[0] if isinstance(event, Arrived) else event[1])
    time_ms: int = event.time_ms
    return time_ms


# Few ids, and mostly what counts one a touch, so that places are taken and come free.
signups = conversions.map(lambda conversion: msgspec.structs.replace(conversion, name="signup", platform="meta"))
clicks = touches.map(lambda placed: ("meta", msgspec.structs.replace(placed[1], kind="click", event_id="t0")))
dense = st.lists(st.one_of(clicks, clicks, signups, signups, touches, conversions, adjustments), max_size=8)


reports = signups.map(lambda signup: msgspec.structs.replace(signup, event_id="x0", time_ms=signup.time_ms // 10))
crowded = st.lists(st.one_of(clicks, signups, signups, reports, conversions, touches), min_size=4, max_size=16)


@given(st.one_of(crowded, crowded, histories), st.lists(st.integers(1, 4), min_size=16, max_size=16))
@settings(max_examples=1000)
def test_a_step_judges_everything_that_new_conversions_concern(history: list[Any], counts: list[int]) -> None:
    events = sorted(distinct(history), key=time_of)  # so no touch is late, and a step leaves out what it can
    ends = [0, *accumulate(counts)]
    pieces = run([events[start:end] for start, end in pairwise(ends)])
    whole = run([events[: ends[-1]]])
    assert pieces[0] == whole[0]
    assert pieces[1] == whole[1]


@given(st.lists(dense, min_size=2, max_size=5), st.lists(st.integers(0, 80), min_size=5, max_size=5))
def test_what_was_let_go_changes_no_decision_on_what_comes_later_however_often_ids_come_again(
    parts: list[list[Any]], gaps: list[int]
) -> None:
    whole, pruned = (UserState([], []) for _ in range(2))
    known: list[tuple[str, Touch]] = []
    end_ms, horizon_ms = 0, POLICY.bounds.correction_horizon_ms
    for at, (part, gap) in enumerate(zip(parts, gaps, strict=False)):
        # what comes is no older than the correction horizon
        by_ms = max(0, end_ms - horizon_ms) + gap * 10 * SECOND_MS
        new = [moved(event, by_ms, f".{at}") for event in distinct(part)]
        known += touches_in(new)
        for state in (whole, pruned):
            copies = unpack(pack(UserState([], adjustments_in(new))))
            take_in(state, arrived_in(new), copies.adjustments, known, {}, POLICY, end_ms - horizon_ms)
        times_ms = [each.conversion.time_ms for each in arrived_in(new)]
        times_ms += [touch.time_ms for _, touch in touches_in(new)] + [each.time_ms for each in adjustments_in(new)]
        end_ms = max([end_ms, *times_ms])
        found, must = (answer(state, POLICY).settlement.decisions for state in (pruned, whole))
        assert found == {key: must[key] for key in found}
        prune(pruned, end_ms - POLICY.conversion_retention_ms())


@given(histories, st.integers(0, 600))
def test_what_is_younger_than_a_time_holds_nothing_that_could_be_let_go(history: list[Any], floor_s: int) -> None:
    floor_ms = floor_s * SECOND_MS
    state = UserState([conversion for conversion, _ in arrived_in(history)], adjustments_in(history))
    oldest_ms = min((conversion.time_ms for conversion in state.conversions), default=floor_ms)
    assert is_younger(pack(state), floor_ms) == (not state.adjustments and oldest_ms >= floor_ms)
    for told in ({"last_order": (17, "c1", "purchase")}, {"forgotten_ms": 0}):
        assert not is_younger(pack(msgspec.structs.replace(state, **told)), 0)
