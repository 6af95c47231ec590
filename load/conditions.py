"""``--fail-if``: comparisons of measured values, such as ``int8.throughput < 1.2 * fp32.throughput``.

A name is ``<precision>.<value>`` or ``<precision>.<protocol>.<value>``. A condition that leaves the protocol out is
tried for each protocol that was measured, and holds if it holds for one of them. Jinja's sandbox evaluates it, after a
check that it consists of names, numbers and operators alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from client.transport import DEFAULT_URLS
from pipeline import contract

VALUES: Final = (
    *("throughput", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "error_rate", "requests", "failures"),
    *("mask_iou", "f1", "map50_95"),
)
"""What a condition may ask of a precision."""

_MAX_LENGTH: Final = 500
_TOKEN: Final = re.compile(r"[\w.]+|[<>=!]=|\*\*|//|\S")
_NAME: Final = re.compile(rf"({'|'.join(contract.PRECISIONS)})\.(?:({'|'.join(DEFAULT_URLS)})\.)?({'|'.join(VALUES)})")
_NUMBER: Final = re.compile(r"\d{1,15}(\.\d{1,15})?")
_OPERATORS: Final = frozenset({"<", ">", "<=", ">=", "==", "!=", "+", "-", "*", "/", "(", ")", "and", "or", "not"})
_ALLOWED: Final = (
    "allowed: numbers such as 0.5, + - * /, comparisons, and, or, not, and names, PRECISION.VALUE or "
    f"PRECISION.PROTOCOL.VALUE of {', '.join(contract.PRECISIONS)}; {', '.join(DEFAULT_URLS)}; {', '.join(VALUES)}; "
    "such as 'int8.throughput < 1.2 * fp32.throughput or int8.error_rate > 0.01'"
)
_SANDBOX: Final = SandboxedEnvironment(undefined=jinja2.StrictUndefined)

Lookup = Callable[[str, str, str], "float | None"]
"""Precision, protocol and value to the measured number; None if there is none."""

_Name = tuple[str, str, str]  # precision, protocol (empty if left out) and value


@dataclass(frozen=True)
class Verdict:
    """The outcome of one condition."""

    text: str  # the condition
    holds: bool  # whether it holds, so that the run fails; an undecided one fails the run too
    detail: str  # the values that decided, or why it cannot be decided


@dataclass(frozen=True)
class Condition:
    """A parsed condition; made by :meth:`parse`."""

    text: str  # as it was given
    names: tuple[_Name, ...]  # each name in it, once
    evaluate: Callable[..., Any]  # precisions to their values

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition.

        Raises:
            ValueError: it is too long, holds something that is not allowed, or names no measured value.
        """
        tokens = _TOKEN.findall(text)
        names = tuple(
            dict.fromkeys((found[1], found[2] or "", found[3]) for found in map(_NAME.fullmatch, tokens) if found)
        )
        try:
            if len(text) > _MAX_LENGTH:
                raise ValueError(f"it has {len(text)} characters, of {_MAX_LENGTH} allowed")
            for token in tokens:
                if token not in _OPERATORS and not _NAME.fullmatch(token) and not _NUMBER.fullmatch(token):
                    raise ValueError(f"{token!r} is unknown")
            if not names:
                raise ValueError("it names no measured value")
            condition = cls(text, names, _SANDBOX.compile_expression(text, undefined_to_none=False))
            if not isinstance(condition._result(dict.fromkeys(names, math.nan)), bool):
                raise ValueError("it is no comparison")
        except (ValueError, TypeError, ArithmeticError, RecursionError, jinja2.TemplateError) as error:
            raise ValueError(f"condition {text!r}: {error}; {_ALLOWED}") from None
        return condition

    def decide(self, lookup: Lookup, protocols: Sequence[str]) -> Verdict:
        """Try the condition on what was measured, protocol by protocol where it names none."""
        unbound = any(not protocol for _, protocol, _ in self.names)
        verdicts = [self._decide_for(lookup, protocol) for protocol in (protocols if unbound else protocols[:1])]
        return next((verdict for verdict in verdicts if verdict.holds), verdicts[0])

    def _decide_for(self, lookup: Lookup, default: str) -> Verdict:
        values, details = {}, []
        for name in self.names:
            precision, protocol, value = name
            place = f"{precision}.{protocol or default}.{value}"
            measured = lookup(precision, protocol or default, value)
            if measured is None or math.isnan(measured):
                return Verdict(self.text, True, f"cannot be decided: {place} was not measured")
            values[name] = measured
            details.append(f"{place} = {measured:.4g}")
        detail = ", ".join(details)
        try:
            return Verdict(self.text, bool(self._result(values)), detail)
        except ArithmeticError as error:
            return Verdict(self.text, True, f"cannot be decided: {error} ({detail})")

    def _result(self, values: Mapping[_Name, float]) -> Any:
        """The value of the expression, where its names have these values."""
        known: dict[str, Any] = {}
        for (precision, protocol, value), number in values.items():
            place = known.setdefault(precision, {})
            (place.setdefault(protocol, {}) if protocol else place)[value] = float(number)
        return self.evaluate(known)
