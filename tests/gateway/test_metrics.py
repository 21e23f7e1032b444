"""What the gateway tells Prometheus: every series of the catalogue from the start, and what the alarms ask for."""

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app.gateway.metrics import Metrics
from app.observe.catalogue import CATALOGUE
from app.observe.dead_letters import JUDGED_MIN

DOOR = "/v1/events"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics((DOOR,), 0.05, "gateway-0")


def samples(metrics: Metrics) -> dict[str, float]:
    """The sum of each name's series."""
    found: dict[str, float] = {}
    for shown in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in shown.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_every_series_is_there_from_the_start_with_zero(metrics: Metrics) -> None:
    shown = {name: value for name, value in samples(metrics).items() if name.startswith("onecount_")}
    names = set()
    for entry in CATALOGUE:
        suffixes = ("_bucket", "_count", "_sum") if entry.kind == "histogram" else ("",)
        if "gateway" in entry.roles:
            names |= {entry.name + suffix for suffix in suffixes}
    assert set(shown) == names
    assert {name: value for name, value in shown.items() if value} == {
        "onecount_worker_info": 1, "onecount_dead_letter_ratio_limit": 0.05,
    }  # fmt: skip
    assert metrics.registry.get_sample_value(
        "onecount_worker_info", {"role": "gateway", "worker": "gateway-0", "version": __version__}
    )


def test_the_alarms_sums_have_all_their_parts_from_the_start(metrics: Metrics) -> None:
    found = metrics.registry.get_sample_value
    assert found("onecount_gateway_events_total", {"door": DOOR, "outcome": "unavailable"}) == 0
    assert found("onecount_gateway_refused_requests_total", {"status": "503"}) == 0
    assert found("onecount_gateway_pixels_total", {"outcome": "lost"}) == 0
    assert found("onecount_gateway_lost_pixels_total") == 0


def test_the_share_of_refused_events_is_of_requests_and_pixels(metrics: Metrics) -> None:
    found = metrics.registry.get_sample_value
    metrics.events(DOOR, accepted=JUDGED_MIN, unavailable=4, refused=["empty", "too_old"])
    for _ in range(3):
        metrics.pixel("taken")
    metrics.pixel("rejected", "not_allowed")
    assert found("onecount_dead_letter_ratio") == 3 / (JUDGED_MIN + 4 + 2 + 4)
    assert found("onecount_gateway_rejected_events_total", {"reason": "not_allowed"}) == 1
    assert found("onecount_gateway_events_total", {"door": DOOR, "outcome": "rejected"}) == 2


def test_what_others_count_is_asked_for_when_it_is_shown(metrics: Metrics) -> None:
    found = metrics.registry.get_sample_value
    broker, pixels, limiter = (SimpleNamespace(waiting=0, lost=0, failures=0) for _ in range(3))
    state: dict[str, Any] = {"fit": False}
    metrics.watch(broker, pixels, limiter, lambda: state["fit"])
    metrics.acknowledged(0.004)
    metrics.policy(3)
    assert found("onecount_ready") == 0
    broker.waiting, pixels.waiting, pixels.lost, limiter.failures, state["fit"] = 5, 6, 7, 8, True
    assert found("onecount_ready") == 1
    assert [found("onecount_gateway_waiting_events", {"way": way}) for way in ("answered", "pixels")] == [5, 6]
    assert (found("onecount_gateway_lost_pixels_total"), found("onecount_gateway_limiter_failures_total")) == (7, 8)
    assert found("onecount_gateway_kafka_seconds_count") == 1
    assert found("onecount_policy_version") == 3
