"""``python -m builder sensitivity``: which layers int8 hurts, and what taking them out of int8 gains."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from base.progress import Steps
from builder.build import open_inputs
from builder.sensitivity import groups_of, rank_groups, trade_off
from builder.settings import BuildSettings
from builder.trade import plot_trades, ranking_table, trade_table
from pipeline.command_line import say


def run_sensitivity(settings: BuildSettings, steps: Steps, out: Path) -> int:
    """Rank groups of layers, restore the costliest ones step by step, and show the trade as a table and a plot.

    Args:
        settings: the build's; precision int8.
        steps: where progress is shown.
        out: folder for ``sensitivity.json`` and ``sensitivity.png``.

    Returns:
        0.

    Raises:
        BuilderError: the network cannot be quantized.
    """
    subject = open_inputs(settings, steps).int8_subject()
    count = len(subject.paths)
    total = len(groups_of(subject.quantized))
    with steps.step("rank groups of layers", f"{count} images, one group quantized at a time", total) as advance:
        ranking = rank_groups(subject, advance)
    counts = sorted({0, 1, 2, 3, 4, 6, 8, len(ranking) // 2, len(ranking)} & set(range(len(ranking) + 1)))
    with steps.step("restore the costliest groups", "point by point", len(counts)) as advance:
        trades = trade_off(subject, ranking, counts, advance)
    console = Console()
    console.print(ranking_table(ranking))
    console.print(trade_table(trades))
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "images": count,
        "groups": [cost.as_dict() for cost in ranking],
        "trade": [trade.as_dict() for trade in trades],
    }
    (out / "sensitivity.json").write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    plot_trades(trades, out / "sensitivity.png")
    say(f"{out / 'sensitivity.json'}\n{out / 'sensitivity.png'}")
    return 0
