"""Breaks a server on purpose, in every way that docs/reliability.md makes a promise about: ``make chaos``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from repository.store import SHIPPED_REPOSITORY
from tests.chaos import faults, hostile, kills, overload, report, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts, one after the other; returns 1 if something was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY, help="built model repository")
    parser.add_argument("--out", type=Path, default=Path("out/chaos"), help="folder for figures (default: out/chaos)")
    parser.add_argument("--inputs", type=int, default=10_000, help="hostile inputs (default: 10000)")
    parser.add_argument("--overload-s", type=float, default=120.0, help="length of the overload (default: 120 s)")
    parser.add_argument("--kills", type=int, default=100, help="processes killed one after the other (default: 100)")
    parser.add_argument("--soak-minutes", type=float, default=2.0, help="of the soak (default: 2; make soak: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--write-document", action="store_true", help="write docs/reliability.md from the figures")
    options = parser.parse_args(arguments)
    console = Console()
    broken = []
    # Name, what runs it, and what shows its figures; hostile input and faults show theirs as they run.
    parts: tuple[tuple[str, Callable[[], dict[str, Any]], Callable[[dict[str, Any]], None] | None], ...] = (
        ("hostile input", lambda: hostile.run(options.repository, options.out, options.inputs, options.seed), None),
        (
            "overload",
            lambda: overload.run(options.repository, options.out, options.overload_s, seed=options.seed),
            overload.show,
        ),
        ("faults", lambda: faults.run(options.repository, options.out), None),
        ("kills", lambda: kills.run(options.repository, options.out, options.kills, options.seed), kills.show),
        ("soak", lambda: soak.run(options.repository, options.out, options.soak_minutes, options.seed), soak.show),
    )
    for name, part, show in parts:
        console.rule(name)
        result = part()
        if show is not None:
            show(result)
        broken += [f"{name}: {fault}" for fault in result["faults"]]
    for fault in broken:
        console.print(f"[red]FAULT[/red] {fault}", highlight=False)
    console.print(f"{len(broken)} promises broken" if broken else "every promise was kept")
    if options.write_document:
        report.main(["--out", str(options.out)])
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
