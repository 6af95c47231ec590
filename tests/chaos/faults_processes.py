"""Processes that are killed or stopped while requests go on."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from pipeline import contract
from repository.running import RunningServer
from repository.store import ModelRepository
from repository.versions import promote
from scenes.reference import fetch_reference
from tests.chaos.faults_record import PRECISION, Callers, Disturbance, Record
from tests.chaos.faults_service import Service, wait_for
from tests.versions import copy_version

# Triton waits for a replaced process until this time is over.
_OPTIONS: Final = (f"--precisions={PRECISION}", "--exit-timeout-s=2")
# What was in the process that died counts as under way for a while, so that others may be refused as too many.
UNHEALTHY: Final = r"^ServerError: .*Stub process .* is not healthy|^ServerBusyError: "
GONE: Final = r"^ServerUnavailableError: "
REPLACED: Final = "died; the model was loaded again"
READY_AGAIN: Final = "is ready again"
_QUICK_HANG: Final = """
import sys
import serving.watch
serving.watch.watch_over.__defaults__ = (3.0,)  # seconds; half a minute otherwise
from serving.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
_HANGING_MODEL: Final = """
import ctypes
from pathlib import Path
from steps.onnx_model import TritonPythonModel as Network

class TritonPythonModel(Network):
    def execute(self, requests):
        mark = Path({mark!r})
        if mark.exists():
            mark.unlink()
            ctypes.PyDLL(None).sleep(1000)
        return super().execute(requests)
"""
_CLIENT: Final = """
import sys
from client import SegmentationClient
with SegmentationClient(sys.argv[1], precision=sys.argv[2]) as client:
    print("sending", flush=True)
    while True:
        client.segment_batch([sys.argv[3]] * 8)
"""


def kill_admission(repository: Path) -> Record:
    """Kill one of the two processes that let requests in."""
    return _kill_stub(repository, contract.ADMISSION_MODEL)


def kill_preprocess(repository: Path) -> Record:
    """Kill one of the two processes that decode images."""
    return _kill_stub(repository, contract.PREPROCESS_MODEL)


def kill_network(repository: Path) -> Record:
    """Kill the process that runs the network."""
    return _kill_stub(repository, contract.network_model(PRECISION))


def kill_postprocess(repository: Path) -> Record:
    """Kill the process that makes masks."""
    return _kill_stub(repository, contract.POSTPROCESS_MODEL)


def stopped_process(repository: Path) -> Record:
    """Stop (SIGSTOP) the process that runs the network: it is there and does nothing."""
    model = contract.network_model(PRECISION)
    seen, broken = _without_process(repository, model, psutil.Process.suspend)
    return Record(
        fault=f"a process of {model} hangs (SIGSTOP)",
        lost=f"{seen.failed} requests that reached it before it was replaced",
        callers_see=f"INTERNAL, 'Stub process … is not healthy', within {seen.slowest_s:.1f} s",
        recovery="by itself: after 2 s it is killed and the model loaded again, the server stays up",
        seconds=seen.seconds,
        evidence=vars(seen),
        broken=broken,
    )


def hung_call(repository: Path) -> Record:
    """Have one call of the network never return, and hold Python's lock: no thread of the process goes on."""
    with tempfile.TemporaryDirectory() as folder:
        copy = ModelRepository(Path(shutil.copytree(repository, Path(folder) / "repository")))
        mark = Path(folder) / "hang"
        version = copy_version(copy, PRECISION, 1, {"model.py": _HANGING_MODEL.format(mark=str(mark))}).version
        promote(copy, PRECISION, version)
        with Service(copy.path, *_OPTIONS, program=("-c", _QUICK_HANG)) as service:
            seen = _disturb(service, repository, mark.touch, lambda: service.wait_said(REPLACED, 60))
    return Record(
        fault="a call of the network never returns, with hangs noticed after 3 s instead of 30 s",
        lost=f"{seen.failed} requests: the call's, and those that waited behind it",
        callers_see=f"INTERNAL, 'Stub process … is not healthy', within {seen.slowest_s:.1f} s; or their own deadline",
        recovery="by itself: the process is killed and the model loaded again, the server stays up",
        seconds=seen.seconds,
        evidence=vars(seen),
        broken=seen.broken(rf"{UNHEALTHY}|^RequestTimeoutError: ", 30),
    )


def kill_server(repository: Path) -> Record:
    """Kill tritonserver; its parent lives."""
    with Service(repository, *_OPTIONS) as service:
        before = service.server
        stubs = service.stubs()
        seen = _disturb(
            service,
            repository,
            lambda: os.kill(before.pid, signal.SIGKILL),
            lambda: service.wait_said(READY_AGAIN, 60),
        )
        after = service.server
    broken = seen.broken(GONE, 20)
    if _places(before) != _places(after):
        broken.append("it came back elsewhere, or with another secret")
    if any(stub.is_running() for stub in stubs):
        broken.append("processes of the old server are left")
    return Record(
        fault="tritonserver is killed (SIGKILL, as when memory runs out)",
        lost=f"the {seen.under_way} requests under way; {seen.later} were refused until it was back",
        callers_see="UNAVAILABLE, or a refused connection, at once",
        recovery="by itself: `serving run` starts it again on the same ports, with the same secret",
        seconds=seen.seconds,
        evidence=vars(seen),
        broken=broken,
    )


