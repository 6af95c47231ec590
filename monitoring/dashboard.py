"""Generates the Grafana dashboard: ``python -m monitoring.dashboard`` writes it, ``--check`` compares.

Panels are data here, so that a test can send each of their queries to a real Prometheus.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DASHBOARD_FILE: Final = Path(__file__).parent / "grafana" / "dashboards" / "segmentation.json"
DATASOURCE_UID: Final = "prometheus"
"""As provisioned in ``grafana/provisioning/datasources/prometheus.yml``."""

STEPS: Final = "admission|preprocess|postprocess|network_.+"
ENSEMBLES: Final = "segment_.+"
NETWORKS: Final = "network_.+"

RATE: Final = "$__rate_interval"
"""Grafana's own variable: at least four scrapes."""

_COLUMNS: Final = 24
_HEIGHT: Final = 8


@dataclass(frozen=True)
class Panel:
    """One panel."""

    title: str  # what it shows
    description: str  # how to read it
    # Legend, by which Grafana names the series, to PromQL with Grafana's variables ``$instance`` and
    # ``$__rate_interval``
    queries: dict[str, str]
    unit: str = "short"  # Grafana's name of the unit
    kind: str = "timeseries"  # ``timeseries``, ``stat``, ``bargauge`` or ``table``
    width: int = 8  # columns of 24
    needs_gpu: bool = False  # whether its series exist only on servers with a GPU
    needs_onnx: bool = False  # whether its series exist only in the profiles that run the network in ONNX Runtime


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _of(metric: str, model: str = "", more: str = "") -> str:
    """A metric on the chosen servers, of the models that a regular expression matches."""
    labels = ['job=~".*triton.*"', 'instance=~"$instance"']
    labels += [f'model=~"{model}"'] if model else []
    labels += [more] if more else []
    return f"{metric}{{{', '.join(labels)}}}"


def _rate(metric: str, model: str = "", by: str = "model") -> str:
    return f"sum by ({by}) (rate({_of(metric, model)}[{RATE}]))"


def _ratio(over: str, under: str, model: str, by: str = "model", scale: str = "") -> str:
    """One rate divided by another; no value while the divisor is 0."""
    return f"{_rate(over, model, by)}{scale} / ({_rate(under, model, by)} > 0)"


def _milliseconds(metric: str, model: str) -> str:
    """Mean of a duration per request."""
    return _ratio(metric, "nv_inference_request_success", model, scale=" / 1e3")


def rows() -> tuple[Row, ...]:
    """The dashboard's content."""
    return (_state(), _traffic(), _latency(), _precisions(), _images(), _machine())


def _state() -> Row:
    return Row(
        "State",
        (
            Panel(
                "Servers up",
                "Servers whose metrics were scraped.",
                {"up": 'sum(up{job=~".*triton.*", instance=~"$instance"})'},
                kind="stat",
                width=4,
            ),
            Panel(
                "Alerts firing",
                "Of the rules in monitoring/rules.yml.",
                {"firing": 'count(ALERTS{alertstate="firing"}) or vector(0)'},
                kind="stat",
                width=4,
            ),
            Panel(
                "Versions served",
                "Loaded versions of each network, with the number of servers that hold them. Two versions of one model "
                "on one server, for longer than a promotion takes, are worth a question.",
                {"servers": f"count by (model, version) ({_of('nv_inference_request_success', NETWORKS)})"},
                kind="table",
            ),
            Panel(
                "Requests by version",
                "Which version of each network answers: a promotion shows as one line falling while another rises.",
                {"{{model}} v{{version}}": _rate("nv_inference_request_success", NETWORKS, "model, version")},
                unit="reqps",
            ),
        ),
    )


