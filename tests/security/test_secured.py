"""Counting where Kafka and Redis ask who comes and allow just what deploy/kafka-acls.sh and deploy/redis.acl say; what a
worker says when that is too little; and that no secret is told on the way.
"""

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from confluent_kafka import Producer

from app.local.kafka import tool_command
from tests.gateway.harness import Gateway, conversion, taken
from tests.integration.deployment import POLICY
from tests.security.acls import given, least_privilege, run_script
from tests.security.secured import MARK, Secured, SecuredDeployment, names_of, password_of, secured_deployment

ROOT = Path(__file__).resolve().parents[2]
A_PART_OF = {"cluster|slots": "cluster"}  # what is allowed is a part of the command


@pytest.fixture
def scram(secured: Secured, topic_prefix: str, tmp_path: Path) -> Iterator[SecuredDeployment]:
    with secured_deployment(secured, "SCRAM", topic_prefix, tmp_path) as deployment:
        yield deployment


def assert_no_secret(*texts: str) -> None:
    """None of them holds any secret, each of which begins with the same mark."""
    for text in texts:
        assert MARK not in text


def assert_the_page_shows_counts(scram: SecuredDeployment) -> None:
    """As its own principal, which may read the outputs and nothing else."""
    with scram.acting_as("onecount-page"):
        page, url = scram.onecount.serve()
    with urlopen(f"{url.rstrip('/')}/events/day", timeout=30) as stream:
        shown = (json.loads(line[5:]) for line in stream if line.startswith(b"data:"))
        assert any(snapshot.get("series") for snapshot in shown), scram.onecount.logs()
    assert scram.onecount.stop(page) == 0


