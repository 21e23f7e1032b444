"""What the desk's rows about money must be, computed slowly from all records at once: each number of each row by going through
everything once more. Shares no line with app/desk.
"""

import base64
import json
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from app.desk.fold import Input
from app.settings import Settings

NAMES = Settings()
ZONES = {"shop": "Europe/Berlin", "far": "Asia/Kolkata"}
TOLERANCES = {"meta": Fraction(1, 10)}
COST_CURRENCIES = {"shop": "EUR"}
PAID = "purchase"
ACTIONS = {"purchase", "signup"}
PLATFORMS = {"meta", "google_ads"}
KINDS = {"meta": {"click", "view"}, "google_ads": {"click"}}  # what each one's method credits
LEVELS = {
    "source": ("source", False),
    "campaign": ("campaign_id", True),
    "creative": ("creative_id", False),
    "landing_page": ("landing_page", False),
    "offer": ("offer_id", False),
}
Row = dict[str, Any]
Rows = dict[bytes, Row]


def held(records: Iterable[Input], topic: str) -> list[Row]:
    """The values of a topic that hold: of each key the one with the largest offset."""
    last: dict[bytes | None, Input] = {}
    for each in records:
        if each.topic == topic and each.offset > getattr(last.get(each.key), "offset", -1):
            last[each.key] = each
    return [row for each in last.values() if (row := decoded(each.value)) is not None and is_sound(row)]


def decoded(value: bytes | None) -> Row | None:
    """A JSON object; None for anything else."""
    try:
        found = json.loads(value or b"")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def is_sound(row: Row) -> bool:
    """Whether a record is none that a test broke on purpose, and no order of which more was paid back than paid."""
    if row.get("refunded") and row["refunded"] > row["paid"]:
        return False
    return not row.get("broken") and row.get("platform", "meta") in {*PLATFORMS, "", "all"}


def day_of(advertiser: str, time_ms: int) -> date:
    """The advertiser's day of a moment."""
    return datetime.fromtimestamp(time_ms / 1000, ZoneInfo(ZONES.get(advertiser, "UTC"))).date()


def week_of(day: date) -> str:
    """Its ISO week."""
    return "{}-W{:02}".format(*day.isocalendar())


def week_days(week: str) -> tuple[date, date]:
    """The Monday and the Sunday of an ISO week."""
    first = date.fromisocalendar(int(week[:4]), int(week[6:]), 1)
    return first, first + timedelta(days=6)


def amount(value: float | None) -> Fraction:
    """As a person reads it off the page."""
    return Fraction(str(value or 0))


# --- Reconciliation


