"""gRPC and HTTP behind one interface, blocking and asynchronous.

A transport sends one request and returns its output tensors; it knows nothing of images or detections. The protocol's
library is imported when its transport is made.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from client.errors import RequestError, answer_errors, translated_errors
from client.request import Parameters, Tensors
from pipeline import contract
from pipeline.api_key import KEY_HEADER, KEY_VARIABLE, checked_key
from pipeline.class_names import from_parameters
from pipeline.loopback import grpc_channel_args

DEFAULT_URLS: Final = {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}
"""Protocol to the url that a server of this project listens on by default."""


_REFUSALS: Final = (401, 403)
# Where a name has several addresses, requests go to all of them in turn; replicas that came or went are seen when a
# connection ends, at most once a second.
_BALANCED: Final = [("grpc.lb_policy_name", "round_robin"), ("grpc.dns_min_time_between_resolutions_ms", 1000)]


class _Connection:
    """A client of tritonclient, and how its calls are bounded.

    Args:
        protocol: ``grpc`` or ``http``.
        url: ``host:port``.
        timeout_s: bound on one answer, in seconds. Over blocking HTTP: on each wait for the server.
        api_key: that an HTTP front asks for; None takes what the environment says (``SEGMENTATION_API_KEY``), if that.

    Raises:
        RequestError: another protocol, or no such key.
    """

    _SUFFIX = ""
    _HTTP_BOUNDS: tuple[str, ...] = ("connection_timeout", "network_timeout")

    def __init__(self, protocol: str, url: str, timeout_s: float, api_key: str | None = None) -> None:
        self._is_grpc = checked_protocol(protocol) == "grpc"
        self._library = importlib.import_module(f"tritonclient.{protocol}{self._SUFFIX}")
        self._place = url, timeout_s, protocol
        bounds = dict.fromkeys(self._HTTP_BOUNDS, timeout_s)
        options = {"channel_args": [*grpc_channel_args(url), *_BALANCED]} if self._is_grpc else bounds
        self._client = self._library.InferenceServerClient(url, **options)
        self._bound = {"client_timeout": timeout_s} if self._is_grpc else {}
        if not self._is_grpc:
            self._client._post = self._without_inflation(self._client._post)
            self._client._get = self._with_refusals(self._client._get)
            key = checked_api_key(api_key)
            if key is not None:
                self._client.register_plugin(functools.partial(_add_key, key))

    def _with_refusals(self, get: Any) -> Any:
        """tritonclient's sending of a question, which takes a missing API key for a model that is not ready."""
        raise NotImplementedError

    def _without_inflation(self, post: Any) -> Any:
        """tritonclient's sending of a request, which refuses answers that it would inflate to any size."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """Of a request for inference; tritonclient adds to the headers."""
        return dict(self._bound) if self._is_grpc else {"headers": {"Accept-Encoding": "identity"}}

    def _errors(self) -> AbstractContextManager[None]:
        return translated_errors(*self._place)

    def _answer_errors(self) -> AbstractContextManager[None]:
        url, _, protocol = self._place
        return answer_errors(url, protocol)


class Transport(_Connection):
    """Sends requests and waits for their answers. Over gRPC threads may share it; over HTTP each needs its own."""

    def _with_refusals(self, get: Any) -> Any:
        def checked(*arguments: Any, **options: Any) -> Any:
            response = get(*arguments, **options)
            if response.status_code in _REFUSALS:
                raise InferenceServerException(_said(response.read()), str(response.status_code))
            return response

        return checked

    def _without_inflation(self, post: Any) -> Any:
        def checked(*arguments: Any, **options: Any) -> Any:
            response = post(*arguments, **options)
            _check_encoding(response.get("Content-Encoding"))
            return response

        return checked

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
        inputs = _inputs(self._library, images)
        with self._errors(), self._answer_errors():
            return _tensors(self._client.infer(model, inputs, parameters=parameters, **self._options()))

    def is_ready(self, model: str) -> bool:
        """Whether the server answers and has the model ready.

        Raises:
            SegmentationError: no answer.
        """
        with self._errors():
            ready = bool(self._client.is_model_ready(model, **self._bound))
            return ready and (self._is_grpc or _is_of(self._client.get_model_metadata(model), model))

    def statistics(self) -> list[dict[str, Any]]:
        """Triton's counters, an entry per model and version; over gRPC, 64-bit numbers are text and zeros are missing.

        Raises:
            SegmentationError: no answer.
        """
        options = {"as_json": True, **self._bound} if self._is_grpc else {}
        with self._errors():
            return list(self._client.get_inference_statistics(**options).get("model_stats", []))

    def class_names(self, model: str) -> tuple[str, ...]:
        """Class names in the model's configuration; empty where it says none.

        Raises:
            SegmentationError: no answer.
        """
        with self._errors(), self._answer_errors():
            return _class_names(self._client.get_model_config(model, **self._bound))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncTransport(_Connection):
    """The same as coroutines; make it where its event loop runs."""

    _SUFFIX = ".aio"
    _HTTP_BOUNDS = ("conn_timeout",)

    def _with_refusals(self, get: Any) -> Any:
        async def checked(*arguments: Any, **options: Any) -> Any:
            response = await get(*arguments, **options)
            if response.status in _REFUSALS:
                raise InferenceServerException(_said(await response.read()), str(response.status))
            return response

        return checked

    def _without_inflation(self, post: Any) -> Any:
        async def checked(*arguments: Any, **options: Any) -> Any:
            response = await post(*arguments, **options)
            _check_encoding(response.headers.get("Content-Encoding"))
            return response

        return checked

    async def infer(self, model: str, images: NDArray[np.object_], parameters: Parameters) -> Tensors:
        """See :meth:`Transport.infer`."""
        inputs = _inputs(self._library, images)
        with self._errors(), self._answer_errors():
            return _tensors(await self._client.infer(model, inputs, parameters=parameters, **self._options()))

    async def is_ready(self, model: str) -> bool:
        """See :meth:`Transport.is_ready`."""
        with self._errors():
            ready = bool(await self._client.is_model_ready(model, **self._bound))
            return ready and (self._is_grpc or _is_of(await self._client.get_model_metadata(model), model))

    async def class_names(self, model: str) -> tuple[str, ...]:
        """See :meth:`Transport.class_names`."""
        with self._errors(), self._answer_errors():
            return _class_names(await self._client.get_model_config(model, **self._bound))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def checked_api_key(key: str | None) -> str | None:
    """An API key, else that of the environment, else None.

    Raises:
        RequestError: it is none.
    """
    given, source = (key, "api_key") if key is not None else (os.environ.get(KEY_VARIABLE), KEY_VARIABLE)
    try:
        return checked_key(given, source) if given else None
    except ValueError as error:
        raise RequestError(str(error)) from None


def checked_protocol(protocol: str) -> str:
    """The protocol, if it is known.

    Raises:
        RequestError: it is not.
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


