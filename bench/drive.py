"""Load from separate processes, so that the generator is not what is measured.

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
from typing import Any, Final, TypeAlias

import cv2
import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from bench.server_meter import ServerMeter, Usage
from bench.synthetic import INPUT_SIZE
from load.errors import LoadError
from load.spread import percentile
from pipeline import contract
from pipeline.loopback import grpc_channel_args
from pipeline.parameters import RequestParameters
from pipeline.postprocess import postprocess
from pipeline.preprocess import preprocess

_LEAD_S: Final = 0.3
"""Between the order to begin and the first request: the orders reach all processes within it."""
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""As in the server: the processes are the parallelism."""
_ANSWER_GRACE_S: Final = 120.0
_LONGER: Final = (1, 4, 16)
"""Times the window that was asked for, until something is answered in it."""

Call: TypeAlias = "Callable[[int], Awaitable[object]]"


@dataclass(frozen=True)
class Target:
    """What to call, and how."""

    url: str  # the server's gRPC endpoint, ``host:port``
    model: str  # name of the model or ensemble
    images: tuple[bytes, ...]  # encoded images, sent in turn
    # Empty for an ensemble. Otherwise decoding and masks are this client's work: ``project`` for a model of this
    # project, ``plain`` for the plain one.
    client_side: str = ""


@dataclass
class Answers:
    """The answers to one process, or to all."""

    window: tuple[float, float]  # when it opened and closed, by ``time.monotonic``
    latencies_ms: list[float] = field(default_factory=list)  # of the requests answered within the window
    answered: int = 0  # requests answered, those before and after the window too
    cpu_s: float = 0.0  # CPU time of the generating processes for all of them
    failed: int = 0  # requests that failed
    first_error: str = ""  # text of the first failure

    def add(self, part: Answers) -> None:
        """Add those of another process."""
        self.latencies_ms += part.latencies_ms
        self.answered += part.answered
        self.cpu_s += part.cpu_s
        self.failed += part.failed
        self.first_error = self.first_error or part.first_error


@dataclass(frozen=True)
class LoadFigures:
    """What a target does under a load."""

    in_flight: int  # requests in flight
    images_per_s: float  # answered within the window
    p50_ms: float  # median latency
    p99_ms: float  # 99th percentile of the latency
    max_ms: float  # the longest latency
    client_ms: float  # processor time of the client, per image
    usage: Usage  # of the server
    window: tuple[float, float]  # when it was measured, by ``time.monotonic``

    @property
    def host_ms(self) -> float:
        """Processor time of client, server and session together, per image."""
        return self.client_ms + self.usage.other_ms + self.usage.session_ms


