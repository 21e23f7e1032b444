"""Offline conversions on a real Kafka and Redis, as an operator moves them: exported, imported elsewhere, adjusted, reported."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from app.contract import rows
from app.engine.clients import KafkaClients
from app.letters.log import committed_spans, read_committed
from app.offline.report import wait_for_counters
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed
from tests.integration.letters import click, conversion, now_ms

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NAMES = ("--advertiser", "a1", "--action", "purchase=Offline purchase")
GBRAID = "0AAAAADOnx_gbraid"


@pytest.fixture
def pair(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[tuple[Deployment, Deployment]]:
    """Two deployments, each with a counter that runs."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with (
        deployed(services.bootstrap, services.redis_url, f"{topic_prefix}-1", folders[0]) as first,
        deployed(services.bootstrap, services.redis_url, f"{topic_prefix}-2", folders[1]) as second,
    ):
        for deployment in (first, second):
            deployment.start("counter")
        for deployment in (first, second):
            deployment.wait_until(lambda each=deployment: each.owned("counter"), "the counter owns its partitions")
        yield first, second


def send(deployment: Deployment, events: list[dict[str, Any]]) -> None:
    """Each at its own time, and counted when this returns."""
    producer = Producer(deployment.settings.client(partitioner="murmur2_random"))
    for event in sorted(events, key=lambda event: event["event_time"]):
        user, topic = event["user_id"].encode(), deployment.settings.events_topics[0]
        producer.produce(topic, orjson.dumps(event), user, timestamp=event["event_time"])
    assert producer.flush(30) == 0
    assert wait_for_counters(deployment.settings, 60) is None


def standing(deployment: Deployment) -> dict[tuple[str, str], rows.AttributedRow]:
    """The latest row of each conversion, by (platform, user)."""
    topic = deployment.settings.attributed_topic
    latest = {
        message.key(): message.value()
        for message in read_committed(
            KafkaClients(deployment.settings), topic, committed_spans(deployment.settings, topic)
        )
    }
    found = [rows.decode_attributed(value) for value in latest.values() if value]
    return {(row.platform, row.user_id): row for row in found}


def alike(row: rows.AttributedRow) -> tuple[Any, ...]:
    """What another deployment must say of the same conversion."""
    return (
        row.advertiser_id, row.user_id, row.platform, row.conversion_name, row.status, row.conversions, row.value,
        row.currency, row.event_time // 1000, row.touch_type, row.touch_event_id, row.touch_time, row.campaign_id,
    )  # fmt: skip


