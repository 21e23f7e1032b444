"""What a `forget` does to one user: docs/counting.md, section 12.

What is held afterwards is a function of what had been accepted and of the time up to which the user is forgotten, never of
how records were cut into batches. Only the counts keep what was settled before.
"""

from msgspec.structs import replace

from app.attribution.settle import Settlement
from app.attribution.state import NO_PATH, Touch, UserState
from app.attribution.users import Answer, Change, Paths, answer, changes, look_back, put_journey
from app.contract import rows
from app.policy.model import Policy


def forgotten_until(state: UserState, until_ms: int) -> int:
    """The time up to which the user is forgotten after a forget of `until_ms` (epoch ms): the largest holds."""
    return max(until_ms, state.forgotten_ms)


def forget(
    advertiser_id: str,
    user_id: str,
    state: UserState,
    until_ms: int,
    touches: list[tuple[str, Touch]],
    paths: Paths,
    policy: Policy,
) -> Change:
    """Removes, in place, everything up to and including `until_ms` (of `forgotten_until`), and judges what is later anew.

    `touches` and `paths`: all that is stored for the conversions that are later, since their credits are found anew. The
    deletions come without deltas, as what was counted stays; they stand before the corrections, since a later conversion
    may have a row of the same key.
    """
    before = answer(state, policy)
    _remove(state, until_ms)
    look_back(state, touches, paths, policy)
    change = changes(advertiser_id, user_id, state, _later(before, until_ms), policy)
    deleted = _deletions(advertiser_id, user_id, before, until_ms, policy)
    return replace(
        change,
        rows=deleted.rows + change.rows,
        journeys=deleted.journeys + change.journeys,
        models=deleted.models + change.models,
    )


def spared(change: Change, until_ms: int) -> Change:
    """A change without the rows that a forget of `until_ms` deletes at once: nobody need read them."""
    return replace(
        change,
        rows=[each for each in change.rows if each[1] is None or each[1].event_time > until_ms],
        journeys=[each for each in change.journeys if each[1] is None or each[1].event_time > until_ms],
        models=[each for each in change.models if each[1] is None or each[1].event_time > until_ms],
    )


def _remove(state: UserState, until_ms: int) -> None:
    state.conversions = [conversion for conversion in state.conversions if conversion.time_ms > until_ms]
    state.adjustments = [adjustment for adjustment in state.adjustments if adjustment.time_ms > until_ms]
    state.last_order, state.forgotten_ms = None, until_ms
    for conversion in state.conversions:
        conversion.credits, conversion.path = {}, NO_PATH
        conversion.reports = [report for report in conversion.reports if report.time_ms > until_ms]


def _later(before: Answer, until_ms: int) -> Answer:
    """Of an answer what is said of conversions later than `until_ms`."""
    decisions = {
        key: decision for key, decision in before.settlement.decisions.items() if decision.conversion.time_ms > until_ms
    }
    journeys = {
        key: journey for key, journey in before.journeys.items() if journey.decision.conversion.time_ms > until_ms
    }
    return Answer(Settlement(decisions, before.settlement.refusals), journeys)


def _deletions(advertiser_id: str, user_id: str, before: Answer, until_ms: int, policy: Policy) -> Change:
    change = Change([], [], [], [], [], [])
    for (name, event_id, platform), decision in before.settlement.decisions.items():
        if decision.conversion.time_ms <= until_ms:
            change.rows.append((rows.attributed_key(advertiser_id, user_id, platform, name, event_id), None))
    for key, journey in before.journeys.items():
        if journey.decision.conversion.time_ms <= until_ms:
            journeys, models = put_journey(advertiser_id, user_id, key, None, journey.is_counted(), policy)
            change.journeys.extend(journeys)
            change.models.extend(models)
    return change
