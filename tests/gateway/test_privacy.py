"""What looks like an e-mail address is found in time that grows with the text's length only."""

import re
import time

from hypothesis import example, given
from hypothesis import strategies as st

from app.contract.events import Event
from app.gateway import privacy

# What an address looks like, said plainly; a search with it takes time by the square of the text's length.
EMAIL = re.compile(r"[A-Za-z0-9._%+-]+(?:@|%40)(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}", re.IGNORECASE)
parts = st.sampled_from(
    ["@", "%40", "%", "4", "0", ".", "-", "_", "+", " ", "/", "a", "Z", "bc", "example", ".com", "é"]
)
written = st.lists(parts | st.characters(), max_size=24).map("".join)


def is_refused(text: str) -> bool:
    event = Event(event_id="1", event_type="visit", event_time=1, advertiser_id="shop", user_id="u", page=text)
    return privacy.find_email(event) is not None


@given(text=written)
@example("a%40b%40c.de")
@example("a@b.c.de")
@example("a@b.1.d")
def test_what_is_found_is_what_an_address_looks_like(text: str) -> None:
    assert is_refused(text) == (EMAIL.search(text) is not None)


def test_a_text_of_nothing_but_separators_takes_no_time() -> None:
    texts = ["a%40" * 511, "a" * 2_000 + "%40", "a@" + "b." * 1_000, "a@" * 1_000, "%40" * 680, "a@" + "b" * 2_000]
    begun_s = time.process_time()
    assert not any(is_refused(text) for text in texts * 10)
    assert time.process_time() - begun_s < 0.4, "by the square it is more than a second"
