"""Processes of one server killed again and again, at random moments of its traffic: ``python -m tests.chaos.kills``."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.progress import track

from load.machine import describe_machine
from pipeline import contract
from repository.store import SHIPPED_REPOSITORY
from tests.chaos.faults_processes import GONE, READY_AGAIN, REPLACED, UNHEALTHY
from tests.chaos.faults_record import PRECISION, Callers
from tests.chaos.faults_service import Service, wait_for

MENDED_S: Final = 30.0
"""So soon a killed process must have been replaced, or the server started again, in seconds."""

_MODELS: Final = (*contract.SHARED_MODELS, contract.network_model(PRECISION))
_STARTING: Final = re.compile(r"(.*); starting it again in")
# A process that dies a few seconds after another is the next in a row, which is mended after a pause that grows.
_NONE_IN_A_ROW: Final = """
import sys
from serving.supervisor import RestartPolicy
RestartPolicy.__init__.__defaults__ = (*RestartPolicy.__init__.__defaults__[:-1], 0.0)  # seconds to be steady
from serving.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def run(repository: Path, out: Path, kills: int = 100, seed: int = 0) -> dict[str, Any]:
    """Kill processes of the Python backend, one after the other, each once the last one was mended.

    Args:
        repository: a built model repository.
        out: folder for ``kills.json``.
        kills: how many.
        seed: of models, processes and moments.

    Returns:
        How the kills were mended, what callers saw, and ``faults``: what was not as promised.
    """
    moments = random.Random(seed)  # noqa: S311 - no secret
    mended: Counter[str] = Counter()
    seconds: list[float] = []
    faults: list[str] = []
    with Service(
        repository, f"--precisions={PRECISION}", "--exit-timeout-s=2", program=("-c", _NONE_IN_A_ROW)
    ) as service:
        counts = {model: len(service.stubs(model)) for model in _MODELS}
        server = service.server
        with Callers({"grpc": server.grpc, "http": server.http}, repository) as callers:
            for _ in track(range(kills), "killing", console=Console(stderr=True)):
                wait_for(lambda: callers.good_since(0.0) >= 4, MENDED_S, "requests to be answered")
                time.sleep(moments.uniform(0.0, 1.0))
                model = moments.choice(_MODELS)
                try:
                    how, took_s = _kill(service, _victim(service, model, counts[model], moments))
                except RuntimeError as error:
                    faults.append(f"{model}: {error}")
                    break
                mended[how] += 1
                seconds.append(took_s)
            asked = callers.asked
    faults += _unexpected({one.error for one in asked if one.error is not None})
    wrong = sum(one.error is None and not one.right for one in asked)
    if wrong:
        faults.append(f"{wrong} wrong answers")
    result = {
        "kills": len(seconds),
        "seed": seed,
        "mended": dict(mended),
        "most_s": max(seconds, default=0.0),
        "answered": sum(one.error is None for one in asked),
        "failed": sum(one.error is not None for one in asked),
        "machine": describe_machine(),
        "faults": faults,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "kills.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _victim(service: Service, model: str, count: int, moments: random.Random) -> psutil.Process:
    """One of a model's processes, but none of those that were replaced and work off what they have."""
    newest = sorted(service.stubs(model), key=psutil.Process.create_time)[-count:]
    return moments.choice(newest)


def _kill(service: Service, victim: psutil.Process, within_s: float = MENDED_S) -> tuple[str, float]:
    """Kill a process; returns how that was mended, and after how many seconds.

    Raises:
        RuntimeError: it was not.
    """
    said = len(service.lines)
    at = time.monotonic()
    victim.kill()

    def mended() -> str | None:
        lines = service.lines[said:]
        if any(READY_AGAIN in line for line in lines):
            why = next((found[1] for line in lines if (found := _STARTING.match(line))), "")
            return "server ended with it" if "signal" in why else "server started afresh"
        return "replaced" if any(REPLACED in line for line in lines) else None

    try:
        how = wait_for(mended, within_s, f"process {victim.pid} to be replaced")
    except RuntimeError as error:
        raise RuntimeError(f"{error}; the service said last:\n{service.tail()}") from None
    return how, time.monotonic() - at


def _unexpected(errors: set[str]) -> list[str]:
    allowed = re.compile(rf"{UNHEALTHY}|{GONE}")
    return sorted(f"an error that should not be: {error}" for error in errors if not allowed.search(error))


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console()
    how = ", ".join(f"{name}: {count}" for name, count in sorted(result["mended"].items()))
    console.print(f"{result['kills']} processes killed ({how}), each mended within {result['most_s']:.1f} s")
    console.print(f"{result['answered']} requests answered, {result['failed']} failed")
    for fault in result["faults"]:
        console.print(f"[red]FAULT[/red] {fault}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 if something was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kills", description=__doc__)
    parser.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    result = run(options.repository, options.out, options.kills, options.seed)
    show(result)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
