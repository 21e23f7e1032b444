"""What the schemas of a registry are to whoever reads by them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias


class SchemaUnfit(Exception):
    """The bytes are no event of the schema, or no event can be of it; the message says why."""


class NoSchema(Exception):
    """What the registry gives for a schema is none of the kind that it says; the message says why."""


class RegistryUnavailable(Exception):
    """The registry did not say whether it has a schema, or gives what is none. Events wait for it: none is refused for that. The
    message says why.
    """


class RegistryRefused(Exception):
    """The registry cannot be asked as the settings stand; the message says what to do."""


# The fields of one event by name, of the bytes behind the schema's id. Raises `SchemaUnfit`.
Read: TypeAlias = Callable[[bytes], Mapping[str, Any]]


class Schema(NamedTuple):
    """A schema by its kind (AVRO, PROTOBUF, JSON, ...), and what reads by it; `why` nothing does, where `read` is None."""

    kind: str
    read: Read | None
    why: str = ""
