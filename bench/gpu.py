"""The ensemble on a GPU machine: under load, against what each part of it does by itself; its first requests; a soak.

Needs no network: the server's wheel, the built versions and the photographs must be in place.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import grpc
import numpy as np
import psutil
from tritonclient.grpc import service_pb2_grpc

from base.gpu import query_gpus
from bench.drive import Drivers, LoadFigures, Target, encoded_request
from bench.measure import ProcessTree, rate
from bench.report import stack
from bench.server_meter import ServerMeter
from bench.synthetic import INPUT_SIZE
from client.files import write_atomically
from load.errors import LoadError
from load.machine import gpu_name
from load.photographs import as_jpeg, at_megapixels, encode, network_path
from pipeline import contract
from pipeline.errors import ImageError
from pipeline.images import decode_image
from pipeline.loopback import grpc_channel_args
from pipeline.parameters import RequestParameters
from repository.profiles import GPU_STEPS
from repository.store import CONFIG_NAMES, ModelRepository, read_config, write_config
from scenes.reference import fetch_reference
from serving.gpu_steps import put_on_gpu
from serving.server import NO_LATENCY_BOUND_MS, ServerOptions, TritonServer

_ALONE_S: Final = 1.0
_ALONE_BATCHES: Final = (1, 16, 64)
_UPLOAD_BYTES: Final = 1 << 26
_READY_TIMEOUT_S: Final = 180.0
_WARM_UP_S: Final = 1.0
_POLL_MS: Final = 100
_SETTINGS: Final = (
    "profile",
    "masks_with_network",
    "seconds",
    "processes",
    "network_instances",
    "preprocess_instances",
    "postprocess_instances",
)
_SOAK_IN_FLIGHT: Final = 128
_SOAK_SAMPLE_S: Final = 2.0
_MOST_GROWTH: Final = 1.1
"""Of memory during a soak, from its first tenth to its last."""


def run(options: argparse.Namespace) -> None:
    """Measure every precision; print the figures and write them to ``gpu-<precision>.json`` and ``gpu.png``.

    A soak writes the memory in use to ``gpu-<precision>-soak.csv``.

    Raises:
        ServingError: the server did not start.
        LoadError: a request failed, the network could not be loaded, or memory grew during a soak.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    images = tuple(as_jpeg(fetch_reference().photographs))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Drivers(options.processes) as drivers:
        repository = copy_repository(options, Path(folder) / "repository")
        for precision in options.precisions:
            result = {name: getattr(options, name) for name in _SETTINGS}
            result |= {"cores": len(os.sched_getaffinity(0)), "gpu": gpu_name(), "precision": precision}
            result["bounds"] = _alone(repository, precision, options.profile, images)
            path = options.out / f"gpu-{precision}.json"
            for part in _served(options, repository, precision, images, drivers, result["bounds"]):
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

    On a GPU the copy serves the versions that are promoted for cpu: all load ``model.onnx``. Under
    :data:`repository.profiles.GPU_STEPS` the network takes and gives GPU tensors, as a TensorRT plan would.

    Raises:
        RepositoryError: a configuration is missing or broken.
    """
    shutil.copytree(options.repository, target, ignore=shutil.ignore_patterns("__pycache__", ".lock", ".building-*"))
    for precision in contract.PRECISIONS:
        path = target / contract.network_model(precision) / CONFIG_NAMES[options.profile]
        config = read_config(path)
        if options.profile == GPU_STEPS:
            ensemble = target / contract.ensemble_model(precision)
            steps = read_config(ensemble / CONFIG_NAMES["tensorrt"])
            config = _between_steps(read_config(path.parent.parent / CONFIG_NAMES["cpu"]))
            if options.masks_with_network:
                _add_masks(config, steps, read_config(target / contract.POSTPROCESS_MODEL / CONFIG_NAMES["tensorrt"]))
            write_config(ensemble / CONFIG_NAMES[options.profile], steps)
        for group in config.instance_group:
            group.count = options.network_instances or group.count
        if options.profile != "cpu":
            config.version_policy.specific.versions[:] = ModelRepository(target).promoted(precision, "cpu")
        write_config(path, config)
    return target


def _between_steps(config: Any) -> Any:
    """The configuration of a network that runs on the GPU between the steps there."""
    config.ClearField("dynamic_batching")
    put_on_gpu(config)
    del config.parameters["device"]
    config.parameters["provider"].string_value = "cuda"
    return config


def _add_masks(network: Any, ensemble: Any, postprocess: Any) -> None:
    """Have the network do what the step behind it does, in that step's place."""
    between = [tensor.name for tensor in network.output]
    network.input.extend(tensor for tensor in postprocess.input if tensor.name not in between)
    del network.output[:]
    network.output.extend(postprocess.output)
    steps = ensemble.ensemble_scheduling.step
    last = steps[-1]
    last.model_name = network.name
    for name in between:
        del last.input_map[name]
    last.input_map[contract.IMAGES.name] = contract.IMAGES.name
    del steps[-2]


