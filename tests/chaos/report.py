"""Writes ``docs/reliability.md`` from the figures of the last runs: ``python -m tests.chaos.report``.

The figures themselves are kept beside it, in ``docs/reliability.json``, so that a test can tell whether the two agree.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENT: Final = ROOT / "docs" / "reliability.md"
FIGURES: Final = ROOT / "docs" / "reliability.json"
PARTS: Final = ("hostile", "hostile_cuda", "overload", "overload_cuda", "faults", "kills", "soak")
"""Names of the parts, and of the files in which runs leave figures; ``make chaos`` runs all but those of a GPU."""


def render(figures: Mapping[str, Any]) -> str:
    """The document's text, by the figures of the parts."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown
    )
    environment.filters["machine"] = _machine
    return environment.get_template("reliability.md.jinja").render(figures)


def _machine(described: Mapping[str, Any]) -> str:
    """One line about a machine."""
    gpu = "no GPU" if described["gpu"] == "none" else described["gpu"]
    return (
        f"{described['processor']}, {described['cores']} cores, {gpu}, {described['system']}, load average "
        f"{described['load_average']} at the end"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the figures of new runs over and write the document; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.report", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"), help="where the runs wrote their figures")
    options = parser.parse_args(arguments)
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for part in PARTS:
        path = options.out / f"{part}.json"
        if path.is_file():
            found = json.loads(path.read_text())
            if part == "soak" and found["minutes"] < figures.get(part, found)["minutes"]:
                print(f"the soak of {found['minutes']:g} minutes is left out: the document has a longer one")
                continue
            figures[part] = found
            for record in figures[part].get("records", []):
                record.pop("evidence", None)  # counts and log lines, of that one run
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    DOCUMENT.write_text(render(figures))
    print(f"written: {DOCUMENT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
