"""The whole path under load: this ensemble, a plain one, clients that do the work themselves, and the bare session."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.baseline.install import MODEL as PLAIN_MODEL
from bench.baseline.install import install
from bench.drive import Drivers, Target
from bench.measure import Summary, interleave, ratio
from bench.report import Comparison, Keep
from bench.server_meter import ServerMeter
from bench.under_load import Load, put_under_load
from load.photographs import as_jpeg, network_path
from pipeline import contract
from pipeline.parameters import RequestParameters
from pipeline.postprocess import pack_response, postprocess
from pipeline.preprocess import preprocess
from scenes.reference import fetch_reference
from serving.server import NO_LATENCY_BOUND_MS, ServerOptions, TritonServer
from steps.onnx_cpu import CpuNetwork

OURS: Final = "this ensemble"
CLIENT: Final = "client-side pre/post, this project's model"
PLAIN_CLIENT: Final = "client-side pre/post, plain model"
PLAIN: Final = "plain ensemble"
BARE: Final = "bare session, one image on all cores"
BARE_NARROW: Final = "bare sessions, one image per core"
MATHS: Final = "pre- and postprocessing alone, in a loop"
MATHS_BETWEEN: Final = "the same, the network run in between"
_LOAD_PROCESSES: Final = 2
_MATHS_REPEATS: Final = 5
_INPUT_SIZE: Final = (640, 640)  # of the reference model
_Pair: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.float16]]"  # an image's candidates and prototypes


@dataclass(frozen=True)
class EnsembleSettings:
    """What to measure.

    Attributes:
        repository: built model repository.
        precision: of the network; the plain ways run the export as it is.
        in_flight: numbers of requests in flight.
        seconds: length of each window.
        rounds: how often each way is measured.
    """

    repository: Path
    precision: str = "fp32"
    in_flight: tuple[int, ...] = (1, 4, 16)
    seconds: float = 4.0
    rounds: int = 5


def run(settings: EnsembleSettings, keep: Keep) -> Comparison:
    """Measure all ways side by side against one server.

    Raises:
        ServingError: the server did not start.
        LoadError: a request failed.
    """
    reference = fetch_reference()
    images = tuple(as_jpeg(reference.photographs))
    comparison = Comparison(
        "ensemble",
        f"The reference photographs as JPEG (0.2 to 0.8 megapixels), {settings.precision}; clients, server and "
        "sessions share the machine. CPU times are per image: session (the network alone), non-model (all else "
        "of the server), client.",
    )
    warm, cold = maths_alone(settings.repository, settings.precision, images, settings.rounds)
    comparison.add(MATHS, MATHS, "ms CPU", Summary.of(warm), {"of": "one thread, warm caches, nothing else running"})
    comparison.add(MATHS, MATHS_BETWEEN, "ms CPU", Summary.of(cold), {"of": "one thread, the network's left out"})
    keep(comparison, MATHS)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Drivers(_LOAD_PROCESSES) as drivers:
        arguments = install(reference.onnx, Path(folder) / "plain")
        options = ServerOptions(
            settings.repository,
            precisions=(settings.precision,),
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            max_latency_ms=NO_LATENCY_BOUND_MS,
            extra_arguments=arguments,
        )
        with TritonServer(options) as server:
            targets = _targets(server.grpc_url, settings.precision, images)
            meters = {name: _meter(server, target, settings.precision) for name, target in targets.items()}
            bare = bare_ways(settings.repository, settings.precision)
            for in_flight in settings.in_flight:
                ways: dict[str, Callable[[], Any]] = {
                    name: _loaded(drivers, target, meters[name], in_flight, settings.seconds)
                    for name, target in targets.items()
                }
                case = f"{in_flight} in flight"

                def add(results: dict[str, list[Any]], case: str = case) -> None:
                    comparison.forget(case)
                    _add(comparison, case, results)
                    keep(comparison, "")

                interleave({**ways, **bare}, settings.rounds, after_round=add)
                keep(comparison, case)
    return comparison


def overhead_parts(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Of each way under its highest load, processor milliseconds per image by what they are spent on, the session's
    own left out."""
    parts: dict[str, dict[str, float]] = {}
    for figure in comparison.figures:
        notes = figure.notes
        if "processes_ms" not in notes or figure.case != comparison.figures[-1].case:
            continue
        own: dict[str, float] = {"client": notes["client_ms"]}
        for process, milliseconds in notes["processes_ms"].items():
            step = process.removeprefix("plain_")
            if step.startswith(("network_", "segmentation")):
                # The network's process does more than run the session: it takes tensors in and gives them out.
                own["session and its tensors"] = own.get("session and its tensors", 0.0) + milliseconds
            else:
                own[step] = own.get(step, 0.0) + milliseconds
        own["network's tensors"] = max(0.0, own.pop("session and its tensors", 0.0) - notes["session_ms"])
        parts[figure.way] = own
    return parts


