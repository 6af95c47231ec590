"""What the parts of ``make chaos`` share: the command line, and how figures are kept and shown."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from load.machine import describe_machine
from repository.store import SHIPPED_REPOSITORY


def keep(out: Path, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Add the machine to a part's figures, write them to ``NAME.json`` and show what was broken."""
    machine = describe_machine(())
    result["machine"] = machine | {"system": machine["system"].replace(f" {platform.release()} ", " ")}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    for fault in result["faults"]:
        Console().print(f"[red]FAULT[/red] {escape(fault)}", highlight=False)
    return result


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A command with the options that all parts have."""
    made = argparse.ArgumentParser(prog=f"python -m tests.chaos{name}", description=description)
    made.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY, help="built model repository")
    made.add_argument("--out", type=Path, default=Path("out/chaos"), help="folder for figures (default: out/chaos)")
    return made


def command(
    name: str, run: Callable[..., dict[str, Any]], arguments: Sequence[str] | None = None, **defaults: Any
) -> int:
    """Run a part from the command line; returns 1 if something was not as promised.

    Args:
        name: of the module.
        run: the part.
        arguments: of the command line.
        defaults: further arguments of ``run`` and what they are by default; a tuple lists all that are allowed.
    """
    made = parser(f".{name}", run.__doc__)
    for option, default in defaults.items():
        first = default[0] if isinstance(default, tuple) else default
        choices = default if isinstance(default, tuple) else None
        made.add_argument(f"--{option}", type=type(first), default=first, choices=choices)
    return 1 if run(**vars(made.parse_args(arguments)))["faults"] else 0
