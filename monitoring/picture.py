"""Draws the dashboard's panels from a running Prometheus, for documents and for looking where no Grafana is.

``python -m monitoring.picture --prometheus http://127.0.0.1:9090 --out dashboard.png``
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from monitoring.dashboard import Panel, rows
from pipeline.loopback import is_loopback

_COLUMNS: Final = 3
_STEPS: Final = 120
_SCALES: Final = {"percentunit": 100.0, "bytes": 1e-9, "s": 1e3}
_UNITS: Final = {
    "percentunit": "%",
    "bytes": "GB",
    "s": "ms",
    "reqps": "requests/s",
    "cps": "per s",
    "ms": "ms",
    "watt": "W",
    "short": "",
}


class PrometheusError(Exception):
    """Prometheus does not answer, or refuses a query."""


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus.

    Attributes:
        url: such as ``http://127.0.0.1:9090``.
    """

    url: str

    def get(self, path: str, **parameters: str | float) -> Any:
        """The ``data`` of an answer of its HTTP API.

        Args:
            path: below ``/api/v1/``.
            parameters: of the query.

        Raises:
            PrometheusError: it does not answer, or refuses.
        """
        direct = [urllib.request.ProxyHandler({})] if is_loopback(urllib.parse.urlsplit(self.url).netloc) else []
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.build_opener(*direct).open(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(
                f"{self.url} refused {parameters}: {error.read().decode(errors='replace')}"
            ) from error
        except (OSError, ValueError) as error:
            raise PrometheusError(
                f"{self.url} does not answer ({error}); name another one with --prometheus"
            ) from error


def substituted(expression: str, instance: str = ".*", rate_interval: str = "20s") -> str:
    """A panel's query without Grafana's variables.

    Args:
        expression: PromQL of :mod:`monitoring.dashboard`.
        instance: regular expression of the servers.
        rate_interval: as Grafana computes it: four scrapes.
    """
    return expression.replace("$instance", instance).replace("$__rate_interval", rate_interval)


def draw(prometheus: Prometheus, out: Path, minutes: float, gpu: bool) -> None:
    """Draw all panels into one picture.

    Args:
        prometheus: where the figures are.
        out: PNG or SVG file to write.
        minutes: how far back.
        gpu: whether to draw the panels that need one.

    Raises:
        PrometheusError: it does not answer, or refuses a query.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(row.title, panel) for row in rows() for panel in row.panels if gpu or not panel.needs_gpu]
    lines = math.ceil(len(panels) / _COLUMNS)
    figure, axes = plt.subplots(lines, _COLUMNS, figsize=(16, 2.9 * lines), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for (title, panel), axis in zip(panels, axes.flat, strict=False):
        unit = _UNITS.get(panel.unit, panel.unit)
        axis.set_title(f"{title}: {panel.title}{f' [{unit}]' if unit else ''}", fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        if panel.kind == "timeseries":
            _timeseries(prometheus, panel, axis, minutes)
        else:
            _latest(prometheus, panel, axis)
    figure.savefig(out, dpi=80)
    plt.close(figure)


def _timeseries(prometheus: Prometheus, panel: Panel, axis: Any, minutes: float) -> None:
    end = time.time()
    step = minutes * 60 / _STEPS
    for query in panel.queries:
        found = prometheus.get(
            "query_range", query=substituted(query.expr), start=end - minutes * 60, end=end, step=step
        )
        for series in found["result"]:
            times = [(float(moment) - end) / 60 for moment, _ in series["values"]]
            values = [float(value) * _SCALES.get(panel.unit, 1.0) for _, value in series["values"]]
            axis.plot(times, values, label=_legend(query.legend, series["metric"]), linewidth=1.2)
    axis.set_xlim(-minutes, 0)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=6, loc="upper left", ncols=2)


def _latest(prometheus: Prometheus, panel: Panel, axis: Any) -> None:
    """The value now, as a number or as bars."""
    bars = []
    for query in panel.queries:
        for series in prometheus.get("query", query=substituted(query.expr))["result"]:
            value = float(series["value"][1]) * _SCALES.get(panel.unit, 1.0)
            label = _legend(query.legend, series["metric"])
            if panel.kind == "table":
                label = " ".join(str(series["metric"][key]) for key in ("model", "version") if key in series["metric"])
            bars.append((label, value))
    bars.sort()
    if panel.kind == "stat":
        axis.axis("off")
        text = f"{bars[0][1]:g}" if bars else "no data"
        axis.text(0.5, 0.5, text, fontsize=28, ha="center", va="center", transform=axis.transAxes)
        return
    axis.barh([label for label, _ in bars], [value for _, value in bars], height=0.5)
    for place, (_, value) in enumerate(bars):
        axis.text(value, place, f" {value:.3g}", va="center", fontsize=7)
    axis.margins(x=0.15)


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns 0, or 1 if Prometheus does not answer."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.picture", description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="default: http://127.0.0.1:9090")
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"), help="default: dashboard.png")
    parser.add_argument("--minutes", type=float, default=15.0, help="how far back (default: 15)")
    parser.add_argument("--gpu", action="store_true", help="with the panels that need a GPU")
    options = parser.parse_args(arguments)
    try:
        draw(Prometheus(options.prometheus.rstrip("/")), options.out, options.minutes, options.gpu)
    except PrometheusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
