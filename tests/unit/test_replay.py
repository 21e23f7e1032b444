"""A replay's plain parts: its names, what differs, how far back it reads, and in which order it copies."""

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from app.contract.rows import CountRow, count_key
from app.policy.load import load_policy
from app.policy.model import DAY_MS, Bounds, Policy
from app.replay.comparison import Comparison
from app.replay.memory import refuse_full, room
from app.replay.names import environment_of, ids_in, is_id, live_topics, new_id, shadow_settings
from app.replay.reach import aftermath_ms, shortfalls, warm_up_ms
from app.replay.refusal import ReplayRefused
from app.replay.report import Report, as_json, print_report, write_csv
from app.replay.streams import Foreign
from app.replay.times import as_time
from app.replay.wish import Wish
from app.settings import Settings

WINDOW_MS = 60_000
MONDAY_MS = 1_764_547_200_000  # 2025-12-01
POLICY = Path(__file__).resolve().parents[2] / "deploy" / "policy.yaml"


def row(
    window: int = 0,
    platform: str = "meta",
    campaign: str = "a",
    currency: str = "",
    scope: str = "platform",
    **counted: float,
) -> CountRow:
    """A row of the n-th minute of that Monday."""
    start = MONDAY_MS + window * WINDOW_MS
    zeros = dict.fromkeys(("views", "engaged_views", "clicks", "conversions"), 0) | {"value": 0.0, "cost": 0.0}
    name = "purchase" if currency else ""
    return CountRow(
        start, start + WINDOW_MS, platform, "shop", {"campaign_id": campaign}, name, currency,
        **(zeros | counted), revision=1, final=False, scope=scope,
    )  # fmt: skip


def by_key(*rows: CountRow) -> dict[bytes, CountRow]:
    return {
        count_key(each.window_start, each.platform, "shop", [*each.dimensions.values()], each.conversion_name, each.currency): each
        for each in rows
    }  # fmt: skip


def compared(live: list[CountRow], replay: list[CountRow], same_keys: bool = True) -> Comparison:
    found = Comparison()
    found.add(by_key(*live), by_key(*replay), same_keys)
    return found


def report(comparison: Comparison, final: bool = True, notes: tuple[str, ...] = ()) -> Report:
    places = frozenset(comparison.places()) if final else frozenset()
    return Report(
        "20251201-000000", MONDAY_MS, MONDAY_MS + 10 * WINDOW_MS, None, 7, notes, comparison, places,
    )  # fmt: skip


def printed(found: Report, show: int = 20) -> str:
    console = Console(width=120, record=True, file=StringIO())
    print_report(found, console, show)
    return console.export_text()


# --- What differs


def test_equal_rows_differ_in_nothing() -> None:
    rows = [row(clicks=2, cost=0.1), row(currency="EUR", conversions=1, value=9.5)]
    found = compared(rows, rows)
    assert [place for place in found.places() if found.differs(place)] == []
    assert report(found).is_equal


def test_sums_are_by_window_platform_measure_and_currency() -> None:
    live = [
        row(clicks=2, cost=0.1), row(campaign="b", clicks=3, cost=0.2),
        row(currency="EUR", conversions=2, value=10.1), row(currency="USD", conversions=1, value=5),
    ]  # fmt: skip
    replay = [
        row(clicks=2, cost=0.1),
        row(campaign="b", clicks=3, cost=0.2),
        row(currency="EUR", conversions=1, value=10),
    ]
    found = compared(live, replay)
    lines = {(line.measure, line.currency): line.amounts() for line in found.lines((MONDAY_MS, "meta"), True)}
    assert lines == {
        ("clicks", ""): (5, 5, 0),
        ("conversions", ""): (3, 1, -2),
        ("value", "EUR"): (10.1, 10, -0.1),
        ("value", "USD"): (5, 0, -5),
        ("cost", ""): (0.3, 0.3, 0),
    }


