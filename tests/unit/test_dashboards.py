"""The dashboards: made from data, ask only for what there is, show all that there is, and lead to the runbook."""

import json
import re
from typing import Any

import pytest
import yaml

from app.observe.catalogue import CATALOGUE, FOREIGN
from app.observe.dashboards import documents
from app.observe.grafana import COLUMNS, alarm_entries, runbook_path
from tests.promql import metric_names, operands
from tests.unit.test_alarms import RULES
from tests.unit.test_deploy import DASHBOARDS, PROVISIONING, ROOT

RUNBOOK = (ROOT / "docs/runbook.md").read_text()
SERIES = {entry.name: entry for entry in CATALOGUE}
SUFFIXES = ("_bucket", "_sum", "_count")
FOUR = [path for path in DASHBOARDS if path.stem != "runbook"]
# What the labels of a target in prometheus.yml and Prometheus itself add.
ADDED = {"job", "instance", "stage", "le", "alertname", "alertstate"}


def panels(path: Any) -> list[dict[str, Any]]:
    """A dashboard's panels without the headings of its rows."""
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def queries(path: Any) -> list[str]:
    """Every expression of a dashboard: of its panels, and the selectors of its variables."""
    document = json.loads(path.read_text())
    variables = [variable["query"]["query"] for variable in document["templating"]["list"]]
    selectors = [re.fullmatch(r"label_values\((\w+), (\w+)\)", query) for query in variables]
    return [target["expr"] for panel in panels(path) for target in panel.get("targets", [])] + [
        selector[1] for selector in selectors if selector is not None
    ]


def family(series: str) -> str:
    """The catalogue's name of a series."""
    return next((series.removesuffix(suffix) for suffix in SUFFIXES if series.removesuffix(suffix) in SERIES), series)


def test_the_committed_dashboards_are_those_of_the_code() -> None:
    assert {path.name: path.read_text() for path in DASHBOARDS} == documents(RUNBOOK), (
        "run: python -m app.observe.dashboards deploy/grafana/dashboards docs/runbook.md"
    )


def test_there_are_four_and_the_runbook() -> None:
    assert [path.stem for path in FOUR] == ["counting", "overview", "redis", "workers"]


def test_metric_names_and_operands_are_found_in_an_expression() -> None:
    query = 'histogram_quantile(0.9, sum by (le) (rate(a_bucket{x="y"}[$__range]))) / on (z) b unless c > bool 1e3'
    assert metric_names(query) == {"a_bucket", "b", "c"}
    assert operands('max by (j) (a{x=~"> 1"} > 0) != min(b) and deriv(c[5m]) > 0.5') == [
        'max by (j) (a{x=~"> 1"} > 0)',
        "min(b)",
        "deriv(c[5m])",
    ]


@pytest.mark.parametrize("path", FOUR, ids=lambda path: path.stem)
def test_a_dashboard_asks_only_for_metrics_of_the_catalogue_by_labels_that_they_have(path: Any) -> None:
    for query in queries(path):
        names = metric_names(query)
        assert names, query
        assert {family(name) for name in names} - SERIES.keys() - FOREIGN.keys() == set(), query
        for name, labels in re.findall(r"(\w+)\{([^}]*)\}", query):
            asked = set(re.findall(r'(\w+)=?[=~!]~?"', labels))
            entry = SERIES.get(family(name))
            assert asked <= ADDED | set(entry.labels if entry else ()), query


def test_every_metric_of_the_catalogue_is_on_a_panel() -> None:
    shown = {family(name) for path in FOUR for query in queries(path) for name in metric_names(query)}
    assert SERIES.keys() - shown == set()
    alarmed = {name for rule in RULES for name in metric_names(rule["expr"])}
    assert FOREIGN.keys() - shown - alarmed == set()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_say_what_they_show_and_do_not_overlap(path: Any) -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text())["datasources"]
    document = json.loads(path.read_text())
    cells: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        cells |= own
        if panel["type"] not in ("row", "text"):
            assert {part["datasource"]["uid"] for part in (panel, *panel["targets"])} == {source["uid"]}
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    asked = set(re.findall(r'=~"\$(\w+)"', path.read_text().replace('\\"', '"')))
    assert asked == {variable["name"] for variable in document["templating"]["list"]}, "variables that nothing asks for"


def test_a_panels_link_leads_to_the_alarms_entry_of_the_runbook() -> None:
    entries = alarm_entries(RUNBOOK)
    shown = {panel["id"]: panel for panel in panels(next(path for path in DASHBOARDS if path.stem == "runbook"))}
    linked = set()
    for path in FOUR:
        for link in (link for panel in panels(path) for link in panel["links"]):
            alarm = link["title"].removeprefix("Runbook: ")
            assert link["url"] == runbook_path(alarm, entries)
            assert shown[int(link["url"].rpartition("=")[2])]["title"] == alarm
            linked.add(alarm)
    assert linked == set(entries), "each alarm can be looked into on some panel"
    assert all(panel["options"]["content"] for panel in shown.values())
