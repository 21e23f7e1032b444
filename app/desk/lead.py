"""Where one lead stands: a function of its user's conversions and follow-ups, never of their order of arrival. docs/desk.md has
it as a table.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from app.contract.leads import ANSWERED, COOL, HOT, LOST, WAITING, WON, LeadRow, OverdueRow
from app.policy.desk import Desk


class Origin(NamedTuple):
    """Where a conversion came from; shared by all that came from there."""

    platform: str | None
    campaign_id: str | None
    source: str | None
    medium: str | None
    landing_page: str | None


NOWHERE: Final = Origin(None, None, None, None, None)


class Conversion(NamedTuple):
    """What a lead needs of a conversion that is not retracted."""

    time_ms: int
    event_id: str
    action: str
    is_hard: bool
    outcome: str
    origin: Origin


class Closing(NamedTuple):
    """What ends leads: a purchase (`label` is its action) or the CRM's word. `action` None: all leads of the user."""

    time_ms: int
    label: str
    action: str | None


class Known(NamedTuple):
    """All that is known of one user: conversions, `won` and `lost`, and the last `contacted` or `sent` by action (None: of
    any).
    """

    conversions: list[Conversion]
    closings: list[Closing]
    answered_ms: Mapping[str | None, int]


def leads_of(advertiser_id: str, user_id: str, known: Known, orders: Iterable[str], desk: Desk) -> dict[str, LeadRow]:
    """The leads of one user, by action. `orders`: the actions that are purchases. `desk`: what each action is owed, and how long
    a closed lead is kept.
    """
    bought = [Closing(each.time_ms, each.action, None) for each in known.conversions if each.action in orders]
    hard_ms = [each.time_ms for each in known.conversions if each.is_hard]
    by_action: dict[str, list[Conversion]] = defaultdict(list)
    for each in known.conversions:
        if each.action not in orders:
            by_action[each.action].append(each)
    found = {}
    for action, conversions in by_action.items():
        closings = [each for each in known.closings if each.action in (None, action)] + bought
        answered_ms = max((known.answered_ms.get(each, -1) for each in (None, action)), default=-1)
        names = (advertiser_id, user_id, action)
        found[action] = lead_of(names, sorted(conversions), closings, answered_ms, max(hard_ms, default=-1), desk)
    return found


def lead_of(
    names: tuple[str, str, str],
    conversions: list[Conversion],
    closings: list[Closing],
    answered_ms: int,
    hard_ms: int,
    desk: Desk,
) -> LeadRow:
    """One lead: `conversions` of its action, the earliest first, at least one. `answered_ms`, `hard_ms`: when the last follow-up
    and the user's last conversion of hard intent were; -1 for never.

    A closing or follow-up at the very time of a conversion comes after it.
    """
    last_ms = conversions[-1].time_ms
    closed_before_ms = max((each.time_ms for each in closings if each.time_ms < last_ms), default=-1)
    since = [each for each in conversions if each.time_ms > closed_before_ms]
    opening = since[0]
    closing = _closing(closings, last_ms, desk.closed_kept_ms)
    waiting_ms = next((each.time_ms for each in since if each.time_ms > answered_ms), None)
    state = (LOST if closing.label == LOST else WON) if closing else ANSWERED if waiting_ms is None else WAITING
    rule = desk.follow_ups.get(names[2])
    return LeadRow(
        *names,
        state=state,
        temperature=HOT if hard_ms >= opening.time_ms else COOL,
        outcome=opening.outcome,
        opened_time=opening.time_ms,
        opened_by=opening.event_id,
        conversions=len(since),
        last_time=last_ms,
        follow_up=rule.what if rule else None,
        waiting_since=waiting_ms if state == WAITING else None,
        due_time=waiting_ms + rule.within_ms if rule and waiting_ms is not None and state == WAITING else None,
        answered_time=answered_ms if answered_ms >= opening.time_ms else None,
        closed_time=closing.time_ms if closing else None,
        closed_by=closing.label if closing else None,
        **opening.origin._asdict(),
    )


def _closing(closings: list[Closing], last_ms: int, kept_ms: int) -> Closing | None:
    """What closed a lead whose last conversion was then: the first purchase or `won` since, else the first `lost`. One that was
    lost is let go after `kept_ms`, so that it cannot be won any more.
    """
    since = [each for each in closings if each.time_ms >= last_ms]
    lost, won = (
        min((each for each in since if (each.label == LOST) is is_lost), key=lambda each: each[:2], default=None)
        for is_lost in (True, False)
    )
    if lost is not None and (won is None or won.time_ms > lost.time_ms + kept_ms):
        return lost
    return won


def is_let_go(lead: LeadRow, now_ms: int, kept_ms: int) -> bool:
    """Whether it has been closed for so long that it is no row any more."""
    return lead.closed_time is not None and lead.closed_time + kept_ms < now_ms


def overdue_of(lead: LeadRow) -> OverdueRow:
    """The row of a lead whose due time has passed."""
    assert lead.follow_up is not None
    assert lead.waiting_since is not None
    assert lead.due_time is not None
    shared = {name: getattr(lead, name) for name in OverdueRow.__struct_fields__}
    return OverdueRow(**shared)