def test_what_is_counted_once_over_all_platforms_is_a_line_of_its_own() -> None:
    live = [
        row(currency="EUR", conversions=2, value=20), row(platform="tiktok", currency="EUR", conversions=1, value=10),
        row(platform="all", currency="EUR", conversions=2, value=20, scope="all"),
    ]  # fmt: skip
    found = compared(live, [*live[:2], row(platform="all", currency="EUR", conversions=1, value=10, scope="all")])
    assert [place for place in found.places() if found.differs(place)] == [(MONDAY_MS, "all")]
    totals = found.totals(found.places())
    assert list(totals) == ["meta", "tiktok", "all"]
    assert [line.amounts() for line in totals["all"]] == [(2, 1, -1), (20, 10, -10)]
    assert printed(report(found)).count("all, each once") == 2  # in the totals, and as a window that differs


def test_money_is_compared_in_millionths_and_not_as_floats() -> None:
    live = [row(campaign=str(number), clicks=1, cost=0.1) for number in range(10)]
    found = compared(live, [row(campaign="all", clicks=10, cost=1.0)], same_keys=False)
    assert not found.differs((MONDAY_MS, "meta"))


def test_credit_that_moves_between_campaigns_is_a_difference_though_no_sum_differs() -> None:
    found = compared([row(clicks=1)], [row(campaign="b", clicks=1)])
    place = (MONDAY_MS, "meta")
    assert found.differs(place)
    assert (found.rows[place], found.changed_rows[place]) == (2, 2)
    assert "2 rows, with equal sums" in printed(report(found))


def test_counts_that_are_split_otherwise_are_compared_by_their_sums_alone() -> None:
    assert not compared([row(clicks=1)], [row(campaign="b", clicks=1)], same_keys=False).differs((MONDAY_MS, "meta"))


def test_a_row_that_was_taken_back_equals_one_that_never_was() -> None:
    taken_back = row(campaign="b", currency="EUR")
    assert not compared([row(clicks=1), taken_back], [row(clicks=1)]).differs((MONDAY_MS, "meta"))


def test_partitions_add_up() -> None:
    found = compared([row(clicks=1)], [])
    found.add(by_key(row(campaign="b", clicks=2)), by_key(row(campaign="b", clicks=2)), True)
    [line] = found.lines((MONDAY_MS, "meta"), True)
    assert line.amounts() == (3, 2, -1)
    assert found.rows[MONDAY_MS, "meta"] == 2


# --- What is told


def test_a_difference_in_a_window_that_is_not_final_does_not_make_the_report_unequal() -> None:
    found = report(compared([row(clicks=1)], []), final=False)
    assert found.is_equal
    assert "nothing is final yet" in printed(found)
    assert "1 of them differ" in printed(found)


def test_the_verdict_says_how_many_final_windows_differ() -> None:
    found = report(compared([row(0, clicks=1), row(1, clicks=1)], [row(0, clicks=1)]))
    assert not found.is_equal
    text = printed(found)
    assert "different: 1 of 2 final counts" in text
    assert "2025-12-01T00:01:00Z" in text
    assert "2025-12-01T00:00:00Z" not in text.split("Windows that differ")[1].split("different:")[0]


def test_no_more_windows_are_shown_than_asked_for() -> None:
    text = printed(report(compared([row(number, clicks=1) for number in range(5)], [])), show=2)
    assert "and 3 more" in text


def test_names_of_platforms_are_not_taken_for_markup() -> None:
    assert "[red]" in printed(report(compared([row(platform="[red]", clicks=1)], [])))


def test_an_empty_range_is_said_to_be_empty() -> None:
    assert "nothing to compare" in printed(report(compared([], [])))


def test_json_has_the_totals_and_the_windows_that_differ() -> None:
    live = [row(0, clicks=1), row(1, currency="EUR", conversions=1, value=2.5)]
    found = as_json(report(compared(live, [row(0, clicks=1)]), notes=("inexact: why",)))
    assert (found["compared"], found["final"], found["different"], found["different_final"]) == (2, 2, 1, 1)
    assert found["equal"] is False
    assert found["notes"] == ["inexact: why"]
    assert found["platforms"]["meta"][0] == {"measure": "clicks", "live": 1, "replay": 1, "difference": 0}
    [difference] = found["differences"]
    assert difference["window_start"] == "2025-12-01T00:01:00Z"
    assert difference["measures"][1] == {
        "measure": "value", "currency": "EUR", "live": 2.5, "replay": 0, "difference": -2.5,
    }  # fmt: skip