class Drivers:
    """The processes that send requests, from ``with`` to its end."""

    def __init__(self, processes: int) -> None:
        self._processes = processes

    def __enter__(self) -> Drivers:
        os.environ.update(_ONE_THREAD)  # read by the maths libraries when the new processes load them
        self._pool = multiprocessing.get_context("spawn").Pool(self._processes, _prepare)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()  # gRPC's own threads can outlive an orderly end

    def measure(
        self, target: Target, meter: ServerMeter, in_flight: int, seconds: float, warm_up_s: float = 0.5
    ) -> LoadFigures:
        """Put load on a target for a window of ``seconds``; for longer where a busy machine answers nothing within it.

        Raises:
            LoadError: a request failed, or nothing is answered.
        """
        for window_s in (seconds * times for times in _LONGER):
            before = meter.read()
            answers = self.run(target, in_flight, window_s, warm_up_s)
            after = meter.read()
            if answers.failed:
                raise LoadError(
                    f"{answers.failed} requests to {target.model} failed, the first with {answers.first_error}"
                )
            if answers.latencies_ms:
                return LoadFigures(
                    in_flight=in_flight,
                    images_per_s=len(answers.latencies_ms) / window_s,
                    p50_ms=percentile(answers.latencies_ms, 50),
                    p99_ms=percentile(answers.latencies_ms, 99),
                    max_ms=max(answers.latencies_ms),
                    client_ms=answers.cpu_s / answers.answered * 1e3,
                    usage=Usage.between(before, after, meter.network),
                    window=answers.window,
                )
        raise LoadError(f"{target.model} answered nothing within {window_s:g} s; give it more --seconds")

    def run(self, target: Target, in_flight: int, seconds: float, warm_up_s: float) -> Answers:
        """Keep ``in_flight`` requests going for a while, and return when all are answered.

        Raises:
            LoadError: a generating process does not answer.
        """
        begin = time.monotonic() + _LEAD_S
        window = (begin + warm_up_s, begin + warm_up_s + seconds)
        used = min(in_flight, self._processes)
        shares = [in_flight // used + (index < in_flight % used) for index in range(used)]
        tasks = [(target, share, begin, window) for share in shares]
        answers = self._pool.starmap_async(_serve, tasks, chunksize=1)
        try:
            parts = answers.get(warm_up_s + seconds + _ANSWER_GRACE_S)
        except multiprocessing.TimeoutError:
            raise LoadError(f"a load process gave no results within {_ANSWER_GRACE_S:.0f} s of its window") from None
        total = Answers(window)
        for part in parts:
            total.add(part)
        return total


def encoded_request(model: str, images: Sequence[bytes]) -> service_pb2.ModelInferRequest:
    """A request of an ensemble: one encoded image per item of its batch."""
    # BYTES in raw form: each element behind its length in four bytes (KServe v2, binary tensor data).
    data = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    return _request(model, contract.IMAGE.name, contract.IMAGE.dtype, (len(images), 1), data)


def _request(model: str, name: str, dtype: str, shape: Sequence[int], data: bytes) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[data])
    request.inputs.add(name=name, datatype=dtype, shape=shape)
    return request


def _prepare() -> None:
    cv2.setNumThreads(1)


def _serve(target: Target, in_flight: int, begin: float, window: tuple[float, float]) -> Answers:
    """Keep requests in flight until the window closes; times are of ``time.monotonic``, which all processes share."""
    return asyncio.run(_send(target, in_flight, begin, window))


async def _send(target: Target, in_flight: int, begin: float, window: tuple[float, float]) -> Answers:
    answers = Answers(window)
    opened, closed = window
    options = [*grpc_channel_args(target.url), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target.url, options=options) as channel:
        call = _CALLS[target.client_side](target, service_pb2_grpc.GRPCInferenceServiceStub(channel))
        await asyncio.sleep(max(0.0, begin - time.monotonic()))

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
                index += in_flight

        cpu = time.process_time()
        await asyncio.gather(*(flight(number) for number in range(in_flight)))
        answers.cpu_s = time.process_time() - cpu
    return answers


def _encoded(target: Target, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Call:
    requests = [encoded_request(target.model, [image]) for image in target.images]
    return lambda index: stub.ModelInfer(requests[index % len(requests)])


def _client_side(target: Target, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Call:
    parameters = RequestParameters()

    async def call(index: int) -> None:
        pixels = np.empty((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        geometry = preprocess(target.images[index % len(target.images)], pixels[0])
        request = _request(target.model, contract.IMAGES.name, contract.IMAGES.dtype, pixels.shape, pixels.tobytes())
        outputs = _outputs(await stub.ModelInfer(request))
        postprocess(outputs[contract.CANDIDATES.name], outputs[contract.PROTOTYPES.name], geometry, parameters)

    return call


def _plain_client_side(target: Target, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Call:
    from bench import plain

    async def call(index: int) -> None:
        planes, geometry = plain.to_planes(target.images[index % len(target.images)])
        request = _request(target.model, "planes", "FP32", (1, *planes.shape), planes.tobytes())
        outputs = _outputs(await stub.ModelInfer(request))
        plain.finish(outputs["detections"], outputs["prototypes"], geometry)

    return call


def _outputs(response: service_pb2.ModelInferResponse) -> dict[str, NDArray[Any]]:
    """Outputs for the one image of a request, by name."""
    result = InferResult(response)
    return {output.name: result.as_numpy(output.name)[0] for output in response.outputs}


_CALLS: Final[dict[str, Callable[[Target, Any], Call]]] = {
    "": _encoded,
    "project": _client_side,
    "plain": _plain_client_side,
}