def _add_key(key: str, request: Any) -> None:
    """A plugin of tritonclient: sees each request before it is sent."""
    request.headers = {**(request.headers or {}), KEY_HEADER: key}


def _said(body: bytes) -> str:
    """The text of an error, as Triton has it."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return body[:200].decode(errors="replace")


def _is_host(name: str) -> bool:
    try:
        name.encode("idna")  # as the socket will; it fails on empty and long labels
    except UnicodeError:
        return False
    return True


def _check_encoding(encoding: str | None) -> None:
    """Refuse an answer that tritonclient would inflate, however large it becomes; none was asked for.

    Raises:
        ValueError: says what came.
    """
    if encoding in ("gzip", "deflate"):
        raise ValueError(f"its Content-Encoding is {encoding}; allowed: none, as the request said (Accept-Encoding)")


def _is_of(metadata: Any, model: str) -> bool:
    """Whether an inference server answered: other servers (metrics, proxies) say 200 to any request."""
    return isinstance(metadata, dict) and metadata.get("name") == model


def _class_names(answer: Any) -> tuple[str, ...]:
    """The names in a configuration, as tritonclient has it over HTTP (a dictionary) or gRPC (a message)."""
    if isinstance(answer, dict):
        parameters = answer.get("parameters", {})
        return from_parameters({name: value.get("string_value") for name, value in parameters.items()})
    return from_parameters({name: value.string_value for name, value in answer.config.parameters.items()})


def _inputs(library: ModuleType, images: NDArray[np.object_]) -> list[Any]:
    tensor = library.InferInput(contract.IMAGE.name, list(images.shape), contract.IMAGE.dtype)
    tensor.set_data_from_numpy(images)
    return [tensor]


def _tensors(result: Any) -> Tensors:
    arrays = {spec.name: result.as_numpy(spec.name) for spec in contract.RESPONSE_TENSORS}
    return {name: array for name, array in arrays.items() if array is not None}
