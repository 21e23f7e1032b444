"""The gateway's addresses."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.gateway import browsers, servers
from app.gateway.answers import JSON, health, problem
from app.gateway.body import Problem
from app.gateway.gateway import Gateway
from app.gateway.openapi import document

NO_STORE: Final = {"cache-control": "no-store"}
_log = structlog.get_logger()


def site(gateway: Gateway, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]) -> Starlette:
    """The application. It redirects nowhere."""
    described = document()

    async def healthz(request: Request) -> Response:
        why = gateway.why_unfit()
        return health(not why, why or "events are taken")

    async def live(request: Request) -> Response:
        return PlainTextResponse("live\n", headers=NO_STORE)

    async def openapi(request: Request) -> Response:
        return Response(described, media_type=JSON)

    routes = [
        Route("/p.gif", browsers.pixel(gateway), methods=["GET"]),
        Route("/v1/browser", browsers.beacon(gateway), methods=["POST", "OPTIONS"]),
        *(Route(path, servers.door(gateway, path), methods=["POST"]) for path in servers.DOORS),
        Route("/onecount.js", browsers.script(), methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/live", live, methods=["GET"]),
    ]
    application = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_problem, Exception: _crash}
    )
    application.router.redirect_slashes = False
    return application


async def _http_problem(request: Request, error: Exception) -> Response:
    """No such address, or not with this method."""
    assert isinstance(error, HTTPException)
    return problem(Problem(error.status_code, error.detail), error.headers or {})


async def _crash(request: Request, error: Exception) -> Response:
    # the query may hold ids, so only the path is told
    _log.error("an answer failed", path=request.url.path, exc_info=error)
    return problem(Problem(500, "the gateway failed at this; send it again"))
