"""Leads: any order, any repeat, any cut and restart of the desk ends in the rows of the oracle."""

import random
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract import reasons
from app.contract.events import Rejection
from app.contract.journeys import JourneyRow
from app.contract.leads import FollowedUp, LeadRow, decode_follow_up
from app.desk.fold import Input
from app.desk.leads import CLOSINGS_KEPT, LeadsFold
from app.policy.desk import Desk
from tests.desk import oracle
from tests.desk.made import (
    DESK,
    FOLLOWUPS,
    JOURNEYS,
    LEADS,
    ORDERS,
    OVERDUE,
    REFUSED,
    Reader,
    as_input,
    holds,
    journey,
    key_of,
    told,
)

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
LATER_MS = 40 * DAY_MS
ACTIONS = ("demo_booked", "newsletter", "signup", "purchase")
KINDS = ("contacted", "sent", "won", "lost")
KEY = ("shop", "u1", "demo_booked")


def new_fold(desk: Desk = DESK, held_ms: int = 180 * DAY_MS) -> LeadsFold:
    return LeadsFold(JOURNEYS, FOLLOWUPS, LEADS, OVERDUE, REFUSED, desk, ORDERS, 300_000, held_ms)


def desk_of(*records: Input, now_ms: int = LATER_MS) -> Reader:
    """What is published of these records by a desk that reads them at once."""
    fold, reader = new_fold(), Reader((LEADS, OVERDUE, REFUSED))
    for record in records:
        fold.take(record)
    reader.begin([fold], now_ms)
    return reader


def journeys(*rows: JourneyRow) -> list[Input]:
    return [as_input(JOURNEYS, offset, key_of(row), row) for offset, row in enumerate(rows)]


def followups(*values: bytes) -> list[Input]:
    return [as_input(FOLLOWUPS, offset, b"any", value) for offset, value in enumerate(values)]


def test_a_demo_is_a_hot_lead_that_waits_for_a_call_within_four_hours() -> None:
    reader = desk_of(*journeys(journey("u1", "demo_booked", "c1", HOUR_MS)), now_ms=2 * HOUR_MS)
    assert reader.rows(LEADS) == {
        KEY: {
            "advertiser_id": "shop", "user_id": "u1", "conversion_name": "demo_booked", "state": "waiting",
            "temperature": "hot", "outcome": "revenue", "opened_time": HOUR_MS, "opened_by": "c1", "conversions": 1,
            "last_time": HOUR_MS, "follow_up": "call back", "waiting_since": HOUR_MS, "due_time": 5 * HOUR_MS,
            "answered_time": None, "closed_time": None, "closed_by": None, "platform": "meta", "campaign_id": "spring",
            "source": "facebook", "medium": "cpc", "landing_page": "/mattress",
        }
    }  # fmt: skip
    assert reader.rows(OVERDUE) == {}


def test_it_is_overdue_a_millisecond_after_its_time_and_no_more_once_it_is_followed_up() -> None:
    fold, reader = new_fold(), Reader((LEADS, OVERDUE, REFUSED))
    fold.take(journeys(journey("u1", "demo_booked", "c1", 0))[0])
    reader.read(fold.rows(4 * HOUR_MS))
    assert reader.rows(OVERDUE) == {}
    reader.read(fold.rows(4 * HOUR_MS + 1))
    assert reader.rows(OVERDUE)[KEY]["due_time"] == 4 * HOUR_MS
    assert list(fold.rows(4 * HOUR_MS + 1000)) == []  # told once
    fold.take(followups(told("contacted", 5 * HOUR_MS, "u1", "demo_booked"))[0])
    reader.read(fold.rows(5 * HOUR_MS))
    assert reader.rows(OVERDUE) == {}
    assert reader.rows(LEADS)[KEY]["state"] == "answered"


def test_a_clock_that_was_set_back_and_goes_on_tells_of_it_again() -> None:
    fold, reader = new_fold(), Reader((LEADS, OVERDUE, REFUSED))
    fold.take(journeys(journey("u1", "demo_booked", "c1", 0))[0])
    reader.read(fold.rows(5 * HOUR_MS))
    fold.take(journeys(journey("u2", "signup", "c2", 0), journey("u1", "signup", "c3", 0))[1])
    reader.read(fold.rows(HOUR_MS))
    assert reader.rows(OVERDUE) == {}
    reader.read(fold.rows(5 * HOUR_MS))
    assert KEY in reader.rows(OVERDUE)


