"""Topics and offsets changed behind onecount's back: refused in one line that says what to do, and doing it ends exact."""

import time

import pytest

from app.verify import compare
from tests.faults import topic_changes as changes
from tests.integration.deployment import Deployment

PARTITIONS = 4
MORE = 6


def count_for_a_while(deployment: Deployment, seed: int, events: int = 5_000) -> None:
    """A counter and an aggregator under load, which is then counted to its end; both go on."""
    deployment.start("counter")
    deployment.start("aggregator")
    deployment.wait_until(lambda: len(deployment.owned("counter")) == PARTITIONS, "the counter owns all")
    with deployment.load(rate=1_000, seed=seed):
        changes.wait_until_counted(deployment, events)
    deployment.assert_exact()


def stop_all(deployment: Deployment) -> None:
    for worker in deployment.running:
        if worker.poll() is None:
            assert deployment.stop(worker) == 0, deployment.logs()


def go_on(deployment: Deployment, seed: int, roles: tuple[str, ...] = ("counter", "aggregator")) -> None:
    """Starts the workers again, gives them more to count, and ends exact."""
    for role in roles:
        deployment.start(role)
    with deployment.load(rate=1_000, seed=seed + 1):
        changes.wait_until_counted(deployment, 3_000)
    deployment.finish()


def topics_of(deployment: Deployment, names: str) -> list[str]:
    settings = deployment.settings
    every = {
        "raw": settings.events_topics[0],
        "rekeyed": settings.rekeyed_topic,
        "deltas": settings.deltas_topic,
        "attributed": settings.attributed_topic,
        "counts": settings.counts_topic,
    }
    return [every[name] for name in names.split("+")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("raised", ["raw", "raw+rekeyed", "deltas"])
def test_partitions_raised_in_flight_are_refused_before_anything_is_counted_for_another_owner(
    deployment: Deployment, seed: int, raised: str
) -> None:
    """Users move to other partitions, so a worker that went on by the new count would count them beside their state.
    Events that already went to the new partitions stay unread until the reset, which counts them."""
    settings = deployment.settings
    count_for_a_while(deployment, seed)
    deployment.start("counter", 1)
    with deployment.load(rate=1_000, seed=seed + 2):
        deployment.wait_until(lambda: deployment.owned("counter", 1), "both counters own partitions")
        topics = topics_of(deployment, raised)
        changes.raise_partitions(deployment, topics, MORE)
        with deployment.load(rate=500, seed=seed + 3):  # a producer that knows the new partitions
            late = changes.start_refused(deployment, "counter", 2)
            refusals = [late, changes.refusal(deployment, "counter", 0), changes.refusal(deployment, "counter", 1)]
    for why in refusals:
        assert topics[0] in why or topics[-1] in why, why
        assert f"{MORE} partitions" in why, why
        assert "onecount reset" in why, why
    reached = changes.committed(deployment, settings.counter_group) | changes.committed(
        deployment, settings.aggregator_group
    )
    assert not [place for place in reached if place[1] >= PARTITIONS], "something of the new partitions was counted"
    if raised == "deltas":
        assert f"{MORE} partitions" in changes.refusal(deployment, "aggregator")
    else:
        assert changes.ends(deployment, topics[0])[PARTITIONS] > 0, "no event went to a new partition"
    stop_all(deployment)
    changes.reset(deployment)
    go_on(deployment, seed)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_partitions_raised_while_workers_are_stopped_are_refused_at_their_start(
    deployment: Deployment, seed: int
) -> None:
    count_for_a_while(deployment, seed, 3_000)
    stop_all(deployment)
    topics = topics_of(deployment, "raw+rekeyed")
    changes.raise_partitions(deployment, topics, MORE)
    deployment.empty_redis()  # nothing in Redis says how many there were
    why = changes.start_refused(deployment, "counter")
    assert f"has {MORE} partitions, the counts were made with {PARTITIONS}" in why
    changes.reset(deployment)
    go_on(deployment, seed)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["raw", "rekeyed", "deltas", "attributed", "counts"])
