"""`onecount import` and `onecount export` after the policy has changed: each row is told by the version in force at its time.

The commands are run as they are; what they read of Kafka are lists here.
"""

import csv
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml

from app.contract import rows
from app.engine import policy_topic
from app.engine.clients import KafkaClients
from app.importer import ImportRefusedError, import_file
from app.offline import commands, report, verdicts
from app.offline import export as exporting
from app.offline.raw import RawTouch
from app.offline.refusal import OfflineError
from app.policy.load import PolicyError, parse_policy
from app.policy.record import Recorded, encode
from app.settings import Settings
from tests.unit.imported import FakeKafka

DAY_MS = 86_400_000
CHANGED_MS = (int(time.time()) // 86_400 - 20) * DAY_MS  # the second version holds from then on
BEFORE_MS, AFTER_MS = CHANGED_MS - 2 * DAY_MS, CHANGED_MS + 8 * DAY_MS
HEADER = "Google Click ID,Conversion Name,Conversion Time,Conversion Value,Conversion Currency,Order ID,User ID"
FIRST = yaml.safe_load(Path("deploy/policy.yaml").read_text())
del FIRST["desk"]  # which would name some of the actions
Told = dict[str, tuple[str, str, str]]


def with_clicks_of(days: int) -> dict[str, Any]:
    google = {"method": "click", "windows": {"click": f"{days}d"}}
    return FIRST | {"platforms": FIRST["platforms"] | {"google_ads": google}}


def with_action(name: str, **fields: Any) -> dict[str, Any]:
    return FIRST | {
        "actions": FIRST["actions"] | {name: {"class": "macro", "intent": "hard", "count": "every"} | fields}
    }


def without(section: str, name: str) -> dict[str, Any]:
    return FIRST | {section: {key: value for key, value in FIRST[section].items() if key != name}}


def written_at(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


class Shop:
    """A deployment whose counters went by `versions`; `file` is the policy that the command is given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.kafka = FakeKafka()
        self.recorded: list[bytes] = []
        self.topics = {"onecount.policy": SimpleNamespace(partitions=1, id="a")}
        self.touches: list[RawTouch] = []
        self.messages: list[Any] = []
        monkeypatch.setattr(commands, "from_environment", lambda: Settings(policy=folder / "policy.yaml"))
        monkeypatch.setattr(KafkaClients, "topics", lambda *_: self.topics)
        monkeypatch.setattr(policy_topic, "policy_values", lambda *_: self.recorded)
        wired = partial(import_file, open_with=self.kafka.open, look_up=self.kafka.look_up)
        monkeypatch.setattr(commands, "import_file", wired)
        monkeypatch.setattr(report, "wait_for_counters", lambda *_: None)
        monkeypatch.setattr(verdicts, "LetterLog", lambda *_: SimpleNamespace(read=lambda: iter(())))
        for room in (verdicts, exporting):
            monkeypatch.setattr(room, "committed_spans", lambda *_: None)
            monkeypatch.setattr(room, "read_committed", lambda *_: self.read())
            monkeypatch.setattr(room, "raw_touches", lambda *_: iter(self.touches))

    def went_by(self, first: dict[str, Any], second: dict[str, Any]) -> None:
        self.recorded.clear()
        for number, document in enumerate((first, second), 1):
            policy = parse_policy(document)[0]
            since_ms = CHANGED_MS if number == 2 else 0
            version = msgspec.structs.replace(policy.versions[0], number=number, effective_from_ms=since_ms)
            self.recorded.append(encode(Recorded(policy.bounds, version)))
        self.has_file(second)

    def has_file(self, document: dict[str, Any]) -> None:
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(document))

    def read(self) -> Iterator[Any]:
        """A row for each conversion that was sent and is of an action with an outcome: no click was credited."""
        yield from self.messages
        for event in self.kafka.events():
            if event["conversion_name"] == "purchase":
                yield message(event["user_id"], event["event_time"], "unattributed", event_id=event["event_id"])

    def click(self, user: str, time_ms: int) -> None:
        self.touches.append(RawTouch(f"k-{user}", "click", time_ms, "shop", user, "google_ads", f"G-{user}"))

    def told(self, rows_: dict[str, int], name: str = "purchase", **options: Any) -> Told:
        """Imports a conversion at a time (epoch ms) of each user: (status, reason, detail) of each."""
        file, report_ = self.folder / "rows.csv", self.folder / "report.csv"
        lines = [f"G-{user},{name},{written_at(at_ms)},10,EUR,o-{user},{user}" for user, at_ms in rows_.items()]
        file.write_text("\n".join(["Parameters:TimeZone=+0000", HEADER, *lines]) + "\n")
        commands.import_(file, "google_ads", advertiser="shop", report=report_, **{"resume": False} | options)
        with report_.open(newline="") as text:
            found = [(line["status"], line["reason"], line["detail"]) for line in csv.DictReader(text)]
        return dict(zip(rows_, found, strict=True))

    def exported(self, *actions: str) -> list[list[str]]:
        """The names and order ids of what the next export writes of the last 90 days."""
        for path in self.folder.glob("*conversions*.csv"):
            path.unlink()
        commands.export_("google_ads", "shop", self.folder, action=list(actions), again=True)
        found = self.folder.glob("*conversions*.csv")
        return [line[1::4] for path in found for line in list(csv.reader(path.read_text().splitlines()))[2:]]


def message(user: str, at_ms: int, status: str, **fields: Any) -> Any:
    values = dict.fromkeys(rows.AttributedRow.__struct_fields__) | {
        "advertiser_id": "shop", "user_id": user, "platform": "google_ads", "conversion_name": "purchase",
        "event_id": f"c-{user}", "event_time": at_ms, "order_id": f"o-{user}", "status": status, "conversions": 0,
        "value": 10.0, "currency": "EUR", "action_class": "macro", "intent": "hard", "outcome": "revenue",
        "method": "click", "policy_version": 1, "revision": 1,
    }  # fmt: skip
    found = rows.AttributedRow(**values | fields)
    key = rows.attributed_key(found.advertiser_id, user, found.platform, found.conversion_name, found.event_id)
    return SimpleNamespace(key=lambda: key, value=lambda: rows.encode(found), timestamp=lambda: (1, at_ms))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(tmp_path, monkeypatch)


def test_a_window_that_became_longer_acts_forward_only(shop: Shop) -> None:
    shop.went_by(with_clicks_of(10), with_clicks_of(30))
    shop.click("old", BEFORE_MS - 20 * DAY_MS)
    shop.click("kept", AFTER_MS - 15 * DAY_MS)
    shop.click("gone", AFTER_MS - 20 * DAY_MS)  # no counter kept it any more when the window grew
    assert shop.told({"old": BEFORE_MS, "kept": AFTER_MS, "gone": AFTER_MS}) == {
        "old": ("unattributed", "expired_click", "20.0 days before, the window is 10"),
        "kept": ("unattributed", "click_not_credited", ""),
        "gone": ("unattributed", "expired_click", "20.0 days before, the window is 18"),
    }


def test_a_window_that_became_shorter_is_the_former_one_for_what_was_before(shop: Shop) -> None:
    shop.went_by(with_clicks_of(30), with_clicks_of(10))
    shop.click("old", BEFORE_MS - 20 * DAY_MS)
    shop.click("new", AFTER_MS - 20 * DAY_MS)
    assert shop.told({"old": BEFORE_MS, "new": AFTER_MS}) == {
        "old": ("unattributed", "click_not_credited", ""),
        "new": ("unattributed", "expired_click", "20.0 days before, the window is 10"),
    }


def test_an_action_that_has_its_outcome_later_is_noise_before(shop: Shop) -> None:
    shop.went_by(with_action("visit"), with_action("visit", outcome="revenue"))
    assert shop.told({"old": BEFORE_MS, "new": AFTER_MS}, "visit") == {
        "old": ("noise", "no_outcome", "visit"),
        "new": ("unknown", "not_seen", ""),
    }


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_action_is_known_while_a_version_has_it(shop: Shop, dry_run: bool) -> None:
    shop.went_by(without("actions", "newsletter"), FIRST)
    status = "ready" if dry_run else "unknown"
    found = shop.told({"old": BEFORE_MS, "new": AFTER_MS}, "Letter", action=["newsletter=Letter"], dry_run=dry_run)
    assert found["old"][:2] == ("rejected", "unknown_action")
    assert "not of the version in force at the row's time" in found["old"][2]
    assert found["new"][0] == status

    shop.went_by(FIRST, without("actions", "newsletter"))
    found = shop.told({"old": BEFORE_MS, "new": AFTER_MS}, "Letter", action=["newsletter=Letter"], dry_run=dry_run)
    assert (found["old"][0], found["new"][:2]) == (status, ("rejected", "unknown_action"))


def test_a_platform_that_is_dropped_counts_what_was_before(shop: Shop) -> None:
    shop.went_by(FIRST, without("platforms", "google_ads"))
    for user, at_ms in {"old": BEFORE_MS, "new": AFTER_MS}.items():
        shop.click(user, at_ms - DAY_MS)
    assert shop.told({"old": BEFORE_MS, "new": AFTER_MS}) == {
        "old": ("unattributed", "click_not_credited", ""),
        "new": ("unattributed", "unknown_platform", "google_ads was not counted then"),
    }


def test_a_platform_that_came_later_is_unknown_before(shop: Shop) -> None:
    shop.went_by(without("platforms", "google_ads"), FIRST)
    found = shop.told({"old": BEFORE_MS, "new": AFTER_MS})
    assert (found["old"][:2], found["new"][0]) == (("rejected", "unknown_platform"), "unattributed")


def test_a_file_that_is_not_recorded_yet_changes_nothing_that_is_told(shop: Shop) -> None:
    shop.went_by(with_clicks_of(10), with_clicks_of(30))
    shop.click("old", BEFORE_MS - 20 * DAY_MS)
    shop.click("new", AFTER_MS - 15 * DAY_MS)
    said = {"old": BEFORE_MS, "new": AFTER_MS}
    before = shop.told(said)
    soon = datetime.fromtimestamp(time.time() + 3_600, UTC).isoformat()
    shop.has_file(with_clicks_of(1) | {"effective_from": soon})
    assert shop.told(said) == before
    shop.has_file(with_clicks_of(1))
    with pytest.raises(PolicyError, match="give it an effective_from in the future"):
        shop.told(said)
    with pytest.raises(PolicyError, match="give it an effective_from in the future"):
        shop.exported()
    shop.has_file(with_clicks_of(10))
    with pytest.raises(PolicyError, match="the policy file holds an older version"):
        shop.told(said)


def test_while_nothing_is_recorded_the_file_holds_and_without_its_topic_nothing_does(shop: Shop) -> None:
    shop.has_file(with_clicks_of(10))
    shop.click("old", BEFORE_MS - 20 * DAY_MS)
    assert shop.told({"old": BEFORE_MS})["old"][1:] == ("expired_click", "20.0 days before, the window is 10")
    shop.topics.clear()
    for command in (lambda: shop.told({"old": BEFORE_MS}), shop.exported):
        with pytest.raises(OfflineError, match=r"no such topic: onecount\.policy; run `onecount topics create`"):
            command()


def test_an_import_goes_on_after_a_new_version_unless_other_events_would_come_of_it(shop: Shop) -> None:
    said = {"old": BEFORE_MS, "new": AFTER_MS}
    for second, refused in ((with_clicks_of(10), False), (without("actions", "newsletter"), True)):
        shop.went_by(FIRST, second)
        later = shop.recorded.pop()
        shop.has_file(FIRST)
        shop.kafka.records.clear()
        shop.told(said, limit=1)
        shop.recorded.append(later)
        shop.has_file(second)
        if refused:
            with pytest.raises(ImportRefusedError, match="the policy's platforms or actions have changed"):
                shop.told(said, resume=True)
        else:
            shop.told(said, resume=True)
            assert [event["user_id"] for event in shop.kafka.events()] == ["old", "new"]


def test_what_a_version_dropped_is_exported_and_named(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.went_by(FIRST, without("platforms", "google_ads") | {"actions": without("actions", "newsletter")["actions"]})
    touch = {"touch_type": "click", "touch_event_id": "k-ann", "touch_time": BEFORE_MS - DAY_MS}
    shop.messages = [message("ann", BEFORE_MS, "counted", conversion_name="newsletter", conversions=1, **touch)]
    shop.click("ann", BEFORE_MS - DAY_MS)
    assert shop.exported("newsletter=Letter") == [["Letter", "o-ann"]]
    assert "the policy has no platform" not in capsys.readouterr().out


def test_an_export_reads_touches_by_the_formats_of_all_versions(shop: Shop) -> None:
    shop.went_by(FIRST, FIRST | {"formats": ["cloudevents"]})
    given = []
    shop.monkeypatch.setattr(exporting, "raw_touches", lambda _, policy, since_ms: iter(given.append(policy) or ()))
    touch = {"touch_type": "click", "touch_event_id": "k-ann", "touch_time": BEFORE_MS - DAY_MS}
    shop.messages = [message("ann", BEFORE_MS, "counted", conversions=1, **touch)]
    shop.exported()
    assert [policy.formats() for policy in given] == [{"cloudevents": CHANGED_MS}]