def test_csv_has_a_line_for_every_measure_of_every_window(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    write_csv(report(compared([row(0, clicks=1), row(1, clicks=4, cost=0.5)], [row(0, clicks=1)])), path)
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["window_start"], line["measure"], line["difference"], line["final"]) for line in lines] == [
        ("2025-12-01T00:00:00Z", "clicks", "0", "true"),
        ("2025-12-01T00:01:00Z", "clicks", "-4", "true"),
        ("2025-12-01T00:01:00Z", "cost", "-0.5", "true"),
    ]


# --- Names


def test_nothing_that_a_replays_workers_touch_has_a_live_name() -> None:
    live = Settings(events_topics="a,b", namespace="shop")  # type: ignore[arg-type]
    shadow = shadow_settings(live, "20251201-000000", Path("p.yaml"))
    assert not set(live_topics(shadow)) & set(live_topics(live))
    assert not {shadow.counter_group, shadow.aggregator_group} & {live.counter_group, live.aggregator_group}
    assert shadow.tag("c") == "shop-replay-20251201-000000.c"
    # and all that differs is told to the workers
    changed = {name for name in Settings.model_fields if getattr(live, name) != getattr(shadow, name)}
    told = {name.removeprefix("ONECOUNT_").lower() for name in environment_of(shadow)}
    assert changed <= told
    assert shadow.metrics_port is None


def test_the_workers_read_what_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Settings(events_topics="a,b", namespace="shop")  # type: ignore[arg-type]
    shadow = shadow_settings(live, "20251201-000000", Path("p.yaml"))
    for name, value in environment_of(shadow).items():
        monkeypatch.setenv(name, value)
    assert Settings() == shadow


def test_a_namespace_that_would_become_too_long_is_refused() -> None:
    with pytest.raises(ReplayRefused, match="ONECOUNT_NAMESPACE"):
        shadow_settings(Settings(namespace="n" * 60), "20251201-000000", Path("p.yaml"))


def test_replays_are_found_by_their_topics_and_others_topics_are_not() -> None:
    settings = Settings()
    topics = {
        "ads.events.replay-20251201-000000", "conversions.counts.replay-20251201-000000",
        "onecount.deltas.replay-20251130-235959", "other.replay-20251201-000001",
        "ads.events.replay-now", "ads.events", "ads.events.replay-20251201-0000000",
    }  # fmt: skip
    assert ids_in(settings, topics) == ["20251130-235959", "20251201-000000"]


def test_an_id_is_its_time_and_nothing_else_is_one() -> None:
    assert new_id(MONDAY_MS / 1000) == "20251201-000000"
    assert is_id("20251201-000000")
    assert not any(map(is_id, ["*", "", "20251201-000000*", "20251201-000000\n", "now"]))


# --- How far back


def test_the_warm_up_is_what_a_rebuild_needs_and_at_least_what_ids_are_remembered_for() -> None:
    policy = load_policy(POLICY)[0]
    bounds = policy.bounds
    assert warm_up_ms(policy) == policy.conversion_retention_ms() + bounds.max_clock_skew_ms == 97 * DAY_MS + 300_000
    short = Bounds(order_window_ms=DAY_MS, adjustment_window_ms=DAY_MS, dedup_window_ms=40 * DAY_MS)
    assert warm_up_ms(Policy(short, policy.versions)) == (40 + 10 + 7) * DAY_MS + 300_000


def test_the_aftermath_reaches_to_the_last_adjustment() -> None:
    assert aftermath_ms(Bounds()) == (55 + 7 + 7) * DAY_MS + 300_000


WEEK = Wish(from_ms=MONDAY_MS, to_ms=MONDAY_MS + 7 * DAY_MS)