def _served(
    options: argparse.Namespace,
    repository: Path,
    precision: str,
    images: tuple[bytes, ...],
    drivers: Drivers,
    bounds: dict[str, float],
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
            shares = {part: load.images_per_s / best for part, (best, _) in best_of(bounds).items()}
            loads.append({**asdict(load), "gpu_busy_percent": busy, "of_bounds": shares})
            del loads[-1]["window"]
            yield {"loads": loads}
            _say(_lines(precision, load, shares, busy))
        if options.soak_seconds:
            mixed = Target(target.url, target.model, _mixed_images())
            yield {"soak": _soak(server.pid or 0, mixed, drivers, options, precision)}
    finally:
        server.stop()


def _lines(precision: str, load: LoadFigures, shares: dict[str, float], busy: float | None) -> str:
    usage = load.usage
    processes = (f"{name} {spent:.2f}" for name, spent in usage.by_process_ms.items())
    steps = (f"{name} {spent['queue']:.1f} + {spent['compute']:.1f}" for name, spent in usage.steps_ms.items())
    return (
        f"{precision}: {load.in_flight:4} in flight  {load.images_per_s:7.1f} images/s "
        f"({', '.join(f'{share:.2f} of {part}' for part, share in shares.items())})  "
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


def _alone(repository: Path, precision: str, profile: str, images: tuple[bytes, ...]) -> dict[str, float]:
    """Images per second of each part by itself; in a separate process, whose end frees the GPU."""
    path = network_path(repository, precision)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            rates: dict[str, float] = pool.apply(_on_cpu if profile == "cpu" else _on_gpu, (path, images))
        except RuntimeError as error:  # ONNX Runtime without CUDA, no CuPy; the text says what to install
            raise LoadError(str(error)) from error
    for name, images_per_s in rates.items():
        _say(f"{precision}: {name}: {images_per_s:.1f} images/s")
    return rates


def _on_cpu(path: Path, _: tuple[bytes, ...]) -> dict[str, float]:
    from steps.cpu_engines import cpu_network

    size = contract.MAX_REQUEST_BATCH
    network, engine = cpu_network(path, len(os.sched_getaffinity(0)), size)
    _say(engine)
    pixels = [np.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)] * size
    return {f"network alone, batch {size}": rate(lambda: network.run(pixels), size, _ALONE_S)}


def _on_gpu(path: Path, images: tuple[bytes, ...]) -> dict[str, float]:
    """The decode engines, the network, the bus, and one process with all of them, without a server."""
    from steps.gpu.segmenter import open_segmenter

    most = max(_ALONE_BATCHES)
    segmenter, problems = open_segmenter(path, 0, most, threads=2)
    for problem in problems:
        _say(f"CUDA: {problem}")
    device, network, decoder = segmenter.device, segmenter.network, segmenter.decoder

    def waited(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            kept = work()  # what was decoded lives until it is there
            device.wait()
            del kept

        return run

    rates = {}
    for size in _ALONE_BATCHES:
        batch = [images[index % len(images)] for index in range(size)]
        rates[f"decode engines, batch {size}"] = rate(waited(partial(decoder.decode, batch)), size, _ALONE_S)
        rates[f"network alone, batch {size}"] = rate(waited(partial(network.run, size)), size, _ALONE_S)
    staged, address = device.host(_UPLOAD_BYTES, np.uint8), device.memory(_UPLOAD_BYTES)
    files = round(_UPLOAD_BYTES * len(images) / sum(map(len, images)))
    rates["PCIe, the files"] = rate(waited(partial(device.upload, address, staged)), files, _ALONE_S)
    spent_s, done = time.process_time(), 0
    asked, under_way = [RequestParameters()] * most, []

    def whole() -> None:
        nonlocal done
        under_way.append(segmenter.start([segmenter.examine(data) for data in batch], asked))
        if len(under_way) > 1:
            first = under_way.pop(0)
            for index, found in enumerate(first.wait()):
                if not isinstance(found, ImageError):
                    first.masks(index, found[0])
            done += most

    rates[f"one process without tritonserver, batch {most}"] = rate(whole, most, _ALONE_S)
    rates["one core's Python"] = done / (time.process_time() - spent_s)
    return rates


def _mixed_images() -> tuple[bytes, ...]:
    """Three quarters small photographs as JPEG; the others as PNG, progressive, gray, large."""
    photographs = fetch_reference().photographs
    first = decode_image(photographs[0].read_bytes())
    progressive = cv2.imencode(".jpg", first[..., ::-1], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    gray = cv2.imencode(".jpg", first[..., 1])[1].tobytes()
    png = cv2.imencode(".png", first[..., ::-1])[1].tobytes()
    others = [png, progressive, gray, encode(at_megapixels(photographs[1], 2), ".jpg")]
    return (*as_jpeg(photographs), *as_jpeg(photographs), *as_jpeg(photographs[:2]), *others)


def _soak(
    pid: int, target: Target, drivers: Drivers, options: argparse.Namespace, precision: str
) -> dict[str, dict[str, float] | float]:
    """Memory of GPU and host under mixed load, sampled into a CSV file.

    Raises:
        LoadError: a request failed, or memory grew.
    """
    samples: list[tuple[float, float, float]] = []
    ended = threading.Event()
    tree, begin = ProcessTree(pid), time.monotonic()

    def sample() -> None:
        while not ended.wait(_SOAK_SAMPLE_S):
            gpus = query_gpus("memory.used")
            with contextlib.suppress(psutil.Error):  # a process was replaced
                device = float(gpus[0][0].split()[0]) if gpus else 0.0
                samples.append((time.monotonic() - begin, device, tree.memory_mib()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    answers = drivers.run(target, _SOAK_IN_FLIGHT, options.soak_seconds, _WARM_UP_S)
    ended.set()
    thread.join()
    path = options.out / f"gpu-{precision}-soak.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "gpu_mib", "host_mib"])
        writer.writerows([[f"{value:.1f}" for value in row] for row in samples])
    summary: dict[str, dict[str, float] | float] = {"answered": answers.answered, "failed": answers.failed}
    tenth = max(1, len(samples) // 10)
    grown = []
    for column, name in enumerate(("gpu_mib", "host_mib"), 1):
        values = [row[column] for row in samples]
        start, end = statistics.fmean(values[:tenth]), statistics.fmean(values[-tenth:])
        summary[name] = {"start": start, "end": end, "least": min(values), "most": max(values)}
        _say(f"{precision}: soak: {name} {start:.0f} at the start, {end:.0f} at the end, {max(values):.0f} at most")
        if end > _MOST_GROWTH * start:
            grown.append(f"{name} {start:.0f} to {end:.0f}")
    _say(f"{precision}: soak: {answers.answered} answered, {answers.failed} failed; written to {path}")
    if answers.failed or grown:
        raise LoadError(f"soak: {answers.failed} requests failed ({answers.first_error}); grown: {grown or 'nothing'}")
    return summary


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


def best_of(bounds: dict[str, float]) -> dict[str, tuple[float, str]]:
    """For each part that was measured by itself, such as ``network alone``: its best rate, and at which batch size."""
    best: dict[str, tuple[float, str]] = {}
    for name, images_per_s in bounds.items():
        part = name.partition(",")[0]
        best[part] = max(best.get(part, (0.0, "")), (images_per_s, name))
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
        bounds = {name: best for best, name in best_of(result["bounds"]).values()}
        bounds["every core of the host busy"] = host_limit(result)
        highest = 2.0 * max(load["images_per_s"] for load in loads)
        for index, (name, bound) in enumerate(bounds.items(), 1):
            above = " (above the picture)" if bound > highest else ""
            label = f"{name}: {bound:,.0f}/s{above}"
            rates.axhline(bound, linestyle=("-.", "--", ":")[index % 3], color=f"C{index}", label=label)
        label = "{in_flight}\n{images_per_s:.0f}/s\np50 {p50_ms:.0f} ms\np99 {p99_ms:.0f} ms"
        rates.bar([label.format(**load) for load in loads], [load["images_per_s"] for load in loads], 0.6)
        rates.set_ylim(0, highest)
        rates.set(xlabel="requests in flight", ylabel="images/s", title=result["precision"])
        rates.legend(fontsize=7, loc="upper left")
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
