"""The whole path under load: this ensemble, a plain one, clients that do the work themselves, and the bare session."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
import onnx
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.drive import Drivers, LoadFigures, Target
from bench.measure import rate
from bench.report import PartReport, stack
from bench.server_meter import ServerMeter
from bench.synthetic import INPUT_SIZE
from builder.export import load_export
from builder.surgery import make_batch_dynamic
from load.photographs import as_jpeg, network_path
from pipeline import contract
from pipeline.parameters import RequestParameters
from pipeline.postprocess import pack_response, postprocess
from pipeline.preprocess import preprocess
from scenes.reference import fetch_reference
from serving.server import NO_LATENCY_BOUND_MS, ServerOptions, TritonServer
from steps.cpu_engines import cpu_network

OURS: Final = "this ensemble"
CLIENT: Final = "client-side pre/post, this project's model"
PLAIN_CLIENT: Final = "client-side pre/post, plain model"
PLAIN: Final = "plain ensemble"
BARE: Final = "bare session, one image on all cores"
BARE_NARROW: Final = "bare sessions, one image per core"
MATHS: Final = "pre- and postprocessing only, in a loop"
MATHS_BETWEEN: Final = "the same, the network runs in between"
_LOAD_PROCESSES: Final = 2
_MATHS_REPEATS: Final = 2
_BARE_SECONDS: Final = 2.0
_PLAIN_REPOSITORY: Final = Path(__file__).resolve().parent / "plain_repository"
_PLAIN_NETWORK: Final = "plain_segmentation"
_PLAIN_MODELS: Final = ("plain_preprocess", _PLAIN_NETWORK, "plain_postprocess", "plain_segment")
_Pair: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.float16]]"  # an image's candidates and prototypes


def run(options: argparse.Namespace) -> None:
    """Measure all ways side by side against one server; the plain ways run the export as it is.

    Raises:
        ServingError: the server did not start.
        LoadError: a request failed.
    """
    reference = fetch_reference()
    images = tuple(as_jpeg(reference.photographs))
    report = PartReport(
        "ensemble",
        f"The reference photographs as JPEG (0.2 to 0.8 megapixels), {options.precision}; clients, server and "
        "sessions share the machine. CPU times are per image: session (the network only), non-model (all else "
        "of the server), client.",
        options.out,
    )
    path = network_path(options.repository, options.precision)
    warm, cold = maths_alone(path, images, options.rounds)
    report.add(MATHS, MATHS, "ms CPU", warm, of="one thread, warm caches, nothing else running")
    report.add(MATHS, MATHS_BETWEEN, "ms CPU", cold, of="one thread, without the network's time")
    report.show(MATHS)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Drivers(_LOAD_PROCESSES) as drivers:
        settings = ServerOptions(
            options.repository,
            precisions=(options.precision,),
            max_latency_ms=NO_LATENCY_BOUND_MS,
            extra_arguments=install_plain(reference.onnx, Path(folder) / "plain"),
        )
        with TritonServer(settings) as server:
            network = contract.network_model(options.precision)
            targets = {
                OURS: Target(server.grpc_url, contract.ensemble_model(options.precision), images),
                CLIENT: Target(server.grpc_url, network, images, "project"),
                PLAIN: Target(server.grpc_url, _PLAIN_MODELS[-1], images),
                PLAIN_CLIENT: Target(server.grpc_url, _PLAIN_NETWORK, images, "plain"),
            }
            endpoints = server.pid or 0, server.grpc_url, server.metrics_url
            own_meter, plain_meter = (ServerMeter(*endpoints, model) for model in (network, _PLAIN_NETWORK))
            bare = bare_ways(path, min(_BARE_SECONDS, options.seconds))

            def way(target: Target, in_flight: int) -> Callable[[], LoadFigures]:
                meter = plain_meter if target.model in _PLAIN_MODELS else own_meter
                return lambda: drivers.measure(target, meter, in_flight, options.seconds)

            for in_flight in options.in_flight:
                case = f"{in_flight} in flight"
                ways = {name: way(target, in_flight) for name, target in targets.items()}
                report.measure(case, {**ways, **bare}, options.rounds, functools.partial(_add, report, case))
    report.draw()
    _draw_parts(overhead_parts(report.figures), options.out / "ensemble-parts.png")


def install_plain(export_path: Path, repository: Path) -> tuple[str, ...]:
    """Write the plain ensemble's models into a new repository, the export with a dynamic batch axis and nothing else.

    Returns:
        Arguments for tritonserver that serve them beside other models.
    """
    shutil.copytree(_PLAIN_REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    onnx.save(make_batch_dynamic(load_export(export_path)), str(repository / _PLAIN_NETWORK / "1" / "model.onnx"))
    return (f"--model-repository={repository}", *(f"--load-model={model}" for model in _PLAIN_MODELS))


def overhead_parts(figures: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Processor milliseconds per image outside of the session, by way and purpose, under the highest load."""
    parts: dict[str, dict[str, float]] = {}
    for figure in figures:
        notes = figure["notes"]
        if "processes_ms" not in notes or figure["case"] != figures[-1]["case"]:
            continue
        own = {"client": notes["client_ms"], "network's tensors": 0.0}
        for process, spent_ms in notes["processes_ms"].items():
            step = process.removeprefix("plain_")
            if step.startswith(("network_", "segmentation")):  # it takes tensors in and gives them out, too
                own["network's tensors"] += max(0.0, spent_ms - notes["session_ms"])
            else:
                own[step] = own.get(step, 0.0) + spent_ms
        parts[figure["way"]] = own
    return parts


