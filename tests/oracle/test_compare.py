"""What was published, held beside the answer: every way to be wrong is told, and nothing else is."""

import io

import msgspec
import pytest
from rich.console import Console

from app.contract import journeys, rows
from app.contract.events import Rejection
from app.verify.differences import (
    Upsert,
    behind_attributed,
    behind_journey,
    compare_letters,
    compare_partitions,
    compare_rows,
    fold_log,
)
from app.verify.report import Report, print_report
from app.verify.sequence import committed_batches
from tests.oracle.cases import (
    HOUR,
    MINUTE,
    TOPIC,
    answer_to,
    click,
    conversion,
    following,
    policy,
    retract,
    view,
    visit,
)

ANSWER = answer_to(click("k", 0), conversion("x", MINUTE, order_id="o", value=5), retract("r", 0, order_id="o"))
(KEY,) = ANSWER.attributed
ROW = msgspec.structs.replace(ANSWER.attributed[KEY], revision=1)
COUNT_KEY, COUNT_ROW = next(iter(ANSWER.counts.items()))
JOURNEY_EVENTS = [
    click("old", 0, ad_id="1"),
    visit("s", 1),
    conversion("before", 2),
    view("v", 3, platform="tiktok"),
    conversion("x", HOUR, order_id="o", value=5),
    conversion("y", HOUR + 1, order_id="o", value=5, platform="google_ads"),
    retract("r", HOUR, order_id="o", user_id="other"),
    retract("late", HOUR - 1, conversion_event_id="y"),
    click("after", HOUR + 2),
]
FOLLOWED = answer_to(*JOURNEY_EVENTS, rules=following())
JOURNEY_KEY = journeys.journey_key("a", "u", "purchase", "x")
JOURNEY = FOLLOWED.journeys[JOURNEY_KEY]
MODEL_KEY = journeys.model_key("a", "u", "purchase", "x", "linear")
MODEL = FOLLOWED.models[MODEL_KEY]


def log(*values, key=KEY, partition=0):
    return [
        Upsert(partition, offset, key, None if value is None else rows.encode(value))
        for offset, value in enumerate(values)
    ]


def fold(*upserts):
    return fold_log("t", upserts, rows.decode_attributed)


def revised(number, **changes):
    return msgspec.structs.replace(ROW, revision=number, **changes)


def words(differences):
    return [line for difference in differences for line in difference.details]


def test_the_latest_row_of_a_key_stands_and_a_null_deletes_it():
    assert fold(*log(revised(1), revised(2, status="retracted"))).rows[KEY].status == "retracted"
    deleted = fold(*log(revised(1), None))
    assert (deleted.rows, deleted.partitions, deleted.faults) == ({}, {}, [])


def test_a_correction_with_the_same_revision_is_no_fault_if_the_row_differs():
    assert fold(*log(revised(1), revised(1, status="retracted"))).faults == []


@pytest.mark.parametrize(
    ("upserts", "fault"),
    [
        (log(revised(2), revised(1)), "t/0/1: revision 1 comes after 2"),
        (log(revised(2), None, revised(1)), "t/0/2: revision 1 comes after 2"),
        (log(revised(1), revised(1)), "t/0/1: repeats the same row with the same revision 1"),
        ([*log(revised(1)), *log(revised(2), partition=3)], "t/3/0: the key was on partition 0 before"),
        (log(revised(1), key=None), "t/0/0: the record has no key"),
    ],
)
def test_a_log_that_goes_back_repeats_itself_or_moves_a_key_is_at_fault(upserts, fault):
    assert words(fold(*upserts).faults) == [fault]


def test_a_row_that_cannot_be_read_is_a_fault():
    assert "cannot be read" in words(fold(Upsert(0, 0, KEY, b"{}")).faults)[0]


def nothing_behind(*_):
    return ()


def test_rows_that_differ_only_in_revision_and_finality_are_equal():
    final = msgspec.structs.replace(COUNT_ROW, revision=9, final=True)
    assert not list(compare_rows("t", {COUNT_KEY: COUNT_ROW}, {COUNT_KEY: final}, nothing_behind))


def other_value(value):
    return (
        value + 1
        if isinstance(value, int | float)
        else {"campaign_id": "other"}
        if isinstance(value, dict)
        else ["other"]
        if isinstance(value, list)
        else "other"
    )


@pytest.mark.parametrize("row", [ROW, COUNT_ROW, JOURNEY, MODEL], ids=["attributed", "counts", "journeys", "models"])
def test_a_difference_in_any_other_field_is_told(row):
    fields = set(row.__struct_fields__) - {"revision", "final"}
    for name in fields:
        changed = msgspec.structs.replace(row, **{name: other_value(getattr(row, name))})
        (difference,) = compare_rows("t", {KEY: row}, {KEY: changed}, nothing_behind)
        assert difference.details[0].startswith((f"{name}: must be", f"{name}[0]: must be"))
    assert len(fields) == len(row.__struct_fields__) - (2 if row is COUNT_ROW else 1)


