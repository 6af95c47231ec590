"""The GPU benchmark as a picture: images per second against what bounds them, and what the host's time goes into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def host_limit(result: dict[str, Any]) -> float:
    """Images per second at which every core of the host would be busy, from the processor time under the highest load.

    Args:
        result: of one precision, as ``gpu-<precision>.json`` holds it.
    """
    load = result["loads"][-1]
    each_ms = load["client_ms"] + load["usage"]["other_ms"] + load["usage"]["session_ms"]
    return float(result["cores"] * 1000 / each_ms)


def best_bare(bare: dict[str, float]) -> dict[str, tuple[float, str]]:
    """The batch size that is best in each way in which the session was measured alone.

    Args:
        bare: images per second by names such as ``run, batch 16``.

    Returns:
        By way, such as ``run``: images per second and the whole name.
    """
    best: dict[str, tuple[float, str]] = {}
    for name, rate in bare.items():
        way = name.partition(",")[0]
        best[way] = max(best.get(way, (0.0, "")), (rate, name))
    return best


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the results of one or more precisions.

    Args:
        results: see :func:`host_limit`.
        path: PNG file to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.5 + 3.1 * len(results)), layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False, width_ratios=(3, 2))
    for (rates, times), result in zip(rows, results, strict=True):
        _draw_rates(rates, result)
        _draw_times(times, result)
    machine = f"{results[0]['gpu'] or 'no GPU'}, {results[0]['cores']} cores"
    figure.suptitle(f"the ensemble on a GPU machine: profile {results[0]['profile']}, {machine}")
    figure.savefig(path, dpi=110)


def _draw_rates(axes: Any, result: dict[str, Any]) -> None:
    loads = result["loads"]
    names = [
        f"{load['in_flight']}\n{load['images_per_s']:.0f}/s\np50 {load['p50_ms']:.0f} ms\np99 {load['p99_ms']:.0f} ms"
        for load in loads
    ]
    axes.bar(names, [load["images_per_s"] for load in loads], 0.6, color="C0", label="this ensemble")
    bounds = {f"bare session, {name}": rate for rate, name in best_bare(result["bare"]).values()}
    bounds["every core of the host busy"] = host_limit(result)
    for index, (name, rate) in enumerate(bounds.items()):
        axes.axhline(rate, linestyle=("--", ":", "-.")[index % 3], color=f"C{index + 1}", label=f"{name}: {rate:.0f}/s")
    axes.set_ylim(0, 1.3 * max(*bounds.values(), *(load["images_per_s"] for load in loads)))
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("images/s")
    axes.set_title(result["precision"])
    axes.legend(fontsize=7, loc="upper left", ncols=2)


def _draw_times(axes: Any, result: dict[str, Any]) -> None:
    names = [str(load["in_flight"]) for load in result["loads"]]
    left = [0.0] * len(names)
    parts = sorted(result["loads"][-1]["usage"]["by_process_ms"])
    for index, part in enumerate([*parts, "client"]):
        widths = [
            load["client_ms"] if part == "client" else load["usage"]["by_process_ms"].get(part, 0.0)
            for load in result["loads"]
        ]
        axes.barh(names, widths, 0.6, left=left, label=part, color=f"C{index}")
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_ylabel("requests in flight")
    axes.set_xlabel("processor milliseconds of the host per image")
    axes.set_xlim(0, 1.1 * max(left))
    axes.legend(fontsize=7, loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0))
