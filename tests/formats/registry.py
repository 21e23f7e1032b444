"""A schema registry in this process: as much of Confluent's REST API as producers and onecount use, and its faults."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from app.formats import opening

NOT_FOUND = {"error_code": 40403, "message": "Schema not found"}
NO_VERSION = {"error_code": 40402, "message": "Version not found"}

# Answers to format=serialized of registries that do not know it, or not rightly: status, and body or what of it differs.
OTHERWISE: dict[str, tuple[int, str | dict[str, Any]]] = {
    "text": (200, {}),
    "pressed": (
        200,
        {"schema": b'\n\x05Event\x12\x08onecount"\xba\x06\n\x05Event'.decode(errors="replace")},
    ),  # Apicurio
    "refused": (400, ""),  # Apicurio
    "failed": (
        500,
        '{"error_code": 0, "message": "expected E.proto to have a path ending with shop/E.proto"}',
    ),  # Apicurio
    "empty": (200, {"schema": ""}),
    "nothing": (200, ""),
    "no file": (200, {"schema": "////"}),
    "no message": (200, {"schema": "Cghhbi5wcm90bw=="}),
    "busy": (503, "{}"),
}


class Registry:
    """What it holds, and how it is to answer. `asked`: the paths of all requests."""

    def __init__(self) -> None:
        self.url = ""
        self.schemas: dict[int, dict[str, Any]] = {}
        self.versions: dict[tuple[str, int], int] = {}  # to the schema's id
        self.asked: list[str] = []
        self.broken: tuple[int, str] | None = None  # status and body of every answer
        self.lags: set[int] = set()  # ids that it knows only when it is asked a second time
        self.serialized = "base64"  # how it answers to format=serialized: so, or one of `OTHERWISE`
        self.tells_base64 = True  # whether a Protobuf schema that was registered in Base64 has a type
        self._lock = Lock()

    def add(self, kind: str, text: str, subject: str = "events", references: list[dict[str, Any]] | None = None) -> int:
        """Registers a schema; its id. A Protobuf schema's text is its FileDescriptorProto in Base64, or .proto text."""
        entry: dict[str, Any] = {"schema": text} | ({} if kind == "AVRO" else {"schemaType": kind})
        if references:
            entry["references"] = references
        with self._lock:
            number = next((each for each, known in self.schemas.items() if known == entry), len(self.schemas) + 1)
            self.schemas[number] = entry
            version = 1 + sum(name == subject for name, _ in self.versions)
            self.versions[subject, version] = number
        return number

    def said(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
        """Status and body of an answer."""
        with self._lock:
            self.asked.append(path)
        if self.broken is not None:
            return self.broken
        url = urlsplit(path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        form = parse_qs(url.query).get("format", [""])[0]
        if parts[:2] == ["schemas", "ids"]:
            number = int(parts[2])
            if number not in self.schemas or number in self.lags:
                self.lags.discard(number)
                return 404, json.dumps(NOT_FOUND)
            return self._shown(number, form, {})
        if parts[0] == "subjects" and parts[2:3] == ["versions"]:
            if method == "POST":
                number = self.add(body.get("schemaType", "AVRO"), body["schema"], parts[1], body.get("references"))
                return 200, json.dumps({"id": number})
            found = self.versions.get((parts[1], int(parts[3])))
            if found is None:
                return 404, json.dumps(NO_VERSION)
            return self._shown(found, form, {"subject": parts[1], "version": int(parts[3]), "id": found})
        return 404, "<html>not here</html>"

    def _shown(self, number: int, form: str, about: dict[str, Any]) -> tuple[int, str]:
        """As a registry does: Protobuf as text, unless it is asked for it serialized."""
        entry = about | self.schemas[number]
        if entry.get("schemaType") != "PROTOBUF":
            return 200, json.dumps(entry)
        is_text = "message" in entry["schema"] or "enum" in entry["schema"]
        if not is_text and not self.tells_base64:
            del entry["schemaType"]
            return (400, "") if form == "serialized" else (200, json.dumps(entry))
        if form == "serialized" and self.serialized != "base64":
            status, body = OTHERWISE[self.serialized]
            return status, json.dumps(entry | body) if isinstance(body, dict) else body
        if form != "serialized" and not is_text:
            entry |= {"schema": 'syntax = "proto3"; message Event { string event_id = 1; }'}
        return 200, json.dumps(entry)


class _Server(ThreadingHTTPServer):
    """Ends what clients keep open, so that no thread of it outlives it."""

    daemon_threads = False

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)

    def hang_up(self) -> None:
        """Ends every connection."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def registry(port: int = 0) -> Iterator[Registry]:
    """A registry on a port of this machine (0: any free one)."""
    held = Registry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65_536  # a head and a body sent apart would wait for an acknowledgement between

        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            status, text = held.said(self.command, self.path, body)
            raw = text.encode()
            self.send_response(status)
            self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_POST = do_GET  # noqa: N815 - as http.server asks for it

        def log_message(self, *_: object) -> None: ...

    server = _Server(("127.0.0.1", port), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    held.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield held
    finally:
        server.shutdown()
        server.hang_up()
        server.server_close()  # waits for the threads
        thread.join()


@contextmanager
def fresh(url: str, timeout_s: float = 10.0) -> Iterator[None]:
    """This process as one that has just started: no schema of the registry is known, before and after. `timeout_s`: as set."""
    opening._registry.cache_clear()
    try:
        yield
    finally:
        opening._registry((("url", url),), timeout_s).close()
        opening._registry.cache_clear()