def _traffic() -> Row:
    return Row(
        "Traffic",
        (
            Panel(
                "Requests",
                "Answered requests of each ensemble.",
                {"{{model}}": _rate("nv_inference_request_success", ENSEMBLES)},
                unit="reqps",
            ),
            Panel(
                "Failures by reason",
                "OTHER is a request that a step refused or failed, REJECTED a full queue, CANCELED a caller that gave "
                "up, BACKEND a fault of the runtime; servers of version 2.51 count each of an ensemble twice. Busy is "
                "a request that admission refused because its answer would be too late: callers try again, or add "
                "replicas.",
                {
                    "{{model}} {{reason}}": _rate("nv_inference_request_failure", ENSEMBLES, "model, reason"),
                    "{{instance}} busy": _rate("segmentation_requests_refused_total", by="instance"),
                },
                unit="reqps",
            ),
            Panel(
                "Images",
                "Images segmented; a request carries one to eight.",
                {"{{model}}": _rate("nv_inference_count", ENSEMBLES)},
                unit="cps",
            ),
        ),
    )


def _latency() -> Row:
    inside = ("queue", "compute_input", "compute_infer", "compute_output")
    return Row(
        "Latency",
        (
            Panel(
                "Mean latency of a request",
                "From the request's arrival to its answer, inside the server.",
                {"{{model}}": _milliseconds("nv_inference_request_duration_us", ENSEMBLES)},
                unit="ms",
            ),
            Panel(
                "Mean latency by step",
                "What each step of the ensembles takes, its queue included. The step that grows under load is the one "
                "that saturates first.",
                {"{{model}}": _milliseconds("nv_inference_request_duration_us", STEPS)},
                unit="ms",
            ),
            Panel(
                "Queue time by step",
                "How long a request waits before a step takes it. For preprocess and postprocess, more instances "
                "help; for a network, another replica or a lower precision.",
                {"{{model}}": _milliseconds("nv_inference_queue_duration_us", STEPS)},
                unit="ms",
            ),
            Panel(
                "Where the time goes",
                "All steps together: waiting, handing tensors in, computing, handing tensors out.",
                {
                    part.replace(
                        "_", " "
                    ): f"sum(rate({_of(f'nv_inference_{part}_duration_us', STEPS)}[{RATE}])) / 1e3 / "
                    f"(sum(rate({_of('nv_inference_request_success', ENSEMBLES)}[{RATE}])) > 0)"
                    for part in inside
                },
                unit="ms",
            ),
            Panel(
                "Batch size",
                "Images per execution. A network's batch grows with load; one that stays at 1 under load leaves speed "
                "unused (max_queue_delay_microseconds, the plan's opt_batch).",
                {"{{model}}": _ratio("nv_inference_count", "nv_inference_exec_count", STEPS)},
            ),
            Panel(
                "Requests waiting",
                "Requests that a step has not taken yet.",
                {"{{model}}": f"sum by (model) ({_of('nv_inference_pending_request_count', STEPS)})"},
            ),
        ),
    )


def _precisions() -> Row:
    return Row(
        "Precisions side by side",
        (
            Panel(
                "Network time per image",
                "Time of the network's executions by the images in them, in each precision.",
                {
                    "{{model}}": _ratio(
                        "nv_inference_compute_infer_duration_us", "nv_inference_count", NETWORKS, scale=" / 1e3"
                    )
                },
                unit="ms",
                kind="bargauge",
            ),
            Panel(
                "Share of the requests",
                "Which precision callers use.",
                {
                    "{{model}}": f"{_rate('nv_inference_request_success', ENSEMBLES)} / scalar("
                    f"sum(rate({_of('nv_inference_request_success', ENSEMBLES)}[{RATE}])) > 0)"
                },
                unit="percentunit",
                kind="bargauge",
            ),
            Panel(
                "Processor time per image",
                "Of the network only, over all cores (profiles cpu and cuda).",
                {
                    "{{model}}": _ratio(
                        "segmentation_session_cpu_seconds_total", "segmentation_session_images_total", NETWORKS
                    )
                },
                unit="s",
                kind="bargauge",
                needs_onnx=True,
            ),
        ),
    )


