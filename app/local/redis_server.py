"""redis-server as a child process."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.local.processes import HOST, ChildProcess, NotInstalledError, pick_ports

START_TIMEOUT_S = 30.0  # an empty one starts in some 30 ms; one with data first loads it
STOP_TIMEOUT_S = 30.0
PING_TIMEOUT_S = 1.0
# For a Redis that holds state, as docs/deploy.md has it.
FOR_STATE: dict[str, object] = {
    "appendfsync": "everysec",
    "rdbcompression": False,  # binary tables hardly compress, and a rewrite of the file spends most of its CPU on it
    "auto-aof-rewrite-percentage": 200,  # a rewrite writes all that is held; disk is cheaper
    "auto-aof-rewrite-min-size": "1gb",  # a small file is loaded in a second or two, however often records were rewritten
    "save": "",
    "maxmemory-policy": "noeviction",
}


class LocalRedis:
    """A running Redis; made by `local_redis`."""

    def __init__(self, data_dir: Path, start_timeout_s: float, config: dict[str, object]) -> None:
        self._authority = config.get("tls-ca-cert-file") if config.get("port") == 0 else None
        self.port = int(str(config["tls-port"])) if self._authority else pick_ports(1)[0]
        self.log_path = data_dir / "redis.log"
        self._start_timeout_s = start_timeout_s
        data_dir.mkdir(parents=True, exist_ok=True)
        settings = {"port": self.port, "bind": HOST, "dir": data_dir, "logfile": self.log_path, **config}
        argv = [_redis_server()]
        for name, value in settings.items():
            argv += [f"--{name.replace('_', '-')}", _as_text(value)]
        self._child = ChildProcess("Redis", argv, data_dir / "output.log")

    @property
    def url(self) -> str:
        """For redis.Redis.from_url, e.g. "redis://127.0.0.1:21345/0"; with TLS where there is no other port (port=0)."""
        if self._authority:
            return f"rediss://{HOST}:{self.port}/0?ssl_ca_certs={self._authority}"
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id. LocalServiceError if it is not running."""
        return self._child.pid

    def start(self) -> None:
        """Start a stopped or killed Redis again, on its port and with its data; returns when that is loaded.

        LocalServiceError if it runs already, ends by itself or does not answer in time.
        """
        self._child.start()
        deadline_s = time.monotonic() + self._start_timeout_s
        # Retries off: redis-py would otherwise wait by itself between tries, for longer than a start takes.
        with redis.Redis.from_url(self.url, socket_timeout=PING_TIMEOUT_S, retry=Retry(NoBackoff(), 0)) as client:

            def answers() -> bool:
                try:
                    return client.ping()
                except redis.AuthenticationError:  # it has no user for us, but it is there
                    return True
                except (redis.ConnectionError, redis.TimeoutError):  # not there yet, or still loading
                    return False

            self._child.wait_until(answers, deadline_s, logs=(self.log_path,))

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut down cleanly (the append-only file is synced); kill it if that takes longer than `timeout_s` seconds."""
        self._child.stop(timeout_s)

    def kill(self) -> None:
        """End at once, as `kill -9` does: up to one second of writes may be missing afterwards (appendfsync)."""
        self._child.kill()


@contextmanager
def local_redis(
    data_dir: Path | str | None = None,
    appendonly: bool = True,
    maxmemory: int | str | None = None,
    *,
    start_timeout_s: float = START_TIMEOUT_S,
    **config: object,
) -> Iterator[LocalRedis]:
    """Run redis-server on 127.0.0.1 while the `with` block runs; it answers when the block is entered.

    data_dir: kept, and loaded when given again; without it a temporary folder, removed at the end.
    appendonly: keep an append-only file, synced every second.
    maxmemory: bytes, or Redis's notation ("256mb"); None is no limit. Nothing is ever evicted: a full Redis refuses.
    start_timeout_s: seconds each start may take.
    config: any other setting, with _ for the hyphens: hash_max_listpack_entries=64. TLS only: port=0 with tls_port and tls_ca_cert_file.

    Raises NotInstalledError when redis-server is missing, LocalServiceError (with the end of its log) when it does
    not start.
    """
    settings: dict[str, object] = {
        "appendonly": appendonly,
        **FOR_STATE,
        "maxmemory": 0 if maxmemory is None else maxmemory,
        **{name.replace("_", "-"): value for name, value in config.items()},
    }
    with ExitStack() as stack:
        if data_dir is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onecount-redis-")))
        else:
            folder = Path(data_dir).resolve()
        server = LocalRedis(folder, start_timeout_s, settings)
        stack.callback(server.kill if data_dir is None else server.stop)
        server.start()
        yield server


def _redis_server() -> str:
    found = shutil.which("redis-server")
    if found is None:
        raise NotInstalledError("no redis-server program in PATH; run: make setup")
    return found


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
