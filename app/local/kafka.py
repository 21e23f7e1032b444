"""Apache Kafka (KRaft) from its jars, as child processes."""

import base64
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from app.local.processes import HOST, PROJECT_ROOT, ChildProcess, LocalServiceError, NotInstalledError, pick_ports

START_TIMEOUT_S = 60.0  # a start takes about 4 s; the rest is for a machine that is busy with something else
STOP_TIMEOUT_S = 15.0  # a clean stop takes about 0.5 s, but waits for minutes once the controllers have no majority
METADATA_TIMEOUT_S = 1.0

BROKER_SETTINGS = {
    "auto.create.topics.enable": "false",
    # Topics hold events with old timestamps; the broker must not delete them by age.
    "log.retention.ms": "-1",
    # Few partitions: the broker opens all of them before the first group or transaction is served.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    # A group starts when its first member comes, and tests may use short session timeouts.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    # A dead producer's transaction is aborted a second after its timeout, not up to ten.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # After kill -9 the controller lets a broker return only when its old session has run out.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # The default, 128 MiB, is a quarter of the small heap.
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
    "num.network.threads": "2",
    "num.io.threads": "4",
}

_LOG4J2 = """\
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = FILE
appender.file.type = File
appender.file.name = FILE
appender.file.fileName = {path}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c{{1}}: %m%n
"""


@dataclass
class _Broker:
    node_id: int
    folder: Path
    port: int
    controller_port: int
    between_port: int  # used where clients are told another one than `port`
    child: ChildProcess
    advertised_port: int | None = None  # where clients are told to find it, if that is not `port`
    secured: dict[str, str] = field(default_factory=dict)  # addresses of further listeners, by name

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"