def test_a_topic_deleted_and_created_again_while_workers_are_stopped_is_refused(
    deployment: Deployment, seed: int, name: str
) -> None:
    count_for_a_while(deployment, seed, 3_000)
    stop_all(deployment)
    (topic,) = topics_of(deployment, name)
    changes.recreate(deployment, topic, PARTITIONS)
    if name == "raw":  # so many events that the old offsets lie within the new log
        assert deployment.generate("--count", "12000", "--seed", str(seed + 5)).wait(60) == 0
    for role in (
        ("aggregator",) if name == "counts" else ("counter", "aggregator") if name == "deltas" else ("counter",)
    ):
        why = changes.start_refused(deployment, role)
        assert f"the topic {topic} was deleted and created again" in why
        assert "onecount reset" in why
    changes.reset(deployment)
    go_on(deployment, seed)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["raw", "deltas", "attributed"])
def test_a_topic_deleted_and_created_again_in_flight_is_refused(deployment: Deployment, seed: int, name: str) -> None:
    count_for_a_while(deployment, seed, 3_000)
    (topic,) = topics_of(deployment, name)
    generator = deployment.generate("--rate", "700", "--seed", str(seed + 4))
    changes.wait_until_counted(deployment, 500)
    changes.recreate(deployment, topic, PARTITIONS)
    roles = ("counter", "aggregator") if name == "deltas" else ("counter",)
    for role in roles:
        why = changes.refusal(deployment, role)
        assert topic in why
        assert "was deleted and created again" in why or "is gone" in why
    generator.terminate()
    generator.wait()
    stop_all(deployment)
    changes.reset(deployment)
    go_on(deployment, seed)


@pytest.mark.timeout(200)
def test_a_deleted_topic_is_refused_with_what_to_do(deployment: Deployment, seed: int) -> None:
    count_for_a_while(deployment, seed, 3_000)
    stop_all(deployment)
    changes.admin_of(deployment).delete_topics([deployment.settings.attributed_topic])[
        deployment.settings.attributed_topic
    ].result(changes.TIMEOUT_S)
    why = changes.start_refused(deployment, "counter")
    assert f"the topic {deployment.settings.attributed_topic} is gone" in why
    assert deployment.onecount("topics", "create").returncode == 0
    assert "was deleted and created again" in changes.start_refused(deployment, "counter")
    changes.reset(deployment)
    go_on(deployment, seed)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("role", ["counter", "aggregator"])
def test_expired_offsets_beside_their_state_are_set_to_what_the_refusal_says(
    deployment: Deployment, seed: int, role: str
) -> None:
    group = getattr(deployment.settings, f"{role}_group")
    count_for_a_while(deployment, seed)
    stop_all(deployment)
    before = changes.committed(deployment, group)
    changes.delete_groups(deployment, group)
    why = changes.start_refused(deployment, role)
    assert "no committed offset" in why
    changes.obey(deployment, group, why)
    assert changes.committed(deployment, group) == before
    go_on(deployment, seed)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("role", ["counter", "aggregator"])
def test_offsets_and_state_lost_together_are_not_taken_for_a_new_deployment(
    deployment: Deployment, seed: int, role: str
) -> None:
    """It would count everything once more, beside what is published. A counter's offsets are known from the deltas."""
    group = getattr(deployment.settings, f"{role}_group")
    count_for_a_while(deployment, seed)
    stop_all(deployment)
    before = changes.committed(deployment, group)
    changes.delete_groups(deployment, group)
    deployment.empty_redis()
    why = changes.start_refused(deployment, role)
    assert "the state is lost" in why or "their state is lost" in why
    assert "onecount reset" in why
    if role == "counter":
        changes.obey(deployment, group, why)
        assert changes.committed(deployment, group).items() <= before.items()
        deployment.start("aggregator")
        deployment.start("counter")
        deployment.wait_until(
            lambda: any(event["event"] == "rebuilt" for event in deployment.events("counter")), "a rebuild"
        )
        go_on(deployment, seed, ())
    else:
        changes.reset(deployment)
        go_on(deployment, seed)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("role", ["counter", "aggregator"])
