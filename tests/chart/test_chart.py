"""The Helm chart: what it renders is valid, agrees with the code, and cannot be given values that cannot be."""

import http.client
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from app.cli import app as program
from app.observe.metrics import LIVE_S, Metrics
from app.policy.load import load_policy
from app.run import GRACE_S, STOP_TIMEOUT_S
from app.settings import Settings
from tests.chart.conftest import (
    CHART,
    POLICY,
    ROOT,
    VALUE_SETS,
    Render,
    documents,
    environment_of,
    of,
    overlaid,
    pods_of,
    values_of,
    workloads,
)
from tests.chart.custom_resources import SCHEMAS
from tests.chart.values_schema import FILE, NOT_IN_VALUES, settings_definitions

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
OLDEST = re.findall(r"\d+\.\d+", yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"])[0]
KINDS = {
    "minimal": {"ConfigMap", "PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet"},
    "secured": {"ConfigMap", "Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet"},
    "all-on": {"ConfigMap", "Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet",
        "HorizontalPodAutoscaler", *SCHEMAS},
}  # fmt: skip


# --- Valid


@pytest.mark.parametrize("values", VALUE_SETS)
def test_helm_finds_nothing_to_complain_of(values: str) -> None:
    report = helm.lint(CHART, values_of(values), strict=True)
    assert report["errors"] == []
    assert [found["error"] for found in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_manifest_is_one_that_kubernetes_takes(values: str, version: str, render: Render) -> None:
    found = documents(render(values))
    assert {manifest["kind"] for manifest in found} == KINDS[values]
    for manifest in found:
        if manifest["kind"] not in SCHEMAS:
            used = kubernetes_validate.validate(manifest, version, strict=True)
            assert version.startswith(used)


def test_an_unknown_field_is_found(render: Render) -> None:
    (budget, _) = of("PodDisruptionBudget", render()).values()
    budget["spec"]["maxUnavailible"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(budget, OLDEST, strict=True)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_custom_resource_fits_its_definition(kind: str, render: Render) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])
    (manifest,) = of(kind, render("all-on")).values()
    jsonschema.validate(manifest, SCHEMAS[kind])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(overlaid(manifest, {"spec.endpoint": []}), SCHEMAS[kind])


@pytest.mark.parametrize("values", VALUE_SETS)
def test_what_is_rendered_is_tidy(values: str, render: Render) -> None:
    own = yaml.safe_load((ROOT / ".yamllint.yaml").read_text())
    own["rules"] |= {
        "line-length": "disable",
        "trailing-spaces": "disable",
        "empty-lines": "disable",
    }  # of what it holds
    config = YamlLintConfig(yaml.safe_dump(own))
    assert [str(problem) for problem in linter.run(render(values), config)] == []


@pytest.mark.parametrize("values", VALUE_SETS)
def test_no_two_manifests_are_one_object(values: str, render: Render) -> None:
    found = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in documents(render(values))]
    assert len(set(found)) == len(found)


def test_names_fit_for_the_longest_release(render: Render) -> None:
    names = [manifest["metadata"]["name"] for manifest in documents(render("all-on", name="a" * 53))]
    sets = of("StatefulSet", render(name="a" * 53))
    assert max(map(len, names)) <= 63
    assert max(map(len, sets)) <= 52, "a StatefulSet's pods carry its name and a hash of 10 in a label"


def test_a_packaged_chart_is_the_same(tmp_path: Path, render: Render) -> None:
    with helm.Chart.load(helm.package(CHART, destination=tmp_path)) as chart:
        files = chart.render(values_of("all-on"), name="shop", namespace="ads")
        assert [found["name"] for found in chart.files if found["name"].startswith("ci/")] == []
    packaged = "\n---\n".join(text for path, text in files.items() if not path.endswith("NOTES.txt"))
    key = lambda manifest: (manifest["kind"], manifest["metadata"]["name"])  # noqa: E731
    assert sorted(documents(packaged), key=key) == sorted(documents(render("all-on")), key=key)


