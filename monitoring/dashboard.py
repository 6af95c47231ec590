"""Writes the Grafana dashboard from ``panels.yml``: ``python -m monitoring.dashboard``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

PANELS_FILE: Final = Path(__file__).with_name("panels.yml")
DASHBOARD_FILE: Final = Path(__file__).parent / "grafana" / "dashboards" / "segmentation.json"
DATASOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
"""As provisioned in ``grafana/provisioning/datasources/prometheus.yml``."""

_SERVERS: Final = 'job=~".*triton.*", instance=~"$instance"'
_SELECTORS: Final = {
    "{servers}": f"{{{_SERVERS}}}",
    "{steps}": f'{{{_SERVERS}, model=~"admission|preprocess|postprocess|network_.+"}}',
    "{ensembles}": f'{{{_SERVERS}, model=~"segment_.+"}}',
    "{networks}": f'{{{_SERVERS}, model=~"network_.+"}}',
}
_COLUMNS: Final = 24
_HEIGHT: Final = 8
_LAST: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _LAST, "colorMode": "none", "graphMode": "area"},
    "bargauge": {"reduceOptions": _LAST, "displayMode": "basic", "orientation": "horizontal"},
    "table": {"showHeader": True, "cellHeight": "sm"},
}


def rows() -> list[dict[str, Any]]:
    """The content of ``panels.yml``, selectors filled in."""
    content = PANELS_FILE.read_text(encoding="utf-8")
    for name, selector in _SELECTORS.items():
        content = content.replace(name, selector)
    found: list[dict[str, Any]] = yaml.safe_load(content)
    return found


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON layout."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows():
        place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        panels.append({"type": "row", "title": row["row"], "collapsed": False, "panels": [], "gridPos": place})
        x, y = 0, y + 1
        for panel in row["panels"]:
            width = panel.get("width", _COLUMNS // 3)
            if x + width > _COLUMNS:
                x, y = 0, y + _HEIGHT
            panels.append(_panel(panel, {"x": x, "y": y, "w": width, "h": _HEIGHT}))
            x += width
        y += _HEIGHT
    for number, entry in enumerate(panels, 1):
        entry["id"] = number
    return {
        "uid": "segmentation",
        "title": "Instance segmentation on Triton",
        "tags": ["triton", "segmentation"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_instance_variable()]},
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: dict[str, Any], place: dict[str, int]) -> dict[str, Any]:
    kind = panel.get("kind", "timeseries")
    instant = kind == "table"
    entry: dict[str, Any] = {
        "type": kind,
        "title": panel["title"],
        "description": panel["description"],
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.get("unit", "short"), "min": 0}, "overrides": []},
        "options": _OPTIONS[kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
                "format": "table" if instant else "time_series",
            }
            for index, (legend, expression) in enumerate(panel["queries"].items())
        ],
    }
    if instant:
        entry["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
    return entry


def _instance_variable() -> dict[str, Any]:
    query = 'label_values(up{job=~".*triton.*"}, instance)'
    return {
        "name": "instance",
        "label": "server",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "instance"},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    """The dashboard's file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    DASHBOARD_FILE.write_text(text(), encoding="utf-8")