class World:
    """All conversions, orders, claims and refusals, each with its day."""

    def __init__(self, records: list[Input]) -> None:
        names = NAMES
        self.claims = held(records, names.attributed_topic)
        self.truths = held(records, names.journeys_topic)
        self.orders = held(records, names.orders_topic)
        self.reports = held(records, names.reported_topic)
        for row in (*self.claims, *self.truths):
            row["day"] = day_of(row["advertiser_id"], row["event_time"])
        for row in self.truths:
            credited = row["credited"] or {}
            row["platform"], row["campaign_id"] = credited.get("platform") or "", credited.get("campaign_id")
        for row in self.reports:
            row["day"] = date.fromisoformat(row["day"])
        self.outside = self.find_outside()
        self.refused = self.find_refused(records, names.dlq_topic)
        for row in self.orders:
            self.place(row)

    def find_outside(self) -> list[Row]:
        """Who had a touch of a platform that was too old for it: notes it with its claims, and gives the others."""
        found = []
        for truth in self.truths:
            touch = truth["first_touch"]
            platform = touch["platform"] if touch else None
            if not touch or touch["touch_type"] not in KINDS[platform]:
                continue
            if platform in {each["platform"] for each in truth["touches"]}:
                continue
            own = [each for each in self.claims if each["platform"] == platform and is_one_order(each, truth)]
            for claim in own:
                if claim["status"] == "unattributed" and truth["event_time"] <= claim["event_time"]:
                    claim["why"] = "outside_window"
            if not own:
                found.append({**truth, "platform": platform, "campaign_id": None, "cause": "outside_window"})
        return found

    def find_refused(self, records: list[Input], topic: str) -> list[Row]:
        """Conversions that were refused and accepted nowhere, each once."""
        seen: dict[tuple[str, ...], Row] = {}
        letters = {(each.partition, each.offset): each for each in records if each.topic == topic}
        for each in letters.values():
            letter = decoded(each.value)
            event = decoded(base64.b64decode(letter["value_base64"])) if letter else None
            if not event or event["event_type"] != "conversion" or event["conversion_name"] not in ACTIONS:
                continue
            ids = ("advertiser_id", "user_id", "conversion_name", "event_id")
            event["order_id"] = event.get("order_id") or ""
            if any(
                all(claim[name] == event[name] for name in ids) and (claim["order_id"] or "") == event["order_id"]
                for claim in self.claims
            ):
                continue
            event["day"] = day_of(event["advertiser_id"], event["event_time"])
            event["cause"] = "late" if letter["reason"] in ("too_old", "beyond_correction_horizon") else "refused"
            event["platform"] = event.get("platform") if event.get("platform") in PLATFORMS else ""
            name = (*(event[name] for name in ids), event["platform"], event["order_id"])
            if name not in seen or (event["day"], event["cause"] == "late") < (
                seen[name]["day"],
                seen[name]["cause"] == "late",
            ):
                seen[name] = event
        return list(seen.values())

    def place(self, order: Row) -> None:
        """Finds out whose order it is, and where its money belongs."""
        own = [
            each
            for each in (*self.truths, *self.claims)
            if each["advertiser_id"] == order["advertiser_id"]
            and each["order_id"] == order["order_id"]
            and each["conversion_name"] == PAID
        ]
        mine = [each for each in own if each["user_id"] == order.get("user_id")] or own
        order["owner"] = min(mine, key=lambda each: (each["event_time"], each["user_id"]))["user_id"] if mine else None
        of_owner = [each for each in own if each["user_id"] == order["owner"]]
        truths = [each for each in of_owner if "counted_by" in each] or of_owner
        order["platform"], order["campaign_id"] = "", None
        order["day"] = day_of(order["advertiser_id"], order["time"])
        if truths:
            first = min(truths, key=lambda each: (each["event_time"], each["event_id"], each["platform"]))
            order["day"] = first["day"]
            if "counted_by" in first:
                order["platform"], order["campaign_id"] = first["platform"], first["campaign_id"]

    def order_of(self, row: Row) -> Row | None:
        """The order that a conversion was paid by."""
        return next(
            (
                each
                for each in self.orders
                if each["advertiser_id"] == row["advertiser_id"]
                and each["order_id"] == row["order_id"]
                and each["owner"] == row["user_id"]
                and row["conversion_name"] == PAID
            ),
            None,
        )

    def reach(self, advertiser: str, platform: str) -> tuple[date, date] | None:
        """The first and the last day that the platform reports."""
        days = [
            each["day"] for each in self.reports if (each["advertiser_id"], each["platform"]) == (advertiser, platform)
        ]
        return (min(days), max(days)) if days else None

    def order_days(self, advertiser: str) -> tuple[date, date] | None:
        """The first and the last day of an order, by its own time."""
        days = [day_of(advertiser, each["time"]) for each in self.orders if each["advertiser_id"] == advertiser]
        return (min(days), max(days)) if days else None


def reconciliation(records: list[Input]) -> Rows:
    """Every row of `conversions.reconciliation`."""
    world = World(records)
    truths = [each for each in world.truths if each["status"] == "counted"]
    reports = [each for each in world.reports if each["conversions"] or each.get("value") is not None]
    facts = [*world.claims, *truths, *world.orders, *world.refused, *world.outside, *reports]
    rows: Rows = {}
    for advertiser in {each["advertiser_id"] for each in facts}:
        mine = [each for each in facts if each["advertiser_id"] == advertiser]
        for period in {"to_date", *(week_of(each["day"]) for each in mine)}:
            within = [each for each in mine if period in ("to_date", week_of(each["day"]))]
            for platform in {each["platform"] for each in within}:
                of_platform = [each for each in within if each["platform"] == platform]
                campaigns = {campaign_of(each) for each in of_platform} if platform else set()
                for campaign in (None, *campaigns):
                    chosen = [each for each in of_platform if campaign in (None, campaign_of(each))]
                    put(rows, world, advertiser, period, platform, campaign, chosen)
            if within:
                put(rows, world, advertiser, period, "all", None, within)
    return rows


