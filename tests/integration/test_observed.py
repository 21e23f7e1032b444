"""What operators see of a real run: a real Prometheus scrapes real workers under load and is asked everything that a panel or an
alarm asks, by the rules that are deployed; then Redis goes, and the workers say so and live on.
"""

import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Producer

from app.local import LocalRedis, local_redis
from app.local.processes import ChildProcess, pick_ports
from app.settings import Settings
from tests.conftest import Services
from tests.gateway.harness import Gateway, conversion
from tests.integration.deployment import POLICY, Deployment, deployed
from tests.promql import operands
from tests.unit.test_alarms import FOLDER, RULES
from tests.unit.test_dashboards import FOUR, panels

LOAD_S = 12.0
STANDS_STILL = 'ALERTS{alertname="OnecountStandsStill", alertstate="pending", stage=~"counter|aggregator|matcher"}'
CALM = {"metrics", "started", "partitions", "librdkafka"}  # what a healthy worker logs
# Grafana's variables as its own defaults fill them in; four scrapes are its shortest rate.
VARIABLES = [(r"\$__rate_interval", "4s"), (r"\$(job|stage|instance|platform)\b", ".*")]


class Prometheus:
    """Debian's Prometheus with the deployed rules, scraping each second. `targets`: the workers' ports by stage."""

    def __init__(self, targets: dict[str, list[int]], folder: Path) -> None:
        self.port = pick_ports(1)[0]
        config = folder / "prometheus.yml"
        workers = [
            {"targets": [f"127.0.0.1:{port}" for port in ports], "labels": {"stage": stage}}
            for stage, ports in targets.items()
        ]
        written = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(FOLDER / "alerts.yml")],
            "scrape_configs": [{"job_name": "onecount", "static_configs": workers}],
        }
        config.write_text(yaml.safe_dump(written))
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}"]
        self.child = ChildProcess(
            "Prometheus", [*command, f"--web.listen-address=127.0.0.1:{self.port}"], folder / "prometheus.log"
        )

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API; an invalid query fails with what Prometheus says of it."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def values(self, query: str) -> list[float]:
        """The numbers that an instant query gives."""
        return [float(series["value"][1]) for series in self.get("query", query=query)["result"]]

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=1):
                return True
        except OSError:
            return False


@contextmanager
def prometheus(targets: dict[str, list[int]], folder: Path) -> Iterator[Prometheus]:
    """A Prometheus, as long as the block runs."""
    running = Prometheus(targets, folder)
    running.child.start()
    try:
        running.child.wait_until(running.is_ready, time.monotonic() + 20)
        yield running
    finally:
        running.child.kill()


def filled_in(query: str) -> str:
    """A panel's query as Grafana would send it."""
    for variable, value in VARIABLES:
        query = re.sub(variable, value, query)
    return query


