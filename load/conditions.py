"""``--fail-if``: comparisons of measured values, such as ``int8.throughput < 1.2 * fp32.throughput``.

The text is parsed to a syntax tree and only the nodes below are walked; nothing is ever executed. A name is
``<precision>.<value>`` or ``<precision>.<protocol>.<value>``. Where a condition leaves the protocol out, it is tried
for each protocol that was measured, and holds if it holds for one of them.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_ARITHMETIC: Final[dict[type[ast.AST], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: Final[dict[type[ast.AST], Callable[[Any, Any], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_SIGNS: Final[dict[type[ast.AST], Callable[[Any], Any]]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_EXAMPLE: Final = "such as 'int8.throughput < 1.2 * fp32.throughput or int8.error_rate > 0.01'"

Lookup = Callable[[str, str, str], "float | None"]
"""Precision, protocol and value to what was measured; None if it was not."""


@dataclass(frozen=True)
class Verdict:
    """What became of one condition.

    Attributes:
        text: the condition.
        holds: whether it holds, and the run so fails. An undecided one fails the run too.
        detail: the values it was decided by, or why it could not be.
    """

    text: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Condition:
    """A parsed condition; made by :meth:`parse`.

    Attributes:
        text: as it was given.
        tree: its expression, of allowed nodes only.
        names: what it refers to: precision, protocol or an empty text, value.
    """

    text: str
    tree: ast.expr
    names: tuple[tuple[str, str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition.

        Raises:
            ConditionError: it is no comparison, or holds anything else than numbers, names of measured values,
                ``+ - * /``, comparisons, ``and``, ``or``, ``not``.
        """
        if len(text) > _MAX_LENGTH:
            raise ConditionError(f"the condition has {len(text)} characters; allowed: {_MAX_LENGTH}")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConditionError(f"condition {text!r} does not parse ({error}); write one {_EXAMPLE}") from None
        _check_truth(tree, text)
        names = tuple(dict.fromkeys(_names(tree, text)))
        if not names:
            raise ConditionError(f"condition {text!r} names no measured value; write one {_EXAMPLE}")
        return cls(text, tree, names)

    def decide(self, lookup: Lookup, protocols: Sequence[str]) -> Verdict:
        """Try the condition on what was measured, protocol by protocol where it names none."""
        unbound = any(not protocol for _, protocol, _ in self.names)
        verdicts = [self._decide_for(lookup, protocol) for protocol in (protocols if unbound else protocols[:1])]
        return next((verdict for verdict in verdicts if verdict.holds), verdicts[0])

    def _decide_for(self, lookup: Lookup, protocol: str) -> Verdict:
        found: dict[tuple[str, str, str], float] = {}
        for name in self.names:
            precision, named, value = name
            measured = lookup(precision, named or protocol, value)
            if measured is None or math.isnan(measured):
                missing = ".".join(filter(None, (precision, named or protocol, value)))
                return Verdict(self.text, True, f"cannot be decided: {missing} was not measured")
            found[name] = measured
        detail = ", ".join(
            f"{'.'.join(filter(None, (precision, named or protocol, value)))} = {measured:.4g}"
            for (precision, named, value), measured in found.items()
        )
        try:
            return Verdict(self.text, bool(_evaluate(self.tree, found)), detail)
        except ZeroDivisionError:
            return Verdict(self.text, True, f"cannot be decided: division by zero ({detail})")


def _check_truth(node: ast.expr, text: str) -> None:
    """The outer nodes have to be true or false, the inner ones numbers."""
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check_truth(value, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_truth(node.operand, text)
    elif isinstance(node, ast.Compare) and all(type(one) in _COMPARISONS for one in node.ops):
        for value in (node.left, *node.comparators):
            _check_number(value, text)
    else:
        raise ConditionError(f"condition {text!r}: {ast.unparse(node)!r} is no comparison; write one {_EXAMPLE}")


def _check_number(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        _check_number(node.left, text)
        _check_number(node.right, text)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        _check_number(node.operand, text)
    elif not (isinstance(node, ast.Attribute) or _is_number(node)):
        raise ConditionError(
            f"condition {text!r}: {ast.unparse(node)!r} is not allowed; allowed: numbers, + - * /, comparisons, "
            f"and, or, not, and names {_EXAMPLE}"
        )


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)


def _names(tree: ast.expr, text: str) -> Iterator[tuple[str, str, str]]:
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            inner.update(id(part) for part in ast.walk(node.value))
            yield _name(node, text)


def _name(node: ast.Attribute, text: str) -> tuple[str, str, str]:
    """Precision, protocol (empty if not named) and value."""
    parts = [node.attr]
    below: ast.expr = node.value
    while isinstance(below, ast.Attribute):
        parts.append(below.attr)
        below = below.value
    if isinstance(below, ast.Name):
        parts.append(below.id)
        parts.reverse()
        precision, value = parts[0], parts[-1]
        protocol = parts[1] if len(parts) == 3 else ""
        known = precision in contract.PRECISIONS and value in VALUES and (not protocol or protocol in DEFAULT_URLS)
        if known and len(parts) in (2, 3):
            return precision, protocol, value
    raise ConditionError(
        f"condition {text!r}: {ast.unparse(node)!r} is unknown; allowed: PRECISION.VALUE or PRECISION.PROTOCOL.VALUE "
        f"of {', '.join(contract.PRECISIONS)}; {', '.join(DEFAULT_URLS)}; {', '.join(VALUES)}"
    )


def _evaluate(node: ast.expr, values: Mapping[tuple[str, str, str], float]) -> Any:
    """Walk a tree that :meth:`Condition.parse` has let through."""
    if isinstance(node, ast.BoolOp):
        results = [bool(_evaluate(value, values)) for value in node.values]
        return all(results) if isinstance(node.op, ast.And) else any(results)
    if isinstance(node, ast.UnaryOp):
        operand = _evaluate(node.operand, values)
        return not operand if isinstance(node.op, ast.Not) else _SIGNS[type(node.op)](operand)
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
    if isinstance(node, ast.Compare):
        sides = [_evaluate(side, values) for side in (node.left, *node.comparators)]
        pairs = zip(node.ops, sides, sides[1:], strict=False)
        return all(_COMPARISONS[type(one)](left, right) for one, left, right in pairs)
    if isinstance(node, ast.Attribute):
        return values[_name(node, "")]
    if isinstance(node, ast.Constant):
        return node.value
    raise ConditionError(f"{ast.unparse(node)!r} is not allowed")