def test_a_log_that_reaches_far_enough_back_leaves_nothing_to_say() -> None:
    assert shortfalls(WEEK, 97 * DAY_MS, 97 * DAY_MS, 0, 69 * DAY_MS) == []
    assert shortfalls(WEEK, 97 * DAY_MS, 97 * DAY_MS, MONDAY_MS, 69 * DAY_MS) == []


def test_a_log_that_is_too_short_is_refused_with_the_first_time_that_is_exact_unless_that_is_wished() -> None:
    with pytest.raises(ReplayRefused, match=r"before 2025-12-02T00:00:00Z .* --inexact"):
        shortfalls(WEEK, 97 * DAY_MS, 97 * DAY_MS, MONDAY_MS + DAY_MS, 69 * DAY_MS)
    [note] = shortfalls(replace(WEEK, inexact=True), 97 * DAY_MS, 97 * DAY_MS, MONDAY_MS + DAY_MS, 69 * DAY_MS)
    assert note.startswith("inexact: retention has deleted")


def test_reading_less_than_matters_is_said() -> None:
    assert ["7.0 days" in note for note in shortfalls(WEEK, 97 * DAY_MS, 7 * DAY_MS, 0, 69 * DAY_MS)] == [True]
    until = replace(WEEK, until_ms=WEEK.to_ms + 69 * DAY_MS)
    assert shortfalls(until, 97 * DAY_MS, 97 * DAY_MS, 0, 69 * DAY_MS) == []
    assert len(shortfalls(replace(until, until_ms=WEEK.to_ms + DAY_MS), 97 * DAY_MS, 97 * DAY_MS, 0, 69 * DAY_MS)) == 1


def test_the_events_that_were_copied_are_remembered_by_topic_partition_and_offset() -> None:
    foreign = Foreign()
    assert not foreign.holds(("a", 0), 0)
    places = [0, 1, 7, 8, 65_535, 65_536, 10**9]
    for place in places:
        foreign.add(("a", 0), place)
    assert [place for place in (*places, 2, 9, 65_534, 65_537) if foreign.holds(("a", 0), place)] == places
    assert not foreign.holds(("a", 1), 0)
    assert not foreign.holds(("b", 0), 0)


def test_redis_may_use_its_limit_or_the_machine() -> None:
    assert room("used_memory:10\r\nmaxmemory:100\r\ntotal_system_memory:1000") == (10, 100)
    assert room("used_memory:10\r\nmaxmemory:0\r\ntotal_system_memory:1000") == (10, 1000)


class Server:
    """A Redis that says how full it is."""

    address = "redis:6379"

    def __init__(self, used: int, limit: int) -> None:
        self.info = f"used_memory:{used}\r\nmaxmemory:{limit}\r\ntotal_system_memory:{2**40}\r\n"

    def servers(self) -> "list[Server]":
        return [self]

    def run(self, commands: list[tuple[str, ...]]) -> list[bytes]:
        assert commands == [("INFO", "memory")]
        return [self.info.encode()]


def test_a_redis_that_the_replay_would_fill_is_refused_before_and_while_it_fills() -> None:
    gigabyte = 2**30
    refuse_full(Server(gigabyte // 2, gigabyte), 5_000_000)  # type: ignore[arg-type]
    with pytest.raises(ReplayRefused, match=r"would stop live counting.*ONECOUNT_REDIS_URL"):
        refuse_full(Server(gigabyte // 2, gigabyte), 6_000_000)  # type: ignore[arg-type]
    refuse_full(Server(int(gigabyte * 0.89), gigabyte), 0)  # type: ignore[arg-type]
    with pytest.raises(ReplayRefused, match="would stop live counting"):
        refuse_full(Server(int(gigabyte * 0.91), gigabyte), 0)  # type: ignore[arg-type]


def test_times_are_told_in_utc() -> None:
    assert as_time(MONDAY_MS) == "2025-12-01T00:00:00Z"
    assert as_time(MONDAY_MS + 5) == "2025-12-01T00:00:00.005Z"
