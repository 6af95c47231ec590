"""Clients of a server of this project: one that blocks, and its asynchronous twin."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from client.errors import (
    START_REMEDY,
    RequestError,
    RequestTimeoutError,
    SegmentationError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
)
from client.images import ImageInput
from client.request import Parameters, Request, SegmentOptions, Tensors, chunks, named_classes, parameters_of
from client.retry import RetryPolicy
from client.transport import DEFAULT_URLS, AsyncTransport, Transport, checked_protocol, checked_url
from pipeline import contract
from pipeline.class_names import class_ids
from pipeline.errors import ParameterError
from pipeline.result import Segmentation

if TYPE_CHECKING:
    from typing_extensions import Unpack

_POLL_INTERVAL_S: Final = 0.2
_LONG_S: Final = 0.5  # decoding that a server rejects when it would start late
_LONG_AT_ONCE: Final = 2  # as many as a server decodes at once by default: a third would wait and be rejected


class _Client:
    """What both clients are made with.

    Args:
        url: ``host:port``; by default 127.0.0.1:8001 for gRPC and 127.0.0.1:8000 for HTTP.
        protocol: ``grpc`` or ``http``.
        precision: ``fp32``, ``fp16`` or ``int8``: which ensemble answers.
        timeout_s: bound on one answer, in seconds. Over blocking HTTP: on each wait for the server.
        retry: when a request that a busy server rejected is sent again; ``RetryPolicy(retries=0)`` never does.
        api_key: that an HTTP front asks for (``--api-key-file``); None takes that of the environment variable
            ``SEGMENTATION_API_KEY``, if it has one. gRPC is not sent any.

    Attributes:
        model: name of the ensemble.

    Raises:
        RequestError: a value that is not allowed.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: str = "grpc",
        precision: str = "int8",
        timeout_s: float = 30.0,
        retry: RetryPolicy | None = None,
        api_key: str | None = None,
    ) -> None:
        if precision not in contract.PRECISIONS:
            raise RequestError(f"precision {precision!r}; allowed: {', '.join(contract.PRECISIONS)}")
        if not timeout_s > 0:
            raise RequestError(f"timeout_s is {timeout_s!r}; allowed: a number of seconds above 0")
        self.protocol = checked_protocol(protocol)
        self.url = checked_url(DEFAULT_URLS[protocol] if url is None else url)
        self.precision = precision
        self.model = contract.ensemble_model(precision)
        self.timeout_s = float(timeout_s)
        self.retry = RetryPolicy() if retry is None else retry
        if api_key is not None and protocol != "http":
            raise RequestError(f"an API key over {protocol}; allowed over http alone, which the front answers")
        self._api_key = api_key
        self._open()

    def _open(self) -> None:
        raise NotImplementedError

    def _with_ids(self, options: SegmentOptions, class_names: tuple[str, ...]) -> SegmentOptions:
        """The options with the indices of classes in place of their names."""
        try:
            return {**options, "classes": class_ids(options["classes"] or (), class_names)}
        except ParameterError as error:
            raise RequestError(str(error)) from None

    def _not_ready(self, last: Exception | None) -> ServerUnavailableError:
        if isinstance(last, ServerUnavailableError):
            return last
        reason = str(last) if last else f"the server answers, but {self.model} is not loaded"
        return ServerUnavailableError(
            f"{self.model} at {self.url} is not ready: {reason}. Build it with "
            f"`python -m builder build --precisions {self.precision}` and {START_REMEDY}"
        )


class SegmentationClient(_Client):
    """Finds instances in images, and blocks until the answer has come. Arguments: see the base class.

    Over gRPC threads may share a client; over HTTP (which runs on gevent) each thread needs its own.

    Example:
        >>> with SegmentationClient(protocol="grpc", precision="int8") as client:  # doctest: +SKIP
        ...     result = client.segment("photo.jpg", confidence=0.4)
        ...     for detection in result:
        ...         print(detection.class_name, detection.score, detection.box, detection.mask().sum())
    """

    def _open(self) -> None:
        self._transport = Transport(self.protocol, self.url, self.timeout_s, self._api_key)
        self._names: tuple[str, ...] | None = None

    def __enter__(self) -> SegmentationClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used after."""
        self._transport.close()

    def is_ready(self) -> bool:
        """Whether the server answers and has this precision ready."""
        try:
            return self._transport.is_ready(self.model)
        except (ServerUnavailableError, ServerError, RequestTimeoutError):
            return False

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server has this precision ready.

        Args:
            timeout_s: how long to keep asking, in seconds; 0 asks once.

        Raises:
            ServerUnavailableError: it was not ready in time; says what was missing.
            ServerError: the server failed to say.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            last: Exception | None = None
            try:
                if self._transport.is_ready(self.model):
                    return
            except (ServerUnavailableError, RequestTimeoutError) as error:
                last = error
            if time.monotonic() + _POLL_INTERVAL_S > deadline:
                raise self._not_ready(last) from last
            time.sleep(_POLL_INTERVAL_S)

    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes 0, 1, and so on, asked for once; empty where the server says none.

        Raises:
            SegmentationError: no answer.
        """
        if self._names is None:
            self._names = self._transport.class_names(self.model)
        return self._names

    def segment(self, image: ImageInput, **options: Unpack[SegmentOptions]) -> Segmentation:
        """Find the instances in one image.

        Args:
            image: a path (the file is sent unchanged), the bytes of an encoded image (JPEG, PNG, WebP, BMP, TIFF), or
                pixels: uint8 [height, width, 3] RGB or [height, width] gray, which are sent as PNG; for smaller
                requests, send :func:`client.encode_pixels` of a JPEG quality.
            options: ``confidence``, ``iou``, ``max_detections``, ``mask_format`` and ``classes``, as in
                :class:`client.request.SegmentOptions`.

        Raises:
            RequestError: the image or an option is at fault.
            ServerUnavailableError: no server answers, or the model is not ready.
            ServerBusyError: the server is overloaded, and rejected every attempt.
            RequestTimeoutError: no answer within ``timeout_s``.
            ServerError: the server failed.
        """
        return self._send([image], self._parameters(options))[0]

    def segment_batch(self, images: Sequence[ImageInput], **options: Unpack[SegmentOptions]) -> list[Segmentation]:
        """Find the instances in several images, of any sizes: up to 8 in a request, one request after the other.

        Large images go in smaller requests (see :meth:`client.request.Request.cut`). A request is answered or refused
        as a whole, and so is this call: where some images may be bad, call :meth:`segment` for each of a refused batch.

        Args:
            images: see :meth:`segment`; may be empty.
            options: see :meth:`segment`.

        Returns:
            One result per image, in order.

        Raises:
            SegmentationError: as :meth:`segment` does; a refusal names the images of its request.
        """
        parameters = self._parameters(options)
        return [result for chunk in chunks(images) for result in self._send(chunk, parameters)]

    def _parameters(self, options: SegmentOptions) -> Parameters:
        if named_classes(options):
            options = self._with_ids(options, self.class_names())
        return parameters_of(**options)

    def _send(self, images: Sequence[ImageInput], parameters: Parameters) -> list[Segmentation]:
        return [result for request in Request.cut(images, parameters) for result in self._answer(request)]

    def _answer(self, request: Request) -> list[Segmentation]:
        try:
            tensors = self._infer(request)
        except RequestError as error:
            raise request.named(error) from error
        return request.parse(tensors, self._known_names())

    def _known_names(self) -> tuple[str, ...]:
        """The names for a result; none where the server does not say them: another time it may."""
        try:
            return self.class_names()
        except SegmentationError:
            return ()

    def _infer(self, request: Request) -> Tensors:
        for pause_s in self.retry.pauses(self.timeout_s):
            try:
                return self._transport.infer(self.model, request.tensor(), request.parameters)
            except ServerBusyError:
                time.sleep(pause_s)
        return self._transport.infer(self.model, request.tensor(), request.parameters)


