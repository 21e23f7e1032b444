"""One user's step: take in what is new, settle before and after, and say what changed.

The difference is what leaves onecount: a row with a higher revision for each decision that changed, a deletion for one
that no longer stands, and negative and positive deltas for the counts.
"""

from typing import Any, Final, NamedTuple

import msgspec

from app.attribution.journeys import Journey, Key, follow, journey_row, model_rows
from app.attribution.merging import Arrived, merged, take_in_order
from app.attribution.settle import Decision, Settlement, credit, settle
from app.attribution.state import NEVER_MS, Adjustment, Conversion, Path, Touch, UserState
from app.contract import rows
from app.contract.events import MICROS
from app.contract.journeys import JourneyRow, ModelRow, journey_key, model_key
from app.contract.rows import AttributedRow
from app.policy.model import Policy


class CountDelta(NamedTuple):
    """A change of one count row's conversions and value (millionths); added up by the aggregator."""

    window_start: int
    platform: str
    advertiser_id: str
    dimensions: tuple[str | None, ...]
    conversion_name: str
    currency: str
    conversions: int
    value_micros: int


class Change(msgspec.Struct, frozen=True, gc=False):
    """What one step of one user means for the outputs: upserts by key (None deletes), deltas, and adjustments refused
    with a reason.
    """

    rows: list[tuple[bytes, AttributedRow | None]]
    journeys: list[tuple[bytes, JourneyRow | None]]
    models: list[tuple[bytes, ModelRow | None]]
    deltas: list[CountDelta]
    refused: list[tuple[Adjustment, str]]
    corrected: list[str]  # the platform of each decision that was published before


Paths = dict[tuple[str, str, str], Path]  # by a conversion's identity


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a user's state says: what each platform makes of it, and the orders over all platforms."""

    settlement: Settlement
    journeys: dict[Key, Journey]


NO_ANSWER: Final = Answer(Settlement({}, {}), {})  # of whom no conversion is held; never changed


def answer(state: UserState, policy: Policy) -> Answer:
    """The canonical answer for one user."""
    if not state.conversions:
        return NO_ANSWER
    judged = msgspec.structs.replace(state, conversions=merged(state.conversions, policy))
    settlement = settle(judged.conversions, state.adjustments, policy)
    return Answer(settlement, follow(judged, settlement, policy))


class Taken(msgspec.Struct, frozen=True, gc=False):
    """The answer as it was before, how many of the new events were held already, how many are of before the time up to which the
    person was forgotten, and of which reports something was kept: whether a browser made each.
    """

    before: Answer
    repeats: int
    forgotten: int
    merged: list[bool]


def ids_of(arrived: list[Arrived], touches: list[tuple[str, Touch]]) -> set[str]:
    """The ids by which conversions that come may be judged together with those that are held. `touches`: those that they may be
    credited to.
    """
    ids = {touch.event_id for _, touch in touches}
    for conversion, _ in arrived:
        ids.update(conversion.shared_ids())
    return ids


def take_in(
    state: UserState,
    arrived: list[Arrived],
    adjustments: list[Adjustment],
    touches: list[tuple[str, Touch]],
    paths: Paths,
    policy: Policy,
    since_ms: int,
) -> Taken:
    """Adds what is new to `state` in place; conversions in the order in which they came. `paths`: of the conversions that a new
    touch or visit may stand before, which are those of `since_ms` (epoch ms) and later.
    """
    before, forgotten = answer(state, policy), 0
    if state.forgotten_ms != NEVER_MS:
        came = _accepted(arrived, adjustments)
        arrived = [each for each in arrived if each.conversion.time_ms > state.forgotten_ms]
        adjustments = [adjustment for adjustment in adjustments if adjustment.time_ms > state.forgotten_ms]
        forgotten = came - _accepted(arrived, adjustments)
    repeats, merged_by = take_in_order(state.conversions, arrived, policy)
    if adjustments:
        repeats += _add_adjustments(state.adjustments, adjustments)
    look_back(state, touches, paths, policy, since_ms)
    return Taken(before, repeats, forgotten, merged_by)


