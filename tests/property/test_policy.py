"""The record of the policy: stick with the method, so what was counted is never judged anew, whoever starts with which file."""

from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.contract.events import TOUCH_ATTRIBUTES
from app.engine import policy_topic
from app.policy import record
from app.policy.load import PolicyError, parse_policy
from app.policy.model import Bounds, Platform, Policy, Version
from app.settings import Settings
from tests.memory.kafka import MemoryClients
from tests.memory.log import Broker
from tests.property.policies import make_policy, make_version

NOW_MS = 1_000_000_000


def make_files(seed: int) -> list[Policy]:
    """Policy files with equal bounds: what `load_policy` gives of each."""
    chance = Random(seed)
    bounds = make_policy(chance).bounds
    return [Policy(bounds, (make_version(chance, 1, 0),)) for _ in range(3)]


files = st.integers(0, 2**64).map(make_files)
policies = st.integers(0, 2**64).map(lambda seed: make_policy(Random(seed)))


def earliest_ms(policy: Policy, now_ms: int) -> int:
    """The first instant from which a new version may hold."""
    return now_ms + record.NOTICE_MS + policy.bounds.max_clock_skew_ms


def rules(version: Version) -> tuple[Any, ...]:
    """What a version says, whatever its number and from when on it holds."""
    return version.platforms, version.actions, version.formats, version.merge_reports_ms


starts = st.lists(
    st.tuples(
        st.integers(0, 2),  # which file
        st.none() | st.integers(-100_000, 800_000),  # its effective_from, after this moment
        st.integers(0, 400_000),  # how long after the former start
    ),
    max_size=12,
)


@given(files, starts)
def test_no_start_with_whatever_file_changes_what_holds_before_its_notice_is_over(
    found: list[Policy], begun: list[tuple[int, int | None, int]]
) -> None:
    log: list[bytes] = []
    now_ms = NOW_MS
    for number, effective_ms, later_ms in begun:
        now_ms += later_ms
        recorded = record.in_force(log)
        wanted = found[number]
        before = Policy(wanted.bounds, tuple(each.version for each in recorded))
        effective_from_ms = None if effective_ms is None else now_ms + effective_ms
        try:
            policy, fresh = record.fit(recorded, wanted, effective_from_ms, now_ms)
        except PolicyError:
            latest = recorded[-1].version
            assert rules(wanted.versions[0]) != rules(latest), "the file in force was refused"
            assert (
                effective_from_ms is None
                or effective_from_ms < earliest_ms(wanted, now_ms)
                or effective_from_ms <= latest.effective_from_ms
            ), "a version with enough notice was refused"
            continue
        assert rules(policy.versions[-1]) == rules(wanted.versions[0])
        if recorded:
            for time_ms in (0, NOW_MS, now_ms, earliest_ms(wanted, now_ms) - 1):
                assert policy.at(time_ms) == before.at(time_ms), "what was counted would be judged anew"
        if fresh is not None:
            log.append(record.encode(fresh))
            assert record.in_force(log)[-1] == fresh, "what was recorded is not in force"
        again = record.fit(record.in_force(log), wanted, effective_from_ms, now_ms)
        assert again == (policy, None), "a second worker with the same file does not find the same policy in force"
    numbers = [each.version.number for each in record.in_force(log)]
    assert numbers == list(range(1, len(log) + 1))
    times = [each.version.effective_from_ms for each in record.in_force(log)]
    assert times == sorted(set(times))


@given(files, st.data())
def test_of_workers_that_start_at_once_with_different_files_the_first_in_the_log_decides_for_all(
    found: list[Policy], data: st.DataObject
) -> None:
    first, second, third = found
    log = [record.encode(record.Recorded(first.bounds, first.versions[0]))]
    from_ms = earliest_ms(first, NOW_MS)
    changed = [wanted for wanted in (second, third) if rules(wanted.versions[0]) != rules(first.versions[0])]
    written = [record.fit(record.in_force(log), wanted, from_ms, NOW_MS)[1] for wanted in changed]
    order = data.draw(st.permutations([record.encode(each) for each in written]))
    decided = record.in_force(log + order)
    assert len(decided) == 1 + min(len(order), 1)
    if order:
        assert record.encode(decided[-1]) == order[0]
    assert record.in_force((log + order) * 2) == decided, "a record that stands twice counts once"


@given(policies, st.data())
def test_other_bounds_than_those_the_counts_were_made_with_are_refused_by_name(
    policy: Policy, data: st.DataObject
) -> None:
    wanted = Policy(policy.bounds, policy.versions[:1])
    recorded = [record.Recorded(policy.bounds, policy.versions[0])]
    name = data.draw(st.sampled_from([name for name in policy.bounds.__struct_fields__ if name.endswith("_ms")]))
    changed = msgspec.structs.replace(policy.bounds, **{name: getattr(policy.bounds, name) + 1})
    from_ms = data.draw(st.none() | st.just(earliest_ms(wanted, NOW_MS) + 10))
    with pytest.raises(PolicyError, match=name):
        record.fit(recorded, Policy(changed, wanted.versions), from_ms, NOW_MS)


