"""The chart's desk and page: off until asked for, reached by whom they may be, and no upgrade waits for a desk that stands by."""

import asyncio
import http.client
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import helm_python as helm
import pytest
import uvicorn
from starlette.applications import Starlette

from app.desk.desk import Desk
from app.desk.web import application
from app.observe.metrics import LIVE_S, Metrics
from app.page.broadcast import Broadcast
from app.page.site import site
from app.policy.load import load_desk
from app.settings import Settings
from tests.chart.conftest import POLICY, ROOT, Render, environment_of, of, pods_of, values_of, workloads

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
WEB = ("desk", "page")


def deployment(role: str, text: str) -> dict[str, Any]:
    """The Deployment of the role in the release `shop`."""
    return of("Deployment", text)[f"shop-onecount-{role}"]


def container(role: str, text: str) -> dict[str, Any]:
    """Its only container."""
    (found,) = deployment(role, text)["spec"]["template"]["spec"]["containers"]
    return found


def answered_hosts(role: str, text: str) -> tuple[str, ...]:
    """The names that its pods answer to, as the settings read them."""
    pod = pods_of(text)[f"shop-onecount-{role}"]
    hosts: tuple[str, ...] = getattr(
        Settings(**{f"{role}_hosts": environment_of(pod)[f"ONECOUNT_{role.upper()}_HOSTS"]}), f"{role}_hosts"
    )
    return hosts


def probes(role: str, text: str) -> dict[str, dict[str, Any]]:
    """What the kubelet asks, by the kind of probe."""
    return {kind: container(role, text)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}


def status(port: int, asked: dict[str, Any]) -> int:
    """What a probe gets from a port of this machine. Without a Host of its own it names the address, as the kubelet does."""
    headers = {header["name"]: header["value"] for header in asked.get("httpHeaders", ())}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", asked["path"], headers={"Host": f"10.1.2.3:{port}"} | headers)
    found = connection.getresponse().status
    connection.close()
    return found


def test_they_are_off_unless_told(render: Render) -> None:
    assert of("Deployment", render()) == {}
    for role in WEB:
        text = render(changes={f"{role}.enabled": True})
        assert set(of("Deployment", text)) == {f"shop-onecount-{role}"}
        assert deployment(role, text)["spec"]["replicas"] == 1
    assert [deployment(role, render("all-on"))["spec"]["replicas"] for role in WEB] == [2, 3]
    assert of("HorizontalPodAutoscaler", render()) == {}


def test_a_desk_needs_journeys(render: Render) -> None:
    lines = POLICY.splitlines(keepends=True)
    begin = next(place for place, line in enumerate(lines) if line.startswith("journeys:"))
    end = next(place for place, line in enumerate(lines) if line.startswith("desk:"))
    policy = "".join(lines[:begin] + lines[end:])
    assert render(changes={"policy": policy, "page.enabled": True})
    with pytest.raises(helm.HelmError, match=r"desk\.enabled: the policy has no `journeys`"):
        render(changes={"policy": f"# journeys: later\n{policy}", "desk.enabled": True})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"desk.enabled": "yes"}, "/desk/enabled"),
        ({"page.replicas": -1}, "/page/replicas"),
        ({"page.settings.page_port": 80}, "'page_port' not allowed"),
        ({"desk.settings.desk_host": "127.0.0.1"}, "'desk_host' not allowed"),
        ({"desk.settings.desk_group": "other"}, "'desk_group' not allowed"),
        ({"desk.settings.desk_hosts": []}, "/desk/settings/desk_hosts"),
        ({"counter.enabled": False}, "'enabled' not allowed"),
        ({"desk": {"enabled": True, "settings": {"session_timeout_ms": 6000, "transaction_timeout_ms": 6000}}}, "desk: transaction_timeout_ms must be below"),
        ({"networkPolicy.page.to": []}, "'to' not allowed"),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(changes: dict[str, Any], why: str, render: Render) -> None:
    with pytest.raises(helm.HelmError) as refusal:
        render(changes=changes)
    assert why in str(refusal.value)


# --- Upgrades


