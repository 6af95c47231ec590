"""The report: ``report.json`` for programs, ``report.html`` for people, one file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import jinja2

from client.files import write_atomically
from load.analysis import Analysis
from load.compare import Outcome, Schedule
from load.conditions import Verdict
from load.recommendation import Recommendation
from load.spread import Spread

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"
FORMAT_VERSION: Final = 1

_TEMPLATE: Final = Path(__file__).with_name("report.html.jinja")
_BUSY_CLIENT_CORES: Final = 0.8
"""Share of its one core above which the generator, not the server, may be what limits the load."""


@dataclass(frozen=True)
class Report:
    """Everything that is reported."""

    schedule: Schedule  # the steps
    outcome: Outcome  # their results
    analysis: Analysis  # of the results
    recommendation: Recommendation  # the precision to deploy
    verdicts: tuple[Verdict, ...]  # of the conditions
    machine: dict[str, Any]  # see :func:`load.machine.describe_machine`
    server: dict[str, Any]  # where it was, and who started it
    command: str  # the command line
    created_utc: str  # ISO 8601

    @property
    def warnings(self) -> list[str]:
        """What limits trust in the numbers."""
        found = []
        results = self.outcome.results
        if self.outcome.stopped:
            found.append(f"The comparison ended early, at {self.outcome.stopped}")
        failures: dict[str, str] = {}
        for step in results:
            failures.update({kind: text for kind, text in step.first_errors.items() if kind not in failures})
        found += [f"Some requests failed ({kind}); the first: {text}" for kind, text in failures.items()]
        differing = [fault for step in results if step.server and (fault := step.disagreement())]
        if differing:
            found.append(f"In {len(differing)} of {len(results)} steps the counts differ: {differing[0]}")
        busiest = max((step.client_cores for step in results), default=0.0)
        if busiest > _BUSY_CLIENT_CORES:
            found.append(
                f"The load generator used up to {busiest:.2f} of its one core: it may be what limits the load. Run it "
                "distributed (load/locustfile.py --master and --worker), or on another machine"
            )
        if self.outcome.reference != "fp32":
            found.append(f"fp32 is not served; {self.outcome.reference} is the reference for the expected detections")
        return found

    @property
    def counters_agree(self) -> bool:
        """Whether users and server count the same in every step."""
        return all(step.disagreement() is None for step in self.outcome.results)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "created_utc": self.created_utc,
            "command": self.command,
            "machine": self.machine,
            "server": self.server,
            "plan": self.schedule.to_json(),
            "expected_detections": {"by": self.outcome.reference, "images": self.outcome.expected},
            "recommendation": asdict(self.recommendation),
            "warnings": self.warnings,
            "stopped": self.outcome.stopped,
            "counters_agree": self.counters_agree,
            "conditions": [asdict(verdict) for verdict in self.verdicts],
            **self.analysis.to_json(),
            "steps": [step.to_json() for step in self.outcome.results],
        }


def write_report(report: Report, out: Path) -> Path:
    """Write both files; returns the page's path. Charts are left out where nothing was measured.

    Raises:
        OSError: the folder cannot be written to.
    """
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    page = _template().render(report=report, analysis=report.analysis, charts=_charts(report.analysis))
    for name, content in ((JSON_NAME, text), (HTML_NAME, page)):
        write_atomically(out / name, content.encode(errors="backslashreplace"))  # names of images need not be UTF-8
    return out / HTML_NAME


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(spread=_spread, count=_count, percent=_percent, fraction=_fraction)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _charts(analysis: Analysis) -> dict[str, str]:
    """Name to data URI."""
    from load.charts import ratios, throughput_against_latency, where_time_goes  # matplotlib takes a second

    if not any(series.closed or series.open for series in analysis.series):
        return {}
    drawn = {"curves": throughput_against_latency(analysis), "time": where_time_goes(analysis)}
    if found := analysis.ratios():
        drawn["ratios"] = ratios(found)
    return {name: f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}" for name, svg in drawn.items()}


def _spread(spread: Spread, digits: int = 1) -> str:
    """Median and, where there is more than one round, least and most."""
    if not spread.rounds:
        return "none"
    median, low, high = (f"{value:.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return median if spread.rounds == 1 else f"{median} [{low}, {high}]"


def _count(values: dict[int, int]) -> str:
    """Batch sizes and how often, as ``1: 120, 2: 14``."""
    return ", ".join(f"{size}: {count}" for size, count in values.items()) or "not known"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.1f} %"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
