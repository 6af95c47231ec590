"""Breaks a server on purpose, in every way that docs/reliability.md makes a promise about: ``make chaos``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from tests.chaos import faults, hostile, kills, overload, part, report, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts, one after the other; returns 1 if something was not as promised."""
    parser = part.parser("", __doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="hostile inputs (default: 10000)")
    parser.add_argument("--overload-s", type=float, default=120.0, help="length of the overload (default: 120 s)")
    parser.add_argument("--kills", type=int, default=100, help="processes killed one after the other (default: 100)")
    parser.add_argument("--soak-minutes", type=float, default=2.0, help="of the soak (default: 2; make soak: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--write-document", action="store_true", help="write docs/reliability.md from the figures")
    options = parser.parse_args(arguments)
    where, seed = (options.repository, options.out), options.seed
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "hostile input": lambda: hostile.run(*where, options.inputs, seed),
        "overload": lambda: overload.run(*where, options.overload_s, seed=seed),
        "faults": lambda: faults.run(*where),
        "kills": lambda: kills.run(*where, options.kills, seed),
        "soak": lambda: soak.run(*where, options.soak_minutes, seed),
    }
    broken = 0
    for name, run in parts.items():
        Console().rule(name)
        broken += len(run()["faults"])
    Console().print(f"{broken} promises broken, listed above" if broken else "every promise was kept")
    if options.write_document:
        report.main(["--out", str(options.out)])
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