def test_a_new_conversion_after_the_call_waits_for_another_one() -> None:
    conversions = journeys(journey("u1", "demo_booked", "c1", 0), journey("u1", "demo_booked", "c2", 9 * HOUR_MS))
    lead = desk_of(*conversions, *followups(told("contacted", HOUR_MS, "u1", None))).rows(LEADS)[KEY]
    assert (lead["state"], lead["waiting_since"], lead["conversions"]) == ("waiting", 9 * HOUR_MS, 2)
    assert lead["answered_time"] == HOUR_MS


def test_a_cool_lead_becomes_hot_by_a_later_hard_action_and_not_by_an_earlier_one() -> None:
    cool = journey("u1", "newsletter", "c1", 2 * HOUR_MS)
    earlier = desk_of(*journeys(cool, journey("u1", "demo_booked", "c2", HOUR_MS)))
    assert earlier.rows(LEADS)["shop", "u1", "newsletter"]["temperature"] == "cool"
    later = desk_of(*journeys(cool, journey("u1", "demo_booked", "c2", 3 * HOUR_MS)))
    assert later.rows(LEADS)["shop", "u1", "newsletter"]["temperature"] == "hot"


def test_a_purchase_wins_all_leads_and_its_retraction_takes_that_back() -> None:
    rows = [journey("u1", "demo_booked", "c1", 0), journey("u1", "newsletter", "c2", HOUR_MS)]
    bought = journey("u1", "purchase", "o1", 2 * HOUR_MS)
    won = desk_of(*journeys(*rows, bought)).rows(LEADS)
    assert {(lead["state"], lead["closed_by"]) for lead in won.values()} == {("won", "purchase")}
    taken_back = as_input(JOURNEYS, 9, key_of(bought), journey("u1", "purchase", "o1", 2 * HOUR_MS, status="retracted"))
    again = desk_of(*journeys(*rows, bought), taken_back).rows(LEADS)
    assert {lead["state"] for lead in again.values()} == {"waiting"}


def test_what_happens_in_the_millisecond_of_a_conversion_comes_after_it() -> None:
    rows = journeys(journey("u1", "demo_booked", "c1", 0), journey("u1", "demo_booked", "c2", HOUR_MS))
    lost = desk_of(*rows, *followups(told("lost", 0, "u1", "demo_booked"))).rows(LEADS)[KEY]
    assert (lost["state"], lost["opened_time"], lost["conversions"]) == ("waiting", HOUR_MS, 1)
    answered = desk_of(*rows, *followups(told("sent", HOUR_MS, "u1", "demo_booked"))).rows(LEADS)[KEY]
    assert (answered["state"], answered["opened_time"], answered["conversions"]) == ("answered", 0, 2)


def test_a_retracted_conversion_takes_its_lead_back_with_what_was_overdue() -> None:
    fold, reader = new_fold(), Reader((LEADS, OVERDUE, REFUSED))
    row = journey("u1", "demo_booked", "c1", 0)
    fold.take(journeys(row)[0])
    reader.read(fold.rows(LATER_MS))
    assert KEY in reader.rows(OVERDUE)
    fold.take(as_input(JOURNEYS, 1, key_of(row), None))
    reader.read(fold.rows(LATER_MS))
    assert reader.rows(LEADS) == reader.rows(OVERDUE) == {}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", reasons.EMPTY),
        (None, reasons.NULL_RECORD),
        (b"{", reasons.INVALID_JSON),
        (b"\xff", reasons.INVALID_UTF8),
        (told("phoned", 1, "u1", None), reasons.INVALID_FIELD),
        (told("won", 1, "", None), reasons.INVALID_FIELD),
        (told("won", 1, "u\x00", None), reasons.INVALID_FIELD),
        (told("won", 4_000_000_300_001, "u1", None), reasons.IN_THE_FUTURE),
        (told("won", -1, "u1", None), reasons.INVALID_TIME),
        (b'{"kind":"won","event_time":1,"user_id":"u"}', reasons.MISSING_FIELD),
        (b'{"kind":"won","kind":"lost","event_time":1,"user_id":"u","advertiser_id":"s"}', reasons.DUPLICATE_KEY),
    ],
)
def test_a_follow_up_that_breaks_the_contract_is_named_and_the_others_count(bad: bytes | None, reason: str) -> None:
    good = told("lost", HOUR_MS, "u1", "demo_booked")
    records = [as_input(FOLLOWUPS, 0, b"somebody", bad), as_input(FOLLOWUPS, 1, b"k", good)]
    reader = desk_of(*journeys(journey("u1", "demo_booked", "c1", 0)), *records)
    (letter,) = reader.rows(REFUSED).items()
    assert letter[0] == (FOLLOWUPS, 0, 0)
    assert (letter[1]["reason"], letter[1]["size_bytes"]) == (reason, len(bad or b""))
    assert (letter[1]["key_base64"], letter[1]["value_base64"]) == (None, None), "it is kept for ever, and names nobody"
    assert reader.rows(LEADS)[KEY]["state"] == "lost"


