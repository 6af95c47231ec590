"""Fuzz what reads bytes from elsewhere: ``python -m tests.fuzz`` (``make fuzz``)."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from base.cache import cache_dir
from tests.fuzz.targets import TARGETS

_STATUS: Final = re.compile(rb"#(\d+)\s+\w+\s+cov: (\d+) ft: \d+ corp: (\d+)")
_MEMORY_MIB: Final = 4096
_RUNS_AT_ONCE: Final = 200_000  # the fuzzer itself keeps some kilobytes of each
_SLOWEST_S: Final = 20
_LONGEST_BYTES: Final = 20_000
_ATHERIS: Final = "atheris"  # folder of the cache, where `make fuzz` installs it


def fuzz(name: str, seconds: float, out: Path, progress: Progress) -> tuple[str, list[Path]]:
    """Fuzz one target for a time; what was learned is kept in the cache, for the next time.

    Args:
        name: of the target.
        seconds: how long, its start included.
        out: folder for findings.
        progress: where it is shown.

    Returns:
        Runs, coverage and corpus, for people; and the inputs that are findings.
    """
    corpus, findings = cache_dir() / "fuzz" / name, out / name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    bar = progress.add_task(f"{name:10}", total=seconds)
    ends, runs, status = time.monotonic() + seconds, 0, "nothing ran"
    while (left := ends - time.monotonic()) > 3:
        limits = {"max_total_time": int(left), "timeout": _SLOWEST_S, "rss_limit_mb": _MEMORY_MIB}
        limits |= {"runs": _RUNS_AT_ONCE, "max_len": _LONGEST_BYTES, "close_fd_mask": 3, "print_final_stats": 0}
        arguments = [f"-{key}={value}" for key, value in limits.items()]
        command = [sys.executable, "-m", "tests.fuzz.worker", name, str(findings), str(corpus)]
        with subprocess.Popen(
            [*command, *arguments, f"-artifact_prefix={findings}/"],
            env={**os.environ, "PYTHONPATH": str(cache_dir() / _ATHERIS)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            done, last = 0, b""
            for last in process.stderr or ():
                found = _STATUS.match(last)
                if found:
                    done = int(found[1])
                    status = (
                        f"{runs + done:,} runs, {int(found[2]):,} lines and branches, {int(found[3]):,} inputs kept"
                    )
                progress.update(bar, completed=seconds - (ends - time.monotonic()), description=f"{name:10} {status}")
        runs += done
        if process.returncode and not done:
            raise SystemExit(f"the fuzzer of {name} ended with status {process.returncode}: {last.decode().strip()}")
    progress.update(bar, completed=seconds)
    return status, sorted(path for path in findings.iterdir() if path.suffix != ".txt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 if there are findings, and 2 without atheris."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: {' '.join(TARGETS)}")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder for findings (default: out/fuzz)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one target on one input, without the fuzzer")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"{unknown[0]!r}; allowed: {', '.join(TARGETS)}")
    names = options.targets or list(TARGETS)
    if options.replay is not None:
        TARGETS[names[0]].run(options.replay.read_bytes())
        return 0
    if not (cache_dir() / _ATHERIS).is_dir():
        print("atheris is not installed (x86-64, Python 3.11 or newer); `make fuzz` does it", file=sys.stderr)
        return 2
    console, found = Console(), {}
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in names:
            status, found[name] = fuzz(name, 60 * options.minutes / len(names), options.out, progress)
            console.print(f"{name:10} {status}; findings: {len(found[name])}", highlight=False)
    for name, paths in found.items():
        for path in paths:
            line = f"[red]FINDING[/red] python -m tests.fuzz {name} --replay {path}"
            console.print(line, highlight=False, soft_wrap=True)
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