def is_one_order(one: Row, other: Row) -> bool:
    """Whether two rows are of one order of one user."""
    if any(one[name] != other[name] for name in ("advertiser_id", "user_id", "conversion_name")):
        return False
    orders = one["order_id"] or "", other["order_id"] or ""
    return orders[0] == orders[1] if any(orders) else one["event_id"] == other["event_id"]


def campaign_of(fact: Row) -> str:
    """The campaign a fact is told under; refusals and orders without a touch have none."""
    return "" if "cause" in fact else fact.get("campaign_id") or ""


def kind(fact: Row) -> str:
    """What a fact is."""
    if "cause" in fact:
        return "refused"
    if "paid" in fact:
        return "order"
    if "conversions" in fact and "status" not in fact:
        return "report"
    return "truth" if "counted_by" in fact else "claim"


def put(
    rows: Rows, world: World, advertiser: str, period: str, platform: str, campaign: str | None, facts: list[Row]
) -> None:
    days = [each["day"] for each in facts]
    first, last = (min(days), max(days)) if period == "to_date" else week_days(period)
    by_kind = {
        name: [each for each in facts if kind(each) == name]
        for name in ("claim", "truth", "order", "refused", "report")
    }
    every = {
        name: reach
        for name in ({each["platform"] for each in world.reports} if platform == "all" else {platform})
        if (reach := world.reach(advertiser, name))
    }
    is_reported = any(low <= last and high >= first for low, high in every.values())
    if platform == "all" and every:
        low, high = min(low for low, _ in every.values()), max(high for _, high in every.values())
        is_reported = low <= last and high >= first
    else:
        low, high = every.get(platform, (last, first))
    counted = [each for each in by_kind["claim"] if each["status"] == "counted"]
    compared = [each for each in counted if is_compared(world, each)]
    paying = [each for each in (by_kind["truth"] if platform == "all" else counted) if is_order_known(world, each)]
    unpaid = [
        each for each in paying if each["conversion_name"] == PAID and each["order_id"] and not world.order_of(each)
    ]
    reported = sum(amount(each["conversions"]) for each in by_kind["report"])
    row: Row = {
        "advertiser_id": advertiser, "period": period, "scope": "all" if platform == "all" else "platform",
        "platform": platform, "campaign_id": campaign, "from_day": str(first), "to_day": str(last),
        "time_zone": ZONES.get(advertiser, "UTC"),
        "counted": len(counted), "deduplicated": len(by_kind["truth"]),
        "reported_from": str(max(low, first)) if is_reported else None,
        "reported_to": str(min(high, last)) if is_reported else None,
        "complete": bool(every) and all(low <= first and high >= last for low, high in every.values()),
        "compared": len(compared),
        "orders": len(by_kind["order"]),
        "orders_refunded": sum(is_refunded(each) for each in by_kind["order"]),
        "orders_without_conversion": sum(each["owner"] is None for each in by_kind["order"]),
        "without_order": len(unpaid),
        "without_order_id": sum(each["conversion_name"] == PAID and not each["order_id"] for each in paying),
        "counted_refunded": sum(is_refunded(order) for each in paying if (order := world.order_of(each))),
    }  # fmt: skip
    names = ("duplicates", "outside_window", "unattributed", "uncounted", "retracted", "late", "refused")
    causes = dict.fromkeys(names, 0)
    for each in (*by_kind["claim"], *by_kind["refused"]):
        name = each.get("cause") or each.get("why") or {"duplicate": "duplicates"}.get(each["status"], each["status"])
        told = is_compared(world, each) or (platform != "all" and not world.reach(advertiser, each["platform"]))
        if name in causes and told:
            causes[name] += 1
    noise = sum(
        amount(each["conversions"])
        for each in by_kind["report"]
        if each.get("conversion_name") and each["conversion_name"] not in ACTIONS
    )
    difference = reported - len(compared)
    explained = sum(causes.values()) + noise
    row |= causes | {
        "noise": float(noise),
        "reported": float(reported) if is_reported else None,
        "difference": float(difference) if is_reported else None,
        "ratio": float(reported / len(compared)) if is_reported and compared else None,
        "unexplained": float(max(difference - explained, 0) if difference > 0 else difference) if is_reported else None,
    }
    row["money"] = money(by_kind, counted, compared, unpaid, is_reported, has_own_value=platform != "all")
    tolerance = None if platform in ("", "all") else TOLERANCES.get(platform, Fraction(1, 20))
    row["tolerance"] = None if tolerance is None else float(tolerance)
    row["within_tolerance"] = None
    if tolerance is not None and is_reported:
        pairs = [(reported, Fraction(len(compared)))]
        has_money = any(each["compared"] for each in row["money"])
        pairs += [
            (amount(each["reported"]), amount(each["compared"]))
            for each in row["money"]
            if each["reported"] is not None and (each["compared"] or not has_money)
        ]
        row["within_tolerance"] = all(abs(theirs - ours) <= tolerance * ours for theirs, ours in pairs)
    rows[json.dumps([advertiser, period, platform, campaign], separators=(",", ":"), ensure_ascii=False).encode()] = row


