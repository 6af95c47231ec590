"""What can go wrong before or around the load itself; failed requests are results, not exceptions."""

from __future__ import annotations

from base.errors import OperatorError


class LoadError(OperatorError):
    """A load test cannot start or go on; the message says what to do."""


class ConditionError(LoadError, ValueError):
    """A ``--fail-if`` condition is not one of the small language that is allowed."""
