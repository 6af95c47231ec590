"""Errors of the model repository. Each message names the fault and its remedy."""

from base.errors import OperatorError


class RepositoryError(OperatorError):
    """The model repository, or a server of it, does not allow what was asked."""


class FlavorError(OperatorError):
    """No TensorRT is installed, or one that cannot be used."""