def _accepted(arrived: list[Arrived], adjustments: list[Adjustment]) -> int:
    """How many events are not repeats."""
    return sum(not is_repeat for _, is_repeat in arrived) + len(adjustments)


def _add_adjustments(held: list[Adjustment], new: list[Adjustment]) -> int:
    """Appends what is not held yet; how many were."""
    known = {adjustment.identity() for adjustment in held}
    repeats = 0
    for adjustment in new:
        if adjustment.identity() in known:
            repeats += 1
        else:
            known.add(adjustment.identity())
            held.append(adjustment)
    return repeats


def look_back(
    state: UserState, touches: list[tuple[str, Touch]], paths: Paths, policy: Policy, since_ms: int = 0
) -> None:
    """Credits the conversions that are held, those of `since_ms` (epoch ms) and later, and puts them on their paths."""
    known = [(platform, touch) for platform, touch in touches if touch.time_ms > state.forgotten_ms]
    for conversion in state.conversions:
        if conversion.time_ms >= since_ms:
            credit(conversion, known, policy)
        if paths:
            conversion.path = paths.get(conversion.identity(), conversion.path)


def changes(advertiser_id: str, user_id: str, state: UserState, before: Answer, policy: Policy) -> Change:
    """What differs between the answer `before` and the state now; raises the revision of each row that changes."""
    now = answer(state, policy)
    after = now.settlement
    change = Change([], [], [], [], [], [])
    revisions = _Revisions(state)
    for key, decision in after.decisions.items():
        old = before.settlement.decisions.get(key)
        if old is not None and _content(old) == _content(decision):
            continue
        platform, conversion = key[2], decision.conversion
        revision = revisions.raise_for(key, conversion)
        if old is not None:
            change.corrected.append(platform)
        row_key = rows.attributed_key(advertiser_id, user_id, platform, conversion.name, conversion.event_id)
        change.rows.append((row_key, attributed_row(advertiser_id, user_id, platform, decision, revision, policy)))
        change.deltas.extend(_deltas(advertiser_id, platform, old, decision, policy))
    for key, old in before.settlement.decisions.items():
        if key not in after.decisions:
            name, event_id, platform = key
            change.corrected.append(platform)
            change.rows.append((rows.attributed_key(advertiser_id, user_id, platform, name, event_id), None))
            change.deltas.extend(_deltas(advertiser_id, platform, old, None, policy))
    for adjustment in state.adjustments if after.refusals else ():
        reason = after.refusals.get(adjustment.identity())
        if reason is not None and not adjustment.is_refused:
            adjustment.is_refused = True
            change.refused.append((adjustment, reason))
    if policy.bounds.journeys is not None:
        _journey_changes(advertiser_id, user_id, before.journeys, now.journeys, revisions, policy, change)
    return change


def _journey_changes(
    advertiser_id: str,
    user_id: str,
    before: dict[Key, Journey],
    after: dict[Key, Journey],
    revisions: "_Revisions",
    policy: Policy,
    change: Change,
) -> None:
    for key in (*after, *(key for key in before if key not in after)):
        old, new = before.get(key), after.get(key)
        if old is not None and new is not None and old.content() == new.content():
            continue
        row = None
        if new is not None:
            revision = revisions.raise_for((*key, rows.ALL), new.decision.conversion)
            row = journey_row(advertiser_id, user_id, new, revision, policy)
        was_counted = old is not None and old.is_counted()
        journeys, models = put_journey(advertiser_id, user_id, key, row, was_counted, policy)
        change.journeys.extend(journeys)
        change.models.extend(models)
        change.deltas.extend(
            _deltas(advertiser_id, rows.ALL, old and old.decision, new.decision if new else None, policy)
        )