def status(port: int, path: str) -> int:
    """What a worker answers to a probe; 0 where it does not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture
def own_redis() -> Iterator[LocalRedis]:
    """A Redis that the test may stop."""
    with local_redis(maxmemory="256mb") as server:
        yield server


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_every_question_of_a_panel_and_an_alarm_is_answered_of_a_real_run(
    services: Services, own_redis: LocalRedis, topic_prefix: str, tmp_path: Path
) -> None:
    first, second, third, fourth, fifth, sixth = pick_ports(6)
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"click_ids: {{park_for: 6d, known_for: 40d}}\n{POLICY.read_text()}")
    settings = {"request_timeout_ms": 3_000, "policy": str(policy)}
    with deployed(services.bootstrap, own_redis.url, topic_prefix, tmp_path, **settings) as deployment:
        # the port is that of the slot, so the second counter is told one less
        deployment.start("counter", ONECOUNT_METRICS_PORT=str(first))
        deployment.start("counter", slot=1, ONECOUNT_METRICS_PORT=str(second - 1))
        deployment.start("aggregator", ONECOUNT_METRICS_PORT=str(third))
        deployment.start("matcher", ONECOUNT_METRICS_PORT=str(sixth))
        desk = deployment.desk(ONECOUNT_METRICS_PORT=str(fourth))
        tell_nonsense(deployment.settings)
        gateway = Gateway(deployment, metrics_port=fifth).ready()
        ports = {"counter": [first, second], "aggregator": [third], "matcher": [sixth]}
        ports |= {"desk": [fourth], "gateway": [fifth]}
        every = [first, second, third, sixth]
        with prometheus(ports, tmp_path) as asked, deployment.load(rate=700):
            deployment.wait_until(
                lambda: {status(port, "/ready") for port in (*every, fourth)} == {200}, "all workers are ready"
            )
            until_s = time.monotonic() + LOAD_S
            deployment.wait_until(lambda: send_by(gateway) or time.monotonic() > until_s, "some load")
            assert_panels_are_answered(asked)
            assert_alarms_are_answered_and_silent(asked)
            assert_logs_are_calm(deployment)
            assert deployment.stop(desk) == 0
            assert gateway.stop() == 0
            own_redis.kill()
            deployment.wait_until(lambda: {status(port, "/ready") for port in every} == {503}, "no worker is ready")
            assert {status(port, "/live") for port in every} == {200}
            deployment.wait_until(
                lambda: asked.values(f"count(count by (stage) ({STANDS_STILL}))") == [3],
                "Prometheus sees that no stage counts",
            )
            assert sum(asked.values('onecount_session_ends_total{cause="redis"}')) >= 3
            own_redis.start()
            deployment.wait_until(lambda: {status(port, "/ready") for port in every} == {200}, "all are ready again")
        assert_everything_is_json(deployment)


def tell_nonsense(settings: Settings) -> None:
    """What a desk refuses: a follow-up and spend that are none."""
    producer = Producer(settings.client())
    producer.produce(settings.followups_topic, b"{}", b"u1")
    producer.produce(settings.spend_topic, b"{}", b"k")
    assert producer.flush(30) == 0


def send_by(gateway: Gateway) -> None:
    """What a gateway makes of an event, a request and a pixel: accepted, rejected, refused."""
    assert gateway.post([conversion(f"observed-{number}") for number in range(100)]).status_code == 202
    assert gateway.post({"event_id": "observed-bad"}).status_code == 422
    assert gateway.post(conversion("observed-0"), key=None).status_code == 401
    assert gateway.get("/p.gif?advertiser_id=nobody").status_code == 200


def assert_panels_are_answered(asked: Prometheus) -> None:
    """Each query of each panel is valid and gives numbers, and each variable has values."""
    unanswered = [
        f"{path.stem}, {panel['title']}: {target['expr']}"
        for path in FOUR
        for panel in panels(path)
        for target in panel["targets"]
        if not any(map(math.isfinite, asked.values(filled_in(target["expr"]))))
    ]
    assert not unanswered, "\n".join(unanswered)
    for path in FOUR:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            metric = variable["query"]["query"].removeprefix("label_values(").partition(",")[0]
            assert asked.get(f"label/{variable['name']}/values", **{"match[]": metric}), variable["name"]


def assert_alarms_are_answered_and_silent(asked: Prometheus) -> None:
    """Prometheus evaluates all rules without an error, what each compares gives data, and none fires on a healthy run."""
    (group,) = asked.get("rules")["groups"]
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in group["rules"]} == {
        rule["alert"]: ("ok", "inactive") for rule in RULES
    }
    for rule in RULES:
        for operand in operands(rule["expr"]):
            assert asked.values(operand), f"{rule['alert']}: {operand}"


def assert_logs_are_calm(deployment: Deployment) -> None:
    """A healthy worker says that it started and what it owns, and nothing is an error."""
    for role, slot in (("counter", 0), ("counter", 1), ("aggregator", 0)):
        lines = deployment.events(role, slot)
        assert {line["event"] for line in lines} <= CALM, lines
        assert {line["level"] for line in lines} <= {"info", "warning"}, lines


def assert_everything_is_json(deployment: Deployment) -> None:
    """Standard error held JSON only, through the outage too."""
    for path in (path for path in deployment.folder.glob("*-?.log")):
        assert [line for line in path.read_text().splitlines() if not line.startswith("{")] == [], path.name