def is_compared(world: World, fact: Row) -> bool:
    """Whether the platform reports the fact's day and action."""
    reach = world.reach(fact["advertiser_id"], fact["platform"])
    names = {
        each.get("conversion_name")
        for each in world.reports
        if (each["advertiser_id"], each["platform"]) == (fact["advertiser_id"], fact["platform"])
    }
    return bool(reach) and reach[0] <= fact["day"] <= reach[1] and (None in names or fact["conversion_name"] in names)


def is_order_known(world: World, fact: Row) -> bool:
    """Whether the shop's orders reach over the fact's day."""
    reach = world.order_days(fact["advertiser_id"])
    return reach is not None and reach[0] <= fact["day"] <= reach[1]


def is_refunded(order: Row) -> bool:
    """Whether all of it was paid back."""
    return 0 < amount(order["refunded"]) >= amount(order["paid"])


def money(
    by_kind: dict[str, list[Row]],
    counted: list[Row],
    compared: list[Row],
    unpaid: list[Row],
    is_reported: bool,
    has_own_value: bool,
) -> list[Row]:
    """The amounts, a currency each; one in which everything is 0 may be left out."""
    reports = [each for each in by_kind["report"] if each.get("value") is not None]
    found = []
    for currency in sorted({each.get("currency") or "" for facts in by_kind.values() for each in facts}):

        def total(facts: Iterable[Row], field: str, currency: str = currency) -> Fraction:
            return sum((amount(each[field]) for each in facts if (each["currency"] or "") == currency), Fraction(0))

        told = is_reported and any(each["currency"] == currency for each in reports)
        orders = by_kind["order"]
        reported, ours = total(reports, "value"), total(compared, "value")
        row = {
            "currency": currency,
            "reported": float(reported) if told else None,
            "counted": float(total(counted, "value")),
            "compared": float(ours),
            "difference": float(reported - ours) if told else None,
            "ratio": float(reported / ours) if told and ours else None,
            "deduplicated": float(total(by_kind["truth"], "value")),
            "paid": float(total(orders, "paid")),
            "refunded": float(total(orders, "refunded")),
            "net": float(total(orders, "paid") - total(orders, "refunded")),
            "orders_without_conversion": float(total([each for each in orders if each["owner"] is None], "paid")),
            "without_order": float(total(unpaid, "value")),
        }
        if told or any(value for name, value in row.items() if name not in ("currency", "ratio")):
            found.append(row)
    return found


# --- Returns


