"""The precisions through the ensemble, side by side on one server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.drive import Drivers, Target
from bench.measure import Summary, interleave, ratio
from bench.report import Comparison, Keep
from bench.server_meter import ServerMeter
from bench.under_load import Load, put_under_load
from load.photographs import as_jpeg
from pipeline import contract
from scenes.reference import fetch_reference
from serving.server import NO_LATENCY_BOUND_MS, ServerOptions, TritonServer

_IN_FLIGHT = 4
_LOAD_PROCESSES = 2


def run(repository: Path, seconds: float, rounds: int, keep: Keep) -> Comparison:
    """Measure every precision that is built.

    Raises:
        ServingError: the server did not start.
        LoadError: a request failed.
    """
    images = tuple(as_jpeg(fetch_reference().photographs))
    comparison = Comparison("precision", f"The ensembles, {_IN_FLIGHT} requests in flight, the reference photographs.")
    case = f"{_IN_FLIGHT} in flight"
    options = ServerOptions(repository, http_port=0, grpc_port=0, metrics_port=0, max_latency_ms=NO_LATENCY_BOUND_MS)
    with Drivers(_LOAD_PROCESSES) as drivers, TritonServer(options) as server:

        def way(precision: str) -> Callable[[], Load]:
            target = Target(server.grpc_url, contract.ensemble_model(precision), images)
            model = contract.network_model(precision)
            meter = ServerMeter(server.pid or 0, server.grpc_url, server.metrics_url, model)
            return lambda: put_under_load(drivers, target, meter, _IN_FLIGHT, seconds)

        def add(results: dict[str, list[Any]]) -> None:
            comparison.forget(case)
            _add(comparison, case, results)
            keep(comparison, "")

        interleave({precision: way(precision) for precision in contract.PRECISIONS}, rounds, after_round=add)
    keep(comparison, case)
    return comparison


def _add(comparison: Comparison, case: str, results: dict[str, list[Load]]) -> None:
    for precision, loads in results.items():
        comparison.add(case, precision, "images/s", Summary.of(load.images_per_s for load in loads))
        comparison.add(case, precision, "ms CPU session", Summary.of(load.usage.session_ms for load in loads))
    rates = {precision: [load.images_per_s for load in loads] for precision, loads in results.items()}
    sessions = {precision: [load.usage.session_ms for load in loads] for precision, loads in results.items()}
    for precision in contract.PRECISIONS[1:]:
        comparison.add_ratio(case, f"images/s, {precision} / fp32", ratio(rates[precision], rates["fp32"]))
        comparison.add_ratio(case, f"session CPU, fp32 / {precision}", ratio(sessions["fp32"], sessions[precision]))
