"""A refusal because of the group's offsets is told twice before a worker stops."""

from types import SimpleNamespace
from typing import Any

import pytest

from app.engine import loop
from app.engine.state import OffsetsRefused, StateRefused
from app.settings import Settings


class Told:
    """Hears what the worker says of its sessions."""

    def __init__(self) -> None:
        self.sessions: list[str] = []

    def beat(self) -> None: ...

    def policy(self, policy: Any) -> None: ...

    def session(self, state: str, detail: str) -> None:
        self.sessions.append(detail)


def run(monkeypatch: pytest.MonkeyPatch, outcomes: list[BaseException | None]) -> Told:
    """Runs a worker whose sessions end in these ways, one after the other; None: it counts until it is stopped."""
    store = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(loop, "ASK_AGAIN_S", 0)
    monkeypatch.setattr(loop, "open_store", lambda *_: store)
    monkeypatch.setattr(loop.Worker, "_look_at", lambda *_: None)
    monkeypatch.setattr(loop, "refuse_changed_topics", lambda *_: ({}, {}))
    policy = SimpleNamespace(versions=(1,))
    monkeypatch.setattr(loop, "establish", lambda *_, **__: (policy, 1))
    monkeypatch.setattr(loop, "make_stage", lambda *_: (None, None))
    session = SimpleNamespace(start=lambda: None, close=lambda: None, folded=0, unsettled=None)
    monkeypatch.setattr(loop, "Session", lambda *_: session)
    told = Told()
    worker = loop.Worker(Settings(), "counter", "counter-0", told, None)  # type: ignore[arg-type]

    def run_session(*_: Any) -> None:
        outcome = outcomes.pop(0)
        if outcome is None:
            worker.stop.set()
        else:
            raise outcome

    monkeypatch.setattr(worker, "_run_session", run_session)
    worker.run()
    return told


def test_offsets_that_fit_when_they_are_asked_for_again_stop_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    told = run(monkeypatch, [OffsetsRefused("M > C"), None])
    assert told.sessions == ["asking the group once more: M > C"]


def test_offsets_that_contradict_the_state_twice_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OffsetsRefused, match="M > C"):
        run(monkeypatch, [OffsetsRefused("M > C"), OffsetsRefused("M > C"), None])


def test_any_other_refusal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StateRefused, match="the topic"):
        run(monkeypatch, [StateRefused("the topic is gone"), None])
