"""Events as producers of other languages write them: by the serializers of Confluent's client, and the published schemas."""

import base64
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from app.contract.events import Event

SCHEMAS = Path(__file__).resolve().parents[2] / "deploy/schemas"
AVSC = (SCHEMAS / "event.avsc").read_text()
PROTO = (SCHEMAS / "event.proto").read_text()
TOPIC = "ads.events"
VALUE = SerializationContext(TOPIC, MessageField.VALUE)
BINARY = [("content-type", b"application/json")]
STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]

Headers = list[tuple[str, bytes | None]]


@cache
def compiled(text: str, *others: tuple[str, str]) -> FileDescriptorProto:
    """A .proto file as protoc reads it; `others`: name and text of the files that it imports."""
    with TemporaryDirectory() as folder:
        for name, each in (("event.proto", text), *others):
            (Path(folder) / name).write_text(each)
        found = Path(folder) / "found.pb"
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{folder}",
            f"--descriptor_set_out={found}",
            "event.proto",
        ]
        subprocess.run(command, check=True)
        return FileDescriptorSet.FromString(found.read_bytes()).file[0]


def serialized(file: FileDescriptorProto) -> str:
    """As a registry gives it."""
    return base64.b64encode(file.SerializeToString()).decode()


@cache
def message_class() -> type[Message]:
    """The published schema's message, as protoc's Python code would have it."""
    pool = DescriptorPool()
    pool.Add(compiled(PROTO))
    return GetMessageClass(pool.FindMessageTypeByName("onecount.Event"))


class Writers:
    """Writes one event in every format. `event`: a JSON object of the contract, with its time in epoch milliseconds."""

    def __init__(self, url: str) -> None:
        self._client = client = SchemaRegistryClient({"url": url})
        by_topic = {"subject.name.strategy.type": "TOPIC"}
        self._avro = AvroSerializer(client, AVSC, conf=by_topic)
        self._protobuf = ProtobufSerializer(message_class(), client, by_topic | {"skip.known.types": True})

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    def avro(self, event: dict[str, Any]) -> bytes:
        """In Avro, framed."""
        return self._avro(dict.fromkeys(Event.__struct_fields__) | event, VALUE)

    def protobuf(self, event: dict[str, Any]) -> bytes:
        """In Protobuf, framed."""
        return self._protobuf(message_class()(**event), VALUE)


def enveloped(event: dict[str, Any], fills: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """A CloudEvent's attributes, and its data: with `fills` what the envelope can say is left to it."""
    attributes = {
        "specversion": "1.0",
        "source": "/shop",
        "id": event["event_id"],
        "type": f"com.example.{event['event_type']}",
    }
    if not fills:
        return attributes | {"id": "other", "type": "other"}, event
    return attributes, {name: value for name, value in event.items() if name not in ("event_id", "event_type")}


def structured(event: dict[str, Any], fills: bool = True) -> tuple[bytes, Headers]:
    """A CloudEvent whose value is the envelope."""
    attributes, data = enveloped(event, fills)
    return json.dumps(attributes | {"data": data}).encode(), list(STRUCTURED)


def binary(event: dict[str, Any], fills: bool = True) -> tuple[bytes, Headers]:
    """A CloudEvent whose envelope is in the headers."""
    attributes, data = enveloped(event, fills)
    return json.dumps(data).encode(), BINARY + [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
