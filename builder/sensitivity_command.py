"""``python -m builder sensitivity``: which layers int8 hurts, and what taking them out of int8 buys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from builder.build import open_build
from builder.errors import BuilderError
from builder.progress import Steps
from builder.sensitivity import GroupCost, Trade, groups_of, rank_groups, trade_off
from builder.settings import BuildSettings


def run_sensitivity(settings: BuildSettings, steps: Steps, out: Path) -> int:
    """Rank groups of layers, restore the costliest ones step by step, and show the trade as a table and a plot.

    Args:
        settings: the build's; precision int8.
        steps: where progress is shown.
        out: folder for ``sensitivity.json`` and ``sensitivity.png``.

    Returns:
        0.

    Raises:
        BuilderError: the network cannot be quantised.
    """
    subject = open_build(settings, steps).int8_subject()
    count = len(subject.paths)
    total = len(groups_of(subject.quantised))
    with steps.step("rank groups of layers", f"{count} images, each group quantised alone", total) as advance:
        ranking = rank_groups(subject, advance)
    counts = sorted({0, 1, 2, 3, 4, 6, 8, len(ranking) // 2, len(ranking)} & set(range(len(ranking) + 1)))
    with steps.step("restore the costliest groups", "point by point", len(counts)) as advance:
        trades = trade_off(subject, ranking, counts, advance)
    console = Console()
    console.print(_ranking_table(ranking))
    console.print(_trade_table(trades))
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "images": count,
        "groups": [cost.as_dict() for cost in ranking],
        "trade": [trade.as_dict() for trade in trades],
    }
    (out / "sensitivity.json").write_text(json.dumps(facts, indent=2) + "\n")
    plot(trades, out / "sensitivity.png")
    console.print(f"{out / 'sensitivity.json'}\n{out / 'sensitivity.png'}", soft_wrap=True)
    return 0


def plot(trades: Sequence[Trade], path: Path) -> None:
    """Draw layers in int8 against mask IoU, F1 and model size.

    Raises:
        BuilderError: matplotlib is missing.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise BuilderError("the plot needs matplotlib; install it with `pip install matplotlib`") from error
    layers = [trade.int8_convolutions for trade in trades]
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.plot(layers, [trade.comparison.mask_iou for trade in trades], "o-", label="mask IoU against fp32")
    axes.plot(layers, [trade.comparison.f1 for trade in trades], "s--", label="F1 against fp32")
    axes.set_xlabel("convolutions in int8")
    axes.set_ylabel("agreement with fp32")
    axes.grid(alpha=0.3)
    size = axes.twinx()
    size.plot(layers, [trade.size_bytes / 1e6 for trade in trades], "^:", color="tab:gray", label="weights, MB")
    size.set_ylabel("weights, MB")
    size.set_ylim(bottom=0)
    lines: list[Line2D] = [*axes.get_lines(), *size.get_lines()]
    axes.legend(list(lines), [str(line.get_label()) for line in lines], loc="lower left")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _ranking_table(ranking: Sequence[GroupCost]) -> Table:
    table = Table(
        "group", "convolutions", "F1", "mask IoU", "cost", title="each group quantised alone, the costliest first"
    )
    for cost in ranking:
        values = (f"{cost.comparison.f1:.4f}", f"{cost.comparison.mask_iou:.4f}", f"{cost.cost:.4f}")
        table.add_row(cost.group, str(cost.convolutions), *values)
    return table


def _trade_table(trades: Sequence[Trade]) -> Table:
    table = Table(
        "restored", "int8 convolutions", "weights, MB", "F1", "mask IoU", title="the costliest groups restored"
    )
    for trade in trades:
        names = f"{len(trade.restored)} groups" if len(trade.restored) > 4 else ", ".join(trade.restored) or "nothing"
        table.add_row(
            names,
            str(trade.int8_convolutions),
            f"{trade.size_bytes / 1e6:.2f}",
            f"{trade.comparison.f1:.4f}",
            f"{trade.comparison.mask_iou:.4f}",
        )
    return table
