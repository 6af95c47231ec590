"""What the repository's Python models share: each request is answered on its own, whatever happens to the others."""

from __future__ import annotations

import asyncio  # noqa: F401 - the backend imports it at a process's first request otherwise, which takes 30 ms
import functools
import json
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from base.heartbeat import Heartbeat
from pipeline import contract
from pipeline.errors import InputError, OverloadError
from pipeline.letterbox import IMAGE_FITS
from pipeline.parameters import RequestLimits, RequestParameters
from steps.admission import Admission, state_folder

DEVICES: Final = ("cpu", "gpu")
"""Where a step of the ensemble may run: values of the parameter ``device`` in its configuration."""


def answer_each(
    requests: Sequence[Any], handle: Callable[[Any], list[Any]], *, ask_whether_cancelled: bool = True
) -> list[Any]:
    """Answer every request of one ``execute`` call by itself.

    Args:
        requests: ``InferenceRequest`` objects.
        handle: returns the output tensors of one request. An :class:`InputError` becomes ``INVALID_ARG`` and an
            :class:`OverloadError` becomes ``UNAVAILABLE``, with their texts; anything else becomes ``INTERNAL`` with a
            general text, its traceback in the server's log. Not called for a request whose caller has gone away.
        ask_whether_cancelled: asking takes 0.1 ms of processor time in the server and this process: worth it where the
            request may have waited long or is long work.

    Returns:
        One ``InferenceResponse`` per request, in order.
    """
    with heartbeat().busy():
        return [
            cancellation() if ask_whether_cancelled and cancelled(request) else answer(request, handle)
            for request in requests
        ]


@functools.cache
def heartbeat() -> Heartbeat:
    """Of this process."""
    return Heartbeat(state_folder())


def _write(write: Callable[[str], None], text: str) -> None:
    write(text)


# The backend reads the path of the file whose line logs, and ends the process if that is not UTF-8, as a path with an é
# is under the locale C.
_write.__code__ = _write.__code__.replace(co_filename="steps/python_backend.py")


def log(level: str, text: str) -> None:
    """Write to the server's log.

    Args:
        level: ``info``, ``warn`` or ``error``.
        text: of any characters.
    """
    _write(getattr(pb_utils.Logger, f"log_{level}"), text.encode(errors="backslashreplace").decode())


def internal_error(what: str) -> Any:
    """An ``INTERNAL`` error for the caller; the traceback of the exception goes to the server's log."""
    log("error", f"{what} failed:\n{traceback.format_exc()}")
    return pb_utils.TritonError(f"{what} failed on the server; its log has the details", pb_utils.TritonError.INTERNAL)


def request_parameters(request: Any) -> RequestParameters:
    """The checked parameters of one request.

    Raises:
        ParameterError: see :meth:`RequestParameters.parse`.
    """
    text = request.parameters()
    return RequestParameters.parse(json.loads(text) if text else {})


def ticket_of(request: Any) -> NDArray[np.int64] | None:
    """The request's ticket from admission control, int64 [3]; None where a step is called by itself."""
    ticket = pb_utils.get_input_tensor_by_name(request, contract.ADMISSION.name)
    return None if ticket is None else ticket.as_numpy()[0]


def mark_finished(admission: Admission, request: Any, *, answered: bool = True) -> None:
    """Mark a request finished in admission control; see :meth:`steps.admission.Admission.finish`."""
    ticket = ticket_of(request)
    if ticket is not None:
        admission.finish(ticket, answered)


def config_parameter(config: dict[str, Any], name: str, default: int) -> int:
    """A whole number out of the ``parameters`` of a model's configuration.

    Raises:
        ValueError: the text is no positive whole number; names the parameter.
    """
    text = config.get("parameters", {}).get(name, {}).get("string_value", str(default))
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"parameter {name!r} in config.pbtxt is {text!r}; allowed: a positive whole number")
    return int(text)


def request_limits(config: dict[str, Any]) -> RequestLimits:
    """What the network allows of a request, out of the ``parameters`` of a model's configuration.

    Raises:
        ValueError: one of them is no number that is allowed; names it.
    """
    texts = {name: str(value.get("string_value", "")) for name, value in config.get("parameters", {}).items()}
    return RequestLimits.read(texts)


def config_choice(config: dict[str, Any], name: str, allowed: Sequence[str]) -> str:
    """One of a few words out of the ``parameters`` of a model's configuration; the first one is the default.

    Raises:
        ValueError: another word; names the parameter.
    """
    text = str(config.get("parameters", {}).get(name, {}).get("string_value", allowed[0]))
    if text not in allowed:
        raise ValueError(f"parameter {name!r} in config.pbtxt is {text!r}; allowed: {', '.join(allowed)}")
    return text


def fills_input(config: dict[str, Any]) -> bool:
    """Whether images are stretched to the network's input (``image_fit``); else they keep their aspect ratio.

    Raises:
        ValueError: see :func:`config_choice`.
    """
    return config_choice(config, "image_fit", IMAGE_FITS) == IMAGE_FITS[1]


def cancelled(request: Any) -> bool:
    """Whether the caller has gone away or its deadline has passed."""
    return bool(request.is_cancelled())


def cancellation() -> Any:
    """The answer to a request whose caller has gone."""
    error = pb_utils.TritonError("the request was cancelled by its caller", pb_utils.TritonError.CANCELLED)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def answer(request: Any, handle: Callable[[Any], list[Any]]) -> Any:
    """The response to one request; see :func:`answer_each`."""
    try:
        return pb_utils.InferenceResponse(output_tensors=handle(request))
    except InputError as error:
        refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(output_tensors=[], error=refusal)
    except OverloadError as error:
        refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
        return pb_utils.InferenceResponse(output_tensors=[], error=refusal)
    except Exception:  # the other requests of this batch go on
        return pb_utils.InferenceResponse(output_tensors=[], error=internal_error("the request"))
