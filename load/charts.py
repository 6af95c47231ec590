"""The report's charts, as SVG text: distinct by marker, dash and hatch as well as by color, for print."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from load.analysis import Analysis, Ratio, Series, Share
from load.results import PERCENTILES

# Okabe and Ito's colors, which are distinct under color blindness (Color Universal Design, 2008).
_COLORS: Final = {"fp32": "#0072B2", "fp16": "#E69F00", "int8": "#009E73"}
_MARKERS: Final = {"fp32": "o", "fp16": "s", "int8": "^"}
_DASHES: Final = {"fp32": "-", "fp16": "--", "int8": "-."}
_STEP_COLORS: Final = {
    "admission": "#F0E442",
    "preprocess": "#56B4E9",
    "network": "#D55E00",
    "postprocess": "#CC79A7",
    "rest": "#999999",
}
_QUEUE_HATCH: Final = "////"
_STYLE: Final[Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.7,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1,  # inches
    "svg.fonttype": "path",  # the same on every machine
    "svg.hashsalt": "report",  # the same bytes from the same numbers
}


def throughput_against_latency(analysis: Analysis) -> str:
    """Per protocol a row, per percentile a panel: latency against throughput, one line per precision.

    The knee is ringed; bars span the rounds' least and most; a dotted line is the budget.
    """
    with mpl.rc_context(_STYLE):
        rows = analysis.protocols
        figure = Figure(figsize=(11, 3.5 * len(rows) + 0.3))
        axes = figure.subplots(len(rows), len(PERCENTILES), sharex="row", squeeze=False)
        for row, protocol in zip(axes, rows, strict=True):
            for axis, percentile in zip(row, PERCENTILES, strict=True):
                for series in _of_protocol(analysis, protocol):
                    _draw_curve(axis, series, percentile)
                if analysis.budget_ms is not None and percentile == 95:
                    axis.axhline(analysis.budget_ms, color="#444444", linestyle=":", linewidth=1.2)
                    text, place = f"budget {analysis.budget_ms:g} ms", (0.01, analysis.budget_ms)
                    axis.annotate(text, place, xycoords=("axes fraction", "data"), va="bottom", fontsize=8.5)
                axis.set_title(f"p{percentile} over {protocol}")
                axis.set_xlabel("images per second")
                axis.set_ylabel("latency, ms")
                axis.margins(0.12)
                axis.set_ylim(bottom=0)
                axis.set_xlim(left=0)
        return _svg(figure, axes[0][0])


def where_time_goes(analysis: Analysis) -> str:
    """Per protocol a panel: the mean request in stacked milliseconds, per precision, at knee and highest load."""
    with mpl.rc_context(_STYLE):
        rows = analysis.protocols
        bars = [(protocol, _stacks(analysis, protocol)) for protocol in rows]
        heights = [max(len(one), 1) for _, one in bars]
        figure = Figure(figsize=(11, sum(heights) * 0.42 + 1.1 * len(rows) + 0.6))
        axes = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        for (axis,), (protocol, stacks) in zip(axes, bars, strict=True):
            _draw_stacks(axis, stacks)
            axis.set_title(f"mean request over {protocol}")
            axis.set_xlabel("milliseconds")
        return _svg(figure, axes[0][0])


def ratios(found: Sequence[Ratio]) -> str:
    """Ratios of throughput with their spread over the rounds; the line at 1 is no difference."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 0.5 * max(len(found), 1) + 1.1))
        axis = figure.subplots()
        for position, ratio in enumerate(found):
            spread = ratio.throughput
            color = "#888888" if ratio.doubt else _COLORS[ratio.precision]
            axis.plot([spread.low, spread.high], [position] * 2, color=color, linewidth=5, alpha=0.45)
            axis.plot([spread.median], [position], "D", color=color, markersize=7)
            axis.annotate(
                ", ".join(filter(None, (f"{spread.median:.2f}x", ratio.doubt))),
                (spread.high, position),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
            )
        axis.axvline(1.0, color="#222222", linewidth=1)
        axis.set_yticks(range(len(found)), [f"{one.precision} / {one.base}, {one.protocol}" for one in found])
        axis.set_ylim(len(found) - 0.4, -0.6)
        highest = max([1.0, *(one.throughput.high for one in found)])
        lowest = min([1.0, *(one.throughput.low for one in found)])
        margin = max(0.1, highest - lowest)
        axis.set_xlim(lowest - 0.15 * margin, highest + 0.45 * margin)
        axis.set_xlabel("ratio of throughput, each precision at its best load; bar: least to most of the rounds")
        axis.grid(axis="y", visible=False)
        return _svg(figure)


