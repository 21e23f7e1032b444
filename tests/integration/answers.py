"""What the questions of deploy/bi/answers.sql must answer, added up from the rows of verify's oracle."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

import msgspec
import numpy as np
import pytest

from app.contract import rows
from app.contract.journeys import JourneyRow, ModelRow
from app.contract.rows import AttributedRow, CountRow
from app.verify.oracle import Answer

HOUR_MS: Final = 3_600_000
DIMENSIONS: Final = {  # of the questions that count by something
    "2. Conversions, rate and value by platform": ("platform",),
    "3. Conversions, rate and value by campaign": ("advertiser_id", "platform", "campaign_id"),
    "4. Conversions, rate and value by creative": ("advertiser_id", "platform", "campaign_id", "creative_id"),
    "5. Conversions, rate and value by landing page": ("advertiser_id", "platform", "landing_page"),
    "6. Conversions, rate and value by offer": ("advertiser_id", "platform", "offer_id"),
}
JOURNEYS: Final = (  # the questions that only a policy with journeys answers
    "11. What the platforms claim and what there was, by week",
    "12. How new customers found us: their first touch before their first paid order",
    "13. How long a paid order takes from the first visit, and how much comes before it",
    "14. Which pages are seen before a paid order",
    "15. What was left behind and taken up again, and what brought the people back",
    "16. What each model credits to a campaign",
    "17. What new and returning customers pay, by the platform and source that earned it; null: no touch did",
)
TIMES: Final = ("window_start", "window_end", "event_time", "touch_time", "first_visit_time", "abandoned_time")

Answers = dict[str, list[dict[str, Any]]]


def as_columns(row: AttributedRow | CountRow | JourneyRow | ModelRow) -> dict[str, Any]:
    """A row as the copies hold it: times as UTC timestamps, money exact, dimensions as columns."""
    found = msgspec.to_builtins(row)
    if isinstance(row, CountRow):
        found |= dict.fromkeys(("campaign_id", "ad_id", "creative_id", "landing_page", "offer_id", "source", "medium"))
        found |= found.pop("dimensions")
    for name in TIMES:
        if found.get(name) is not None:
            found[name] = datetime(1970, 1, 1) + timedelta(milliseconds=found[name])  # noqa: DTZ001 - UTC without a zone
    for credit in found.get("credits", ()):
        credit |= {name: Decimal(str(credit[name])) for name in ("share", "value")}
    return found | {name: Decimal(str(found[name])) for name in rows.MONEY_MEASURES if name in found}


def assert_answers(answers: Answers, expected: Answer) -> None:
    """Whether every figure of every question is the one that follows from the raw events."""
    _assert_counts(answers, expected)
    _assert_conversions(answers, expected)
    claimed, new, waits, pages, carts, models, sources = (answers[title] for title in JOURNEYS)
    journeys = [as_columns(row) for row in expected.journeys.values()]
    orders = [row for row in journeys if row["customer"]]
    assert _weeks(claimed) == _claimed(expected.counts.values())
    assert _sums(new, ("platform", "source", "campaign_id", "landing_page", "currency"), "new_customers") == _touched(
        [row for row in orders if row["customer"] == "new"],
        "first_touch",
        ("platform", "source", "campaign_id", "landing_page"),
    )
    _assert_waits(waits, orders)
    _assert_pages(pages, orders)
    found = defaultdict(list)
    for row in carts:
        found[row["abandoned_action"]].append(row)
    assert found.keys() == {row["abandoned_action"] for row in journeys} - {None}
    for action, taken_up in found.items():
        again = [row for row in journeys if row["abandoned_action"] == action]
        key = ("platform", "source", "campaign_id")
        assert _sums(taken_up, (*key, "currency"), "orders") == _touched(again, "returned_by", key)
    assert _modelled(models) == _credits(expected.models.values())
    for kind in ("new", "returning"):
        has = [row for row in sources if row[f"{kind}_orders"]]
        assert _sums(has, ("platform", "source", "currency"), f"{kind}_orders", f"{kind}_value") == _touched(
            [row for row in orders if row["customer"] == kind], "credited", ("platform", "source")
        )


def _assert_counts(answers: Answers, expected: Answer) -> None:
    for title, dimensions in DIMENSIONS.items():
        found = {
            tuple(row[name] for name in (*dimensions, "action", "currency")): (
                *(int(row[name]) for name in ("views", "clicks", "conversions")),
                hundredths(row["value"]),
                row["per_100_clicks"] if row["per_100_clicks"] is None else float(row["per_100_clicks"]),
            )
            for row in answers[title]
        }
        assert len(found) == len(answers[title])
        assert found == _by(expected.counts.values(), dimensions), title


def _by(counts: Iterable[CountRow], dimensions: tuple[str, ...]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Views, clicks, conversions, rate and value by dimensions, action and currency, as the platforms count them."""
    touches: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    earned: dict[tuple[Any, ...], list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
    for row in (as_columns(each) for each in counts if each.scope == "platform"):
        place = tuple(row[name] for name in dimensions)
        for index, name in enumerate(("views", "clicks", "conversions")):
            touches[place][index] += row[name]
        if row["conversion_name"]:
            earned[*place, row["conversion_name"], row["currency"]][0] += row["conversions"]
            earned[*place, row["conversion_name"], row["currency"]][1] += row["value"]
    found = {}
    for (*place, action, currency), (conversions, value) in earned.items():
        views, clicks, _ = touches[tuple(place)]
        if conversions:
            found[*place, action, currency] = (
                views,
                clicks,
                int(conversions),
                hundredths(value),
                rate(conversions, clicks),
            )
    for place, (views, clicks, conversions) in touches.items():
        if not conversions:
            found[*place, "", ""] = (views, clicks, 0, 0, rate(0, clicks))
    return found


def rate(conversions: Decimal | int, clicks: int) -> Any:
    """Conversions per 100 clicks, as something that is printed with two digits; null without clicks."""
    return pytest.approx(100 * float(conversions) / clicks, abs=0.00501) if clicks else None


def hundredths(amount: Any) -> int | None:
    """An amount as it is printed with two digits, in hundredths."""
    return None if amount is None else int((Decimal(str(amount)) * 100).to_integral_value(ROUND_HALF_UP))


def _assert_conversions(answers: Answers, expected: Answer) -> None:
    attributed = [as_columns(row) for row in expected.attributed.values()]
    not_counted: dict[Any, list[Any]] = defaultdict(lambda: [0, 0])
    once: dict[Any, list[Any]] = defaultdict(lambda: [0, 0, 0])
    platforms: dict[Any, list[Any]] = defaultdict(list)
    for row in attributed:
        if row["status"] == "counted":
            platforms[row["advertiser_id"], row["user_id"], row["conversion_name"], row["event_id"]].append(row)
        else:
            each = not_counted[row["platform"], row["conversion_name"], row["status"], row["currency"]]
            each[0] += 1
            each[1] += row["value"]
    for earned in platforms.values():
        each = once[earned[0]["conversion_name"], earned[0]["currency"]]
        each[:] = each[0] + 1, each[1] + earned[0]["value"], each[2] + (len(earned) > 1)
    found = {
        (row["platform"], row["action"], row["status"], row["currency"]): [row["conversions"], hundredths(row["value"])]
        for row in answers["7. Conversions that do not count, and why"]
    }
    assert found == {key: [number, hundredths(value)] for key, (number, value) in not_counted.items()}
    found = {
        (row["action"], row["currency"]): [
            row["conversions"],
            hundredths(row["value"]),
            row["earned_by_several_platforms"],
        ]
        for row in answers["8. Each conversion once, however many platforms earned it"]
    }
    assert found == {key: [number, hundredths(value), several] for key, (number, value, several) in once.items()}
    cohorts = answers["9. Of a day's clicks, how many have converted by now"]
    clicked = [row for row in attributed if row["status"] == "counted" and row["touch_type"] == "click"]
    assert sum(row["conversions"] for row in cohorts) == len(clicked)
    assert sum(int(row["clicks"]) for row in cohorts) == sum(row.clicks for row in expected.counts.values())
    took = answers["10. How long a counted conversion takes from its touch"]
    assert sum(row["conversions"] for row in took) == sum(row["status"] == "counted" for row in attributed)


# --- Journeys


def _weeks(answered: list[dict[str, Any]]) -> dict[tuple[str, ...], tuple[Any, ...]]:
    found = {
        (str(row["week"]), row["advertiser_id"], row["action"], row["currency"]): (
            int(row["claimed"]),
            int(row["each_once"] or 0),
            hundredths(row["value_claimed"]),
            hundredths(row["value_once"] or 0),
        )
        for row in answered
    }
    assert len(found) == len(answered)
    for row in answered:
        each_once = int(row["each_once"] or 0)
        assert (row["claimed_for_one"] is None) == (each_once == 0)
        if each_once:
            assert float(row["claimed_for_one"]) == pytest.approx(int(row["claimed"]) / each_once, abs=0.00501)
    return found


def _claimed(counts: Iterable[CountRow]) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """What platforms claim, what there was, and both in money, by ISO week (its Monday), advertiser, action and currency."""
    sums: dict[tuple[str, ...], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 4)
    for row in counts:
        if row.conversion_name:
            day = date(1970, 1, 1) + timedelta(days=row.window_start // (24 * HOUR_MS))
            week = str(date.fromisocalendar(*day.isocalendar()[:2], 1))
            sum_ = sums[week, row.advertiser_id, row.conversion_name, row.currency]
            place = 0 if row.scope == "platform" else 1
            sum_[place] += row.conversions
            sum_[2 + place] += Decimal(str(row.value))
    return {
        key: (int(claimed), int(once), hundredths(value), hundredths(value_once))
        for key, (claimed, once, value, value_once) in sums.items()
        if claimed or once
    }


def _sums(
    answered: list[dict[str, Any]], key: tuple[str, ...], count: str, value: str = "value"
) -> dict[tuple[Any, ...], tuple[int, int | None]]:
    found = {tuple(row[name] for name in key): (int(row[count]), hundredths(row[value])) for row in answered}
    assert len(found) == len(answered)
    return found


def _touched(
    orders: list[dict[str, Any]], touch: str, names: tuple[str, ...]
) -> dict[tuple[Any, ...], tuple[int, int | None]]:
    """How many orders of which value, by fields of one of their touches and by currency."""
    sums: dict[tuple[Any, ...], list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
    for row in orders:
        sum_ = sums[*((row[touch] or {}).get(name) for name in names), row["currency"]]
        sum_[0] += 1
        sum_[1] += row["value"]
    return {key: (int(number), hundredths(value)) for key, (number, value) in sums.items()}


def _assert_waits(answered: list[dict[str, Any]], orders: list[dict[str, Any]]) -> None:
    by_kind: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in orders:
        by_kind[row["conversion_name"], row["customer"]].append(row)
    assert [(row["action"], row["customer"]) for row in answered] == sorted(by_kind)
    for row in answered:
        of_kind = by_kind[row["action"], row["customer"]]
        waits = [each["time_from_first_visit_ms"] for each in of_kind if each["first_visit_time"]]
        assert (row["orders"], row["after_a_visit"]) == (len(of_kind), len(waits))
        for name, share in (("median_hours", 0.5), ("hours_of_90_percent", 0.9)):
            must = pytest.approx(float(np.quantile(waits, share)) / HOUR_MS, abs=0.00501) if waits else None
            assert (None if row[name] is None else float(row[name])) == must
        touches = [each["views"] + each["engaged_views"] + each["clicks"] for each in of_kind]
        assert float(row["visits"]) == pytest.approx(np.mean([each["visits"] for each in of_kind]), abs=0.0501)
        assert float(row["touches"]) == pytest.approx(np.mean(touches), abs=0.0501)


def _assert_pages(answered: list[dict[str, Any]], orders: list[dict[str, Any]]) -> None:
    seen: dict[str, int] = defaultdict(int)
    for row in orders:
        for page in set(row["pages"]):
            seen[page] += 1
    assert {row["page"]: row["orders"] for row in answered} == seen
    assert len(answered) == len(seen)
    for row in answered:
        assert float(row["per_100_orders"]) == pytest.approx(100 * row["orders"] / len(orders), abs=0.00501)


def _modelled(answered: list[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[int | None, int | None]]:
    names = ("model", "advertiser_id", "platform", "campaign_id", "action", "currency")
    found = {
        tuple(row[name] for name in names): (hundredths(row["conversions"]), hundredths(row["value"]))
        for row in answered
    }
    assert len(found) == len(answered)
    return found


def _credits(models: Iterable[ModelRow]) -> dict[tuple[Any, ...], tuple[int | None, int | None]]:
    sums: dict[tuple[Any, ...], list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
    for row in models:
        for credit in row.credits:
            touch = credit.touch
            sum_ = sums[
                row.model, row.advertiser_id, touch.platform, touch.campaign_id, row.conversion_name, row.currency
            ]
            sum_[0] += Decimal(str(credit.share))
            sum_[1] += Decimal(str(credit.value))
    return {key: (hundredths(share), hundredths(value)) for key, (share, value) in sums.items()}
