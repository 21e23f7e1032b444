"""The visitor's cookie as a request brings it, in process."""

import time

import pytest
from starlette.requests import Request

from app.gateway.browsers import _visitor
from tests.gateway.test_admission import SITES

VISITOR = "v" * 24


def visitor(*cookies: str) -> str | None:
    headers = [(b"cookie", cookie.encode()) for cookie in cookies]
    return _visitor(SITES["cautious"], Request({"type": "http", "headers": headers}))


@pytest.mark.parametrize(
    ("cookies", "found"),
    [
        ([f"oc_id={VISITOR}"], VISITOR),
        ([f"a=b; oc_id={VISITOR}; c"], VISITOR),
        (["a=b", f"oc_id={VISITOR}"], VISITOR),
        ([f"no_oc_id={VISITOR}; xoc_id={VISITOR}"], None),
        (["oc_id=short"], None),
        (["oc_id="], None),
        ([], None),
    ],
)
def test_the_cookie_is_found_by_its_name(cookies: list[str], found: str | None) -> None:
    assert visitor(*cookies) == found


def test_a_cookie_takes_no_longer_than_its_length() -> None:
    begun_s = time.process_time()
    assert visitor('oc_id="' + "\\a" * 16_000 + '"') is None
    assert time.process_time() - begun_s < 0.3, "a second and more where it is unquoted"
