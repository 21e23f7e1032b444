"""One conversion, several reports: what the browser and the server say of it, merged (docs/counting.md, section 14).

What is kept of further reports and what is made of them are functions of the set of reports, given which one was the first
to be accepted, so neither their order nor any cut into batches matters.
"""

from collections import defaultdict
from typing import Final, NamedTuple

import msgspec

from app.attribution.state import Conversion, Report
from app.policy.model import Policy

MAX_REPORTS: Final = 8  # further ones that are kept of a conversion: who sends more different ones sends no conversion


def report_of(conversion: Conversion) -> Report:
    """What a conversion's own event says."""
    return Report(
        conversion.time_ms,
        conversion.is_browser,
        conversion.value_micros,
        conversion.currency,
        conversion.order_id,
    )


def keep(conversion: Conversion, repeat: Conversion, policy: Policy) -> bool:
    """Keeps, in place, what a further event with the identity of `conversion` says, where it is near enough by event time and
    says anything new; whether it does.
    """
    window_ms = policy.at(conversion.time_ms).merge_reports_ms
    if not window_ms or abs(repeat.time_ms - conversion.time_ms) > window_ms:
        return False
    report = report_of(repeat)
    if report.said() == report_of(conversion).said() or not any(each is not None for each in report.said()[1:]):
        return False
    different: dict[tuple[object, ...], Report] = {}
    for each in sorted((*conversion.reports, report), key=_rank):
        different.setdefault(each.said(), each)
    kept = list(different.values())[:MAX_REPORTS]
    is_new = kept != conversion.reports
    conversion.reports = kept
    return is_new


class Arrived(NamedTuple):
    """A conversion event that came; `is_repeat`: its id is remembered, so that it is no conversion of its own."""

    conversion: Conversion
    is_repeat: bool = False


def take_in_order(held: list[Conversion], arrived: list[Arrived], policy: Policy) -> tuple[int, list[bool]]:
    """Appends to `held` what is not there yet, and keeps what further reports of the others say; how many accepted ones were
    held, and of which reports something was kept: whether a browser made each. One may come twice in a batch that spans more
    time than ids are remembered.
    """
    repeats, merged_by = 0, []
    known = {conversion.identity(): conversion for conversion in held} if arrived else {}
    for conversion, is_repeat in arrived:
        identity = conversion.identity()
        first = known.get(identity)
        if first is not None:
            repeats += not is_repeat
            if keep(first, conversion, policy):
                merged_by.append(conversion.is_browser)
        elif not is_repeat:
            known[identity] = conversion
            held.append(conversion)
    return repeats, merged_by


def merged(conversions: list[Conversion], policy: Policy) -> list[Conversion]:
    """A user's conversions as they are judged, in the same order: those that other reports tell more of as copies that share
    all but value, currency and order_id with the ones given.
    """
    if not policy.merges_reports():
        return conversions
    same: dict[tuple[str, str], list[Conversion]] = defaultdict(list)
    for conversion in conversions:
        same[conversion.name, conversion.event_id].append(conversion)
    if len(same) == len(conversions) and not any(conversion.reports for conversion in conversions):
        return conversions
    return [_merged(each, same[each.name, each.event_id], policy) for each in conversions]


def _merged(conversion: Conversion, same: list[Conversion], policy: Policy) -> Conversion:
    """`same`: the conversions of the same name and event_id, on whatever platform, with it among them."""
    window_ms = policy.at(conversion.time_ms).merge_reports_ms
    if not window_ms:
        return conversion
    others = [report_of(each) for each in same if each is not conversion]
    others += [report for each in same for report in each.reports]
    near = sorted((each for each in others if abs(each.time_ms - conversion.time_ms) <= window_ms), key=_rank)
    said = sorted((report_of(conversion), *near), key=lambda report: not report.is_browser)  # stable: its own first
    order_id = next((report.order_id for report in said if report.order_id), None)
    value_micros, currency = _amount(said)
    if (value_micros, currency, order_id) == (conversion.value_micros, conversion.currency, conversion.order_id):
        return conversion
    return msgspec.structs.replace(conversion, value_micros=value_micros, currency=currency, order_id=order_id)


def _amount(said: list[Report]) -> tuple[int | None, str | None]:
    """The first value, and its currency. A currency belongs to its value: one that was said of another value is none of it."""
    first = next((report for report in said if report.value_micros is not None), None)
    value_micros = first.value_micros if first is not None else None
    about = [report for report in said if report.value_micros in (None, value_micros)]
    own = [first] if first is not None else []
    return value_micros, next((report.currency for report in (*own, *about) if report.currency), None)


def _rank(report: Report) -> tuple[bool, int, int, str, str]:
    """Which report is heard first: a browser's, then the earlier by event time; then by what it says, nothing first."""
    value_micros = -1 if report.value_micros is None else report.value_micros
    return not report.is_browser, report.time_ms, value_micros, report.currency or "", report.order_id or ""