def returns(records: list[Input]) -> Rows:
    """Every row of `conversions.return`."""
    facts = [*brought(records), *cost_of_touches(records)]
    rows: Rows = {}
    for advertiser in {each["advertiser_id"] for each in facts}:
        mine = [each for each in facts if each["advertiser_id"] == advertiser]
        for period in {"to_date", *(week_of(each["day"]) for each in mine), *(str(each["day"]) for each in mine)}:
            within = [each for each in mine if period in ("to_date", week_of(each["day"]), str(each["day"]))]
            put_return(rows, advertiser, period, "total", None, None, within, None)
            for platform in {each["platform"] for each in within}:
                chosen = [each for each in within if each["platform"] == platform]
                put_return(rows, advertiser, period, "platform", platform, None, chosen, None)
            for level, (field, has_platform) in LEVELS.items():
                for platform, value in {(each["platform"] if has_platform else None, each[field]) for each in within}:
                    chosen = [
                        each
                        for each in within
                        if each[field] == value and (not has_platform or each["platform"] == platform)
                    ]
                    whole = within if level == "source" else None
                    put_return(rows, advertiser, period, level, platform, value, chosen, whole)
    return rows


def brought(records: list[Input]) -> list[Row]:
    """What each conversion brings, a fact a conversion that is not retracted."""
    real = [each for each in held(records, NAMES.journeys_topic) if each["status"] != "retracted"]
    found = []
    for each in real:
        own = [
            other
            for other in real
            if (other["advertiser_id"], other["user_id"]) == (each["advertiser_id"], each["user_id"])
        ]

        def earlier(other: Row, each: Row = each) -> bool:
            return moment(other) < moment(each)

        is_counted, is_micro = each["status"] == "counted", each["action_class"] == "micro"
        is_first_micro = is_micro and not any(earlier(other) and other["action_class"] == "micro" for other in own)
        found.append(
            {field: (each["credited"] or {}).get(field) for field in ("platform", *(field for field, _ in LEVELS.values()))}
            | {
                "advertiser_id": each["advertiser_id"],
                "day": day_of(each["advertiser_id"], each["event_time"]),
                "conversions": is_counted,
                "micro": is_counted and is_micro,
                "macro": is_counted and not is_micro,
                "leads": each["conversion_name"] != PAID
                and not any(earlier(other) and other["conversion_name"] == each["conversion_name"] for other in own),
                "new_customers": each["customer"] == "new",
                "returning_orders": each["customer"] == "returning",
                "micro_users": is_first_micro,
                "micro_to_macro_users": is_first_micro
                and any(other["action_class"] == "macro" and moment(other) > moment(each) for other in own),
                ("value", each["currency"] or ""): amount(each["value"]) if is_counted else 0,
                ("new_value", each["currency"] or ""): amount(each["value"]) if is_counted and each["customer"] == "new" else 0,
            }
        )  # fmt: skip
    return [
        each
        for each in found
        if any(value for name, value in each.items() if name in MEASURES or isinstance(name, tuple))
    ]


def moment(row: Row) -> tuple[int, str, str]:
    """Which of two conversions comes first."""
    return row["event_time"], row["event_id"], row["conversion_name"]


def cost_of_touches(records: list[Input]) -> list[Row]:
    """What the touches cost, by themselves or by the spend that is shared among them."""
    touched = []
    for row in held(records, NAMES.counts_topic):
        if not row["conversion_name"] and row["platform"] != "all":
            names = {field: row["dimensions"].get(field) for field, _ in LEVELS.values()}
            day = day_of(row["advertiser_id"], row["window_start"])
            touched.append(row | names | {"day": day})
    spends = [each | {"day": date.fromisoformat(each["day"])} for each in held(records, NAMES.spend_topic)]

    def is_same_day(one: Row, other: Row) -> bool:
        return all(one[name] == other[name] for name in ("advertiser_id", "platform", "day"))

    found = []
    for row in touched:
        is_invoiced = any(
            is_same_day(row, each) and each.get("campaign_id") in (None, row["campaign_id"]) for each in spends
        )
        own = {"views": row["views"], "clicks": row["clicks"]}
        if not is_invoiced:
            own[("cost", COST_CURRENCIES.get(row["advertiser_id"], ""))] = amount(row["cost"])
        found.append({name: row[name] for name in FACT} | own)
    for each in spends:
        clicks: dict[tuple[str | None, ...], int] = {}
        for row in touched:
            fits = each.get("campaign_id") in (None, row["campaign_id"]) and each.get("source") in (None, row["source"])
            if is_same_day(row, each) and fits and row["clicks"]:
                where = tuple(row[name] for name in FACT)
                clicks[where] = clicks.get(where, 0) + row["clicks"]
        nowhere = dict.fromkeys(FACT) | {name: each.get(name) for name in FACT}
        for where, part in share_out(amount(each["amount"]), clicks or {tuple(nowhere.values()): 1}).items():
            money = {("cost", each["currency"]): part, ("spend", each["currency"]): part}
            found.append(dict(zip(FACT, where, strict=True)) | money)
    return [each for each in found if any(value for name, value in each.items() if name not in FACT)]


