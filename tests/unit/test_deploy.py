"""docker-compose.yml, the Dockerfile, Prometheus and Grafana: they agree with the code and with each other."""

import fnmatch
import importlib
import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import typer
import yaml

from app.gateway.serve import STOP_S
from app.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = ROOT / COMPOSE["x-onecount"]["build"]["dockerfile"]
PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
PROVISIONING = ROOT / "deploy/grafana/provisioning"
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("onecount:")}
WORKERS = {name: service for name, service in OURS.items() if service["command"][0] == "run"}
DESKS = {name: service for name, service in OURS.items() if service["command"] == ["desk"]}
GATEWAYS = {name: service for name, service in OURS.items() if service["command"] == ["gateway"]}
# repository:1.2.3, perhaps with a variant: -slim-trixie.
EXACT_TAG = re.compile(r"[a-z0-9./_-]+:v?[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9.-]+)?")
ROOT_USERS = {"", "0", "root"}


def _instructions() -> list[tuple[str, str]]:
    """(instruction, the rest) of each line of the Dockerfile, in order; continued lines joined, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def _of(instruction: str) -> list[str]:
    return [rest for name, rest in _instructions() if name == instruction]


def _image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in _of("ENV") for pair in shlex.split(rest))


def _words(value: str | list[str]) -> list[str]:
    """A command as Compose reads it."""
    return shlex.split(value) if isinstance(value, str) else value


def _seconds(duration: str) -> int:
    match = re.fullmatch(r"([0-9]+)(s|m)", duration)
    assert match is not None, duration
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def _mounts(service: str) -> dict[str, str]:
    """Host path or volume name -> path in the container."""
    return {mount.split(":")[0]: mount.split(":")[1] for mount in SERVICES[service]["volumes"]}


def _locked(lock: str) -> dict[str, set[str]]:
    """Package -> its pinned versions; there are several where they differ by Python version."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"(?m)^([a-z0-9._-]+)==(\S+)", (ROOT / lock).read_text()):
        found.setdefault(name, set()).add(version)
    return found


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}


# --- Compose


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_to_one_version(name: str) -> None:
    assert EXACT_TAG.fullmatch(SERVICES[name]["image"])


def test_our_image_carries_the_projects_version() -> None:
    assert {service["image"] for service in OURS.values()} == {f"onecount:{PROJECT['version']}"}


def test_kafka_is_the_version_that_the_tests_run() -> None:
    tested = ElementTree.parse(ROOT / "deploy/kafka/pom.xml").findtext(".//{*}kafka.version")
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{tested}"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_without_root_and_without_capabilities(name: str) -> None:
    service = SERVICES[name]
    if name not in OURS:  # ours run as the Dockerfile's user, which has a test of its own
        assert service["user"].split(":")[0] not in ROOT_USERS
    assert "user" not in service or name not in OURS
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "pid", "network_mode"} & set(service)


def test_every_root_filesystem_but_kafkas_is_read_only() -> None:
    assert [name for name, service in SERVICES.items() if not service.get("read_only")] == ["kafka"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_accepted_by_the_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**_image_environment(), **OURS[name]["environment"]}
    ours = {key: value for key, value in environment.items() if key.startswith("ONECOUNT_")}
    assert set(ours) <= {f"ONECOUNT_{field.upper()}" for field in Settings.model_fields}
    # null: of the environment that Compose is called in
    ours = {key: value for key, value in ours.items() if value is not None}
    assert all(isinstance(value, str) for value in ours.values()), "quote numbers: YAML may rewrite them"
    for key, value in ours.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.bootstrap.split(":")[0] in SERVICES
    assert urlsplit(settings.redis_url.get_secret_value()).hostname in SERVICES


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_of_the_command_line(name: str) -> None:
    words = OURS[name]["command"]
    if importlib.util.find_spec("app.cli") is None:
        assert words[0] in {"run", "topics"}
        return
    cli = importlib.import_module("app.cli")
    programs = [typer.main.get_command(app) for app in vars(cli).values() if isinstance(app, typer.Typer)]
    command = next(program for program in programs if {"run", "topics"} <= set(getattr(program, "commands", ())))
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands") or command.invoke_without_command, "a command of this group is missing"
    command.make_context(command.name, list(words))  # parses the arguments, runs nothing


