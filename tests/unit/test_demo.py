"""What the demo shows is what the topics say, on narrow screens and wide ones."""

import io
import json
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from rich.console import Console, RenderableType

from app.contract import rows
from app.contract.events import Rejection
from app.contract.rows import COUNTED, DUPLICATE, UNATTRIBUTED, AttributedRow, CountRow
from app.demo import fault as faults
from app.demo.fault import Fault, advance
from app.demo.feed import PacedProducer
from app.demo.figures import DUPLICATES, REPLAYS, Figures, Totals, read_metrics
from app.demo.known_files import mapping_for
from app.demo.outcome import (
    claimed_words,
    generated_words,
    import_table,
    never_credited,
    outcome_tables,
    rejected_examples,
    touch_table,
)
from app.demo.screen import HIGH, WIDE, Picture, draw, plain_line
from app.demo.tally import ATTRIBUTED, COUNTS, LETTERS, Sums, Tally, fold_row, platforms, top_campaigns, total, without
from app.demo.workers import pick_neighbours
from app.importer import ImportRefusedError
from app.observe.metrics import Metrics
from app.policy.load import load_policy

SIZES = [(80, 24), (80, 50), (WIDE - 1, 30), (WIDE, HIGH), (140, 24), (140, 44)]


def count(platform: str = "meta", campaign: str | None = "brand", **changes: object) -> CountRow:
    row = CountRow(
        window_start=0, window_end=60_000, platform=platform, advertiser_id="adv", dimensions={"campaign_id": campaign},
        conversion_name="", currency="", views=0, engaged_views=0, clicks=0, conversions=0, value=0.0, cost=0.0,
        revision=1, final=False,
    )  # fmt: skip
    return msgspec.structs.replace(row, **changes)


def conversion(event_id: str = "c1", **changes: object) -> tuple[bytes, AttributedRow]:
    row = AttributedRow(
        advertiser_id="adv", user_id="u", platform="meta", conversion_name="purchase", event_id=event_id, event_time=1,
        order_id=None, status=COUNTED, conversions=1, value=10.5, currency="USD", action_class="macro", intent="hard",
        outcome="revenue", method="click", policy_version=1, duplicate_of=None, touch_type=None, touch_event_id=None,
        touch_time=None, time_to_convert_ms=None, campaign_id=None, ad_id=None, creative_id=None, landing_page=None,
        offer_id=None, source=None, medium=None, revision=1,
    )  # fmt: skip
    return event_id.encode(), msgspec.structs.replace(row, **changes)


def tally_of(
    counts: Iterable[CountRow] = (),
    conversions: Iterable[tuple[bytes, AttributedRow]] = (),
    letters: Iterable[str] = (),
) -> Tally:
    tally = Tally()
    for number, row in enumerate(counts):
        fold_row(tally, COUNTS, str(number).encode(), rows.encode(row))
    for key, judged in conversions:
        fold_row(tally, ATTRIBUTED, key, rows.encode(judged))
    for reason in letters:
        letter = rows.dead_letter(Rejection(reason, "", ""), "ads.events", 0, 0, 0, None, b"x")
        fold_row(tally, LETTERS, None, rows.encode(letter))
    return tally


def busy_picture() -> Picture:
    """Long names, large numbers, more of everything than there is room for."""
    counts = [
        count(
            platform, f"{platform}-prospecting-with-a-very-long-name-{number:04}", views=1_234_567, clicks=98_765,
            conversions=1_000 + number, value=123_456.78, currency="USD", cost=9_876.5,
        )
        for platform in ("google_ads", "microsoft_ads", "meta", "tiktok")
        for number in range(10)
    ]  # fmt: skip
    letters = [reason for number, reason in enumerate(REASONS) for _ in range(number + 1)]
    figures = Figures(
        produced=12_345_678, counted=12_000_000, per_second=98_765.4, workers=Counter({DUPLICATES: 1_234_567})
    )
    notes = [f"[bold red]0:2{number} kill -9[/] for a worker " + "that has a long story " * 8 for number in range(5)]
    return Picture(tally_of(counts, [conversion()], letters), figures, "counting live", "0:23", 0.5, notes)


REASONS = (
    "beyond_correction_horizon", "adjustment_precedes_conversion", "invalid_json", "invalid_field", "missing_field",
    "too_old", "empty", "null_record", "unknown_platform", "key_mismatch", "duplicate_key", "too_deep",
)  # fmt: skip