def test_a_time_may_be_rfc_3339_and_long_past() -> None:
    found = decode_follow_up(
        told("sent", 0, "u1", None).replace(b'"event_time":0', b'"event_time":"2020-01-01T00:00:00+01:00"'), 10**13, 0
    )
    assert isinstance(found, FollowedUp)
    assert found.time_ms == 1_577_833_200_000
    assert not isinstance(found, Rejection)


def test_a_journey_that_is_none_is_refused_and_never_raised() -> None:
    fold = new_fold()
    for key, value in (
        (b"no key", b"{}"),
        (b'["a","b"]', None),
        (b'["a","b","c","d"]', b"{}"),
        (None, None),
        (b"7", None),
    ):
        fold.take(as_input(JOURNEYS, 0, key, value))
    assert sum(fold.refused.values()) == 5


def test_of_many_closings_the_latest_are_kept_whatever_their_order() -> None:
    closings = [told("lost", each * 1000, "u1", "demo_booked") for each in range(CLOSINGS_KEPT + 50)]
    kept = []
    for seed in range(3):
        random.Random(seed).shuffle(closings)
        fold = new_fold()
        for record in followups(*closings, *closings[:70]):
            fold.take(record)
        kept.append(fold._people["shop", "u1"].closings)
    assert kept[0] == kept[1] == kept[2]
    assert {each.time_ms for each in kept[0]} == {each * 1000 for each in range(50, CLOSINGS_KEPT + 50)}


# --- Any order, any repeat, any cut

times = st.integers(0, 6).map(lambda each: each * 3 * HOUR_MS)
users = st.sampled_from([("shop", "u1"), ("shop", "u1"), ("shop", "u2"), ("far", "u1")])
changes = st.lists(
    st.tuples(
        users,
        st.sampled_from(ACTIONS),
        st.sampled_from("abc"),
        times,
        st.sampled_from(["counted", "unattributed", "uncounted", "retracted", None]),
    ),
    max_size=14,
)
tells = st.lists(
    st.tuples(
        st.sampled_from(["contacted", "sent", "won", "lost"]), times, users, st.sampled_from([*ACTIONS[:3], None])
    ),
    max_size=8,
)


@given(changes, tells, st.randoms(use_true_random=False), st.integers(0, 4), st.sampled_from([4, 24, 90 * 24]))
def test_any_order_any_repeat_and_any_cut_end_in_the_oracles_rows(
    changes: list[Any], tells: list[Any], random: random.Random, cuts: int, kept_hours: int
) -> None:
    desk = msgspec.structs.replace(DESK, closed_kept_ms=kept_hours * HOUR_MS)
    latest: dict[bytes, JourneyRow | None] = {}
    records = []
    for offset, ((advertiser, user), action, event_id, time_ms, status) in enumerate(changes):
        row = journey(
            user, action, event_id, time_ms, advertiser=advertiser, status=status or "counted", revision=offset
        )
        records.append(as_input(JOURNEYS, offset, key_of(row), row if status else None))
        latest[key_of(row)] = row if status else None
    every = [oracle.Told(kind, time_ms, *who, action) for kind, time_ms, who, action in tells]
    records += followups(
        *(told(each.kind, each.time_ms, each.user_id, each.action, each.advertiser_id) for each in every)
    )
    records += random.choices(records, k=5) if records else []
    random.shuffle(records)
    now_ms = 0
    fold, reader = new_fold(desk), Reader((LEADS, OVERDUE, REFUSED))
    reader.begin([fold], now_ms)
    for cut in range(cuts + 1):
        for record in records[cut :: cuts + 1]:
            fold.take(record)
            if random.random() < 0.3:
                now_ms += random.randrange(4 * HOUR_MS)
                reader.read(fold.rows(now_ms))
        if random.random() < 0.5:  # the desk begins anew, and reads again all that there is by now
            fold = new_fold(desk)
            so_far = [record for other in range(cut + 1) for record in records[other :: cuts + 1]]
            random.shuffle(so_far)
            for record in so_far:
                fold.take(record)
            reader.begin([fold], now_ms)
    now_ms += random.randrange(10 * DAY_MS)
    reader.read(fold.rows(now_ms))
    wanted = oracle.kept(oracle.leads([row for row in latest.values() if row], every, desk, ORDERS), desk, now_ms)
    assert reader.rows(LEADS) == wanted
    assert reader.rows(OVERDUE) == oracle.overdue(wanted, now_ms)
    assert reader.rows(REFUSED) == {}
    for row in reader.rows(LEADS).values():
        assert tuple(row) == LeadRow.__struct_fields__
    assert all(orjson.loads(key) for key in reader.published.rows[LEADS])