def _images() -> Row:
    detections = "segmentation_detections_per_image"
    return Row(
        "Images",
        (
            Panel(
                "Images decoded",
                "By preprocess, over all precisions.",
                {"{{instance}}": _rate("segmentation_images_decoded_total", by="instance")},
                unit="cps",
            ),
            Panel(
                "Images refused by reason",
                "empty: no bytes. format: not an accepted image format. truncated: cut off on the way. too_large: "
                "above the limits in preprocess/config.pbtxt. damaged: could not be decoded.",
                {"{{reason}}": _rate("segmentation_decode_errors_total", by="reason")},
                unit="cps",
            ),
            Panel(
                "Instances found per image",
                "A sudden change here, with no change in latency, is a change of the images or of the model's quality.",
                {
                    "mean": f"sum(rate({_of(detections + '_sum')}[{RATE}])) / "
                    f"(sum(rate({_of(detections + '_count')}[{RATE}])) > 0)",
                    "90th percentile": "histogram_quantile(0.9, "
                    f"sum by (le) (rate({_of(detections + '_bucket')}[{RATE}])))",
                },
            ),
        ),
    )


def _machine() -> Row:
    return Row(
        "Machine",
        (
            Panel(
                "CPU",
                "All cores of the machine together.",
                {"{{instance}}": _of("nv_cpu_utilization")},
                unit="percentunit",
            ),
            Panel(
                "Memory",
                "Of the machine.",
                {
                    "{{instance}} used": _of("nv_cpu_memory_used_bytes"),
                    "{{instance}} all": _of("nv_cpu_memory_total_bytes"),
                },
                unit="bytes",
            ),
            Panel(
                "Pinned memory",
                "Of Triton's pool for copies to and from the GPU; when it is used up, copies get slower.",
                {
                    "{{instance}} used": _of("nv_pinned_memory_pool_used_bytes"),
                    "{{instance}} all": _of("nv_pinned_memory_pool_total_bytes"),
                },
                unit="bytes",
            ),
            Panel(
                "GPU",
                "Share of the time in which a kernel ran; a full GPU with short queues is a good one.",
                {"{{instance}} {{gpu_uuid}}": _of("nv_gpu_utilization")},
                unit="percentunit",
                needs_gpu=True,
            ),
            Panel(
                "GPU memory",
                "Plans, their activations and Triton's pools.",
                {
                    "{{gpu_uuid}} used": _of("nv_gpu_memory_used_bytes"),
                    "{{gpu_uuid}} all": _of("nv_gpu_memory_total_bytes"),
                },
                unit="bytes",
                needs_gpu=True,
            ),
            Panel(
                "GPU power",
                "At the limit, clocks fall, and latency rises without a change in load.",
                {"{{gpu_uuid}} drawn": _of("nv_gpu_power_usage"), "{{gpu_uuid}} limit": _of("nv_gpu_power_limit")},
                unit="watt",
                needs_gpu=True,
            ),
        ),
    )


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON layout."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows():
        panels.append(
            {"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": _place(0, y, 24, 1)}
        )
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + _HEIGHT
            panels.append(_panel(panel, _place(x, y, panel.width, _HEIGHT)))
            x += panel.width
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


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    note = " (only with a GPU)" if panel.needs_gpu else ""
    instant = panel.kind == "table"
    entry: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description + note,
        "datasource": _datasource(),
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _datasource(),
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
                "format": "table" if instant else "time_series",
            }
            for index, (legend, expression) in enumerate(panel.queries.items())
        ],
    }
    if instant:
        entry["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
    return entry


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


def _instance_variable() -> dict[str, Any]:
    query = 'label_values(up{job=~".*triton.*"}, instance)'
    return {
        "name": "instance",
        "label": "server",
        "type": "query",
        "datasource": _datasource(),
        "query": {"query": query, "refId": "instance"},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _datasource() -> dict[str, str]:
    return {"type": "prometheus", "uid": DATASOURCE_UID}


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the dashboard, or compare.

    Returns:
        0; 1 if the file is not what is generated.
    """
    parser = argparse.ArgumentParser(prog="python -m monitoring.dashboard", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    options = parser.parse_args(arguments)
    text = json.dumps(dashboard(), indent=2) + "\n"
    if not options.check:
        DASHBOARD_FILE.write_text(text, encoding="utf-8")
        return 0
    if DASHBOARD_FILE.is_file() and DASHBOARD_FILE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DASHBOARD_FILE} is out of date; write it with `python -m monitoring.dashboard`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
