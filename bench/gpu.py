"""The ensemble on a GPU machine: its share of the bare session's throughput, and its first requests.

Needs no network: the server's wheel, the built versions and the photographs must be in place.
"""

from __future__ import annotations

import argparse
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
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2_grpc

from bench.drive import Drivers, LoadFigures, Target, encoded_request
from bench.measure import rate
from bench.report import stack
from bench.server_meter import ServerMeter
from client.files import write_atomically
from load.errors import LoadError
from load.machine import gpu_name
from load.photographs import as_jpeg, network_path
from pipeline import contract
from pipeline.loopback import grpc_channel_args
from repository.store import CONFIG_NAMES, ModelRepository, read_config, write_config
from scenes.reference import fetch_reference
from serving.server import NO_LATENCY_BOUND_MS, ServerOptions, TritonServer
from steps.onnx_cuda import batch_sizes

_BARE_MAX_BATCH: Final = 16
_BARE_SECONDS: Final = 1.0
_READY_TIMEOUT_S: Final = 180.0
_WARM_UP_S: Final = 1.0
_POLL_MS: Final = 100
_SETTINGS: Final = (
    *("profile", "seconds", "processes"),
    *("preprocess_instances", "postprocess_instances", "network_instances"),
)


def run(options: argparse.Namespace) -> None:
    """Measure every precision; print the figures and write them to ``gpu-<precision>.json`` and ``gpu.png``.

    Raises:
        ServingError: the server did not start.
        LoadError: a request failed, or the session could not be made.
    """
    images = tuple(as_jpeg(fetch_reference().photographs))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Drivers(options.processes) as drivers:
        repository = copy_repository(options, Path(folder) / "repository")
        for precision in options.precisions:
            result = {name: getattr(options, name) for name in _SETTINGS}
            result |= {"cores": len(os.sched_getaffinity(0)), "gpu": gpu_name(), "precision": precision}
            result["bare"] = _bare(repository, precision, options.profile)
            path = options.out / f"gpu-{precision}.json"
            for part in _served(options, repository, precision, images, drivers, result["bare"]):
                result |= part  # written at once: a later failure loses nothing
                write_atomically(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
            _say(f"{precision}: written to {path}")
            results.append(result)
    try:
        draw(results, options.out / "gpu.png")
        _say(f"written: {options.out / 'gpu.png'}")
    except ImportError:  # a GPU machine without network has what serves, not what draws
        _say("no picture: matplotlib is not installed here")


def copy_repository(options: argparse.Namespace, target: Path) -> Path:
    """Copy a repository to a new folder, and set the network's instances there.

    Under the profile cuda the copy serves the versions that are promoted for cpu: both load ``model.onnx``.

    Raises:
        RepositoryError: a configuration is missing or broken.
    """
    shutil.copytree(options.repository, target, ignore=shutil.ignore_patterns("__pycache__", ".lock", ".building-*"))
    for precision in contract.PRECISIONS:
        path = target / contract.network_model(precision) / CONFIG_NAMES[options.profile]
        config = read_config(path)
        for group in config.instance_group:
            group.count = options.network_instances or group.count
        if options.profile == "cuda":
            config.version_policy.specific.versions[:] = ModelRepository(target).promoted(precision, "cpu")
        write_config(path, config)
    return target


def _served(
    options: argparse.Namespace,
    repository: Path,
    precision: str,
    images: tuple[bytes, ...],
    drivers: Drivers,
    bare: dict[str, float],
) -> Iterator[dict[str, Any]]:
    server = TritonServer(
        ServerOptions(
            repository,
            profile=options.profile,
            precisions=(precision,),
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            preprocess_instances=options.preprocess_instances,
            postprocess_instances=options.postprocess_instances,
            max_latency_ms=NO_LATENCY_BOUND_MS,
        )
    )
    started = time.monotonic()
    try:
        server.start()
        server.wait_ready(_READY_TIMEOUT_S)
        ready_s = time.monotonic() - started
        _say(f"{precision}: server ready after {ready_s:.1f} s")
        target = Target(server.grpc_url, contract.ensemble_model(precision), images)
        requests = _first_requests(target)
        for size, times in requests.items():
            first, second = times.values()
            _say(f"{precision}: {size} images in one request: first {first:.0f} ms, second {second:.0f} ms")
        yield {"ready_s": ready_s, "requests_after_start": requests}
        network = contract.network_model(precision)
        meter = ServerMeter(server.pid or 0, server.grpc_url, server.metrics_url, network)
        loads: list[dict[str, Any]] = []
        for in_flight in options.in_flight:
            with GpuMeter() as gpu:
                load = drivers.measure(target, meter, in_flight, options.seconds, _WARM_UP_S)
            busy = gpu.busy_percent(load.window)
            shares = {way: load.images_per_s / best for way, (best, _) in best_bare(bare).items()}
            loads.append({**asdict(load), "gpu_busy_percent": busy, "of_bare": shares})
            del loads[-1]["window"]
            yield {"loads": loads}
            _say(_lines(precision, load, shares, busy))
    finally:
        server.stop()


def _lines(precision: str, load: LoadFigures, shares: dict[str, float], busy: float | None) -> str:
    usage = load.usage
    processes = (f"{name} {spent:.2f}" for name, spent in usage.by_process_ms.items())
    steps = (f"{name} {spent['queue']:.1f} + {spent['compute']:.1f}" for name, spent in usage.steps_ms.items())
    return (
        f"{precision}: {load.in_flight:4} in flight  {load.images_per_s:7.1f} images/s "
        f"({', '.join(f'{share:.2f} of bare {way}' for way, share in shares.items())})  "
        f"p50 {load.p50_ms:.1f} ms  p99 {load.p99_ms:.1f} ms  non-model CPU {usage.other_ms:.2f} ms/image  "
        f"session CPU {usage.session_ms:.2f}  client CPU {load.client_ms:.2f}  "
        f"GPU {'not measured' if busy is None else f'{busy:.0f} %'}  batches {usage.batches}\n"
        f"    by process, ms/image: {', '.join(processes)}\n"
        f"    by step, ms waiting + ms working: {', '.join(steps)}"
    )


def _first_requests(target: Target) -> dict[str, dict[str, float]]:
    """Latencies of the first two requests of every batch size that a request may have, in milliseconds."""
    latencies = {}
    with grpc.insecure_channel(target.url, options=grpc_channel_args(target.url)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for size in range(1, contract.MAX_REQUEST_BATCH + 1):
            batch = [target.images[index % len(target.images)] for index in range(size)]
            request, pair = encoded_request(target.model, batch), []
            for _ in range(2):
                started = time.perf_counter()
                stub.ModelInfer(request, timeout=60)
                pair.append((time.perf_counter() - started) * 1e3)
            latencies[str(size)] = {"first_ms": pair[0], "second_ms": pair[1]}
    return latencies


def _bare(repository: Path, precision: str, profile: str) -> dict[str, float]:
    """Images per second of the session only, by batch size; in a separate process, whose end frees the GPU."""
    path = network_path(repository, precision)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            rates: dict[str, float] = pool.apply(_bare_rates, (path, profile))
        except RuntimeError as error:  # ONNX Runtime without CUDA; the text says what to install
            raise LoadError(str(error)) from error
    for name, images_per_s in rates.items():
        _say(f"{precision}: bare session, {name}: {images_per_s:.1f} images/s")
    return rates


def _bare_rates(path: Path, profile: str) -> dict[str, float]:
    from steps.cpu_engines import cpu_network
    from steps.onnx_cpu import OUTPUT_NAMES
    from steps.onnx_cuda import cuda_session, network_on_gpu

    noise = np.random.default_rng(0).integers(0, 256, (_BARE_MAX_BATCH, 640, 640, 3), dtype=np.uint8)
    rates = {}
    if profile == "cuda":
        network: Any
        network, problems = network_on_gpu(path, 0, _BARE_MAX_BATCH)
        for problem in problems:
            _say(f"CUDA: {problem}")
        session = cuda_session(path, 0)
        noise = np.resize(noise, (_BARE_MAX_BATCH, *session.get_inputs()[0].shape[1:]))
        for size in batch_sizes(_BARE_MAX_BATCH):
            feed = {contract.IMAGES.name: noise[:size]}
            rates[f"run, batch {size}"] = rate(lambda feed=feed: session.run(OUTPUT_NAMES, feed), size, _BARE_SECONDS)  # type: ignore[misc]
        _check_same(network, session.run(OUTPUT_NAMES, {contract.IMAGES.name: noise[:4]}), noise[:4])
    else:
        network, _ = cpu_network(path, len(os.sched_getaffinity(0)), contract.MAX_REQUEST_BATCH)
    for size in batch_sizes(_BARE_MAX_BATCH if profile == "cuda" else contract.MAX_REQUEST_BATCH):
        parts = [noise[index : index + 1] for index in range(size)]
        rates[f"as served, batch {size}"] = rate(lambda parts=parts: network.run(parts), size, _BARE_SECONDS)  # type: ignore[misc]
    return rates


def _check_same(network: Any, outputs: Sequence[NDArray[Any]], batch: NDArray[np.uint8]) -> None:
    """Compare the outputs of the prepared buffers with those of a plain run of the session.

    Raises:
        LoadError: they differ.
    """
    candidates, prototypes = outputs
    served = network.run([batch[index : index + 1] for index in range(len(batch))])
    scores = np.stack([one[0, :, contract.SCORE_COLUMN] for one, _ in served])
    planes = np.concatenate([two for _, two in served]).astype(np.float32)
    if not (
        np.allclose(scores, candidates[..., contract.SCORE_COLUMN], atol=1e-2)
        and np.allclose(planes, prototypes.astype(np.float32), atol=0.1)
    ):
        raise LoadError("the network's prepared buffers give other results than a plain run of its session")


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
        """Mean over a window of ``time.monotonic``; None without samples."""
        inside = [value for at, value in self._samples if window[0] <= at < window[1]]
        return statistics.fmean(inside) if inside else None

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            with contextlib.suppress(ValueError):
                self._samples.append((time.monotonic(), float(line)))


def host_limit(result: dict[str, Any]) -> float:
    """Images per second at which every core of the host is busy, by the processor time under the highest load."""
    load = result["loads"][-1]
    each_ms = load["client_ms"] + load["usage"]["other_ms"] + load["usage"]["session_ms"]
    return float(result["cores"] * 1000 / each_ms)


def best_bare(bare: dict[str, float]) -> dict[str, tuple[float, str]]:
    """For each way in which the session is measured, such as ``run``: its best rate, and at which batch size."""
    best: dict[str, tuple[float, str]] = {}
    for name, images_per_s in bare.items():
        way = name.partition(",")[0]
        best[way] = max(best.get(way, (0.0, "")), (images_per_s, name))
    return best


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw, for each precision, images per second against what bounds them, and the host's time by process.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.5 + 3.1 * len(results)), layout="constrained")
    for (rates, times), result in zip(
        figure.subplots(len(results), 2, squeeze=False, width_ratios=(3, 2)), results, strict=True
    ):
        loads = result["loads"]
        bounds = {f"bare session, {name}": best for best, name in best_bare(result["bare"]).values()}
        bounds["every core of the host busy"] = host_limit(result)
        for index, (name, bound) in enumerate(bounds.items(), 1):
            rates.axhline(
                bound, linestyle=("-.", "--", ":")[index % 3], color=f"C{index}", label=f"{name}: {bound:.0f}/s"
            )
        label = "{in_flight}\n{images_per_s:.0f}/s\np50 {p50_ms:.0f} ms\np99 {p99_ms:.0f} ms"
        rates.bar([label.format(**load) for load in loads], [load["images_per_s"] for load in loads], 0.6)
        rates.set_ylim(0, 1.3 * max(*bounds.values(), *(load["images_per_s"] for load in loads)))
        rates.set(xlabel="requests in flight", ylabel="images/s", title=result["precision"])
        rates.legend(fontsize=7, loc="upper left", ncols=2)
        stack(
            times,
            {str(load["in_flight"]): {**load["usage"]["by_process_ms"], "client": load["client_ms"]} for load in loads},
        )
        times.set_ylabel("requests in flight")
    machine = f"{results[0]['gpu'] or 'no GPU'}, {results[0]['cores']} cores"
    figure.suptitle(f"the ensemble on a GPU machine: profile {results[0]['profile']}, {machine}")
    figure.savefig(path, dpi=110)


def _say(text: str) -> None:
    print(text, flush=True)
