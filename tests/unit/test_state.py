"""Which versions of state and of messages a release reads, which it rebuilds, and which it refuses."""

from itertools import permutations
from types import SimpleNamespace

import msgspec
import pytest

from app.attribution.state import (
    NEVER_MS,
    STATE_VERSION,
    Adjustment,
    Conversion,
    Touch,
    UserState,
    pack,
    unpack,
    unpack_tied,
)
from app.engine.aggregator import read_deltas
from app.engine.state import StateOutdated, StateRefused, check_version
from app.windows import deltas


def view(version: object) -> bytes:
    return msgspec.msgpack.encode([version, ["campaign_id"], 17])


def test_an_older_version_is_to_be_rebuilt_and_the_present_one_is_read() -> None:
    check_version(view(3), 3, "c0")
    with pytest.raises(StateOutdated) as older:
        check_version(view(2), 3, "c0")
    assert older.value.version == 2


def test_a_newer_version_is_refused_whatever_follows_in_it() -> None:
    with pytest.raises(StateRefused, match=r"newer release .version 4, this one reads 3.*onecount rebuild"):
        check_version(msgspec.msgpack.encode([4, {"a": "form of its own"}]), 3, "c0")


@pytest.mark.parametrize(
    "bytes_", [b"", b"\xc1", b"view", b"\x90", view("3"), view(True), b"\x81\x00\x03", view(3)[:-1]]
)
def test_bytes_that_are_no_view_are_refused(bytes_: bytes) -> None:
    with pytest.raises(StateRefused, match=r"unreadable.*onecount rebuild"):
        check_version(bytes_, 3, "c0")


def record(value: bytes) -> SimpleNamespace:
    return SimpleNamespace(topic=lambda: "onecount.deltas", partition=lambda: 1, offset=lambda: 7, value=lambda: value)


def test_deltas_name_their_version_and_those_without_one_are_of_the_first() -> None:
    assert read_deltas(record(deltas.encode(deltas.DeltaMessage(4, [], [])))).version == deltas.VERSION
    assert read_deltas(record(b"[4,[],[]]")).version == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"[4,[],[],99]", "newer release .version 99.*deploy the newer release's aggregators"),
        (b"[4,[],[],99,1]", "newer release"),
        (b'["form of its own"]', "unreadable"),
        (b"", "unreadable"),
    ],
)
def test_deltas_of_a_newer_release_are_refused(value: bytes, words: str) -> None:
    with pytest.raises(StateRefused, match=f"onecount.deltas/1 at offset 7.*{words}"):
        read_deltas(record(value))


def test_a_users_state_that_an_older_release_wrote_is_of_somebody_who_was_not_forgotten() -> None:
    state = unpack(msgspec.msgpack.encode([STATE_VERSION, [], [], (17, "c1", "purchase")]))
    assert (state.last_order, state.forgotten_ms) == ((17, "c1", "purchase"), NEVER_MS)
    assert not state.is_empty()


def test_somebody_of_whom_only_the_forget_is_known_is_kept() -> None:
    state = UserState([], [])
    assert state.is_empty()
    state.forgotten_ms = 0
    assert not unpack(pack(state)).is_empty()


def test_an_adjustment_that_an_older_release_wrote_names_no_currency() -> None:
    older = ["a1", "", "restate", 17, 5, "o", None, ["ads.events", 0, 3, 17], None, b"{}", "signup", True]
    (found,) = unpack(msgspec.msgpack.encode([STATE_VERSION, [], [older]])).adjustments
    assert (found.identity(), found.action(), found.is_refused, found.currency) == (
        ("", "signup", "a1"),
        "signup",
        True,
        None,
    )


def test_a_retraction_that_was_taken_over_from_a_row_is_of_that_rows_action() -> None:
    nowhere = ("", 0, 0, 0)
    both = [Adjustment("", "", "retract", 17, None, None, "c1", nowhere, None, b"", f"{name}\x1fc1") for name in "ab"]
    assert [each.action() for each in both] == ["a", "b"]
    assert len({each.identity() for each in both}) == 2
    assert Adjustment("", "", "retract", 17, None, None, "c1", nowhere, None, b"").action() == ""


def conversion(event_id: str, order_id: str | None, touch_id: str | None) -> Conversion:
    credits = {} if touch_id is None else {"meta": Touch("click", 1, touch_id, ())}
    return Conversion(event_id, "signup", "meta", 2, None, None, order_id, credits, {})


def test_what_ids_are_tied_to_is_found_in_whatever_order_it_is_held() -> None:
    # the order o ties the first to the second, whose touch ties it to the third, whose order ties it to the fourth
    chain = [
        conversion("a", "o", None),
        conversion("b", "o", "t"),
        conversion("c", "p", "t"),
        conversion("d", "p", None),
    ]
    alone = conversion("e", "q", "u")
    for held in permutations([*chain, alone]):
        packed = pack(UserState(list(held), []))
        for asked in ("a", "d", "t", "p"):
            state = unpack_tied(packed, [asked])
            assert [each.event_id for each in state.conversions] == [
                each.event_id for each in held if each is not alone
            ]
            assert len(state.others) == 1
            assert {each.event_id for each in unpack(pack(state)).conversions} == set("abcde")
        assert [each.event_id for each in unpack_tied(packed, ["u"]).conversions] == ["e"]
        assert not unpack_tied(packed, ["f"]).conversions
