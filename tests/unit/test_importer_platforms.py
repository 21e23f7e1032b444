"""The mappings for ad platforms' offline conversion files, and the files themselves: zones, workbooks, bad ones."""

import datetime as dt
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import openpyxl
import pytest
from rich.console import Console

from app.importer import Given, ImportRefusedError, MappingError, Summary, built_in, import_file
from app.importer.prepare import Outcome
from app.policy.load import load_policy
from app.policy.model import ClickIds, Policy
from app.settings import Settings
from tests.unit.imported import FakeKafka

# 2026-11-20T18:00:00Z
AT_MS = 1_795_197_600_000
HEADER = "Google Click ID,Conversion Name,Conversion Time,Conversion Value,Conversion Currency,Order ID,User ID"
ROW = "Cj0KCQ-x_1,Offline purchase,2026-11-20 18:00:00,99.5,EUR,o-1,u1"
SHOP = Given("shop", {"Offline purchase": "purchase"})


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("deploy/policy.yaml")[0]


Run = Callable[..., Summary]


@pytest.fixture
def run(tmp_path: Path, policy: Policy) -> Run:
    """Imports a file's bytes by a mapping of onecount's own into a `FakeKafka`; anew each time."""

    def import_it(content: str | bytes, kafka: FakeKafka, mapping: str = "google_ads", **options: Any) -> Summary:
        path = tmp_path / "rows"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        options = {"given": SHOP, "resume": False} | options
        return import_file(Settings(), policy, path, mapping, open_with=kafka.open, look_up=kafka.look_up, **options)

    return import_it


def google(*rows: str, zone: str | None = "+0000", header: str = HEADER) -> str:
    first = [] if zone is None else [f"Parameters:TimeZone={zone}"]
    return "\n".join([*first, header, *rows]) + "\n"


def rejected(tmp_path: Path) -> list[tuple[int, str, str]]:
    lines = [json.loads(line) for line in (tmp_path / "rows.rejected.jsonl").read_text().splitlines()]
    return [(line["line"], line["reason"], line["field"]) for line in lines]


def times(kafka: FakeKafka) -> list[int]:
    return [event["event_time"] for event in kafka.events()]


def test_a_row_of_googles_template_is_a_conversion_of_its_click(run: Run) -> None:
    kafka = FakeKafka()
    run(google(ROW), kafka)
    (event,) = kafka.events()
    event_id = event.pop("event_id")
    assert len(event_id) == 64
    assert event == {
        "event_type": "conversion",
        "event_time": AT_MS,
        "advertiser_id": "shop",
        "user_id": "u1",
        "platform": "google_ads",
        "conversion_name": "purchase",
        "click_id": "Cj0KCQ-x_1",
        "value": 99.5,
        "currency": "EUR",
        "order_id": "o-1",
    }
    assert kafka.records[0][0] == b"u1"


def test_the_templates_instructions_capitals_and_empty_columns_are_no_rows(run: Run) -> None:
    text = (
        "### INSTRUCTIONS ###,,,,,,\n# set the time zone,,,,,,\n,,,,,,\n### TEMPLATE ###,,,,,,\n"
        "Parameters:EntityType=OFFLINECONVERSION;TimeZone=-0500;,,,,,,\n"
        f"{HEADER.lower()}\n{ROW.replace('18:00', '13:00')}\n,,,,,,\n"
    )
    kafka = FakeKafka()
    summary = run(text, kafka)
    assert times(kafka) == [AT_MS]
    assert summary.rows == 1


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("America/New_York", "2026-11-20 13:00:00"),
        ("America/New_York", "2026-11-20T13:00:00"),
        ("America/New_York", "11/20/2026 1:00:00 PM"),
        ("America/New_York", "11/20/2026 13:00:00"),
        ("America/New_York", '"Nov 20, 2026 1:00:00 PM"'),
        ("+0100", "2026-11-20 19:00:00"),
        ("+0100", "2026-11-20 13:00:00-0500"),  # the row's own zone goes first
        ("+0100", "2026-11-20T13:00:00-05:00"),
        ("+0100", "2026-11-20 13:00:00 -0500"),
        ("+0100", "2026-11-20 13:00:00 America/New_York"),
        ("+0100", "2026-11-20T13:00:00 America/New_York"),
        (None, "11/20/2026 1:00:00 PM -0500"),
        (None, "2026-11-20 18:00:00+0000"),
    ],
)
def test_every_time_that_google_documents_is_read(run: Run, zone: str | None, text: str) -> None:
    kafka = FakeKafka()
    run(google(ROW.replace("2026-11-20 18:00:00", text), zone=zone), kafka)
    assert times(kafka) == [AT_MS]


