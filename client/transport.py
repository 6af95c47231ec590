"""gRPC and HTTP behind one face, blocking and asynchronous.

A transport sends one request and gives its output tensors back; it knows nothing of images or detections.
The protocol's library is imported when its transport is made.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from client.errors import RequestError, translated_errors
from client.request import Parameters, Tensors
from pipeline import contract
from pipeline.loopback import grpc_channel_args

DEFAULT_URLS: Final = {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}
"""Protocol to the url that a server of this project listens on by default."""


class Transport(Protocol):
    """Sends requests and waits for their answers."""

    def infer(self, model: str, images: NDArray[np.object_], parameters: Parameters) -> Tensors:
        """Send one request.

        Args:
            model: the ensemble's name.
            images: object [N, 1] of encoded images.
            parameters: KServe request parameters.

        Returns:
            The contract's response tensors by name, batch axis in front.

        Raises:
            SegmentationError: the fitting subclass.
        """

    def is_ready(self, model: str) -> bool:
        """Whether the server answers and has the model ready.

        Raises:
            SegmentationError: no answer.
        """

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """The same in coroutines."""

    async def infer(self, model: str, images: NDArray[np.object_], parameters: Parameters) -> Tensors:
        """See :meth:`Transport.infer`."""

    async def is_ready(self, model: str) -> bool:
        """See :meth:`Transport.is_ready`."""

    async def close(self) -> None:
        """Close the connections."""


def transport(protocol: str, url: str, timeout_s: float) -> Transport:
    """Make a blocking transport.

    Args:
        protocol: ``grpc`` or ``http``.
        url: ``host:port``.
        timeout_s: bound on one answer, in seconds.

    Raises:
        RequestError: another protocol.
    """
    return GrpcTransport(url, timeout_s) if checked_protocol(protocol) == "grpc" else HttpTransport(url, timeout_s)


def async_transport(protocol: str, url: str, timeout_s: float) -> AsyncTransport:
    """Make an asynchronous transport; call it where an event loop runs. See :func:`transport`."""
    if checked_protocol(protocol) == "grpc":
        return AsyncGrpcTransport(url, timeout_s)
    return AsyncHttpTransport(url, timeout_s)


def checked_protocol(protocol: str) -> str:
    """The protocol, if there is such a one.

    Raises:
        RequestError: there is none.
    """
    if protocol not in DEFAULT_URLS:
        raise RequestError(f"protocol {protocol!r}; allowed: {', '.join(DEFAULT_URLS)}")
    return protocol


def checked_url(url: str) -> str:
    """The url, if it has the form ``host:port`` (HTTP: a base path may follow).

    Raises:
        RequestError: it has another form.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s/:\[\]]+):(\d{1,5})(/\S*)?", url)
    if not found or not 1 <= int(found[2]) <= 65535 or not _is_host(found[1]):
        raise RequestError(f"url {url!r}; allowed: HOST:PORT without a scheme, such as {DEFAULT_URLS['grpc']}")
    return url


def _is_host(name: str) -> bool:
    try:
        name.encode("idna")  # as the socket will; it fails on empty and long labels
    except UnicodeError:
        return False
    return True


class GrpcTransport:
    """Blocking gRPC. May be shared by threads."""

    def __init__(self, url: str, timeout_s: float) -> None:
        import tritonclient.grpc

        self._library = tritonclient.grpc
        self._url, self._timeout_s = url, timeout_s
        self._client = self._library.InferenceServerClient(url, channel_args=grpc_channel_args(url))

    def infer(self, model: str, images: NDArray[np.object_], parameters: Parameters) -> Tensors:
        """See :meth:`Transport.infer`."""
        with translated_errors(self._url, self._timeout_s, "grpc"):
            inputs = _inputs(self._library, images)
            result = self._client.infer(model, inputs, parameters=parameters, client_timeout=self._timeout_s)
            return _tensors(result)

    def is_ready(self, model: str) -> bool:
        """See :meth:`Transport.is_ready`."""
        with translated_errors(self._url, self._timeout_s, "grpc"):
            return bool(self._client.is_model_ready(model, client_timeout=self._timeout_s))

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


