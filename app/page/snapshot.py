"""From the fold to what browsers get: plain data of bounded size, one dict a part of the page."""

from typing import Any, Final

from app.contract.events import MICROS
from app.page.figures import NUMBERS, SPANS, Figures, Place, Span, Sums
from app.page.news import News

ADVERTISERS_SHOWN: Final = 12  # by name; the others together as one
CAMPAIGNS_SHOWN: Final = 100  # over all, and of each advertiser and platform ...
CAMPAIGNS_OF_EACH: Final = 10  # ... so many at least; the others of a platform together as one line
OTHERS: Final = None  # in place of a name


def span_snapshot(figures: Figures, span: Span) -> dict[str, Any]:
    """The sums of one span: by platform, action and campaign, and over time.

    Each list has a line per (advertiser, platform) and sums to the same; but `once`, the conversions counted once over all
    platforms, has one per (advertiser, action), and none where no journeys are followed. Money is in its currency's unit, `value` a dict by
    currency. Times are epoch ms.
    """
    totals = figures.totals[span.name]
    shown = _advertisers(figures)
    begins_ms = span.begins_ms(figures.newest_ms)
    bucket_ms = max(span.bucket_ms, figures.window_ms)
    return {
        "span": span.name,
        "begins_ms": begins_ms,
        "ends_ms": begins_ms + span.width_ms,
        "newest_end_ms": figures.newest_ms + figures.window_ms,
        "bucket_ms": bucket_ms,
        "cut_ms": figures.cut_ms if figures.cut_ms > begins_ms else None,
        "left_out": figures.left_out,
        "rows": figures.rows,
        "max_rows": figures.max_rows,
        "other_advertisers": max(len({name for name, _ in totals.series}) - len(shown), 0),
        "series": _series(totals.series, shown, begins_ms, span, bucket_ms),
        "actions": _actions(totals.actions, shown),
        "once": _once(totals.once, shown),
        "campaigns": _campaigns(totals.campaigns, shown),
    }


def news_snapshot(news: News, figures: Figures) -> dict[str, Any]:
    """Corrections and dead letters, numbers by span name; "last" ends with the newest record of any output topic."""
    until_ms = max(news.at_ms, figures.published_ms)
    refused = {span.name: news.refused.sums(span.width_ms, until_ms) for span in SPANS}
    corrected = {span.name: news.corrected.sums(span.width_ms, until_ms) for span in SPANS}
    return {
        "corrected": corrected,
        "conversions": list(news.conversions),
        "counts": list(news.counts),
        "refused": [
            {"reason": reason, "field": field, "at_ms": news.refused_ms[reason, field]}
            | {name: counted[reason, field] for name, counted in refused.items()}
            for reason, field in sorted(refused[SPANS[-1].name])
        ],
    }


def _advertisers(figures: Figures) -> set[str]:
    """The advertisers that have a name of their own on the page: those with the most conversions, then clicks, then
    views of the widest span.
    """
    sums: dict[str, Sums] = {}
    for (advertiser, _, _), found in figures.totals[SPANS[-1].name].campaigns.items():
        sums.setdefault(advertiser, Sums()).merge(found)
    return set(sorted(sums, key=lambda name: (*_weight(sums[name]), name))[:ADVERTISERS_SHOWN])


def _weight(sums: Sums) -> tuple[int, int, int]:
    """Orders by importance, the most important first."""
    return -sums.conversions, -sums.clicks, -sums.views


def _named(advertiser: str, shown: set[str]) -> str | None:
    return advertiser if advertiser in shown else OTHERS


def _series(
    series: dict[Place, dict[int, Sums]], shown: set[str], begins_ms: int, span: Span, bucket_ms: int
) -> list[dict[str, Any]]:
    """Of each place its sums, and of each measure that is not all 0 a list with a number a bar."""
    merged: dict[tuple[str | None, str], dict[int, Sums]] = {}
    for (advertiser, platform), buckets in series.items():
        place = merged.setdefault((_named(advertiser, shown), platform), {})
        for bucket, sums in buckets.items():
            place.setdefault((bucket - begins_ms) // bucket_ms, Sums()).merge(sums)
    return [
        {"advertiser": advertiser, "platform": platform, **_plain(_sum(bars.values()))}
        | {"bars": _bars(bars, -(-span.width_ms // bucket_ms))}
        for (advertiser, platform), bars in merged.items()
    ]


def _bars(bars: dict[int, Sums], count: int) -> dict[str, list[float]]:
    found = {}
    for name in ("conversions", "clicks", "views"):
        if any(getattr(sums, name) for sums in bars.values()):
            found[name] = [getattr(bars[place], name) if place in bars else 0 for place in range(count)]
    for currency in sorted({currency for sums in bars.values() for currency in sums.value}):
        found[f"value {currency}"] = [
            bars[place].value.get(currency, 0) / MICROS if place in bars else 0 for place in range(count)
        ]
    return found


def _actions(actions: dict[tuple[str, str, str], Sums], shown: set[str]) -> list[dict[str, Any]]:
    merged: dict[tuple[str | None, str, str], Sums] = {}
    for (advertiser, platform, action), sums in actions.items():
        merged.setdefault((_named(advertiser, shown), platform, action), Sums()).merge(sums)
    return [
        {"advertiser": advertiser, "platform": platform, "action": action, **_plain(sums)}
        for (advertiser, platform, action), sums in merged.items()
    ]


def _once(once: dict[tuple[str, str], Sums], shown: set[str]) -> list[dict[str, Any]]:
    merged: dict[tuple[str | None, str], Sums] = {}
    for (advertiser, action), sums in once.items():
        merged.setdefault((_named(advertiser, shown), action), Sums()).merge(sums)
    return [
        {"advertiser": advertiser, "action": action, **_plain(sums)} for (advertiser, action), sums in merged.items()
    ]


def _campaigns(campaigns: dict[tuple[str, str, str], Sums], shown: set[str]) -> list[dict[str, Any]]:
    """A line a campaign, the weightiest first; `campaign` None and the `number` of them for those that have no line."""
    lines: list[dict[str, Any]] = []
    rest: dict[tuple[str | None, str], Sums] = {}
    left: dict[tuple[str | None, str], int] = {}
    taken: dict[tuple[str | None, str], int] = {}
    ranked = sorted(campaigns.items(), key=lambda item: (*_weight(item[1]), item[0]))
    for (advertiser, platform, campaign), sums in ranked:
        place = (_named(advertiser, shown), platform)
        if place[0] is not OTHERS and (len(lines) < CAMPAIGNS_SHOWN or taken.get(place, 0) < CAMPAIGNS_OF_EACH):
            taken[place] = taken.get(place, 0) + 1
            lines.append({"advertiser": advertiser, "platform": platform, "campaign": campaign, **_plain(sums)})
        else:
            rest.setdefault(place, Sums()).merge(sums)
            left[place] = left.get(place, 0) + 1
    return lines + [
        {"advertiser": advertiser, "platform": platform, "campaign": None, "number": left[advertiser, platform]}
        | _plain(sums)
        for (advertiser, platform), sums in rest.items()
    ]


def _sum(parts: Any) -> Sums:
    whole = Sums()
    for part in parts:
        whole.merge(part)
    return whole


def _plain(sums: Sums) -> dict[str, Any]:
    """Sums as they are sent: what is 0 is left out, as most is."""
    found: dict[str, Any] = {
        name: number / MICROS if name == "cost" else number for name in NUMBERS if (number := getattr(sums, name))
    }
    if sums.value:
        found["value"] = {currency: amount / MICROS for currency, amount in sums.value.items()}
    return found