# --- Values that cannot be


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"settings.bootstrap": ""}, "/settings/bootstrap"),
        ({"settings.bootstrap": "kafka"}, "/settings/bootstrap"),
        ({"settings.redis_url": "redis:6379"}, "/settings/redis_url"),
        ({"settings.partitions": 0}, "/settings/partitions"),
        ({"settings.partitions": "4"}, "/settings/partitions"),
        ({"settings.partions": 4}, "'partions' not allowed"),
        ({"settings.kafka_password": "secret"}, "'kafka_password' not allowed"),
        ({"settings.kafka": {"enable.ssl": True}}, "/settings/kafka/enable.ssl"),
        ({"counter.settings.partitions": 8}, "'partitions' not allowed"),
        ({"counter.replicas": 5}, "counter.replicas is 5, but settings.partitions is 4"),
        ({"aggregator.replicas": 5}, "aggregator.replicas is 5, but settings.partitions is 4"),
        ({"matcher.enabled": True}, "matcher.enabled: the policy has no `click_ids`"),
        ({"matcher": {"enabled": True, "replicas": 5}}, "matcher.replicas is 5, but settings.partitions is 4"),
        ({"counter.replicas": -1}, "/counter/replicas"),
        ({"counter.replica": 2}, "'replica' not allowed"),
        ({"settings.transaction_timeout_ms": 7000}, "transaction_timeout_ms must be below session_timeout_ms"),
        ({"counter.settings.transaction_timeout_ms": 9000}, "counter: transaction_timeout_ms must be below"),
        ({"policy": ""}, "/policy"),
        ({"image.repository": ""}, "/image/repository"),
        ({"image.digest": "sha256:1"}, "/image/digest"),
        ({"autoscaling": {"enabled": True, "maxReplicas": 5}}, "autoscaling.maxReplicas is 5"),
        ({"autoscaling": {"enabled": True, "minReplicas": 5}}, "autoscaling.minReplicas is 5"),
        ({"autoscaling": {"enabled": True}, "counter.resources.requests.cpu": None}, "counter.resources.requests.cpu"),
        ({"networkPolicy.kafka.ports": [70000]}, "/networkPolicy/kafka/ports/0"),
        ({"secret": "Not A Name"}, "/secret"),
        ({"tolerance": []}, "'tolerance' not allowed"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused(changes: dict[str, Any], why: str, render: Render) -> None:
    with pytest.raises(helm.HelmError) as refusal:
        render(changes=changes)
    assert why in str(refusal.value)


@pytest.mark.parametrize("missing", ["policy", "image", "settings"])
def test_what_must_be_given_is_named(missing: str) -> None:
    values = values_of("minimal")
    del values[missing]
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmValuesError) as refusal:
        chart.render(values, name="shop", namespace="ads")
    named = {"policy": ("'policy'",), "image": ("'repository'",), "settings": ("'bootstrap'", "'redis_url'", "'partitions'")}  # fmt: skip
    assert all(name in str(refusal.value) for name in named[missing])


def test_the_schema_knows_the_settings_of_the_code() -> None:
    found = json.loads(FILE.read_text())["definitions"]
    assert {name: found[name] for name in settings_definitions()} == settings_definitions(), (
        "run: python -m tests.chart.values_schema"
    )
    assert set(found["settings"]["properties"]) | NOT_IN_VALUES == set(Settings.model_fields)


def test_the_refusals_have_the_defaults_of_the_code(render: Render) -> None:
    below = DEFAULTS["transaction_timeout_ms"] + 1000
    with pytest.raises(helm.HelmError):
        render(changes={"settings.transaction_timeout_ms": DEFAULTS["session_timeout_ms"]})
    assert render(changes={"settings.transaction_timeout_ms": DEFAULTS["session_timeout_ms"] - 1})
    assert render(changes={"settings.session_timeout_ms": below})


# --- What the pods run


