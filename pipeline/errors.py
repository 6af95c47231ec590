"""Errors whose text goes to the caller unchanged."""

from __future__ import annotations

from typing import Final

IMAGE_FAULTS: Final = ("empty", "format", "truncated", "too_large", "damaged")
"""What can be wrong with an encoded image."""


class InputError(ValueError):
    """The caller's input is at fault; the message names the fault and the remedy.

    The server answers ``INVALID_ARG`` (HTTP 400).
    """


class ImageError(InputError):
    """The bytes are not an image that can be decoded within the limits.

    Attributes:
        reason: one of :data:`IMAGE_FAULTS`, for counting.
    """

    def __init__(self, message: str, reason: str = "damaged") -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def not_supported(cls, kind: str, what: str) -> ImageError:
        """The refusal of an image that may be intact, but that cannot be decoded here."""
        return cls(f"the {kind} has {what}, which is not supported. Send it as 8-bit JPEG, PNG or TIFF", "format")


class ParameterError(InputError):
    """A request parameter is unknown, of the wrong type or out of range."""


BUSY: Final = "the server is busy"
"""How a caller tells a rejection for overload from a server that is not there."""


class OverloadError(Exception):
    """The request cannot be answered in time; the same request may succeed later.

    The server answers ``UNAVAILABLE`` (HTTP 503); the message begins with :data:`BUSY`.
    """