def told_of_leads(scram: SecuredDeployment) -> list[CompletedProcess[str]]:
    """A desk as its own principal, which a CRM tells of a lead as another one, and the revenue check as the operator."""
    desk = scram.start("desk")
    scram.onecount.wait_until(lambda: scram.published("desk"), "leads are published")
    waiting = "/leads?state=waiting&limit=1"
    scram.onecount.wait_until(lambda: scram.onecount.shown(waiting)["rows"], "a lead waits")
    (lead,) = scram.onecount.shown(waiting)["rows"]
    told = {name: lead[name] for name in ("advertiser_id", "user_id", "conversion_name")}
    properties = scram.secured.kafka_of("SCRAM", "onecount-crm") | {"sasl.password": password_of("onecount-crm")}
    producer = Producer(properties | {"bootstrap.servers": scram.secured.addresses["SCRAM"]})
    event = told | {"kind": "contacted", "event_time": time.time_ns() // 1_000_000}
    producer.produce(scram.onecount.settings.followups_topic, json.dumps(event), lead["user_id"])
    assert producer.flush(30) == 0
    asked = "&".join(f"{name}={quote(value)}" for name, value in told.items())
    scram.onecount.wait_until(
        lambda: [row["state"] for row in scram.onecount.shown(f"/leads?{asked}")["rows"]] == ["answered"],
        "it is answered",
    )
    said = scram.run("onecount-operator", "reconcile", "--to-date")
    assert scram.onecount.stop(desk) == 0
    assert {event["level"] for event in scram.onecount.events("desk")} == {"info"}, scram.log("desk")
    return [said]


@pytest.mark.timeout(180)
def test_counting_is_exact_with_just_the_rights_that_are_documented(scram: SecuredDeployment) -> None:
    workers = [scram.start("counter"), scram.start("aggregator")]
    said = [
        scram.run("onecount-producer", "generate", "--count", "4000", "--seed", "3"),
        scram.run("onecount-operator", "check"),
        scram.run("onecount-operator", "verify"),
        scram.run("onecount-operator", "replay", "--from", "2020-01-01", "--to", "2100-01-01"),
    ]
    assert [command.returncode for command in said] == [0, 0, 0, 0], f"{said}\n{scram.onecount.logs()}"
    assert [scram.onecount.stop(worker) for worker in workers] == [0, 0]
    said += [scram.run("onecount-operator", "rebuild"), scram.run("onecount-operator", "topics", "check")]
    assert [command.returncode for command in said] == [0] * 6, said
    # what was lost is rebuilt from the log, and compared with what is published: rights that nothing else needs
    workers = [scram.start("counter"), scram.start("aggregator")]
    scram.onecount.assert_exact()
    assert_the_page_shows_counts(scram)
    said += told_of_leads(scram)
    said += [
        scram.run("onecount-operator", "forget", "nobody", "--advertiser", "shop"),
        scram.run("onecount-operator", "dlq", "list"),
        scram.run("onecount-operator", "dlq", "drop", "--limit", "1", "--yes"),
        scram.run("onecount-operator", "dlq", "retry", "--limit", "2", "--force", "--yes"),
    ]
    assert [command.returncode for command in said[-5:]] == [0] * 5, said
    assert said[-1].stdout.splitlines()[-1].startswith("2 sent again")
    scram.onecount.assert_exact()
    assert [scram.onecount.stop(worker) for worker in workers] == [0, 0]
    said.append(scram.run("onecount-operator", "reset", "--yes"))
    assert said[-1].returncode == 0, said[-1]
    assert said[-1].stdout.count("deleted the group") == 2
    assert scram.secured.denied_by_redis() == []
    assert_no_secret(
        *(command.stdout + command.stderr for command in said),
        *(scram.log(role) for role in ("counter", "aggregator", "desk")),
    )


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_a_redis_cluster_with_tls_and_users_counts_on_when_a_master_dies(
    clustered: Secured, topic_prefix: str, tmp_path: Path
) -> None:
    with secured_deployment(clustered, "SCRAM", topic_prefix, tmp_path) as scram:
        workers = [scram.start("counter"), scram.start("aggregator")]
        said = [
            scram.run("onecount-producer", "generate", "--count", "4000", "--seed", "3"),
            scram.run("onecount-operator", "check"),
        ]
        scram.onecount.assert_exact()
        assert clustered.denied_by_redis() == []
        with clustered.redis_admins() as admins:
            holding = [admin for admin in admins if admin.role()[0] in (b"master", "master") and admin.dbsize()]
            assert len(holding) > 1  # a partition's keys lie together, the partitions on several nodes
            os.kill(int(holding[0].info("server")["process_id"]), signal.SIGKILL)
        said += [
            scram.run("onecount-producer", "generate", "--count", "4000", "--seed", "4"),
            scram.run("onecount-operator", "verify"),
        ]
        assert [command.returncode for command in said] == [0] * 4, f"{said}\n{scram.onecount.logs()}"
        assert [scram.onecount.stop(worker) for worker in workers] == [0, 0]
        said += [scram.run("onecount-operator", "rebuild"), scram.run("onecount-operator", "reset", "--yes")]
        assert [command.returncode for command in said] == [0] * 6, said
        assert_no_secret(*(command.stdout + command.stderr for command in said), scram.log("counter"))


@pytest.mark.timeout(120)
@pytest.mark.faults
def test_an_importer_gets_along_with_its_rights(scram: SecuredDeployment) -> None:
    file = scram.onecount.folder / "leads.csv"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() - 60))
    columns = "Google Click ID,Conversion Name,Conversion Time,User ID"
    file.write_text(f"Parameters:TimeZone=+0000\n{columns}\nG-1,purchase,{when},u-1\n")
    command = ("import", str(file), "--map", "google_ads", "--advertiser", "shop")
    said = [scram.run("onecount-importer", *command, *more) for more in (("--dry-run",), ())]
    assert [done.returncode for done in said] == [0, 0], said
    assert re.search(r"events sent in this run[^0-9]*1\b", said[1].stdout), said[1]
    denied = scram.run("onecount-producer", *command, "--no-resume")
    assert denied.returncode == 2
    assert ".policy: Broker: Topic authorization failed" in denied.stderr
    assert "deploy/kafka-acls.sh" in denied.stderr
    assert_no_secret(*(done.stdout + done.stderr for done in (*said, denied)))


@pytest.mark.timeout(120)
@pytest.mark.faults
def test_the_gateway_gets_along_with_its_rights(scram: SecuredDeployment) -> None:
    with scram.acting_as("onecount-gateway"):
        gateway = Gateway(scram.onecount).ready()
    assert gateway.post([conversion(f"secured-{number}") for number in range(20)]).status_code == 202
    assert len(taken(scram.onecount, "secured")) == 20
    assert scram.secured.denied_by_redis() == []
    assert gateway.stop() == 0
    assert b"no rate limits" not in gateway.log.read_bytes()
    assert_no_secret(gateway.log.read_text())


