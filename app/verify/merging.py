"""What the reports of one conversion say together: docs/counting.md, section 14."""

from typing import Final

import msgspec

from app.contract.events import BROWSER
from app.policy.model import Policy
from app.verify.records import Arrival, Person, name_of
from app.verify.settlement import counted_action, to_micros, version_at

MOST_REPORTS: Final = 8  # "at most eight are kept"


def hear(person: Person, repeat: Arrival, policy: Policy) -> None:
    """Keeps a duplicate of one of the person's conversions, in place, if it may tell more of it."""
    name = name_of(repeat)
    conversion = next((each for each in person.conversions if name_of(each) == name), None)
    if conversion is None or repeat.time_ms <= person.forgotten_ms:
        return
    if not is_near(conversion, repeat, policy) or counted_action(policy, repeat) is None:
        return
    if statement(repeat) == statement(conversion) or statement(repeat)[1:] == (None, None, None):
        return  # it says nothing new
    person.history.append(repeat)
    different: dict[tuple[object, ...], Arrival] = {}
    for report in sorted([*(each for each in person.reports if name_of(each) == name), repeat], key=hearing):
        different.setdefault(statement(report), report)
    others = [each for each in person.reports if name_of(each) != name]
    person.reports = [*others, *list(different.values())[:MOST_REPORTS]]


def as_told(person: Person, policy: Policy) -> Person:
    """The person with each conversion as all its reports have it: what sections 4 to 11 judge."""
    return msgspec.structs.replace(person, conversions=[told(each, person, policy) for each in person.conversions])


def told(conversion: Arrival, person: Person, policy: Policy) -> Arrival:
    """A conversion with the value, currency and order_id of the first report in the order of hearing that says them."""
    event = conversion.event
    others = [
        each
        for each in (*person.conversions, *person.reports)
        if each is not conversion
        and (each.event.conversion_name, each.event.event_id) == (event.conversion_name, event.event_id)
        and is_near(conversion, each, policy)
        and counted_action(policy, each) is not None
    ]
    if not others:
        return conversion
    # "a browser's before a server's; of one kind its own first report, then the others"
    heard = [conversion, *sorted(others, key=hearing)]
    heard = [each for each in heard if is_browsers(each)] + [each for each in heard if not is_browsers(each)]
    valued = [each for each in heard if each.event.value is not None]
    if valued:
        # "a currency goes with its value"
        value = valued[0].event.value
        heard_of_it = [each for each in heard if each.event.value is None or micros(each) == micros(valued[0])]
        currencies = [each.event.currency for each in (valued[0], *heard_of_it)]
    else:
        value, currencies = None, [each.event.currency for each in heard]
    currency = next(filter(None, currencies), None)
    order_id = next(filter(None, (each.event.order_id for each in heard)), None)
    whole = msgspec.structs.replace(event, value=value, currency=currency, order_id=order_id)
    return msgspec.structs.replace(conversion, event=whole)


def is_near(conversion: Arrival, report: Arrival, policy: Policy) -> bool:
    """Whether a report is merged into a conversion, by the rules in force at the conversion's time."""
    merge_ms = version_at(policy, conversion.time_ms).merge_reports_ms
    return merge_ms > 0 and abs(conversion.time_ms - report.time_ms) <= merge_ms


def is_browsers(report: Arrival) -> bool:
    """Whether a browser made it; whoever does not say is a server."""
    return report.event.reported_by == BROWSER


def micros(report: Arrival) -> int | None:
    """Its value in millionths, if it has one."""
    return None if report.event.value is None else to_micros(report.event.value)


def statement(report: Arrival) -> tuple[bool, int | None, str | None, str | None]:
    """What a report says; an empty order_id is none."""
    return (is_browsers(report), micros(report), report.event.currency, report.event.order_id or None)


def hearing(report: Arrival) -> tuple[bool, int, int, str, str]:
    """A browser's first, then by (event_time, value, currency, order_id), what is not said being the smallest."""
    value = micros(report)
    said = (-1 if value is None else value, report.event.currency or "", report.event.order_id or "")
    return (not is_browsers(report), report.time_ms, *said)
