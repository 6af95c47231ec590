"""Runs one step in a separate process, and ends that process if it outlasts its time."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from base.interpreter import PYTHON
from load.errors import LoadError
from load.options import UserOptions

GRACE_S: Final = 30.0
"""For starting, and for writing the results, beyond the step's own times."""

_ROOT: Final = Path(__file__).resolve().parents[1]
_KEPT_LINES: Final = 12


@dataclass(frozen=True)
class StepSpec:
    """One load on one precision over one protocol."""

    precision: str  # which ensemble
    protocol: str  # ``grpc`` or ``http``
    url: str  # ``host:port``
    users: int  # closed loop: requests in flight; open loop: sources of arrivals
    rate: float | None  # open loop: arrivals per second over all users; None is a closed loop
    warm_up_s: float  # load before the window that is measured, in seconds
    duration_s: float  # the window, in seconds
    payloads: Path  # file that :func:`load.payloads.save` wrote
    options: UserOptions  # how users behave
    seed: int = 0  # of the order of images and of arrivals


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which this project's modules can be imported, with changes."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **changes}


def run_step(spec: StepSpec) -> dict[str, Any]:
    """Put one step's load on a server.

    Returns:
        The result of :func:`load.step.run`.

    Raises:
        LoadError: the generator failed, or did not end within its time and was killed.
    """
    limit_s = spec.warm_up_s + spec.duration_s + spec.options.timeout_s + GRACE_S
    with tempfile.TemporaryDirectory(prefix="load_") as folder:
        answer = Path(folder) / "result.json"
        with subprocess.Popen(
            [*PYTHON, "-m", "load.step", str(answer)],
            env=environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),  # it takes one core
            cwd=_ROOT,  # without -P the working folder comes before PYTHONPATH, and may hold another ``load.py``
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                output, _ = process.communicate(pickle.dumps(spec), timeout=limit_s)
            except subprocess.TimeoutExpired:
                raise LoadError(f"the load generator did not end within {limit_s:.0f} s and was killed") from None
            finally:
                process.kill()
        if process.returncode != 0 or not answer.is_file():
            lines = output.decode(errors="replace").splitlines()[-_KEPT_LINES:]
            tail = "\n".join(f"  {line}" for line in lines)
            raise LoadError(f"the load generator ended with status {process.returncode}:\n{tail}")
        result: dict[str, Any] = json.loads(answer.read_bytes())
        return result
