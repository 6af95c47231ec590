"""Errors of the client, by who can fix them: the caller, the operator of the server, or time."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tritonclient.utils import InferenceServerException

from pipeline.api_key import KEY_VARIABLE
from pipeline.errors import BUSY

START_REMEDY: Final = "start a server with `python -m serving run`, or name the right one (url, --url)"


class SegmentationError(Exception):
    """A request did not end in a result.

    Attributes:
        status: the server's: ``StatusCode.*`` over gRPC, a number such as ``400`` over HTTP; None without an answer.
    """

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status


class RequestError(SegmentationError, ValueError):
    """The request is at fault (an image, a parameter); the same request fails again."""


class ServerUnavailableError(SegmentationError, ConnectionError):
    """Nothing of this protocol answers at the url, the connection broke, or the model is not ready."""


class ServerBusyError(SegmentationError):
    """The server rejected the request at once, without working on it, because its answer would have come too late."""


class RequestTimeoutError(SegmentationError, TimeoutError):
    """No answer came within ``timeout_s``."""


class ServerError(SegmentationError):
    """The server failed, or its answer is not understood."""


class AnswerError(ServerError):
    """The answer to a request is not understood; to another request the server may answer well."""


_MOST_REASON: Final = 200  # characters of a library's message
_MOST_MESSAGE: Final = 2000  # characters of a server's message

# Triton's error codes as its frontends send them (triton-inference-server/server, src/grpc/grpc_utils.cc and
# src/http_server.cc).
_ERROR_OF_STATUS: Final[dict[str, type[SegmentationError]]] = {
    "StatusCode.INVALID_ARGUMENT": RequestError,
    "StatusCode.RESOURCE_EXHAUSTED": RequestError,  # a message over the size limit
    "StatusCode.UNAVAILABLE": ServerUnavailableError,
    "StatusCode.NOT_FOUND": ServerUnavailableError,
    "StatusCode.DEADLINE_EXCEEDED": RequestTimeoutError,
    "400": RequestError,
    "413": RequestError,
    "404": ServerUnavailableError,
    "405": ServerUnavailableError,  # from something else than an inference server
    "502": ServerUnavailableError,
    "503": ServerUnavailableError,
    "408": RequestTimeoutError,
    "504": RequestTimeoutError,
}


def error_of_status(status: str | None, message: str, url: str, timeout_s: float) -> SegmentationError:
    """The error for an answer that is not a result.

    Args:
        status: what ``InferenceServerException.status()`` holds.
        message: the server's; kept.
        url: of the server, for the message.
        timeout_s: bound that was in force, in seconds.
    """
    kind = _ERROR_OF_STATUS.get(status or "", ServerError)
    message = str(message)  # in JSON it may be anything
    if len(message) > _MOST_MESSAGE:
        message = f"{message[:_MOST_MESSAGE]} … ({len(message)} characters)"
    if status == "401":
        return kind(f"{url}: {message}. From here: api_key=…, --api-key-file FILE, or {KEY_VARIABLE}=…", status)
    if kind is ServerUnavailableError and BUSY in message:
        return ServerBusyError(f"{url}: {message}", status)
    if kind is ServerUnavailableError:
        return kind(
            f"{url} is not available: {message}. If no server runs there, {START_REMEDY}; if one does, check the port "
            "(HTTP is on 8000 and gRPC on 8001 by default) and that this precision is built and loaded, or try again "
            "later",
            status,
        )
    if kind is RequestTimeoutError:
        return _timed_out(url, timeout_s, status)
    if kind is ServerError:
        return kind(f"the server at {url} failed ({status or 'no status'}): {message}", status)
    return kind(message, status)


@contextmanager
def answer_errors(url: str, protocol: str) -> Iterator[None]:
    """Turn what tritonclient raises on an answer that it cannot read into :class:`AnswerError`.

    Args:
        url: of the server, for the message.
        protocol: ``grpc`` or ``http``, for the message.

    Raises:
        AnswerError: the answer cannot be read.
    """
    try:
        yield
    except InferenceServerException as error:
        if error.status() is not None:
            raise
        raise AnswerError(f"the answer of {url} ({protocol}) cannot be read: {_reason(error)}") from error
    # None of these comes from a connection. OSError and UnicodeError do, from sockets and names.
    except (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
            struct.error, zlib.error) as error:  # fmt: skip
        if isinstance(error, OSError) or (
            isinstance(error, UnicodeError) and not isinstance(error, UnicodeDecodeError)
        ):
            raise
        raise AnswerError(f"the answer of {url} ({protocol}) cannot be read: {_reason(error)}") from error


@contextmanager
def translated_errors(url: str, timeout_s: float, protocol: str) -> Iterator[None]:
    """Turn what tritonclient and the libraries below it raise into the errors of this module.

    Wrap only their calls: any other error counts as a fault of the connection or of what answers.

    Args:
        url: of the server, for the messages.
        timeout_s: bound that is in force, in seconds.
        protocol: ``grpc`` or ``http``, for the messages.

    Raises:
        SegmentationError: the fitting subclass.
    """
    try:
        yield
    except SegmentationError:
        raise
    except InferenceServerException as error:
        raise error_of_status(error.status(), error.message(), f"{url} ({protocol})", timeout_s) from error
    except (TimeoutError, asyncio.TimeoutError) as error:  # two types before Python 3.11
        raise _timed_out(url, timeout_s, None) from error
    except Exception as error:  # sockets, names, aiohttp, geventhttpclient, JSON: each has its own tree
        raise ServerUnavailableError(
            f"no {protocol} connection to {url}: {_reason(error)}; check host and port (HTTP is on 8000 and gRPC on "
            f"8001 by default), {START_REMEDY}"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_MOST_REASON] or type(error).__name__


def _timed_out(url: str, timeout_s: float, status: str | None) -> RequestTimeoutError:
    return RequestTimeoutError(
        f"no answer from {url} within {timeout_s:g} s; allow more (timeout_s, --timeout-s), or send less at a time",
        status,
    )
