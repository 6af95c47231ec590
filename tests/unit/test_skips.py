"""A skipped test says what is missing, and which command runs it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (TESTS.parent / "Makefile").read_text(), re.MULTILINE))


def reasons():
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            if (owner, node.func.attr) == ("pytest", "skip"):
                reason = node.args[0]
            elif (owner, node.func.attr) in (("pytest", "importorskip"), ("pytest.mark", "skipif")):
                reason = next((word.value for word in node.keywords if word.arg == "reason"), None)
            else:
                continue
            place = f"{path.relative_to(TESTS)}:{node.lineno}"
            yield pytest.param(ast.unparse(reason) if reason is not None else "", id=place)


@pytest.mark.parametrize("reason", list(reasons()))
def test_a_skip_names_the_command_that_runs_it(reason):
    named = re.findall(r"\bmake ([a-z-]+)", reason)
    assert named, "no command in its reason"
    assert set(named) <= TARGETS
    assert re.search(r"is missing|has CUDA|for x86_64 alone", reason), "its reason does not say what is missing"
