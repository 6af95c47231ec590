"""The precision to deploy, in one sentence with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from load.analysis import MIN_ROUNDS, Analysis, Ratio, Series
from load.versions import MeasuredVersion


@dataclass(frozen=True)
class Recommendation:
    """A recommendation."""

    precision: str | None  # the precision; None where nothing can be recommended
    sentence: str  # for the reader, with the reason


def recommend(analysis: Analysis) -> Recommendation:
    """The fastest precision whose accuracy did not fail its gate, if it is faster than noise explains.

    Each protocol is judged separately; where they agree, the one with the higher throughput gives the numbers.
    """
    found = [(protocol, _for_protocol(analysis, protocol)) for protocol in analysis.protocols]
    named = [(protocol, one) for protocol, one in found if one.precision is not None]
    if not named:
        return found[0][1] if found else Recommendation(None, "Nothing was measured, so nothing can be recommended.")
    if len({one.precision for _, one in named}) == 1:
        return max(named, key=lambda item: _best_throughput(analysis.of(item[1].precision or "", item[0])))[1]
    return Recommendation(None, " ".join(one.sentence for _, one in named))


def _for_protocol(analysis: Analysis, protocol: str) -> Recommendation:
    series = [one for one in analysis.series if one.protocol == protocol]
    able = [one for one in series if one.best is not None and analysis.versions[one.precision].passed is not False]
    if not able:
        return Recommendation(None, _nothing(series, analysis.budget_ms))
    fastest = max(able, key=_best_throughput)
    others = [one for one in able if one is not fastest]
    ratios = [ratio for one in others if (ratio := analysis.ratio(fastest.precision, one.precision, protocol))]
    if not ratios:
        return Recommendation(
            fastest.precision,
            f"{fastest.precision}: nothing else could be compared; {_speed(fastest)} over {protocol}"
            f"{_within(analysis.budget_ms)}, {_accuracy(fastest.precision, analysis.versions)}.",
        )
    base = next((ratio for ratio in ratios if ratio.base == "fp32"), ratios[0])
    noisy = [ratio for ratio in ratios if ratio.doubt]
    if noisy:
        return _undecided(analysis, fastest, noisy, protocol)
    return Recommendation(
        fastest.precision,
        f"{fastest.precision}: {_times(base)} {base.base} over {protocol}{_within(analysis.budget_ms)}, "
        f"{_speed(fastest)}, {_accuracy(fastest.precision, analysis.versions)}.",
    )


def _undecided(analysis: Analysis, fastest: Series, noisy: Sequence[Ratio], protocol: str) -> Recommendation:
    """Where a difference is inside the noise, the more precise of the two is the safe choice."""
    equal = [fastest.precision, *(ratio.base for ratio in noisy)]
    safe = next(precision for precision in ("fp32", "fp16", "int8") if precision in equal)
    few = [ratio for ratio in noisy if ratio.has_too_few_rounds]
    if few:
        reason = f"{few[0].doubt}; run --rounds {MIN_ROUNDS}"
        return Recommendation(
            None,
            f"{fastest.precision} was fastest over {protocol} at {_times(few[0])} {few[0].base}, but {reason}.",
        )
    listed = " and ".join(f"{_times(ratio)} {ratio.base}" for ratio in noisy)
    return Recommendation(
        safe,
        f"{safe}: the difference is inside the noise over {protocol}{_within(analysis.budget_ms)} "
        f"({fastest.precision} is {listed}), and {safe} is the more precise; "
        f"{_accuracy(safe, analysis.versions)}.",
    )


def _nothing(series: Sequence[Series], budget_ms: float | None) -> str:
    least = [
        (point.latency_ms[95].median, one.precision, point.load.label)
        for one in series
        for point in (*one.closed, *one.open)
    ]
    if budget_ms is None or not least:
        return "No step gave right answers, so nothing can be recommended."
    p95, precision, label = min(least)
    return (
        f"No load that was tried keeps p95 within {budget_ms:g} ms; the least was {p95:.0f} ms ({precision}, {label}). "
        "Try fewer users or a larger --budget-ms."
    )


def _best_throughput(series: Series | None) -> float:
    return series.best.throughput.median if series is not None and series.best is not None else 0.0


def _times(ratio: Ratio) -> str:
    spread = ratio.throughput
    if spread.rounds == 1:
        return f"{spread.median:.2f}x"
    return f"{spread.median:.2f}x ({spread.low:.2f} to {spread.high:.2f} over {spread.rounds} rounds)"


def _speed(series: Series) -> str:
    if series.best is None:
        return "not measured"
    more = ", the highest load tried" if series.is_limited_by_loads else ""
    return f"{series.best.throughput.median:.1f} images/s at {series.best.load.label}{more}"


def _within(budget_ms: float | None) -> str:
    return f" at p95 <= {budget_ms:g} ms" if budget_ms is not None else ""


def _accuracy(precision: str, versions: Mapping[str, MeasuredVersion]) -> str:
    version = versions[precision]
    if version.mask_iou is not None:
        return f"mask IoU {version.mask_iou:.2f} against fp32"
    return "its accuracy is not verified" if version.note == "not verified" else "its accuracy is not known"
