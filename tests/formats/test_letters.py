"""Dead letters of other formats: they keep what belongs to the event, and are judged again as they would be read."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml

from app.contract import reasons
from app.contract.events import Rejection
from app.contract.rows import KEPT_HEADER_BYTES, DeadLetter, decode_dead_letter, encode
from app.formats.cloudevents import Headers
from app.formats.opening import Formats
from app.letters.judging import judge_again
from app.letters.original import Original, kept_part
from app.letters.plan import Deed, Left, retrying
from app.policy.load import PolicyError, load_policy, parse_policy
from app.policy.model import Policy
from app.policy.record import fit
from app.publish.records import SOURCE_HEADER, dead_letter, rekeyed, source_of
from app.settings import Settings
from tests.formats.written import Writers, binary
from tests.integration.deployment import POLICY
from tests.memory.log import MemoryMessage
from tests.unit.test_contract import DAY_MS, NOW_MS, conversion, view

POLICY_OF_ALL = load_policy(POLICY)[0]
POLICY_OF_ALL = msgspec.structs.replace(
    POLICY_OF_ALL,
    versions=(msgspec.structs.replace(POLICY_OF_ALL.versions[0], formats=("avro", "cloudevents", "protobuf")),),
)


def message(value: bytes, headers: Headers, key: bytes = b"u1") -> MemoryMessage:
    return MemoryMessage(("ads.events", 0), 7, key, value, NOW_MS, list(headers or ()))  # type: ignore[arg-type]


def letter_of(value: bytes, headers: Headers, reason: str = reasons.KEY_MISMATCH) -> DeadLetter:
    return decode_dead_letter(dead_letter(message(value, headers), Rejection(reason, "", "because"))["value"])


def test_a_letter_keeps_the_headers_that_are_part_of_the_event_and_no_others() -> None:
    value, headers = binary(view())
    letter = letter_of(value, [*headers, ("traceparent", b"00-1"), ("x", None)])
    assert kept_part(letter) == Original(b"u1", value, tuple(headers))
    assert not letter.truncated
    plain = letter_of(value, [("traceparent", b"00-1")])
    assert b"headers_base64" not in encode(plain), "as letters were before"
    assert not plain.truncated


@pytest.mark.parametrize("more", [[("ce_x", b"x" * KEPT_HEADER_BYTES)], [("ce_id", b"again")]], ids=["long", "twice"])
def test_headers_that_a_letter_cannot_keep_are_read_from_where_they_were_found(more: Any) -> None:
    value, headers = binary(view())
    letter = letter_of(value, headers + more)
    assert (letter.headers_base64, letter.truncated) == ({}, True)


def test_a_copy_for_its_owner_keeps_the_headers_and_only_its_own_source() -> None:
    value, headers = binary(view())
    copy = rekeyed(message(value, [(SOURCE_HEADER, b"made/up/1"), *headers]), b"u1")
    assert copy["headers"] == [(SOURCE_HEADER, b"ads.events/0/7"), *headers]
    assert source_of(message(value, copy["headers"])) == ("ads.events", 0, 7, NOW_MS)


def test_an_event_is_judged_again_as_it_would_be_read(shared_formats: Formats, shared_writers: Writers) -> None:
    for value, headers in (binary(conversion()), (shared_writers.avro(conversion()), [])):
        original = Original(b"nobody", value, tuple(headers))
        again = judge_again(letter_of(value, headers), original, POLICY_OF_ALL, NOW_MS, shared_formats)
        assert again.refusal is None
        assert again.record == Original(b"u1", value, tuple(headers)), "the bytes are sent as they were"
    broken = Original(b"u1", shared_writers.avro(view()) + b"x")
    refusal = judge_again(letter_of(broken.value or b"", None), broken, POLICY_OF_ALL, NOW_MS, shared_formats).refusal
    assert refusal is not None
    assert refusal.reason == reasons.UNDECODABLE


@pytest.mark.parametrize("force", [False, True])
def test_what_a_recount_would_take_for_two_is_left(
    shared_formats: Formats, shared_writers: Writers, force: bool
) -> None:
    value = shared_writers.avro(conversion(event_time=NOW_MS))
    letter = letter_of(value, None, reasons.UNKNOWN_SCHEMA)
    raw: Any = SimpleNamespace(original=lambda _: Original(b"u1", value))
    window_ms = POLICY_OF_ALL.bounds.dedup_window_ms

    def found(later_ms: int) -> Deed | Left:
        examine = retrying(Settings(), POLICY_OF_ALL, shared_formats, raw, force, lambda: NOW_MS + later_ms)
        return examine(letter)

    assert found(window_ms) == Deed(letter, Original(b"u1", value))
    late = found(window_ms + 1)
    if force:
        assert isinstance(late, Deed)
        assert "would count record and retry" in late.in_spite_of
    else:
        assert isinstance(late, Left)
    assert window_ms < 7 * DAY_MS


def test_another_format_is_another_version_of_the_policy() -> None:
    plain = load_policy(POLICY)[0]
    document = yaml.safe_load(POLICY.read_text()) | {"formats": ["protobuf", "avro"]}
    wanted = parse_policy(document)[0]
    assert wanted.formats() == {"avro": 0, "protobuf": 0}
    assert plain.formats() == {}
    _, first = fit([], plain, None, NOW_MS)
    assert first is not None
    with pytest.raises(PolicyError, match=r"differs from version 1, .*\(format avro, format protobuf\)"):
        fit([first], wanted, None, NOW_MS)
    policy, second = fit([first], wanted, NOW_MS + DAY_MS, NOW_MS)
    assert second is not None
    assert policy.formats() == {"avro": NOW_MS + DAY_MS, "protobuf": NOW_MS + DAY_MS}
    assert fit([first, second], wanted, None, NOW_MS + 2 * DAY_MS)[1] is None
    # given up later, it stays: a recount must read what was read
    third = fit([first, second], plain, NOW_MS + 9 * DAY_MS, NOW_MS + 8 * DAY_MS)[0]
    assert isinstance(third, Policy)
    assert third.formats() == policy.formats()
