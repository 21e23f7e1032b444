"""Touches as they lie in the raw topics: what the output rows do not hold of them, click ids above all."""

from collections.abc import Iterator
from typing import Final

import msgspec

from app.contract.events import TOUCH_TYPES, Rejection, parse_time_ms
from app.engine.clients import KafkaClients
from app.formats.opening import Body
from app.letters.judging import formats_in_force
from app.letters.log import committed_spans, read_committed
from app.policy.model import Policy
from app.settings import Settings

_TOUCHES: Final = tuple(f'"{kind}"'.encode() for kind in TOUCH_TYPES)


class RawTouch(msgspec.Struct, frozen=True, gc=False):
    """What a raw event says of itself, as far as it is one; nobody has judged it."""

    event_id: str
    event_type: str
    event_time: int | str
    advertiser_id: str
    user_id: str
    platform: str
    click_id: str | None = None

    @property
    def time_ms(self) -> int | None:
        """Epoch ms; None where it is no time."""
        return parse_time_ms(self.event_time)


_decode: Final = msgspec.json.Decoder(RawTouch).decode


def raw_touches(settings: Settings, policy: Policy, since_ms: int) -> Iterator[RawTouch]:
    """Every touch of the raw topics that was written since `since_ms` (epoch ms, the records' timestamps), refused ones and
    repeats too, each partition in its order. Raises `LettersError`, `RegistryRefused`, `RegistryUnavailable`, KafkaException.
    """
    clients = KafkaClients(settings)
    formats = formats_in_force(settings, policy)
    for topic in settings.events_topics:
        for message in read_committed(clients, topic, committed_spans(settings, topic, since_ms)):
            body: Body = message.value()
            if formats is not None:
                body = formats.open(body, message.headers(), message.timestamp()[1])
            if body is None or isinstance(body, Rejection) or not any(kind in body for kind in _TOUCHES):
                continue
            try:
                touch = _decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if touch.event_type in TOUCH_TYPES:
                yield touch