@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_environment_is_accepted_by_the_settings(
    values: str, render: Render, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = values_of(values)
    for name, pod in pods_of(render(values)).items():
        environment = environment_of(pod)
        assert set(environment) <= {f"ONECOUNT_{field.upper()}" for field in Settings.model_fields}
        if "ONECOUNT_SECRETS_DIR" in environment:
            environment["ONECOUNT_SECRETS_DIR"] = str(tmp_path)
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        settings = Settings(_secrets_dir=tmp_path)
        for key in environment:
            monkeypatch.delenv(key)
        role = name.removeprefix("shop-onecount-") if name in workloads(render(values)) else "jobs"
        expected = given["settings"] | given.get(role, {}).get("settings", {})
        expected["kafka"] = given["settings"].get("kafka", {}) | expected.get("kafka", {})
        for field, value in expected.items():
            actual = getattr(settings, field)
            if field == "kafka":
                actual = {key: secret.get_secret_value() for key, secret in actual.items()}
            elif field == "redis_url":
                actual = actual.get_secret_value()
            elif field.endswith("_hosts"):  # the chart knows some more
                actual = tuple(name for name in actual if name in value)
            assert actual == (tuple(value) if isinstance(value, list) else value), (name, field)


def test_a_value_is_text_even_where_kubernetes_would_see_a_reference(render: Render) -> None:
    odd = '$(HOSTNAME) "{{ x }}"'
    pods = pods_of(render(changes={"settings.kafka": {"client.id": odd}}))
    for pod in pods.values():
        assert json.loads(environment_of(pod)["ONECOUNT_KAFKA"]) == {"client.id": odd}


@pytest.mark.parametrize("values", VALUE_SETS)
def test_a_pod_runs_a_command_of_the_command_line(values: str, render: Render) -> None:
    for pod in pods_of(render(values)).values():
        command: Any = typer.main.get_command(program)
        words = pod["containers"][0]["args"]
        while words and hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        assert not hasattr(command, "commands") or command.invoke_without_command
        command.make_context(command.name, list(words))  # parses the arguments, runs nothing


def test_a_worker_is_named_by_its_pod_and_judges_by_the_given_policy(render: Render, tmp_path: Path) -> None:
    text = render()
    maps = of("ConfigMap", text)
    for pod in pods_of(text).values():
        environment = environment_of(pod)
        assert environment["ONECOUNT_WORKER_ID"] == "shop-0"
        path = Path(environment["ONECOUNT_POLICY"])
        (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == str(path.parent)]
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
        file = tmp_path / path.name
        file.write_text(maps[volume["configMap"]["name"]]["data"][path.name])
        assert load_policy(file)[0] == load_policy(ROOT / "deploy/policy.yaml")[0]


def test_another_policy_restarts_the_workers(render: Render) -> None:
    def checksums(text: str) -> set[str]:
        return {
            found["spec"]["template"]["metadata"]["annotations"]["checksum/policy"]
            for found in workloads(text).values()
        }

    assert checksums(render()) == checksums(render())
    assert not checksums(render()) & checksums(render(changes={"policy": POLICY + "\n# seen\n"}))


def test_each_role_has_the_secrets_of_its_own(render: Render) -> None:
    found = {}
    for name, pod in pods_of(render("secured")).items():
        folders = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
        assert environment_of(pod)["ONECOUNT_SECRETS_DIR"] == folders["secrets"]
        assert json.loads(environment_of(pod)["ONECOUNT_KAFKA"])["ssl.ca.location"].startswith(folders["certificates"])
        assert {secret["defaultMode"] for secret in secrets.values()} == {0o440}
        found[name] = (
            secrets["secrets"]["secretName"],
            json.loads(environment_of(pod)["ONECOUNT_KAFKA"])["sasl.username"],
        )
    assert found == {
        "shop-onecount-counter": ("onecount-counter",) * 2,
        "shop-onecount-aggregator": ("onecount-aggregator",) * 2,
        "shop-onecount-desk": ("onecount-desk",) * 2,
        "shop-onecount-page": ("onecount-page",) * 2,
        "shop-onecount-gateway": ("onecount-gateway",) * 2,
        "shop-onecount-topics": ("onecount-operator",) * 2,
        "shop-onecount-check": ("onecount-operator",) * 2,
    }


@pytest.mark.parametrize("values", VALUE_SETS)
def test_a_pod_has_no_right_that_it_does_not_use(values: str, render: Render) -> None:
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    user, group = re.findall(r"(?m)^USER (\d+):(\d+)$", dockerfile)[-1]
    for pod in pods_of(render(values)).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user),
            "runAsGroup": int(group),
            "fsGroup": int(group),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert "cpu" not in container["resources"]["limits"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_the_image_is_the_release_unless_told_otherwise(render: Render) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]

    def images(text: str) -> set[str]:
        return {pod["containers"][0]["image"] for pod in pods_of(text).values()}

    assert images(render()) == {f"registry.example.com/onecount:{project['version']}"}
    assert images(render(changes={"image.tag": "1.2.3"})) == {"registry.example.com/onecount:1.2.3"}
    assert images(render("all-on")) == {f"registry.example.com/onecount@{values_of('all-on')['image']['digest']}"}