class HttpTransport:
    """Blocking HTTP over gevent. Use it from the thread that made it, and from no other."""

    def __init__(self, url: str, timeout_s: float) -> None:
        import tritonclient.http

        self._library = tritonclient.http
        self._url, self._timeout_s = url, timeout_s
        self._client = self._library.InferenceServerClient(url, connection_timeout=timeout_s, network_timeout=timeout_s)

    def infer(self, model: str, images: NDArray[np.object_], parameters: Parameters) -> Tensors:
        """See :meth:`Transport.infer`. The timeout bounds each wait for the server, not their sum."""
        with translated_errors(self._url, self._timeout_s, "http"):
            return _tensors(self._client.infer(model, _inputs(self._library, images), parameters=parameters))

    def is_ready(self, model: str) -> bool:
        """See :meth:`Transport.is_ready`."""
        with translated_errors(self._url, self._timeout_s, "http"):
            return bool(self._client.is_model_ready(model)) and _is_of(self._client.get_model_metadata(model), model)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncGrpcTransport:
    """gRPC in coroutines, bound to the running event loop."""

    def __init__(self, url: str, timeout_s: float) -> None:
        import tritonclient.grpc.aio

        self._library = tritonclient.grpc.aio
        self._url, self._timeout_s = url, timeout_s
        self._client = self._library.InferenceServerClient(url, channel_args=grpc_channel_args(url))

    async def infer(self, model: str, images: NDArray[np.object_], parameters: Parameters) -> Tensors:
        """See :meth:`Transport.infer`."""
        with translated_errors(self._url, self._timeout_s, "grpc"):
            inputs = _inputs(self._library, images)
            result = await self._client.infer(model, inputs, parameters=parameters, client_timeout=self._timeout_s)
            return _tensors(result)

    async def is_ready(self, model: str) -> bool:
        """See :meth:`Transport.is_ready`."""
        with translated_errors(self._url, self._timeout_s, "grpc"):
            return bool(await self._client.is_model_ready(model, client_timeout=self._timeout_s))

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()


class AsyncHttpTransport:
    """HTTP in coroutines over aiohttp, bound to the running event loop."""

    def __init__(self, url: str, timeout_s: float) -> None:
        import tritonclient.http.aio

        self._library = tritonclient.http.aio
        self._url, self._timeout_s = url, timeout_s
        self._client = self._library.InferenceServerClient(url, conn_timeout=timeout_s)

    async def infer(self, model: str, images: NDArray[np.object_], parameters: Parameters) -> Tensors:
        """See :meth:`Transport.infer`."""
        with translated_errors(self._url, self._timeout_s, "http"):
            return _tensors(await self._client.infer(model, _inputs(self._library, images), parameters=parameters))

    async def is_ready(self, model: str) -> bool:
        """See :meth:`Transport.is_ready`."""
        with translated_errors(self._url, self._timeout_s, "http"):
            ready = bool(await self._client.is_model_ready(model))
            return ready and _is_of(await self._client.get_model_metadata(model), model)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _is_of(metadata: Any, model: str) -> bool:
    """Whether a server of this protocol has answered: others say 200 to whatever they are asked (metrics, proxies)."""
    return isinstance(metadata, dict) and metadata.get("name") == model


def _inputs(library: ModuleType, images: NDArray[np.object_]) -> list[Any]:
    tensor = library.InferInput(contract.IMAGE.name, list(images.shape), contract.IMAGE.dtype)
    tensor.set_data_from_numpy(images)
    return [tensor]


def _tensors(result: Any) -> Tensors:
    arrays = {spec.name: result.as_numpy(spec.name) for spec in contract.RESPONSE_TENSORS}
    return {name: array for name, array in arrays.items() if array is not None}
