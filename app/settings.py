"""Settings: environment variables (ONECOUNT_*) over defaults, frozen, checked before the first poll, printed redacted."""

import socket
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Everything a process of onecount can be told. Lists are comma-separated."""

    model_config = SettingsConfigDict(env_prefix="ONECOUNT_", frozen=True, extra="ignore")

    bootstrap: str = Field("localhost:9092", description="Kafka brokers, host:port, comma-separated")
    kafka: dict[str, str] = Field(
        repr=False,
        default_factory=dict,
        description='further librdkafka properties as JSON, e.g. {"security.protocol": "SSL"}',
    )
    kafka_password: SecretStr | None = Field(None, description="sasl.password, kept out of every print")
    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"), description="redis:// or rediss://, may hold user and password"
    )
    policy: Path = Field(Path("deploy/policy.yaml"), description="the policy file")

    events_topics: Annotated[tuple[str, ...], NoDecode] = Field(
        ("ads.events",), description="the raw topics; all with the same partition count"
    )
    dlq_topic: str = "ads.events.dlq"
    rekeyed_topic: str = "onecount.rekeyed"
    deltas_topic: str = "onecount.deltas"
    policy_topic: str = "onecount.policy"
    attributed_topic: str = "conversions.attributed"
    counts_topic: str = "conversions.counts"
    partitions: int = Field(
        4, ge=1, le=4096, description="of the raw topics, for `topics create`; never changed afterwards"
    )
    replication: int = Field(1, ge=1, le=9, description="of every topic, for `topics create`")

    namespace: str = Field(
        "",
        pattern="^[a-z0-9_-]{0,32}$",
        description="begins all Redis keys, so that several deployments can share one Redis",
    )
    counter_group: str = "onecount.counter"
    aggregator_group: str = "onecount.aggregator"
    worker_id: str = Field(
        default_factory=socket.gethostname,
        description="names this host's workers; stable over restarts, unique over hosts",
    )

    commit_interval_ms: int = Field(200, ge=1, le=5000, description="a batch is closed after this long ...")
    max_batch_events: int = Field(50_000, ge=1, le=500_000, description="... or at this many events ...")
    max_batch_bytes: int = Field(64 * 2**20, ge=2**20, le=2**30, description="... or at this many bytes")
    session_timeout_ms: int = Field(20_000, ge=6_000, le=300_000)
    transaction_timeout_ms: int = Field(12_000, ge=2_000, le=60_000, description="below session_timeout_ms")
    request_timeout_ms: int = Field(
        10_000, ge=1_000, le=60_000, description="the longest wait for one Kafka or Redis answer"
    )
    static_membership: bool = Field(False, description="group.instance.id = the worker's id")
    group_protocol: str = Field("classic", pattern="^(classic|consumer)$")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="the first worker's port for /metrics, the next ones count up; unset: none"
    )

    @field_validator("events_topics", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

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
            self.rekeyed_topic,
            self.deltas_topic,
            self.policy_topic,
            self.attributed_topic,
            self.counts_topic,
        ]
        if len({*own, *self.events_topics}) != len(own) + len(self.events_topics):
            raise ValueError("every topic needs a name of its own")
        if self.counter_group == self.aggregator_group:
            raise ValueError("counter_group and aggregator_group must differ")
        return self

    def input_topics(self) -> tuple[str, ...]:
        """What a counter reads: the raw topics and the re-keyed events, the leading topic first."""
        return (*self.events_topics, self.rekeyed_topic)

    def tag(self, stage: str) -> str:
        """The first part of a stage's Redis hash tags: one letter, after the namespace if there is one."""
        return f"{self.namespace}.{stage}" if self.namespace else stage

    def client(self, **properties: object) -> dict[str, object]:
        """librdkafka properties: the brokers, the deployment's own ones, then `properties`."""
        secret = {"sasl.password": self.kafka_password.get_secret_value()} if self.kafka_password else {}
        return {"bootstrap.servers": self.bootstrap, **self.kafka, **secret, **properties}


@lru_cache(maxsize=1)
def from_environment() -> Settings:
    """The process's settings; raises pydantic's `ValidationError`, which names the variable at fault."""
    return Settings()