def _draw_parts(parts: dict[str, dict[str, float]], path: Path) -> None:
    canvas = Figure(figsize=(11, 1.6 + 0.7 * len(parts)), layout="constrained")
    axes = canvas.add_subplot()
    stack(axes, parts)
    canvas.suptitle("Where the time outside of the network goes, per image")
    canvas.savefig(path, dpi=120)
    print(f"written: {path}", flush=True)


def maths_alone(path: Path, images: Sequence[bytes], rounds: int) -> tuple[list[float], list[float]]:
    """The cost of the work outside of the network, without a server: the least that non-model CPU time can be.

    Returns:
        Processor milliseconds per image of decoding, letterboxing, postprocessing and packing, one value a round: in a
        loop of nothing else, and with the network run between the two halves of the work, which empties the
        processor's caches as it does on a machine that serves.
    """
    network, _ = cpu_network(path, len(os.sched_getaffinity(0)), 1)
    cv2.setNumThreads(1)
    pixels = np.empty((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    parameters = RequestParameters()

    def run_network() -> _Pair:
        ((candidates, prototypes),) = network.run([pixels])
        return candidates[0], prototypes[0]

    def cpu_ms(image: bytes, kept: _Pair | None) -> float:
        started = time.process_time()
        geometry = preprocess(image, pixels[0])
        first_half_s = time.process_time() - started
        candidates, prototypes = kept or run_network()
        started = time.process_time()
        pack_response([postprocess(candidates, prototypes, geometry, parameters)])
        return (first_half_s + time.process_time() - started) * 1e3

    kept: list[_Pair] = []
    for image in images:
        preprocess(image, pixels[0])
        candidates, prototypes = run_network()
        kept.append((candidates.copy(), prototypes.copy()))
    warm: list[float] = []
    cold: list[float] = []
    for _ in range(rounds + 1):
        for times, outputs in ((warm, kept), (cold, [None] * len(images))):
            pairs = list(zip(images, outputs, strict=True)) * _MATHS_REPEATS
            times.append(statistics.fmean(cpu_ms(image, output) for image, output in pairs))
    return warm[1:], cold[1:]  # the first warms up


def bare_ways(path: Path, seconds: float) -> dict[str, Callable[[], float]]:
    """The network without a server, on letterboxed noise: images per second."""
    cores = len(os.sched_getaffinity(0))
    network, _ = cpu_network(path, cores, cores)
    pixels = np.random.default_rng(0).integers(0, 256, (cores, 1, INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
    return {
        BARE: lambda: rate(lambda: network.run(list(pixels[:1])), 1, seconds),
        BARE_NARROW: lambda: rate(lambda: network.run(list(pixels)), cores, seconds),
    }


def _add(report: PartReport, case: str, results: dict[str, list[Any]]) -> None:
    loads: dict[str, list[LoadFigures]] = {way: results[way] for way in (OURS, CLIENT, PLAIN, PLAIN_CLIENT)}
    rates = {BARE: results[BARE], BARE_NARROW: results[BARE_NARROW]}
    for way, measured in loads.items():
        rates[way] = [load.images_per_s for load in measured]
        report.add(case, way, "images/s", rates[way], **_notes(measured))
        report.add(case, way, "ms CPU", [load.usage.other_ms for load in measured], of="non-model")
        report.add(case, way, "ms CPU all", [load.host_ms for load in measured], of="host")
    for way in (BARE, BARE_NARROW):
        report.add(case, way, "images/s", rates[way])
    for way in results:
        if way != OURS:
            report.add_ratio(case, f"{OURS} / {way}", rates[OURS], rates[way])
    ours, plain = ([load.usage.other_ms for load in loads[way]] for way in (OURS, PLAIN))
    report.add_ratio(case, "non-model CPU, this / plain ensemble", ours, plain)
    for way in (CLIENT, PLAIN_CLIENT, PLAIN):
        theirs, ours = ([load.host_ms for load in loads[name]] for name in (way, OURS))
        report.add_ratio(case, f"host CPU, {way} / this", theirs, ours)


def _notes(loads: Sequence[LoadFigures]) -> dict[str, Any]:
    return {
        "p50_ms": statistics.median(load.p50_ms for load in loads),
        "p99_ms": statistics.median(load.p99_ms for load in loads),
        "session_ms": statistics.median(load.usage.session_ms for load in loads),
        "client_ms": statistics.median(load.client_ms for load in loads),
        "processes_ms": {
            name: round(statistics.median(load.usage.by_process_ms[name] for load in loads), 2)
            for name in loads[0].usage.by_process_ms
        },
    }
