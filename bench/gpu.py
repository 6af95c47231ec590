"""The ensemble on a GPU machine: how much of the bare session's throughput it reaches, and what a start costs.

Needs no network: the server's wheel, the built versions and the photographs are taken from where they are.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2_grpc

from bench.drive import Drivers, Target, encoded_request
from bench.gpu_picture import best_bare, draw
from bench.server_meter import ServerMeter
from bench.under_load import put_under_load
from bench.variant import Variant, copy_repository
from client.files import write_atomically
from load.errors import LoadError
from load.machine import gpu_name
from load.photographs import as_jpeg, network_path
from pipeline import contract
from pipeline.loopback import grpc_channel_args
from scenes.reference import fetch_reference
from serving.server import NO_LATENCY_BOUND_MS, ServerOptions, TritonServer
from steps.onnx_cuda import batch_sizes

_BARE_MAX_BATCH: Final = 16
_BARE_SECONDS: Final = 1.0
_READY_TIMEOUT_S: Final = 180.0
_WARM_UP_S: Final = 1.0
_POLL_MS: Final = 100


@dataclass(frozen=True)
class GpuSettings:
    """What to measure.

    Attributes:
        repository: built model repository.
        out: folder for ``gpu-<precision>.json``.
        profile: ``cuda``, or ``cpu`` to try the benchmark on a machine without a GPU.
        precisions: one after the other.
        in_flight: numbers of requests in flight.
        seconds: length of each window.
        processes: that generate load.
        variant: instance counts.
    """

    repository: Path
    out: Path
    profile: str
    precisions: tuple[str, ...]
    in_flight: tuple[int, ...]
    seconds: float
    processes: int
    variant: Variant


def run(settings: GpuSettings) -> int:
    """Measure every precision, print and write what was found.

    Returns:
        0.

    Raises:
        ServingError: the server did not start.
        LoadError: a request failed, or the session could not be made.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    images = tuple(as_jpeg(fetch_reference().photographs))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Drivers(settings.processes) as drivers:
        repository = copy_repository(
            settings.repository, Path(folder) / "repository", settings.profile, settings.variant
        )
        for precision in settings.precisions:
            result = _machine(settings)
            result["precision"] = precision
            result["bare"] = bare = _bare(repository, precision, settings.profile)
            path = settings.out / f"gpu-{precision}.json"
            for part in _served(settings, repository, precision, images, drivers, bare):
                result |= part  # written as it comes: what fails later loses nothing
                write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
            _say(f"{precision}: written to {path}")
            results.append(result)
    try:
        draw(results, settings.out / "gpu.png")
    except ImportError:
        _say("no picture: matplotlib is not installed here")
    else:
        _say(f"written: {settings.out / 'gpu.png'}")
    return 0


def _served(
    settings: GpuSettings,
    repository: Path,
    precision: str,
    images: tuple[bytes, ...],
    drivers: Drivers,
    bare: dict[str, float],
) -> Iterator[dict[str, Any]]:
    options = ServerOptions(
        repository,
        profile=settings.profile,
        precisions=(precision,),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        max_latency_ms=NO_LATENCY_BOUND_MS,
    )
    server = TritonServer(options)
    started = time.monotonic()
    try:
        server.start()
        server.wait_ready(_READY_TIMEOUT_S)
        ready_s = time.monotonic() - started
        _say(f"{precision}: server ready after {ready_s:.1f} s")
        first = _first_requests(server.grpc_url, contract.ensemble_model(precision), images)
        for size, (one, two) in first.items():
            _say(f"{precision}: {size} images in one request: first {one:.0f} ms, second {two:.0f} ms")
        requests = {str(size): {"first_ms": one, "second_ms": two} for size, (one, two) in first.items()}
        yield {"ready_s": ready_s, "requests_after_start": requests}
        target = Target(server.grpc_url, contract.ensemble_model(precision), images)
        model = contract.network_model(precision)
        meter = ServerMeter(server.pid or 0, server.grpc_url, server.metrics_url, model)
        loads: list[dict[str, Any]] = []
        for in_flight in settings.in_flight:
            with GpuMeter() as gpu:
                load = put_under_load(drivers, target, meter, in_flight, settings.seconds, _WARM_UP_S)
            busy = gpu.busy_percent(load.window)
            shares = {way: load.images_per_s / rate for way, (rate, _) in best_bare(bare).items()}
            loads.append({**load.to_json(), "gpu_busy_percent": busy, "of_bare": shares})
            yield {"loads": loads}
            _say(
                f"{precision}: {in_flight:4} in flight  {load.images_per_s:7.1f} images/s "
                f"({', '.join(f'{share:.2f} of bare {way}' for way, share in shares.items())})  "
                f"p50 {load.p50_ms:.1f} ms  p99 {load.p99_ms:.1f} ms  "
                f"non-model CPU {load.usage.other_ms:.2f} ms/image  session CPU {load.usage.session_ms:.2f}  "
                f"client CPU {load.client_ms:.2f}  GPU {'not measured' if busy is None else f'{busy:.0f} %'}  "
                f"batches {load.usage.batches}"
            )
            _say("    by process, ms/image: " + ", ".join(f"{k} {v:.2f}" for k, v in load.usage.by_process_ms.items()))
            steps = (f"{k} {v['queue']:.1f} + {v['compute']:.1f}" for k, v in load.usage.steps_ms.items())
            _say("    by step, ms waiting + ms working: " + ", ".join(steps))
    finally:
        server.stop()