@pytest.mark.timeout(180)
@pytest.mark.faults
def test_a_matcher_gets_along_with_its_rights(secured: Secured, topic_prefix: str, tmp_path: Path) -> None:
    policy = tmp_path / "clicks.yaml"
    policy.write_text(f"click_ids: {{park_for: 6d}}\n{POLICY.read_text()}")
    with secured_deployment(secured, "SCRAM", topic_prefix, tmp_path, policy=str(policy)) as scram:
        roles = ("counter", "aggregator", "matcher")
        workers = [scram.start(role) for role in roles]
        for seed in ("3", "4"):
            sent = scram.run("onecount-producer", "generate", "--count", "6000", "--seed", seed)
            assert sent.returncode == 0, sent.stderr
            report = scram.onecount.assert_exact()
            assert report.matched > 0
            if seed == "3":  # what was lost is rebuilt from the log
                assert [scram.onecount.stop(worker) for worker in workers] == [0] * 3
                assert scram.run("onecount-operator", "rebuild").returncode == 0
                workers = [scram.start(role) for role in roles]
        assert [scram.onecount.stop(worker) for worker in workers] == [0] * 3
        forgotten = scram.run("onecount-operator", "reset", "--yes")
        assert forgotten.stdout.count("deleted the group") == 3, forgotten
        assert scram.secured.denied_by_redis() == []
        assert_no_secret(*(scram.log(role) for role in roles))


@pytest.mark.timeout(120)
@pytest.mark.faults
def test_the_script_gives_those_rights_by_kafkas_own_command(
    secured: Secured, topic_prefix: str, tmp_path: Path
) -> None:
    """The other tests run it with a stand-in for kafka-acls, since each of its calls takes a second."""
    names = names_of(topic_prefix)
    command = tmp_path / "kafka-acls.sh"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(tool_command("org.apache.kafka.tools.AclCommand"))} "$@"\n')
    command.chmod(0o700)
    run_script(names, f"{command} --bootstrap-server {secured.addresses['PLAINTEXT']}")
    rights = given(secured.admin, topic_prefix)
    assert rights
    assert sorted(map(str, rights)) == sorted(map(str, set(least_privilege(names, tmp_path))))


@pytest.mark.timeout(120)
@pytest.mark.faults
@pytest.mark.parametrize("listener", ["OAUTH", "MTLS"])
def test_counting_with_tokens_and_with_client_certificates(
    secured: Secured, topic_prefix: str, tmp_path: Path, listener: str
) -> None:
    with secured_deployment(secured, listener, topic_prefix, tmp_path) as deployment:
        workers = [deployment.start("counter"), deployment.start("aggregator")]
        sent = deployment.run("onecount-producer", "generate", "--count", "1000", "--seed", "5")
        assert sent.returncode == 0, sent.stderr
        deployment.onecount.assert_exact()
        assert [deployment.onecount.stop(worker) for worker in workers] == [0, 0]
        assert_no_secret(sent.stdout + sent.stderr, deployment.onecount.logs())


@pytest.mark.parametrize(
    ("listener", "setting", "says"),
    [
        ("SCRAM", "KAFKA_PASSWORD", "invalid credentials"),
        pytest.param("OAUTH", "KAFKA_CLIENT_SECRET", "invalid_client", marks=pytest.mark.faults),
        pytest.param("MTLS", "KAFKA_KEY_PASSWORD", "ssl.key.location failed", marks=pytest.mark.faults),
        pytest.param("SCRAM", "REDIS_PASSWORD", "invalid username-password pair", marks=pytest.mark.faults),
    ],
)
def test_a_wrong_password_is_said_and_tried_again(
    secured: Secured, topic_prefix: str, tmp_path: Path, listener: str, setting: str, says: str
) -> None:
    wrong = {f"ONECOUNT_{setting}": f"{MARK}-wrong"}
    with secured_deployment(secured, listener, topic_prefix, tmp_path) as deployment:
        worker = deployment.start("counter", **wrong)
        checked = deployment.run("onecount-operator", "check", **wrong)
        assert checked.returncode == 1
        line = next(line for line in checked.stdout.splitlines() if line.startswith("bad"))
        assert says in line
        assert "are right" in line  # what to look at
        deployment.wait_for("counter", says)
        assert worker.poll() is None  # it waits for somebody to mend it
        assert_no_secret(checked.stdout + checked.stderr, deployment.log("counter"))
        # not even a traceback tells
        broken = deployment.run("onecount-operator", "check", ONECOUNT_POLICY="/")
        assert broken.returncode != 0
        assert_no_secret(broken.stdout + broken.stderr)


