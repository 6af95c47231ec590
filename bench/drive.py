"""Load from processes of their own, so that the generator is not what is measured.

Each process keeps a number of requests in flight over its own gRPC connection, on one asyncio loop: a new one is sent
when one is answered (a closed loop).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

import cv2
import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from load.errors import LoadError
from pipeline import contract
from pipeline.letterbox import Geometry
from pipeline.loopback import grpc_channel_args
from pipeline.parameters import RequestParameters
from pipeline.postprocess import postprocess
from pipeline.preprocess import preprocess

LEAD_S: Final = 0.3
"""Between the order to begin and the first request: the orders reach all processes within it."""

ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""As in the server: the processes are the parallelism."""

_ANSWER_GRACE_S: Final = 120.0
_CHANNEL_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),
]

Call: TypeAlias = "Callable[[int], Awaitable[None]]"


@dataclass(frozen=True)
class Target:
    """What to call, and how.

    Attributes:
        url: the server's gRPC endpoint, ``host:port``.
        model: name of the model or ensemble.
        images: encoded images, sent in turn.
        client_side: empty for an ensemble. Otherwise decoding and masks are this client's work: ``project`` for a
            model of this project, ``plain`` for the plain one.
        input_size: height and width of the network's input, for ``client_side``.
    """

    url: str
    model: str
    images: tuple[bytes, ...]
    client_side: str = ""
    input_size: tuple[int, int] = (640, 640)


@dataclass
class Answers:
    """What one run produced.

    Attributes:
        latencies_ms: of the requests answered within the window.
        window: when it opened and closed, by ``time.monotonic``.
        answered: requests answered, those before and behind the window too.
        client_cpu_s: CPU time of the generating processes for all of them.
        failed: requests that failed.
        first_error: text of the first failure.
    """

    latencies_ms: list[float] = field(default_factory=list)
    window: tuple[float, float] = (0.0, 0.0)
    answered: int = 0
    client_cpu_s: float = 0.0
    failed: int = 0
    first_error: str = ""

    def add(self, part: Answers) -> None:
        """Add what another process got."""
        self.latencies_ms += part.latencies_ms
        self.answered += part.answered
        self.client_cpu_s += part.client_cpu_s
        self.failed += part.failed
        self.first_error = self.first_error or part.first_error

    def percentile_ms(self, percent: float) -> float:
        """Latency that ``percent`` of the requests stayed within.

        Raises:
            ValueError: nothing was answered within the window.
        """
        if not self.latencies_ms:
            raise ValueError(f"nothing was answered within the window; {self.failed} failed: {self.first_error}")
        return float(np.percentile(self.latencies_ms, percent))

    @property
    def per_second(self) -> float:
        """Requests answered per second."""
        return len(self.latencies_ms) / (self.window[1] - self.window[0])


@dataclass(frozen=True)
class _Order:
    target: Target
    in_flight: int
    begin: float
    window: tuple[float, float]  # by time.monotonic, which all processes of a host share


class Drivers:
    """The processes that send requests."""

    def __init__(self, processes: int) -> None:
        os.environ.update(ONE_THREAD)  # read by the maths libraries when the new processes load them
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Drivers:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()

    def run(
        self,
        target: Target,
        in_flight: int,
        seconds: float,
        warm_up_s: float = 0.5,
    ) -> Answers:
        """Keep ``in_flight`` requests going, measure for a while, and return when all are answered.

        Args:
            target: what to call.
            in_flight: requests in flight, over all processes.
            seconds: length of the window in which answers are timed.
            warm_up_s: load before the window.

        Raises:
            LoadError: a generating process has ended or does not answer.
        """
        begin = time.monotonic() + LEAD_S
        window = (begin + warm_up_s, begin + warm_up_s + seconds)
        used = self._pipes[: min(in_flight, len(self._pipes))]
        for index, pipe in enumerate(used):
            share = in_flight // len(used) + (index < in_flight % len(used))
            pipe.send(_Order(target, share, begin, window))
        total = Answers(window=window)
        for pipe in used:
            if not pipe.poll(warm_up_s + seconds + _ANSWER_GRACE_S):
                raise LoadError(f"a load process did not answer within {_ANSWER_GRACE_S:.0f} s; is the server stuck?")
            try:
                total.add(pipe.recv())
            except EOFError:
                raise LoadError("a load process ended; its traceback is above") from None
        return total


