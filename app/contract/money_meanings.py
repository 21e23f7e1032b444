"""What each field of the records about money means; part of `app.contract.meanings`."""

from typing import Final

from app.contract.money import (
    OrderEvent,
    ReconciledMoney,
    ReconciliationRow,
    ReportEvent,
    ReturnMoney,
    ReturnRow,
    SpendEvent,
)

_DAY: Final = "The day in the advertiser's time zone, such as `2026-11-26`."
_PERIOD: Final = {
    "from_day": "The period's first day; to date: the first one of which anything is known.",
    "to_day": "Its last day; to date: the last one of which anything is known.",
    "time_zone": "Where its days begin: the advertiser's, of the policy's `desk.advertisers`.",
}

MONEY_MEANINGS: Final = {
    OrderEvent: {
        "advertiser_id": "Whose order.",
        "order_id": "The order's id, as the conversion names it. One that is used again by another order replaces it.",
        "time": "When it was paid: epoch ms, or RFC 3339 with a zone.",
        "paid": "What was paid for it in all, in `currency`; refunds are not taken off.",
        "currency": "ISO 4217.",
        "refunded": "What has been paid back of it so far, in `currency`; at most `paid`.",
        "user_id": (
            "The customer, if known by the same id as in the conversion: it tells whose order it is where several users name "
            "one order_id."
        ),
    },
    ReportEvent: {
        "advertiser_id": "Whose account.",
        "platform": "One of the policy's platforms.",
        "day": f"{_DAY} Of the conversions, not of the clicks.",
        "conversions": "What the platform claims; its models may share one among several campaigns, so it may be a fraction.",
        "campaign_id": "The campaign; null: the platform does not say.",
        "conversion_name": "Which action of the policy; null: all that the platform counts, so that all are compared with it.",
        "value": "What the platform says that they are worth, in `currency`; null: it does not say.",
        "currency": "ISO 4217, of `value`: the account's.",
    },
    SpendEvent: {
        "advertiser_id": "Whose money.",
        "platform": "One of the policy's platforms.",
        "day": _DAY,
        "amount": "What the campaign cost on that day, in `currency`.",
        "currency": "ISO 4217.",
        "campaign_id": "The campaign; null: the whole platform.",
        "source": "The traffic's source, where the campaign has several; null: all of them.",
    },
    ReconciliationRow: {
        "advertiser_id": "Whose.",
        "period": "An ISO week such as `2026-W47`, which begins on Monday, or `to_date`: all that is known.",
        "scope": "`platform`: one platform. `all`: their claims added up, and each order once.",
        "platform": '`all` in scope `all`; "": conversions that name no platform and have a touch on none, and orders nobody earns.',
        "campaign_id": 'The credited touch\'s campaign; "": none is known. null: the platform as a whole.',
        **_PERIOD,
        "counted": "Conversions that the platform's method counts, as in `conversions.counts`, but without those of persons who were "
        "forgotten since, which that topic keeps.",
        "deduplicated": "Conversions, each counted once over all platforms, that are credited here.",
        "reported_from": "The first day of the period that the platform's reports reach over; null: they reach over none.",
        "reported_to": "The last one. A day between two reports that has none is a day without a claim.",
        "complete": "Whether reports reach over all days of the period; in scope `all`: those of each platform that reports.",
        "reported": "What the platform claims; null where its reports reach over no day of the period.",
        "compared": "What of `counted` lies on days, and is of actions, that the platform reports.",
        "difference": "`reported` - `compared`; null where nothing is reported.",
        "ratio": "`reported` / `compared`; null where one of them is missing.",
        "tolerance": "The platform's, of the policy's `desk.tolerances`; null: it is not judged.",
        "within_tolerance": (
            "Whether conversions and amounts are as near as that, as a share of what is compared; null: nothing to judge."
        ),
        "duplicates": "Further reports of orders that stand already. As the causes below, of days and actions that are reported.",
        "outside_window": (
            "Conversions with a touch of the platform that is older than its window: known where it is the journey's first touch, "
            "also of conversions that name no platform."
        ),
        "unattributed": (
            "Other conversions that name the platform, with no touch that its method credits: none is known, or which one it "
            "was can't be told."
        ),
        "uncounted": "Conversions beyond the one a touch that their action counts.",
        "retracted": "Conversions that were taken back.",
        "late": "Conversions that came too late to be counted, and are letters on `ads.events.dlq` (kept for 30 days).",
        "refused": "Conversions that were refused for another reason.",
        "noise": "Claims for actions that the policy does not count.",
        "unexplained": "What of a `difference` above 0 is more than the eight causes together, also what persons were claimed for who were "
        "forgotten since; one below 0 as it is.",
        "orders": "Orders of `revenue.orders`, where their conversion is credited and on its day; without one on their own day.",
        "orders_refunded": "Those of them that were paid back in full.",
        "orders_without_conversion": "Those of them that no conversion names, also because its person was forgotten.",
        "without_order": (
            "Conversions that count and name an order that was not paid, or is another user's; on days that orders reach over, as "
            "are the two below."
        ),
        "without_order_id": "Paid actions that count and name no order, so that nobody can tell.",
        "counted_refunded": "Conversions that count though their order was paid back in full: retract them.",
        "money": "The amounts, a currency each; never added up over currencies.",
    },
    ReconciledMoney: {
        "currency": 'ISO 4217; "": the event said none.',
        "reported": "What the platform says that its claims are worth; null where it does not say.",
        "counted": "What the counted conversions are worth.",
        "compared": "Those that are compared.",
        "difference": "`reported` - `compared`.",
        "ratio": "`reported` / `compared`.",
        "deduplicated": "What the conversions are worth, each once over all platforms.",
        "paid": "What was paid for the orders.",
        "refunded": "What of it was paid back.",
        "net": "`paid` - `refunded`.",
        "orders_without_conversion": "What was paid for orders that no conversion names.",
        "without_order": "What conversions without a paid order claim to be worth.",
    },
    ReturnRow: {
        "advertiser_id": "Whose.",
        "period": "A day such as `2026-11-26`, an ISO week such as `2026-W47`, or `to_date`.",
        "level": "`total`, `platform`, `source`, `campaign`, `creative`, `landing_page` or `offer`.",
        "platform": "Of the levels `platform` and `campaign`; null: no touch is credited.",
        "value": "Which source, campaign and so on; null: the touch did not say, or none is credited.",
        **_PERIOD,
        "views": "Views and engaged views.",
        "clicks": "Clicks.",
        "conversions": "Counted conversions, each once over all platforms, by the touch that is credited, on their own day.",
        "micro": "Those of class `micro`.",
        "macro": "Those of class `macro`.",
        "leads": "First conversions of a user and action that is no paid order, attributed or not, retracted ones left out.",
        "new_customers": "First paid orders of their customers, attributed or not.",
        "returning_orders": "Further paid orders.",
        "micro_users": "Users whose first micro conversion is here.",
        "micro_to_macro_users": "Those of them that did something of class `macro` afterwards, whenever that was.",
        "micro_to_macro": "`micro_to_macro_users` / `micro_users`.",
        "share_of_leads": "Of level `source`: its part of the advertiser's leads of the period; else null.",
        "share_of_new_customers": "Of level `source`: its part of the new customers.",
        "money": "The amounts, a currency each; never added up over currencies.",
    },
    ReturnMoney: {
        "currency": 'ISO 4217; "": touches\' cost of an advertiser without `cost_currency`, or conversions without a currency.',
        "cost": "What was spent: `spend` where it tells of the campaign and day, else what the touches say that they cost.",
        "spend": "What of it `spend` tells.",
        "value": "What the counted conversions are worth.",
        "new_value": "What of it are first orders of new customers.",
        "cost_per_conversion": "`cost` / `conversions`; null where one is 0, or money was spent in several currencies.",
        "cost_per_lead": "`cost` / `leads`, likewise.",
        "cost_per_new_customer": "`cost` / `new_customers`, likewise.",
        "roas": "`value` / `cost`: what came back for one unit of money; null where nothing was spent.",
        "share_of_cost": "Of level `source`: its part of the cost; else null.",
    },
}
