"""What a benchmark found: as lines, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from bench.measure import METHOD, Summary
from client.files import write_atomically

_PACKAGES = ("numpy", "opencv-python-headless", "onnxruntime", "ultralytics", "edgefirst-decoder", "torch")


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        case: what was measured, such as a scene or a load.
        way: what did the work.
        unit: of the figure.
        summary: over the rounds.
        notes: further values, such as the accuracy.
    """

    case: str
    way: str
    unit: str
    summary: Summary
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Comparison:
    """One part of the benchmark.

    Attributes:
        name: of the part.
        what: what is compared, in a sentence or two.
        figures: what was measured.
        ratios: by case and by the two ways' names.
    """

    name: str
    what: str
    figures: list[Figure] = field(default_factory=list)
    ratios: list[tuple[str, str, Summary]] = field(default_factory=list)

    def add(self, case: str, way: str, unit: str, summary: Summary, notes: dict[str, Any] | None = None) -> None:
        """Keep a figure."""
        self.figures.append(Figure(case, way, unit, summary, notes or {}))

    def add_ratio(self, case: str, ways: str, summary: Summary) -> None:
        """Keep a ratio."""
        self.ratios.append((case, ways, summary))

    def lines_of(self, case: str) -> str:
        """One case as text."""
        lines = [f"{self.name}: {case}"]
        for figure in (figure for figure in self.figures if figure.case == case):
            notes = ", ".join(f"{name} {_text(value)}" for name, value in figure.notes.items())
            lines.append(f"  {figure.way:34} {figure.summary!s:>26} {figure.unit:10} {notes}")
        lines += [f"  {ways:34} {summary!s:>26}" for of, ways, summary in self.ratios if of == case]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the method and the machine."""
        return {
            "part": self.name,
            "what": self.what,
            "method": METHOD,
            "machine": machine(),
            "figures": [
                {"case": one.case, "way": one.way, "unit": one.unit, **one.summary.to_json(), "notes": one.notes}
                for one in self.figures
            ],
            "ratios": [{"case": case, "ways": ways, **summary.to_json()} for case, ways, summary in self.ratios],
        }

    def forget(self, case: str) -> None:
        """Drop the figures of a case, to keep newer ones of more rounds."""
        self.figures = [figure for figure in self.figures if figure.case != case]
        self.ratios = [ratio for ratio in self.ratios if ratio[0] != case]

    def write_data(self, folder: Path) -> Path:
        """Write ``<name>.json``, whole or not at all; returns its path."""
        path = folder / f"{self.name}.json"
        write_atomically(path, (json.dumps(self.to_json(), indent=2) + "\n").encode())
        return path

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``<name>.json`` and ``<name>.png``; returns their paths."""
        data, picture = self.write_data(folder), folder / f"{self.name}.png"
        draw(self, picture)
        return data, picture


Keep: TypeAlias = "Callable[[Comparison, str], None]"
"""Called with a comparison whenever figures were added: writes them, and prints the case named, if one is."""


def draw(comparison: Comparison, path: Path) -> None:
    """Bars per case and way, one panel per unit, with the quartiles as whiskers."""
    from matplotlib.figure import Figure as Canvas

    units = list(dict.fromkeys(figure.unit for figure in comparison.figures))
    ways = list(dict.fromkeys(figure.way for figure in comparison.figures))
    canvas = Canvas(figsize=(11, 3.6 * len(units)), layout="constrained")
    for row, unit in enumerate(units):
        axes = canvas.add_subplot(len(units), 1, row + 1)
        figures = [figure for figure in comparison.figures if figure.unit == unit]
        cases = list(dict.fromkeys(figure.case for figure in figures))
        for index, way in enumerate(ways):
            own = {figure.case: figure.summary for figure in figures if figure.way == way}
            places = [cases.index(case) + (index + 0.5) / len(ways) * 0.8 - 0.4 for case in own]
            medians = [summary.median for summary in own.values()]
            spread = [
                [summary.median - summary.low for summary in own.values()],
                [summary.high - summary.median for summary in own.values()],
            ]
            if own:
                axes.bar(places, medians, 0.8 / len(ways), yerr=spread, label=way, color=f"C{index}", capsize=2)
        if unit == "ms" and min(figure.summary.median for figure in figures) > 0:
            axes.set_yscale("log")
        axes.set_xticks(range(len(cases)), [case.replace(", ", ",\n") for case in cases], fontsize=8)
        axes.set_ylabel(unit)
        axes.legend(fontsize=8)
    canvas.suptitle(comparison.name)
    canvas.savefig(path, dpi=120)


def draw_parts(parts: dict[str, dict[str, float]], path: Path, title: str) -> None:
    """Stacked bars of where time goes.

    Args:
        parts: of each way, milliseconds by what they are spent on.
        path: PNG file to write.
        title: what is shown.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 1.2 + 0.7 * len(parts)), layout="constrained")
    axes = canvas.add_subplot()
    names = list(dict.fromkeys(name for own in parts.values() for name in own))
    left = [0.0] * len(parts)
    for index, name in enumerate(names):
        widths = [own.get(name, 0.0) for own in parts.values()]
        axes.barh(list(parts), widths, left=left, label=name, color=f"C{index}")
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("processor milliseconds per image")
    axes.set_title(title)
    axes.legend(fontsize=8)
    canvas.savefig(path, dpi=120)


def machine() -> dict[str, Any]:
    """Where this runs, and with which versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "versions": versions,
    }


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