# --- Ports, probes, stopping


def test_the_probes_ask_what_a_worker_answers(render: Render) -> None:
    metrics = Metrics("counter", "shop-0")
    port = metrics.serve(0)

    def status(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status

    for workers in of("StatefulSet", render()).values():
        (container,) = workers["spec"]["template"]["spec"]["containers"]
        probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {"metrics"}
        # a worker that has just started owns nothing: alive, not ready
        assert {kind: status(probe["httpGet"]["path"]) for kind, probe in probes.items()} == {
            "startup": 200,
            "liveness": 200,
            "readiness": 503,
        }
        assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] > LIVE_S


def test_every_port_is_the_one_that_a_worker_opens(render: Render) -> None:
    text = render("all-on")
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    (port,) = {int(found) for found in re.findall(r"ONECOUNT_METRICS_PORT=(\d+)", dockerfile)}
    for name, workers in of("StatefulSet", text).items():
        pod = workers["spec"]["template"]["spec"]
        assert environment_of(pod)["ONECOUNT_METRICS_PORT"] == str(port)
        assert pod["containers"][0]["ports"] == [{"name": "metrics", "containerPort": port}]
        service = of("Service", text)[workers["spec"]["serviceName"]]
        assert name == service["metadata"]["name"]
        assert service["spec"]["ports"] == [{"name": "metrics", "port": port, "targetPort": "metrics"}]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"] == workers["spec"]["selector"]["matchLabels"]
        assert service["spec"]["selector"].items() <= workers["spec"]["template"]["metadata"]["labels"].items()


