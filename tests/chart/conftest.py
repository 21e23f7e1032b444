"""The chart as Helm renders it: by Helm's own engine, which a package brings along; there is no cluster and no network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/onecount"
VALUE_SETS = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
POLICY = (ROOT / "deploy/policy.yaml").read_text()

Render = Callable[..., str]


def values_of(name: str) -> dict[str, Any]:
    """The values of ci/NAME-values.yaml with the repository's policy, as `-f` and `--set-file policy=` give them."""
    return yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text()) | {"policy": POLICY}


def overlaid(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with the changes laid over them, dotted names for nested ones."""
    found = yaml.safe_load(yaml.safe_dump(values))
    for path, value in changes.items():
        *parents, last = path.split(".")
        inner = found
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return found


def documents(text: str) -> list[dict[str, Any]]:
    """The manifests of a rendered text."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def of(kind: str, text: str) -> dict[str, dict[str, Any]]:
    """The manifests of a kind by name."""
    return {found["metadata"]["name"]: found for found in documents(text) if found["kind"] == kind}


def pods_of(text: str) -> dict[str, dict[str, Any]]:
    """The pod specs by the name of what makes them."""
    return {
        name: found["spec"]["template"]["spec"]
        for kind in ("StatefulSet", "Deployment", "Job")
        for name, found in of(kind, text).items()
    }


def environment_of(pod: dict[str, Any]) -> dict[str, str]:
    """What a container of the pod shop-0 gets."""
    (container,) = pod["containers"]
    found = {}
    for variable in container["env"]:
        if "valueFrom" in variable:
            assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        found[variable["name"]] = variable.get("value", "shop-0").replace("$$(", "$(")
    assert len(found) == len(container["env"]), "a variable is given twice"
    return found


def workloads(text: str) -> dict[str, dict[str, Any]]:
    """What makes the pods that stay."""
    return of("StatefulSet", text) | of("Deployment", text)


@pytest.fixture(scope="session")
def render() -> Render:
    """`render(set, name=..., **changes)`: what `helm template` prints, without the notes."""
    chart = helm.Chart.load(CHART)

    def render_set(values: str = "minimal", name: str = "shop", changes: dict[str, Any] | None = None) -> str:
        files = chart.render(overlaid(values_of(values), changes or {}), name=name, namespace="ads")
        return "\n---\n".join(text for path, text in sorted(files.items()) if not path.endswith("NOTES.txt"))

    return render_set
