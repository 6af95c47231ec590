"""``--fail-if``: comparisons of measured values, such as ``int8.throughput < 1.2 * fp32.throughput``.

A name is ``<precision>.<value>`` or ``<precision>.<protocol>.<value>``. A condition that leaves the protocol out is
tried for each protocol that was measured, and holds if it holds for one of them. The text is parsed to a syntax tree of
which only the nodes below are evaluated; no code runs.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from client.transport import DEFAULT_URLS
from load.errors import ConditionError
from pipeline import contract

VALUES: Final = (
    "throughput",
    "mean_ms",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "error_rate",
    "requests",
    "failures",
    "mask_iou",
    "f1",
    "map50_95",
)
"""What a condition may ask of a precision."""

_MAX_LENGTH: Final = 500
_MAX_NUMBER: Final = 1e15
_NAME: Final = re.compile(rf"({'|'.join(contract.PRECISIONS)})\.(?:({'|'.join(DEFAULT_URLS)})\.)?({'|'.join(VALUES)})")
_ARITHMETIC: Final[dict[type[ast.AST], Callable[..., float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_COMPARISONS: Final[dict[type[ast.AST], Callable[[float, float], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ALLOWED: Final = (
    f"allowed: numbers below {_MAX_NUMBER:g}, + - * /, comparisons, and, or, not, and names, PRECISION.VALUE or "
    f"PRECISION.PROTOCOL.VALUE of {', '.join(contract.PRECISIONS)}; {', '.join(DEFAULT_URLS)}; {', '.join(VALUES)}; "
    "such as 'int8.throughput < 1.2 * fp32.throughput or int8.error_rate > 0.01'"
)

Lookup = Callable[[str, str, str], "float | None"]
"""Precision, protocol and value to the measured number; None if there is none."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one condition."""

    text: str  # the condition
    holds: bool  # whether it holds, so that the run fails. An undecided one fails the run too.
    detail: str  # the values that decided, or why it cannot be decided


@dataclass(frozen=True)
class Condition:
    """A parsed condition; made by :meth:`parse`."""

    text: str  # as it was given
    tree: ast.expr  # its expression, of allowed nodes only
    names: dict[str, tuple[str, str, str]]  # each name in it to its precision, protocol (empty if left out) and value

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition.

        Raises:
            ConditionError: it is too long, holds something that is not allowed, or names no measured value.
        """
        if len(text) > _MAX_LENGTH:
            raise ConditionError(f"the condition has {len(text)} characters; allowed: {_MAX_LENGTH}")
        names = {}

        def note(name: str) -> float:
            if not (found := _NAME.fullmatch(name)):
                raise ConditionError(f"{name!r} is unknown")
            names[name] = (found[1], found[2] or "", found[3])
            return math.nan

        try:
            tree = ast.parse(text.strip(), mode="eval").body
            _truth(tree, note)
            if not names:
                raise ConditionError("it names no measured value")
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError) as error:
            raise ConditionError(f"condition {text!r}: {error}; {_ALLOWED}") from None
        return cls(text, tree, names)

    def decide(self, lookup: Lookup, protocols: Sequence[str]) -> Verdict:
        """Try the condition on what was measured, protocol by protocol where it names none."""
        unbound = any(not protocol for _, protocol, _ in self.names.values())
        verdicts = [self._decide_for(lookup, protocol) for protocol in (protocols if unbound else protocols[:1])]
        return next((verdict for verdict in verdicts if verdict.holds), verdicts[0])

    def _decide_for(self, lookup: Lookup, default: str) -> Verdict:
        values, details = {}, []
        for name, (precision, protocol, value) in self.names.items():
            place = f"{precision}.{protocol or default}.{value}"
            measured = lookup(precision, protocol or default, value)
            if measured is None or math.isnan(measured):
                return Verdict(self.text, True, f"cannot be decided: {place} was not measured")
            values[name] = measured
            details.append(f"{place} = {measured:.4g}")
        detail = ", ".join(details)
        try:
            return Verdict(self.text, _truth(self.tree, values.__getitem__), detail)
        except ZeroDivisionError:
            return Verdict(self.text, True, f"cannot be decided: division by zero ({detail})")


def _truth(node: ast.expr, value_of: Callable[[str], float]) -> bool:
    """Evaluate comparisons and what joins them; every part, so that parsing sees all of them."""
    if isinstance(node, ast.BoolOp):
        results = [_truth(value, value_of) for value in node.values]
        return all(results) if isinstance(node.op, ast.And) else any(results)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _truth(node.operand, value_of)
    if isinstance(node, ast.Compare) and all(type(one) in _COMPARISONS for one in node.ops):
        sides = [_number(side, value_of) for side in (node.left, *node.comparators)]
        pairs = zip(node.ops, sides, sides[1:], strict=False)
        return all(_COMPARISONS[type(one)](left, right) for one, left, right in pairs)
    raise ConditionError(f"{ast.unparse(node)!r} is no comparison")


def _number(node: ast.expr, value_of: Callable[[str], float]) -> float:
    """Evaluate arithmetic on floats, which cannot overflow into an error."""
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_number(node.left, value_of), _number(node.right, value_of))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_number(node.operand, value_of))
    if isinstance(node, ast.Attribute):
        return value_of(ast.unparse(node))
    value: Any = node.value if isinstance(node, ast.Constant) else None
    if type(value) in (int, float) and value < _MAX_NUMBER:
        return float(value)
    raise ConditionError(f"{ast.unparse(node)!r} is not allowed")