def put_journey(
    advertiser_id: str, user_id: str, key: Key, row: JourneyRow | None, was_counted: bool, policy: Policy
) -> tuple[list[tuple[bytes, JourneyRow | None]], list[tuple[bytes, ModelRow | None]]]:
    """An order's new row (None deletes) and those of its models, or their deletions where it was counted before."""
    rules = policy.bounds.journeys
    assert rules is not None
    models: list[tuple[bytes, ModelRow | None]] = []
    if row is not None and row.conversions:
        models = [(model_key(advertiser_id, user_id, *key, each.model), each) for each in model_rows(row, rules)]
    elif was_counted:
        models = [(model_key(advertiser_id, user_id, *key, model), None) for model in rules.models]
    return [(journey_key(advertiser_id, user_id, *key), row)], models


class _Revisions:
    """The last revision of each row of a user. An event sent with and without its platform is two conversions with one
    row.
    """

    def __init__(self, state: UserState) -> None:
        self._last: dict[tuple[str, str, str], int] = {}
        for conversion in state.conversions:
            for platform, revision in conversion.revisions.items():
                key = conversion.name, conversion.event_id, platform
                self._last[key] = max(revision, self._last.get(key, 0))

    def raise_for(self, key: tuple[str, str, str], conversion: Conversion) -> int:
        """The row's next revision, kept with the conversion that it shows now."""
        conversion.revisions[key[2]] = revision = self._last.get(key, 0) + 1
        return revision


def _content(decision: Decision) -> tuple[Any, ...]:
    """What of a decision its row shows."""
    conversion = decision.conversion
    judged = decision.status, decision.value_micros, decision.touch, decision.duplicate_of, decision.version.number
    return (*judged, conversion.time_ms, conversion.currency, conversion.order_id)


def _deltas(
    advertiser_id: str,
    platform: str,
    old: Decision | None,
    new: Decision | None,
    policy: Policy,
) -> list[CountDelta]:
    taken = _delta(advertiser_id, platform, old, -1, policy)
    given = _delta(advertiser_id, platform, new, 1, policy)
    if taken and given and taken[:6] == given[:6] and not taken.value_micros + given.value_micros:
        return []  # a row may change that says more than what is counted
    return [delta for delta in (taken, given) if delta]


def _delta(advertiser: str, platform: str, decision: Decision | None, sign: int, policy: Policy) -> CountDelta | None:
    """What a decision is in the counts, with its sign; None where it is in none."""
    if decision is None or decision.status != rows.COUNTED or decision.touch is None:
        return None
    conversion, window_ms = decision.conversion, policy.bounds.window_ms
    return CountDelta(
        conversion.time_ms // window_ms * window_ms,
        platform,
        advertiser,
        policy.dimensions(decision.touch.attributes),
        conversion.name,
        conversion.currency or "",
        sign,
        sign * decision.value_micros,
    )


def attributed_row(
    advertiser_id: str,
    user_id: str,
    platform: str,
    decision: Decision,
    revision: int,
    policy: Policy,
) -> AttributedRow:
    """The row that publishes a decision."""
    conversion, version, touch = decision.conversion, decision.version, decision.touch
    action = version.actions[conversion.name]
    rule = version.platforms.get(platform)
    # by place, as naming 29 fields takes as long as all the rest of it
    return AttributedRow(
        advertiser_id,
        user_id,
        platform,
        conversion.name,
        conversion.event_id,
        conversion.time_ms,
        conversion.order_id,
        decision.status,
        int(decision.status == rows.COUNTED),
        decision.value_micros / MICROS,
        conversion.currency,
        action.action_class,
        action.intent,
        action.outcome or "",
        rule.method if rule else "",
        version.number,
        decision.duplicate_of,
        touch.kind if touch else None,
        touch.event_id if touch else None,
        touch.time_ms if touch else None,
        conversion.time_ms - touch.time_ms if touch else None,
        *policy.shown(touch.attributes if touch else None),
        revision,
    )
