"""Touches as they lie in the raw topics: what the output rows do not hold of them, click ids above all."""

from collections.abc import Iterator
from typing import Final

import msgspec

from app.contract.events import TOUCH_TYPES, parse_time_ms
from app.engine.clients import KafkaClients
from app.letters.log import committed_spans, read_committed
from app.settings import Settings

_CLICK_ID: Final = b'"click_id"'
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


def raw_touches(settings: Settings, since_ms: int, only_clicks_with_ids: bool = False) -> Iterator[RawTouch]:
    """Every touch of the raw topics that was written since `since_ms` (epoch ms, the records' timestamps), refused ones and
    repeats too, each partition in its order. Raises `LettersError`, KafkaException.
    """
    clients = KafkaClients(settings)
    for topic in settings.events_topics:
        for message in read_committed(clients, topic, committed_spans(settings, topic, since_ms)):
            value = message.value() or b""
            if only_clicks_with_ids and _CLICK_ID not in value:
                continue
            if not any(kind in value for kind in _TOUCHES):
                continue
            try:
                touch = _decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if touch.event_type in TOUCH_TYPES:
                yield touch