def maths_alone(
    repository: Path, precision: str, images: Sequence[bytes], rounds: int
) -> tuple[list[float], list[float]]:
    """What the work outside of the network costs without a server: the least that non-model CPU time can be.

    Returns:
        Processor milliseconds per image of decoding, letterboxing, postprocessing and packing, one value a round: in a
        loop of nothing else, and with the network run between the two halves of the work: on a machine that runs the
        network too, neither half finds anything in the processor's caches.
    """
    network = CpuNetwork(network_path(repository, precision), len(os.sched_getaffinity(0)), 1)
    cv2.setNumThreads(1)
    pixels = np.empty((1, *_INPUT_SIZE, 3), np.uint8)
    parameters = RequestParameters()

    def run() -> _Pair:
        ((candidates, prototypes),) = network.run([pixels])
        return candidates[0], prototypes[0]

    def work(image: bytes, outputs: Callable[[], _Pair]) -> float:
        started = time.process_time()
        geometry = preprocess(image, pixels[0])
        half = time.process_time() - started
        candidates, prototypes = outputs()
        started = time.process_time()
        pack_response([postprocess(candidates, prototypes, geometry, parameters)])
        return half + time.process_time() - started

    kept: list[Callable[[], _Pair]] = []
    for image in images:
        preprocess(image, pixels[0])
        candidates, prototypes = run()
        own = candidates.copy(), prototypes.copy()
        kept.append(lambda own=own: own)  # type: ignore[misc]
    warm: list[float] = []
    cold: list[float] = []
    for _ in range(rounds + 1):
        for times, outputs in ((warm, kept), (cold, [run] * len(images))):
            pairs = list(zip(images, outputs, strict=True)) * _MATHS_REPEATS
            times.append(statistics.fmean(work(image, output) for image, output in pairs) * 1e3)
    return warm[1:], cold[1:]  # the first warms up


def bare_ways(repository: Path, precision: str) -> dict[str, Callable[[], float]]:
    """The network without a server, on noise already letterboxed: images per second."""
    path = network_path(repository, precision)
    cores = len(os.sched_getaffinity(0))
    network = CpuNetwork(path, cores, cores)
    pixels = np.random.default_rng(0).integers(0, 256, (cores, *_INPUT_SIZE, 3), dtype=np.uint8)
    together = [pixels[index : index + 1] for index in range(cores)]
    return {
        BARE: lambda: _rate(lambda: network.run(together[:1]), 1),
        BARE_NARROW: lambda: _rate(lambda: network.run(together), cores),
    }


def _rate(work: Callable[[], Any], images: int, seconds: float = 2.0) -> float:
    work()
    runs, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        work()
        runs += 1
    return runs * images / elapsed


def _targets(url: str, precision: str, images: tuple[bytes, ...]) -> dict[str, Target]:
    return {
        OURS: Target(url, contract.ensemble_model(precision), images),
        CLIENT: Target(url, contract.network_model(precision), images, "project"),
        PLAIN: Target(url, PLAIN_MODEL, images),
        PLAIN_CLIENT: Target(url, "plain_segmentation", images, "plain"),
    }


def _meter(server: TritonServer, target: Target, precision: str) -> ServerMeter:
    plain = target.model.startswith("plain_")
    model = "plain_segmentation" if plain else contract.network_model(precision)
    return ServerMeter(server.pid or 0, server.grpc_url, server.metrics_url, model)


def _loaded(drivers: Drivers, target: Target, meter: ServerMeter, in_flight: int, seconds: float) -> Callable[[], Load]:
    return lambda: put_under_load(drivers, target, meter, in_flight, seconds)


def _add(comparison: Comparison, case: str, results: dict[str, list[Any]]) -> None:
    rates: dict[str, list[float]] = {}
    for way, values in results.items():
        loads = [value for value in values if isinstance(value, Load)]
        rates[way] = [load.images_per_s for load in loads] if loads else list(values)
        comparison.add(case, way, "images/s", Summary.of(rates[way]), _notes(loads))
        if loads:
            comparison.add(case, way, "ms CPU", Summary.of(load.usage.other_ms for load in loads), {"of": "non-model"})
            comparison.add(case, way, "ms CPU all", Summary.of(load.host_ms for load in loads), {"of": "host"})
    for way in results:
        if way != OURS:
            comparison.add_ratio(case, f"{OURS} / {way}", ratio(rates[OURS], rates[way]))
    ours, plain = ([load.usage.other_ms for load in results[way]] for way in (OURS, PLAIN))
    comparison.add_ratio(case, "non-model CPU, this / plain ensemble", ratio(ours, plain))
    for way in (CLIENT, PLAIN_CLIENT, PLAIN):
        host = ([load.host_ms for load in results[name]] for name in (way, OURS))
        comparison.add_ratio(case, f"host CPU, {way} / this", ratio(*host))


def _notes(loads: Sequence[Load]) -> dict[str, Any]:
    if not loads:
        return {}
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
