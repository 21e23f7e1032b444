"""More at once than is set: everybody is told in the way that they understand, and it is counted. The application, in process."""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from app.gateway.admission import Record
from app.gateway.answers import GIF
from app.gateway.config import parse_config
from app.gateway.gateway import Gateway
from app.gateway.metrics import Metrics
from app.gateway.site import site
from app.settings import Settings
from tests.gateway.harness import CONFIG, KEY, ORIGIN, SALT, SECRET, visit
from tests.gateway.test_admission import RULES

EVENT = json.dumps(visit("1")).encode()
JSON = {"content-type": "application/json", "authorization": f"Bearer {KEY}", "origin": ORIGIN}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class _Kafka:
    """It takes whatever comes."""

    is_down = False

    def has_room(self, count: int) -> bool:
        return True

    async def send(self, records: Sequence[Record]) -> list[bool]:
        return [True] * len(records)

    def post(self, record: Record) -> bool:
        return True


class App:
    """A gateway's application with a Kafka that takes everything and no limits of rates."""

    def __init__(self, **settings: int) -> None:
        given = Settings(gateway_secret=SECRET, gateway_user_salt=SALT, **settings)  # type: ignore[arg-type]
        self.metrics = Metrics(("/v1/events", "/v1/browser"), 0.05, "gateway-0")
        config = parse_config(CONFIG, given, given.gateway_config)
        gateway: Any = Gateway(given, config, self.metrics, lambda: None)
        gateway._rules = RULES._replace(platforms={"meta": 0})
        gateway.broker = gateway.pixels = _Kafka()

        async def take(*_: object) -> float:
            return 0.0

        gateway.limiter = SimpleNamespace(take=take)
        self._app = site(gateway, lambda _: nullcontext())  # type: ignore[arg-type, return-value]

    async def ask(
        self, path: str, parts: Sequence[bytes] = (), until: asyncio.Event | None = None, **more: str
    ) -> Answer:
        """A POST of the parts, of which the last one comes after `until`; without any, a GET."""
        left = list(parts) or [b""]
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "method": "POST" if parts else "GET", "path": path, "raw_path": path.encode(),
            "query_string": query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1",
            "headers": [(name.encode(), value.encode()) for name, value in (JSON | more).items()],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            if len(left) == 1 and until is not None:
                await until.wait()
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        told: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            told.append(message)

        await self._app(scope, receive, send)  # type: ignore[arg-type]
        headers = {name.decode(): value.decode() for name, value in told[0]["headers"]}
        return Answer(told[0]["status"], headers, b"".join(message.get("body", b"") for message in told[1:]))

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def run(app: App, case: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs a case while a request waits for the rest of its body, which the event lets come."""

    async def within() -> None:
        rest = asyncio.Event()
        waiting = asyncio.create_task(app.ask("/v1/events", [EVENT[:10], EVENT[10:]], rest))
        await asyncio.sleep(0)
        await case(rest)
        rest.set()
        assert (await waiting).status == 202, "who came first is served"
        assert (await app.ask("/v1/events", [EVENT])).status == 202, "there is room again"

    asyncio.run(within())


def test_too_many_requests_are_told_so_in_their_own_way_and_counted() -> None:
    app = App(gateway_max_requests=1)

    async def case(rest: asyncio.Event) -> None:
        for path in ("/v1/events", "/v1/browser?advertiser_id=shop"):
            answer = await app.ask(path, [EVENT])
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
            assert answer.headers["content-type"] == "application/problem+json"
            assert "too many requests" in json.loads(answer.body)["detail"]
        assert answer.headers["access-control-allow-origin"] == ORIGIN, "a page may read it"
        pixel = await app.ask("/p.gif?advertiser_id=shop&event_type=visit&page=/")
        assert (pixel.status, pixel.headers["onecount"], pixel.body) == (200, "lost", GIF)
        assert app.count("onecount_gateway_refused_requests_total", status="503") == 2
        assert app.count("onecount_gateway_pixels_total", outcome="lost") == 1
        assert (await app.ask("/live")).status == 200, "nobody restarts it for this"
        assert (await app.ask("/healthz")).status == 200
        assert (await app.ask("/v1/events", [EVENT], authorization="Bearer no")).status == 401

    run(app, case)


def test_bodies_hold_so_many_bytes_and_no_more() -> None:
    app = App(gateway_max_body_bytes=4_096, gateway_max_held_bytes=4_096)
    large = EVENT[:-1] + b" " * (4_090 - len(EVENT)) + b"}"

    async def case(rest: asyncio.Event) -> None:
        for parts, coding in (
            ([large], "identity"),
            ([large[:3_000], large[3_000:]], "identity"),
            ([gzip.compress(large)], "gzip"),
        ):
            answer = await app.ask("/v1/events", parts, **{"content-encoding": coding})
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
            assert "too many bytes" in json.loads(answer.body)["detail"]
        assert app.count("onecount_gateway_refused_requests_total", status="503") == 3
        assert (await app.ask("/v1/events", [EVENT])).status == 202, "a small one has room"

    run(app, case)
    assert asyncio.run(app.ask("/v1/events", [large])).status == 202, "nothing is held when all are answered"


def test_a_bound_that_no_body_would_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="gateway_max_held_bytes"):
        Settings(gateway_max_body_bytes=8_192, gateway_max_held_bytes=4_096)
