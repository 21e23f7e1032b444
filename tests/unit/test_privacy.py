"""What `onecount forget` says: which rows went, and what remains until which day."""

from collections.abc import Iterable
from io import StringIO

import msgspec
import orjson
import pytest
from rich.console import Console

from app.contract.events import Accepted, decode_event
from app.contract.topics import OVERWRITTEN_KEPT_MS
from app.engine.clients import Topic
from app.engine.topics import all_specs_of
from app.policy.load import load_policy
from app.policy.model import DAY_MS, ClickIds
from app.privacy import ForgetRefused, Forgotten, print_report, remains
from app.privacy.forget import encode
from app.privacy.rows import Person, Removed, row_topics
from app.settings import Settings
from tests.integration.deployment import POLICY

NOW_MS = 1_764_000_000_000  # 2025-11-24 16:00 UTC
PERSON = Person("shop", "u-[1]", NOW_MS)
DEFAULTS = {"segment.ms": 7 * DAY_MS, "max.compaction.lag.ms": 2**63 - 1}


class There:
    """Clients of a Kafka that has these topics."""

    def __init__(self, *topics: str) -> None:
        self.names = topics

    def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        return {name: Topic(1, "") for name in names if name in self.names}


def told(removed: dict[str, Removed], found: list[remains.Remains], leads: dict[str, int] | None = None) -> str:
    shown = Console(file=StringIO(), width=200)
    print_report(Forgotten(PERSON, ("ads.events", 3, 17), removed, leads or {}, found), shown)
    return shown.file.getvalue()  # type: ignore[attr-defined]


def test_the_days_are_those_of_the_topics_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, policy = Settings(), load_policy(POLICY)[0]
    specs = {spec.name: spec.config for spec in all_specs_of(settings, policy)}
    numbers = {
        name: DEFAULTS | {key: int(value) for key, value in config.items() if value.lstrip("-").isdigit()}
        for name, config in specs.items()
    }
    numbers["ads.events"]["retention.ms"] = numbers["leads.followups"]["retention.ms"] = -1
    monkeypatch.setattr(remains, "_configs", lambda _, topics: {topic: numbers[topic] for topic in topics})
    desk = There("leads", "leads.overdue", "leads.followups", "revenue.orders")
    found = remains.find_remains(settings, policy, desk, row_topics(settings, policy), NOW_MS)  # type: ignore[arg-type]
    days = {
        (each.where, each.what.partition(" ")[0]): each.until_ms and (each.until_ms - NOW_MS) / DAY_MS for each in found
    }
    assert days == {
        ("ads.events", "events"): None,
        ("onecount.rekeyed", "events"): 98 + 7,
        ("ads.events.dlq", "refused"): 30 + 7,
        ("conversions.attributed", "deleted"): 2 * 7 + 14,
        ("conversions.journeys", "deleted"): 2 * 7 + 14,
        ("conversions.models", "deleted"): 2 * 7 + 14,
        ("leads", "deleted"): 2 * 7 + 14,
        ("leads.overdue", "deleted"): 2 * 7 + 14,
        ("leads.followups", "what"): None,
        ("revenue.orders", "orders"): None,
        ("Redis", "touches"): 30 + 7 + 7.5,
        ("Redis", "user_id"): 97,
    }


def test_where_clicks_are_matched_their_ids_remain_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, policy = Settings(), load_policy(POLICY)[0]
    bounds = msgspec.structs.replace(policy.bounds, click_ids=ClickIds(known_for_ms=40 * DAY_MS))
    policy = msgspec.structs.replace(policy, bounds=bounds)
    specs = {spec.name: spec.config for spec in all_specs_of(settings, policy)}
    kept_ms = int(specs["onecount.clicks"]["retention.ms"])
    assert kept_ms == (40 + 7 + 1) * DAY_MS
    config = DEFAULTS | {"retention.ms": kept_ms, "delete.retention.ms": DAY_MS}
    monkeypatch.setattr(remains, "_configs", lambda _, topics: dict.fromkeys(topics, config))
    found = remains.find_remains(settings, policy, There(), (), NOW_MS)  # type: ignore[arg-type]
    days = {
        each.where: (each.until_ms - NOW_MS) / DAY_MS for each in found if "click id" in each.what and each.until_ms
    }
    assert days == {"onecount.clicks": 48 + 7, "Redis": 50}


def test_topics_that_were_made_before_bound_no_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    unbounded = DEFAULTS | {"retention.ms": DAY_MS, "delete.retention.ms": DAY_MS}
    monkeypatch.setattr(remains, "_configs", lambda _, topics: dict.fromkeys(topics, unbounded))
    rules = load_policy(POLICY)[0]
    found = remains.find_remains(Settings(), rules, There(), ("conversions.attributed",), NOW_MS)  # type: ignore[arg-type]
    assert [each.until_ms for each in found if each.where == "conversions.attributed"] == [None]


def test_the_report_tells_rows_and_days() -> None:
    text = told(
        {"conversions.attributed": Removed(1_000, 2), "conversions.journeys": Removed(3, 0)},
        [
            remains.Remains("ads.events", "events", None),
            remains.Remains("Redis", "a hash", NOW_MS + OVERWRITTEN_KEPT_MS),
        ],
    )
    assert text.splitlines()[0] == "u-[1] of shop is forgotten up to 2025-11-24 16:00:00 UTC (event ads.events/3/17)"
    assert "conversions.attributed: 1,002, 2 of them older than the counters' state" in text
    assert "conversions.journeys: 3\n" in text
    assert "There was none" not in text
    assert "events: no end is set on the topic" in text
    assert "a hash: 2025-12-01" in text


def test_the_report_asks_where_there_was_no_row() -> None:
    assert "There was none. Is the user_id written as in the topics?" in told(
        {"conversions.attributed": Removed(0, 0)}, [remains.Remains("Redis", "a hash", NOW_MS)]
    )


def test_the_report_tells_of_leads_that_no_desk_has_withdrawn() -> None:
    text = told({}, [remains.Remains("Redis", "a hash", NOW_MS)], {"leads": 2, "leads.overdue": 0})
    assert "leads: 2 still stand. The desk withdraws them" in text
    assert "leads.overdue" not in text


def test_the_event_keeps_the_contract_and_each_has_an_id_of_its_own() -> None:
    raws = [encode(PERSON) for _ in range(2)]
    for raw in raws:
        judged = decode_event(raw, b"u-[1]", NOW_MS, {}, 7 * DAY_MS, 0)
        assert isinstance(judged, Accepted), judged
        assert (judged.event.event_type, judged.time_ms) == ("forget", NOW_MS)
    assert len({orjson.loads(raw)["event_id"] for raw in raws}) == 2


@pytest.mark.parametrize("person", [Person("shop", "", 0), Person("shop", "u" * 129, 0), Person("a\n", "u", 0)])
def test_who_can_be_no_user_is_refused_before_anything_is_sent(person: Person) -> None:
    with pytest.raises(ForgetRefused, match="no event can be of such a user"):
        encode(person)
