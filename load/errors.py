"""Errors before and around the load; failed requests are results, not exceptions."""

from __future__ import annotations

from base.errors import OperatorError


class LoadError(OperatorError):
    """A load test cannot start or continue; the message says what to do."""