def read(path: Path, preamble: int = 0) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file.readlines()[preamble:]))


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def run(deployment: Deployment, *arguments: str) -> str:
    done = deployment.onecount(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pair_of(user: str, ago_ms: int, touch: dict[str, Any], **said: Any) -> list[dict[str, Any]]:
    """A touch, and a conversion an hour later."""
    now = now_ms()
    platform = touch.get("platform", "google_ads")
    touched = {"event_time": now - ago_ms, "user_id": user, "platform": platform} | touch
    converted = {"event_time": now - ago_ms + HOUR_MS, "user_id": user, "platform": platform} | said
    return [click(f"k-{user}", **touched), conversion(f"c-{user}", **converted)]


def story() -> list[dict[str, Any]]:
    """Conversions of every kind that an export meets."""
    day = 2 * DAY_MS
    # in the second of its click, a few milliseconds later
    quick = pair_of(
        "quick", day, {"click_id": "G-quick", "event_time": now_ms() // 1000 * 1000 - day + 100}, order_id="o-q"
    )
    quick[1]["event_time"] = quick[0]["event_time"] + 700
    return [
        *pair_of("sold", day, {"click_id": "G-sold"}, order_id="o-1", value=99.5, currency="EUR"),
        *pair_of("plain", day, {"click_id": "G-plain"}, value=10.25, currency="USD"),
        *pair_of("signed", day, {"click_id": "G-signed"}, conversion_name="signup", value=0),
        *quick,
        *pair_of("bare", day, {}),
        *pair_of("engaged", day, {"event_type": "engaged_view"}),
        *pair_of("braid", day, {"click_id": GBRAID}),
        *pair_of("fresh", 3 * HOUR_MS, {"click_id": "G-fresh"}),
        *pair_of("other", day, {"click_id": "G-other", "advertiser_id": "a2"}, advertiser_id="a2"),
        *pair_of("social", day, {"click_id": "F-social", "platform": "meta"}, value=7, currency="USD", order_id="o-m"),
        *pair_of("poor", day, {"click_id": "F-poor", "platform": "meta"}, value=7),
        conversion("c-alone", user_id="alone", platform="google_ads", event_time=now_ms() - day),
    ]


def adjustment(user: str, kind: str, **named: Any) -> dict[str, Any]:
    return {
        "event_id": f"a-{user}", "event_type": "adjustment", "event_time": now_ms() - 1_000, "advertiser_id": "a1",
        "user_id": user, "adjustment": kind,
    } | named  # fmt: skip


@pytest.mark.timeout(240)
def test_what_is_counted_goes_to_the_platforms_and_counts_the_same_elsewhere(
    pair: tuple[Deployment, Deployment], tmp_path: Path
) -> None:
    first, second = pair
    events = story()
    send(first, events)
    send(second, [event for event in events if event["event_type"] != "conversion"])
    feeds = tmp_path / "feeds"
    feeds.mkdir()
    google = ("export", "--for", "google_ads", *NAMES, "--out", str(feeds), "--user-id")

    told = run(first, *google)
    path = only(feeds, "google_ads-a1-conversions-*.csv")
    assert path.read_text().splitlines()[:2] == [
        "Parameters:TimeZone=+0000",
        "Google Click ID,Conversion Name,Conversion Time,Conversion Value,Conversion Currency,Order ID,User ID",
    ]
    written = {line["User ID"]: line for line in read(path, 1)}
    assert written.keys() == {"sold", "plain", "signed", "quick"}
    assert written["sold"]["Google Click ID"] == "G-sold"
    assert (written["sold"]["Conversion Value"], written["sold"]["Conversion Currency"]) == ("99.5", "EUR")
    assert (written["plain"]["Order ID"], written["signed"]["Conversion Name"]) == ("c-plain", "signup")
    for why in ("no click id", "gbraid", "held back"):
        assert why in told, told

    run(second, "import", str(path), "--map", "google_ads", *NAMES)
    assert wait_for_counters(second.settings, 60) is None
    here, there = standing(first), standing(second)
    sent = [("google_ads", user) for user in written]
    assert [alike(there[each])[:8] for each in sent] == [alike(here[each])[:8] for each in sent]
    exact = [each for each in sent if each[1] != "quick"]
    assert [alike(there[each]) for each in exact] == [alike(here[each]) for each in exact]
    assert there["google_ads", "quick"].touch_event_id == "k-quick"  # still after its click

    # what changes goes into a file of its own, once
    send(
        first,
        [
            adjustment("sold", "retract", order_id="o-1"),
            adjustment("plain", "restate", value=4, conversion_event_id="c-plain"),
        ],
    )
    run(first, *google)
    assert only(feeds, "google_ads-a1-conversions-*.csv") == path
    changes = only(feeds, "google_ads-a1-adjustments-*.csv")
    by_user = {line["User ID"]: line for line in read(changes, 1)}
    assert {user: (line["Adjustment Type"], line["Adjusted Value"]) for user, line in by_user.items()} == {
        "sold": ("RETRACT", ""),
        "plain": ("RESTATE", "4"),
    }
    run(second, "import", str(changes), "--map", "google_ads_adjustments", *NAMES)
    assert wait_for_counters(second.settings, 60) is None
    here, there = standing(first), standing(second)
    assert [alike(there[each]) for each in exact] == [alike(here[each]) for each in exact]
    assert here["google_ads", "sold"].status == "retracted"
    assert here["google_ads", "plain"].value == 4

    before = sorted(feeds.iterdir())
    run(first, *google)
    assert sorted(feeds.iterdir()) == before
    again = tmp_path / "again"
    again.mkdir()
    run(first, *google[:-2], str(again), "--again")
    assert sorted(line["Google Click ID"] for line in read(only(again, "*.csv"), 1)) == [
        "G-plain",
        "G-quick",
        "G-signed",
    ]

    told = run(
        first,
        "export",
        "--for",
        "meta",
        "--advertiser",
        "a1",
        "--dataset",
        "77",
        "--action",
        "purchase=Purchase",
        "--out",
        str(feeds),
    )
    (line,) = read(only(feeds, "meta-a1-conversions-*.csv"))
    assert (line["DATA_SET_ID"], line["EVENT_NAME"], line["VALUE"], line["CURRENCY"]) == ("77", "Purchase", "7", "USD")
    assert line["CLICK_ID"] == f"fb.1.{here['meta', 'social'].touch_time}.F-social"
    assert not {"EMAIL", "PHONE", "EXTERNAL_ID"} & line.keys()
    assert "no currency" in told


HEADER = "Google Click ID,Conversion Name,Conversion Time,Conversion Value,Conversion Currency,Order ID,User ID"


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_a_report_says_of_each_row_what_became_of_it(services: Services, topic_prefix: str, tmp_path: Path) -> None:
    now = now_ms()

    def at(ms: int) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms // 1000))

    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path) as deployment:
        deployment.start("counter")
        deployment.wait_until(lambda: deployment.owned("counter"), "the counter owns its partitions")
        clicks = {"old": 40 * DAY_MS, "ann": 2 * DAY_MS, "bob": 2 * DAY_MS, "eve": HOUR_MS}
        send(
            deployment,
            [
                click(f"k-{user}", user_id=user, platform="google_ads", click_id=f"G-{user}", event_time=now - ago)
                for user, ago in clicks.items()
            ],
        )
        day = at(now - DAY_MS)
        lines = [
            f"G-ann,Offline purchase,{day},10,EUR,o-1,ann",
            f"G-ann,Offline purchase,{day},10,EUR,o-1,ann",
            f"G-ann,Offline purchase,{day},10,EUR,o-2,ann",
            f"G-bob,signup,{day},,,,bob",
            f"G-bob,signup,{at(now - DAY_MS + 60_000)},,,,bob",
            f"G-eve,Offline purchase,{day},10,EUR,o-3,eve",
            f"G-old,Offline purchase,{day},10,EUR,o-4,old",
            f"G-none,Offline purchase,{day},10,EUR,o-5,none",
            f"G-ann,Offline purchase,{at(now - 20 * DAY_MS)},10,EUR,o-6,ann",
            f"G-ann,Sale,{day},10,EUR,o-7,ann",
            f"G-ann,Offline purchase,{day},10,EUR,o-8,",
        ]
        file, report = tmp_path / "leads.csv", tmp_path / "report.csv"
        file.write_text("\n".join(["Parameters:TimeZone=+0000", HEADER, *lines]) + "\n")
        command = ("import", str(file), "--map", "google_ads", *NAMES, "--report", str(report))

        run(deployment, *command, "--dry-run")
        assert [line["status"] for line in read(report)].count("ready") == 7
        told = run(deployment, *command)
        found = {line["line"]: (line["status"], line["reason"], line["platform_code"]) for line in read(report)}
        assert found == {
            "3": ("counted", "", ""),
            "4": ("duplicate", "repeated_order_in_file", "DUPLICATE_ORDER_ID"),
            "5": ("counted", "", ""),
            "6": ("counted", "", ""),
            "7": ("uncounted", "one_per_click", ""),
            "8": ("unattributed", "precedes_click", "CONVERSION_PRECEDES_EVENT"),
            "9": ("unattributed", "expired_click", "EXPIRED_EVENT"),
            "10": ("unattributed", "click_not_found", "EVENT_NOT_FOUND"),
            "11": ("rejected", "beyond_correction_horizon", "EXPIRED_EVENT"),
            "12": ("rejected", "unknown_action", "NO_CONVERSION_ACTION_FOUND"),
            "13": ("rejected", "no_user_id", ""),
        }
        assert "counted" in told

        # later: one order is retracted, one is reported once more from elsewhere, and the same command tells it
        send(deployment, [adjustment("ann", "retract", order_id="o-2")])
        other = tmp_path / "other.csv"
        other.write_text(
            "\n".join(["Parameters:TimeZone=+0000", HEADER, lines[0].replace(day, at(now - DAY_MS + 5_000))])
        )
        run(deployment, "import", str(other), "--map", "google_ads", *NAMES)
        told = run(deployment, *command)
        assert "imported already" in told
        found = {line["line"]: (line["status"], line["reason"]) for line in read(report)}
        assert found["5"] == ("retracted", "adjusted")
        assert found["3"] == ("counted", "")

        adjustments = tmp_path / "adjustments.csv"
        adjustments.write_text(
            "\n".join(
                [
                    "Parameters:TimeZone=+0000",
                    "Order ID,Conversion Name,Adjustment Time,Adjustment Type,Adjusted Value,Adjusted Value Currency,User ID",
                    f"o-1,Offline purchase,{at(now_ms())},RESTATE,3,EUR,ann",
                    f"o-2,Offline purchase,{at(now_ms() + 1_000)},RETRACT,,,ann",
                    f"o-77,Offline purchase,{at(now_ms())},RETRACT,,,ann",
                    f"o-1,Offline purchase,{at(now - 6 * DAY_MS)},RETRACT,,,ann",
                ]
            )
        )
        run(
            deployment,
            "import",
            str(adjustments),
            "--map",
            "google_ads_adjustments",
            *NAMES,
            "--report",
            str(report),
        )
        found = {line["line"]: (line["status"], line["reason"], line["platform_code"]) for line in read(report)}
        assert found == {
            "3": ("applied", "", ""),
            "4": ("refused", "adjustment_twice", ""),
            "5": ("unknown", "conversion_not_found", "CONVERSION_NOT_FOUND"),
            "6": ("refused", "adjustment_precedes_conversion", "ADJUSTMENT_PRECEDES_CONVERSION"),
        }
