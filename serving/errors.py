"""Errors of starting and running the server. One line each: the fault and its remedy."""

from base.errors import OperatorError


class ServingError(OperatorError):
    """The server cannot be found, started or kept running."""


class EnvironmentFault(ServingError):
    """This machine lacks something that the server needs."""


class PortInUse(ServingError):
    """Another process listens on a port that the server is to use."""
