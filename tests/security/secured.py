"""A deployment in which every process has the identity, the secrets and the rights of its own role."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from confluent_kafka.admin import AclBinding, AdminClient

from app.verify.logs import fix_spans, read_log
from tests.integration.deployment import Deployment, deployed
from tests.integration.deployment import names_of as settings_of
from tests.security.acls import grant, least_privilege, revoke

PRINCIPALS = tuple(
    f"onecount-{role}"
    for role in (
        "counter",
        "aggregator",
        "matcher",
        "producer",
        "importer",
        "operator",
        "page",
        "gateway",
        "desk",
        "crm",
    )
)
MARK = "s3cr3t"  # begins every secret, so that it is known where one is printed
ADMIN = "admin"  # of Redis
KEY_PASSWORD = f"{MARK}-key"


def password_of(name: str) -> str:
    """The password of a Kafka principal or a Redis user, with the signs that mean something in a URL."""
    return f"{MARK}-{name}-/#@:%?&="


@dataclass(frozen=True)
class Secured:
    """Where the secured services are. `admin` may do everything."""

    folder: Path
    ca: Path
    addresses: dict[str, str]  # by listener; who comes by PLAINTEXT may do everything
    redis_url: str  # without a user
    redis_nodes: tuple[str, ...]  # the URL of each of its servers
    token_url: str
    admin: AdminClient

    def kafka_of(self, listener: str, principal: str) -> dict[str, str]:
        """ONECOUNT_KAFKA of a principal, as docs/security.md has it; no secret is in it."""
        properties = {"ssl.ca.location": str(self.ca)}
        if listener == "MTLS":
            certificate = {"ssl.certificate.location": f"{principal}.pem", "ssl.key.location": f"{principal}.key"}
            files = {name: str(self.folder / file) for name, file in certificate.items()}
            return properties | {"security.protocol": "SSL"} | files
        properties |= {"security.protocol": "SASL_SSL"}
        if listener == "SCRAM":
            return properties | {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": principal}
        return properties | {
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": principal,
            "sasl.oauthbearer.token.endpoint.url": self.token_url,
        }

    def redis_of(self, user: str) -> str:
        """ONECOUNT_REDIS_URL of a user, without its password."""
        return self.redis_url.replace("rediss://", f"rediss://{user}@")

    @contextmanager
    def redis_admins(self) -> Iterator[list[redis.Redis]]:
        """Clients of each server that may do everything; no worker has their user."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(redis.Redis.from_url(url, username=ADMIN, password=password_of(ADMIN)))
                for url in self.redis_nodes
            ]

    def denied_by_redis(self) -> list[str]:
        """The commands and keys that Redis refused since the last call."""
        with self.redis_admins() as admins:
            found = [str(entry["object"]) for admin in admins for entry in admin.acl_log()]
            for admin in admins:
                admin.acl_log_reset()
        return [each for each in found if not each.startswith("client")]  # redis-py's greeting, which nobody needs


