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
from app.observe.dead_letters import DeadLetterRatio

_KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
LIVE_S = 60.0  # without a beat for this long the loop hangs
_log = structlog.get_logger()


class Metrics:
    """What a worker's loop tells of itself. One instance a process."""

    def __init__(self, role: str, worker: str, dead_letter_ratio_limit: float = 1.0) -> None:
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
        self.dead_letters = DeadLetterRatio(dead_letter_ratio_limit)
        self.families["onecount_dead_letter_ratio_limit"].set(dead_letter_ratio_limit)
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
        self.dead_letters.add(
            judged=sum(count for key, count in fold.counted.items() if key[0] in ("accepted", "duplicate", "rejected")),
            refused=sum(count for key, count in fold.counted.items() if key[0] == "rejected"),
        )
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
        self._opened({}, {})
        _log.warning("session ended, beginning anew", role=self.role, worker=self.worker, why=detail)

    def policy(self, policy: Any) -> None:
        """The policy that this worker judges by."""
        self.policy_version = policy.versions[-1].number
        self.families["onecount_policy_version"].set(self.policy_version)

    def owned(self, session: Any) -> None:
        """Which partitions are open, and once a second how far behind they are."""
        self._discarded(
            {
                partition: owned.discarded
                for partition, owned in session.owned.items()
                if owned.discarded is not None and partition not in self.open
            }
        )
        self._opened(
            {partition: owned.mode.value for partition, owned in session.owned.items()},
            {partition: owned.opened_as.value for partition, owned in session.owned.items()},
        )
        now = time.monotonic()
        if now - self.looked_at < 1:
            return
        self.looked_at = now
        self.families["onecount_lag_records"].set(session.lag_records())
        self._look_at_dead_letters()
        stream_ms = session.stage.slowest_stream_ms()
        if stream_ms > 0:
            self.families["onecount_watermark_delay_seconds"].set(time.time() - stream_ms / 1000)

    def _discarded(self, found: dict[int, Any]) -> None:
        """Says whose state was found to be of an older release, or damaged, and is rebuilt."""
        older = {partition: why.version for partition, why in found.items() if hasattr(why, "version")}
        damaged = {partition: str(why) for partition, why in found.items() if partition not in older}
        if older:
            _log.info(
                "state of an older release, rebuilding it", role=self.role, worker=self.worker, partitions=sorted(older), versions=sorted(set(older.values()))
            )  # fmt: skip
        if damaged:
            _log.warning(
                "damaged state, rebuilding it", role=self.role, worker=self.worker, partitions=sorted(damaged), why=damaged[min(damaged)]
            )  # fmt: skip

    def _look_at_dead_letters(self) -> None:
        letters = self.dead_letters
        if letters.changed():
            log = _log.warning if letters.raised else _log.info
            log(
                "too many dead letters" if letters.raised else "few dead letters again",
                role=self.role, worker=self.worker, ratio=round(letters.ratio(), 4), limit=letters.limit,
                judged=letters.judged, refused=letters.refused,
            )  # fmt: skip
        self.families["onecount_dead_letter_ratio"].set(letters.ratio())

    def _opened(self, opened: dict[int, str], causes: dict[int, str]) -> None:
        """Counts and logs what changed: `opened` is each partition's mode now, `causes` the one it was opened with."""
        if opened == self.open:
            return
        fresh = opened.keys() - self.open.keys()
        for partition in fresh:
            self.families["onecount_reopenings_total"].labels(causes[partition]).inc()
        if opened.keys() != self.open.keys():
            behind = {
                name: found
                for cause, name in (("replay", "replaying"), ("rebuild", "rebuilding"))
                if (found := sorted(partition for partition in fresh if causes[partition] == cause))
            }
            _log.info("partitions", role=self.role, worker=self.worker, owned=sorted(opened), **behind)
        rebuilt = sorted(
            partition
            for partition, mode in opened.items()
            if mode == "live" and causes[partition] == "rebuild" and self.open.get(partition) != "live"
        )
        if rebuilt:
            _log.info("rebuilt", role=self.role, worker=self.worker, partitions=rebuilt)
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
