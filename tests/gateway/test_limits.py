"""Clients that are slow, huge or many do not keep the gateway from the others."""

import socket
import time
import uuid
from contextlib import ExitStack, closing

import pytest

from tests.gateway.harness import KEY, ORIGIN, Gateway, taken, visit

HEAD_S = 10.0  # app.gateway.protocol
HEAD = (
    b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer %s\r\n"
    % KEY.encode()
)


def connected(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=30)


def answer(client: socket.socket) -> bytes:
    """All that comes until the gateway closes; what it cut off counts too."""
    found = b""
    try:
        while part := client.recv(65_536):
            found += part
    except ConnectionError:
        pass
    return found


@pytest.mark.faults  # it waits for ten seconds
@pytest.mark.timeout(60)
def test_slow_clients_are_cut_off_and_the_others_are_served_meanwhile(gateway: Gateway) -> None:
    silent, slow_head, slow_body = (connected(gateway) for _ in range(3))
    many = [connected(gateway) for _ in range(200)]
    begun = time.monotonic()
    slow_body.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
    open_ends = {slow_head: b"GET /healthz HTTP/1.1\r\nx: ", slow_body: b""}
    for client, text in open_ends.items():
        client.sendall(text)
    closed: dict[socket.socket, float] = {}
    while len(closed) < 2 and time.monotonic() < begun + 2 * HEAD_S:
        for client in open_ends.keys() - closed.keys():
            try:
                client.sendall(b" ")  # a byte now and then, as slowloris does
                client.settimeout(0.01)
                if not client.recv(65_536, socket.MSG_PEEK) or client is slow_body:
                    closed[client] = time.monotonic() - begun
            except TimeoutError:
                pass
            except ConnectionError:
                closed[client] = time.monotonic() - begun
        asked = time.monotonic()
        assert gateway.get("/healthz").status_code == 200
        assert time.monotonic() - asked < 2
        time.sleep(0.4)
    assert all(HEAD_S - 1 < after < HEAD_S + 4 for after in closed.values()), closed
    slow_body.settimeout(30)
    assert answer(slow_body).startswith(b"HTTP/1.1 408 ")
    silent.settimeout(30)
    assert answer(silent) == b""
    for client in (silent, slow_head, slow_body, *many):
        client.close()


def test_a_head_or_body_without_an_end_is_refused(gateway: Gateway) -> None:
    endless = [
        (b"GET /p.gif?" + b"x" * 40_000, b"x" * 65_536, b"HTTP/1.1 431 "),
        (b"GET /healthz HTTP/1.1\r\n", b"a: " + b"b" * 1_000 + b"\r\n", b"HTTP/1.1 431 "),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65_536 + b"\r\n", b"HTTP/1.1 413 "),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a: " + b"b" * 1_000 + b"\r\n", b"HTTP/1.1 431 "),
        (HEAD + b"content-length: 999999999\r\n\r\n", b" " * 65_536, b"HTTP/1.1 413 "),
    ]
    for begin, more, status in endless:
        with closing(connected(gateway)) as client:
            sent = 0
            try:
                client.sendall(begin)
                for _ in range(1_000):
                    client.sendall(more)
                    sent += len(more)
            except (ConnectionError, TimeoutError):
                pass
            assert sent < 20_000_000, "it reads on without an end"
            found = answer(client)
            assert found.startswith(status) or found == b"", found[:100]


def test_requests_on_one_connection_are_answered_in_order(gateway: Gateway) -> None:
    prefix = uuid.uuid4().hex[:12]
    bodies = [str(visit(f"{prefix}-{number}")).replace("'", '"').encode() for number in range(20)]
    names = [b'"%s-%d"' % (prefix.encode(), number) for number in range(20)]
    with closing(connected(gateway)) as client:
        client.sendall(b"".join(HEAD + b"content-length: %d\r\n\r\n%s" % (len(body), body) for body in bodies))
        found = b""
        while names[-1] not in found:
            part = client.recv(65_536)
            assert part, found
            found += part
    assert found.count(b"HTTP/1.1 202 ") == len(bodies)
    places = [found.index(name) for name in names]
    assert places == sorted(places)
    assert len(taken(gateway.deployment, prefix)) == len(bodies)


def test_what_is_no_http_is_refused(gateway: Gateway) -> None:
    for raw in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"\x00" * 100,
    ):
        with closing(connected(gateway)) as client:
            client.sendall(raw)
            assert answer(client).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b"HTTP/1.1 405 "))
    assert gateway.get("/healthz").status_code == 200


def test_a_gateway_at_its_limit_lives_and_tells_so(gateway: Gateway) -> None:
    small = Gateway(gateway.deployment, gateway_max_requests=1).ready()
    with ExitStack() as stack:

        def is_at_its_limit() -> bool:
            slow = stack.enter_context(
                closing(connected(small))
            )  # it is refused itself where the post is there before it
            slow.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
            return small.post(visit("beyond")).status_code == 503

        gateway.deployment.wait_until(is_at_its_limit, "it is at its limit", 20)
        assert int(small.post(visit("beyond")).headers["retry-after"]) >= 1
        pixel = small.get("/p.gif?advertiser_id=shop&event_type=visit&page=/&event_id=beyond", referer=ORIGIN)
        assert (pixel.status_code, pixel.headers["onecount"]) == (200, "lost")
        assert small.get("/live").status_code == small.get("/healthz").status_code == 200
    gateway.deployment.wait_until(lambda: small.post(visit("room")).status_code == 202, "there is room again", 20)
    assert small.stop() == 0
