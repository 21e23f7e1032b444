"""What a counter tells the matcher: whose click is whose, and which events ask for the user of a click. Rows of the topic
`onecount.clicks`, which lie on the partition of their click id.
"""

from typing import Final

import msgspec

from app.contract.events import decode_userless


class ClickRow(msgspec.Struct, array_like=True, tag="click", frozen=True, gc=False):
    """An accepted click: its platform, its user, its time (epoch ms) and event id."""

    platform: str
    user_id: str
    time_ms: int
    event_id: str


class UserlessRow(msgspec.Struct, array_like=True, tag="event", frozen=True, gc=False):
    """An event that names a click id and no user: its platform ("" where it names none) and time (epoch ms), where its record
    lies, and what that holds (of its key the first KiB).
    """

    platform: str
    time_ms: int
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: str

    @property
    def source(self) -> tuple[str, int, int, int]:
        """The record's coordinates and timestamp."""
        return self.topic, self.partition, self.offset, self.timestamp_ms


Row = ClickRow | UserlessRow

encode: Final = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder(Row).decode


def click_key(advertiser_id: str, click_id: str) -> bytes:
    """The Kafka key of a row; its hash by the policy's partitioner gives the partition."""
    return encode([advertiser_id, click_id])


def with_user(value: str, user_id: str) -> bytes:
    """The event of a `UserlessRow` with its user. Only the contract's fields are kept, so that it cannot become too large."""
    fields = msgspec.structs.asdict(decode_userless(value.encode())) | {"user_id": user_id}
    return encode({name: field for name, field in fields.items() if field is not None})
