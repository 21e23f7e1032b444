"""A Redis Cluster of redis-server child processes."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.local.processes import HOST, LocalServiceError, pick_ports
from app.local.redis_server import FOR_STATE, PING_TIMEOUT_S, START_TIMEOUT_S, LocalRedis

SLOTS = 16_384
NODE_TIMEOUT_MS = 2_000  # a dead master's replica takes over after some 1.5 times this
HEALTHY_TIMEOUT_S = 30.0  # a new cluster needs 2 to 4 s until all nodes agree
MOVE_TIMEOUT_MS = 1_000
_KEYS_A_MOVE = 10
_POLL_INTERVAL_S = 0.05


class LocalRedisCluster:
    """A running cluster; made by `local_redis_cluster`. Nodes are numbered from 0, the first masters before the first replicas."""

    def __init__(self, data_dir: Path, masters: int, replicas: int, start_timeout_s: float, config: dict[str, object]):
        self._first_masters = masters
        count = masters + replicas
        ports = pick_ports(2 * count)
        self.nodes = [
            LocalRedis(
                data_dir / f"node-{number}",
                start_timeout_s,
                {**config, "cluster-port": bus_port, **({"tls-port": port} if config.get("port") == 0 else {})},
            )
            for number, (bus_port, port) in enumerate(zip(ports[:count], ports[count:], strict=True))
        ]

    @property
    def url(self) -> str:
        """Names all nodes, as ONECOUNT_REDIS_URL may: "redis://127.0.0.1:21345,127.0.0.1:23456/0"."""
        first, *others = (node.url for node in self.nodes)
        scheme, _, rest = first.partition("://")
        host, _, path = rest.partition("/")
        return f"{scheme}://{','.join([host, *(urlsplit(other).netloc for other in others)])}/{path}"

    def start_all(self) -> None:
        """Starts every node, and makes a cluster of them if they are none yet; returns when it is healthy.

        LocalServiceError if it does not become so in time.
        """
        for node in self.nodes:
            node.start()
        if int(self.ask(0, "CLUSTER INFO")["cluster_known_nodes"]) == 1:
            self._form()
        self.wait_until_healthy()

    def stop_all(self) -> None:
        """Shuts every node down cleanly."""
        for node in self.nodes:
            node.stop()

    def kill_all(self) -> None:
        """Ends every node at once."""
        for node in self.nodes:
            node.kill()

    def start(self, node: int) -> None:
        """Starts a killed node again; a former master whose replica took over comes back as its replica."""
        self.nodes[node].start()

    def kill(self, node: int) -> None:
        """Ends a node at once, as `kill -9` does."""
        self.nodes[node].kill()

    @property
    def masters(self) -> list[int]:
        """The nodes that hold slots, as the running ones agree on. LocalServiceError where they do not agree yet."""
        views = {frozenset(self._slot_holders(node)) for node in self._running()}
        if len(views) != 1:
            raise LocalServiceError(f"the nodes do not agree on their masters: {views}")
        return sorted(self._numbers()[port] for port in next(iter(views)))

    def master_of(self, slot: int) -> int:
        """The node that serves a hash slot, as the first running node sees it."""
        for first, last, (_, port, *_), *_ in self.ask(self._running()[0], "CLUSTER SLOTS"):
            if first <= slot <= last:
                return self._numbers()[port]
        raise LocalServiceError(f"no node serves slot {slot}")

    def replica_of(self, master: int) -> int:
        """A running replica of a running master. LocalServiceError if there is none."""
        for number in self._running():
            info = self._replication(number)
            if info["role"] == "slave" and info["master_port"] == self.nodes[master].port:
                return number
        raise LocalServiceError(f"node {master} has no running replica")

    def cut(self, replica: int) -> None:
        """Cuts a replica's link to its master, so that it misses what is written from now on. It stays in the cluster,
        and takes over if the master dies. A password that the master does not know keeps it from linking up again;
        `mend` takes that back.
        """
        self.ask(replica, "CONFIG SET", "masterauth", "unknown")
        self.ask(replica, "CLIENT KILL", "TYPE", "master")

    def mend(self, replica: int) -> None:
        """Undoes `cut`."""
        self.ask(replica, "CONFIG SET", "masterauth", "")

    def move_slot(self, slot: int, to: int) -> None:
        """Moves a hash slot and its keys to another master, a few keys at a time, as `redis-cli --cluster reshard` does."""
        source = self.master_of(slot)
        ids = {node: self.ask(node, "CLUSTER MYID").decode() for node in self.masters}
        self.ask(to, "CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        self.ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", ids[to])
        while keys := self.ask(source, "CLUSTER GETKEYSINSLOT", slot, _KEYS_A_MOVE):
            self.ask(source, "MIGRATE", HOST, self.nodes[to].port, "", 0, MOVE_TIMEOUT_MS, "KEYS", *keys)
        for node in (to, source, *(other for other in ids if other not in (to, source))):
            self.ask(node, "CLUSTER SETSLOT", slot, "NODE", ids[to])

    def ask(self, node: int, command: str, *arguments: object) -> Any:
        """One node's own answer to a command, as redis-py decodes it."""
        with self.client(node) as client:
            return client.execute_command(command, *arguments)

    def client(self, node: int) -> redis.Redis:
        """A client of one node that follows no redirection and repeats nothing."""
        return redis.Redis.from_url(self.nodes[node].url, socket_timeout=PING_TIMEOUT_S, retry=Retry(NoBackoff(), 0))

    def wait_until_healthy(self, timeout_s: float = HEALTHY_TIMEOUT_S) -> None:
        """Returns when all running nodes know each other, all slots are served and all replicas linked up.

        LocalServiceError after `timeout_s` seconds.
        """
        self._wait_until(self._is_healthy, "the cluster is not healthy", timeout_s)

    def wait_until_replaced(self, master: int, timeout_s: float = HEALTHY_TIMEOUT_S) -> None:
        """Returns when the running nodes agree that others serve a killed master's slots. LocalServiceError after `timeout_s` seconds."""

        def is_replaced() -> bool:
            infos = [self.ask(node, "CLUSTER INFO") for node in self._running()]
            return all(info["cluster_state"] == "ok" for info in infos) and master not in self.masters

        self._wait_until(is_replaced, f"no replica took over from node {master}", timeout_s)

    def _form(self) -> None:
        """What `redis-cli --cluster create` does: slots, then meet, then replicas."""
        masters = self._first_masters
        bounds = [SLOTS * number // masters for number in range(masters + 1)]
        for number, node in enumerate(self.nodes):
            self.ask(number, "CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number < masters:
                self.ask(number, "CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            if number > 0:
                self.ask(0, "CLUSTER MEET", HOST, node.port, self._bus_port(number))
        self._wait_until(self._all_know_all, "the nodes did not meet", HEALTHY_TIMEOUT_S)
        for number in range(masters, len(self.nodes)):
            master = self.ask(number % masters, "CLUSTER MYID").decode()
            self.ask(number, "CLUSTER REPLICATE", master)

    def _bus_port(self, node: int) -> int:
        return int(self.ask(node, "CONFIG GET", "cluster-port")["cluster-port"])

    def _all_know_all(self) -> bool:
        views = [self.ask(node, "CLUSTER NODES") for node in self._running()]
        return all(len(view) == len(self.nodes) and "handshake" not in str(view) for view in views)

    def _is_healthy(self) -> bool:
        running = self._running()
        infos = [self.ask(node, "CLUSTER INFO") for node in running]
        if not all(info["cluster_state"] == "ok" and info["cluster_slots_ok"] == str(SLOTS) for info in infos):
            return False
        masters = self.masters
        links = [self._replication(node) for node in running if node not in masters]
        return all(link["role"] == "slave" and link["master_link_status"] == "up" for link in links)

    def _replication(self, node: int) -> dict[str, Any]:
        with self.client(node) as client:
            return client.info("replication")

    def _slot_holders(self, node: int) -> set[int]:
        return {int(entry[2][1]) for entry in self.ask(node, "CLUSTER SLOTS")}

    def _numbers(self) -> dict[int, int]:
        return {node.port: number for number, node in enumerate(self.nodes)}

    def _running(self) -> list[int]:
        return [number for number, node in enumerate(self.nodes) if _is_running(node)]

    def _wait_until(self, holds: Any, failure: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                if holds():
                    return
                why = ""
            except (redis.RedisError, LocalServiceError) as error:  # a node that is busy, or does not agree yet
                why = f": {error}"
            if time.monotonic() > deadline_s:
                raise LocalServiceError(f"{failure} within {timeout_s} s{why}")
            time.sleep(_POLL_INTERVAL_S)


def _is_running(node: LocalRedis) -> bool:
    try:
        return node.pid > 0
    except LocalServiceError:
        return False


@contextmanager
def local_redis_cluster(
    masters: int = 3,
    replicas: int = 3,
    data_dir: Path | str | None = None,
    *,
    node_timeout_ms: int = NODE_TIMEOUT_MS,
    start_timeout_s: float = START_TIMEOUT_S,
    **config: object,
) -> Iterator[LocalRedisCluster]:
    """Run a Redis Cluster on 127.0.0.1 while the `with` block runs; it is healthy when the block is entered.

    masters, replicas: how many; a dead master is replaced only where the rest of 3 or more masters has a majority.
    data_dir: kept, and loaded when given again (on new ports the nodes find each other no more); else a temporary folder.
    node_timeout_ms: after this long without an answer a node counts as dead.
    start_timeout_s, config: as for `local_redis`; with TLS only (port=0) each node gets a tls_port of its own.

    Raises NotInstalledError when redis-server is missing, LocalServiceError when a node does not start.
    """
    settings: dict[str, object] = {
        "appendonly": True,
        **FOR_STATE,
        "cluster-enabled": True,
        "cluster-node-timeout": node_timeout_ms,
        "repl-diskless-sync-delay": 0,
        **{name.replace("_", "-"): value for name, value in config.items()},
    }
    with ExitStack() as stack:
        if data_dir is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onecount-redis-cluster-")))
        else:
            folder = Path(data_dir).resolve()
        cluster = LocalRedisCluster(folder, masters, replicas, start_timeout_s, settings)
        stack.callback(cluster.kill_all if data_dir is None else cluster.stop_all)
        cluster.start_all()
        yield cluster
