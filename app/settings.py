"""Settings: environment variables (ONECOUNT_*) over secret files over defaults, frozen, checked before the first poll,
printed redacted.
"""

import json
import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote, urlsplit

from pydantic import DirectoryPath, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LOG_LEVEL: Final = 5  # of librdkafka: notices; below them it tells how it ends a client
_SECRET_PROPERTIES: Final = {  # setting -> librdkafka's property
    "kafka_password": "sasl.password",
    "kafka_key_password": "ssl.key.password",
    "kafka_client_secret": "sasl.oauthbearer.client.secret",
}


class Settings(BaseSettings):
    """Everything a process of onecount can be told. Lists are comma-separated."""

    # an error that repeated its input would print what was meant to stay secret
    model_config = SettingsConfigDict(env_prefix="ONECOUNT_", frozen=True, extra="ignore", hide_input_in_errors=True)

    secrets_dir: DirectoryPath | None = Field(
        None, description="a folder with a file a setting, e.g. onecount_kafka_password; the environment goes before"
    )

    bootstrap: str = Field("localhost:9092", description="Kafka brokers, host:port, comma-separated")
    kafka: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict,
        description='further librdkafka properties as JSON, e.g. {"security.protocol": "SSL"}; only their names are printed',
    )
    kafka_password: SecretStr | None = Field(None, description="sasl.password")
    kafka_key_password: SecretStr | None = Field(None, description="ssl.key.password, of the client certificate's key")
    kafka_client_secret: SecretStr | None = Field(None, description="sasl.oauthbearer.client.secret")
    schema_registry: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict,
        description="where the schemas of Avro and Protobuf events are, as JSON: "
        '{"url": "https://schemas:8081"} and further properties of Confluent\'s client; only their names are printed',
    )
    redis_password: SecretStr | None = Field(None, description="joins redis_url, in place of a password in it")
    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        validate_default=True,
        description="redis:// or rediss:// (TLS), may hold user and password; a CA: ?ssl_ca_certs=/path/to/ca.pem; of a Redis "
        "Cluster (recognised by itself) several nodes, as any may be down: redis://one:6379,two:6379,three:6379",
    )
    policy: Path = Field(Path("deploy/policy.yaml"), description="the policy file")

    events_topics: Annotated[tuple[str, ...], NoDecode] = Field(
        ("ads.events",), description="the raw topics; all with the same partition count"
    )
    dlq_topic: str = "ads.events.dlq"
    rekeyed_topic: str = "onecount.rekeyed"
    deltas_topic: str = "onecount.deltas"
    clicks_topic: str = Field("onecount.clicks", description="whose click is whose, where the policy has click_ids")
    policy_topic: str = "onecount.policy"
    attributed_topic: str = "conversions.attributed"
    counts_topic: str = "conversions.counts"
    journeys_topic: str = "conversions.journeys"
    models_topic: str = "conversions.models"
    rollups_topic: str = "conversions.rollups"
    leads_topic: str = "leads"
    overdue_topic: str = "leads.overdue"
    followups_topic: str = Field("leads.followups", description="what a CRM tells the desk of leads")
    orders_topic: str = Field("revenue.orders", description="what was paid, as the shop's books have it")
    reported_topic: str = Field("platforms.reported", description="what platforms claim, by campaign and day")
    spend_topic: str = Field("spend", description="what campaigns cost, by day")
    reconciliation_topic: str = "conversions.reconciliation"
    return_topic: str = "conversions.return"
    desk_dlq_topic: str = Field("desk.dlq", description="orders, claims and spend that were refused")
    partitions: int = Field(
        4, ge=1, le=4096, description="of the raw topics, for `topics create`; never changed afterwards"
    )
    replication: int = Field(1, ge=1, le=9, description="of every topic, for `topics create`")

    namespace: str = Field(
        "",
        pattern="^[a-z0-9_-]{0,64}$",
        description="begins all Redis keys, so that several deployments can share one Redis",
    )
    counter_group: str = "onecount.counter"
    aggregator_group: str = "onecount.aggregator"
    matcher_group: str = "onecount.matcher"
    desk_group: str = "onecount.desk"
    worker_id: str = Field(
        default_factory=socket.gethostname,
        description="names this host's workers; stable over restarts, unique over hosts",
    )

    commit_interval_ms: int = Field(
        200, ge=1, le=5000, description="a batch is closed so long after the one before ..."
    )
    max_batch_events: int = Field(50_000, ge=1, le=500_000, description="... or at this many events ...")
    max_batch_bytes: int = Field(64 * 2**20, ge=2**20, le=2**30, description="... or at this many bytes")
    session_timeout_ms: int = Field(7_000, ge=6_000, le=300_000, description="how long a dead worker's partitions wait")
    transaction_timeout_ms: int = Field(5_000, ge=2_000, le=60_000, description="below session_timeout_ms")
    request_timeout_ms: int = Field(
        10_000, ge=1_000, le=60_000, description="the longest wait for one Kafka or Redis answer"
    )
    static_membership: bool = Field(False, description="group.instance.id = the worker's id")
    group_protocol: str = Field("classic", pattern="^(classic|consumer)$")
    pin_workers: bool = Field(False, description="each worker stays on one core, by its slot")
    dead_letter_ratio_limit: float = Field(
        0.05, ge=0, le=1, description="alarm where more of the last minute's events than this were refused, by worker"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="the first worker's port for /metrics, the next ones count up; unset: none"
    )
    page_host: str = Field("127.0.0.1", description="the address that `onecount serve` listens on; it has no login")
    page_port: int = Field(8420, ge=0, le=65535, description="its port; 0: any free one")
    page_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        ("localhost", "127.0.0.1", "[::1]"), description="the names in the browser's address that it answers to; *: any"
    )
    desk_host: str = Field("127.0.0.1", description="the address that `onecount desk` listens on; it has no login")
    desk_port: int = Field(8421, ge=0, le=65535, description="its port; 0: any free one")
    desk_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        ("localhost", "127.0.0.1", "[::1]"), description="the names in a request's address that it answers to; *: any"
    )
    page_max_rows: int = Field(
        200_000,
        ge=100,
        le=10_000_000,
        description="count rows that the page holds, some 600 bytes each; as many conversions",
    )

    gateway_host: str = Field("127.0.0.1", description="the address that `onecount gateway` listens on")
    gateway_port: int = Field(8430, ge=0, le=65535, description="its port; 0: any free one")
    gateway_share_port: bool = Field(False, description="several gateways of a host may listen on the same port")
    gateway_config: Path = Field(Path("deploy/gateway.yaml"), description="whom it takes events from, and how many")
    gateway_topic: str = Field("", description="the raw topic that it writes to; the first of events_topics if not set")
    gateway_secret: SecretStr | None = Field(
        None, min_length=32, description="signs pixels, makes the one-time ids of users who did not consent"
    )
    gateway_user_salt: SecretStr | None = Field(None, min_length=32, description="hashes user ids; never to be changed")
    gateway_max_body_bytes: int = Field(2**20, ge=2**12, le=2**26, description="a request's body, also once unpacked")
    gateway_max_events: int = Field(1_000, ge=1, le=10_000, description="events of one request")
    gateway_max_waiting: int = Field(20_000, ge=100, le=1_000_000, description="events that wait for Kafka; more: 503")
    gateway_max_requests: int = Field(2_000, ge=1, le=100_000, description="requests answered at once; more: 503")
    gateway_max_held_bytes: int = Field(2**26, ge=2**12, description="bytes of all their bodies; more: 503")
    gateway_ack_timeout_ms: int = Field(5_000, ge=500, le=60_000, description="longest wait for Kafka; then 503")
    gateway_read_timeout_ms: int = Field(10_000, ge=500, le=60_000, description="a request must be here within it")
    gateway_limiter_fails: str = Field(
        "open", pattern="^(open|closed)$", description="without Redis rate limits let everything in (open), or nothing"
    )

    @field_validator("events_topics", "page_hosts", "desk_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("kafka", "schema_registry", mode="before")
    @classmethod
    def _decode(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:  # its context would be printed in a traceback, and holds the text
            raise ValueError("no JSON object of strings") from None

    @field_validator("redis_url")
    @classmethod
    def _join_password(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            user, _, hosts = parts.netloc.rpartition("@")
            is_sound = parts.scheme in ("redis", "rediss", "unix")
            for host in hosts.split(","):
                _ = urlsplit(f"//{host}").port
        except ValueError:  # its text would tell a part of a password that holds / or #
            is_sound = False
        if not is_sound:
            raise ValueError("no URL like redis://user:password@host:6379/0; are the password's signs percent-encoded?")
        password = info.data.get("redis_password")
        if password is None:
            return url
        user = f"{user.partition(':')[0]}:{quote(password.get_secret_value(), safe='')}"
        return SecretStr(parts._replace(netloc=f"{user}@{hosts}").geturl())

    @property
    def is_eager(self) -> bool:
        """Whether each rebalance revokes everything. Static members of a classic group must: a cooperative rebalance takes two
        rounds, and one that comes back between them is given what it had, so that what it gave up stays without an owner.
        """
        return self.static_membership and self.group_protocol == "classic"

    @model_validator(mode="after")
    def _refuse_impossible(self) -> "Settings":
        if self.transaction_timeout_ms >= self.session_timeout_ms:
            raise ValueError(
                "transaction_timeout_ms must be below session_timeout_ms, or a paused worker's transaction outlives its ownership"
            )
        if not self.events_topics or len(set(self.events_topics)) != len(self.events_topics):
            raise ValueError("events_topics must name each raw topic once")
        own = [
            self.dlq_topic,
            self.handled_topic,
            self.rekeyed_topic,
            self.deltas_topic,
            self.clicks_topic,
            self.policy_topic,
            self.attributed_topic,
            self.counts_topic,
            self.journeys_topic,
            self.models_topic,
            *self.desk_inputs,
            *self.money_inputs,
            *self.desk_outputs,
        ]
        if len({*own, *self.events_topics}) != len(own) + len(self.events_topics):
            raise ValueError("every topic needs a name of its own")
        if self.gateway_max_held_bytes < self.gateway_max_body_bytes:
            raise ValueError("gateway_max_held_bytes must be at least gateway_max_body_bytes, or none is ever read")
        if self.gateway_topic and self.gateway_topic not in self.events_topics:
            raise ValueError("gateway_topic must be one of events_topics, or nobody counts what the gateway takes")
        if len({self.counter_group, self.aggregator_group, self.matcher_group, self.desk_group}) < 4:
            raise ValueError("counter_group, aggregator_group, matcher_group and desk_group must differ")
        return self

    @property
    def registry(self) -> dict[str, str]:
        """The properties of the schema registry's client, its secrets in clear."""
        return {name: value.get_secret_value() for name, value in self.schema_registry.items()}

    @property
    def handled_topic(self) -> str:
        """Which dead letters were sent again or dropped."""
        return f"{self.dlq_topic}.handled"

    @property
    def refused_followups_topic(self) -> str:
        """Which follow-ups were refused, and why."""
        return f"{self.followups_topic}.dlq"

    @property
    def desk_inputs(self) -> tuple[str, ...]:
        """What others tell the desk."""
        return (self.followups_topic,)

    @property
    def money_inputs(self) -> tuple[str, ...]:
        """What others tell the desk of money: upserts."""
        return (self.orders_topic, self.reported_topic, self.spend_topic)

    @property
    def desk_outputs(self) -> tuple[str, ...]:
        """What the desk publishes."""
        return (
            self.leads_topic,
            self.overdue_topic,
            self.refused_followups_topic,
            self.rollups_topic,
            self.reconciliation_topic,
            self.return_topic,
            self.desk_dlq_topic,
        )

    def group_of(self, role: str) -> str:
        """The consumer group of a stage."""
        return {"counter": self.counter_group, "aggregator": self.aggregator_group, "matcher": self.matcher_group}[role]

    def input_topics(self) -> tuple[str, ...]:
        """What a counter reads: the raw topics and the re-keyed events, the leading topic first."""
        return (*self.events_topics, self.rekeyed_topic)

    def tag(self, stage: str) -> str:
        """The first part of a stage's Redis hash tags: one letter, after the namespace if there is one."""
        return f"{self.namespace}.{stage}" if self.namespace else stage

    def client(self, **properties: object) -> dict[str, object]:
        """librdkafka properties: the brokers, the deployment's own ones, its secrets, then `properties`."""
        secrets = {name: getattr(self, setting) for setting, name in _SECRET_PROPERTIES.items()}
        own = {name: value.get_secret_value() for name, value in (self.kafka | secrets).items() if value is not None}
        return {"bootstrap.servers": self.bootstrap, "log_level": LOG_LEVEL, **own, **properties}


@lru_cache(maxsize=1)
def from_environment() -> Settings:
    """The process's settings, from ONECOUNT_* and from files in the folder ONECOUNT_SECRETS_DIR.

    Raises pydantic's `ValidationError`, which names the variable at fault.
    """
    folder = os.environ.get("ONECOUNT_SECRETS_DIR")
    return Settings(_secrets_dir=folder if folder and os.path.isdir(folder) else None)
