"""What `onecount import` does with a file: maps, rejects, resumes, and refuses what Kafka or the product would lose."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from rich.console import Console

from app.importer import ImportRefusedError, MappingError, Summary, import_file
from app.importer.prepare import Prepared
from app.importer.sending import batches
from app.policy.load import load_policy
from app.policy.model import ClickIds, Policy
from app.settings import Settings
from tests.unit.imported import HOUR_MS, FakeKafka, table

DAY_MS = 24 * HOUR_MS
# 2025-03-01T12:00:00Z
NOON_MS = 1_740_830_400_000


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("deploy/policy.yaml")[0]


def clicks(fields: dict[str, object] | None = None, when: list | None = None, **document: object) -> dict[str, Any]:
    """A mapping that makes a click of every row of id,user,at; further keys as given."""
    base: dict[str, object] = {
        "event_id": {"column": "id"},
        "event_type": "click",
        "event_time": {"time": "at", "format": "iso"},
        "advertiser_id": "shop",
        "user_id": {"column": "user"},
        "platform": "default",
        "campaign_id": "spring",
    }
    rule = {"event": "click", "fields": base | (fields or {})} | ({"when": when} if when else {})
    return {"format": "csv", "rows": [rule]} | document


def test_batches_stay_within_a_size_and_a_span_of_time() -> None:
    records = [Prepared(time_ms, b"", b"") for time_ms in (0, 5, 10, 11, 9, 100, 101, 102)]
    times = [[record.time_ms for record in batch] for batch in batches(records, span_ms=10, size=3)]
    assert times == [[0, 5, 10], [11, 9], [100, 101, 102]]
    assert [len(batch) for batch in batches(records, span_ms=1_000, size=3)] == [3, 3, 2]


Import = Callable[..., Summary]


@pytest.fixture
def run(tmp_path: Path, policy: Policy) -> Import:
    """Imports a text or bytes with a mapping, into a `FakeKafka`."""

    def import_it(content: str | bytes, document: dict, kafka: FakeKafka, **options: Any) -> Summary:
        path, mapping_path = tmp_path / "rows.csv", tmp_path / "mapping.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        mapping_path.write_text(yaml.safe_dump(document))
        return import_file(
            Settings(), policy, path, mapping_path, open_with=kafka.open, look_up=kafka.look_up, **options
        )

    return import_it


def minutes(count: int, every: int = 1) -> list[tuple[object, ...]]:
    """Rows of clicks, `every` minutes apart from noon on."""
    return [
        (
            f"c{n}",
            f"u{n % 7}",
            f"2025-03-{1 + n * every // 720:02d}T{n * every // 60 % 12:02d}:{n * every % 60:02d}:00Z",
        )
        for n in range(count)
    ]


def rejected(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "rows.csv.rejected.jsonl").read_text().splitlines()]


def test_each_row_becomes_an_event_with_its_own_time_and_its_user_as_key(run: Import) -> None:
    kafka = FakeKafka()
    summary = run(table([("c1", "ann", "2025-03-01T12:00:00Z")]), clicks(), kafka)
    key, _, timestamp_ms = kafka.records[0]
    assert (key, timestamp_ms) == (b"ann", NOON_MS)
    assert kafka.events() == [
        {
            "event_id": "c1",
            "event_type": "click",
            "event_time": NOON_MS,
            "advertiser_id": "shop",
            "user_id": "ann",
            "platform": "default",
            "campaign_id": "spring",
        }
    ]
    assert (summary.rows, summary.sent, summary.complete) == (1, 1, True)
    assert (summary.oldest_ms, summary.newest_ms) == (NOON_MS, NOON_MS)


def test_gzipped_tab_separated_and_jsonl_files_give_the_same_events(run: Import) -> None:
    rows = minutes(5)
    as_json = "\n".join(json.dumps(dict(zip(("id", "user", "at"), row, strict=True))) for row in rows)
    results = []
    for content, kind in (
        (table(rows), "csv"),
        (gzip.compress(table(rows).encode()), "csv"),
        (table(rows).replace(",", "\t"), "tsv"),
        ("\ufeff" + table(rows).replace("\n", "\r\n"), "csv"),
        (as_json, "jsonl"),
    ):
        kafka = FakeKafka()
        run(content, clicks(format=kind), kafka, resume=False)
        results.append(kafka.records)
    assert len(results[0]) == 5
    assert results == [results[0]] * 5


def test_a_row_can_give_several_events(run: Import) -> None:
    document = clicks()
    document["rows"].append(
        {
            "event": "landing",
            "fields": document["rows"][0]["fields"] | {"event_type": "visit", "page": "/"},
            "when": [{"column": "user", "equals": "u1"}],
        }
    )
    kafka = FakeKafka()
    summary = run(table(minutes(3)), document, kafka)
    assert [event["event_type"] for event in kafka.events()] == ["click", "click", "visit", "click"]
    assert summary.events == {"click": 3, "landing": 1}


def test_numbers_of_a_jsonl_file_become_the_texts_that_ids_are(run: Import) -> None:
    kafka = FakeKafka()
    document = clicks(format="jsonl", fields={"campaign_id": {"json": "ad.campaign"}, "cost": {"column": "cost"}})
    row = {"id": 7, "user": 8, "at": "2025-03-01T12:00:00Z", "ad": {"campaign": 9}, "cost": 0.5}
    run(json.dumps(row), document, kafka)
    event = kafka.events()[0]
    assert (event["event_id"], event["user_id"], event["campaign_id"], event["cost"]) == ("7", "8", "9", 0.5)


def test_the_last_row_of_a_group_is_known(run: Import) -> None:
    rows = [("a1", "ann"), ("a2", "ann"), ("b1", "bob"), ("a3", "ann")]
    content = table([(name, user, "2025-03-01T12:00:00Z") for name, user in rows])
    kafka = FakeKafka()
    run(content, clicks(group=["user"], when=[{"last_of_group": True}]), kafka)
    assert [event["event_id"] for event in kafka.events()] == ["a2", "b1", "a3"]


def test_a_column_may_have_another_name_or_be_missing_where_that_is_declared(run: Import) -> None:
    document = clicks(aliases={"user": ["visitor"]}, optional=["ref"], fields={"source": {"column": "ref"}})
    kafka = FakeKafka()
    run(table([("c1", "ann", "2025-03-01T12:00:00Z")], "id,visitor,at"), document, kafka)
    assert kafka.events()[0]["user_id"] == "ann"
    assert "source" not in kafka.events()[0]


def test_a_file_without_a_column_of_the_mapping_is_refused_with_a_guess(run: Import) -> None:
    with pytest.raises(MappingError, match=r"lacks the column user \(did you mean User\?\); it has id, User, at"):
        run(table([], "id,User,at"), clicks(), FakeKafka())


def test_rejected_rows_are_written_with_their_line_and_reason_and_the_others_sent(run: Import, tmp_path: Path) -> None:
    rows = [
        ("c1", "ann", "2025-03-01T12:00:00Z"),
        ("c2", "", "2025-03-01T12:00:00Z"),
        ("c3", "ann\nsmith", "2025-03-01T12:00:00Z"),
        ("c4", "bob", "noon"),
        ("c5", "bob"),
        ("i" * 129, "bob", "2025-03-01T12:00:00Z"),
        ("c7", "bob", "2025-03-01T12:00:00Z"),
    ]
    kafka = FakeKafka()
    summary = run(table(rows), clicks(), kafka)
    assert [event["event_id"] for event in kafka.events()] == ["c1", "c7"]
    found = rejected(tmp_path)
    assert [(line["line"], line["reason"], line["field"]) for line in found] == [
        (3, "missing_field", "user_id"),
        (4, "invalid_field", "user_id"),  # its quoted line break makes this row two lines long
        (6, "unreadable_time", ""),
        (7, "wrong_column_count", ""),
        (8, "invalid_field", "event_id"),
    ]
    assert found[0]["row"] == {"id": "c2", "user": None, "at": "2025-03-01T12:00:00Z"}
    assert found[0]["event"] == "click"
    assert summary.rejected.total() == 5


def test_a_row_that_is_not_utf_8_costs_one_row_and_not_the_file(run: Import, tmp_path: Path) -> None:
    content = table(minutes(3)).encode().replace(b"u1", b"\xff1")
    kafka = FakeKafka()
    run(content, clicks(), kafka)
    assert [event["event_id"] for event in kafka.events()] == ["c0", "c2"]
    assert [line["reason"] for line in rejected(tmp_path)] == ["unencodable"]


def test_a_row_goes_wholly_or_not_at_all(run: Import) -> None:
    document = clicks()
    broken = document["rows"][0]["fields"] | {"platform": "nowhere"}
    document["rows"].append({"event": "second", "fields": broken})
    kafka = FakeKafka()
    summary = run(table(minutes(2)), document, kafka)
    assert kafka.records == []
    assert summary.rejected == {"unknown_platform": 2}


def test_a_row_without_a_rule_is_rejected_and_one_left_out_on_purpose_is_not(run: Import) -> None:
    document = clicks(
        when=[{"column": "user", "in": ["u0", "u1"]}],
        skip=[{"why": "robots", "when": [{"column": "user", "equals": "u1"}]}],
    )
    summary = run(table(minutes(3)), document, FakeKafka())
    assert summary.events == {"click": 1}
    assert summary.skipped == {"robots": 1}
    assert summary.rejected == {"no_rule": 1}


def test_broken_json_lines_are_rejected(run: Import, tmp_path: Path) -> None:
    good = {"id": "c1", "user": "ann", "at": "2025-03-01T12:00:00Z"}
    kafka = FakeKafka()
    run(f"{{\n[1]\n\n{json.dumps(good)}\n", clicks(format="jsonl"), kafka)
    assert [(line["line"], line["reason"]) for line in rejected(tmp_path)] == [
        (1, "unreadable_json"),
        (2, "not_an_object"),
    ]
    assert len(kafka.records) == 1


def test_a_damaged_gzip_file_is_refused_before_anything_is_sent(run: Import) -> None:
    kafka = FakeKafka()
    with pytest.raises(ImportRefusedError, match=r"rows\.csv is damaged"):
        run(gzip.compress(table(minutes(5_000)).encode())[:-2_000], clicks(), kafka)
    assert kafka.records == []


def test_after_a_failure_resuming_sends_the_rest_and_each_row_at_least_once(
    run: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.importer.sending.batches.__defaults__", (10,))
    content = table(minutes(50))
    kafka = FakeKafka(dies_at=3)
    with pytest.raises(ImportRefusedError, match=r"1 records were not delivered \(1 x the broker is gone\)\. Resume"):
        run(content, clicks(), kafka)
    assert len(kafka.records) == 30
    again = FakeKafka()
    summary = run(content, clicks(), again)
    assert summary.resumed_at == 20
    assert [event["event_id"] for event in again.events()] == [f"c{n}" for n in range(20, 50)]
    assert summary.complete


def test_a_complete_import_is_not_sent_twice_unless_it_is_asked_for(run: Import) -> None:
    content = table(minutes(4))
    run(content, clicks(), FakeKafka())
    again = FakeKafka()
    output = io.StringIO()
    assert run(content, clicks(), again, console=Console(file=output, width=200)).sent == 0
    assert "imported already" in output.getvalue()
    assert again.records == []
    assert run(content, clicks(), again, resume=False).sent == 4


def test_a_limit_stops_and_resuming_goes_on(run: Import) -> None:
    content = table(minutes(10))
    kafka = FakeKafka()
    first = run(content, clicks(), kafka, limit=4)
    assert (first.sent, first.complete) == (4, False)
    assert run(content, clicks(), kafka, limit=4).resumed_at == 4
    last = run(content, clicks(), kafka, limit=4)
    assert (last.sent, last.complete) == (2, True)
    assert [event["event_id"] for event in kafka.events()] == [f"c{n}" for n in range(10)]


@pytest.mark.parametrize(
    ("content", "document", "options", "message"),
    [
        (table(minutes(9)), clicks(), {}, "the size of the file has changed"),
        (table(minutes(8)).replace("c0,", "d0,"), clicks(), {}, "the content of the file has changed"),
        (
            table(minutes(8)),
            clicks(fields={"source": "x"}),
            {},
            "the mapping or the policy's platforms or actions have changed",
        ),
        (table(minutes(8)), clicks(), {"topic": "other"}, r"the topic has changed \(it was ads\.events\)"),
    ],
)
def test_resuming_something_else_is_refused(
    run: Import, content: str, document: dict, options: dict, message: str
) -> None:
    run(table(minutes(8)), clicks(), FakeKafka(), limit=2)
    with pytest.raises(ImportRefusedError, match=message):
        run(content, document, FakeKafka(), **options)


def test_a_file_out_of_order_is_refused_unless_the_mapping_sorts_it(run: Import) -> None:
    content = table(list(reversed(minutes(28, every=720))))
    kafka = FakeKafka()
    with pytest.raises(ImportRefusedError, match=r"7\.0 days \(correction_horizon\) older .*sort_by_time: true"):
        run(content, clicks(), kafka)
    assert kafka.records == []
    run(content, clicks(sort_by_time=True), kafka, resume=False)
    assert [event["event_id"] for event in kafka.events()] == [f"c{n}" for n in range(28)]


def test_a_change_deep_in_a_large_file_is_noticed(run: Import) -> None:
    content = "id,user,at,note\n" + "".join(f"c{n},u1,2025-03-01T12:00:00Z,{'x' * 1_000}\n" for n in range(1_200))
    run(content, clicks(), FakeKafka())
    with pytest.raises(ImportRefusedError, match="the content of the file has changed"):
        run(content.replace("c1199,", "d1199,"), clicks(), FakeKafka())


def test_sorting_works_in_several_runs_and_resumes(run: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.importer.ordering.write_spool.__defaults__", (7,))
    content = table(list(reversed(minutes(30))))
    kafka = FakeKafka()
    run(content, clicks(sort_by_time=True), kafka, limit=12)
    summary = run(content, clicks(sort_by_time=True), kafka)
    assert summary.complete
    assert [event["event_id"] for event in kafka.events()] == [f"c{n}" for n in range(30)]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"retention_ms": 7 * DAY_MS}, r"keeps records for 7\.0 days only.*\n  kafka-configs.*retention\.ms=-1"),
        ({"timestamp_type": "LogAppendTime"}, r"kafka-configs.*message\.timestamp\.type=CreateTime"),
        ({"before_max_ms": DAY_MS}, r"refuses records older than 1\.0 days.*\n  kafka-configs"),
        ({"newest_ms": NOON_MS + 30 * DAY_MS}, r"already holds events up to 2025-03-31 12:00:00 UTC"),
    ],
)
def test_rows_that_the_topic_would_lose_are_refused_with_what_to_run(run: Import, state: dict, message: str) -> None:
    kafka = FakeKafka(**state)
    with pytest.raises(ImportRefusedError, match=message):
        run(table(minutes(3)), clicks(), kafka)
    assert kafka.records == []


def test_rows_of_the_future_are_refused(run: Import) -> None:
    with pytest.raises(ImportRefusedError, match=r"in the future.*Check the mapping's time zone"):
        run(table([("c1", "ann", "2999-01-01T00:00:00Z")]), clicks(), FakeKafka())


def test_a_place_that_cannot_be_written_is_named(run: Import, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=r"cannot write .*nowhere/rejected\.jsonl: No such file"):
        run(table(minutes(1)), clicks(), FakeKafka(), rejected_path=tmp_path / "nowhere" / "rejected.jsonl")
    kafka = FakeKafka()
    with pytest.raises(ImportRefusedError, match=r"cannot write the state file .*give another path"):
        run(table(minutes(1)), clicks(), kafka, state_path=tmp_path / "nowhere" / "state.json")
    assert kafka.records == []


def test_a_row_may_name_a_click_and_no_user_where_the_policy_finds_it(
    run: Import, policy: Policy, tmp_path: Path
) -> None:
    fields = {
        "event_id": {"column": "id"},
        "event_type": "conversion",
        "event_time": {"time": "at", "format": "iso"},
        "advertiser_id": "shop",
        "user_id": {"column": "user"},
        "click_id": {"column": "gclid"},
        "conversion_name": "purchase",
    }
    document = {"format": "csv", "rows": [{"event": "sale", "fields": fields}]}
    text = table(
        [("c1", "", "2025-03-01T12:00:00Z", "g1"), ("c2", "u2", "2025-03-01T12:01:00Z", ""), ("c3", "", "2025-03-01T12:02:00Z", "")],
        "id,user,at,gclid",
    )  # fmt: skip
    kafka = FakeKafka()
    assert run(text, document, kafka).sent == 1
    assert [line["reason"] for line in rejected(tmp_path)] == ["no_user_id", "missing_field"]
    found = msgspec.structs.replace(policy, bounds=msgspec.structs.replace(policy.bounds, click_ids=ClickIds()))
    kafka = FakeKafka()
    path = tmp_path / "again.csv"
    path.write_text(text)
    summary = import_file(
        Settings(), found, path, tmp_path / "mapping.yaml", open_with=kafka.open, look_up=kafka.look_up
    )
    assert (summary.sent, sum(summary.rejected.values())) == (2, 1)
    assert [key for key, _, _ in kafka.records] == [b"g1", b"u2"]
    del fields["user_id"], fields["click_id"]
    with pytest.raises(MappingError, match="every event needs user_id, or click_id where the policy has click_ids"):
        run(text, document, FakeKafka())


def quoted(*broken: tuple[int, str], rows: int = 200) -> str:
    """id,user,at of so many rows, which are lines 2 and on; some written otherwise."""
    lines = table(minutes(rows)).splitlines()
    for number, text in broken:
        lines[number - 1] = text
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "broken",
    [
        [(100, 'c98,"u1,2025-03-01T12:00:00Z')],  # to the end of the file
        [(100, 'c98,"u1,2025-03-01T12:00:00Z'), (150, 'c148,"u1,2025-03-01T12:00:00Z')],
        [(100, 'c98,"u1,2025-03-01T12:00:00Z'), (150, 'c148,"u1,2025-03-01T12:00:00Z'), (160, '"')],
        [(100, 'c98,"u1",x,"y'), (101, 'c99,"u1",x,"y')],
        [(199, 'c197,u1,"2025-03-01T12:00:00Z')],
    ],
)
def test_a_stray_quote_costs_the_row_that_it_stands_in(
    run: Import, tmp_path: Path, broken: list[tuple[int, str]]
) -> None:
    kafka = FakeKafka()
    summary = run(quoted(*broken), clicks(), kafka)
    assert (summary.rows, summary.rejected) == (200, {"unreadable_row": len(broken)})
    lines = [json.loads(line) for line in (tmp_path / "rows.csv.rejected.jsonl").read_text().splitlines()]
    assert [(line["line"], line["row"].rstrip("\n")) for line in lines] == broken
    assert "take it out" in lines[0]["detail"]
    lost = {f"c{number - 2}" for number, _ in broken}
    assert {event["event_id"] for event in kafka.events()} == {f"c{n}" for n in range(200)} - lost


def test_stray_quotes_that_make_a_row_of_rows_hide_none(run: Import, tmp_path: Path) -> None:
    kafka = FakeKafka()
    broken = [(100, 'c98,"u1,2025-03-01T12:00:00Z'), (150, 'c148,24",2025-03-01T12:00:00Z')]
    run(quoted(*broken), clicks(), kafka)
    assert {event["event_id"] for event in kafka.events()} == {f"c{n}" for n in range(200)} - {"c98"}


def test_an_unclosed_quote_in_a_long_file_costs_its_row(run: Import) -> None:
    summary = run(quoted((7, 'c5,"u5,2025-03-01T12:00:00Z'), rows=20_000), clicks(), FakeKafka())
    assert (summary.sent, summary.rejected) == (19_999, {"unreadable_row": 1})


def test_texts_of_several_lines_and_quotes_within_a_text_are_read(run: Import) -> None:
    kafka = FakeKafka()
    fields = {"landing_page": {"column": "note"}}
    notes = ['"Big" deal', '"two\nlines, one row"', '"said ""yes""\r\n\r\nand went"', 'a "b" c']
    rows = [f"{note},c{n},u{n},2025-03-01T12:00:00Z" for n, note in enumerate(notes)]
    control = {"when": [{"column": "note", "matches": "\n"}], "then": "several lines", "else": {"column": "note"}}
    run("note,id,user,at\n" + "\n".join(rows), clicks(fields | {"landing_page": control}), kafka)
    assert [event["landing_page"] for event in kafka.events()] == [
        "Big deal", "several lines", "several lines", 'a "b" c',
    ]  # fmt: skip
