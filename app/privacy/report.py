"""What a forget did and left, for a person."""

from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape

from app.privacy.forget import Forgotten


def print_report(found: Forgotten, console: Console) -> None:
    """The rows that were deleted by topic, then what remains and until when."""

    def line(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    person, place = found.person, "/".join(map(str, found.place))
    line(f"{person.user_id} of {person.advertiser_id} is forgotten up to {_time(person.until_ms)} (event {place})")
    line("")
    line("deleted rows:")
    for topic, removed in found.removed.items():
        by_counter, older = removed
        line(
            f"  {topic}: {by_counter + older:,}"
            + (f", {older:,} of them older than the counters' state" if older else "")
        )
    if not any(map(sum, found.removed.values())):
        line(
            "  There was none. Is the user_id written as in the topics? Where ids are hashed at the edge, it is the hash."
        )
    for topic, count in found.leads.items():
        if count:
            line(f"  {topic}: {count:,} still stand. The desk withdraws them: start it, or look at its log.")
    line("Counts stay as they were: they say nothing of a person.")
    line("")
    line("what remains, and until about which day (in Redis by the time of the newest event):")
    width = max(len(each.where) for each in found.remains)
    for each in found.remains:
        until = _day(each.until_ms) if each.until_ms is not None else "no end is set on the topic"
        line(f"  {each.where:<{width}}  {each.what}: {until}")
    line("Copies of the topics, backups and who sends events have to do their part: docs/privacy.md")


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d")
