"""What a session tells of itself: how far behind it is, what becomes of its transaction, signs of life in long work."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from confluent_kafka import KafkaError, KafkaException

from app.columns.table import StateDamaged
from app.engine import loop, rebuild
from app.engine.ledger import Mode
from app.engine.loop import cause_of
from app.engine.session import Lag, Session, SessionEnded
from app.engine.store import StoreUnavailable
from app.observe.catalogue import SESSION_CAUSES
from app.policy.load import load_policy
from app.settings import Settings
from tests.integration.deployment import POLICY
from tests.memory.deployment import Deployment, deployed
from tests.memory.log import Fate, MemoryMessage

TOPIC = "ads.events"


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    """One counter in memory, and twenty records that are no events, a second apart; the first five are gone."""
    made = Deployment(load_policy(POLICY)[0])
    for number in range(20):
        made.broker.append(TOPIC, 0, value=b"{}", timestamp=1_000 * (number + 1))
    made.broker.logs[TOPIC, 0].first = 5
    with deployed(made):
        yield made


def test_the_lag_is_of_records_that_are_not_counted_and_of_what_the_log_holds(deployment: Deployment) -> None:
    assert deployment.turn("counter-0", grant=3) == 3
    session = deployment.workers["counter-0"].session
    assert session is not None
    assert session.lag() == Lag(12, 8_000, 12 / 15)
    assert deployment.turn("counter-0", grant=3) == 3
    assert session.lag() == Lag(9, 11_000, 9 / 15)
    session.owned[0].add(TOPIC, [MemoryMessage((TOPIC, 0), 11, timestamp_ms=12_000)])
    assert session.lag() == Lag(9, 12_000, 9 / 15), "one that was consumed and not folded waits too"
    session.owned[0].pending.clear()
    session.owned[0].read[TOPIC] = 11
    deployment.drain()
    assert session.lag() == Lag(0, None, 0.0)


def test_news_of_a_partition_s_end_does_not_close_a_batch_while_records_are_at_hand(deployment: Deployment) -> None:
    def prepare(session: Session) -> None:
        session.reading = session.reading._replace(slice_records=4)
        session.closed_at -= 10  # the commit interval is over

    # the end of the re-keyed topic's partition comes first, and takes one of the four places
    assert deployment.turn("counter-0", rotation=1, prepare=prepare) == 15


def read_s(late_s: float, until_s: float, interval_ms: int = 200) -> float:
    """How long a batch is read (s), where a record comes every 10 ms until a time (s)."""
    now_s = 0.0

    def poll(count: int, timeout_s: float) -> tuple[int, int]:
        nonlocal now_s
        if now_s < until_s:
            now_s += min(timeout_s, 0.01)
            return 1, 100
        now_s += timeout_s
        return 0, 0

    reading = SimpleNamespace(share=1, slice_records=100)
    session: Any = SimpleNamespace(late_s=late_s, closed_at=0.0, reading=reading, poll=poll)
    with patch.object(loop, "time", SimpleNamespace(monotonic=lambda: now_s)):
        loop._read(session, Settings(commit_interval_ms=interval_ms))
    assert session.closed_at == now_s
    return now_s


@pytest.mark.parametrize(("late_s", "takes_s"), [(0, 0.2), (-5, 0.2), (1.5, 0.2), (4, 0.4), (20, 1.0), (1e9, 1.0)])
def test_a_batch_of_late_events_takes_a_tenth_of_their_delay_and_five_intervals_at_most(
    late_s: float, takes_s: float
) -> None:
    assert read_s(late_s, until_s=10) == pytest.approx(takes_s)


def test_a_long_commit_interval_is_not_made_longer() -> None:
    assert read_s(3_600, until_s=30, interval_ms=5_000) == pytest.approx(5, abs=0.011)
    assert read_s(3_600, until_s=30, interval_ms=400) == pytest.approx(1, abs=0.011)


@pytest.mark.parametrize(("until_s", "takes_s"), [(0, 0.2), (0.1, 0.3), (0.5, 0.7), (0.9, 1.0)])
def test_a_batch_of_late_events_ends_an_interval_after_the_last_one(until_s: float, takes_s: float) -> None:
    assert read_s(3_600, until_s) == pytest.approx(takes_s, abs=0.011)


def test_aggregators_hear_from_counters_how_late_events_are(deployment: Deployment) -> None:
    def late_s(name: str) -> float:
        assert deployment.turn(name) > 0
        session = deployment.workers[name].session
        assert session is not None
        return session.late_s

    deployment.clock_ms = 50_000
    assert late_s("counter-0") == 0, "a counter has no rows that would be written once more"
    assert late_s("aggregator-0") == 30
    assert deployment.turn("aggregator-0") == 0
    session = deployment.workers["aggregator-0"].session
    assert session is not None
    assert session.late_s == 0, "it has caught up: nothing came"
    deployment.broker.append(TOPIC, 0, value=b"{}", timestamp=49_000)
    assert (late_s("counter-0"), late_s("aggregator-0")) == (0, 1)
    deployment.idle("counter-0")
    assert late_s("aggregator-0") == 0, "a word of an idle counter is of no event"


def test_a_log_of_which_nothing_was_deleted_is_in_no_danger(deployment: Deployment) -> None:
    deployment.broker.logs[TOPIC, 0].first = 0
    deployment.turn("counter-0", grant=3)
    session = deployment.workers["counter-0"].session
    assert session is not None
    assert session.lag().retention_ratio == 0.0


def test_reading_back_what_is_published_shows_signs_of_life() -> None:
    messages = [MemoryMessage((TOPIC, 0), at, str(at % 7).encode(), b"value") for at in range(100)]
    beats: list[int] = []
    with (
        patch.object(rebuild, "read_partition", return_value=iter(messages)),
        patch.object(rebuild, "BEAT_RECORDS", 10),
    ):
        found = list(rebuild.read_back(None, TOPIC, 0, 0, lambda: beats.append(1)))  # type: ignore[arg-type]
    assert len(found) == 100
    assert len(beats) == 10


def test_each_answer_of_redis_in_a_long_work_is_a_sign_of_life(deployment: Deployment) -> None:
    deployment.turn("counter-0", grant=3)
    session = deployment.workers["counter-0"].session
    assert session is not None
    beats: list[int] = []
    session.beat = lambda: beats.append(1)
    session.stage.open(0, None, session.run)
    list(session.stage.reconcile(0, 0, iter(()), 0, session.run))
    assert len(beats) > 1


@pytest.mark.parametrize("fate", Fate)
def test_a_commit_that_is_not_answered_is_ambiguous_whatever_became_of_it(deployment: Deployment, fate: Fate) -> None:
    assert deployment.turn("counter-0", grant=3) == 3
    session = deployment.workers["counter-0"].session
    assert session is not None
    assert session.unsettled is None
    deployment.broker.transactional_id(session.producer.name).fates.append(fate)
    deployment.turn("counter-0", grant=3)
    assert deployment.workers["counter-0"].session is None
    assert session.unsettled == "ambiguous"


def test_a_transaction_that_ends_before_its_commit_is_aborted(deployment: Deployment) -> None:
    def lose(step: str) -> None:
        if step == "produced":
            raise SessionEnded("gone")

    assert deployment.turn("counter-0", grant=3) == 3
    session = deployment.workers["counter-0"].session
    assert session is not None
    deployment.turn("counter-0", grant=3, at_step=lose)
    assert session.unsettled == "aborted"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (StoreUnavailable("gone"), "redis"),
        (StateDamaged("torn"), "state"),
        (KafkaException(KafkaError(KafkaError._TIMED_OUT)), "kafka"),
        (SessionEnded("refused"), "kafka"),
        (SessionEnded("the policy has a new version", "policy"), "policy"),
    ],
)
def test_the_end_of_a_session_has_a_cause_of_the_catalogue(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause
    assert cause in SESSION_CAUSES


@pytest.mark.parametrize("others", [0, 1])
def test_only_a_topic_that_waits_for_another_one_is_held_back(deployment: Deployment, others: int) -> None:
    """A paused topic fetches again what it has fetched: a reader that is alone must never stop."""
    deployment.turn("counter-0", grant=1)
    session = deployment.workers["counter-0"].session
    assert session is not None
    session.settings = session.settings.model_copy(update={"max_batch_events": 2})
    if others:
        session.owned[0].at_end.discard("onecount.rekeyed")
    session.consumer.grant = 10
    assert session.poll(10, 0.0)[0] == 10
    assert session.owned[0].paused == ({TOPIC} if others else set())


def test_what_may_be_folded_next_is_held_back_only_if_it_was_not(deployment: Deployment) -> None:
    deployment.turn("counter-0", grant=1)
    session = deployment.workers["counter-0"].session
    assert session is not None
    session.settings = session.settings.model_copy(update={"max_batch_events": 2})
    session.owned[0].mode = Mode.REBUILD
    session.consumer.grant = 10
    session.poll(10, 0.0)
    assert not session.owned[0].paused
    session.hold_back(session.owned)
    assert session.owned[0].paused == {TOPIC}


def test_a_topic_that_was_held_back_is_counted_to_its_end_though_no_other_one_says_anything(
    deployment: Deployment,
) -> None:
    deployment.turn("counter-0", grant=1)
    session = deployment.workers["counter-0"].session
    assert session is not None
    session.settings = session.settings.model_copy(update={"max_batch_events": 2})
    session.owned[0].at_end.discard("onecount.rekeyed")
    session.consumer.grant = 10
    session.poll(10, 0.0)
    assert session.owned[0].paused == {TOPIC}
    session.owned[0].at_end.add("onecount.rekeyed")  # its end is told
    deployment.drain()
    assert session.lag() == Lag(0, None, 0.0)
