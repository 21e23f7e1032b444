"""Waiting for a group whose coordinator is not ready yet."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from app.settings import Settings
from app.verify import logs
from app.verify.records import VerifyError

BEHIND = {("ads.events", 0): (3, 5)}


def wait(monkeypatch: pytest.MonkeyPatch, answers: list[object], wait_s: float = 60) -> None:
    """Waits for a group that gives these answers, one after the other."""

    def unread_spans(settings: Settings, group: str, spans: logs.Spans) -> logs.Spans:
        answer = answers.pop(0)
        if isinstance(answer, int):
            raise KafkaException(KafkaError(answer))
        return answer  # type: ignore[return-value]

    monkeypatch.setattr(logs, "unread_spans", unread_spans)
    monkeypatch.setattr(logs, "_POLL_S", 0)
    logs.wait_until_read(Settings(), "onecount.counter", BEHIND, wait_s)


def test_a_coordinator_that_is_still_loading_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [KafkaError.COORDINATOR_LOAD_IN_PROGRESS, BEHIND, KafkaError.NOT_COORDINATOR, {}]
    wait(monkeypatch, answers)
    assert not answers


def test_a_coordinator_that_loads_for_longer_than_the_wait_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaException):
        wait(monkeypatch, [KafkaError.COORDINATOR_LOAD_IN_PROGRESS] * 2, wait_s=-1)


def test_a_broker_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaException):
        wait(monkeypatch, [KafkaError._TIMED_OUT, {}])


def test_a_group_that_stays_behind_is_told_with_its_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerifyError, match=r"ads\.events/0 up to 2"):
        wait(monkeypatch, [BEHIND], wait_s=-1)
