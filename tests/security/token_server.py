"""An OpenID Connect token endpoint: signs JSON Web Tokens for the clients whose secret it knows."""

import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

AUDIENCE = "kafka"
ISSUER = "https://issuer.test"
LIFETIME_S = 60


@dataclass(frozen=True)
class TokenServer:
    """Where clients get tokens, and the public key (JWKS) by which brokers check them."""

    url: str
    jwks: Path


@contextmanager
def token_server(folder: Path, secrets: dict[str, str]) -> Iterator[TokenServer]:
    """Serves tokens while the block runs. `secrets`: client id -> client secret; the id becomes the token's subject."""
    key = folder / "token.key"
    _openssl("genrsa", "-out", key, "2048")
    modulus = bytes.fromhex(_openssl("rsa", "-in", key, "-noout", "-modulus").decode().strip().partition("=")[2])
    jwks = folder / "jwks.json"
    public = {"kty": "RSA", "kid": "test", "use": "sig", "alg": "RS256", "n": _base64(modulus), "e": "AQAB"}
    jwks.write_text(json.dumps({"keys": [public]}))

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            given = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
            client, _, secret = given.partition(":")
            known = secrets.get(client) == secret
            answer = {"access_token": _token(key, client)} if known else {"error": "invalid_client"}
            body = json.dumps(answer).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Requests are not worth a line."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield TokenServer(f"http://127.0.0.1:{server.server_port}/token", jwks)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _token(key: Path, subject: str) -> str:
    now = int(time.time())
    claims = {"sub": subject, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + LIFETIME_S}
    header = {"alg": "RS256", "typ": "JWT", "kid": "test"}
    signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
    return f"{signed}.{_base64(_openssl('dgst', '-sha256', '-sign', key, text=signed.encode()))}"


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _openssl(*arguments: object, text: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=text, check=True, capture_output=True).stdout
