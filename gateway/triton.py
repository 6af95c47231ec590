"""tritonserver, over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, Final

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.errors import Refusal
from gateway.limits import Limits
from gateway.tracing import Tracing
from pipeline.loopback import grpc_channel_args

_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
_CANCELS_SAFELY: Final = (2, 57)
"""tritonserver before this version (25.04) aborts if a call is cancelled in the moment of its answer
(triton-inference-server/server, issues 7368 and 8034)."""
_LONGEST_ERROR_BYTES: Final = 1 << 20  # gRPC sends an error's text as metadata, of which it takes 8 KB by default

# What Triton's HTTP API answers where its gRPC API answers these (triton-inference-server/server, src/http_server.cc,
# src/grpc/grpc_utils.cc); the last four are gRPC's own.
_STATUS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNKNOWN: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.CANCELLED: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
}


class Triton:
    """One connection to tritonserver, which comes back by itself. To be made where an event loop runs.

    Args:
        url: host and port of its gRPC endpoint.
        limits: how long it may take.
        tracing: of the inferences; None traces nothing.
    """

    def __init__(self, url: str, limits: Limits, tracing: Tracing | None = None) -> None:
        self._limits, self._tracing = limits, tracing
        options = [
            *grpc_channel_args(url),
            ("grpc.max_metadata_size", _LONGEST_ERROR_BYTES),
            ("grpc.absolute_max_metadata_size", _LONGEST_ERROR_BYTES),
        ]
        self._channel = grpc.aio.insecure_channel(url, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = self._channel.unary_unary(_INFER, response_deserializer=service_pb2.ModelInferResponse.FromString)
        self._cancels: bool | None = None

    async def infer(self, request: bytes, timeout_s: float | None = None) -> Any:
        """Send a serialized ``ModelInferRequest``; returns the ``ModelInferResponse``.

        A task that is cancelled meanwhile cancels the call, or waits for its end where that could end tritonserver.

        Args:
            request: bytes of the message.
            timeout_s: how long it may take; None takes the limit ``answer_s``.

        Raises:
            Refusal: tritonserver answers with an error, whose text it has, or not at all.
        """
        bound_s = timeout_s or self._limits.answer_s
        ending = (lambda call: call) if await self._cancels_safely() else _to_its_end
        if self._tracing is None:
            return await self._answer(ending(self._infer(request, timeout=bound_s)))
        with self._tracing.call("ModelInfer") as metadata:
            return await self._answer(ending(self._infer(request, timeout=bound_s, metadata=metadata)))

    async def ask(self, method: str, request: Any) -> Any:
        """Call another method of the service, such as ``ModelReady``.

        Raises:
            Refusal: see :meth:`infer`.
        """
        return await self._answer(getattr(self._stub, method)(request, timeout=self._limits.look_s))

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _cancels_safely(self) -> bool:
        """Whether tritonserver survives calls that are cancelled; False until it has said its version."""
        if self._cancels is None:
            with contextlib.suppress(Refusal):
                said = (await self.ask("ServerMetadata", service_pb2.ServerMetadataRequest())).version
                version = re.match(r"(\d{1,6})\.(\d{1,6})", said)
                self._cancels = version is not None and (int(version[1]), int(version[2])) >= _CANCELS_SAFELY
        return bool(self._cancels)

    async def _answer(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details() or ""
            status = _STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
            if code is grpc.StatusCode.UNAVAILABLE and self._channel.get_state() is not grpc.ChannelConnectivity.READY:
                text = "tritonserver does not answer; it may be starting: try again"
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                text = "tritonserver did not answer in time"
            raise Refusal(text or code.name, status) from error


async def _to_its_end(call: Awaitable[Any]) -> Any:
    """Await a call that goes on when the task is cancelled, and keep the task, and so its place, until then."""
    answer = asyncio.ensure_future(call)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio logs it
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        await asyncio.wait([answer])
        raise