def told(must, **changes):
    (difference,) = compare_rows("t", {KEY: must}, {KEY: msgspec.structs.replace(must, **changes)}, nothing_behind)
    return difference.details


def test_a_difference_within_a_touch_is_told_by_its_place():
    old, seen = JOURNEY.touches
    other = msgspec.structs.replace(old, ad_id="2", time=9)
    assert told(JOURNEY, touches=[other, seen]) == (
        f"touches[0].time: must be {old.time}, is 9",
        "touches[0].ad_id: must be '1', is '2'",
    )
    assert told(JOURNEY, credited=None)[0].startswith('credited: must be {"platform":"meta","touch_type":"click"')
    assert told(MODEL, credits=[msgspec.structs.replace(MODEL.credits[0], share=0.500_001), MODEL.credits[1]]) == (
        "credits[0].share: must be 0.5, is 0.500001",
    )


def test_of_a_list_that_is_out_of_place_the_first_is_told_and_how_many_more():
    old, seen = JOURNEY.touches
    first, more = told(JOURNEY, touches=[seen, old, seen])[-2:]
    assert first == "touches[0].ad_id: must be '1', is None"
    assert more == "touches: 2 more of them differ; there must be 2, there are 3"
    (lacks,) = told(JOURNEY, touches=[old])
    assert lacks.startswith('touches[1]: must be {"platform":"tiktok"')
    assert lacks.endswith(", is None")


def test_what_is_long_is_cut():
    page = "/" + "long" * 500
    (line,) = told(msgspec.structs.replace(JOURNEY, pages=[page]), pages=["/"])
    assert line.endswith("..., is '/'")
    assert len(line) < 1100


def test_behind_a_journey_stand_its_reports_adjustments_touches_and_then_all_before_it_the_latest_first():
    found = behind_journey(FOLLOWED, JOURNEY_KEY, JOURNEY, None)
    assert [offset for _, _, offset in found] == [4, 5, 7, 0, 3, 2, 1]
    assert behind_journey(FOLLOWED, MODEL_KEY, None, MODEL) == found
    nobody = journeys.journey_key("a", "nobody", "purchase", "x")
    assert behind_journey(FOLLOWED, nobody, JOURNEY, None) == ()


def test_behind_a_row_and_a_journey_stand_the_further_reports_of_the_conversion():
    rules = policy(merge_reports="5m", journeys={})
    answer = answer_to(conversion("x", 0), conversion("x", 1, value=2), conversion("x", HOUR, value=3), rules=rules)
    (row,), (journey,) = answer.attributed.items(), answer.journeys.items()
    assert [offset for _, _, offset in behind_attributed(answer, *row, None)] == [0, 1]
    assert [offset for _, _, offset in behind_journey(answer, *journey, None)] == [0, 1]


def test_a_missing_row_and_one_too_many_are_told_with_what_they_say():
    (missing,) = compare_rows("t", {KEY: ROW}, {}, nothing_behind)
    (extra,) = compare_rows("t", {}, {KEY: ROW}, nothing_behind)
    assert missing.details[0].startswith('is missing: {"advertiser_id":"a"')
    assert extra.details[0].startswith('is published and must not be: {"advertiser_id":"a"')


def test_a_count_row_without_counts_is_as_good_as_none_and_an_attributed_row_is_not():
    nothing = msgspec.structs.replace(COUNT_ROW, **dict.fromkeys(rows.MEASURES, 0))
    assert not list(compare_rows("t", {}, {COUNT_KEY: nothing}, nothing_behind))
    assert len(list(compare_rows("t", {}, {KEY: msgspec.structs.replace(ROW, value=0)}, nothing_behind))) == 1


def test_behind_a_row_stand_its_conversion_its_order_its_touches_and_its_adjustments():
    result = answer_to(
        click("k", 0),
        conversion("x", 1, order_id="o"),
        conversion("y", 2, order_id="o"),
        retract("r", 3, conversion_event_id="y"),
        view("v", 4),
    )
    key = rows.attributed_key("a", "u", "meta", "purchase", "y")
    found = behind_attributed(result, key, result.attributed[key], None)
    assert sorted(offset for _, _, offset in found) == [0, 1, 2, 3]
    assert behind_attributed(result, rows.attributed_key("a", "nobody", "meta", "purchase", "y"), None, None) == ()


