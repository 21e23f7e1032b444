"""`onecount gateway`: from start to a stop that loses nothing."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Final

import structlog
import uvicorn
from starlette.applications import Starlette

from app.gateway import GatewayError
from app.gateway.config import load_config
from app.gateway.gateway import Gateway
from app.gateway.metrics import Metrics
from app.gateway.protocol import GuardedProtocol
from app.gateway.servers import DOORS
from app.gateway.site import site
from app.listening import listen, url_of
from app.observe.logs import configure_logs
from app.policy.load import load_policy
from app.settings import Settings

KEEP_ALIVE_S: Final = 20  # longer than most clients keep a connection that they do not use
STOP_S: Final = 20
BACKLOG: Final = 1_024
FAILED: Final = 1
_log = structlog.get_logger()


def serve(settings: Settings) -> int:
    """Takes events until SIGTERM or SIGINT; the exit code. Raises `GatewayError` where it can't do what it is told."""
    configure_logs()
    load_policy(settings.policy)
    config = load_config(settings)
    listener = listen(
        *("gateway", settings.gateway_host, settings.gateway_port, GatewayError), BACKLOG, settings.gateway_share_port
    )
    metrics = Metrics((*DOORS, "/v1/browser"), settings.dead_letter_ratio_limit, settings.worker_id)
    if settings.metrics_port is not None:
        _log.info("metrics", port=metrics.serve(settings.metrics_port))

    @asynccontextmanager
    async def lifespan(application: Starlette) -> AsyncIterator[None]:
        await gateway.open()
        yield
        await gateway.close(STOP_S)

    code = 0

    def give_up() -> None:
        nonlocal code
        code, server.should_exit = FAILED, True

    gateway = Gateway(settings, config, metrics, give_up)
    server = uvicorn.Server(
        uvicorn.Config(
            site(gateway, lifespan),
            http=GuardedProtocol,
            ws="none",
            log_config=None,
            access_log=False,  # it would tell addresses
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_S,
        )
    )

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them once more when it has stopped
        signal.signal(number, stop)
    _log.info(
        "gateway",
        url=url_of(settings.gateway_host, listener),
        keys=sorted(config.keys),
        advertisers=sorted(config.sites),
    )
    server.run(sockets=[listener])
    _log.info("stopped")
    return code
