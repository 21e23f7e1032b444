"""The Faust application of the desk: an agent that takes what is read, a timer that publishes, and the web views.

Faust's own Kafka consumer, producer and tables are left out, by measurement (docs/decisions.md): batches come over one of its
channels from our clients, and rows leave through them.
"""

import asyncio
from typing import Any, Final

import faust
from aiohttp.web import Request, Response, middleware
from faust.app.base import BootStrategy
from faust.web.drivers.aiohttp import Web

from app.desk.desk import Desk, Give
from app.desk.log import Batch
from app.desk.session import Session
from app.desk.views import LEADS, OVERDUE, RECONCILIATION, RETURN, ROLLUPS, AskedWrongly, View, answer
from app.settings import Settings

TICK_S: Final = 1.0
_BATCHES: Final = 4  # that are read ahead
_HEADERS: Final = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


class _WithoutKafka(BootStrategy):
    enable_kafka = False


class _Application(faust.App):
    BootStrategy = _WithoutKafka

    def _create_directories(self) -> None:
        """Makes none where it is started: no table lies on disk, and a container's own file system is read-only."""


class _OwnPagesOnly(Web):
    """Without Faust's own pages, which show settings and tables."""

    default_blueprints = production_blueprints = debug_blueprints = optional_blueprints = ()


def application(settings: Settings, desk: Desk) -> tuple[faust.App, Give]:
    """The application, not started yet, and how batches are given to its agent. It serves on `desk_host` and `desk_port`."""
    app = _Application(
        settings.desk_group,
        broker="kafka://unused",
        store="memory://",
        web_bind=settings.desk_host,
        web_port=settings.desk_port,
        web_application_options={"middlewares": [_known_hosts(settings.desk_hosts)]},
    )
    app.web = _OwnPagesOnly(app)
    batches = app.channel(maxsize=_BATCHES)

    @app.agent(batches)
    async def taking(stream: Any) -> None:
        async for session, batch in stream:
            await guarded(desk, desk.take(session, batch))

    async def give(session: Session, batch: Batch) -> None:
        await batches.put((session, batch))

    @app.timer(TICK_S)
    async def ticking() -> None:
        await guarded(desk, desk.tick())

    @app.timer(TICK_S)
    async def telling() -> None:
        await guarded(desk, desk.tell())

    for path, topic, view in (
        ("/leads", settings.leads_topic, LEADS),
        ("/leads/overdue", settings.overdue_topic, OVERDUE),
        ("/rollups", settings.rollups_topic, ROLLUPS),
        ("/return", settings.return_topic, RETURN),
        ("/reconciliation", settings.reconciliation_topic, RECONCILIATION),
    ):
        app.page(path, name=path)(_page(desk, topic, view))

    @app.page("/healthz")
    async def health(self: Any, request: Request) -> Any:
        status = 200 if desk.is_current else 503
        return self.json({"role": desk.role, "behind": desk.behind, "answered_ms": desk.answered_ms}, status=status)

    return app, give


async def guarded(desk: Desk, work: Any) -> None:
    """What nobody foresaw ends the process: going on would lose what was at hand, and Faust would only begin the agent anew."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - told by `run`, which ends with it
        desk.failure = error
        desk.stopping.set()


def _page(desk: Desk, topic: str, view: View) -> Any:
    async def page(self: Any, request: Request) -> Any:
        rows = list(desk.shown.rows[topic].values()) if desk.shown is not None else []
        try:
            body = await asyncio.to_thread(answer, view, rows, request.query)
        except AskedWrongly as error:
            return self.error(400, str(error))
        # they may not be the latest: Kafka does not answer, or this desk is reading everything anew
        return Response(
            body=body, content_type="application/json", headers=_HEADERS, status=200 if desk.is_current else 503
        )

    return page


def _known_hosts(names: tuple[str, ...]) -> Any:
    """Refuses requests to other host names: a foreign web page could give itself a name that leads here."""

    @middleware
    async def known(request: Request, handler: Any) -> Any:
        host = request.host.rpartition(":")[0] if request.host.rpartition(":")[2].isdecimal() else request.host
        if "*" not in names and host not in names:
            return Response(status=400, text="another host name: see ONECOUNT_DESK_HOSTS\n")
        return await handler(request)

    return known
