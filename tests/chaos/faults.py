"""Faults, one after the other, against the real server: what is lost, what callers see, how it recovers.

``python -m tests.chaos.faults``
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from load.machine import describe_machine
from repository.store import SHIPPED_REPOSITORY
from tests.chaos import faults_files, faults_machine, faults_processes
from tests.chaos.faults_record import Record

Fault = Callable[[Path], Record]

FAULTS: Final[dict[str, Fault]] = {
    "kill_admission": faults_processes.kill_admission,
    "kill_preprocess": faults_processes.kill_preprocess,
    "kill_network": faults_processes.kill_network,
    "kill_postprocess": faults_processes.kill_postprocess,
    "stopped_process": faults_processes.stopped_process,
    "hung_call": faults_processes.hung_call,
    "kill_server": faults_processes.kill_server,
    "hung_server": faults_processes.hung_server,
    "kill_client": faults_processes.kill_client,
    "full_disk": faults_files.full_disk,
    "read_only_repository": faults_files.read_only_repository,
    "corrupt_network": faults_files.corrupt_network,
    "corrupt_plan": faults_files.corrupt_plan,
    "corrupt_manifest": faults_files.corrupt_manifest,
    "corrupt_config": faults_files.corrupt_config,
    "corrupt_then_dead": faults_files.corrupt_then_dead,
    "shared_memory_full": faults_machine.shared_memory_full,
    "missing_library": faults_machine.missing_library,
}
"""Name to what tries it, given a built model repository, of which it serves a copy or changes nothing."""


def run(repository: Path, out: Path) -> dict[str, Any]:
    """Try every fault.

    Args:
        repository: a built model repository.
        out: folder for ``faults.json``.

    Returns:
        ``records``, one per fault, and ``faults``: what was not as promised.
    """
    records = []
    for name, fault in FAULTS.items():
        started = time.monotonic()
        record = fault(repository)
        records.append({"name": name, **asdict(record), "took_s": time.monotonic() - started})
    broken = [f"{record['name']}: {text}" for record in records for text in record["broken"]]
    result = {"records": records, "machine": describe_machine(), "faults": broken}
    out.mkdir(parents=True, exist_ok=True)
    (out / "faults.json").write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    return result


def show(result: dict[str, Any]) -> None:
    """Print the records as a table."""
    table = Table(title="faults", show_lines=True)
    for name in ("fault", "lost", "callers see", "recovery"):
        table.add_column(name, overflow="fold")
    table.add_column("s", justify="right", no_wrap=True)
    for record in result["records"]:
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f}"
        texts = (record["fault"], record["lost"], record["callers_see"], record["recovery"])
        table.add_row(*(text.replace("[", r"\[") for text in texts), seconds)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    for fault in result["faults"]:
        console.print(f"[red]FAULT[/red] {fault}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 if something was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.faults", description=__doc__)
    parser.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    options = parser.parse_args(arguments)
    return 1 if run(options.repository, options.out)["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
