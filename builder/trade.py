"""What int8 costs in groups of layers, and what taking them out of int8 gains: tables and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from rich.table import Table

from builder.errors import BuilderError
from builder.sensitivity import GroupCost, Trade
from pipeline.command_line import markup


def plot_trades(trades: Sequence[Trade], target: Path | BinaryIO) -> None:
    """Draw layers in int8 against mask IoU, F1 and model size.

    Args:
        trades: the points.
        target: PNG file, or an open binary stream.

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
    axes.plot(layers, [trade.agreement.mask_iou for trade in trades], "o-", label="mask IoU against fp32")
    axes.plot(layers, [trade.agreement.f1 for trade in trades], "s--", label="F1 against fp32")
    axes.set_xlabel("convolutions in int8")
    axes.set_ylabel("agreement with fp32")
    axes.grid(alpha=0.3)
    size = axes.twinx()
    size.plot(layers, [trade.size_bytes / 1e6 for trade in trades], "^:", color="tab:gray", label="weights, MB")
    size.set_ylabel("weights, MB")
    size.set_ylim(bottom=0)
    lines: list[Line2D] = [*axes.get_lines(), *size.get_lines()]
    axes.legend(list(lines), [str(line.get_label()) for line in lines], loc="lower left")
    figure.savefig(target, dpi=140, format="png")
    plt.close(figure)


def trade_table(trades: Sequence[Trade]) -> Table:
    """One row per point."""
    table = Table(
        "restored", "int8 convolutions", "weights, MB", "F1", "mask IoU", title="the costliest groups restored"
    )
    for trade in trades:
        names = f"{len(trade.restored)} groups" if len(trade.restored) > 4 else ", ".join(trade.restored) or "nothing"
        table.add_row(
            markup(names),
            str(trade.int8_convolutions),
            f"{trade.size_bytes / 1e6:.2f}",
            f"{trade.agreement.f1:.4f}",
            f"{trade.agreement.mask_iou:.4f}",
        )
    return table


def ranking_table(ranking: Sequence[GroupCost]) -> Table:
    """One row per group."""
    table = Table(
        "group", "convolutions", "F1", "mask IoU", "cost", title="one group quantized at a time, the costliest first"
    )
    for cost in ranking:
        values = (f"{cost.agreement.f1:.4f}", f"{cost.agreement.mask_iou:.4f}", f"{cost.cost:.4f}")
        table.add_row(markup(cost.group), str(cost.convolutions), *values)
    return table