COUNTER_RIGHTS = [
    "events READ", "rekeyed READ", "rekeyed WRITE", "dlq WRITE", "deltas WRITE", "deltas READ", "attributed WRITE",
    "journeys WRITE", "models WRITE", "policy READ", "policy WRITE", "counter READ", "counter.read DESCRIBE", "counter- WRITE",
]  # fmt: skip
AGGREGATOR_RIGHTS = [
    "deltas READ",
    "counts WRITE",
    "policy READ",
    "aggregator READ",
    "counter.read DESCRIBE",
    "aggregator- WRITE",
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("role", "right"),
    [pytest.param(role, right, marks=pytest.mark.faults)
     for role, rights in (("counter", COUNTER_RIGHTS), ("aggregator", AGGREGATOR_RIGHTS)) for right in rights],
)  # fmt: skip
def test_a_missing_right_in_kafka_is_said_and_nothing_is_counted_until_it_is_given(
    scram: SecuredDeployment, role: str, right: str
) -> None:
    sent = scram.run("onecount-producer", "generate", "--count", "1000", "--seed", "7")
    assert sent.returncode == 0, sent.stderr
    with scram.without(f"onecount-{role}", right):
        workers = [scram.start(each) for each in ("counter", "aggregator")]
        scram.wait_for(role, "is missing: deploy/kafka-acls.sh")
        if right not in ("dlq WRITE", "rekeyed WRITE"):  # batches in which nothing is refused or re-keyed need neither
            assert scram.published(role) == 0
        assert all(worker.poll() is None for worker in workers)
    scram.onecount.assert_exact()
    assert [scram.onecount.stop(worker) for worker in workers] == [0, 0]


DESK_RIGHTS = [
    "journeys READ", "attributed READ", "dlq READ", "orders READ", "followups READ", "leads READ", "leads WRITE", "rollups WRITE",
    "return WRITE", "desk_dlq READ", "policy READ", "desk READ", "desk WRITE", "counter.read DESCRIBE",
]  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(180)
@pytest.mark.parametrize("right", DESK_RIGHTS)
def test_a_right_that_a_desk_misses_is_said_and_nothing_is_published_until_it_is_given(
    scram: SecuredDeployment, right: str
) -> None:
    sent = scram.run("onecount-producer", "generate", "--count", "1000", "--seed", "7")
    assert sent.returncode == 0, sent.stderr
    workers = [scram.start(each) for each in ("counter", "aggregator")]
    scram.onecount.assert_exact()
    with scram.without("onecount-desk", right):
        desk = scram.start("desk")
        scram.wait_for("desk", "is missing: deploy/kafka-acls.sh")
        assert scram.published("desk") == 0
        assert desk.poll() is None
    scram.onecount.wait_until(lambda: scram.published("desk"), "leads are published")
    assert [scram.onecount.stop(each) for each in (*workers, desk)] == [0, 0, 0]


@pytest.mark.faults
@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", ["hset", "info", "watch", "append"])
def test_a_missing_right_in_redis_is_said_and_nothing_is_counted_until_it_is_given(
    scram: SecuredDeployment, command: str
) -> None:
    sent = scram.run("onecount-producer", "generate", "--count", "1000", "--seed", "7")
    assert sent.returncode == 0, sent.stderr
    with scram.secured.redis_admins() as (admin,):
        admin.execute_command("ACL", "SETUSER", "onecount", f"-{command}")
        try:
            workers = [scram.start("counter"), scram.start("aggregator")]
            scram.wait_for("counter", "NOPERM")
            assert f"'{command}'" in scram.log("counter")
            assert "deploy/redis.acl" in scram.log("counter")
        finally:
            admin.execute_command("ACL", "SETUSER", "onecount", f"+{command}")
    scram.onecount.assert_exact()
    assert [scram.onecount.stop(worker) for worker in workers] == [0, 0]


def test_redis_allows_no_command_that_the_code_does_not_use() -> None:
    code = "".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    used = {name.lower() for name in re.findall(r'\(\s*"([A-Z]+)"', code)}
    for line in (ROOT / "deploy" / "redis.acl").read_text().splitlines()[1:]:
        allowed = {A_PART_OF.get(each, each) for each in re.findall(r"\+(\S+)", line)}
        assert allowed <= used, allowed - used


def test_redis_allows_workers_every_command_of_theirs() -> None:
    """Also those of what seldom happens, such as emptying a partition's state that is damaged or of another release."""
    rooms = ("attribution", "columns", "dedup", "engine", "matching", "windows")
    code = "".join(path.read_text() for room in rooms for path in (ROOT / "app" / room).rglob("*.py"))
    used = {name.lower() for name in re.findall(r'\(\s*"([A-Z]+)"', code)} - {"loading"}  # an error
    (line,) = (
        each for each in (ROOT / "deploy" / "redis.acl").read_text().splitlines() if each.startswith("user onecount ")
    )
    assert used <= {A_PART_OF.get(each, each) for each in re.findall(r"\+(\S+)", line)}