def _first_requests(url: str, model: str, images: Sequence[bytes]) -> dict[int, tuple[float, float]]:
    """Latencies of the first two requests of every batch size that a request may have, in milliseconds."""
    latencies = {}
    with grpc.insecure_channel(url, options=grpc_channel_args(url)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for size in range(1, contract.MAX_REQUEST_BATCH + 1):
            request = encoded_request(model, [images[index % len(images)] for index in range(size)])
            pair = []
            for _ in range(2):
                started = time.perf_counter()
                stub.ModelInfer(request, timeout=60)
                pair.append((time.perf_counter() - started) * 1e3)
            latencies[size] = (pair[0], pair[1])
    return latencies


def _bare(repository: Path, precision: str, profile: str) -> dict[str, float]:
    """Images per second of the session alone, by batch size; in a process of its own, which frees the GPU behind it."""
    path = network_path(repository, precision)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        try:
            rates: dict[str, float] = pool.apply(_bare_rates, (path, profile))
        except RuntimeError as error:  # ONNX Runtime without CUDA; the text says what to install
            raise LoadError(str(error)) from error
    for name, rate in rates.items():
        _say(f"{precision}: bare session, {name}: {rate:.1f} images/s")
    return rates


def _bare_rates(path: Path, profile: str) -> dict[str, float]:
    from steps.onnx_cpu import OUTPUT_NAMES, CpuNetwork
    from steps.onnx_cuda import cuda_session, network_on_gpu

    pixels = np.random.default_rng(0).integers(0, 256, (_BARE_MAX_BATCH, 640, 640, 3), dtype=np.uint8)
    rates = {}
    if profile == "cuda":
        network: Any
        network, problems = network_on_gpu(path, 0, _BARE_MAX_BATCH)
        for problem in problems:
            _say(f"CUDA: {problem}")
        session = cuda_session(path, 0)
        shape = session.get_inputs()[0].shape[1:]
        pixels = np.resize(pixels, (_BARE_MAX_BATCH, *shape))
        for size in batch_sizes(_BARE_MAX_BATCH):
            batch = pixels[:size]
            rates[f"run, batch {size}"] = _rate(
                lambda b=batch: session.run(OUTPUT_NAMES, {contract.IMAGES.name: b}), size
            )
        _check_same(network, session, pixels[:4])
    else:
        network = CpuNetwork(path, len(os.sched_getaffinity(0)), contract.MAX_REQUEST_BATCH)
    top = _BARE_MAX_BATCH if profile == "cuda" else contract.MAX_REQUEST_BATCH
    for size in batch_sizes(top):
        parts = [pixels[index : index + 1] for index in range(size)]
        rates[f"as served, batch {size}"] = _rate(lambda p=parts: network.run(p), size)
    return rates


def _check_same(network: Any, session: Any, batch: NDArray[np.uint8]) -> None:
    """Compare the prepared buffers with a plain run of the session.

    Raises:
        LoadError: they differ.
    """
    candidates, prototypes = session.run(
        [contract.CANDIDATES.name, contract.PROTOTYPES.name], {contract.IMAGES.name: batch}
    )
    found = network.run([batch[index : index + 1] for index in range(len(batch))])
    scores = np.stack([one[0, :, contract.SCORE_COLUMN] for one, _ in found])
    planes = np.concatenate([two for _, two in found]).astype(np.float32)
    if not (
        np.allclose(scores, candidates[..., contract.SCORE_COLUMN], atol=1e-2)
        and np.allclose(planes, prototypes.astype(np.float32), atol=0.1)
    ):
        raise LoadError("the network's prepared buffers give other results than a plain run of its session")


def _rate(work: Any, images: int) -> float:
    for _ in range(3):
        work()
    runs, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < _BARE_SECONDS:
        work()
        runs += 1
    return runs * images / elapsed


class GpuMeter:
    """Polls ``nvidia-smi`` for the share of time in which the GPU works."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuMeter:
        program = shutil.which("nvidia-smi")
        if program is not None:
            query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={_POLL_MS}", "--id=0"]
            self._process = subprocess.Popen([program, *query], stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def busy_percent(self, window: tuple[float, float]) -> float | None:
        """Mean over a window of ``time.monotonic``; None if there was nothing to read."""
        inside = [value for at, value in self._samples if window[0] <= at < window[1]]
        return statistics.fmean(inside) if inside else None

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            with contextlib.suppress(ValueError):
                self._samples.append((time.monotonic(), float(line)))


def _machine(settings: GpuSettings) -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu_name(),
        "profile": settings.profile,
        "seconds": settings.seconds,
        "load_processes": settings.processes,
        "variant": asdict(settings.variant),
    }


def _say(text: str) -> None:
    print(text, flush=True)