def test_a_zone_comes_from_the_command_where_the_file_says_none(run: Run, tmp_path: Path) -> None:
    kafka = FakeKafka()
    run(google(ROW.replace("18:00", "19:00"), zone=None), kafka, given=Given("shop", SHOP.actions, "Europe/Berlin"))
    assert times(kafka) == [AT_MS]
    run(google(ROW, zone=None), FakeKafka())
    assert rejected(tmp_path) == [(2, "time_without_zone", "")]


@pytest.mark.parametrize(
    ("zone", "given", "message"),
    [
        ("<your time zone>", None, r"Parameters:TimeZone=<your time zone> of the file: .* is no time zone.*--zone"),
        (
            "+0000",
            "Europe/Berlin",
            r"the file says Parameters:TimeZone=\+0000, the command --zone Europe/Berlin.*Leave one",
        ),
    ],
)
def test_a_zone_that_is_none_or_said_twice_is_refused(run: Run, zone: str, given: str | None, message: str) -> None:
    with pytest.raises(ImportRefusedError, match=message):
        run(google(ROW, zone=zone), FakeKafka(), given=Given("shop", SHOP.actions, given))


def test_orders_and_clicks_tell_conversions_apart_as_google_does(run: Run) -> None:
    rows = [
        ROW,
        ROW.replace("99.5", "7"),  # the same order
        ROW.replace("Cj0KCQ-x_1", "other"),  # the same order of another click
        ROW.replace("o-1", ""),
        ROW.replace("o-1", "").replace("18:00", "19:00"),
        ROW.replace("o-1", "").replace("Cj0KCQ-x_1", "other"),
    ]
    kafka = FakeKafka()
    run(google(*rows), kafka)
    by_id: dict[str, int] = {}
    for event in kafka.events():
        by_id[event["event_id"]] = by_id.get(event["event_id"], 0) + 1
    assert sorted(by_id.values()) == [1, 1, 1, 3]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (ROW.replace("Offline purchase", "Purchase"), ("unknown_action", "conversion_name")),
        (ROW.replace("Cj0KCQ-x_1", "#NAME?"), ("unparseable_click_id", "click_id")),
        (ROW.replace("Cj0KCQ-x_1", "").replace(",u1", ","), ("no_identifier", "click_id")),
        (ROW.replace(",u1", ","), ("no_user_id", "user_id")),
        (ROW.replace("2026-11-20 18:00:00", "yesterday"), ("unreadable_time", "")),
        (ROW.replace("99.5", "EUR 99"), ("unreadable_number", "")),
        (ROW.replace("99.5", "1e9999999"), ("unreadable_number", "")),
        (ROW.replace("o-1", "1.23457E+14"), ("damaged_id", "order_id")),
        (ROW.replace("o-1", '"1,23457E+14"'), ("damaged_id", "order_id")),
        (ROW.replace("o-1", " #N/A "), ("damaged_id", "order_id")),
        (ROW.replace("u1", "4.2e+20"), ("damaged_id", "user_id")),
        (ROW.replace("EUR", "Euro"), ("invalid_field", "currency")),
        (ROW.replace("99.5", "-1"), ("invalid_field", "value")),
        (ROW.replace("2026-11-20", "2999-11-20"), ("in_the_future", "event_time")),
        (ROW.replace("2026-11-20", "2026-11-12"), ("beyond_correction_horizon", "event_time")),
        (ROW + ",more", ("wrong_column_count", "")),
    ],
)
def test_a_row_that_cannot_count_is_rejected_by_itself_with_a_reason(
    run: Run, tmp_path: Path, row: str, found: tuple[str, str]
) -> None:
    kafka = FakeKafka(newest_ms=AT_MS + 3_600_000)
    summary = run(google(ROW, row), kafka)
    assert summary.sent == 1
    assert rejected(tmp_path) == [(4, *found)]


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        (
            "google_ads_adjustments",
            "Order ID,Conversion Name,Adjustment Time,Adjustment Type,User ID\n{order},purchase,2026-11-21 18:00:00+0000,RETRACT,{user}\n",
        ),
        ("meta", "EVENT_NAME,EVENT_TIME,ORDER_ID,EXTERNAL_ID\npurchase,1795197600,{order},{user}\n"),
    ],
)
def test_damaged_ids_are_no_ids_in_any_platforms_file(run: Run, tmp_path: Path, mapping: str, text: str) -> None:
    for order, user in (("#REF!", "u1"), ("o-1", "1E+15")):
        assert run(text.format(order=order, user=user), FakeKafka(), mapping).rejected == {"damaged_id": 1}
    assert run(text.format(order="o-1", user="u1"), FakeKafka(), mapping).sent == 1


