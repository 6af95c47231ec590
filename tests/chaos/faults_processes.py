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
from collections.abc import Callable
from pathlib import Path
from typing import Final
from unittest import mock

import psutil

from load.metrics import samples, scrape
from pipeline import contract
from repository.running import RunningServer
from repository.store import ModelRepository
from scenes.reference import fetch_reference
from tests.chaos.callers import PRECISION, Callers, Disturbance, Tried
from tests.chaos.faults_service import Service, wait_for
from tests.versions import copy_version, promote_one

# Triton waits for a replaced process until this time is over.
_OPTIONS: Final = (f"--precisions={PRECISION}", "--exit-timeout-s=2")
# What was in the process that died counts as under way for a while, so that others may be refused as too many.
UNHEALTHY: Final = r"^ServerError: .*Stub process .* is not healthy|^ServerBusyError: "
GONE: Final = r"^ServerUnavailableError: "
REPLACED: Final = "died; the model was loaded again"
READY_AGAIN: Final = "is ready again"
_WAITING: Final = "nv_inference_pending_request_count"
_QUICK_HANG: Final = """
import sys
import repository.integrity
import serving.watch
repository.integrity.is_shim = lambda path: True  # this model hangs
serving.watch.HANG_S = 3.0  # seconds; half a minute otherwise
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


def kill_stub(model: str, repository: Path) -> Tried:
    """Kill a process of a model."""
    return _without_process(repository, model, psutil.Process.kill)


def stopped_process(repository: Path) -> Tried:
    """Stop (SIGSTOP) the process that runs the network: it runs, and does nothing."""
    return _without_process(repository, contract.network_model(PRECISION), psutil.Process.suspend)


def hung_call(repository: Path) -> Tried:
    """Have one call of the network never return, and hold Python's lock: no thread of the process goes on."""
    with tempfile.TemporaryDirectory() as folder:
        copy = ModelRepository(Path(shutil.copytree(repository, Path(folder) / "repository")))
        mark = Path(folder) / "hang"
        version = copy_version(copy, PRECISION, 1, {"model.py": _HANGING_MODEL.format(mark=str(mark))}).version
        with mock.patch("repository.integrity.is_shim", return_value=True):
            promote_one(copy, PRECISION, version)
        with Service(copy.path, *_OPTIONS, program=("-c", _QUICK_HANG)) as service:
            seen = _disturb(service, repository, mark.touch, lambda: service.wait_said(REPLACED, 60))
    return seen.tried(rf"{UNHEALTHY}|^RequestTimeoutError: ", 30)


def kill_server(repository: Path) -> Tried:
    """Kill tritonserver; its parent lives."""
    with Service(repository, *_OPTIONS) as service:
        before = service.server
        stubs = service.stubs()
        seen = _disturb(service, repository, lambda: os.kill(before.pid, signal.SIGKILL), _until_ready_again(service))
        after = service.server
    broken = []
    if any(getattr(before, name) != getattr(after, name) for name in ("http", "grpc", "metrics", "admin_secret")):
        broken.append("it came back elsewhere, or with another secret")
    if any(stub.is_running() for stub in stubs):
        broken.append("processes of the old server are left")
    return seen.tried(GONE, 20, *broken)


def hung_server(repository: Path) -> Tried:
    """Stop (SIGSTOP) tritonserver: it holds its ports and answers nothing."""
    with Service(repository, *_OPTIONS, program=("-c", _QUICK_HANG)) as service:
        pid = service.server.pid
        seen = _disturb(service, repository, lambda: os.kill(pid, signal.SIGSTOP), _until_ready_again(service))
    return seen.tried(rf"{GONE}|^RequestTimeoutError: ", 30)


def kill_client(repository: Path) -> Tried:
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
    return seen.tried("^$", 0.0, *restarted, seconds_until_idle=idle_s)


def _without_process(repository: Path, model: str, fault: Callable[[psutil.Process], object]) -> Tried:
    """Do something to a process of a model.

    Once in a few hundred times the process dies with a lock that it shares with tritonserver, which then ends and is
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
                return seen.tried(UNHEALTHY, 20)
    return seen.tried(UNHEALTHY, 20, "the server was restarted, twice in a row")


def _wait_for_processes(service: Service, model: str, count: int) -> None:
    """Until a model has so many: those of a model that was replaced end when their requests are done."""
    wait_for(lambda: len(service.stubs(model)) == count, 20, f"{count} processes of {model}")


def _disturb(
    service: Service, repository: Path, fault: Callable[[], object], until: Callable[[], object]
) -> Disturbance:
    server = service.server
    with Callers({"grpc": server.grpc, "http": server.http}, repository) as callers:
        return callers.disturbed_by(fault, until)


def _until_ready_again(service: Service) -> Callable[[], object]:
    return lambda: service.wait_said(READY_AGAIN, 60)


def _seconds_until_idle(server: RunningServer) -> float:
    """How long until no request waits in front of any model."""
    started = time.monotonic()

    def is_idle() -> bool:
        waiting = [value for name, _, value in samples(scrape(server.metrics)) if name == _WAITING]
        return not any(waiting)

    wait_for(is_idle, 30, "the server to be idle")
    return time.monotonic() - started