# --- What is let go


def closing(kind: str, time_ms: int) -> Input:
    return followups(told(kind, time_ms, "u1", "demo_booked"))[0]


def test_a_closed_lead_goes_after_its_time_and_a_new_conversion_opens_one() -> None:
    fold, reader = new_fold(), Reader((LEADS, OVERDUE, REFUSED))
    fold.take(journeys(journey("u1", "demo_booked", "c1", 0))[0])
    fold.take(closing("lost", HOUR_MS))
    reader.read(fold.rows(HOUR_MS + 90 * DAY_MS))
    assert reader.rows(LEADS)[KEY]["state"] == "lost"
    reader.read(fold.rows(HOUR_MS + 90 * DAY_MS + 1))
    assert reader.rows(LEADS) == {}
    fold.take(as_input(FOLLOWUPS, 1, b"k", told("won", 100 * DAY_MS, "u1", "demo_booked")))
    reader.read(fold.rows(100 * DAY_MS))
    assert reader.rows(LEADS) == {}, "it was let go before it was won"
    fold.take(
        as_input(JOURNEYS, 1, b'["shop","u1","demo_booked","c2"]', journey("u1", "demo_booked", "c2", 101 * DAY_MS))
    )
    reader.read(fold.rows(101 * DAY_MS))
    lead = reader.rows(LEADS)[KEY]
    assert (lead["state"], lead["opened_by"], lead["conversions"]) == ("waiting", "c2", 1)


def test_who_has_no_open_lead_and_nothing_that_can_change_is_held_no_more() -> None:
    fold = new_fold()
    for number in range(400):  # a day each: one in four is never closed
        rows = [journey(f"u{number}", "demo_booked", "c1", number * DAY_MS)]
        rows += [journey(f"u{number}", "purchase", "o1", number * DAY_MS + 1)] if number % 4 else []
        for each in rows:
            fold.take(as_input(JOURNEYS, number, key_of(each), each))
        fold.take(as_input(FOLLOWUPS, number, b"k", told("contacted", number * DAY_MS, f"stranger{number}", None)))
    list(fold.rows(400 * DAY_MS))
    open_ones = [user for _, user in fold._people if user.startswith("u") and int(user[1:]) % 4 == 0]
    assert len(open_ones) == 100, "no open lead goes to waste"
    assert len(fold) - len(open_ones) < 1.8 * 182, "closed ones and strangers of the last 180 days"


def test_an_old_row_that_is_written_once_more_makes_no_lead_of_who_was_let_go() -> None:
    fold = new_fold()
    rows = [journey("u1", "demo_booked", "c1", 0), journey("u1", "purchase", "o1", HOUR_MS)]
    for record in journeys(*rows, journey("u2", "signup", "c2", 200 * DAY_MS), rows[0]):
        fold.take(record)
    assert [output.key for output in fold.rows(200 * DAY_MS)] == [b'["shop","u2","signup"]']


@pytest.mark.parametrize("is_active", [True, False])
def test_of_a_person_who_is_forgotten_nothing_is_held_any_more(is_active: bool) -> None:
    fold, reader = new_fold(), Reader((LEADS, OVERDUE, REFUSED))
    rows = [
        journey("somebody", "demo_booked", "c1", HOUR_MS),
        journey("somebody", "newsletter", "c2", 20 * DAY_MS),
        journey("somebody", "signup", "c3", HOUR_MS, status="retracted"),
        journey("other", "signup", "c4", HOUR_MS),
    ]
    for record in journeys(*rows):
        fold.take(record)
    if is_active:
        reader.read(fold.rows(DAY_MS))
        assert len(reader.rows(LEADS)) == 3
    assert holds(fold.__dict__, "somebody")
    for offset, row in enumerate(rows[:3]):
        fold.take(as_input(JOURNEYS, 10 + offset, key_of(row), None))
    if is_active:
        reader.read(fold.rows(DAY_MS))
        assert [key[1] for key in reader.rows(LEADS)] == ["other"]
        assert not holds(reader.published.rows, "somebody")
    assert not holds(fold.__dict__, "somebody")
    assert holds(fold.__dict__, "other")
    fold.take(journeys(*rows)[0])  # of before the deletion
    assert not holds(fold.__dict__, "somebody")