@pytest.mark.parametrize("by", ["back", "forward", "beyond"])
def test_a_group_set_by_hand_is_refused_until_it_is_set_to_what_was_counted(
    deployment: Deployment, seed: int, by: str, role: str
) -> None:
    group = getattr(deployment.settings, f"{role}_group")
    topic = deployment.settings.events_topics[0] if role == "counter" else deployment.settings.deltas_topic
    count_for_a_while(deployment, seed)
    aggregator_goes_on = role == "aggregator" and by == "forward"
    if aggregator_goes_on:  # so that there is something to skip
        assert deployment.stop(deployment.running[1]) == 0
        assert deployment.generate("--count", "3000", "--seed", str(seed + 6)).wait(60) == 0
        time.sleep(3)
    stop_all(deployment)
    assert deployment.generate("--count", "3000", "--seed", str(seed + 7)).wait(60) == 0
    before = changes.committed(deployment, group)
    distance = {"back": -3, "forward": 3, "beyond": 1_000_000}[by]
    changes.set_offsets(
        deployment, group, [(topic, number, before[topic, number] + distance) for number in range(PARTITIONS)]
    )
    why = changes.start_refused(deployment, role)
    assert "by hand" in why
    changes.obey(deployment, group, why)
    assert changes.committed(deployment, group) == before
    go_on(deployment, seed)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("gone", ["a part", "all"])
def test_a_log_too_short_for_a_rebuild_is_refused_and_what_is_left_can_be_counted(
    deployment: Deployment, seed: int, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = deployment.settings
    raw = settings.events_topics[0]
    count_for_a_while(deployment, seed)
    stop_all(deployment)
    ends = changes.ends(deployment, raw)
    outputs = [changes.ends(deployment, topic) for topic in (settings.attributed_topic, settings.counts_topic)]
    changes.delete_records(deployment, raw, [end // 2 for end in ends] if gone == "a part" else ends)
    deployment.empty_redis()
    why = changes.start_refused(deployment, "counter")
    assert "the state is lost" in why
    assert "retention" in why
    assert outputs == [changes.ends(deployment, topic) for topic in (settings.attributed_topic, settings.counts_topic)]
    changes.reset(deployment)
    # `verify` refuses a log whose beginning is gone, since it can't know what was counted then; here nothing was
    monkeypatch.setattr(compare, "_refuse_unusable", lambda settings, inputs: None)
    go_on(deployment, seed)


@pytest.mark.timeout(200)
def test_events_that_retention_deleted_uncounted_are_given_up_only_when_told_so(
    deployment: Deployment, seed: int
) -> None:
    settings = deployment.settings
    raw = settings.events_topics[0]
    count_for_a_while(deployment, seed)
    stop_all(deployment)
    assert deployment.generate("--count", "3000", "--seed", str(seed + 7)).wait(60) == 0
    deleted = changes.ends(deployment, raw)
    changes.delete_records(deployment, raw, deleted)
    why = changes.start_refused(deployment, "counter")
    assert "retention deleted records" in why
    changes.obey(deployment, settings.counter_group, why)
    deployment.start("counter")
    deployment.start("aggregator")
    assert deployment.generate("--count", "4000", "--seed", str(seed + 8)).wait(60) == 0

    def is_read() -> bool:
        reached = changes.committed(deployment, settings.counter_group)
        return all(reached[raw, number] == end for number, end in enumerate(changes.ends(deployment, raw)))

    deployment.wait_until(is_read, "what came after is counted")
    stop_all(deployment)
