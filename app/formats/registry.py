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

from app.formats import avro, protobuf
from app.formats.schemas import RegistryRefused, RegistryUnavailable, Schema, SchemaUnfit

MAX_SCHEMAS: Final = 1_000
MAX_REFERENCES: Final = 1_000  # of one schema, those of its references included
AGAIN_S: Final = 1.0  # a registry's replica may lag behind the one that took the schema
STRETCH: Final = 500  # ids that are asked for between two looks at the clock
MOST_S: Final = 20.0  # one batch waits so long; below the group's longest turn
_NOT_FOUND: Final = 40403  # "schema not found": nothing else of a 404 says that
_FAILED: Final = (OAuthTokenError, httpx2.HTTPError, OSError, ValueError, TypeError, KeyError, AttributeError)


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
        for first in range(0, len(fresh), STRETCH):
            if time.monotonic() - begun_s > MOST_S:
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
        self._ask(1)

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    def _ask(self, schema_id: int) -> bool:
        """Whether the registry has the schema, which is kept then."""
        try:
            found = self._said(self._client.get_schema, schema_id, may_lack=True)
            if found is not None and found.schema_type == "PROTOBUF":
                self._client.clear_caches()  # its cache knows ids, but no formats
                found = self._said(self._client.get_schema, schema_id, fmt="serialized")
            if found is not None:
                self._schemas[schema_id] = self._schema(found)
        finally:
            self._client.clear_caches()  # it has no end; ours holds what was made of it
        return found is not None

    def _schema(self, found: Registered) -> Schema:
        kind, text = found.schema_type or "AVRO", found.schema_str
        if not text:
            raise RegistryUnavailable(f"what answers at {self._url} is no schema registry: a schema without its text")
        try:
            referenced = self._referenced(found, "serialized" if kind == "PROTOBUF" else None)
            if kind == "AVRO":
                return Schema(kind, avro.reader(text, [each for _, each in referenced]))
            if kind == "PROTOBUF":
                return Schema(kind, protobuf.reader(text, referenced))
        except SchemaUnfit as error:
            return Schema(kind, None, str(error))
        return Schema(kind, None, f"it is of type {kind}")

    def _referenced(self, found: Registered, form: str | None) -> list[tuple[str, str]]:
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
                texts[name] = version.schema.schema_str or ""

        visit(found, ())
        return list(texts.items())

    def _said(self, ask: Any, *arguments: Any, may_lack: bool = False, **named: Any) -> Any:
        """The registry's answer; None where it says that it lacks the schema and may. Raises `RegistryUnavailable`."""
        try:
            return ask(*arguments, **named)
        except SchemaRegistryError as error:
            if may_lack and error.http_status_code == 404 and error.error_code == _NOT_FOUND:
                return None
            why = f"HTTP {error.http_status_code}: {str(error.error_message)[:200]}"
        except _FAILED as error:
            why = f"{type(error).__name__}: {str(error)[:200]}"
        raise RegistryUnavailable(f"the schema registry {self._url} does not tell its schemas: {why}")