def test_a_new_one_is_ready_before_an_old_one_goes(render: Render) -> None:
    for role in WEB:
        spec = deployment(role, render("all-on"))["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        assert spec.keys().isdisjoint({"serviceName", "podManagementPolicy"})
    for counting in of("StatefulSet", render("all-on")).values():
        assert "strategy" not in counting["spec"]


def test_a_desk_is_ready_once_it_has_read_everything_though_another_one_publishes(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = render("all-on")
    file = ROOT / "deploy/policy.yaml"
    hosts = answered_hosts("desk", text)
    settings = Settings(desk_host="127.0.0.1", desk_port=_free_port(), desk_hosts=hosts)
    metrics = Metrics("desk", "shop-0")
    asked = probes("desk", text)
    ports = {"metrics": metrics.serve(0), "desk": settings.desk_port}

    async def statuses() -> dict[str, int]:
        return {kind: await asyncio.to_thread(status, ports[ask["port"]], ask) for kind, ask in asked.items()}

    async def story() -> None:
        desk = Desk(settings, load_desk(file), metrics)
        app, _ = application(settings, desk)
        app.finalize()
        app.flow_control.resume()
        await app.start()
        try:
            assert desk.role == "reading"
            assert await statuses() == {"startup": 200, "liveness": 200, "readiness": 503}
            monkeypatch.setattr(desk, "_is_read", True)
            desk.answered_ms = time.time_ns() // 1_000_000
            assert desk.role == "standby"
            assert await statuses() == {"startup": 200, "liveness": 200, "readiness": 200}
            # what another probe would get: the worker's /ready tells who publishes, and an address is no name of the desk's
            assert await asyncio.to_thread(status, ports["metrics"], {"path": "/ready"}) == 503
            assert await asyncio.to_thread(status, ports["desk"], {"path": "/healthz"}) == 400
        finally:
            await app.stop()

    asyncio.run(story())
    startup = container("desk", text)["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > LIVE_S


@pytest.mark.parametrize("values", ["secured", "all-on"])
def test_the_page_answers_its_probes(values: str, render: Render) -> None:
    text = render(values)

    @asynccontextmanager
    async def nothing(_: Starlette) -> AsyncIterator[None]:
        yield

    port = _free_port()
    config = uvicorn.Config(site(Broadcast(), answered_hosts("page", text), nothing), port=port, log_config=None)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        asked = probes("page", text)
        assert {ask["port"] for ask in asked.values()} == {"page"}
        assert {status(port, ask) for ask in asked.values()} == {200}
        assert status(port, {"path": "/live"}) == 400, "the kubelet asks by the pod's address"
    finally:
        server.should_exit = True
        thread.join()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# --- Who reaches them


@pytest.mark.parametrize("role", WEB)
def test_it_listens_where_its_service_leads(role: str, render: Render) -> None:
    text = render(changes={f"{role}.enabled": True})
    environment = environment_of(pods_of(text)[f"shop-onecount-{role}"])
    port = DEFAULTS[f"{role}_port"]
    assert environment[f"ONECOUNT_{role.upper()}_HOST"] == "0.0.0.0"
    assert environment[f"ONECOUNT_{role.upper()}_PORT"] == str(port)
    assert {"name": role, "containerPort": port} in container(role, text)["ports"]
    service = of("Service", text)[f"shop-onecount-{role}"]["spec"]
    assert {"name": role, "port": port, "targetPort": role} in service["ports"]
    assert service["selector"] == deployment(role, text)["spec"]["selector"]["matchLabels"]
    assert "publishNotReadyAddresses" not in service, "who has not read everything would answer 503"
    assert {"localhost", f"shop-onecount-{role}", f"shop-onecount-{role}.ads.svc"} <= set(answered_hosts(role, text))


def test_only_a_desk_is_scraped(render: Render) -> None:
    text = render("all-on")
    assert {"name": "metrics", "containerPort": 9464} in container("desk", text)["ports"]
    assert [port["name"] for port in container("page", text)["ports"]] == ["page"]


def test_names_that_are_given_are_answered_to_beside_its_own(render: Render) -> None:
    assert {"leads.example.com", "localhost", "shop-onecount-desk"} <= set(answered_hosts("desk", render("all-on")))
    assert {"counts.example.com", "localhost"} <= set(answered_hosts("page", render("secured")))
    shared = render(changes={"settings.page_hosts": ["*", "localhost"], "page.enabled": True})
    assert answered_hosts("page", shared)[-1] == "*"


def test_the_network_lets_in_who_is_named_and_nobody_else(render: Render) -> None:
    def let_in(text: str) -> dict[str, Any]:
        (policy,) = of("NetworkPolicy", text).values()
        rules = policy["spec"]["ingress"]
        assert all(len(rule["ports"]) == 1 for rule in rules)
        return {rule["ports"][0]["port"]: rule.get("from", "anyone") for rule in rules}

    given = values_of("all-on")["networkPolicy"]
    named = (*WEB, "gateway")
    on = {f"{role}.enabled": True for role in named} | {
        "gateway.config": "keys: {}",
        "gateway.secret": "gateway",
        "networkPolicy.enabled": True,
    }
    assert let_in(render("all-on")) == {"metrics": "anyone", **{role: given[role]["from"] for role in named}}
    assert let_in(render(changes=on)) == {"metrics": "anyone"}
    assert let_in(render("all-on", changes={f"{role}.enabled": False for role in named})) == {"metrics": "anyone"}


def test_its_policy_is_the_release_s(render: Render, tmp_path: Path) -> None:
    text = render("all-on")
    policy = of("ConfigMap", text)["shop-onecount-policy"]["data"]["policy.yaml"]
    (tmp_path / "policy.yaml").write_text(policy)
    assert load_desk(tmp_path / "policy.yaml").follow_ups
    for name in workloads(text):
        (volume,) = [volume for volume in pods_of(text)[name]["volumes"] if volume["name"] == "policy"]
        assert volume["configMap"]["name"] == "shop-onecount-policy"