def test_blanks_around_values_are_no_part_of_them(run: Run) -> None:
    kafka = FakeKafka()
    run(google(ROW, ROW.replace("o-1", "o-1 ").replace("u1", "\xa0u1"), ROW.replace("99.5,EUR", ", EUR ")), kafka)
    assert len({(event["event_id"], event["order_id"], event["user_id"]) for event in kafka.events()}) == 1
    assert [event.get("value") for event in kafka.events()] == [99.5, 99.5, None]


def test_an_order_number_that_a_workbook_no_longer_holds_is_refused(run: Run) -> None:
    cells = ["Cj0KCQ-x_1", "Offline purchase", "2026-11-20 18:00:00+0000", 1e15, "EUR"]
    rows = [[*cells, order, "u1"] for order in (1234567890123450.0, 4.5e20, 123456789012345.0, "1234567890123456")]
    summary = run(workbook(HEADER.split(","), *rows), FakeKafka())
    assert summary.rejected == {"damaged_id": 2, "invalid_field": 2}, "the others' values are as large as 1E+15"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Value", "Conversion Value"),
        ("currency", "Conversion Currency"),
        ("OrderID", "Order ID"),
        ("transaction_id", "Order ID"),
        ("Click ID", "Google Click ID"),
    ],
)
def test_a_column_that_may_be_a_misspelt_one_is_refused(run: Run, theirs: str, ours: str) -> None:
    with pytest.raises(MappingError, match=rf"column '{theirs}', which is not read, and none '{ours}'.*rename.*delete"):
        run(google(ROW, header=HEADER.replace(ours, theirs)), FakeKafka())
    beside = run(google(ROW + ",x", header=f"{HEADER},{theirs}"), FakeKafka())
    assert (beside.sent, beside.unread) == (1, (theirs,)), "both are there, so nothing is meant otherwise"


def test_columns_that_are_not_read_are_told_by_every_run(run: Run) -> None:
    text = io.StringIO()
    content = google("x," + ROW + ",,", header=f"Row ID,{HEADER},Customer ID,")
    summary = run(content, FakeKafka(), console=Console(file=text, width=200), dry_run=True)
    assert summary.unread == ("Row ID", "Customer ID")
    assert "columns not read: Row ID, Customer ID\n" in text.getvalue()


