"""What the doors share while the gateway runs: its file, the policy, the ways into Kafka, the limiter, and what it tells of itself."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException

from app.engine.clients import KafkaClients, explained
from app.engine.policy_topic import recorded_policy
from app.engine.session import SessionEnded
from app.gateway.admission import Record, Refused, Rules, rules_of
from app.gateway.broker import Broker
from app.gateway.config import Config
from app.gateway.limiter import Limiter
from app.gateway.load import Load
from app.gateway.metrics import Metrics
from app.observe.logs import KafkaLog
from app.policy.load import PolicyError
from app.policy.model import Policy
from app.settings import Settings

LOOK_S: Final = 10.0  # between two looks at the recorded policy, as workers look
OPEN_S: Final = 5.0  # how long connections wait for a gateway that does not know the policy yet
LINGER_MS: Final = 5
PIXEL_PATIENCE_MS: Final = 300_000  # nobody waits for a pixel, so it may wait for Kafka ...
PIXEL_LINGER_MS: Final = 50  # ... and for others
_log = structlog.get_logger()


class Gateway:
    """Made before the event loop, opened and closed on it. `give_up`: ends the process, should it be unable to go on."""

    def __init__(self, settings: Settings, config: Config, metrics: Metrics, give_up: Callable[[], None]) -> None:
        self.settings, self.config, self.metrics = settings, config, metrics
        self.limiter = Limiter(settings)
        self.load = Load(settings.gateway_max_requests, settings.gateway_max_held_bytes)
        self._give_up = give_up
        self.broker: Broker
        self.pixels: Broker
        self._clients = KafkaClients(settings, KafkaLog(metrics.kafka_line).logger)
        self._policy: Policy | None = None
        self._rules: Rules | None = None
        self._known = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Reads the policy, for a moment at most: without it nothing is taken, but it is told that nothing is."""
        self._looking = asyncio.create_task(self._look())
        self._looking.add_done_callback(self._looked)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._known.wait(), OPEN_S)

    def rules(self) -> Rules | None:
        """What events are judged by, once it is known."""
        return self._rules

    def why_unfit(self) -> str:
        """Why events would not be taken now; empty if they would."""
        if self._rules is None:
            return "the recorded policy is not read yet: Kafka does not answer"
        return "Kafka does not acknowledge" if self.broker.is_down else ""

    def count(self, path: str, judged: Sequence[Record | Refused], taken: Sequence[bool], seconds: float) -> None:
        """Tells the metrics what became of a request's events, and how long Kafka took."""
        refused = [each.rejection.reason for each in judged if isinstance(each, Refused)]
        self.metrics.events(path, accepted=sum(taken), unavailable=len(taken) - sum(taken), refused=refused)
        if taken:
            self.metrics.acknowledged(seconds)

    async def close(self, timeout_s: float) -> None:
        """Sends what waits, and says what could not be sent."""
        if self._looking is not None:
            self._looking.cancel()
        if self._policy is not None:
            left = await self.broker.close(timeout_s) + await self.pixels.close(timeout_s)
            if left:
                _log.error("stopped without Kafka's acknowledgement", events=left)
        await asyncio.to_thread(self.limiter.close)

    def _looked(self, looking: asyncio.Task[None]) -> None:
        if not looking.cancelled():
            _log.error("the look at the policy ended by itself", exc_info=looking.exception())
            self._give_up()

    async def _look(self) -> None:
        while True:
            try:
                policy = await asyncio.to_thread(recorded_policy, self.settings, self._clients)
                self._take_up(policy)
            except (KafkaException, SessionEnded) as error:
                _log.warning("the policy can't be read", why=explained(error))
            except PolicyError as error:
                _log.error("the policy's file does not fit what is recorded", why=str(error))
            await asyncio.sleep(LOOK_S if self._rules is not None else 1.0)

    def _take_up(self, policy: Policy) -> None:
        if policy == self._policy:
            return
        if self._policy is None:
            self._open_brokers(policy)
        settings = self.settings
        secret, salt = settings.gateway_secret, settings.gateway_user_salt
        self._policy = policy
        self.metrics.policy(policy.versions[-1].number)
        self._rules = rules_of(
            policy,
            self.config.sites,
            secret.get_secret_value() if secret else "",
            salt.get_secret_value() if salt else "",
        )
        self._known.set()
        _log.info("policy", versions=len(policy.versions), platforms=sorted(policy.platforms()))

    def _open_brokers(self, policy: Policy) -> None:
        settings = self.settings
        topic = settings.gateway_topic or settings.events_topics[0]

        def broker(patience_ms: int, linger_ms: int) -> Broker:
            logger: Any = KafkaLog(self.metrics.kafka_line).logger("producer")
            room = settings.gateway_max_waiting
            return Broker(settings, topic, policy.bounds.partitioner, room, patience_ms, linger_ms, logger)

        self.broker = broker(settings.gateway_ack_timeout_ms, LINGER_MS)
        self.pixels = broker(PIXEL_PATIENCE_MS, PIXEL_LINGER_MS)
        self.metrics.watch(self.broker, self.pixels, self.limiter, lambda: not self.why_unfit())
