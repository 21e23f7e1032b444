"""`onecount desk`: from start to a clean stop."""

import asyncio
import os
import signal
from typing import Final

import structlog

from app.desk.desk import Desk
from app.desk.refusal import DeskError
from app.desk.web import application, guarded
from app.listening import listen
from app.observe.logs import configure_logs
from app.observe.metrics import Metrics, live_s
from app.policy.desk import Desk as DeskPolicy
from app.policy.load import PolicyError, load_desk, load_policy
from app.settings import Settings

FAILED: Final = 1
REFUSED: Final = 3  # starting it again changes nothing
STOP_TIMEOUT_S: Final = 30.0
_log = structlog.get_logger()


def run_desk(settings: Settings) -> int:
    """Works until SIGTERM or SIGINT, or until its policy's file does not fit what is recorded; the exit code. Raises `DeskError`
    and `PolicyError`.
    """
    policy, _ = load_policy(settings.policy)
    if policy.bounds.journeys is None:
        raise PolicyError(f"{settings.policy}: the desk needs `journeys`: leads come from conversions.journeys")
    desk_policy = load_desk(settings.policy)
    # Faust would say only in a traceback that the port is taken
    with listen("desk", settings.desk_host, settings.desk_port, DeskError) as listener:
        settings = settings.model_copy(update={"desk_port": listener.getsockname()[1]})
    configure_logs()
    metrics = Metrics("desk", settings.worker_id, 1.0, live_s(settings.request_timeout_ms))
    metrics.leads_of(sorted(desk_policy.follow_ups))
    if settings.metrics_port is not None:
        try:
            _log.info("metrics", role="desk", port=metrics.serve(settings.metrics_port))
        except OSError as error:
            raise DeskError(
                f"no metrics on port {settings.metrics_port} ({error}): set ONECOUNT_METRICS_PORT"
            ) from error
    return asyncio.run(_serve(settings, desk_policy, metrics))


async def _serve(settings: Settings, desk_policy: DeskPolicy, metrics: Metrics) -> int:
    desk = Desk(settings, desk_policy, metrics)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, desk.stopping.set)
    app, give = application(settings, desk)
    app.finalize()
    app.flow_control.resume()  # which its tables would do after their recovery, if it had any
    await app.start()
    _log.info(
        "desk", url=f"http://{settings.desk_host}:{settings.desk_port}/leads", answers_to=list(settings.desk_hosts)
    )
    ending = asyncio.create_task(_end_at_last(desk))
    await guarded(desk, desk.work(give))
    await app.stop()
    ending.cancel()
    if isinstance(desk.failure, PolicyError):
        _log.error("refused", role="desk", worker=settings.worker_id, why=str(desk.failure))
        return REFUSED
    if desk.failure is not None:
        _log.critical("crashed", exc_info=desk.failure)
        return FAILED
    _log.info("stopped")
    return 0


async def _end_at_last(desk: Desk) -> None:
    """A client that hangs while it closes must not outlive this; an end at once loses nothing."""
    await desk.stopping.wait()
    await asyncio.sleep(STOP_TIMEOUT_S)
    _log.error("stopping took too long, ended at once", role="desk", after_s=STOP_TIMEOUT_S)
    os._exit(FAILED)