@dataclass
class SecuredDeployment:
    """`onecount` is the deployment; what runs within `acting_as` is done by that principal."""

    secured: Secured
    listener: str
    onecount: Deployment
    rights: list[AclBinding]

    @contextmanager
    def acting_as(self, principal: str, **environment: str) -> Iterator[None]:
        """Processes that are started meanwhile have this principal's properties, and its secrets as files."""
        before = self.onecount.environment
        user = principal if principal in ("onecount-operator", "onecount-gateway") else "onecount"
        self.onecount.environment = before | {
            "ONECOUNT_SECRETS_DIR": str(self._secrets(principal, user)),
            "ONECOUNT_KAFKA": json.dumps(self.secured.kafka_of(self.listener, principal)),
            "ONECOUNT_REDIS_URL": self.secured.redis_of(user),
            **environment,
        }
        try:
            yield
        finally:
            self.onecount.environment = before

    def start(self, role: str, **environment: str) -> subprocess.Popen[bytes]:
        """A worker or a desk, as its own principal."""
        with self.acting_as(f"onecount-{role}", **environment):
            return self.onecount.desk() if role == "desk" else self.onecount.start(role)

    def run(self, principal: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command, as the principal runs it."""
        with self.acting_as(principal, **environment):
            return subprocess.run(
                [sys.executable, "-m", "app", *arguments],
                env=os.environ | self.onecount.environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

    def log(self, role: str) -> str:
        """All that a worker has said."""
        return (self.onecount.folder / f"{role}-0.log").read_text()

    @contextmanager
    def without(self, principal: str, right: str) -> Iterator[None]:
        """Takes a right away for the time of the block: "deltas READ", the resource's name without the deployment's."""
        name = self.onecount.settings.worker_id
        taken = [
            each
            for each in self.rights
            if each.principal == f"User:{principal}"
            and f"{each.name.removeprefix(f'{name}.')} {each.operation.name}" == right
        ]
        assert taken, f"{principal} has no right {right!r}"
        for each in taken:
            revoke(self.secured.admin, each)
        try:
            yield
        finally:
            grant(self.secured.admin, taken)

    def wait_for(self, role: str, text: str) -> None:
        """Until a worker has warned of something with this text in it."""
        warned = {"warning", "error"}
        self.onecount.wait_until(
            lambda: any(text in each.get("why", "") and each["level"] in warned for each in self.onecount.events(role)),
            f"the {role} warns of {text}",
        )

    def published(self, role: str) -> int:
        """How many records of a role's output are committed."""
        settings = self.onecount.settings
        topics = {
            "counter": settings.attributed_topic,
            "aggregator": settings.counts_topic,
            "desk": settings.leads_topic,
        }
        # a transaction that was refused in its midst leaves aborted records
        return sum(1 for _ in read_log(settings, fix_spans(settings, [topics[role]])))

    def _secrets(self, principal: str, user: str) -> Path:
        folder = self.onecount.folder / f"secrets-{principal}"
        folder.mkdir(exist_ok=True)
        kafka = {"SCRAM": "kafka_password", "OAUTH": "kafka_client_secret", "MTLS": "kafka_key_password"}
        secret = KEY_PASSWORD if self.listener == "MTLS" else password_of(principal)
        (folder / f"onecount_{kafka[self.listener]}").write_text(f"{secret}\n")
        (folder / "onecount_redis_password").write_text(f"{password_of(user)}\n")
        return folder


def names_of(name: str) -> dict[str, str]:
    """The topics and groups of a deployment, as the ONECOUNT_* variables that deploy/kafka-acls.sh reads."""
    return {f"ONECOUNT_{key.upper()}": value for key, value in settings_of(name).items()}


@contextmanager
def secured_deployment(
    secured: Secured, listener: str, name: str, folder: Path, **more: object
) -> Iterator[SecuredDeployment]:
    """Topics made by the operator, and to everyone just what deploy/kafka-acls.sh gives; its processes end with the block.

    The test itself acts as the operator, too: what it verifies, it reads with the operator's rights.
    """
    rights = least_privilege(names_of(name), folder)
    grant(secured.admin, rights)
    with secured.redis_admins() as admins:
        for admin in admins:
            if admin.role()[0] in (b"master", "master"):
                admin.flushall()
            admin.acl_log_reset()
    settings = {
        "kafka": json.dumps(secured.kafka_of("SCRAM", "onecount-operator")),
        "kafka_password": password_of("onecount-operator"),
        "request_timeout_ms": 5_000,
    } | more
    # the keys of Redis are named as docs/security.md has them, without a namespace; and a scenario counts alone
    with deployed(secured.addresses["SCRAM"], "redis://nowhere", name, folder, namespace="", **settings) as onecount:
        for variable in ("ONECOUNT_KAFKA", "ONECOUNT_KAFKA_PASSWORD", "ONECOUNT_REDIS_URL"):
            del onecount.environment[variable]
        onecount.environment["ONECOUNT_BOOTSTRAP"] = secured.addresses[listener]
        yield SecuredDeployment(secured, listener, onecount, rights)