@given(policies, st.integers(-10, 10))
def test_a_conversion_is_judged_by_the_last_version_that_is_effective_at_its_time(policy: Policy, near_ms: int) -> None:
    for version in policy.versions:
        time_ms = version.effective_from_ms + near_ms
        effective = [each for each in policy.versions if each.effective_from_ms <= time_ms]
        assert policy.at(time_ms) == (effective or policy.versions)[-1 if effective else 0]


@given(policies)
def test_a_recorded_policy_is_read_back_as_it_was(policy: Policy) -> None:
    for version in policy.versions:
        recorded = record.Recorded(policy.bounds, version)
        assert record.decode(record.encode(recorded)) == recorded


FILE = {
    "platforms": {"meta": {"method": "click", "windows": {"click": "7d"}}},
    "actions": {"purchase": {"class": "macro", "intent": "hard", "outcome": "revenue", "count": "every"}},
}
MERGING = FILE | {"merge_reports": "5m"}
OTHER = FILE | {"platforms": {"meta": {"method": "view", "windows": {"view": "1d"}}}}


def test_the_topic_s_record_outlives_the_workers_and_is_written_once(tmp_path: Path) -> None:
    settings = Settings(policy=tmp_path / "policy.yaml")
    broker = Broker({settings.policy_topic: 1})
    clients = MemoryClients(broker)

    def start(document: dict[str, Any], now_s: float) -> Policy:
        settings.policy.write_text(yaml.safe_dump(document))
        with patch.object(policy_topic.time, "time", return_value=now_s):
            return policy_topic.establish(settings, clients)[0]

    first = start(FILE, 1_000)
    assert start(FILE, 2_000) == first
    assert len(broker.committed(settings.policy_topic)) == 1
    with pytest.raises(PolicyError, match="effective_from in the future"):
        start(OTHER, 3_000)
    with pytest.raises(PolicyError, match="at least"):
        start(OTHER | {"effective_from": "1970-01-01T00:50:00Z"}, 3_000)
    both = start(OTHER | {"effective_from": "1970-01-01T02:00:00Z"}, 3_000)
    assert [version.effective_from_ms for version in both.versions] == [0, 7_200_000]
    assert start(OTHER, 9_000) == both
    with pytest.raises(PolicyError, match="older version"):
        start(FILE, 9_000)
    assert len(broker.committed(settings.policy_topic)) == 2


def test_merging_of_reports_is_turned_on_like_any_rule(tmp_path: Path) -> None:
    settings = Settings(policy=tmp_path / "policy.yaml")
    clients = MemoryClients(Broker({settings.policy_topic: 1}))

    def start(document: dict[str, Any]) -> Policy:
        settings.policy.write_text(yaml.safe_dump(document))
        with patch.object(policy_topic.time, "time", return_value=3_000):
            return policy_topic.establish(settings, clients)[0]

    assert not start(FILE).merges_reports()
    with pytest.raises(PolicyError, match=r"in force \(merge_reports\)"):
        start(MERGING)
    policy = start(MERGING | {"effective_from": "1970-01-01T02:00:00Z"})
    assert [version.merge_reports_ms for version in policy.versions] == [0, 300_000]
    assert policy.merges_reports()


def test_a_record_of_before_reports_could_be_merged_merges_none() -> None:
    policy = parse_policy(FILE)[0]
    document = msgspec.json.decode(record.encode(record.Recorded(policy.bounds, policy.versions[0])))
    del document["version"]["merge_reports_ms"]
    assert record.decode(msgspec.json.encode(document)).version == policy.versions[0]


@pytest.mark.parametrize("text", ["61m", "2d", "5 minutes"])
def test_reports_are_merged_over_minutes_only(text: str) -> None:
    with pytest.raises(PolicyError, match="merge_reports"):
        parse_policy(FILE | {"merge_reports": text})
    assert parse_policy(FILE | {"merge_reports": "1h", "dedup_window": "1h"})[0].merges_reports()


@pytest.mark.parametrize("dimensions", [(), ("ad_id",), ("campaign_id",), ("campaign_id", "ad_id")])
def test_attributes_are_named_by_their_place_in_keep(dimensions: tuple[str, ...]) -> None:
    kept = {"ad_id": "a1", "medium": None, "campaign_id": "c1"}
    policy = Policy(Bounds(keep=tuple(kept), dimensions=dimensions), ())
    values = tuple(kept.values())
    assert policy.dimensions(values) == tuple(kept[name] for name in dimensions)
    assert policy.shown(values) == tuple(kept.get(name) for name in TOUCH_ATTRIBUTES)
    assert policy.shown(None) == (None,) * len(TOUCH_ATTRIBUTES)


def test_a_conversion_may_be_credited_where_its_version_has_a_method() -> None:
    meta, tiktok = Platform("click_then_view", {"click": 2, "view": 1}, {}), Platform("view", {"view": 1}, {})
    policy = Policy(Bounds(), (Version(1, 0, {"meta": meta}, {}), Version(2, 10, {"meta": meta, "tiktok": tiktok}, {})))
    both = (("meta", "click"), ("meta", "view"))
    assert (policy.places(9, "meta"), policy.places(9, "tiktok"), policy.places(9, "")) == (both, (), both)
    assert (policy.places(10, "tiktok"), policy.places(10, "")) == ((("tiktok", "view"),), (*both, ("tiktok", "view")))
