"""The observer of a worker: metrics by the catalogue, health, and quiet logs."""

import time
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from app import __version__
from app.contract.reasons import ALL_REASONS
from app.contract.rows import STATUSES
from app.observe.catalogue import CATALOGUE

_KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
LIVE_S = 60.0  # without a beat for this long the loop hangs
_log = structlog.get_logger()


class Metrics:
    """What a worker's loop tells of itself. One instance a process."""

    def __init__(self, role: str, worker: str) -> None:
        self.registry = CollectorRegistry()
        self.role, self.worker = role, worker
        self.families = {
            metric.name: _KINDS[metric.kind](
                metric.name.removesuffix("_total"), metric.help, metric.labels, registry=self.registry
            )
            for metric in CATALOGUE
        }
        for reason in ALL_REASONS:
            self.families["onecount_rejected_total"].labels(reason)
        for status in STATUSES:
            self.families["onecount_conversions_total"].labels("", status)
        self.beat_at = time.monotonic()
        self.looked_at = 0.0
        self.open: dict[int, str] = {}
        self.policy_version = 0

    def beat(self) -> None:
        """The loop turned once more."""
        self.beat_at = time.monotonic()

    def step(self, name: str, seconds: float) -> None:
        """How long a step of a batch took."""
        self.families["onecount_batch_seconds"].labels(name).observe(seconds)

    def batch(self, fold: Any, records: int) -> None:
        """A batch went through all its steps."""
        families = self.families
        families["onecount_transactions_total"].labels("committed").inc()
        for key, count in fold.counted.items():
            match key:
                case ("accepted" | "duplicate" as outcome, platform, kind):
                    families["onecount_events_total"].labels(platform, kind, outcome).inc(count)
                case ("rejected", reason):
                    families["onecount_rejected_total"].labels(reason).inc(count)
                case ("conversion", platform, status):
                    families["onecount_conversions_total"].labels(platform, status).inc(count)
                case (name,):
                    families[_PLAIN[name]].inc(count)

    def session(self, state: str, detail: str) -> None:
        """A session ended in doubt; a new one begins."""
        self.families["onecount_transactions_total"].labels("doubt").inc()
        self._opened({})
        _log.warning("session ended, beginning anew", role=self.role, worker=self.worker, why=detail)

    def policy(self, policy: Any) -> None:
        """The policy that this worker judges by."""
        self.policy_version = policy.versions[-1].number
        self.families["onecount_policy_version"].set(self.policy_version)

    def owned(self, session: Any) -> None:
        """Which partitions are open, and once a second how far behind they are."""
        self._opened({partition: owned.mode.value for partition, owned in session.owned.items()})
        now = time.monotonic()
        if now - self.looked_at < 1:
            return
        self.looked_at = now
        self.families["onecount_lag_records"].set(session.lag_records())
        stream_ms = session.stage.slowest_stream_ms()
        if stream_ms > 0:
            self.families["onecount_watermark_delay_seconds"].set(time.time() - stream_ms / 1000)

    def _opened(self, opened: dict[int, str]) -> None:
        if opened == self.open:
            return
        for partition, mode in opened.items():
            if self.open.get(partition) is None:
                self.families["onecount_reopenings_total"].labels(mode).inc()
        if opened.keys() != self.open.keys():
            _log.info("partitions", role=self.role, worker=self.worker, owned=sorted(opened))
        self.open = opened
        self.families["onecount_ready"].set(int(bool(opened)))

    def serve(self, port: int) -> int:
        """Answers /metrics, /live, /ready and /info on `port` (0: the system picks one); the port."""
        server = make_server("0.0.0.0", port, self._answer, WSGIServer, _Quiet)
        Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return server.server_port

    def _answer(self, environ: Any, start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return make_wsgi_app(self.registry)(environ, start_response)
        live = time.monotonic() - self.beat_at < LIVE_S
        healthy = {"/live": live, "/ready": live and bool(self.open), "/info": True}.get(path)
        status = "404 Not Found" if healthy is None else "200 OK" if healthy else "503 Service Unavailable"
        info = {
            "version": __version__, "role": self.role, "worker": self.worker, "policy_version": self.policy_version,
            "partitions": {str(partition): mode for partition, mode in sorted(self.open.items())},
        }  # fmt: skip
        start_response(status, [("Content-Type", "application/json")])
        return [orjson.dumps(info)]


_PLAIN = {
    "noise": "onecount_noise_total",
    "late": "onecount_late_events_total",
    "corrected": "onecount_corrections_total",
    "rekeyed": "onecount_rekeyed_total",
    "rows": "onecount_rows_total",
}


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are not worth a log line."""
