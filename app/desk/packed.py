"""What hardly changes any more is held packed: a third of the memory, and nothing is lost by it."""

from collections.abc import Collection, Hashable
from typing import Any, Final, Generic, TypeVar

import msgspec

from app.desk.records import Item, Latest

Owner = TypeVar("Owner", bound=Hashable)
_NAME_BYTES: Final = 16
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[tuple[int, int, msgspec.Raw]]).decode  # kind, offset, item


class Packed(Generic[Owner, Item]):
    """Owners whose items are packed bytes instead of objects in `items` (by owner and name) and `latest`. `kinds`: the named
    tuples that an item may be.
    """

    def __init__(self, latest: Latest[Item], items: dict[Owner, dict[bytes, Item]], kinds: tuple[type, ...]) -> None:
        self._latest, self._items = latest, items
        self._numbers = {kind: number for number, kind in enumerate(kinds)}
        self._decoders: list[Any] = [msgspec.msgpack.Decoder(kind) for kind in kinds]
        self._packed: dict[Owner, bytes] = {}

    def __len__(self) -> int:
        """How many owners are packed."""
        return len(self._packed)

    def pack(self, owner: Owner) -> None:
        """Packs what is held of an owner."""
        items = self._items.pop(owner)
        held = [(self._numbers[type(item)], self._latest.take_out(name), item) for name, item in items.items()]
        self._packed[owner] = b"%s%s%s" % (len(items).to_bytes(4), b"".join(items), _encode(held))

    def unpack(self, owner: Owner) -> bool:
        """Makes objects of what is packed of an owner; whether anything was."""
        packed = self._packed.pop(owner, None)
        if packed is None:
            return False
        names, rest = _names_of(packed)
        items = self._items[owner] = {}
        for name, (number, offset, raw) in zip(names, _decode(rest), strict=True):
            items[name] = self._decoders[number].decode(raw)
            self._latest.put_back(name, offset, items[name])
        return True

    def owners_of(self, names: Collection[bytes]) -> list[Owner]:
        """Whose items have one of these names; goes through all of them."""
        return [owner for owner, packed in self._packed.items() if any(name in names for name in _names_of(packed)[0])]


def _names_of(packed: bytes) -> tuple[list[bytes], memoryview]:
    """The names at the begin of what is packed, and the rest."""
    end = 4 + int.from_bytes(packed[:4]) * _NAME_BYTES
    return [packed[at : at + _NAME_BYTES] for at in range(4, end, _NAME_BYTES)], memoryview(packed)[end:]