def test_an_action_by_another_name_is_guessed(run: Run, tmp_path: Path) -> None:
    run(google(ROW.replace("Offline purchase", "Purchase")), FakeKafka())
    assert '--action purchase=\\"Purchase\\"' in (tmp_path / "rows.rejected.jsonl").read_text()


def test_rows_that_were_in_time_when_the_import_began_are_sent_when_it_is_resumed(run: Run) -> None:
    rows = [ROW.replace("18:00:00", f"18:00:{second:02d}").replace("o-1", f"o-{second}") for second in range(6)]
    late = ROW.replace("2026-11-20", "2026-11-12")
    kafka = FakeKafka(newest_ms=AT_MS)
    run(google(late, *rows), kafka, limit=2, resume=True)
    # meanwhile the topic went on, far beyond these rows: they are judged as at the start, or others would be left out
    after = FakeKafka(newest_ms=AT_MS + 30 * 86_400_000)
    summary = run(google(late, *rows), after, resume=True)
    assert summary.complete
    assert [event["order_id"] for event in (*kafka.events(), *after.events())] == [f"o-{n}" for n in range(6)]


def test_an_adjustment_file_gives_retractions_and_restatements(run: Run, tmp_path: Path) -> None:
    header = "Order ID,Google Click ID,Conversion Name,Conversion Time,Adjustment Time,Adjustment Type,Adjusted Value,Adjusted Value Currency,User ID"
    rows = [
        "o-1,,Offline purchase,,2026-11-21 18:00:00,RETRACT,,,u1",
        "o-2,,Offline purchase,,2026-11-21 18:00:00,RESTATE,12.5,EUR,u1",
        ",Cj0KCQ-x_1,Offline purchase,2026-11-20 18:00:00,2026-11-21 18:00:00,RETRACTION,,,u1",
        "o-3,,Offline purchase,,2026-11-21 18:00:00,ENHANCEMENT,,,u1",
        ",,Offline purchase,,2026-11-21 18:00:00,RETRACT,,,u1",
        "o-4,,Offline purchase,,2026-11-21 18:00:00,RESTATE,,,u1",
        "o-5,,Offline lead,,2026-11-21 18:00:00,RETRACT,,,u1",
        "o-6,,Offline purchase,,2026-11-21 18:00:00,RESTATE,12.5,Euro,u1",
    ]
    conversions, adjustments = FakeKafka(), FakeKafka()
    run(google(ROW.replace("o-1", "")), conversions)
    run(google(*rows, header=header), adjustments, "google_ads_adjustments")
    retract, restate, by_click = adjustments.events()
    assert (retract["adjustment"], retract["order_id"], retract["event_time"]) == ("retract", "o-1", AT_MS + 86_400_000)
    assert (restate["adjustment"], restate["value"], restate["currency"]) == ("restate", 12.5, "EUR")
    assert [event["conversion_name"] for event in adjustments.events()] == ["purchase"] * 3
    assert by_click["conversion_event_id"] == conversions.events()[0]["event_id"]
    assert rejected(tmp_path) == [
        (6, "unknown_adjustment", "adjustment"),
        (7, "no_identifier", "order_id"),
        (8, "missing_field", "value"),
        (9, "unknown_action", "conversion_name"),
        (10, "invalid_field", "currency"),
    ]


META = "EVENT_NAME,EVENT_TIME,ACTION_SOURCE,VALUE,CURRENCY,ORDER_ID,EMAIL,CLICK_ID,EXTERNAL_ID"


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (META, "Purchase,2026-11-20 18:00:00,physical_store,5,USD,o-1,a@b.example,fb.1.1795000000000.IwAR_x-1,u1"),
        (META.lower(), "Purchase,1795197600,physical_store,5,USD,o-1,,IwAR_x-1,u1"),
        (
            "event_name,event_time,value,currency,order_id,fbc,extern_id",
            "Purchase,2026-11-20T18:00:00Z,5,USD,o-1,fb.1.1795000000000.IwAR_x-1.AQEAAQMB,u1",
        ),
    ],
)
def test_metas_files_are_read_and_their_personal_data_is_not(run: Run, header: str, row: str) -> None:
    kafka = FakeKafka()
    run(f"{header}\n{row}\n", kafka, "meta", given=Given("shop", {"Purchase": "purchase"}, "UTC"))
    (event,) = kafka.events()
    assert (event["click_id"], event["user_id"], event["event_time"]) == ("IwAR_x-1", "u1", AT_MS)
    assert (event["platform"], event["value"], event["currency"], event["order_id"]) == ("meta", 5, "USD", "o-1")
    assert "a@b.example" not in json.dumps(event)


