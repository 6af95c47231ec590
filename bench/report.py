"""The figures of one part of the benchmark: as lines, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.measure import METHOD, interleave, milliseconds
from client.files import write_atomically
from load.machine import describe_machine
from load.spread import Spread, ratios

_PACKAGES: Final = ("numpy", "opencv-python-headless", "onnxruntime", "openvino", "ultralytics", "torch")


class PartReport:
    """One part of the benchmark, and what it compares; its files are ``<name>.json`` and ``<name>.png``."""

    def __init__(self, name: str, what: str, folder: Path) -> None:
        self._name, self._what, self._folder = name, what, folder
        self.figures: list[dict[str, Any]] = []
        self.ratios: list[dict[str, Any]] = []
        self._machine = describe_machine(_PACKAGES)  # before the load, which raises the load average

    def add(self, case: str, way: str, unit: str, values: Sequence[float], **notes: Any) -> None:
        """Add a figure of a case (a scene, a load) and a way: a value per round, and notes such as its accuracy."""
        spread = Spread.of(values, 25, 75).to_json()
        self.figures.append({"case": case, "way": way, "unit": unit, **spread, "notes": notes})

    def add_ratio(self, case: str, ways: str, above: Sequence[float], below: Sequence[float]) -> None:
        """Add the ratio of two ways, taken round by round."""
        self.ratios.append({"case": case, "ways": ways, **Spread.of(ratios(above, below), 25, 75).to_json()})

    def compare(
        self,
        case: str,
        ways: Mapping[str, Callable[[], object]],
        base: str,
        rounds: int,
        notes: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Measure the wall time of several ways, add and show it, with the ratio of each other way to ``base``."""

        def add(times: dict[str, list[float]]) -> None:
            for way, values in times.items():
                self.add(case, way, "ms", values, **notes[way])
                if way != base:
                    self.add_ratio(case, f"{way} / {base}", values, times[base])

        self.measure(case, {way: milliseconds(work) for way, work in ways.items()}, rounds, add)

    def measure(
        self, case: str, ways: Mapping[str, Callable[[], Any]], rounds: int, add: Callable[[dict[str, list[Any]]], None]
    ) -> None:
        """Run several ways round by round, and show the case.

        Args:
            case: what is measured.
            ways: name to a call that returns one result.
            rounds: how often each is called.
            add: adds the case's figures, given the results of each way. It is called after every round, and the file
                is written: a later failure loses nothing.
        """
        for results in interleave(ways, rounds):
            self.figures = [figure for figure in self.figures if figure["case"] != case]
            self.ratios = [ratio for ratio in self.ratios if ratio["case"] != case]
            add(results)
            self._write()
        self.show(case)

    def _write(self) -> None:
        text = json.dumps(
            {
                "part": self._name,
                "what": self._what,
                "method": METHOD,
                "machine": self._machine,
                "figures": self.figures,
                "ratios": self.ratios,
            },
            indent=2,
        )
        write_atomically(self._folder / f"{self._name}.json", (text + "\n").encode())

    def show(self, case: str) -> None:
        """Write the JSON file and print a case."""
        self._write()
        print(f"{self._name}: {case}")
        for figure in self.figures:
            if figure["case"] == case:
                notes = ", ".join(f"{name} {_text(value)}" for name, value in figure["notes"].items())
                print(f"  {figure['way']:34} {_spread(figure):>26} {figure['unit']:10} {notes}")
        for ratio in self.ratios:
            if ratio["case"] == case:
                print(f"  {ratio['ways']:34} {_spread(ratio):>26}")
        print(end="", flush=True)

    def draw(self) -> None:
        """Bars per case and way, one panel per unit, with the quartiles as whiskers."""
        from matplotlib.figure import Figure

        units = list(dict.fromkeys(figure["unit"] for figure in self.figures))
        ways = list(dict.fromkeys(figure["way"] for figure in self.figures))
        canvas = Figure(figsize=(11, 3.6 * len(units)), layout="constrained")
        for axes, unit in zip(canvas.subplots(len(units), squeeze=False)[:, 0], units, strict=True):
            figures = [figure for figure in self.figures if figure["unit"] == unit]
            cases = list(dict.fromkeys(figure["case"] for figure in figures))
            for index, way in enumerate(ways):
                own = [figure for figure in figures if figure["way"] == way]
                places = [cases.index(one["case"]) + (index + 0.5) / len(ways) * 0.8 - 0.4 for one in own]
                spread = [[abs(one["median"] - one[end]) for one in own] for end in ("low", "high")]
                medians = [one["median"] for one in own]
                if own:
                    axes.bar(places, medians, 0.8 / len(ways), yerr=spread, label=way, color=f"C{index}", capsize=2)
            if unit == "ms" and min(figure["median"] for figure in figures) > 0:
                axes.set_yscale("log")
            axes.set_xticks(range(len(cases)), [case.replace(", ", ",\n") for case in cases], fontsize=8)
            axes.set_ylabel(unit)
            axes.legend(fontsize=8)
        canvas.suptitle(self._name)
        canvas.savefig(self._folder / f"{self._name}.png", dpi=120)
        print(f"written: {self._folder / self._name}.json and .png", flush=True)


def stack(axes: Any, bars: dict[str, dict[str, float]]) -> None:
    """Draw horizontal bars of stacked parts: label of each bar to its parts, by name."""
    left = [0.0] * len(bars)
    for index, name in enumerate(dict.fromkeys(name for parts in bars.values() for name in parts)):
        widths = [parts.get(name, 0.0) for parts in bars.values()]
        axes.barh(list(bars), widths, left=left, label=name, color=f"C{index}")
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("processor milliseconds per image")
    axes.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _spread(figure: dict[str, Any]) -> str:
    median, low, high = (_short(figure[name]) for name in ("median", "low", "high"))
    return f"{median} [{low} to {high}]"


def _short(value: float) -> str:
    """Three significant digits, no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
