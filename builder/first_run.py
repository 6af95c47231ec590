"""The first load and run of an export, in a process that is bounded in time and memory.

A file from elsewhere can ask ONNX Runtime for terabytes, or keep it busy for years. The process that finds out is not
the builder. What has passed here is read and run by the builder itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from builder.errors import ExportError
from builder.onnx_tools import first_line

_ONE_MIB: Final = 1 << 20
_THREADS: Final = 8
_OUT_OF_MEMORY: Final = re.compile(r"bad_alloc|allocate memory|out of memory|cannot allocate", re.IGNORECASE)
# Every arena of malloc and every thread takes address space, which is what is limited.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True)
class Limits:
    """Bounds of the process.

    Attributes:
        time_s: most seconds that it may take.
        memory_mib: most address space that it may take, in MiB.
    """

    time_s: float = 300
    memory_mib: int = 8192


def first_run(path: Path, input_size: tuple[int, int] | None, limits: Limits) -> dict[str, tuple[int, ...]]:
    """Read, check and run an export on empty images, in a bounded process.

    Args:
        path: the ONNX file.
        input_size: height and width for an export whose input size is dynamic.
        limits: of the process.

    Returns:
        Shapes of the outputs, by name, in the export's batch.

    Raises:
        ExportError: the file cannot be served, or its process went beyond a limit or died; says which.
    """
    answer = _asked(path, {"path": str(path), "input_size": input_size}, limits)
    if "refused" in answer:
        raise ExportError(answer["refused"])
    return {name: tuple(shape) for name, shape in answer["outputs"].items()}


def findings_of(
    path: Path, input_size: tuple[int, int] | None, family: str | None, names: Sequence[str], limits: Limits
) -> dict[str, Any]:
    """What :func:`builder.inspection.examine` finds in a file, in a bounded process.

    Raises:
        ExportError: the file is not there, or its process went beyond a limit or died; says which.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    question = {"path": str(path), "input_size": input_size, "family": family, "names": list(names)}
    found: dict[str, Any] = _asked(path, {**question, "examine": True}, limits)
    return found


def _asked(path: Path, question: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The answer of a bounded process to a question about a file."""
    # The process imports from where this one does; -I keeps out the working folder and PYTHONPATH.
    code = f"import sys; sys.path[:] = {sys.path!r}; from builder.first_run import main; main()"
    try:
        process = subprocess.run(
            [sys.executable, "-I", "-c", code],
            input=json.dumps({**question, **asdict(limits)}).encode(),
            capture_output=True,
            check=False,
            timeout=limits.time_s,
            env={**os.environ, **_ENVIRONMENT},
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"{path}: reading it and running it once took more than {limits.time_s:g} s. {_remedy('time_s', limits)}"
        ) from error
    try:
        answer: dict[str, Any] = json.loads(process.stdout)
    except ValueError:
        raise ExportError(f"{path}: {_death(process, limits)}") from None
    if "out_of_memory" in answer:
        raise ExportError(
            f"{path}: reading it and running it once takes more than {limits.memory_mib} MiB of address space "
            f"({answer['out_of_memory']}). {_remedy('memory_mib', limits)}"
        )
    return answer


def _remedy(setting: str, limits: Limits) -> str:
    allowed = getattr(limits, setting)
    entry = f"inspection: {{{setting}: {2 * allowed:.10g}}}"
    return (
        f"Allowed: inspection.{setting} = {allowed:.10g}. If you trust the file's source, raise it in the settings "
        f"(`{entry}` in the file that --config names); otherwise do not use the file"
    )


def _death(process: subprocess.CompletedProcess[bytes], limits: Limits) -> str:
    """What to say of a process that gave no answer."""
    if process.returncode == -signal.SIGALRM:
        return f"reading it and running it once took more than {limits.time_s:g} s. {_remedy('time_s', limits)}"
    said = process.stderr.decode(errors="replace").strip()
    if process.returncode == -signal.SIGKILL:
        why = "was killed, probably because the machine ran out of memory. Free some, or lower inspection.memory_mib"
    elif process.returncode < 0:
        why = (
            f"died of {signal.Signals(-process.returncode).name}. The file is damaged or hostile, or needs more memory "
            f"than allowed (inspection.memory_mib = {limits.memory_mib}); raise that only for a file that you trust"
        )
    else:
        why = f"ended with status {process.returncode} ({said.splitlines()[-1] if said else 'without a word'})"
    return f"the process that read it and ran it for the first time {why}"


def main() -> None:
    """Answer the question on standard input; runs in the bounded process."""
    from builder.export import inspect, run_once  # which imports this module

    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # nothing but the answer goes there
        question = json.load(sys.stdin)
        limits = Limits(time_s=question["time_s"], memory_mib=question["memory_mib"])
        _bound(limits)
        path, size = Path(question["path"]), question["input_size"] and tuple(question["input_size"])

        def run() -> dict[str, Any]:
            if not question.get("examine"):
                return {"outputs": run_once(inspect(path, size), _THREADS)}
            from builder.inspection import examine

            return examine(path, size, question["family"], question["names"], _THREADS).as_dict()

        json.dump(_answer(run), out)


def _answer(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return run()
    except MemoryError:
        return {"out_of_memory": "while reading"}
    except ExportError as error:
        if _OUT_OF_MEMORY.search(str(error)):
            return {"out_of_memory": first_line(error)}
        return {"refused": str(error)}


def _bound(limits: Limits) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    allowed = limits.memory_mib * _ONE_MIB
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_REAL, limits.time_s)  # ends it also when the builder is gone
    with contextlib.suppress(OSError):  # where the machine runs out of memory, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