def encoded_request(model: str, images: Sequence[bytes]) -> service_pb2.ModelInferRequest:
    """A request of an ensemble: one encoded image per item of its batch."""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=contract.IMAGE.name, datatype=contract.IMAGE.dtype)
    tensor.shape.extend([len(images), 1])
    # BYTES in raw form: each element behind its length in four bytes (KServe v2, binary tensor data).
    request.raw_input_contents.append(b"".join(len(data).to_bytes(4, "little") + data for data in images))
    return request


def _serve(pipe: Connection) -> None:
    cv2.setNumThreads(1)
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            # Nothing is left to flush, and gRPC's own threads can outlive an orderly end.
            os._exit(0)
        pipe.send(asyncio.run(_work(order)))


async def _work(order: _Order) -> Answers:
    answers = Answers(window=order.window)
    opened, closed = order.window
    options = [*grpc_channel_args(order.target.url), *_CHANNEL_OPTIONS]
    async with grpc.aio.insecure_channel(order.target.url, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = _CALLS[order.target.client_side](order.target, stub)
        await asyncio.sleep(max(0.0, order.begin - time.monotonic()))

        async def flight(number: int) -> None:
            index = number
            while (sent := time.monotonic()) < closed:
                try:
                    await call(index)
                except grpc.aio.AioRpcError as error:
                    answers.failed += 1
                    answers.first_error = answers.first_error or f"{error.code().name}: {error.details()}"
                    await asyncio.sleep(0.05)
                else:
                    now = time.monotonic()
                    answers.answered += 1
                    if opened <= now < closed:
                        answers.latencies_ms.append((now - sent) * 1e3)
                index += order.in_flight

        cpu = time.process_time()
        await asyncio.gather(*(flight(number) for number in range(order.in_flight)))
        answers.client_cpu_s = time.process_time() - cpu
    return answers


def _encoded(target: Target, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Call:
    requests = [encoded_request(target.model, [image]) for image in target.images]

    async def call(index: int) -> None:
        await stub.ModelInfer(requests[index % len(requests)])

    return call


def _client_side(target: Target, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Call:
    parameters = RequestParameters()

    async def call(index: int) -> None:
        pixels = np.empty((1, *target.input_size, 3), np.uint8)
        geometry = preprocess(target.images[index % len(target.images)], pixels[0])
        request = service_pb2.ModelInferRequest(model_name=target.model)
        tensor = request.inputs.add(name=contract.IMAGES.name, datatype=contract.IMAGES.dtype)
        tensor.shape.extend(pixels.shape)
        request.raw_input_contents.append(pixels.tobytes())
        response = await stub.ModelInfer(request)
        _finish(response, geometry, parameters)

    return call


def _finish(response: service_pb2.ModelInferResponse, geometry: Geometry, parameters: RequestParameters) -> None:
    raw = {
        output.name: (output, data) for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    candidates = _array(*raw[contract.CANDIDATES.name], np.float32)
    prototypes = _array(*raw[contract.PROTOTYPES.name], np.float16)
    postprocess(candidates[0], prototypes[0], geometry, parameters)


def _array(output: Any, data: bytes, dtype: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(data, dtype).reshape(tuple(output.shape))


def _plain_client_side(target: Target, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Call:
    from bench.baseline import plain

    async def call(index: int) -> None:
        planes, geometry = plain.to_planes(target.images[index % len(target.images)], *target.input_size)
        request = service_pb2.ModelInferRequest(model_name=target.model)
        tensor = request.inputs.add(name="planes", datatype="FP32")
        tensor.shape.extend([1, *planes.shape])
        request.raw_input_contents.append(planes.tobytes())
        response = await stub.ModelInfer(request)
        raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
        shapes = {output.name: tuple(output.shape)[1:] for output in response.outputs}
        detections, prototypes = (
            np.frombuffer(raw[name], np.float32).reshape(shapes[name]) for name in ("detections", "prototypes")
        )
        plain.finish(detections, prototypes, geometry)

    return call


_CALLS: Final[dict[str, Callable[[Target, Any], Call]]] = {
    "": _encoded,
    "project": _client_side,
    "plain": _plain_client_side,
}