# --- A log as counters write it: a conversion comes within the horizon of the newest one, changes within the time of a
# correction, and follow-ups are of any age

HORIZON_MS, CORRECTED_MS, KEPT_MS = DAY_MS, 3 * DAY_MS, 2 * DAY_MS
WHAT = ("convert", "convert", "convert", "buy", "buy", "retract", "tell", "tell", "rows", "rows", "forget")
PASSES_H, BACK_H = (0, 1, 12, 30), (0, 0, 0, 3, 20, 60, 500)


class Log:
    """What a desk with other times is told, step by step, and what a reader of its topics holds."""

    def __init__(self, chance: random.Random) -> None:
        self.desk = msgspec.structs.replace(DESK, closed_kept_ms=KEPT_MS)
        self.fold, self.reader = self.new_fold(), Reader((LEADS, OVERDUE, REFUSED))
        self.reader.begin([self.fold], 0)
        self.latest: dict[bytes, JourneyRow] = {}
        self.told: list[oracle.Told] = []
        self.records: list[Input] = []
        self.now_ms, self.stream_ms = 100 * DAY_MS, 0
        self._chance = chance

    def new_fold(self) -> LeadsFold:
        return new_fold(self.desk, max(CORRECTED_MS + HORIZON_MS, 2 * KEPT_MS))

    def step(self) -> None:
        self.now_ms += self._chance.choice(PASSES_H) * HOUR_MS
        getattr(self, self._chance.choice(WHAT))()

    def rows(self) -> None:
        self.reader.read(self.fold.rows(self.now_ms))

    def convert(self, actions: tuple[str, ...] = ACTIONS[:2]) -> None:
        time_ms = max(self._back_ms(), self.stream_ms - HORIZON_MS)
        self.stream_ms = max(self.stream_ms, time_ms)
        self._write(journey(self._user(), self._chance.choice(actions), f"e{len(self.records)}", time_ms))

    def buy(self) -> None:
        self.convert(("purchase",))

    def retract(self) -> None:
        able = [row for row in self.latest.values() if row.event_time >= self.stream_ms - CORRECTED_MS]
        if able:
            self._write(msgspec.structs.replace(self._chance.choice(able), status="retracted"))

    def tell(self) -> None:
        kind, action = self._chance.choice(KINDS), self._chance.choice((*ACTIONS[:2], None))
        each = oracle.Told(kind, self._back_ms(), "shop", self._user(), action)
        self.told.append(each)
        self._take(FOLLOWUPS, b"k", told(each.kind, each.time_ms, each.user_id, each.action))

    def forget(self) -> None:
        user = self._user()
        for key in [key for key, row in self.latest.items() if row.user_id == user]:
            del self.latest[key]
            self._take(JOURNEYS, key, None)

    def _user(self) -> str:
        return self._chance.choice(("u1", "u1", "u2"))

    def _back_ms(self) -> int:
        return self.now_ms - self._chance.choice(BACK_H) * HOUR_MS

    def _write(self, row: JourneyRow) -> None:
        self.latest[key_of(row)] = row
        self._take(JOURNEYS, key_of(row), row)

    def _take(self, topic: str, key: bytes, value: Any) -> None:
        self.records.append(as_input(topic, len(self.records), key, value))
        self.fold.take(self.records[-1])


def test_what_is_let_go_changes_no_row_whatever_comes_later() -> None:
    for seed in range(600):
        log = Log(random.Random(seed))
        for _ in range(20):
            log.step()
        log.rows()
        wanted = oracle.kept(oracle.leads(log.latest.values(), log.told, log.desk, ORDERS), log.desk, log.now_ms)
        assert log.reader.rows(LEADS) == wanted, seed
        assert log.reader.rows(OVERDUE) == oracle.overdue(wanted, log.now_ms), seed
        for order in (lambda each: 0, lambda each: each.topic == JOURNEYS, lambda each: each.topic == FOLLOWUPS):
            again = log.new_fold()  # a desk that begins: its topics come in any order, each in its own
            for record in sorted(log.records, key=order):
                again.take(record)
            before = log.reader.offset
            log.reader.begin([again], log.now_ms)
            assert log.reader.offset == before, f"{seed}: nothing is published that is right already"
