"""Events in Protobuf, by the schema that they were written with."""

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from google.protobuf import (
    any_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from app.formats.fields import FIELDS
from app.formats.schemas import Read, SchemaUnfit

MAX_NESTING: Final = 16  # of the message's type in the types that hold it
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
WELL_KNOWN: Final = {
    module.DESCRIPTOR.name: module.DESCRIPTOR
    for module in (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
}
_WRAPPERS: Final = frozenset(wrappers_pb2.DESCRIPTOR.message_types_by_name)


def descriptor(text: str) -> FileDescriptorProto | None:
    """A file out of its FileDescriptorProto in Base64 (the registry's format `serialized`); None where the text is no such thing."""
    try:
        file = FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (ValueError, DecodeError):
        return None
    return file if file.ListFields() else None


def reader(files: Sequence[FileDescriptorProto]) -> Read:
    """What reads events of a schema: its own file, after those that it imports, each after those that it imports itself.

    Raises `SchemaUnfit` for a schema by which no event can be read.
    """
    pool = descriptor_pool.DescriptorPool()
    for name, file in WELL_KNOWN.items():
        well_known = FileDescriptorProto()
        file.CopyToProto(well_known)
        assert well_known.name == name
        pool.Add(well_known)
    *imported, own = files
    try:
        for each in imported:
            if each.name not in WELL_KNOWN:
                pool.Add(each)
        pool.Add(own)
        pool.FindFileByName(own.name)
    except (TypeError, KeyError, ValueError) as error:
        raise SchemaUnfit(f"protobuf does not read it: {type(error).__name__}: {str(error)[:200]}") from error
    kinds: dict[tuple[int, ...], _Kind] = {}

    def read(data: bytes) -> Mapping[str, Any]:
        path, begin = _message_indexes(data)
        if path not in kinds:
            kinds[path] = _kind(pool.FindMessageTypeByName(_type_name(own, path)))
        try:
            return _values(kinds[path], data[begin:])
        except (DecodeError, UnicodeDecodeError) as error:
            raise SchemaUnfit(f"{type(error).__name__}: {str(error)[:200]}") from error

    return read


def _message_indexes(data: bytes) -> tuple[tuple[int, ...], int]:
    """Which message of the file it is (the place of each type in the one that holds it), and where the message begins."""
    count, at = _zigzag(data, 0)
    if count == 0:
        return (0,), at
    if not 0 < count <= MAX_NESTING:
        raise SchemaUnfit(f"{count} message indexes, the limit is {MAX_NESTING}")
    path = []
    for _ in range(count):
        index, at = _zigzag(data, at)
        path.append(index)
    return tuple(path), at


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    """A signed variable-length number, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 35:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
    raise SchemaUnfit("the message indexes end early")


def _type_name(file: FileDescriptorProto, path: tuple[int, ...]) -> str:
    names = [file.package] if file.package else []
    types: Sequence[DescriptorProto] = file.message_type
    for index in path:
        if not 0 <= index < len(types):
            raise SchemaUnfit(f"the file has no message at {list(path)}")
        names.append(types[index].name)
        types = types[index].nested_type
    return ".".join(names)


class _Kind(NamedTuple):
    """A message's class, and of its fields that the contract knows the names, and what makes a plain value of theirs, by number."""

    parse: Callable[[bytes], Message]
    fields: Mapping[int, tuple[str, Callable[[Any], Any] | None]]


def _kind(descriptor: Descriptor) -> _Kind:
    fields = {field.number: (field.name, _plain(field)) for field in descriptor.fields if field.name in FIELDS}
    return _Kind(GetMessageClass(descriptor).FromString, fields)


def _values(kind: _Kind, data: bytes) -> dict[str, Any]:
    """The fields that are set: of those without presence (proto3 without `optional`) the ones that are not zero or empty."""
    values = {}
    for field, value in kind.parse(data).ListFields():
        known = kind.fields.get(field.number)
        if known is not None:
            name, plain = known
            values[name] = value if plain is None else plain(value)
    return values


def _plain(field: FieldDescriptor) -> Callable[[Any], Any] | None:
    """What makes a plain value of a field's; None where it is one, or none can be made of it."""
    if field.is_repeated:
        return None
    if field.enum_type is not None:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, number)
    kind = field.message_type
    if kind is None:
        return None
    if kind.full_name == "google.protobuf.Timestamp":
        return _moment
    if kind.file.name == wrappers_pb2.DESCRIPTOR.name and kind.name in _WRAPPERS:
        return lambda wrapper: wrapper.value
    return None


def _moment(stamp: Any) -> datetime:
    try:
        return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)
    except OverflowError as error:
        raise SchemaUnfit("no year has a moment of the event") from error