class LocalKafka:
    """A running cluster. Brokers are numbered from 0; made by `local_kafka`."""

    def __init__(
        self,
        brokers: int,
        data_dir: Path,
        heap: str,
        start_timeout_s: float,
        overrides: dict[str, object],
        advertise: Sequence[int] = (),
        listeners: Mapping[str, str] | None = None,
    ) -> None:
        self._start_timeout_s = start_timeout_s
        listeners = listeners or {}
        ports = pick_ports((3 + len(listeners)) * brokers)
        self._brokers = []
        for node_id in range(brokers):
            folder = data_dir / f"broker-{node_id}"
            (folder / "tmp").mkdir(parents=True, exist_ok=True)
            child = ChildProcess(f"Kafka broker {node_id}", _java_command(folder, heap), folder / "output.log")
            self._brokers.append(_Broker(node_id, folder, *ports[3 * node_id : 3 * node_id + 3], child))
        for broker, port in zip(self._brokers, advertise, strict=False):
            broker.advertised_port = port
        further = iter(ports[3 * brokers :])
        for broker in self._brokers:
            broker.secured = {name: f"{HOST}:{next(further)}" for name in listeners}
            _write_settings(broker, self._brokers, listeners, overrides)

    @property
    def bootstrap(self) -> str:
        """The brokers' addresses for `bootstrap.servers`, e.g. "127.0.0.1:21345,127.0.0.1:23456"."""
        return ",".join(broker.address for broker in self._brokers)

    def bootstrap_of(self, listener: str) -> str:
        """The brokers' addresses at one of the `listeners` that `local_kafka` was given."""
        return ",".join(broker.secured[listener] for broker in self._brokers)

    @property
    def ports(self) -> list[int]:
        """The brokers' own ports, in their order: where a proxy finds them."""
        return [broker.port for broker in self._brokers]

    @property
    def pids(self) -> list[int]:
        """Process ids of the brokers that run, in their order."""
        return [broker.child.pid for broker in self._brokers if broker.child.is_running]

    @property
    def log_paths(self) -> list[Path]:
        """The brokers' log files, in their order."""
        return [broker.log_path for broker in self._brokers]

    def start(self, broker: int = 0) -> None:
        """Start a stopped or killed broker again, on its port and with its data; returns when it answers.

        LocalServiceError if it runs already, ends by itself or does not answer in time.
        """
        self._brokers[broker].child.start()
        self._wait_until_answers(self._brokers[broker])

    def stop(self, broker: int = 0, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut a broker down cleanly; kill it if that takes longer than `timeout_s` seconds."""
        self._brokers[broker].child.stop(timeout_s)

    def kill(self, broker: int = 0) -> None:
        """End a broker at once, as `kill -9` does."""
        self._brokers[broker].child.kill()

    def start_all(self) -> None:
        """Format what is not formatted yet, start every broker, return when all answer. Errors: as for `start`."""
        _format_storage([broker for broker in self._brokers if not (broker.folder / "data/meta.properties").exists()])
        for broker in self._brokers:
            broker.child.start()
        for broker in self._brokers:
            self._wait_until_answers(broker)

    def stop_all(self) -> None:
        """Shut every broker down cleanly, all at the same time."""
        for broker in self._brokers:
            broker.child.terminate()
        for broker in self._brokers:
            broker.child.stop(STOP_TIMEOUT_S)

    def kill_all(self) -> None:
        """End every broker at once."""
        for broker in self._brokers:
            broker.child.kill()

    def _wait_until_answers(self, broker: _Broker) -> None:
        """Until the broker, asked itself, lists itself among the live brokers."""
        deadline_s = time.monotonic() + self._start_timeout_s
        # Asked where it tells clients its own address, so that a proxy before it need not be there yet.
        address = broker.address if broker.advertised_port is None else f"{HOST}:{broker.between_port}"
        # Its complaints while nobody listens yet are expected, hence log_level 0.
        client = AdminClient(
            {
                "bootstrap.servers": address,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
                "log_level": 0,
            }
        )

        def answers() -> bool:
            try:
                return broker.node_id in client.list_topics(timeout=METADATA_TIMEOUT_S).brokers
            except KafkaException:
                return False

        broker.child.wait_until(answers, deadline_s, logs=(broker.log_path,))


@contextmanager
def local_kafka(
    brokers: int = 1,
    data_dir: Path | str | None = None,
    *,
    heap: str | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    advertise: Sequence[int] = (),
    listeners: Mapping[str, str] | None = None,
    **overrides: object,
) -> Iterator[LocalKafka]:
    """Run Apache Kafka on 127.0.0.1 while the `with` block runs; it has started when the block is entered.

    brokers: how many; 1 or 2 have one controller (broker 0), 3 and more have one in each broker.
    data_dir: kept, and continued when given again; without it a temporary folder, removed at the end.
    heap: each broker's largest heap in Java's notation ("1g"); else the environment's KAFKA_HEAP, else 512m.
    start_timeout_s: seconds each start may take.
    advertise: ports under which clients are told to find the brokers, one a broker: those of proxies that a test puts
    before them. The brokers themselves go on to meet each other without it.
    listeners: further listeners for clients and their security protocols, e.g. {"SCRAM": "SASL_SSL"}, on ports of their own
    (`LocalKafka.bootstrap_of`); certificates and mechanisms are overrides: `listener.name.scram.ssl.keystore.location`.
    overrides: broker settings, with _ for the dots: log_segment_bytes=1048576.

    Topics are never made by themselves. Raises NotInstalledError when Java or the jars are missing, LocalServiceError
    (with the end of the broker's log) when a broker does not start.
    """
    if brokers < 1:
        raise ValueError(f"brokers must be 1 or more, not {brokers}")
    with ExitStack() as stack:
        if data_dir is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onecount-kafka-")))
        else:
            folder = Path(data_dir).resolve()
        heap = heap or os.environ.get("KAFKA_HEAP", "512m")
        kafka = LocalKafka(brokers, folder, heap, start_timeout_s, overrides, advertise, listeners)
        stack.callback(kafka.kill_all if data_dir is None else kafka.stop_all)
        kafka.start_all()
        yield kafka


def kafka_version() -> str:
    """The version that deploy/kafka/pom.xml names. NotInstalledError where there is no source tree."""
    pom = PROJECT_ROOT / "deploy/kafka/pom.xml"
    version = re.search(r"<kafka\.version>(.+?)</", pom.read_text()) if pom.exists() else None
    if version is None:
        raise NotInstalledError(f"{pom} names no Kafka version; in a source tree run: make setup")
    return version[1]


def tool_command(main_class: str) -> list[str]:
    """The command that runs one of Kafka's tools, named by its class, as its bin/kafka-*.sh does. Errors: as `local_kafka`."""
    return [
        _java(),
        *("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"),
        *("-cp", _class_path(), main_class),
    ]


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if found is None:
        raise NotInstalledError("no java program in JAVA_HOME or PATH; run: make setup")
    return found


def _class_path() -> str:
    """Kafka's jars: those in the folder ONECOUNT_KAFKA_LIBS, else those that deploy/setup.sh has fetched."""
    libs = Path(os.environ.get("ONECOUNT_KAFKA_LIBS") or PROJECT_ROOT / f".cache/kafka-{kafka_version()}/libs")
    if not any(libs.glob("kafka_*.jar")):
        raise NotInstalledError(f"no Kafka jars in {libs}; run: make setup")
    return f"{libs}/*"


def _java_command(folder: Path, heap: str) -> list[str]:
    return [
        _java(),
        f"-Xmx{heap}",
        "-XX:+UseSerialGC",  # starts faster than G1 and suits a small heap
        "-XX:+ExitOnOutOfMemoryError",  # a broker that lives on without memory only confuses
        "-XX:-UsePerfData",  # this and tmpdir: a killed broker leaves nothing in /tmp
        f"-Djava.io.tmpdir={folder / 'tmp'}",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
        "-cp",
        _class_path(),
        "kafka.Kafka",
        str(folder / "server.properties"),
    ]


def _write_settings(
    broker: _Broker, brokers: list[_Broker], protocols: Mapping[str, str], overrides: dict[str, object]
) -> None:
    """server.properties and log4j2.properties. Anew at each start, since ports change; the data does not name them."""
    controllers = brokers if len(brokers) >= 3 else brokers[:1]
    replicas = min(3, len(brokers))
    listeners = {"PLAINTEXT": broker.address, **broker.secured}
    advertised = dict(listeners)
    protocols = dict.fromkeys(("CONTROLLER", "PLAINTEXT", "BETWEEN"), "PLAINTEXT") | dict(protocols)
    if broker.advertised_port is not None:
        listeners["BETWEEN"] = advertised["BETWEEN"] = f"{HOST}:{broker.between_port}"
        advertised["PLAINTEXT"] = f"{HOST}:{broker.advertised_port}"
        overrides = {"inter.broker.listener.name": "BETWEEN", **overrides}
    if broker in controllers:
        listeners["CONTROLLER"] = f"{HOST}:{broker.controller_port}"
    settings = {
        "node.id": broker.node_id,
        "process.roles": "broker,controller" if broker in controllers else "broker",
        "controller.quorum.voters": ",".join(f"{each.node_id}@{HOST}:{each.controller_port}" for each in controllers),
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "listeners": ",".join(f"{name}://{address}" for name, address in listeners.items()),
        "advertised.listeners": ",".join(f"{name}://{address}" for name, address in advertised.items()),
        "log.dirs": broker.folder / "data",
        "default.replication.factor": replicas,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": max(1, replicas - 1),
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": max(1, replicas - 1),
        **BROKER_SETTINGS,
        **{name.replace("_", "."): value for name, value in overrides.items()},
    }
    lines = [f"{name}={str(value).lower() if isinstance(value, bool) else value}\n" for name, value in settings.items()]
    (broker.folder / "server.properties").write_text("".join(lines))
    (broker.folder / "log4j2.properties").write_text(_LOG4J2.format(path=broker.log_path))


def _format_storage(brokers: list[_Broker]) -> None:
    """Format the brokers' empty data folders for one new cluster, side by side: each costs a JVM's start (1 s)."""
    cluster_id = (
        "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
    )  # Java takes a leading - for an option
    tool = [*tool_command("kafka.tools.StorageTool"), "format", "--cluster-id", cluster_id, "--config"]
    running = [
        subprocess.Popen(
            [*tool, str(broker.folder / "server.properties")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for broker in brokers
    ]
    results = [(process.communicate()[0], process.returncode) for process in running]
    for output, exit_code in results:
        if exit_code != 0:
            raise LocalServiceError(f"Kafka's StorageTool failed (exit code {exit_code}):\n{output}")
