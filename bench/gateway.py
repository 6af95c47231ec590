"""What plain HTTP costs over gRPC: ``POST /v1/segment`` and KServe's ``infer`` through the gateway, beside it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2_grpc

from bench.drive import encoded_request
from bench.report import PartReport
from load.photographs import as_jpeg
from pipeline import contract
from pipeline.loopback import grpc_channel_args
from scenes.reference import fetch_reference
from serving.server import NO_LATENCY_BOUND_MS, ServerOptions, TritonServer

GRPC: Final = "gRPC"
SEGMENT: Final = "POST /v1/segment, a form"
INFER: Final = "POST /v2/models/…/infer, binary"
_BOUNDARY: Final = "7f3c1a"

Send = Callable[[bytes], None]


@dataclass(frozen=True)
class Figures:
    """One way under a load.

    Attributes:
        p50_ms: median latency.
        gateway_ms: processor time of the gateway, per image.
        client_ms: processor time of the caller, per image; a caller of gRPC needs more than one of HTTP.
        images_per_s: that were answered.
    """

    p50_ms: float
    gateway_ms: float
    client_ms: float
    images_per_s: float


def run(options: argparse.Namespace) -> None:
    """Measure all ways in turn against one server.

    Args:
        options: ``repository``, ``out``, ``rounds``, ``seconds`` of a window, ``in_flight`` requests, ``precision``.

    Raises:
        ServingError: the server did not start.
        RuntimeError: a request failed.
    """
    images = tuple(as_jpeg(fetch_reference().photographs))
    sizes = " to ".join(f"{size / 1e3:.0f}" for size in (min(map(len, images)), max(map(len, images))))
    report = PartReport(
        "gateway",
        f"The reference photographs as JPEG ({sizes} kB), {options.precision}; clients that block, a thread for each "
        "request in flight. Processor time per image: the gateway's process, the caller, both over gRPC.",
        options.out,
    )
    settings = ServerOptions(
        options.repository,
        precisions=(options.precision,),
        gateway=True,
        max_latency_ms=NO_LATENCY_BOUND_MS,
    )
    with TritonServer(settings) as server:
        model = contract.ensemble_model(options.precision)
        front = server.front.pid if server.front is not None else None
        openers = {
            GRPC: lambda: _grpc(server.grpc_url, model),
            SEGMENT: lambda: _segment(server.http_url, options.precision),
            INFER: lambda: _infer(server.http_url, model),
        }

        def way(opener: Any, in_flight: int) -> Callable[[], Figures]:
            return lambda: _measure(opener, images, in_flight, options.seconds, front or 0)

        for in_flight in options.in_flight:
            case = f"{in_flight} in flight"
            ways = {name: way(opener, in_flight) for name, opener in openers.items()}
            report.measure(case, ways, options.rounds, functools.partial(_add, report, case))
    report.draw()


def _add(report: PartReport, case: str, results: dict[str, list[Figures]]) -> None:
    for name, figures in results.items():
        report.add(case, name, "ms p50", [one.p50_ms for one in figures])
        report.add(case, name, "images/s", [one.images_per_s for one in figures])
        report.add(case, f"{name}, caller", "ms CPU", [one.client_ms for one in figures])
        if name != GRPC:
            report.add(case, f"{name}, gateway", "ms CPU", [one.gateway_ms for one in figures])
            pairs = [*zip(figures, results[GRPC], strict=True)]
            more = [one.gateway_ms + one.client_ms - grpc.client_ms for one, grpc in pairs]
            report.add(case, f"{name}, over gRPC", "ms CPU", more)
            report.add(case, f"{name}, over gRPC", "ms p50", [one.p50_ms - grpc.p50_ms for one, grpc in pairs])


def _measure(
    opener: Callable[[], contextlib.AbstractContextManager[Send]],
    images: Sequence[bytes],
    in_flight: int,
    seconds: float,
    front: int,
) -> Figures:
    latencies: list[float] = []
    faults: list[Exception] = []
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        try:
            with opener() as send:
                send(images[0])  # opens the connection
                index = number
                while time.monotonic() < end:
                    started = time.perf_counter()
                    send(images[index % len(images)])
                    latencies.append((time.perf_counter() - started) * 1e3)
                    index += in_flight
        except Exception as error:  # the main thread raises it
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(in_flight)]
    before, own, started = _cpu_ms(front), time.process_time(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults or not latencies:
        raise RuntimeError(f"a request failed: {faults[0] if faults else 'nothing was answered'}")
    count = len(latencies) + in_flight
    return Figures(
        statistics.median(latencies),
        (_cpu_ms(front) - before) / count,
        (time.process_time() - own) * 1e3 / count,
        len(latencies) / (time.monotonic() - started),
    )


def _cpu_ms(pid: int) -> float:
    """Processor time of a process and its threads, to the nanosecond, where psutil counts in hundredths of a second."""
    clock = ~pid << 3 | 2  # clock_getcpuclockid(3), which Python lacks
    return time.clock_gettime_ns(clock) / 1e6


@contextlib.contextmanager
def _grpc(url: str, model: str) -> Iterator[Send]:
    options = [*grpc_channel_args(url), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(url, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        yield lambda image: stub.ModelInfer(encoded_request(model, [image]))


@contextlib.contextmanager
def _http(url: str) -> Iterator[Callable[[str, bytes, dict[str, str]], bytes]]:
    with contextlib.closing(http.client.HTTPConnection(url, timeout=60)) as connection:

        def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise RuntimeError(f"HTTP {answer.status}: {data[:300]!r}")
            return data

        yield post


@contextlib.contextmanager
def _segment(url: str, precision: str) -> Iterator[Send]:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'.encode()
    head += b"Content-Type: image/jpeg\r\n\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    with _http(url) as post:
        yield lambda image: json.loads(
            post(f"/v1/segment?precision={precision}", head + image + f"\r\n--{_BOUNDARY}--\r\n".encode(), headers)
        )


@contextlib.contextmanager
def _infer(url: str, model: str) -> Iterator[Send]:
    def send(image: bytes) -> None:
        element = len(image).to_bytes(4, "little") + image
        tensor = {
            "name": contract.IMAGE.name,
            "datatype": contract.IMAGE.dtype,
            "shape": [1, 1],
            "parameters": {"binary_data_size": len(element)},
        }
        text = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [tensor]}).encode()
        post(f"/v2/models/{model}/infer", text + element, {"Inference-Header-Content-Length": str(len(text))})

    with _http(url) as post:
        yield send
