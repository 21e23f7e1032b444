"""The chart's gateway: off until asked for, with its file and secrets, asked by whether it would take events, scaled by its CPU."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helm_python as helm
import pytest
import uvicorn
from starlette.applications import Starlette

from app.gateway.config import load_config
from app.gateway.gateway import Gateway
from app.gateway.serve import STOP_S
from app.gateway.site import site
from app.settings import Settings
from tests.chart.conftest import Render, environment_of, of, pods_of
from tests.chart.test_web import container, deployment, probes, status

PORT = Settings.model_fields["gateway_port"].default
ON = {"gateway.enabled": True, "gateway.config": "keys: {}", "gateway.secret": "onecount-gateway"}


def test_it_is_off_unless_told_and_then_needs_its_file(render: Render) -> None:
    assert of("Deployment", render()) == {}
    with pytest.raises(helm.HelmError, match=r"gateway\.config is not given"):
        render(changes={"gateway.enabled": True})
    with pytest.raises(helm.HelmError, match=r"gateway\.secret is not given"):
        render(changes=ON | {"gateway.secret": ""})
    assert render(changes=ON | {"gateway.secret": "", "secret": "onecount"})
    assert set(of("Deployment", render(changes=ON))) == {"shop-onecount-gateway"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gateway.settings.gateway_port": 80}, "'gateway_port' not allowed"),
        ({"gateway.settings.gateway_secret": "x" * 32}, "'gateway_secret' not allowed"),
        ({"settings.gateway_user_salt": "x" * 32}, "'gateway_user_salt' not allowed"),
        ({"gateway.settings.gateway_share_port": True}, "'gateway_share_port' not allowed"),
        ({"gateway.settings.gateway_limiter_fails": "often"}, "/gateway/settings/gateway_limiter_fails"),
        ({"gateway.config": {}}, "/gateway/config"),
        ({"gateway.autoscaling.cpuUtilization": 0}, "/gateway/autoscaling/cpuUtilization"),
        ({"gateway.autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}}, "minReplicas is 5"),
        ({"gateway.autoscaling": {"enabled": True}, "gateway.resources.requests.cpu": None}, "gateway.resources.requests.cpu"),
        ({"desk.config": ""}, "'config' not allowed"),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(changes: dict[str, Any], why: str, render: Render) -> None:
    with pytest.raises(helm.HelmError) as refusal:
        render(changes=ON | changes)
    assert why in str(refusal.value)


def test_it_reads_the_given_file_and_another_one_restarts_it(render: Render, tmp_path: Path) -> None:
    text = render("all-on")
    pod = pods_of(text)["shop-onecount-gateway"]
    path = Path(environment_of(pod)["ONECOUNT_GATEWAY_CONFIG"])
    (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == str(path.parent)]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    held = of("ConfigMap", text)[volume["configMap"]["name"]]["data"][path.name]
    (tmp_path / path.name).write_text(held)
    told = Settings(gateway_config=tmp_path / path.name, gateway_secret="s" * 32)
    assert set(load_config(told).keys) == {"shop-2026a"}
    for name, other in pods_of(text).items():
        assert ("config" in {volume["name"] for volume in other["volumes"]}) == (name == "shop-onecount-gateway")

    def checksum(config: str) -> str:
        found = deployment("gateway", render(changes=ON | {"gateway.config": config}))
        annotations: dict[str, str] = found["spec"]["template"]["metadata"]["annotations"]
        return annotations["checksum/config"]

    assert checksum("keys: {}") == checksum("keys: {}")
    assert checksum("keys: {}") != checksum("advertisers: {}")


@pytest.fixture
def served() -> Iterator[tuple[int, SimpleNamespace]]:
    """A gateway's addresses on a port of this machine, and why it would not take events."""
    state = SimpleNamespace(why="Kafka does not acknowledge")
    gateway: Any = object.__new__(Gateway)
    gateway.why_unfit = lambda: state.why
    gateway.settings = Settings()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield

    server = uvicorn.Server(uvicorn.Config(site(gateway, lifespan), port=0, log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield server.servers[0].sockets[0].getsockname()[1], state
    server.should_exit = True
    thread.join()


def test_an_outage_of_kafka_takes_it_off_its_service_and_restarts_nothing(
    render: Render, served: tuple[int, SimpleNamespace]
) -> None:
    port, state = served
    asked = probes("gateway", render("all-on"))
    assert {ask["port"] for ask in asked.values()} == {"gateway"}

    def statuses() -> dict[str, int]:
        return {kind: status(port, ask) for kind, ask in asked.items()}

    assert statuses() == {"startup": 200, "liveness": 200, "readiness": 503}
    state.why = ""
    assert statuses() == {"startup": 200, "liveness": 200, "readiness": 200}


def test_it_listens_where_its_service_leads_and_knows_no_names(render: Render) -> None:
    text = render(changes=ON)
    environment = environment_of(pods_of(text)["shop-onecount-gateway"])
    assert (environment["ONECOUNT_GATEWAY_HOST"], environment["ONECOUNT_GATEWAY_PORT"]) == ("0.0.0.0", str(PORT))
    assert set(environment) <= {f"ONECOUNT_{name.upper()}" for name in Settings.model_fields}
    names = [(port["name"], port["containerPort"]) for port in container("gateway", text)["ports"]]
    assert names == [("gateway", PORT), ("metrics", 9464)]
    service = of("Service", text)["shop-onecount-gateway"]["spec"]
    assert {"name": "gateway", "port": PORT, "targetPort": "gateway"} in service["ports"]
    assert service["selector"] == deployment("gateway", text)["spec"]["selector"]["matchLabels"]
    assert "publishNotReadyAddresses" not in service


def test_a_stop_has_time_for_all_that_waits(render: Render) -> None:
    spec = deployment("gateway", render("all-on"))["spec"]["template"]["spec"]
    before_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > before_s + 3 * STOP_S
    other = deployment("desk", render("all-on"))["spec"]["template"]["spec"]
    assert "lifecycle" not in other["containers"][0]


def test_it_scales_by_its_cpu(render: Render) -> None:
    text = render("all-on")
    (scaler,) = of("HorizontalPodAutoscaler", text).values()
    target = deployment("gateway", text)
    assert scaler["spec"]["scaleTargetRef"]["name"] == target["metadata"]["name"]
    assert "replicas" not in target["spec"], "an upgrade would undo what the scaler chose"
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (3, 10)
    assert scaler["spec"]["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 60}
    alone = render(changes=ON | {"gateway.autoscaling.enabled": True})
    assert len(of("HorizontalPodAutoscaler", alone)) == 1
    assert of("ScaledObject", alone) == {}
    assert deployment("gateway", render(changes=ON))["spec"]["replicas"] == 2
