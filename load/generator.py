"""Runs one step in a separate process, and ends that process if it outlasts its time."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any, Final

from base.interpreter import PYTHON
from load.errors import LoadError
from load.results import StepSpec

GRACE_S: Final = 30.0
"""For starting, and for handing over the results, beyond the step's own times."""

_ROOT: Final = Path(__file__).resolve().parents[1]
_KEPT_LINES: Final = 12


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which this project's modules can be imported, with changes."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **changes}


def run_step(spec: StepSpec) -> dict[str, Any]:
    """Put one step's load on a server; returns the result of :func:`load.step.run`.

    Raises:
        LoadError: the generator failed, or did not end within its time and was killed.
    """
    limit_s = spec.warm_up_s + spec.duration_s + spec.options.timeout_s + GRACE_S
    try:
        done = subprocess.run(
            [*PYTHON, "-m", "load.step"],
            env=environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),  # it takes one core
            cwd=_ROOT,  # without -P the working folder comes before PYTHONPATH, and may hold another ``load.py``
            input=pickle.dumps(spec),
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"the load generator did not end within {limit_s:.0f} s and was killed") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").splitlines()[-_KEPT_LINES:]
        raise LoadError("\n  ".join([f"the load generator ended with status {done.returncode}:", *lines]))
    return dict(json.loads(done.stdout.splitlines()[-1]))
