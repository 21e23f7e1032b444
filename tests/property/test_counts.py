"""A count row's record is the row, whatever its names are; what is stored of it is read back from what was published."""

from hypothesis import given
from hypothesis import strategies as st

from app.contract import rows
from app.contract.events import MICROS
from app.windows import counts

DIMENSIONS = ("campaign_id", "landing_page")
names = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(['"', "\\", ",", "[", "é", "\U0001f600"])
keys = st.tuples(names | st.just(rows.ALL), names, st.tuples(names | st.none(), names | st.none()), names, names)
measures = st.tuples(*[st.integers(0, 2**53)] * 4, *[st.integers(-(10**15), 10**15)] * 2, st.integers(1, 2**53))


@given(measures, measures)
def test_rows_add_up_measure_by_measure_and_each_change_is_a_revision(
    one: counts.Counted, other: counts.Counted
) -> None:
    total = tuple(map(sum, zip(one[:-1], other[:-1], strict=True)))
    assert counts.added(one[:-1], other[:-1]) == total
    assert counts.revised(one, other[:-1]) == (*total, one[-1] + 1)


@given(st.integers(0, 2**41), st.dictionaries(keys, measures, max_size=5), st.booleans())
def test_a_record_is_its_row(
    window: int,
    found: dict[tuple[str, str, tuple[str | None, str | None], str, str], counts.Counted],
    final: bool,
) -> None:
    held: counts.Counts = {}
    expected = []
    for (platform, advertiser, split, action, currency), measured in found.items():
        key = rows.count_key(window, platform, advertiser, list(split), action, currency)
        held[key.decode()] = measured
        views, engaged_views, clicks, conversions, value, cost, revision = measured
        row = rows.CountRow(
            window_start=window,
            window_end=window + 60_000,
            platform=platform,
            advertiser_id=advertiser,
            dimensions=dict(zip(DIMENSIONS, split, strict=True)),
            conversion_name=action,
            currency=currency,
            views=views,
            engaged_views=engaged_views,
            clicks=clicks,
            conversions=conversions,
            value=value / MICROS,
            cost=cost / MICROS,
            revision=revision,
            final=final,
            scope="all" if platform == "all" else "platform",
        )
        expected.append({"key": key, "value": rows.encode(row)})
    assert counts.records(window, held, DIMENSIONS, 60_000, final) == expected
    read_back = [counts.packed(rows.decode_count(record["value"])) for record in expected]
    assert read_back == counts.stored(held)[1::2]
    assert [counts.unpack(packed) for packed in read_back] == list(held.values())
