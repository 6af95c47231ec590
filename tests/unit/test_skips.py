"""A skipped test says what is missing, and which command runs it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (TESTS.parent / "Makefile").read_text(), re.MULTILINE))
SKIPS = {"pytest.skip", "pytest.importorskip", "pytest.mark.skipif"}


def reasons():
    """Place and reason, as source text, of every skip in the tests."""
    for path in TESTS.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "skip" in text else ():
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in SKIPS:
                given = node.args[0] if name == "pytest.skip" else None
                reason = next((word.value for word in node.keywords if word.arg == "reason"), given)
                yield f"{path.relative_to(TESTS)}:{node.lineno}", ast.unparse(reason) if reason else ""


def test_a_skip_names_the_command_that_runs_it():
    found = dict(reasons())
    assert len(found) > 10
    for place, reason in found.items():
        named = set(re.findall(r"\bmake ([a-z-]+)", reason))
        assert named and named <= TARGETS, f"{place}: {reason!r} names no command of the Makefile"
        assert re.search(r"is missing|has CUDA|only for x86_64", reason), f"{place}: {reason!r} says nothing is missing"
