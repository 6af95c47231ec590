"""Errors of the caller's making. Their text goes to the caller as it stands."""


class InputError(ValueError):
    """The caller's input is at fault; the message names the fault and the remedy.

    The server answers it with ``INVALID_ARG`` (HTTP 400) and goes on.
    """


class ImageError(InputError):
    """The bytes are not an image that can be decoded within the limits."""


class ParameterError(InputError):
    """A request parameter is unknown, of the wrong type or out of range."""