def test_a_worker_has_time_to_stop(render: Render) -> None:
    assert {workers["spec"]["podManagementPolicy"] for workers in of("StatefulSet", render()).values()} == {"Parallel"}
    for workers in workloads(render("all-on")).values():
        grace_s = workers["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s > GRACE_S > STOP_TIMEOUT_S


def test_a_node_can_be_drained_and_takes_one_worker_of_a_role_at_a_time(render: Render) -> None:
    text = render("all-on")
    workers = workloads(text)
    budgets = of("PodDisruptionBudget", text)
    assert set(budgets) == set(workers)
    for name, budget in budgets.items():
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert budget["spec"]["selector"] == workers[name]["spec"]["selector"]
    assert of("PodDisruptionBudget", render(changes={"podDisruptionBudget.enabled": False})) == {}


# --- Scaling


def test_keda_scales_the_counters_up_to_the_partitions(render: Render) -> None:
    text = render(changes={"autoscaling.enabled": True, "settings.partitions": 24})
    (scaled,) = of("ScaledObject", text).values()
    target = of("StatefulSet", text)[scaled["spec"]["scaleTargetRef"]["name"]]
    assert target["spec"]["template"]["spec"]["containers"][0]["args"] == ["run", "counter"]
    assert "replicas" not in target["spec"], "an upgrade would undo what KEDA chose"
    assert scaled["spec"]["maxReplicaCount"] == 24
    lag, cpu = scaled["spec"]["triggers"]
    assert lag["metadata"]["consumerGroup"] == DEFAULTS["counter_group"]
    assert lag["metadata"]["bootstrapServers"] == "kafka:9092"
    assert lag["metadata"]["lagThreshold"] == "100000"
    assert cpu == {"type": "cpu", "metricType": "Utilization", "metadata": {"value": "70"}}
    (by_lag,) = of("ScaledObject", render(changes={"autoscaling": {"enabled": True, "cpuUtilization": 0}})).values()
    assert [trigger["type"] for trigger in by_lag["spec"]["triggers"]] == ["kafka"]
    (own,) = of("ScaledObject", render("all-on")).values()
    assert own["spec"]["triggers"][0]["metadata"]["consumerGroup"] == "shop.counter"
    assert own["spec"]["maxReplicaCount"] == 12


def test_keda_signs_in_as_told(render: Render) -> None:
    changes = {"autoscaling": {"enabled": True, "authentication": "kafka", "kafka": {"tls": "enable"}}}
    (scaled,) = of("ScaledObject", render(changes=changes)).values()
    lag = scaled["spec"]["triggers"][0]
    assert lag["authenticationRef"] == {"name": "kafka"}
    assert lag["metadata"]["tls"] == "enable"


# --- The network


@pytest.mark.parametrize(
    ("bootstrap", "redis_url", "more", "kafka_ports", "redis_ports"),
    [
        ("kafka:9092", "redis://redis/0", [], [9092], [6379]),
        ("a:9092,b:9093", "redis://one:6379,two:6380,three", [9094], [9092, 9093, 9094], [6379, 6380]),
        ("a:9092,b:9092", "rediss://user:1:2@host:7000/0?ssl_ca_certs=/a:9999", [], [9092], [7000]),
    ],
)
def test_a_pod_reaches_kafka_redis_and_dns_only(
    bootstrap: str, redis_url: str, more: list[int], kafka_ports: list[int], redis_ports: list[int], render: Render
) -> None:
    changes = {"networkPolicy": {"enabled": True, "kafka": {"ports": more}}}
    text = render(changes=changes | {"settings.bootstrap": bootstrap, "settings.redis_url": redis_url})
    (policy,) = of("NetworkPolicy", text).values()
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    kafka, redis, dns = policy["spec"]["egress"]
    assert [rule["port"] for rule in kafka["ports"]] == kafka_ports
    assert [rule["port"] for rule in redis["ports"]] == redis_ports
    assert {(rule["port"], rule["protocol"]) for rule in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert policy["spec"]["ingress"] == [{"ports": [{"port": "metrics", "protocol": "TCP"}]}]


def test_the_network_policy_holds_for_every_pod_and_names_whom_it_is_told(render: Render) -> None:
    text = render("secured")
    (policy,) = of("NetworkPolicy", text).values()
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    for found in (workloads(text) | of("Job", text)).values():
        assert wanted <= found["spec"]["template"]["metadata"]["labels"].items()
    given = values_of("secured")["networkPolicy"]
    kafka, redis, _ = policy["spec"]["egress"]
    assert kafka["to"] == given["kafka"]["to"]
    assert redis["to"] == given["redis"]["to"]
    assert policy["spec"]["ingress"][0]["from"] == given["metrics"]["from"]


# --- Jobs, alerts, dashboards, documents


def test_jobs_run_in_order_before_anything_changes(render: Render) -> None:
    assert of("Job", render()) == {}
    text = render("all-on")
    jobs = of("Job", text)
    hooks = {name: job["metadata"]["annotations"] for name, job in jobs.items()}
    assert {hook["helm.sh/hook"] for hook in hooks.values()} == {"pre-install,pre-upgrade"}
    order = sorted(jobs, key=lambda name: int(hooks[name]["helm.sh/hook-weight"]))
    assert [jobs[name]["spec"]["template"]["spec"]["containers"][0]["args"] for name in order] == [["topics", "create"], ["check"]]  # fmt: skip
    maps = of("ConfigMap", text)
    for name, pod in pods_of(text).items():
        if name not in jobs:
            continue
        # nothing of the release is there yet: neither its service account nor its policy
        assert "serviceAccountName" not in pod
        (policy,) = [maps[volume["configMap"]["name"]] for volume in pod["volumes"] if "configMap" in volume]
        assert policy["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert int(policy["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
        assert policy["data"] == maps["shop-onecount-policy"]["data"]


def test_alerts_and_dashboards_are_those_of_deploy(render: Render) -> None:
    text = render("all-on")
    (rule,) = of("PrometheusRule", text).values()
    ours = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    assert rule["spec"] == yaml.safe_load(ours.replace("http://localhost:3000", "https://grafana.example.com"))
    shown = {}
    for found in of("ConfigMap", text).values():
        if found["metadata"]["labels"].get("grafana_dashboard") == "1":
            shown |= found["data"]
    wanted = {f"onecount-{path.name}": json.loads(path.read_text()) for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}  # fmt: skip
    assert wanted
    assert {name: json.loads(data) for name, data in shown.items()} == wanted


def test_a_scraped_worker_has_the_labels_that_alerts_and_dashboards_ask_for(render: Render) -> None:
    changes = {"matcher.enabled": True, "policy": f"click_ids: {{park_for: 6d}}\n{POLICY}"}
    text = render("all-on", changes=changes)
    (monitor,) = of("ServiceMonitor", text).values()
    (endpoint,) = monitor["spec"]["endpoints"]
    relabelled = {rule["targetLabel"]: rule for rule in endpoint["relabelings"]}
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    labels = {label for group in job["static_configs"] for label in group["labels"]}
    assert relabelled["job"]["replacement"] == job["job_name"]
    assert labels <= set(relabelled)
    services = [
        service
        for service in of("Service", text).values()
        if endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    ]
    assert relabelled["stage"]["sourceLabels"] == ["__meta_kubernetes_service_label_app_kubernetes_io_component"]
    stages = {service["metadata"]["labels"]["app.kubernetes.io/component"] for service in services}
    found = {label["replacement"] for label in job["relabel_configs"] if label["target_label"] == "stage"}
    assert stages == {group["labels"]["stage"] for group in job["static_configs"]} | found
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert all(wanted <= service["metadata"]["labels"].items() for service in services)


def _paths(values: dict[str, Any], prefix: str = "") -> set[str]:
    """The dotted names of all values; of a filled map that is the user's own (resources, labels) only its name."""
    found = set()
    for name, value in values.items():
        path = f"{prefix}{name}"
        open_ended = name in ("resources", "labels", "dns", "annotations")
        found |= _paths(value, f"{path}.") if isinstance(value, dict) and value and not open_ended else {path}
    return found


def test_the_readme_tells_of_every_value() -> None:
    told = set(re.findall(r"`([a-zA-Z.]+)`", (CHART / "README.md").read_text()))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    untold = {path for path in _paths(values) if not any(path == name or path.startswith(f"{name}.") for name in told)}
    assert untold == set()
    schema = json.loads(FILE.read_text())["properties"]
    assert set(values) | {"policy", "global"} == set(schema)


def test_the_notes_say_what_to_do_next() -> None:
    with helm.Chart.load(CHART) as chart:
        notes = chart.render(values_of("minimal"), name="shop", namespace="ads")["onecount/templates/NOTES.txt"]
        silent = chart.render(values_of("all-on"), name="shop", namespace="ads")["onecount/templates/NOTES.txt"]
    assert "2 counters and 1 aggregator(s) for 4 partitions" in notes
    assert "jobs.createTopics" in notes
    assert "3 to 12 counters" in silent
    assert "jobs.createTopics" not in silent
    assert "kubectl -n ads logs shop-onecount-counter-0 " in notes
    assert "port-forward" not in notes
    assert "kubectl -n ads port-forward service/shop-onecount-desk 8421\n" in silent
    assert "kubectl -n ads port-forward service/shop-onecount-page 8420\n" in silent
    assert "kubectl -n ads port-forward service/shop-onecount-gateway 8430 " in silent
    assert "The gateway, which has no login" not in silent


def test_changes_are_laid_over_a_copy() -> None:
    values = {"a": {"b": 1}}
    assert overlaid(values, {"a.c.d": 2}) == {"a": {"b": 1, "c": {"d": 2}}}
    assert values == {"a": {"b": 1}}


def test_a_matcher_runs_where_the_policy_has_click_ids(render: Render) -> None:
    changes = {"matcher.enabled": True, "matcher.replicas": 2, "policy": f"click_ids: {{park_for: 6d}}\n{POLICY}"}
    sets = of("StatefulSet", render(changes=changes))
    assert set(sets) == {"shop-onecount-counter", "shop-onecount-aggregator", "shop-onecount-matcher"}
    matcher = sets["shop-onecount-matcher"]["spec"]
    (container,) = matcher["template"]["spec"]["containers"]
    assert (matcher["replicas"], container["args"]) == (2, ["run", "matcher"])
