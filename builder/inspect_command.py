"""``python -m builder inspect``: what a file is, with the evidence."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from builder.checkpoint import onnx_of
from builder.first_run import Limits, findings_of
from pipeline.command_line import markup, say


def run_inspect(
    path: Path, input_size: tuple[int, int] | None, family: str | None, names: Sequence[str], *, as_json: bool
) -> int:
    """Print what a file is.

    Args:
        path: the ONNX file, or a checkpoint.
        input_size: for an export of dynamic input size.
        family: named by the user.
        names: of the classes, where the file has none.
        as_json: instead of a table.

    Returns:
        0 if the builder takes it, else 1.

    Raises:
        ExportError: the file is not there, or its process went beyond a limit.
    """
    path = onnx_of(path, input_size, lambda text: say(text, sys.stderr))
    found = findings_of(path, input_size, family, names, Limits())
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        _show(found)
    return 0 if found["served"] else 1


def _show(found: dict[str, Any]) -> None:
    console = Console()
    facts = Table("fact", "value", title=markup(found["file"]), title_justify="left")
    for name, value in found["facts"].items():
        facts.add_row(markup(name), markup(value))
    console.print(facts)
    if found["evidence"]:
        evidence = Table("question", "answer", "evidence")
        for row in found["evidence"]:
            evidence.add_row(*(markup(row[name]) for name in ("question", "answer", "evidence")))
        console.print(evidence)
    verdict = f"{found['title']} (--family {found['family']}): can be built" if found["served"] else found["refusal"]
    console.print(markup(verdict), highlight=False, soft_wrap=True)