def test_a_dry_run_judges_and_reports_and_leaves_nothing_else(run: Run, tmp_path: Path) -> None:
    kafka, seen = FakeKafka(), []

    def watch(row: Any, outcome: Outcome) -> None:
        seen.append((row.line, outcome.refusal.reason if outcome.refusal else ""))

    output = io.StringIO()
    summary = run(
        google(ROW, ROW.replace(",u1", ",")), kafka, dry_run=True, watch=watch, console=Console(file=output, width=120)
    )
    assert kafka.records == []
    assert seen == [(3, ""), (4, "no_user_id")]
    assert (summary.events, summary.sent) == ({"conversion": 1}, 0)
    assert "a dry run" in output.getvalue()
    assert not list(tmp_path.glob("*.import-state.json"))


def test_a_file_that_was_sent_is_judged_again_for_a_report(run: Run) -> None:
    run(google(ROW), FakeKafka(), resume=True)
    seen: list[Outcome] = []
    kafka = FakeKafka()
    run(google(ROW), kafka, resume=True, watch=lambda row, outcome: seen.append(outcome))
    assert (len(seen), kafka.records) == (1, [])


def test_a_table_with_semicolons_is_read_where_only_they_give_the_columns(run: Run) -> None:
    kafka = FakeKafka()
    run(google(ROW).replace(",", ";"), kafka)
    assert times(kafka) == [AT_MS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xd0\xcf\x11\xe0" + bytes(600), r"old kind \(\.xls\) or has a password: save it as \.xlsx"),
        ("\ufeff" + google(ROW), None),
        (google(ROW).encode("utf-16"), r"is UTF-16 text: save it as CSV \(UTF-8\)"),
        (b"%PDF-1.7", r"is a PDF"),
        (b"PK\x03\x04 and no more", r"is damaged.*fetch the file again"),
        (b"", r"has no header line"),
        ("Parameters:TimeZone=+0000\n", r"has no header line"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_do(run: Run, content: str | bytes, message: str | None) -> None:
    if message is None:
        run(content, FakeKafka())
        return
    with pytest.raises(ImportRefusedError, match=message):
        run(content, FakeKafka())


def workbook(
    *rows: Sequence[Any],
    title: str = "Sheet",
    extra: str | None = None,
    extra_rows: Sequence[Sequence[Any]] = (["nothing here"],),
) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = title
    for row in rows:
        sheet.append(row)
    if extra is not None:
        other = book.create_sheet(extra)
        for row in extra_rows:
            other.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def test_a_workbook_gives_the_same_events_as_its_csv(run: Run) -> None:
    cells = ROW.split(",")
    typed = (*cells[:2], dt.datetime(2026, 11, 20, 18, 0, 0), 99.5, "EUR", 4711.0, "u1")  # noqa: DTZ001 - as Excel has them
    rows = ((f"Parameters:TimeZone=+0000",), tuple(HEADER.split(",")), typed, (), (*typed[:5],), ("x",) * 8)  # noqa: F541
    book, text = FakeKafka(), FakeKafka()
    summary = run(workbook(*rows, extra="Notes"), book)
    run(google(ROW.replace("o-1", "4711")), text)
    assert book.records == text.records
    assert summary.rejected == {"no_user_id": 1, "wrong_column_count": 1}


def test_the_state_of_one_sheet_says_nothing_of_another(run: Run, tmp_path: Path) -> None:
    cells = [
        HEADER.split(","),
        ["Cj0KCQ-x_1", "Offline purchase", "2026-11-20 18:00:00+0000", 99.5, "EUR", "o-1", "u1"],
    ]
    content = workbook(*cells, title="Jan", extra="Feb", extra_rows=cells)
    assert run(content, FakeKafka(), sheet="Jan", resume=True).sent == 1
    with pytest.raises(ImportRefusedError, match=r"another sheet is meant \(it was Jan\): give each sheet a --state"):
        run(content, FakeKafka(), sheet="Feb", resume=True)
    feb = tmp_path / "feb.json"
    assert run(content, FakeKafka(), sheet="Feb", resume=True, state_path=feb).sent == 1
    assert run(content, FakeKafka(), sheet="Feb", resume=True, state_path=feb).sent == 0


def test_a_sheet_is_chosen_by_name_and_only_a_workbook_has_one(run: Run) -> None:
    rows = ((f"Parameters:TimeZone=+0000",), tuple(HEADER.split(",")), tuple(ROW.split(",")))  # noqa: F541
    kafka = FakeKafka()
    content = workbook(*rows, title="Conversions", extra="Notes")
    run(content, kafka, sheet="Conversions")
    assert len(kafka.records) == 1
    with pytest.raises(ImportRefusedError, match=r"has no sheet 'Sales'; it has Conversions, Notes"):
        run(content, kafka, sheet="Sales")
    with pytest.raises(MappingError, match=r"lacks the column"):
        run(content, kafka, sheet="Notes")
    with pytest.raises(ImportRefusedError, match=r"no XLSX workbook.*leave --sheet out"):
        run(google(ROW), kafka, sheet="Conversions")


def test_a_workbook_too_large_for_memory_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.importer.workbook._MAX_UNPACKED_BYTES", 1_000)
    with pytest.raises(ImportRefusedError, match=r"unpacks to .*save the sheet as CSV"):
        run(workbook(tuple(HEADER.split(","))), FakeKafka())


def test_what_a_mapping_must_be_told_is_asked_for(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"--advertiser shop"):
        run(google(ROW), FakeKafka(), given=Given())
    with pytest.raises(MappingError, match=r"--zone: 'Berlin' is no time zone"):
        run(google(ROW), FakeKafka(), given=Given("shop", {}, "Berlin"))
    with pytest.raises(MappingError, match=r"there is no mapping gogle: .*google_ads, google_ads_adjustments, meta"):
        run(google(ROW), FakeKafka(), "gogle")


def test_what_is_told_with_a_mapping_decides_what_a_resumed_import_sends(run: Run) -> None:
    rows = [ROW.replace("o-1", f"o-{n}") for n in range(4)]
    run(google(*rows), FakeKafka(), resume=True, limit=1)
    with pytest.raises(ImportRefusedError, match=r"what is said with the mapping"):
        run(google(*rows), FakeKafka(), resume=True, given=Given("other", SHOP.actions))


def test_a_click_id_alone_is_enough_where_the_policy_has_click_ids(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(google(ROW.replace(",u1", ",")))
    bounds = msgspec.structs.replace(policy.bounds, click_ids=ClickIds())
    kafka = FakeKafka()
    import_file(
        Settings(), msgspec.structs.replace(policy, bounds=bounds), tmp_path / "rows", "google_ads",
        given=SHOP, open_with=kafka.open, look_up=kafka.look_up,
    )  # fmt: skip
    (event,) = kafka.events()
    assert (event["click_id"], "user_id" in event) == ("Cj0KCQ-x_1", False)


def test_the_mappings_that_come_with_onecount_have_codes_of_a_platform() -> None:
    assert set(built_in()) == {"google_ads", "google_ads_adjustments", "meta"}