FACT = ("advertiser_id", "day", "platform", "campaign_id", "creative_id", "landing_page", "offer_id", "source")
MEASURES = (
    "views", "clicks", "conversions", "micro", "macro", "leads", "new_customers", "returning_orders", "micro_users",
    "micro_to_macro_users",
)  # fmt: skip


def share_out(whole: Fraction, weights: dict[tuple[str | None, ...], int]) -> dict[tuple[str | None, ...], Fraction]:
    """Millionths by weight: rounded down, and the rest one by one to whoever lacks most, of equals to the first in order."""
    unit = Fraction(1, 1_000_000)
    exact = {where: whole * weight / sum(weights.values()) for where, weight in weights.items()}
    parts = {where: part // unit * unit for where, part in exact.items()}
    while sum(parts.values()) < whole:
        neediest = min(
            parts, key=lambda where: (parts[where] - exact[where], [(name is not None, str(name)) for name in where])
        )
        parts[neediest] += unit
    return parts


def put_return(
    rows: Rows,
    advertiser: str,
    period: str,
    level: str,
    platform: str | None,
    value: str | None,
    facts: list[Row],
    whole: list[Row] | None,
) -> None:
    days = [each["day"] for each in facts]
    first, last = min(days), max(days)
    if "W" in period:
        first, last = week_days(period)

    def total(name: str | tuple[str, str], of: list[Row] = facts) -> Any:
        return sum(each.get(name, 0) for each in of)

    def ratio(part: Any, of: Any) -> float | None:
        return float(Fraction(part) / Fraction(of)) if of else None

    counts = {name: int(total(name)) for name in MEASURES}
    currencies = sorted({name[1] for each in facts for name, part in each.items() if isinstance(name, tuple) and part})
    costs = [currency for currency in currencies if total(("cost", currency))]
    row = counts | {
        "advertiser_id": advertiser, "period": period, "level": level, "platform": platform, "value": value,
        "from_day": str(first), "to_day": str(last), "time_zone": ZONES.get(advertiser, "UTC"),
        "micro_to_macro": ratio(counts["micro_to_macro_users"], counts["micro_users"]),
        "share_of_leads": ratio(counts["leads"], total("leads", whole)) if whole else None,
        "share_of_new_customers": ratio(counts["new_customers"], total("new_customers", whole)) if whole else None,
        "money": [],
    }  # fmt: skip
    for currency in currencies:
        cost = total(("cost", currency))

        def each_costs(name: str, cost: Any = cost) -> float | None:
            if not cost or len(costs) != 1 or not counts[name]:
                return None
            return float(round(Fraction(cost) / counts[name] * 1_000_000) / Fraction(1_000_000))

        row["money"].append(
            {
                "currency": currency,
                **{name: float(total((name, currency))) for name in ("cost", "spend", "value", "new_value")},
                "cost_per_conversion": each_costs("conversions"),
                "cost_per_lead": each_costs("leads"),
                "cost_per_new_customer": each_costs("new_customers"),
                "roas": ratio(total(("value", currency)), cost) if currency else None,
                "share_of_cost": ratio(cost, total(("cost", currency), whole)) if whole else None,
            }
        )
    key = json.dumps([advertiser, period, level, platform, value], separators=(",", ":"), ensure_ascii=False)
    rows[key.encode()] = row