def test_worker_ids_are_given_and_distinct() -> None:
    named = WORKERS | DESKS | GATEWAYS
    assert [service["environment"]["ONECOUNT_WORKER_ID"] for service in named.values()] == list(named)
    assert [service["command"] for service in WORKERS.values()].count(["run", "counter"]) == 2
    assert not any("deploy" in service or "scale" in service for service in WORKERS.values())


def test_there_are_no_more_counters_than_partitions() -> None:
    counters = [service for service in WORKERS.values() if service["command"] == ["run", "counter"]]
    assert len(counters) <= int(COMPOSE["x-settings"]["ONECOUNT_PARTITIONS"])


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_time_for_a_clean_drain(name: str) -> None:
    defaults = {field: info.default for field, info in Settings.model_fields.items()}
    drain_ms = defaults["transaction_timeout_ms"] + 2 * defaults["request_timeout_ms"]
    assert _seconds(WORKERS[name]["stop_grace_period"]) * 1000 > drain_ms


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_what_can_say_that_it_is_there(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert SERVICES[other]["healthcheck"]["test"], other
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no", "a one-shot service that is restarted never completes"


def test_workers_wait_for_kafka_redis_and_the_topics() -> None:
    for service in WORKERS.values():
        assert set(service["depends_on"]) == {"kafka", "redis", "topics"}
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_exist(name: str) -> None:
    for source in _mounts(name):
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], source


def test_redis_keeps_every_key_and_writes_it_down() -> None:
    words = [*_words(SERVICES["redis"]["entrypoint"]), *_words(SERVICES["redis"]["command"])]
    assert words[0] == "redis-server"
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")
    assert options["--rdbcompression"] == "no"
    assert _mounts("redis")["redis-data"] == "/data"


def test_kafka_keeps_its_data_on_a_volume_and_makes_no_topic_by_itself() -> None:
    environment = SERVICES["kafka"]["environment"]
    assert environment["KAFKA_LOG_DIRS"] == _mounts("kafka")["kafka-data"]
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


# --- The image


def test_base_images_are_pinned_and_of_one_python() -> None:
    images = {rest.split()[0] for rest in _of("FROM")}
    assert len(images) == 1
    assert all(EXACT_TAG.fullmatch(image) for image in images)
    assert next(iter(images)).startswith("python:3.13.")


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    user, group = _of("USER")[-1].split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_image_starts_onecount_and_asks_it_whether_it_lives() -> None:
    assert json.loads(_of("ENTRYPOINT")[-1]) == ["onecount"]
    assert "onecount" in PROJECT["scripts"]
    code = json.loads(_of("HEALTHCHECK")[-1].split("CMD", 1)[1])[-1]
    compile(code, "HEALTHCHECK", "exec")
    assert "'/live'" in code
    assert "ONECOUNT_METRICS_PORT" in code


def _copied() -> list[str]:
    """What the Dockerfile takes from the repository."""
    copies = [rest.split() for rest in _of("COPY") if "--from" not in rest]
    return [word for words in copies for word in words[:-1] if not word.startswith("--")]


