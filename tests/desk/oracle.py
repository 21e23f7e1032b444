"""What the desk must say, computed slowly and in another way than it does: leads step by step in the order of time, rollups by
summing everything anew.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from app.contract.journeys import JourneyRow
from app.contract.rows import CountRow
from app.policy.desk import Desk

Row = dict[str, Any]


class Told(NamedTuple):
    """A follow-up as a CRM sent it."""

    kind: str
    time_ms: int
    advertiser_id: str
    user_id: str
    action: str | None


def leads(
    journeys: Iterable[JourneyRow], told: Iterable[Told], desk: Desk, orders: Iterable[str]
) -> dict[tuple[str, str, str], Row]:
    """The latest journeys and all follow-ups, as lead rows by (advertiser, user, action)."""
    steps: dict[tuple[str, str], list[tuple[int, int, str, Any]]] = defaultdict(list)
    for row in journeys:
        if row.status != "retracted":
            order = 2 if row.conversion_name in orders else 0
            who = (row.advertiser_id, row.user_id)
            steps[who].append((row.event_time, order, row.event_id, row))
            if row.intent == "hard":
                steps[who].append((row.event_time, 1, row.event_id, "heat"))
    for each in told:
        steps[each.advertiser_id, each.user_id].append((each.time_ms, 2, "", each))
    found = {}
    for who, todo in steps.items():
        open_leads: dict[str, Row] = {}
        for _, _, _, step in sorted(todo, key=lambda each: each[:3]):
            if step == "heat":
                for lead in open_leads.values():
                    lead["temperature"] = "hot"
            elif isinstance(step, Told):
                for action, lead in open_leads.items():
                    if step.action in (None, action):
                        follow_up(lead, step, desk)
            elif step.conversion_name in orders:
                for lead in open_leads.values():
                    close(lead, "won", step.event_time, step.conversion_name, desk)
            else:
                convert(open_leads, step, desk)
        found |= {(*who, action): lead for action, lead in open_leads.items()}
    return found


def convert(open_leads: dict[str, Row], row: JourneyRow, desk: Desk) -> None:
    lead = open_leads.get(row.conversion_name)
    rule = desk.follow_ups.get(row.conversion_name)
    # a closing at the very time of a conversion comes after it, so this conversion is later than the closing
    if lead is None or lead["closed_time"] is not None:
        touch = row.credited or row.first_touch
        names = ("platform", "campaign_id", "source", "medium", "landing_page")
        lead = open_leads[row.conversion_name] = {
            "advertiser_id": row.advertiser_id,
            "user_id": row.user_id,
            "conversion_name": row.conversion_name,
            "temperature": "cool",
            "outcome": row.outcome,
            "opened_time": row.event_time,
            "opened_by": row.event_id,
            "conversions": 0,
            "follow_up": rule.what if rule else None,
            "waiting_since": None,
            "due_time": None,
            "answered_time": None,
            "closed_time": None,
            "closed_by": None,
        } | {name: getattr(touch, name) if touch else None for name in names}
    lead["conversions"] += 1
    lead["last_time"] = row.event_time
    if lead["waiting_since"] is None:
        lead["state"] = "waiting"
        lead["waiting_since"] = row.event_time
        lead["due_time"] = row.event_time + rule.within_ms if rule else None


def follow_up(lead: Row, told: Told, desk: Desk) -> None:
    if told.kind in ("won", "lost"):
        close(lead, told.kind, told.time_ms, told.kind, desk)
        return
    lead["answered_time"] = told.time_ms
    if lead["state"] == "waiting":
        lead.update(state="answered", waiting_since=None, due_time=None)


def close(lead: Row, state: str, time_ms: int, label: str, desk: Desk) -> None:
    if lead["closed_time"] is not None and time_ms > lead["closed_time"] + desk.closed_kept_ms:
        return  # it was let go by then
    closed = (lead["state"] == "won", lead["closed_time"], lead["closed_by"])
    if (
        lead["closed_time"] is None
        or (state == "won" and not closed[0])
        or (lead["state"] == state and (time_ms, label) < closed[1:])
    ):
        lead.update(state=state, closed_time=time_ms, closed_by=label, waiting_since=None, due_time=None)


def kept(found: dict[tuple[str, str, str], Row], desk: Desk, now_ms: int) -> dict[tuple[str, str, str], Row]:
    """Those that are not closed for so long that they are let go."""
    return {
        key: lead
        for key, lead in found.items()
        if lead["closed_time"] is None or now_ms - lead["closed_time"] <= desk.closed_kept_ms
    }


def overdue(found: dict[tuple[str, str, str], Row], now_ms: int) -> dict[tuple[str, str, str], Row]:
    """Those that have waited for longer than they may."""
    left_out = (
        "state",
        "opened_time",
        "opened_by",
        "conversions",
        "last_time",
        "answered_time",
        "closed_time",
        "closed_by",
    )
    return {
        key: {name: value for name, value in lead.items() if name not in left_out}
        for key, lead in found.items()
        if lead["due_time"] is not None and lead["due_time"] < now_ms
    }


def rollups(
    placed: Iterable[tuple[int, CountRow]], desk: Desk, held_ms: int, partitions: int
) -> dict[tuple[Any, ...], Row]:
    """The latest counts, each with its partition, summed anew by period and dimensions, of the periods that the desk still answers
    for.
    """
    placed = list(placed)
    rows = [row for _, row in placed]
    final_ms = min(
        max((row.window_end for at, row in placed if at == partition and row.final), default=0)
        for partition in range(partitions)
    )
    horizon_ms = max((final_ms - held_ms) // 3_600_000 * 3_600_000, 0)
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        zone = ZoneInfo(desk.time_zones.get(row.advertiser_id, "UTC"))
        for kind, label, begin, end, name in periods(row.window_start, zone):
            if begin < horizon_ms or row.window_start < horizon_ms:
                continue
            key = (
                kind,
                begin,
                row.platform,
                row.advertiser_id,
                *row.dimensions.values(),
                row.conversion_name,
                row.currency,
            )
            total = found.setdefault(
                key,
                {
                    "period": kind, "label": label, "period_start": begin, "period_end": end, "time_zone": name,
                    "platform": row.platform, "advertiser_id": row.advertiser_id, "dimensions": row.dimensions,
                    "conversion_name": row.conversion_name, "currency": row.currency, "views": 0, "engaged_views": 0,
                    "clicks": 0, "conversions": 0, "value": 0, "cost": 0, "final": end <= final_ms, "scope": row.scope,
                },
            )  # fmt: skip
            for measure in ("views", "engaged_views", "clicks", "conversions"):
                total[measure] += getattr(row, measure)
            for measure in ("value", "cost"):
                total[measure] += round(getattr(row, measure) * 1_000_000)
            total["final"] = total["final"] and row.final
    for total in found.values():
        total["value"], total["cost"] = total["value"] / 1_000_000, total["cost"] / 1_000_000
    return found


def periods(time_ms: int, zone: ZoneInfo) -> list[tuple[str, str, int, int, str]]:
    """By walking back hour by quarter from the moment until the date changes, as a person with a calendar would."""
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    hour = moment.replace(minute=0, second=0, microsecond=0)
    local = moment.astimezone(zone).date()
    year, week, weekday = local.isocalendar()
    day = (edge(moment, zone, local, -1), edge(moment, zone, local, 1))
    monday = edge(moment - timedelta(days=weekday - 1), zone, local - timedelta(days=weekday - 1), -1)
    sunday = edge(moment + timedelta(days=7 - weekday), zone, local + timedelta(days=7 - weekday), 1)
    return [
        ("hour", hour.strftime("%Y-%m-%dT%HZ"), ms(hour), ms(hour + timedelta(hours=1)), "UTC"),
        ("day", local.isoformat(), *day, zone.key),
        ("week", f"{year}-W{week:02d}", monday, sunday, zone.key),
    ]


def edge(moment: datetime, zone: ZoneInfo, day: Any, step: int) -> int:
    """The first moment of a local day (step -1), or the first after it (1); `moment` is within two hours of it or in it."""
    quarter = timedelta(minutes=15)
    moment = moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)
    while moment.astimezone(zone).date() != day:  # where clocks changed since
        moment += quarter if moment.astimezone(zone).date() < day else -quarter
    while moment.astimezone(zone).date() == day:
        moment += step * quarter
    return ms(moment + quarter if step < 0 else moment)


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