def _draw_curve(axis: Any, series: Series, percentile: int) -> None:
    color = _COLORS[series.precision]
    for points, is_open in ((series.closed, False), (series.open, True)):
        if not points:
            continue
        x = [point.throughput.median for point in points]
        y = [point.latency_ms[percentile].median for point in points]
        axis.errorbar(
            x,
            y,
            xerr=_whiskers([point.throughput for point in points]),
            yerr=_whiskers([point.latency_ms[percentile] for point in points]),
            color=color,
            marker=_MARKERS[series.precision],
            markerfacecolor="white" if is_open else color,
            markersize=5.5,
            linestyle=":" if is_open else _DASHES[series.precision],
            linewidth=1.6,
            elinewidth=0.8,
            capsize=2,
            label=f"{series.precision}, open loop" if is_open else series.precision,
        )
        for point, right, up in zip(points, x, y, strict=True):
            axis.annotate(
                f"{point.load.rate:g}/s" if is_open else str(point.load.users),
                (right, up),
                xytext=(6, -9),
                textcoords="offset points",
                fontsize=7.5,
                color=color,
            )
    knee = series.knee
    if knee is not None:
        at = (knee.throughput.median, knee.latency_ms[percentile].median)
        axis.plot(*at, "o", markersize=14, fillstyle="none", color=color, markeredgewidth=1.3)


def _whiskers(spreads: Sequence[Any]) -> list[list[float]]:
    return [[one.median - one.low for one in spreads], [one.high - one.median for one in spreads]]


def _stacks(analysis: Analysis, protocol: str) -> list[tuple[str, list[Share]]]:
    """Label and shares of each bar: every precision at its knee, and at the highest load that was tried."""
    bars = []
    for series in _of_protocol(analysis, protocol):
        knee, points = series.knee, series.closed or series.open
        if knee is None:
            continue
        bars.append((f"{series.precision}, {knee.load.label} (knee)", knee.shares()))
        if points[-1] is not knee:
            bars.append((f"{series.precision}, {points[-1].load.label}", points[-1].shares()))
    return bars


def _draw_stacks(axis: Any, stacks: Sequence[tuple[str, list[Share]]]) -> None:
    for position, (_, shares) in enumerate(stacks):
        left = 0.0
        for share in shares:
            name = " ".join(filter(None, (share.step, share.phase)))
            axis.barh(
                position,
                share.milliseconds,
                left=left,
                height=0.68,
                color=_STEP_COLORS[share.step],
                alpha=0.45 if share.phase == "queue" else 1.0,
                hatch=_QUEUE_HATCH if share.phase == "queue" else None,
                edgecolor="white",
                linewidth=0.6,
                label="network, scheduling" if share.step == "rest" else name,
            )
            left += share.milliseconds
        axis.annotate(
            f"{left:.0f} ms", (left, position), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axis.set_yticks(range(len(stacks)), [label for label, _ in stacks])
    axis.set_ylim(len(stacks) - 0.4, -0.6)
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)


def _of_protocol(analysis: Analysis, protocol: str) -> list[Series]:
    return [series for series in analysis.series if series.protocol == protocol]


def _svg(figure: Any, legend_of: Any = None) -> str:
    """The figure as an ``<svg>`` element, with a legend above for one of its axes.

    Without the XML prologue, which HTML does not allow.
    """
    if legend_of is not None:
        unique = dict(zip(*reversed(legend_of.get_legend_handles_labels()), strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=4, frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)
