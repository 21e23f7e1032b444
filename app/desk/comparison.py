"""What a platform claims beside what is counted for it: which of it can be compared, whether it is near enough, and why not."""

from decimal import Decimal
from typing import Final, NamedTuple

from app.contract.events import MICROS, from_micros
from app.contract.money import TO_DATE, ReconciledMoney, ReconciliationRow
from app.contract.rows import ALL, SCOPES
from app.desk.calendar import WEEK_DAYS, day_name, week_name
from app.desk.totals import Measure, Measures, Total, add, currencies

# Why a platform may claim more than is counted for it. Noise is in millionths, as what is reported; the others are whole.
_WHOLE: Final = ("duplicates", "outside_window", "unattributed", "uncounted", "retracted", "late", "refused")
CAUSES: Final = (*_WHOLE, "noise")
# What the row over all platforms has from theirs; the rest of it is of each order once.
_CLAIMED: Final = frozenset((*CAUSES, "reported", "told", "counted", "compared"))
_ORDERS: Final = ("orders", "orders_refunded", "orders_without_conversion")
_PAYMENT: Final = ("without_order", "without_order_id", "counted_refunded")


class Reach(NamedTuple):
    """The first and the last day (ordinals) of which something was reported."""

    first: int
    last: int

    def covers(self, first: int, last: int) -> bool:
        """Whether all days from `first` to `last` are within."""
        return self.first <= first and last <= self.last

    def touches(self, first: int, last: int) -> bool:
        """Whether any day from `first` to `last` is within."""
        return self.first <= last and first <= self.last


class Scope(NamedTuple):
    """What can be compared. `reports`: the days that the platform's reports reach over, None: it reports nothing; a day
    between without a report is one with nothing. `complete`: the days that each of several platforms' reports reach over.
    `actions`: those that its reports name; None: they are of all. `orders`: the days that the advertiser's orders reach over.
    """

    reports: Reach | None = None
    complete: Reach | None = None
    actions: frozenset[str] | None = None
    orders: Reach | None = None


def restricted(slots: dict[tuple[int, str], Measures], scope: Scope) -> Total:
    """The sum over days and actions, with what each measure may be told of: causes where there is something to compare with,
    and payments where orders are known.
    """
    total: Measures = {}
    for (day, action), measures in slots.items():
        is_compared = (
            scope.reports is not None
            and scope.reports.covers(day, day)
            and (scope.actions is None or action in scope.actions)
        )
        are_causes_told = is_compared or scope.reports is None
        are_orders_known = scope.orders is not None and scope.orders.covers(day, day)
        for measure, amount in measures.items():
            name = _name(measure)
            if (name in _WHOLE and not are_causes_told) or (name in _PAYMENT and not are_orders_known):
                continue
            add(total, {measure: amount})
            if name == "counted" and is_compared:
                add(total, {"compared" if measure == "counted" else ("compared", measure[1]): amount})
    return Total(total, min(day for day, _ in slots), max(day for day, _ in slots))


def claimed(total: Total, scope: Scope) -> Total:
    """What of a platform's total the row over all platforms adds up; of one that reports nothing no causes, since they explain
    nothing there.
    """
    names = _CLAIMED if scope.reports is not None else _CLAIMED.difference(_WHOLE)
    return total._replace(measures={each: amount for each, amount in total.measures.items() if _name(each) in names})


def _name(measure: Measure) -> str:
    return measure if isinstance(measure, str) else measure[0]


def make_row(
    advertiser_id: str,
    monday: int | None,
    platform: str,
    campaign_id: str | None,
    total: Total,
    scope: Scope,
    tolerance: float | None,
    time_zone: str,
) -> ReconciliationRow:
    """The row of a week that begins on `monday`, or to date. `tolerance` None: it is not judged."""
    first, last = (total.first, total.last) if monday is None else (monday, monday + WEEK_DAYS - 1)
    reports = scope.reports if scope.reports is not None and scope.reports.touches(first, last) else None
    measures = total.measures
    compared = measures.get("compared", 0) * MICROS
    reported = measures.get("reported", 0)
    money = [_money(currency, measures, reports is not None) for currency in currencies(measures)]
    return ReconciliationRow(
        advertiser_id=advertiser_id,
        period=TO_DATE if monday is None else week_name(monday),
        scope=SCOPES[platform == ALL],
        platform=platform,
        campaign_id=campaign_id,
        from_day=day_name(first),
        to_day=day_name(last),
        time_zone=time_zone,
        reported_from=day_name(max(reports.first, first)) if reports else None,
        reported_to=day_name(min(reports.last, last)) if reports else None,
        complete=scope.complete is not None and scope.complete.covers(first, last),
        reported=from_micros(reported) if reports else None,
        difference=from_micros(reported - compared) if reports else None,
        ratio=reported / compared if reports and compared else None,
        tolerance=tolerance,
        within_tolerance=_is_within(measures, tolerance) if reports and tolerance is not None else None,
        noise=from_micros(measures.get("noise", 0)),
        unexplained=from_micros(_unexplained(measures, reported - compared)) if reports else None,
        money=money,
        **{
            name: measures.get(name, 0)
            for name in ("counted", "deduplicated", "compared", *_WHOLE, *_ORDERS, *_PAYMENT)
        },
    )


def difference_ratio(measures: Measures) -> float:
    """How far the reported conversions are from those they are compared with, as a share of these, or of one where there is
    none.
    """
    compared = measures.get("compared", 0) * MICROS
    return (measures.get("reported", 0) - compared) / max(compared, MICROS)


def _is_within(measures: Measures, tolerance: float) -> bool:
    """Conversions, and amounts in each currency that is reported: but for one in which nothing is counted while something is
    in another one, since two currencies cannot be compared.
    """
    if not _is_near(measures.get("reported", 0), measures.get("compared", 0) * MICROS, tolerance):
        return False
    counted_in = {currency for currency in currencies(measures) if measures.get(("compared", currency))}
    return all(
        _is_near(measures.get(("reported", currency), 0), measures.get(("compared", currency), 0), tolerance)
        for currency in currencies(measures)
        if ("told", currency) in measures and (currency in counted_in or not counted_in)
    )


def _is_near(reported: int, compared: int, tolerance: float) -> bool:
    """Exactly, as a person would calculate it: 7 % of 100 is 7."""
    return abs(reported - compared) <= Decimal(str(tolerance)) * compared


def _unexplained(measures: Measures, difference: int) -> int:
    """What the causes cannot be: they explain why more is claimed, never why less is."""
    explained = sum(measures.get(cause, 0) for cause in _WHOLE) * MICROS + measures.get("noise", 0)
    return max(difference - explained, 0) if difference > 0 else difference


def _money(currency: str, measures: Measures, is_reported: bool) -> ReconciledMoney:
    def amount(name: str) -> int:
        return measures.get((name, currency), 0)

    is_told = is_reported and ("told", currency) in measures
    difference = amount("reported") - amount("compared")
    return ReconciledMoney(
        currency=currency,
        reported=from_micros(amount("reported")) if is_told else None,
        difference=from_micros(difference) if is_told else None,
        ratio=amount("reported") / amount("compared") if is_told and amount("compared") else None,
        net=from_micros(amount("paid") - amount("refunded")),
        **{
            name: from_micros(amount(name))
            for name in (
                "counted", "compared", "deduplicated", "paid", "refunded", "orders_without_conversion", "without_order",
            )
        },
    )  # fmt: skip
