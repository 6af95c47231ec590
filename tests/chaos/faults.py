"""Faults, one after the other, against the real server: what is lost, what callers see, how it recovers.

``python -m tests.chaos.faults``
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import contract
from tests.chaos import faults_files, faults_processes, part
from tests.chaos.callers import PRECISION, Tried

_NOT_HEALTHY: Final = "INTERNAL, 'Stub process … is not healthy', within {slowest_s:.1f} s"
_GONE: Final = "UNAVAILABLE, or a refused connection, at once"
_SERVER_READS_ONLY: Final = "nothing: the server only reads the repository"
_AS_BEFORE: Final = "nothing: versions, configurations and the log of promotions are as before"


@dataclass(frozen=True)
class Fault:
    """One fault: a row of the table in docs/reliability.md, filled in with what was measured."""

    fault: str  # what is done
    lost: str  # which requests or data
    callers_see: str  # what callers see, and how soon
    recovery: str  # how it goes on, and whether a person is needed
    # Tries it, given a built model repository, of which it serves a copy or changes nothing
    attempt: Callable[[Path], Tried]
    if_none_failed: str | None = None  # what callers see if no request failed

    def record(self, repository: Path) -> dict[str, Any]:
        """Try it; returns the row, the seconds until every request was answered again, evidence and what was broken."""
        tried = self.attempt(repository)
        callers_see = self.callers_see if tried.evidence.get("failed") else self.if_none_failed or self.callers_see
        texts = {"fault": self.fault, "lost": self.lost, "callers_see": callers_see, "recovery": self.recovery}
        return {name: text.format(**tried.evidence) for name, text in texts.items()} | vars(tried)


def _killed(model: str) -> Fault:
    return Fault(
        f"a process of {model} is killed (SIGKILL)",
        "{failed} requests: in it, or sent to it before it was replaced",
        _NOT_HEALTHY,
        "by itself: the model is loaded again, the server and its other processes stay up",
        functools.partial(faults_processes.kill_stub, model),
        if_none_failed="nothing: another process took the requests",
    )


def _damaged(fault: str, attempt: Callable[[Path], Tried]) -> Fault:
    return Fault(
        fault,
        "nothing",
        "nothing: the version that is served goes on answering",
        "needs a person: promote, verify and a new start refuse it, name the file and what to do",
        attempt,
    )


FAULTS: Final[dict[str, Fault]] = {
    "kill_admission": _killed(contract.ADMISSION_MODEL),
    "kill_preprocess": _killed(contract.PREPROCESS_MODEL),
    "kill_network": _killed(contract.network_model(PRECISION)),
    "kill_postprocess": _killed(contract.POSTPROCESS_MODEL),
    "stopped_process": Fault(
        f"a process of {contract.network_model(PRECISION)} hangs (SIGSTOP)",
        "{failed} requests that reached it before it was replaced",
        _NOT_HEALTHY,
        "by itself: after 2 s it is killed and the model loaded again, the server stays up",
        faults_processes.stopped_process,
    ),
    "hung_call": Fault(
        "a call of the network never returns, with hangs noticed after 3 s instead of 30 s",
        "{failed} requests: the call's, and those that waited behind it",
        f"{_NOT_HEALTHY}; or their own deadline",
        "by itself: the process is killed and the model loaded again, the server stays up",
        faults_processes.hung_call,
    ),
    "kill_server": Fault(
        "tritonserver is killed (SIGKILL, as when memory runs out)",
        "the {under_way} requests under way; {later} were refused until it was back",
        _GONE,
        "by itself: `serving run` starts it again on the same ports, with the same secret",
        faults_processes.kill_server,
    ),
    "hung_server": Fault(
        "tritonserver hangs (SIGSTOP), with hangs noticed after 3 s instead of 30 s",
        "the {under_way} requests under way, and {later} until it was back",
        "their own deadline, or UNAVAILABLE when it is killed",
        "by itself: it is killed and started again",
        faults_processes.hung_server,
    ),
    "kill_client": Fault(
        "a client is killed (SIGKILL) with eight images under way",
        "its own request",
        "{failed} failures",
        "none needed: what it had sent was off the server's queues {seconds_until_idle:.1f} s after the others stopped",
        faults_processes.kill_client,
        if_none_failed="nothing",
    ),
    "full_disk": Fault(
        "the disk is full during build and promote",
        _AS_BEFORE,
        _SERVER_READS_ONLY,
        "needs a person: the command ends with 'No space left on device'; repeated with room, it works",
        functools.partial(faults_files.on_a_disk, "full", "No space left on device"),
    ),
    "read_only_repository": Fault(
        "the repository is read-only during build and promote",
        _AS_BEFORE,
        _SERVER_READS_ONLY,
        "needs a person: the command ends with 'Read-only file system'; repeated with room, it works",
        functools.partial(faults_files.on_a_disk, "read-only", "Read-only file system"),
    ),
    "corrupt_network": _damaged("one byte of model.onnx is wrong", faults_files.corrupt_network),
    "corrupt_plan": _damaged("one byte of a TensorRT plan is wrong", faults_files.corrupt_plan),
    "corrupt_manifest": _damaged("manifest.json is cut short", faults_files.corrupt_manifest),
    "corrupt_config": _damaged("a model's config.pbtxt is unreadable", faults_files.corrupt_config),
    "corrupt_then_dead": Fault(
        "model.onnx is damaged and the server dies",
        "the requests under way",
        _GONE,
        "needs a person: `serving run` gives up after its restarts and quotes the log, which names the file",
        faults_files.corrupt_then_dead,
    ),
    "shared_memory_full": Fault(
        "shared memory (/dev/shm) is full",
        "the requests that need more of it; others are answered",
        "INTERNAL at once: 'Failed to increase the shared memory pool size', and which option helps",
        "by itself as soon as there is room; to answer such requests at all, give the container more shm_size",
        faults_files.shared_memory_full,
    ),
    "missing_library": Fault(
        "a library that OpenCV needs is missing when the server is started again",
        "the requests under way",
        _GONE,
        "needs a person: `serving run` gives up after its restarts; its log names the library",
        faults_files.missing_library,
    ),
}


def run(repository: Path, out: Path) -> dict[str, Any]:
    """Try every fault; returns a record of each, and ``faults``: what was not as promised."""
    records = [{"name": name, **fault.record(repository)} for name, fault in FAULTS.items()]
    broken = [f"{record['name']}: {text}" for record in records for text in record["broken"]]
    _show(records)
    return part.keep(out, "faults", {"records": records, "faults": broken})


def _show(records: Sequence[dict[str, Any]]) -> None:
    table = Table(title="faults", show_lines=True)
    for name in ("fault", "lost", "callers see", "recovery"):
        table.add_column(name, overflow="fold")
    table.add_column("s", justify="right", no_wrap=True)
    for record in records:
        texts = (record["fault"], record["lost"], record["callers_see"], record["recovery"])
        table.add_row(*map(escape, texts), "" if record["seconds"] is None else f"{record['seconds']:.1f}")
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)


if __name__ == "__main__":
    sys.exit(part.command("faults", run))
