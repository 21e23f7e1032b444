"""The one place where a record of a raw topic becomes the event's JSON, whatever format it is written in.

Counter, `verify`, dead letters and replays all go through it, so they judge the same bytes. A record says itself what it is: a
CloudEvent by its headers, Avro and Protobuf by Confluent's wire format (a zero byte and the schema's id). Everything else is JSON.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from app.contract import reasons
from app.contract.events import MAX_EVENT_BYTES, NEVER_MS, Rejection
from app.formats import cloudevents
from app.formats.cloudevents import Headers, Opened
from app.formats.fields import written
from app.formats.schemas import RegistryRefused, Schema, SchemaUnfit

if TYPE_CHECKING:
    from app.formats.registry import Registry

CLOUDEVENTS: Final = "cloudevents"
AVRO: Final = "avro"
PROTOBUF: Final = "protobuf"
FORMATS: Final = (CLOUDEVENTS, AVRO, PROTOBUF)
OF_A_REGISTRY: Final = (AVRO, PROTOBUF)
MAGIC: Final = b"\x00"
_FRAME_BYTES: Final = 5  # the magic byte and the schema's id

Body: TypeAlias = bytes | Rejection | None


class Formats:
    """Reads records. `since_ms`: which formats are taken, each with the record time (epoch ms) from which on. A record of before
    is JSON or nothing: it was refused then, and a replay must refuse it too.
    """

    def __init__(self, since_ms: Mapping[str, int], registry: "Registry | None") -> None:
        self._since_ms = since_ms
        self._registry = registry

    def open(self, value: bytes | None, headers: Headers, stamp_ms: int) -> Body:
        """As `open_all`, of one record."""
        return self.open_all([value], [headers], [stamp_ms])[0]

    def open_all(
        self, values: Sequence[bytes | None], headers: Iterable[Headers], stamps_ms: Iterable[int]
    ) -> list[Body]:
        """The JSON of each record, or why there is none. Columns of values, headers and Kafka timestamps (epoch ms).

        Raises `RegistryUnavailable` where the registry must be asked and does not answer.
        """
        bodies: list[Body | Opened] = []
        framed: list[_Framed] = []
        for value, said, stamp_ms in zip(values, headers, stamps_ms, strict=True):
            if not value or len(value) > MAX_EVENT_BYTES:
                bodies.append(value)
                continue
            is_framed = value[:1] == MAGIC and any(self._takes(each, stamp_ms) for each in OF_A_REGISTRY)
            body: bytes | Opened | Rejection = value
            if self._takes(CLOUDEVENTS, stamp_ms) and cloudevents.is_cloud_event(said):
                body = cloudevents.opened_record(said, value, is_framed)
                is_framed = is_framed and isinstance(body, Opened) and body.data is value
            if is_framed:
                schema_id = int.from_bytes(value[1:_FRAME_BYTES], "big", signed=True)
                framed.append(_Framed(len(bodies), schema_id if len(value) >= _FRAME_BYTES else 0, stamp_ms))
            bodies.append(body)
        self._read(bodies, framed)
        return [cloudevents.filled(body) if isinstance(body, Opened) else body for body in bodies]

    def probe(self) -> None:
        """Asks the registry, if a format needs one. Raises `RegistryUnavailable`."""
        if self._registry is not None:
            self._registry.probe()

    def _takes(self, form: str, stamp_ms: int) -> bool:
        return self._since_ms.get(form, NEVER_MS) <= stamp_ms

    def _read(self, bodies: list[Body | Opened], framed: list["_Framed"]) -> None:
        """Puts the JSON of each framed value in its place."""
        if not framed:
            return
        assert self._registry is not None
        schemas = self._registry.find({each.schema_id for each in framed if each.schema_id > 0})
        for each in framed:
            body = bodies[each.place]
            assert body is not None
            data = body.data if isinstance(body, Opened) else body
            assert isinstance(data, bytes)
            found = self._event_of(data, each, schemas.get(each.schema_id))
            bodies[each.place] = (
                Opened(found, body.fills) if isinstance(body, Opened) and isinstance(found, bytes) else found
            )

    def _event_of(self, value: bytes, framed: "_Framed", schema: Schema | None) -> bytes | Rejection:
        if len(value) < _FRAME_BYTES:
            return Rejection(
                reasons.UNDECODABLE, "", "it begins as a record of the schema registry, and has no schema id"
            )
        name = f"schema {framed.schema_id}"
        if schema is None:
            return Rejection(reasons.UNKNOWN_SCHEMA, "", f"{name} is not in the schema registry")
        if schema.read is None:
            return Rejection(reasons.UNDECODABLE, "", f"{name}: {schema.why}"[:300])
        if not self._takes(schema.kind.lower(), framed.stamp_ms):
            return Rejection(reasons.UNDECODABLE, "", f"{name} is {schema.kind}, which the policy's formats lack")
        try:
            return written(schema.read(value[_FRAME_BYTES:]))
        except SchemaUnfit as error:
            return Rejection(reasons.UNDECODABLE, "", f"{name}: {error}"[:300])


class _Framed(NamedTuple):
    """A record in the registry's wire format: its place among the records, its schema, its Kafka timestamp (epoch ms)."""

    place: int
    schema_id: int
    stamp_ms: int


def open_formats(since_ms: Mapping[str, int], registry: Mapping[str, str], timeout_s: float) -> Formats | None:
    """What reads records of these formats; None where there is none beside JSON. `registry`: properties of its client.

    Raises `RegistryRefused` where a format needs a registry and there is none, or the packages that read it.
    """
    if not since_ms:
        return None
    if since_ms.keys().isdisjoint(OF_A_REGISTRY):
        return Formats(since_ms, None)
    if "url" not in registry:
        raise RegistryRefused(
            "the policy's formats need a schema registry: set ONECOUNT_SCHEMA_REGISTRY to "
            '{"url": "https://schemas.example.com"}'
        )
    return Formats(since_ms, _registry(tuple(sorted(registry.items())), timeout_s))


@lru_cache(maxsize=1)
def _registry(properties: tuple[tuple[str, str], ...], timeout_s: float) -> "Registry":
    """One a process: it keeps what it learnt over sessions."""
    try:
        from app.formats.registry import Registry
    except ImportError as error:
        raise RegistryRefused(
            f"the policy's formats need packages that are not installed ({error}): pip install 'onecount[registry]'"
        ) from error
    return Registry(dict(properties), timeout_s)
