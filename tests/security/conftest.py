"""A Kafka whose clients must prove who they are (SCRAM, OAUTHBEARER, mTLS) and are told what they may do, and a Redis with
TLS and users.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from app.local import local_kafka, local_redis, local_redis_cluster
from app.local.processes import pick_ports
from tests.security.certificates import Authority
from tests.security.secured import ADMIN, KEY_PASSWORD, PRINCIPALS, Secured, password_of
from tests.security.token_server import AUDIENCE, ISSUER, TokenServer, token_server

REDIS_USERS = Path(__file__).resolve().parents[2] / "deploy" / "redis.acl"
LISTENERS = {"SCRAM": "SASL_SSL", "OAUTH": "SASL_SSL", "MTLS": "SSL"}
_SECURITY = "org.apache.kafka.common.security"


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The one secured Kafka and Redis of this test run."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    for name in PRINCIPALS:
        authority.certify(name, KEY_PASSWORD)
    with (
        token_server(folder, {name: password_of(name) for name in PRINCIPALS}) as tokens,
        _kafka(authority, tokens) as kafka,
        _redis(authority) as redis_url,
    ):
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
        _add_scram_users(admin)
        addresses = {"PLAINTEXT": kafka.bootstrap} | {name: kafka.bootstrap_of(name) for name in LISTENERS}
        yield Secured(folder, authority.ca, addresses, redis_url, (redis_url,), tokens.url, admin)


@contextmanager
def _kafka(authority: Authority, tokens: TokenServer):  # type: ignore[no-untyped-def]
    keystore = authority.keystore("broker")
    settings: dict[str, object] = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # who comes by the listener without TLS: the broker itself, and the test's setup
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{_SECURITY}.scram.ScramLoginModule required;",
        "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.oauth.oauthbearer.sasl.jaas.config": f"{_SECURITY}.oauthbearer.OAuthBearerLoginModule required;",
        "listener.name.oauth.oauthbearer.sasl.server.callback.handler.class": (
            f"{_SECURITY}.oauthbearer.OAuthBearerValidatorCallbackHandler"
        ),
        "listener.name.oauth.sasl.oauthbearer.jwks.endpoint.url": tokens.jwks.as_uri(),
        "listener.name.oauth.sasl.oauthbearer.expected.audience": AUDIENCE,
        "listener.name.oauth.sasl.oauthbearer.expected.issuer": ISSUER,
        "listener.name.mtls.ssl.client.auth": "required",
        "listener.name.mtls.ssl.principal.mapping.rules": "RULE:^CN=(.*?)$/$1/,DEFAULT",
    }
    for name in LISTENERS:
        prefix = f"listener.name.{name.lower()}.ssl"
        settings |= {f"{prefix}.keystore.type": "PEM", f"{prefix}.keystore.location": keystore}
        settings |= {f"{prefix}.truststore.type": "PEM", f"{prefix}.truststore.location": authority.ca}
    with pytest.MonkeyPatch.context() as environment:
        # a broker reads keys only from where its command line allows it to
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={tokens.jwks.as_uri()}"
        environment.setenv("JAVA_TOOL_OPTIONS", f"{os.environ.get('JAVA_TOOL_OPTIONS', '')} {allowed}".strip())
        with local_kafka(listeners=LISTENERS, **settings) as kafka:
            yield kafka


@pytest.fixture
def clustered(secured: Secured) -> Iterator[Secured]:
    """The same with a Redis Cluster that speaks nothing but TLS, on its bus and to its replicas too."""
    certificate, key = secured.folder / "redis.pem", secured.folder / "redis.key"
    users = redis_users(
        secured.folder / "nodes.acl", "user default on nopass ~* &* +@all\n"
    )  # until the nodes have met
    with local_redis_cluster(
        **_tls(certificate, key, secured.ca),
        tls_cluster=True,
        tls_replication=True,
        aclfile=users,
        masteruser=ADMIN,
        masterauth=password_of(ADMIN),
    ) as cluster:
        nodes = tuple(node.url for node in cluster.nodes)
        found = dataclasses.replace(secured, redis_url=cluster.url, redis_nodes=nodes)
        with found.redis_admins() as admins:
            for admin in admins:
                admin.acl_setuser("default", enabled=False)
        yield found


@contextmanager
def _redis(authority: Authority) -> Iterator[str]:
    users = redis_users(authority.folder / "users.acl")
    with local_redis(
        **_tls(*authority.certify("redis"), authority.ca), tls_port=pick_ports(1)[0], aclfile=users
    ) as server:
        yield server.url


def _tls(certificate: Path, key: Path, ca: Path) -> dict[str, Any]:
    files = {"tls_cert_file": certificate, "tls_key_file": key, "tls_ca_cert_file": ca}
    return {"port": 0, "tls_auth_clients": "no"} | files


def redis_users(path: Path, more: str = "") -> Path:
    """deploy/redis.acl with the tests' passwords and an admin, and what `more` says after it."""
    users = REDIS_USERS.read_text()
    for placeholder, name in {
        "WORKERS": "onecount",
        "OPERATORS": "onecount-operator",
        "GATEWAYS": "onecount-gateway",
    }.items():
        digest = hashlib.sha256(password_of(name).encode()).hexdigest()
        users = users.replace(f"SHA256_OF_THE_{placeholder}_PASSWORD", digest)
    if more:
        users = users.replace("user default off\n", "")
    path.write_text(f"{users}user {ADMIN} on >{password_of(ADMIN)} ~* &* +@all\n{more}")
    return path


def _add_scram_users(admin: AdminClient) -> None:
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    users = [UserScramCredentialUpsertion(name, credential, password_of(name).encode()) for name in PRINCIPALS]
    for future in admin.alter_user_scram_credentials(users).values():
        future.result(10)
