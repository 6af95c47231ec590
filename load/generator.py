"""Runs one step in a process of its own, and ends that process if it outlasts its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from load.errors import LoadError
from load.step_spec import StepSpec

GRACE_S: Final = 30.0
"""For starting, and for writing the results, beyond the step's own times."""

_ROOT: Final = Path(__file__).resolve().parents[1]
_KEPT_LINES: Final = 12


def run_step(spec: StepSpec) -> dict[str, Any]:
    """Put one step's load on a server.

    Returns:
        What :func:`load.step.run` returns.

    Raises:
        LoadError: the generator failed, or did not end within its time and was killed.
    """
    limit_s = spec.warm_up_s + spec.duration_s + spec.options.timeout_s + GRACE_S
    with tempfile.TemporaryDirectory(prefix="load_") as folder:
        request, answer = Path(folder) / "spec.json", Path(folder) / "result.json"
        request.write_text(spec.to_json(), encoding="utf-8")
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
        # One core, whatever NumPy and OpenCV would like.
        environment.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        process = subprocess.Popen(
            [sys.executable, "-m", "load.step", str(request), str(answer)],
            env=environment,
            cwd=_ROOT,  # the working folder comes before PYTHONPATH, and may hold a ``load.py`` of another project
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise LoadError(f"the load generator did not end within {limit_s:.0f} s and was killed") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode != 0 or not answer.is_file():
            tail = "\n".join(f"  {line}" for line in output.splitlines()[-_KEPT_LINES:])
            raise LoadError(f"the load generator ended with status {process.returncode}:\n{tail}")
        result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return result