def _is_ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out: the last line that matches it, or a folder that it is in, decides."""
    file = ROOT / ".dockerignore"
    patterns = file.read_text().splitlines() if file.exists() else []
    parents = [path, *(str(parent) for parent in Path(path).parents)]
    ignored = False
    for pattern in patterns:
        name = pattern.removeprefix("!").rstrip("/")
        if name and any(fnmatch.fnmatch(parent, name) for parent in parents):
            ignored = not pattern.startswith("!")
    return ignored


def test_what_the_image_copies_exists_and_reaches_the_build() -> None:
    assert _copied()
    assert [source for source in _copied() if not (ROOT / source).exists()] == []
    assert [source for source in _copied() if _is_ignored(source)] == []


def test_every_package_of_the_image_is_checked_against_its_hash() -> None:
    installs = re.findall(r"pip [^&]*\b(?:install|wheel|download)\b[^&]*", " && ".join(_of("RUN")))
    assert installs
    assert all("--require-hashes" in install or "--no-index" in install for install in installs)


def test_the_image_gets_the_tested_versions_and_no_test_packages() -> None:
    runtime, tested = _locked("requirements-runtime.lock"), _locked("requirements.lock")
    assert {name: tested.get(name) for name in runtime} == runtime, "run `make lock`"
    assert _names(PROJECT["dependencies"]) <= set(runtime), "run `make lock`"
    extras = PROJECT["optional-dependencies"]
    assert _names(extras["registry"]) <= set(runtime), "run `make lock`"
    only_tests = _names(extras["test"]) - _names(PROJECT["dependencies"]) - _names(extras["registry"])
    only_tests -= {"setuptools"}  # which grpcio-tools needs
    assert not only_tests & set(runtime)


def test_the_builder_finds_setuptools_in_the_lock() -> None:
    match = re.search(r"(?ms)^setuptools==.*?# via", (ROOT / "requirements.lock").read_text())
    assert match is not None
    assert re.findall(r"(?m)^\S+==", match[0]) == ["setuptools=="]
    assert "--hash=sha256:" in match[0]


# --- Prometheus and Grafana


def test_prometheus_scrapes_every_worker() -> None:
    groups = [group for job in PROMETHEUS["scrape_configs"] for group in job["static_configs"]]
    targets = {target: group["labels"]["stage"] for group in groups for target in group["targets"]}
    port = _image_environment()["ONECOUNT_METRICS_PORT"]
    scraped = WORKERS | DESKS | GATEWAYS
    always = {name: service for name, service in scraped.items() if "profiles" not in service}
    assert targets == {f"{name}:{port}": service["command"][-1] for name, service in always.items()}
    assert all(set(SERVICES["prometheus"]["networks"]) <= set(service["networks"]) for service in scraped.values())


def test_prometheus_finds_what_runs_by_its_profile_and_misses_none() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    stages = {name: service["command"][-1] for name, service in OURS.items() if "profiles" in service}
    assert stages == {"gateway": "gateway", "matcher-1": "matcher"}
    assert set(found["names"]) == set(stages)
    assert (found["type"], found["port"]) == ("A", int(_image_environment()["ONECOUNT_METRICS_PORT"]))
    labels = job["relabel_configs"]
    assert {label["target_label"] for label in labels} == {"stage"}
    assert {label["regex"]: label["replacement"] for label in labels} == stages


def test_the_gateway_reads_the_mounted_file_and_its_secrets_of_the_environment() -> None:
    (service,) = GATEWAYS.values()
    environment = service["environment"]
    assert _mounts("gateway")["./deploy/gateway.yaml"] == environment["ONECOUNT_GATEWAY_CONFIG"]
    secrets = {"ONECOUNT_GATEWAY_SECRET", "ONECOUNT_GATEWAY_USER_SALT"}
    assert {key: environment[key] for key in secrets} == dict.fromkeys(secrets), "no secret stands in the file"
    grace_s = _seconds(service["stop_grace_period"])
    assert grace_s > 3 * STOP_S, "what is under way, events and pixels, so long each"


def test_prometheus_reads_the_mounted_file() -> None:
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]
    assert _mounts("prometheus")["./deploy/prometheus"] == "/etc/prometheus"
    assert f"--storage.tsdb.path={_mounts('prometheus')['prometheus-data']}" in SERVICES["prometheus"]["command"]


def test_grafana_finds_its_provisioning_and_dashboards() -> None:
    mounts = _mounts("grafana")
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"  # Grafana's default
    providers = yaml.safe_load((PROVISIONING / "dashboards/files.yaml").read_text())["providers"]
    folder = mounts["./deploy/grafana/dashboards"]
    assert [provider["options"]["path"] for provider in providers] == [folder]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == folder
    assert home.name in {path.name for path in DASHBOARDS}


def test_grafana_asks_our_prometheus_at_its_pace() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text())["datasources"]
    url = urlsplit(source["url"])
    assert url.hostname == "prometheus"
    assert any(port.endswith(f":{url.port}") for port in SERVICES["prometheus"]["ports"])
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
