"""Panels and dashboards as Grafana reads them. What they show is in dashboards.py."""

import re
from typing import Any, Final, NamedTuple

COLUMNS: Final = 24  # of Grafana's grid
SOURCE: Final = {"type": "prometheus", "uid": "prometheus"}  # deploy/grafana/provisioning/datasources names it
RUNBOOK_UID: Final = "onecount-runbook"
_SCHEMA_VERSION: Final = 41
_COLORS: Final = ("green", "orange", "red")


class Panel(NamedTuple):
    """What one panel asks and how it shows the answer. `queries`: PromQL and legend. `limits`: from where on it is orange and
    red, ascending. `alarm`: whose entry of the runbook it links to.
    """

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"  # stat, timeseries or table
    width: int = 12
    height: int = 8
    limits: tuple[float, ...] = ()
    alarm: str = ""
    stacked: bool = False
    most: float | None = None


class Variable(NamedTuple):
    """A choice above the panels: all values of a label of a metric; several may be chosen."""

    name: str
    label: str
    metric: str


class Dashboard(NamedTuple):
    """One dashboard: its file is `<name>.json`. `rows`: panels under a heading."""

    name: str
    title: str
    text: str
    variables: tuple[Variable, ...]
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def alarm_entries(runbook: str) -> dict[str, str]:
    """The runbook's entry of each alarm, as Markdown: what stands under `### \\`Onecount...\\``, up to the next heading."""
    found = re.findall(r"(?ms)^### `(Onecount\w+)`\n(.+?)(?=^#{1,3} |\Z)", runbook)
    return {name: text.strip() for name, text in found}


def runbook_path(alarm: str, entries: dict[str, str]) -> str:
    """Where Grafana shows an alarm's entry, from its root."""
    return f"/d/{RUNBOOK_UID}?viewPanel={list(entries).index(alarm) + 1}"


def rendered(dashboard: Dashboard, entries: dict[str, str]) -> dict[str, Any]:
    """A dashboard as Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    x = y = height = 0
    for title, row in dashboard.rows:
        y, x, height = y + height, 0, 0
        panels.append(_heading(len(panels) + 1, title, y))
        y += 1
        for panel in row:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append(_panel(len(panels) + 1, panel, place, entries))
            x, height = x + panel.width, max(height, panel.height)
    variables = [_variable(variable) for variable in dashboard.variables]
    return _document(dashboard.name, dashboard.title, dashboard.text, panels, variables)


def rendered_runbook(entries: dict[str, str]) -> dict[str, Any]:
    """The alarms' entries of the runbook as a dashboard of their own, a panel each, so that links need no other server."""
    panels = [
        {
            "id": number,
            "type": "text",
            "title": alarm,
            "gridPos": {"x": 0, "y": (number - 1) * 8, "w": COLUMNS, "h": 8},
            # a link to another page of docs/ leads nowhere in Grafana
            "options": {"mode": "markdown", "content": re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", text)},
        }
        for number, (alarm, text) in enumerate(entries.items(), 1)
    ]  # fmt: skip
    return _document("runbook", "onecount: runbook of the alarms", "docs/runbook.md has the rest.", panels, [])


def _document(
    name: str, title: str, text: str, panels: list[dict[str, Any]], variables: list[dict[str, Any]]
) -> dict[str, Any]:
    others = _link("onecount", type="dashboards", tags=["onecount"], includeVars=True)
    return {
        "uid": f"onecount-{name}", "title": title, "description": text, "tags": ["onecount"], "editable": False,
        "schemaVersion": _SCHEMA_VERSION, "version": 1, "timezone": "browser", "graphTooltip": 1, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "annotations": {"list": []}, "templating": {"list": variables},
        "links": [others], "panels": panels,
    }  # fmt: skip


def _link(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": title, "type": "link", "url": "", "tags": [], "icon": "doc", "tooltip": "", "asDropdown": False,
        "includeVars": False, "keepTime": True, "targetBlank": False, **more,
    }  # fmt: skip


def _variable(variable: Variable) -> dict[str, Any]:
    query = f"label_values({variable.metric}, {variable.name})"
    return {
        "name": variable.name, "label": variable.label, "type": "query", "datasource": SOURCE,
        "query": {"query": query, "refId": "values", "qryType": 1}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}, "hide": 0, "options": [], "regex": "",
    }  # fmt: skip


def _heading(number: int, title: str, y: int) -> dict[str, Any]:
    place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(number: int, panel: Panel, place: dict[str, int], entries: dict[str, str]) -> dict[str, Any]:
    links = [_link(f"Runbook: {panel.alarm}", url=runbook_path(panel.alarm, entries))] if panel.alarm else []
    steps = [{"color": "green", "value": None}]
    colors = _COLORS[1:] if len(panel.limits) == 2 else _COLORS[2:]
    steps += [{"color": color, "value": limit} for color, limit in zip(colors, panel.limits, strict=False)]
    defaults: dict[str, Any] = {
        "unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind == "stat" and panel.limits else "palette-classic"},
    }  # fmt: skip
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = _drawing(panel)
    return {
        "id": number, "type": panel.kind, "title": panel.title, "description": panel.text, "datasource": SOURCE,
        "gridPos": place, "links": links, "options": _options(panel), "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [_target(place, expression, legend, panel.kind) for place, (expression, legend) in enumerate(panel.queries)],
        "transformations": _columns() if panel.kind == "table" else [],
    }  # fmt: skip


def _target(place: int, expression: str, legend: str, kind: str) -> dict[str, Any]:
    return {
        "refId": "ABCDEFGH"[place], "datasource": SOURCE, "editorMode": "code", "expr": expression,
        "legendFormat": legend or "__auto", "instant": kind != "timeseries", "range": kind == "timeseries",
        "format": "table" if kind == "table" else "time_series",
    }  # fmt: skip


def _drawing(panel: Panel) -> dict[str, Any]:
    return {
        "drawStyle": "line", "lineWidth": 1, "fillOpacity": 40 if panel.stacked else 10, "showPoints": "never",
        "spanNulls": False, "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.limits else "off"},
    }  # fmt: skip


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        wide = panel.width * 2 >= COLUMNS
        legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []} | (
            # many series are 0 where all is well: the others first
            {"displayMode": "table", "placement": "right", "calcs": ["max"], "sortBy": "Max", "sortDesc": True}
            if wide
            else {}
        )
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if panel.limits else "value", "graphMode": "none", "justifyMode": "auto",
        "orientation": "auto", "textMode": "value_and_name" if any(legend for _, legend in panel.queries) else "value",
    }  # fmt: skip


def _columns() -> list[dict[str, Any]]:
    """A table of labels: the time and the value say nothing."""
    hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
    return [{"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": {}}}]