class AsyncSegmentationClient(_Client):
    """The asynchronous twin of :class:`SegmentationClient`: the same arguments, and the same methods as coroutines.

    It connects on first use and then belongs to the running event loop; any number of its coroutines may be in flight
    there. Requests that the server decodes for longer than half a second go two at a time. Use it as ``async with``.
    """

    def _open(self) -> None:
        self._opened: AsyncTransport | None = None
        self._long = asyncio.Semaphore(_LONG_AT_ONCE)
        self._names: tuple[str, ...] | None = None
        self._asking_names = asyncio.Lock()

    async def __aenter__(self) -> AsyncSegmentationClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()
        self._open()  # the next transport may belong to another event loop

    async def is_ready(self) -> bool:
        """See :meth:`SegmentationClient.is_ready`."""
        try:
            return await self._transport().is_ready(self.model)
        except (ServerUnavailableError, ServerError, RequestTimeoutError):
            return False

    async def wait_ready(self, timeout_s: float) -> None:
        """See :meth:`SegmentationClient.wait_ready`."""
        deadline = time.monotonic() + timeout_s
        while True:
            last: Exception | None = None
            try:
                if await self._transport().is_ready(self.model):
                    return
            except (ServerUnavailableError, RequestTimeoutError) as error:
                last = error
            if time.monotonic() + _POLL_INTERVAL_S > deadline:
                raise self._not_ready(last) from last
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def class_names(self) -> tuple[str, ...]:
        """See :meth:`SegmentationClient.class_names`."""
        async with self._asking_names:
            if self._names is None:
                self._names = await self._transport().class_names(self.model)
            return self._names

    async def segment(self, image: ImageInput, **options: Unpack[SegmentOptions]) -> Segmentation:
        """See :meth:`SegmentationClient.segment`."""
        return (await self._send([image], await self._parameters(options)))[0]

    async def segment_batch(
        self, images: Sequence[ImageInput], **options: Unpack[SegmentOptions]
    ) -> list[Segmentation]:
        """See :meth:`SegmentationClient.segment_batch`."""
        parameters = await self._parameters(options)
        return [result for chunk in chunks(images) for result in await self._send(chunk, parameters)]

    async def _parameters(self, options: SegmentOptions) -> Parameters:
        if named_classes(options):
            options = self._with_ids(options, await self.class_names())
        return parameters_of(**options)

    def _transport(self) -> AsyncTransport:
        if self._opened is None:
            self._opened = AsyncTransport(self.protocol, self.url, self.timeout_s, self._api_key)
        return self._opened

    async def _send(self, images: Sequence[ImageInput], parameters: Parameters) -> list[Segmentation]:
        requests = await asyncio.to_thread(Request.cut, images, parameters)
        return [result for request in requests for result in await self._answer(request)]

    async def _answer(self, request: Request) -> list[Segmentation]:
        long = request.decode_s > _LONG_S
        try:
            async with self._long if long else contextlib.nullcontext():
                tensors = await self._infer(request)
        except RequestError as error:
            raise request.named(error) from error
        return request.parse(tensors, await self._known_names())

    async def _known_names(self) -> tuple[str, ...]:
        try:
            return await self.class_names()
        except SegmentationError:
            return ()

    async def _infer(self, request: Request) -> Tensors:
        for pause_s in self.retry.pauses(self.timeout_s):
            try:
                return await self._transport().infer(self.model, request.tensor(), request.parameters)
            except ServerBusyError:
                await asyncio.sleep(pause_s)
        return await self._transport().infer(self.model, request.tensor(), request.parameters)
