"""The page's addresses, and the headers that keep it to itself."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.page.broadcast import Broadcast
from app.page.figures import SPANS

MOST_BROWSERS: Final = 500
FILES: Final = Path(__file__).with_name("static")
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS: Final = {
    # nothing from elsewhere, no script or style in the page itself, in nobody's frame
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

Endpoint = Callable[[Request], Awaitable[Response]]


def site(
    broadcast: Broadcast, hosts: Sequence[str], lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]
) -> Starlette:
    """The application. `hosts`: the names it answers to; any other is refused, so that no page of somebody else's can
    reach it under a name of its own.
    """
    routes = [
        *(
            Route("/" if path.name == "index.html" else f"/{path.name}", _file(path))
            for path in sorted(FILES.iterdir())
        ),
        *(Route(f"/events/{span.name}", _events(broadcast, span.name)) for span in SPANS),
        Route("/live", _live),
    ]
    middleware = [
        Middleware(_Headers),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
    ]
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan)


def _file(path: Path) -> Endpoint:
    body = path.read_bytes()
    headers = {"etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"', "cache-control": "no-cache"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=_TYPES[path.suffix], headers=headers)

    return answer


def _events(broadcast: Broadcast, span: str) -> Endpoint:
    async def answer(request: Request) -> Response:
        if broadcast.listeners >= MOST_BROWSERS:
            return PlainTextResponse("too many browsers", 503, {"retry-after": "30"})
        return StreamingResponse(
            broadcast.stream((span, "news", "beat")),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    return answer


async def _live(request: Request) -> Response:
    return PlainTextResponse("live\n", headers={"cache-control": "no-store"})


class _Headers:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Adds the headers to every answer, refusals too."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self._app(scope, receive, with_headers)
