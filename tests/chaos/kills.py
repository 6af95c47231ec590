"""Processes of one server killed again and again, at random moments of its traffic: ``python -m tests.chaos.kills``."""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.progress import track

from pipeline import contract
from tests.chaos import part
from tests.chaos.callers import PRECISION, Callers
from tests.chaos.faults_processes import GONE, READY_AGAIN, REPLACED, UNHEALTHY
from tests.chaos.faults_service import Service, wait_for

REPLACED_S: Final = 30.0
"""A killed process must be replaced, or the server started again, within this time, in seconds."""

_MODELS: Final = (*contract.SHARED_MODELS, contract.network_model(PRECISION))
_STARTING: Final = re.compile(r"(.*); starting it again in")
# A process that dies a few seconds after another is the next in a row, which is replaced after a pause that grows.
_NONE_IN_A_ROW: Final = """
import sys
from serving.restarts import RestartPolicy
RestartPolicy.__init__.__defaults__ = (*RestartPolicy.__init__.__defaults__[:-1], 0.0)  # seconds to be steady
from serving.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def run(repository: Path, out: Path, kills: int = 100, seed: int = 0) -> dict[str, Any]:
    """Kill so many processes of the Python backend, one after the other, each once the last one was replaced.

    Returns:
        How the service recovered, what callers saw, and ``faults``: what was not as promised.
    """
    moments = random.Random(seed)  # noqa: S311 - no secret
    recovered: Counter[str] = Counter()
    seconds: list[float] = []
    faults: list[str] = []
    with Service(
        repository, f"--precisions={PRECISION}", "--exit-timeout-s=2", program=("-c", _NONE_IN_A_ROW)
    ) as service:
        counts = {model: len(service.stubs(model)) for model in _MODELS}
        server = service.server
        with Callers({"grpc": server.grpc, "http": server.http}, repository) as callers:
            for _ in track(range(kills), "killing", console=Console(stderr=True)):
                wait_for(lambda: callers.good_since(0.0) >= 4, REPLACED_S, "requests to be answered")
                time.sleep(moments.uniform(0.0, 1.0))
                model = moments.choice(_MODELS)
                try:
                    how, took_s = _kill(service, _victim(service, model, counts[model], moments))
                except RuntimeError as error:
                    faults.append(f"{model}: {error}")
                    break
                recovered[how] += 1
                seconds.append(took_s)
            asked = callers.asked
    errors = {one.error for one in asked if one.error is not None}
    faults += sorted(f"an unexpected error: {error}" for error in errors if not re.search(f"{UNHEALTHY}|{GONE}", error))
    wrong = sum(one.error is None and not one.right for one in asked)
    if wrong:
        faults.append(f"{wrong} wrong answers")
    result = {
        "kills": len(seconds),
        "seed": seed,
        "recovered": dict(recovered),
        "most_s": max(seconds, default=0.0),
        "answered": sum(one.error is None for one in asked),
        "failed": sum(one.error is not None for one in asked),
        "faults": faults,
    }
    how = ", ".join(f"{name}: {count}" for name, count in sorted(recovered.items()))
    console = Console()
    console.print(f"{result['kills']} processes killed ({how}), each replaced within {result['most_s']:.1f} s")
    console.print(f"{result['answered']} requests answered, {result['failed']} failed")
    return part.keep(out, "kills", result)


def _victim(service: Service, model: str, count: int, moments: random.Random) -> psutil.Process:
    """One of a model's processes, but none of those that were replaced and work off what they have."""
    newest = sorted(service.stubs(model), key=psutil.Process.create_time)[-count:]
    return moments.choice(newest)


def _kill(service: Service, victim: psutil.Process, within_s: float = REPLACED_S) -> tuple[str, float]:
    """Kill a process; returns how the service recovered, and after how many seconds.

    Raises:
        RuntimeError: it did not.
    """
    said = len(service.lines)
    at = time.monotonic()
    victim.kill()

    def recovery() -> str | None:
        lines = service.lines[said:]
        if any(READY_AGAIN in line for line in lines):
            why = next((found[1] for line in lines if (found := _STARTING.match(line))), "")
            return "server ended with it" if "signal" in why else "server started afresh"
        return "replaced" if any(REPLACED in line for line in lines) else None

    try:
        how = wait_for(recovery, within_s, f"process {victim.pid} to be replaced")
    except RuntimeError as error:
        raise RuntimeError(f"{error}; the service said last:\n{service.tail()}") from None
    return how, time.monotonic() - at


if __name__ == "__main__":
    sys.exit(part.command("kills", run, kills=100, seed=0))
