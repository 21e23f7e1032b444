"""What surrounds the folds: what lies on the topics, what a desk that begins publishes, whose turn it is, what the views answer."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import yaml
from confluent_kafka import KafkaException

from app.contract.money import ReturnRow, decode_reconciliation
from app.contract.rollups import RollupRow, rollup_key
from app.contract.rows import encode
from app.desk import log as log_module
from app.desk import session as session_module
from app.desk.desk import Desk
from app.desk.fold import Input, Output
from app.desk.log import Batch
from app.desk.published import LeadTally, Published, missing
from app.desk.reconciliation import Reconciliation
from app.desk.report import sorted_rows
from app.desk.session import MOST_ROWS, DeskEnded, Session
from app.desk.views import LEADS as LEADS_VIEW
from app.desk.views import OVERDUE as OVERDUE_VIEW
from app.desk.views import RECONCILIATION, RETURN, AskedWrongly, answer
from app.engine import policy_topic
from app.engine.clients import Topic
from app.policy.load import PolicyError, load_desk, load_policy
from app.policy.record import Recorded
from app.policy.record import encode as encode_policy
from app.settings import Settings
from tests.desk import money
from tests.desk.made import FOLLOWUPS, JOURNEYS, LEADS, OVERDUE, Reader, journey
from tests.desk.test_leads import HOUR_MS, desk_of, journeys

IN, OUT, KEPT = "in", "out", "kept"


class Echo:
    """A fold whose rows are its input; `kept` rows last."""

    inputs, outputs = (IN,), (OUT, KEPT)

    def __init__(self) -> None:
        self.refused: Counter[tuple[str, str]] = Counter()
        self.held: dict[bytes, bytes | None] = {}
        self.fresh: set[bytes] = set()

    def take(self, record: Input) -> None:
        self.held[record.key or b""] = record.value
        self.fresh.add(record.key or b"")

    def rows(self, now_ms: int) -> Iterator[Output]:
        fresh, self.fresh = self.fresh, set()
        for key in sorted(fresh):
            yield Output(OUT, key, self.held[key])

    def lasts(self, topic: str, key: bytes) -> bool:
        return topic == KEPT


def record(topic: str, offset: int, key: bytes, value: bytes | None) -> Input:
    return Input(topic, 0, offset, 0, key, value)


# --- What lies on the topics


def test_a_desk_that_begins_publishes_what_differs_and_deletes_what_is_no_row_any_more() -> None:
    fold, published = Echo(), Published((OUT, KEPT), {})
    for offset, key in enumerate((b"same", b"other", b"gone")):
        published.take(record(OUT, offset, key, b"1"))
    published.take(record(KEPT, 0, b"gone", b"1"))
    for offset, (key, value) in enumerate(((b"same", b"1"), (b"other", b"2"), (b"new", b"3"))):
        fold.take(record(IN, offset, key, value))
    assert set(missing([fold], published, 0)) == {
        Output(OUT, b"other", b"2"), Output(OUT, b"new", b"3"), Output(OUT, b"gone", None)
    }  # fmt: skip


def test_old_rollups_are_not_kept_in_memory() -> None:
    day_ms = 86_400_000
    published = Published((OUT,), {OUT: 10 * day_ms})

    def take(*numbers: int, **fields: Any) -> list[int]:
        for number in numbers:
            row = dict.fromkeys(RollupRow.__struct_fields__, 0) | {"dimensions": {}, "final": False} | fields
            row |= dict.fromkeys(
                ("period", "label", "time_zone", "platform", "advertiser_id", "conversion_name", "currency", "scope"),
                "",
            )
            published.take(record(OUT, number, rollup_key("day", number * day_ms, b'"meta"'), encode(row)))
        return [orjson.loads(key)[1] // day_ms for key in published.rows[OUT]]

    published.take(record(OUT, 9, b"no key", b"{}"))
    published.take(record(OUT, 9, rollup_key("day", 99 * day_ms, b'"x"'), b"nonsense"))
    published.take(record(OUT, 9, rollup_key("day", 99 * day_ms, b'"x"'), None))
    assert take(1, 2, 3, 20) == [1, 2, 3, 20], "of what is not final the windows of before may still come"
    assert take(20, final=True) == [20]
    assert take(4, 15) == [20, 15]


def test_leads_are_tallied_as_they_come_and_go() -> None:
    tally = LeadTally(LEADS, OVERDUE)
    published = Published((LEADS, OVERDUE), {}, tally)
    reader = desk_of(
        *journeys(journey("u1", "demo_booked", "c1", 0), journey("u2", "signup", "c2", 0)), now_ms=9 * HOUR_MS
    )
    for topic in (LEADS, OVERDUE):
        for key, value in reader.published.rows[topic].items():
            published.take(record(topic, 0, key, value))
    published.take(record(LEADS, 1, b"?", b"nonsense"))
    assert (tally.leads, tally.overdue) == ({("waiting", "hot"): 1, ("waiting", "cool"): 1}, {"demo_booked": 1})
    for topic in (LEADS, OVERDUE):
        for key in list(published.rows[topic]):
            published.take(record(topic, 2, key, None))
    assert not +tally.leads
    assert not +tally.overdue


# --- Whose turn it is


class Kafka:
    """The publisher and the ends of the topics, in memory. `sent`: what each transaction had."""

    def __init__(self) -> None:
        self.sent: list[list[Output]] = []
        self.fenced = 0
        self.ends: dict[tuple[str, int], int] = {(IN, 0): 0, (OUT, 0): 0, (KEPT, 0): 0}

    def publisher(self, *_: Any) -> Any:
        self.fenced += 1
        return SimpleNamespace(publish=lambda rows: self.sent.append(list(rows)))

    def asks(self, *_: Any) -> Any:
        return SimpleNamespace(ask=lambda places: self.ends)


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    found = Kafka()
    monkeypatch.setattr(session_module, "Publisher", found.publisher)
    monkeypatch.setattr(session_module, "Ends", found.asks)
    return found


def begun(lease: Any) -> Session:
    places = [(IN, 0), (OUT, 0), (KEPT, 0)]
    return Session(Settings(), None, lease, places, [Echo()], Published((OUT, KEPT), {}), lambda: 0)  # type: ignore[arg-type, list-item]


def batch(values: Iterable[bytes], first: int = 0) -> Batch:
    records = [record(IN, first + number, value, value) for number, value in enumerate(values)]
    return Batch(records, {(IN, 0): first + len(records)})


def test_without_the_lease_nothing_is_published(kafka: Kafka) -> None:
    session = begun(SimpleNamespace(is_held=False, term=0))

    async def course() -> None:
        await session.take(batch([b"1"]))
        await session.tick()

    asyncio.run(course())
    assert (kafka.sent, kafka.fenced, session.is_active) == ([], 0, False)


def test_who_is_given_the_lease_reads_to_the_ends_after_it_has_fenced_the_former_one(kafka: Kafka) -> None:
    session = begun(SimpleNamespace(is_held=True, term=1))

    async def course() -> None:
        await session.take(batch([b"1"]))
        kafka.ends[IN, 0] = 3
        taking_over = asyncio.create_task(session.tick())
        await asyncio.sleep(0.2)
        assert kafka.fenced == 1
        assert not kafka.sent
        await session.take(batch([b"2", b"3"], first=1))
        await taking_over

    asyncio.run(course())
    assert [[row.key for row in rows] for rows in kafka.sent] == [[b"1", b"2", b"3"]]
    assert session.is_active


def test_a_lease_that_was_away_in_between_ends_the_session(kafka: Kafka) -> None:
    lease = SimpleNamespace(is_held=True, term=1)
    session = begun(lease)

    async def course() -> None:
        await session.tick()
        await session.take(batch([b"1"]))
        lease.term = 3
        await session.tick()

    with pytest.raises(DeskEnded, match="another desk"):
        asyncio.run(course())
    assert kafka.sent == []


def test_a_session_that_is_over_publishes_nothing_more(kafka: Kafka) -> None:
    session = begun(SimpleNamespace(is_held=True, term=1))

    async def course() -> None:
        kafka.ends[IN, 0] = 5
        taking_over = asyncio.create_task(session.tick())
        await asyncio.sleep(0.1)
        session.end()
        await taking_over
        await session.tick()

    asyncio.run(course())
    assert kafka.sent == []
    assert not session.is_active


def test_many_rows_leave_in_several_transactions(kafka: Kafka) -> None:
    session = begun(SimpleNamespace(is_held=True, term=1))

    async def course() -> None:
        await session.take(batch([b"%d" % number for number in range(MOST_ROWS + 1)]))
        await session.tick()
        await session.tick()

    asyncio.run(course())
    assert [len(rows) for rows in kafka.sent] == [MOST_ROWS, 1]


# --- What the views answer


@pytest.fixture(scope="module")
def reader() -> Reader:
    rows = [
        journey("u1", "demo_booked", "c1", 3 * HOUR_MS),
        journey("u2", "demo_booked", "c2", HOUR_MS, advertiser="far", credited=None),
        journey("u3", "newsletter", "c3", 2 * HOUR_MS),
        journey("u4", "signup", "c4", 2 * HOUR_MS),
    ]
    return desk_of(*journeys(*rows), now_ms=8 * HOUR_MS)


def users(reader: Reader, view: Any, topic: str, **query: str) -> list[str]:
    found = orjson.loads(answer(view, [*reader.published.rows[topic].values(), b"nonsense"], query))
    return [row["user_id"] for row in found["rows"]]


def test_the_most_urgent_lead_comes_first_and_those_without_a_time_last(reader: Reader) -> None:
    assert users(reader, LEADS_VIEW, LEADS) == ["u2", "u1", "u3", "u4"]
    assert users(reader, OVERDUE_VIEW, OVERDUE) == ["u2", "u1"]
    assert users(reader, OVERDUE_VIEW, OVERDUE, platform="google_ads") == ["u2"]
    assert users(reader, LEADS_VIEW, LEADS, temperature="cool", limit="1") == ["u3"]
    assert users(reader, LEADS_VIEW, LEADS, **{"from": str(2 * HOUR_MS), "to": "1970-01-01T03:00:00Z"}) == ["u3", "u4"]
    assert orjson.loads(answer(LEADS_VIEW, reader.published.rows[LEADS].values(), {"limit": "0"})) == {
        "total": 4,
        "rows": [],
    }


@pytest.mark.parametrize(
    "query",
    [{"limit": "x"}, {"limit": "10001"}, {"from": "soon"}, {"name": "u1"}, {"state": "open"}, {"temperature": ""}],
)
def test_a_question_that_makes_no_sense_is_refused_and_told_why(reader: Reader, query: dict[str, str]) -> None:
    with pytest.raises(AskedWrongly):
        answer(LEADS_VIEW, reader.published.rows[LEADS].values(), query)


def returned(value: str | None, period: str = "to_date", level: str = "source", **fields: Any) -> bytes:
    """A row of returns of which only what is ordered by varies."""
    numbers = dict.fromkeys(
        ("views", "clicks", "conversions", "micro", "macro", "leads", "new_customers", "returning_orders", "micro_users",
         "micro_to_macro_users"), 0,
    )  # fmt: skip
    empty = dict.fromkeys(("platform", "micro_to_macro", "share_of_leads", "share_of_new_customers"))
    row = ReturnRow(
        **{
            "advertiser_id": "shop", "period": period, "level": level, "value": value, "from_day": "2026-11-16",
            "to_day": "2026-11-22", "time_zone": "UTC", "money": [], **numbers, **empty, **fields,
        }
    )  # fmt: skip
    return encode(row)


def values(rows: list[bytes], **query: str) -> list[str | None]:
    return [row["value"] for row in orjson.loads(answer(RETURN, rows, query))["rows"]]


def test_what_brings_the_most_customers_comes_first() -> None:
    rows = [
        returned("mail", conversions=90, leads=200),
        returned("search", new_customers=7, conversions=9, from_day="2026-12-01"),
        returned("news", new_customers=8, conversions=8),
        returned(None, new_customers=8),
        returned("old", "2026-W46", from_day="2026-11-09"),
        returned("new", "2026-W47"),
        returned("/a", level="landing_page"),
    ]
    assert values(rows, level="source", period="to_date") == ["news", None, "search", "mail"]
    assert values(rows, level="source") == ["news", None, "search", "mail", "new", "old"]
    assert values(rows, value="/a") == ["/a"]
    for query in ({"level": "colour"}, {"from": "0"}, {"state": "won"}):
        with pytest.raises(AskedWrongly):
            answer(RETURN, rows, query)


def test_the_revenue_check_is_shown_as_the_command_prints_it() -> None:
    fold = Reconciliation(money.SETTINGS, money.POLICY, money.DESK)
    for each in money.numbered(
        [
            *money.conversion("2026-11-16T12:00", "c1"),
            *money.conversion("2026-11-17T12:00", "c2", platform="google_ads", campaign_id="brand"),
            money.report("2026-11-16", 5, campaign="fall"),
            money.report("2026-11-16", 1),
        ]
    ):
        fold.take(each)
    rows = [output.value for output in fold.rows(0) if output.value is not None]
    shown = orjson.loads(answer(RECONCILIATION, rows, {"period": "2026-W47"}))["rows"]
    wanted = sorted_rows(row for row in map(decode_reconciliation, rows) if row.period == "2026-W47")
    assert [(row["platform"], row["campaign_id"]) for row in shown] == [
        (row.platform, row.campaign_id) for row in wanted
    ]
    assert orjson.loads(answer(RECONCILIATION, rows, {"scope": "all"}))["total"] == 2


class Never:
    """Answers nothing in time."""

    def result(self, timeout_s: float) -> Any:
        raise TimeoutError


def test_a_pause_while_the_ends_are_asked_for_is_no_answer_and_ends_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = SimpleNamespace(list_offsets=lambda asked, **_: dict.fromkeys(asked, Never()))
    monkeypatch.setattr(log_module, "AdminClient", lambda _: admin)
    with pytest.raises(KafkaException, match="no answer about the ends"):
        log_module.Ends(Settings()).ask([(IN, 0)])


# --- The policy


def test_a_desk_goes_by_the_recorded_policy_and_begins_anew_with_a_new_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def file(name: str, **changes: Any) -> Settings:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(money.DOCUMENT | changes))
        return Settings(policy=path)

    recorded: list[bytes] = []
    monkeypatch.setattr(policy_topic, "policy_values", lambda *_: recorded)
    settings = file("first.yaml")
    desk = Desk(settings, money.DESK, SimpleNamespace(kafka_line=None))  # type: ignore[arg-type]
    topics = {settings.policy_topic: Topic(1, "a")}
    monkeypatch.setattr(desk._clients, "topics", lambda _: topics)
    desk._policy = desk._in_force()
    assert desk._policy == money.POLICY, "while nothing is recorded, the file's"
    versions = money.followed_by(
        money.DOCUMENT | {"platforms": {"meta": money.DOCUMENT["platforms"]["meta"]}}, 10**12
    ).versions
    recorded.append(encode_policy(Recorded(money.POLICY.bounds, versions[0])))
    desk._look_around(topics)  # what it goes by already
    recorded.append(encode_policy(Recorded(money.POLICY.bounds, versions[1])))
    with pytest.raises(DeskEnded, match="new version") as ended:
        desk._look_around(topics)
    assert ended.value.cause == "policy"
    desk._policy = desk._in_force()
    assert (desk._policy.versions, set(desk._policy.platforms())) == (versions, {"meta", "google_ads"})
    desk._look_around(topics)
    with pytest.raises(DeskEnded, match="made anew"):
        desk._look_around({settings.policy_topic: Topic(2, "a")})
    later = Desk(settings, money.DESK, SimpleNamespace(kafka_line=None))  # type: ignore[arg-type]
    monkeypatch.setattr(later._clients, "topics", lambda _: topics)
    with pytest.raises(PolicyError, match="holds an older version"):
        later._in_force()
    topics.clear()
    with pytest.raises(DeskEnded, match="no such topic"):
        later._in_force()


# --- The names


def test_the_policy_of_the_tests_is_that_of_the_made_up_rows() -> None:
    path = Path(__file__).with_name("policy.yaml")
    from tests.desk.made import DESK, ORDERS

    journeys_ = load_policy(path)[0].bounds.journeys
    assert load_desk(path) == DESK
    assert journeys_ is not None
    assert journeys_.orders == ORDERS
    assert (Settings().journeys_topic, Settings().followups_topic) == (JOURNEYS, FOLLOWUPS)
    assert encode(journey("u", "signup", "e", 1))
