"""Errors of the caller's making. Their text goes to the caller as it stands."""


from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

ImageFault: TypeAlias = Literal["empty", "format", "truncated", "too_large", "damaged"]
"""Why bytes are refused as an image; the few words that the server counts refusals by."""

IMAGE_FAULTS: Final[tuple[ImageFault, ...]] = get_args(ImageFault)


class InputError(ValueError):
    """The caller's input is at fault; the message names the fault and the remedy.

    The server answers it with ``INVALID_ARG`` (HTTP 400) and goes on.
    """


class ImageError(InputError):
    """The bytes are not an image that can be decoded within the limits.

    Attributes:
        reason: which of :data:`IMAGE_FAULTS` it is.
    """

    def __init__(self, message: str, reason: ImageFault) -> None:
        super().__init__(message)
        self.reason: ImageFault = reason


class ParameterError(InputError):
    """A request parameter is unknown, of the wrong type or out of range."""