def text_of(renderable: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue().splitlines()


# --- The fold -------------------------------------------------------------------------------------------------------


def test_a_later_row_of_a_key_replaces_the_earlier_one() -> None:
    tally = Tally()
    fold_row(tally, COUNTS, b"k", rows.encode(count(views=3, cost=0.3)))
    fold_row(tally, COUNTS, b"k", rows.encode(count(views=5, cost=0.5, revision=2)))
    assert total(tally) == Sums(views=5, cost=500_000, value=Counter({"": 0}))


def test_a_null_value_takes_the_row_away() -> None:
    key, row = conversion(platform="", status=UNATTRIBUTED, conversions=0)
    tally = tally_of(conversions=[(key, row)])
    assert tally.by_status()[UNATTRIBUTED] == 1
    fold_row(tally, ATTRIBUTED, key, None)
    fold_row(tally, COUNTS, b"never seen", None)
    assert tally.by_status().total() == 0
    assert tally.attributed == {}


def test_windows_and_actions_of_one_campaign_add_up() -> None:
    tally = tally_of(
        [
            count(views=2, clicks=1),
            count(views=1, window_start=60_000),
            count(conversions=1, value=10.5, currency="USD", conversion_name="purchase"),
            count(campaign="other", engaged_views=4),
        ]
    )
    assert [(line.campaign, line.sums.views, line.sums.conversions) for line in top_campaigns(tally, 9)] == [
        ("brand", 3, 1),
        ("other", 0, 0),
    ]
    [meta] = platforms(tally)
    assert (meta.sums.views, meta.sums.engaged_views, meta.sums.clicks) == (3, 4, 1)
    assert +meta.sums.value == {"USD": 10_500_000}


def test_a_conversion_that_changes_its_status_is_corrected_once() -> None:
    key, row = conversion()
    tally = tally_of(conversions=[(key, row), conversion("c2")])
    for revision, status in ((2, DUPLICATE), (3, UNATTRIBUTED)):
        changed = msgspec.structs.replace(row, status=status, conversions=0, revision=revision)
        fold_row(tally, ATTRIBUTED, key, rows.encode(changed))
    assert +tally.by_status() == {COUNTED: 1, UNATTRIBUTED: 1}
    assert tally.corrected == 1
    assert tally.value["purchase"]["USD"] == 10_500_000


def test_the_value_of_what_is_not_counted_is_no_revenue() -> None:
    tally = tally_of(conversions=[conversion(status=UNATTRIBUTED, conversions=0, value=99.0)])
    assert +tally.value["purchase"] == {}


def test_campaigns_stand_in_the_order_of_their_conversions() -> None:
    tally = tally_of(
        [count(campaign="a", views=9), count(campaign="b", conversions=1), count(campaign="c", conversions=2), count()]
    )
    assert [line.campaign for line in top_campaigns(tally, 9)] == ["c", "b", "a"]
    assert [line.campaign for line in top_campaigns(tally, 1)] == ["c"]


def test_what_is_left_of_a_sum_is_what_the_parts_are_not() -> None:
    whole = Sums(views=5, value=Counter({"USD": 7, "EUR": 3}))
    assert without(whole, [Sums(views=2, value=Counter({"USD": 7}))]) == Sums(views=3, value=Counter({"EUR": 3}))
    assert without(whole, [whole]) == Sums()


# --- Numbers of the workers -----------------------------------------------------------------------------------------


def test_a_workers_page_gives_its_counters_and_whether_it_is_ready() -> None:
    from prometheus_client import generate_latest

    metrics = Metrics("counter", "demo-0")
    events = metrics.families["onecount_events_total"]
    events.labels("meta", "view", "duplicate").inc(2)
    events.labels("meta", "click", "duplicate").inc(3)
    events.labels("meta", "click", "accepted").inc(7)
    metrics.families["onecount_late_events_total"].labels("meta").inc(4)
    metrics.families["onecount_reopenings_total"].labels("replay").inc()
    found, ready = read_metrics(generate_latest(metrics.registry).decode())
    assert +found == {DUPLICATES: 5, "late": 4, REPLAYS: 1}
    assert not ready
    metrics.families["onecount_ready"].set(1)
    assert read_metrics(generate_latest(metrics.registry).decode())[1]


def test_what_a_worker_had_counted_before_it_was_killed_is_kept() -> None:
    totals = Totals()
    for port, number in ((1, 5), (2, 1), (1, 9), (1, 2), (1, 3)):  # the worker of port 1 starts anew after 9
        totals.take(port, Counter({DUPLICATES: number}))
    assert totals.sums() == {DUPLICATES: 9 + 3 + 1}


# --- The screen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_frame_fits_the_screen(width: int, height: int) -> None:
    for picture in (Picture(Tally(), Figures()), busy_picture()):
        lines = text_of(draw(picture, width, height), width)
        assert max(map(len, lines)) <= width
        assert len(lines) < height  # a live screen that is filled to its last line leaves traces


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_frame_shows_every_number(width: int, height: int) -> None:
    text = "\n".join(text_of(draw(busy_picture(), width, height), width))
    for part in ("12,345,678", "12,000,000", "98,765", "345,678", "1,234,567", "1,009", "123,456.78", " others "):
        assert part in text, part
    for label in ("produced", "counted", "lag", "duplicates", "corrected", "re-keyed", "noise", "unattributed"):
        assert label in text, label
    assert "kill -9" in text


def test_narrow_screens_do_not_repeat_the_platform_in_a_campaigns_name() -> None:
    picture = Picture(tally_of([count("meta", "meta-brand-0101", clicks=1)]), Figures())
    assert "meta-brand" not in "\n".join(text_of(draw(picture, 80, 24), 80))
    assert "meta-brand-0101" in "\n".join(text_of(draw(picture, 140, 24), 140))


def test_markup_in_names_is_shown_as_it_is() -> None:
    picture = Picture(tally_of([count("meta", "[red]x[/]", clicks=1)]), Figures())
    assert "[red]x[/]" in "\n".join(text_of(draw(picture, 140, 24), 140))


def test_amounts_of_several_currencies_are_not_added_up() -> None:
    tally = tally_of([count(value=1.5, currency="USD", conversions=1), count(value=2.0, currency="EUR", conversions=1)])
    assert "2.00 EUR + 1.50 USD" in "\n".join(text_of(draw(Picture(tally, Figures()), 140, 24), 140))


def test_where_there_is_no_terminal_a_frame_is_one_line() -> None:
    line = plain_line(busy_picture())
    assert line.startswith(" 0:23  produced 12,345,678, counted 12,000,000")
    assert "\n" not in line
    assert plain_line(Picture(Tally(), Figures(), "reading x.csv")) == "reading x.csv"


# --- The end --------------------------------------------------------------------------------------------------------


def test_the_campaigns_and_the_others_add_up_to_all() -> None:
    tally = tally_of([count(campaign=f"c{number}", clicks=1, conversions=number) for number in range(5)])
    text = text_of(touch_table("By campaign", top_campaigns(tally, 2), total(tally), True), 80)
    found = {
        line.split()[0] if "meta" not in line else line.split()[1]: line.split()[-2:]
        for line in text
        if line[-1:].isdigit()
    }
    assert found == {"c4": ["1", "4"], "c3": ["1", "3"], "others": ["3", "3"], "all": ["5", "10"]}


def test_what_is_counted_once_stands_beside_what_platforms_claim_and_in_no_sum() -> None:
    claims = [
        count(platform, conversions=1, value=10.5, currency="USD", conversion_name="purchase", clicks=2)
        for platform in ("meta", "tiktok")
    ]
    assert claimed_words(tally_of(claims)) is None
    once = count("all", conversions=1, value=10.5, currency="USD", conversion_name="purchase", scope="all")
    tally = tally_of([*claims, once])
    assert (total(tally).conversions, total(tally).value["USD"]) == (2, 21_000_000)
    assert {line.platform for line in (*platforms(tally), *top_campaigns(tally, 9))} == {"meta", "tiktok"}
    assert claimed_words(tally) == (
        "Platforms claim 2 conversions (21.00 USD). Counted once over all of them: 1 conversion (10.50 USD)."
    )
    fold_row(tally, COUNTS, b"2", rows.encode(msgspec.structs.replace(once, conversions=0, value=0.0, revision=2)))
    assert str(claimed_words(tally)).endswith(": 0 conversions.")


def test_measures_of_which_there_is_nothing_have_no_column() -> None:
    tally = tally_of([count(clicks=1)], [conversion()])
    text = "\n".join(line for table in outcome_tables(tally) for line in text_of(table, 80))
    for absent in ("views", "cost", "retracted", "others"):
        assert absent not in text, absent
    assert "clicks" in text
    assert "10.50" in text


def test_a_platform_whose_touches_its_method_never_credits_is_named() -> None:
    policy = load_policy("deploy/policy.yaml")[0]
    lonely = [conversion(status=UNATTRIBUTED, conversions=0)]
    [words] = never_credited(tally_of([count("default", views=5), count("meta", views=5)], lonely), policy)
    assert words.startswith("Nothing is credited on default: all its touches are views")
    assert never_credited(tally_of([count("default", views=5, clicks=1)], lonely), policy) == []
    assert never_credited(tally_of([count("default", views=5)]), policy) == []  # nor is there anything to credit


def test_one_rejected_row_of_each_reason_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    lines = [
        {"line": 3, "event": "", "reason": "missing_field", "field": "user_id", "detail": "none", "row": {}},
        {"line": 4, "event": "", "reason": "missing_field", "field": "user_id", "detail": "none", "row": {}},
        {"line": 1_005, "event": "", "reason": "no_rule", "field": "", "detail": "no rule", "row": {}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rejected_examples(path) == ["line 3: missing_field user_id: none", "line 1,005: no_rule: no rule"]
    assert rejected_examples(tmp_path / "none") == []


def test_the_rows_of_a_file_are_accounted_for() -> None:
    done = {"rows": 7, "sent": 5, "events": {"click": 5}, "skipped": {"robot": 1}, "rejected": {"no_rule": 1}}
    text = [" ".join(line.split()) for line in text_of(import_table(done), 80)]
    assert text[-5:] == ["rows read 7", "left out: robot 1", "rejected: no_rule 1", "event: click 5", "events sent 5"]


def test_the_troubles_that_were_generated_are_named() -> None:
    assert generated_words({"sent": 1_000, "kinds": {"view": 997, "repeat": 2, "retract": 1}}) == (
        "1,000 events, among them 2 repeats with another time, 1 retractions and restatements"
    )
    assert generated_words({"sent": 1, "kinds": {"view": 1}}) == "1 events"


# --- Beginnings and faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mapping"),
    [
        ("puffy-events-20250223-20250308.csv.gz", "shop.yaml"),
        ("ipinyou-20131021-adv2821-clk.tsv.gz", "dsp-log.yaml"),
        ("Criteo-Journeys-test.tsv", "criteo.yaml"),
    ],
)
def test_known_files_need_no_mapping(name: str, mapping: str) -> None:
    assert mapping_for(Path("/data") / name, None).name == mapping
    assert mapping_for(Path("/data") / name, None).is_file()


def test_the_mapping_that_is_given_goes_first() -> None:
    assert mapping_for(Path("puffy-events-1.csv"), Path("mine.yaml")) == Path("mine.yaml")


def test_an_unknown_file_is_refused_with_what_to_do() -> None:
    with pytest.raises(ImportRefusedError, match=r"no mapping is known for mine\.csv: say with --map"):
        mapping_for(Path("mine.csv"), None)


def test_a_paced_producer_takes_so_many_records_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr("app.demo.feed.time", SimpleNamespace(monotonic=lambda: now_s, sleep=sleep))
    taken: list[tuple[object, ...]] = []
    inner = SimpleNamespace(produce=lambda *record: taken.append(record), poll=None, flush=None, list_topics=None)
    producer = PacedProducer(inner, rate=200.0)
    for number in range(1_000):
        producer.produce("topic", number)
    assert len(taken) == 1_000
    assert now_s == pytest.approx(105.0)


def test_ports_in_a_row_are_free_and_in_a_row() -> None:
    assert len(pick_neighbours(3)) == 3


def test_the_worker_is_killed_once_at_half_time_and_seen_coming_back(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(faults.os, "kill", lambda pid, number: killed.append((pid, number)))
    pid = 77
    workers = SimpleNamespace(ports=range(5_000, 5_002), pid_of=lambda slot: pid)
    figures = Figures(ready={5_000: True, 5_001: True})
    fault = Fault()
    assert advance(fault, workers, figures, 0.49, "0:19") is None
    assert "kill -9" in (advance(fault, workers, figures, 0.5, "0:20") or "")
    assert killed == [(77, signal.SIGKILL)]
    figures.ready[5_001] = True  # an answer from before its death
    assert advance(fault, workers, figures, 0.6, "0:21") is None
    pid = 78
    assert "back" in (advance(fault, workers, figures, 0.7, "0:23") or "")
    assert fault.over
    assert advance(fault, workers, figures, 0.9, "0:24") is None
    assert len(killed) == 1