def hung_server(repository: Path) -> Record:
    """Stop (SIGSTOP) tritonserver: it holds its ports and answers nothing."""
    with Service(repository, *_OPTIONS, program=("-c", _QUICK_HANG)) as service:
        before = service.server
        seen = _disturb(
            service,
            repository,
            lambda: os.kill(before.pid, signal.SIGSTOP),
            lambda: service.wait_said(READY_AGAIN, 60),
        )
    return Record(
        fault="tritonserver hangs (SIGSTOP), with hangs noticed after 3 s instead of 30 s",
        lost=f"the {seen.under_way} requests under way, and {seen.later} until it was back",
        callers_see="their own deadline, or UNAVAILABLE when it is killed",
        recovery="by itself: it is killed and started again",
        seconds=seen.seconds,
        evidence=vars(seen),
        broken=seen.broken(rf"{GONE}|^RequestTimeoutError: ", 30),
    )


def kill_client(repository: Path) -> Record:
    """Kill a client that has full requests under way."""
    photograph = fetch_reference().photographs[0]
    with Service(repository, *_OPTIONS) as service:
        server = service.server
        client = subprocess.Popen(
            [sys.executable, "-c", _CLIENT, server.grpc, PRECISION, str(photograph)], stdout=subprocess.PIPE, text=True
        )
        if client.stdout is None or client.stdout.readline() != "sending\n":
            raise RuntimeError("the client did not start")

        def kill() -> None:
            time.sleep(0.5)
            client.kill()
            client.wait()

        seen = _disturb(service, repository, kill, lambda: None)
        idle_s = _seconds_until_idle(server)
        restarted = [line for line in service.lines if REPLACED in line]
    broken = seen.broken("^$", 0.0) + restarted
    return Record(
        fault="a client is killed (SIGKILL) with eight images under way",
        lost="its own request",
        callers_see="nothing" if not seen.failed else f"{seen.failed} failures",
        recovery=f"none needed: what it had sent was off the server's queues {idle_s:.1f} s after the others stopped",
        seconds=seen.seconds,
        evidence={**vars(seen), "seconds_until_idle": idle_s},
        broken=broken,
    )


def _kill_stub(repository: Path, model: str) -> Record:
    seen, broken = _without_process(repository, model, psutil.Process.kill)
    return Record(
        fault=f"a process of {model} is killed (SIGKILL)",
        lost=f"{seen.failed} requests: in it, or sent to it before it was replaced",
        callers_see=f"INTERNAL, 'Stub process … is not healthy', within {seen.slowest_s:.1f} s"
        if seen.failed
        else "nothing: another process took the requests",
        recovery="by itself: the model is loaded again, the server and its other processes stay up",
        seconds=seen.seconds,
        evidence=vars(seen),
        broken=broken,
    )


def _without_process(
    repository: Path, model: str, fault: Callable[[psutil.Process], object]
) -> tuple[Disturbance, list[str]]:
    """Do something to a process of a model; returns what callers noticed, and what was not as promised.

    Once in a few hundred times the process dies with a lock that it shares with tritonserver, which ends then and is
    started again (docs/reliability.md); that is :func:`kill_server`'s subject, so such a try is made once more.
    """
    for _ in range(2):
        with Service(repository, *_OPTIONS) as service:
            server, before = service.server.pid, service.stubs(model)
            seen = _disturb(
                service,
                repository,
                functools.partial(fault, before[0]),
                lambda: service.wait_said(rf"{REPLACED}|{READY_AGAIN}", 60),
            )
            if service.server.pid == server:
                _wait_for_processes(service, model, len(before))
                return seen, seen.broken(UNHEALTHY, 20)
    return seen, ["the server was restarted, twice in a row"]


def _wait_for_processes(service: Service, model: str, count: int) -> None:
    """Until a model has so many: those of a model that was replaced end when their requests are done."""
    wait_for(lambda: len(service.stubs(model)) == count, 20, f"{count} processes of {model}")


def _disturb(
    service: Service, repository: Path, fault: Callable[[], object], until: Callable[[], object]
) -> Disturbance:
    server = service.server
    with Callers({"grpc": server.grpc, "http": server.http}, repository) as callers:
        return callers.disturbed_by(fault, until)


def _places(server: RunningServer) -> tuple[str, ...]:
    return server.http, server.grpc, server.metrics, server.admin_secret


def _seconds_until_idle(server: RunningServer) -> float:
    """How long until no request waits in front of any model."""
    started = time.monotonic()

    def is_idle() -> bool:
        with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return all(
            float(line.rpartition(" ")[2]) == 0
            for line in lines
            if line.startswith("nv_inference_pending_request_count{")
        )

    wait_for(is_idle, 30, "the server to be idle")
    return time.monotonic() - started
