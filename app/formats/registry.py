"""The schemas of a registry that speaks Confluent's REST API (Confluent, Karapace, Apicurio), by their ids.

Ids never change their schema, so what was found is kept. What was not found is asked for again with the next batch, since it
may be registered by then.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import httpx2
from confluent_kafka.schema_registry import Schema as Registered
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import OAuthTokenError, SchemaRegistryError
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from app.formats import avro, protobuf, protoc
from app.formats.schemas import NoSchema, RegistryRefused, RegistryUnavailable, Schema, SchemaUnfit

MAX_SCHEMAS: Final = 1_000
MAX_REFERENCES: Final = 1_000  # of one schema, those of its references included
AGAIN_S: Final = 1.0  # a registry's replica may lag behind the one that took the schema
STRETCH: Final = 500  # ids that are asked for between two looks at the clock
MOST_S: Final = 20.0  # one batch waits so long; below the group's longest turn
_NOT_FOUND: Final = 40403  # "schema not found": nothing else of a 404 says that
_UNHEARD: Final = (OAuthTokenError, httpx2.HTTPError, OSError)
_NONSENSE: Final = (ValueError, TypeError, KeyError, AttributeError)
_LATER: Final = frozenset((401, 403, 408, 429, 502, 503, 504))  # HTTP statuses that say nothing of what was asked for


class _BadAnswer(RegistryUnavailable):
    """The registry answered, but not with what it was asked for."""


class Registry:
    """One a process. `properties`: of Confluent's client (url, basic.auth.user.info, ssl.ca.location, ...)."""

    def __init__(self, properties: Mapping[str, str], timeout_s: float) -> None:
        """Raises `RegistryRefused` for properties that the client refuses."""
        try:
            # once: whoever asks waits for it, and tries again itself
            self._client = SchemaRegistryClient({**properties, "timeout": timeout_s, "max.retries": 0})
        except (ValueError, TypeError, OSError) as error:
            raise RegistryRefused(f"ONECOUNT_SCHEMA_REGISTRY: {error}") from error
        self._url = properties["url"].rpartition("@")[2]
        self._schemas: dict[int, Schema] = {}
        self._missing: set[int] = set()
        self._until_s = 0.0
        self._gets_on = False  # whether a call has compiled a text: one it does, however slow the registry is

    def find(self, ids: Iterable[int]) -> dict[int, Schema | None]:
        """The schemas of all ids; None for one that the registry does not have. Raises `RegistryUnavailable`.

        Where it takes too long it raises, too; what was found out by then is kept for the next call.
        """
        wanted = set(ids)
        fresh = sorted(wanted - self._schemas.keys() - self._missing)
        for known in list(self._schemas):
            if len(self._schemas) + len(fresh) <= MAX_SCHEMAS:
                break
            if known not in wanted:
                del self._schemas[known]
        begun_s = time.monotonic()
        self._until_s, self._gets_on = begun_s + MOST_S, False
        for first in range(0, len(fresh), STRETCH):
            if first and time.monotonic() - begun_s > MOST_S:
                raise RegistryUnavailable(
                    f"the schema registry {self._url} took more than {MOST_S:g} s for {first} of {len(fresh)} unknown schema ids"
                )
            self._find(fresh[first : first + STRETCH])
        missing, self._missing = self._missing, set()
        return {each: None if each in missing else self._schemas[each] for each in wanted}

    def _find(self, ids: list[int]) -> None:
        doubtful = [each for each in ids if not self._ask(each)]
        if doubtful:
            time.sleep(AGAIN_S)
            self._missing.update(each for each in doubtful if not self._ask(each))

    def probe(self) -> None:
        """Asks for a schema, which it may have or not. Raises `RegistryUnavailable`."""
        self._get(1)

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    def _ask(self, schema_id: int) -> bool:
        """Whether the registry has the schema, which is kept then."""
        found = self._get(schema_id)
        if found is None:
            return False
        self._schemas[schema_id] = self._schema(schema_id, found)
        return True

    def _schema(self, schema_id: int, found: Registered) -> Schema:
        kind = _kind(found)
        try:
            if kind == "AVRO":
                return Schema(kind, avro.reader(_text(found), [each for _, each in self._referenced(found)]))
            if kind == "PROTOBUF":
                return Schema(kind, protobuf.reader(self._serialized(schema_id, found) or self._compiled(found)))
        except SchemaUnfit as error:
            return Schema(kind, None, str(error))
        except NoSchema as error:
            raise RegistryUnavailable(
                f"the schema registry {self._url} tells no type of schema {schema_id}, or Avro, but gives no JSON for it, so no Avro schema ({error})"
            ) from error
        return Schema(kind, None, f"it is of type {kind}")

    def _serialized(self, schema_id: int, found: Registered) -> list[FileDescriptorProto] | None:
        """The files of a Protobuf schema, its own last; None where the registry does not give them serialized."""
        try:
            if protobuf.descriptor(_text(found)) is not None:  # as it was registered
                return self._files(found)
            again = self._get(schema_id, "serialized")
            return None if again is None else self._files(again, "serialized")
        except _BadAnswer:
            return None

    def _files(self, found: Registered, form: str | None = None) -> list[FileDescriptorProto] | None:
        files = []
        for name, text in (*self._referenced(found, form), (protoc.OWN, _text(found))):
            file = protobuf.descriptor(text)
            if file is None:
                return None
            try:
                file.name = name
            except ValueError as error:
                raise SchemaUnfit(f"it refers to {name[:100]!r}, which is no name") from error
            files.append(file)
        return files if files[-1].message_type else None

    def _compiled(self, found: Registered) -> list[FileDescriptorProto]:
        """The files of a Protobuf schema out of their texts, its own last."""
        texts = [each for each in self._referenced(found) if each[0] not in protobuf.WELL_KNOWN]
        for name, text in (*texts, ("the schema", _text(found))):
            if not text or protobuf.descriptor(text) is not None:
                raise RegistryUnavailable(
                    f"the schema registry {self._url} does not give the .proto text of {name[:100]}"
                )
        if self._gets_on and time.monotonic() > self._until_s:
            raise RegistryUnavailable(
                f"the schemas of {self._url} took more than {MOST_S:g} s to compile; some are left"
            )
        self._gets_on = True
        return protoc.compiled(_text(found), texts)

    def _get(self, schema_id: int, form: str | None = None) -> Registered | None:
        """A schema; None where the registry says that it has none of this id."""
        try:
            found = self._said(self._client.get_schema, schema_id, may_lack=True, fmt=form)
        finally:
            self._client.clear_caches()  # it has no end, and knows no formats; ours holds what was made of it
        if found is not None and not _text(found):
            raise _BadAnswer(f"what answers at {self._url} is no schema registry: a schema without its text")
        return found

    def _referenced(self, found: Registered, form: str | None = None) -> list[tuple[str, str]]:
        """Name and text of all that it refers to, each after what it refers to itself."""
        texts: dict[str, str] = {}

        def visit(schema: Registered, within: tuple[str, ...]) -> None:
            for reference in schema.references or ():
                name = reference.name or ""
                if name in texts:
                    continue
                if name in within or len(within) > MAX_REFERENCES:
                    raise SchemaUnfit(f"{name} refers to itself")
                if len(texts) >= MAX_REFERENCES:
                    raise SchemaUnfit(f"it refers to more than {MAX_REFERENCES} schemas")
                # a schema that was deleted softly is still referred to
                version = self._said(self._client.get_version, reference.subject, reference.version, True, form)
                visit(version.schema, (*within, name))
                texts[name] = _text(version.schema)

        try:
            visit(found, ())
        finally:
            self._client.clear_caches()
        return list(texts.items())

    def _said(self, ask: Any, *arguments: Any, may_lack: bool = False, **named: Any) -> Any:
        """The registry's answer; None where it says that it lacks the schema and may. Raises `RegistryUnavailable`, and of that
        `_BadAnswer` where it did answer.
        """
        kind: type[RegistryUnavailable] = RegistryUnavailable
        try:
            return ask(*arguments, **named)
        except SchemaRegistryError as error:
            if may_lack and error.http_status_code == 404 and error.error_code == _NOT_FOUND:
                return None
            if error.http_status_code not in _LATER:
                kind = _BadAnswer
            why = f"HTTP {error.http_status_code}: {str(error.error_message)[:200]}"
        except _UNHEARD as error:
            why = f"{type(error).__name__}: {str(error)[:200]}"
        except _NONSENSE as error:
            kind, why = _BadAnswer, f"{type(error).__name__}: {str(error)[:200]}"
        raise kind(f"the schema registry {self._url} does not tell its schemas: {why}")


def _kind(found: Registered) -> str:
    """Avro where nothing else is said; but Apicurio says nothing of a Protobuf schema either that was registered in Base64, as the
    serializer of Confluent's Python client does. No Avro schema, which is JSON, looks like one.
    """
    kind = found.schema_type or "AVRO"
    file = protobuf.descriptor(_text(found)) if kind == "AVRO" else None
    return kind if file is None or not file.message_type else "PROTOBUF"


def _text(schema: Registered) -> str:
    """A schema's text; empty where the registry gave none."""
    return schema.schema_str if isinstance(schema.schema_str, str) else ""