def test_a_row_on_another_partition_than_its_owners_is_told():
    published = fold(*log(ROW, partition=1))
    assert len(list(compare_partitions("t", published, lambda user_id: 0))) == 1
    assert not list(compare_partitions("t", published, lambda user_id: 1))


def letter(reason, offset):
    return rows.dead_letter(Rejection(reason, "", ""), TOPIC, 0, offset, 0, None, b"")


REFUSED = answer_to(b"{", click("k", 0))


@pytest.mark.parametrize(
    ("letters", "told"),
    [
        ([letter("invalid_json", 0)], []),
        ([], ["must have one letter, invalid_json; has none"]),
        ([letter("empty", 0)], ["must have one letter, invalid_json; has ['empty']"]),
        (
            [letter("invalid_json", 0)] * 2,
            ["must have one letter, invalid_json; has ['invalid_json', 'invalid_json']"],
        ),
        ([letter("invalid_json", 0), letter("empty", 1)], ["must have no letter; has ['empty']"]),
    ],
)
def test_every_refused_record_has_one_letter_with_its_reason_and_no_other_record_has_any(letters, told):
    assert words(compare_letters("dlq", REFUSED, letters, policy(), True)) == told


def test_a_missing_letter_is_not_told_where_retention_may_have_removed_it():
    assert not list(compare_letters("dlq", REFUSED, [], policy(), False))


LATE_REPORT = [
    conversion("x", MINUTE, order_id="o"),
    retract("r", 1, order_id="o"),
    conversion("w", 0, order_id="o"),
]


def test_a_refused_adjustment_must_have_its_letter():
    assert not list(compare_letters("dlq", ANSWER, [letter("adjustment_precedes_conversion", 2)], policy(), True))
    assert len(list(compare_letters("dlq", ANSWER, [], policy(), True))) == 1
    assert len(list(compare_letters("dlq", ANSWER, [letter("adjustment_twice", 2)], policy(), True))) == 1


def test_an_adjustment_that_applies_in_the_end_may_have_the_letter_of_an_earlier_moment_but_need_not():
    result = answer_to(*LATE_REPORT)
    assert result.refused_adjustments == {}
    assert not list(compare_letters("dlq", result, [letter("adjustment_precedes_conversion", 1)], policy(), True))
    assert not list(compare_letters("dlq", result, [], policy(), True))
    assert len(list(compare_letters("dlq", result, [letter("adjustment_too_old", 1)], policy(), True))) == 1


def test_batches_are_read_from_the_marks_of_the_deltas():
    first = b'[2, [[1, 5, {"a": [0, 3]}], [0, 5, {}]], [["key", 1, 0, 0, 0, 0, 0]]]'
    second = b"[2, [], []]"
    third = b'[2, [[1, 9, {"a": [3, 4], "b": [0, 1]}]], []]'
    assert committed_batches([first, second, third]) == {1: [{"a": (0, 3)}, {"a": (3, 4), "b": (0, 1)}]}


def report(**changes):
    figures = {
        "produced": 4,
        "accepted": 2,
        "duplicates": 1,
        "rejected": {"empty": 1},
        "refused_adjustments": {},
        "noise": 0,
        "matched": 0,
        "waiting": 0,
        "forgets": 0,
        "forgotten": 0,
        "attributed_rows": {"counted": 1},
        "count_rows": 2,
        "journey_rows": {},
        "model_rows": 0,
        "seconds": 0.5,
        "differences": {},
        "shown": (),
        "events": {},
        "notes": (),
    }
    return Report(**(figures | changes))


def printed(found):
    console = Console(file=io.StringIO(), width=120)
    print_report(found, console)
    return console.file.getvalue()


def test_a_report_without_differences_says_verified_and_gives_the_figures():
    text = printed(report())
    assert report().ok
    assert "verified" in text
    assert "empty" in text


def test_a_report_gives_the_figures_of_journeys_where_there_are_some():
    assert "journey" not in printed(report())
    text = printed(report(journey_rows={"counted": 3, "retracted": 1}, model_rows=15))
    figures = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    at = figures.index("journey rows 4")
    assert figures[at : at + 4] == ["journey rows 4", "counted 3", "retracted 1", "model rows 15"]


def test_a_report_with_differences_shows_them_with_the_events_behind_them():
    (difference,) = compare_rows("t", {KEY: ROW}, {}, lambda *_: ((TOPIC, 0, 1), (TOPIC, 0, 2)))
    found = report(
        differences={"t": 7}, shown=(difference,), events={(TOPIC, 0, 1): b'{"event_id": "[x]"}', (TOPIC, 0, 2): None}
    )
    text = printed(found)
    assert not found.ok
    assert "verified" not in text
    assert "7 differences" in text
    assert 'ads.events/0/1 {"event_id": "[x]"}' in text
    assert "ads.events/0/2 null" in text
