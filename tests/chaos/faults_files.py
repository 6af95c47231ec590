"""Damaged files, a full disk, a read-only repository, no shared memory, a missing library."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
from onnx import numpy_helper

from base.errors import OperatorError
from builder.__main__ import main as builder
from client import RetryPolicy, SegmentationClient
from client.errors import SegmentationError
from repository.integrity import verify
from repository.store import ModelRepository
from scenes.reference import fetch_reference
from serving.preflight import check
from serving.server import ServerOptions, TritonServer
from tests.chaos.callers import LONGEST_S, PRECISION, Tried, without_names
from tests.chaos.expected import fingerprint
from tests.chaos.faults_service import IN_OWN_MOUNTS, Service, into_mounts
from tests.exports import segmentation_export
from tests.versions import H100_PLAN, add_version, copy_version, promote_one, rewrite

_SHARED_MEMORY: Final = 'mount -t tmpfs -o size=192m tmpfs /dev/shm; exec "$@"'
_NO_SHARED_MEMORY: Final = r"^ServerError: .*Failed to increase the shared memory pool size"
_MISSING: Final = r"lib\S+: cannot open shared object file: No such file or directory"


def corrupt_network(repository: Path) -> Tried:
    """Change one byte of the next version's ``model.onnx``, then of the served one's."""
    with _served(repository) as (copy, server):
        second = copy_version(copy, PRECISION, 1, {}).version
        _flip(copy.model_folder(PRECISION) / str(second) / "model.onnx")
        refusals = _refusals(copy, server, second)
        _flip(copy.model_folder(PRECISION) / "1" / "model.onnx")
        refusals["start"] = _refusals(copy, server, second)["start"]
    return _refused(refusals, "another SHA-256 than manifest.json says")


def corrupt_plan(repository: Path) -> Tried:
    """Change one byte of a TensorRT plan."""
    with _served(repository) as (copy, server):
        second = add_version(copy, PRECISION, plans={"model.plan": dict(H100_PLAN)}).version
        copy.promote(PRECISION, "tensorrt", second)  # another profile's configuration than the one that is served
        _flip(copy.model_folder(PRECISION) / str(second) / "model.plan")
        refusals = _refusals(copy, server, second, "tensorrt")
    return _refused(refusals, "model.plan has another SHA-256")


def corrupt_manifest(repository: Path) -> Tried:
    """Cut the manifests of the next version and of the served one short."""
    with _served(repository) as (copy, server):
        second = copy_version(copy, PRECISION, 1, {}).version
        for version in (second, 1):
            path = copy.model_folder(PRECISION) / str(version) / "manifest.json"
            rewrite(path, path.read_bytes()[:-100])
        refusals = _refusals(copy, server, second)
    return _refused(refusals, "not a readable manifest")


def corrupt_config(repository: Path) -> Tried:
    """Make a model's configuration unreadable."""
    with _served(repository) as (copy, server):
        second = copy_version(copy, PRECISION, 1, {}).version
        rewrite(copy.config_path(PRECISION, "cpu"), b'name: "network_int8" max_batch_size: [')
        refusals = _refusals(copy, server, second)
    return _refused(refusals, "not a model configuration")


@contextlib.contextmanager
def _served(repository: Path) -> Iterator[tuple[ModelRepository, TritonServer]]:
    """A copy, and a server of its version 1."""
    with tempfile.TemporaryDirectory() as folder:
        copy = ModelRepository(Path(shutil.copytree(repository, Path(folder) / "repository")))
        options = ServerOptions(copy.path, precisions=(PRECISION,))
        with TritonServer(options) as server:
            yield copy, server


def _answer(server: TritonServer) -> str:
    with SegmentationClient(server.grpc_url, precision=PRECISION) as client:
        return fingerprint(client.segment(fetch_reference().photographs[0]))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


def _refusals(repository: ModelRepository, server: TritonServer, version: int, profile: str = "cpu") -> dict[str, Any]:
    """What promotion, verification and a start of another server say, and whether the running one answers as before."""
    before = _answer(server)
    attempts: dict[str, Callable[[], object]] = {
        "promote": lambda: promote_one(repository, PRECISION, version, profile),
        "start": lambda: check(repository, profile, (PRECISION,)),
    }
    refusals: dict[str, Any] = {"verify": "".join(map(str, verify(repository, PRECISION).faults[:1]))}
    for name, attempt in attempts.items():
        try:
            attempt()
            refusals[name] = ""
        except OperatorError as error:
            refusals[name] = str(error)
    return refusals | {"answers_as_before": _answer(server) == before}


def _refused(refusals: dict[str, Any], pattern: str) -> Tried:
    broken = [
        f"{name}: {refusals[name]!r} does not say {pattern!r}"
        for name in ("promote", "verify", "start")
        if not re.search(pattern, refusals[name])
    ]
    broken += [] if refusals["answers_as_before"] else ["the server answers otherwise than before"]
    return Tried(None, refusals, broken)


def corrupt_then_dead(repository: Path) -> Tried:
    """Damage the served ``model.onnx``, then kill the server: it cannot come back by itself."""
    with tempfile.TemporaryDirectory() as folder:
        copy = ModelRepository(Path(shutil.copytree(repository, Path(folder) / "repository")))
        with Service(copy.path, f"--precisions={PRECISION}", "--restarts=1") as service:
            path = copy.model_folder(PRECISION) / "1" / "model.onnx"
            rewrite(path, path.read_bytes()[: path.stat().st_size // 2])
            return _given_up(service, service.server.pid, "model.onnx")


def missing_library(repository: Path) -> Tried:
    """Take away the shared libraries that OpenCV needs, then kill the server: it cannot come back."""
    libraries = Path(cv2.__file__).parent.parent / "opencv_python_headless.libs"
    if not libraries.is_dir():
        raise RuntimeError(f"{libraries}: missing; this OpenCV has its libraries elsewhere")
    options = (f"--precisions={PRECISION}", "--restarts=1", "--exit-timeout-s=2")
    with Service(repository, *options, wrap=IN_OWN_MOUNTS) as service:
        pid = service.server.pid
        # An empty folder over theirs, which only this server sees.
        subprocess.run([*into_mounts(pid), "mount", "-t", "tmpfs", "tmpfs", str(libraries)], check=True)
        tried = _given_up(service, pid, _MISSING)
    with Service(repository, f"--precisions={PRECISION}"):
        return tried  # with the libraries in their place, it starts


def _given_up(service: Service, pid: int, pattern: str) -> Tried:
    """Kill a server that cannot start again: the service must give up and quote the line of the log that says why."""
    os.kill(pid, signal.SIGKILL)
    status = service.process.wait(60)
    said = service.wait_said("giving up", 5)
    quoted = [line for line in service.lines[service.lines.index(said) :] if re.search(pattern, line)]
    right = status == 1 and said.startswith("error: ") and quoted
    evidence = {"status": status, "said": said, "quoted": quoted[:2]}
    return Tried(None, evidence, [] if right else [f"status {status}: {service.tail()}"])


def shared_memory_full(repository: Path) -> Tried:
    """Fill the server's shared memory from outside, ask for more than is left, then empty it again."""
    wrap = (*IN_OWN_MOUNTS, "sh", "-euc", _SHARED_MEMORY, "sh")
    with Service(repository, f"--precisions={PRECISION}", wrap=wrap) as service:
        server = service.server
        filler = Path(f"/proc/{server.pid}/root/dev/shm/filler")
        small = fetch_reference().photographs[0].read_bytes()
        noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
        large = cv2.imencode(".bmp", noise)[1].tobytes()  # 18 MB: more than any request before it
        with SegmentationClient(server.grpc, "grpc", PRECISION, LONGEST_S, RetryPolicy(retries=0)) as client:
            # Each process's share grows with its first request.
            before = [fingerprint(client.segment(small)) for _ in range(8)][-1]
            with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(1 << 16))
            refusals = [_refusal(client, [large]), _refusal(client, [small] * 8)]
            others = [_refusal(client, [small]) for _ in range(4)]
            filler.unlink()
            after = fingerprint(client.segment(small))
            with_room = [_refusal(client, [large]), _refusal(client, [small] * 8)]
        same = service.server.pid == server.pid and not [line for line in service.lines if "died" in line]
    broken = [f"not refused as it should be: {text}" for text in refusals if not re.search(_NO_SHARED_MEMORY, text)]
    broken += [f"refused with room again: {text}" for text in with_room if text]
    broken += [f"a small request was refused: {text}" for text in others if text]
    broken += [] if before == after else ["another answer than before"]
    broken += [] if same else ["a process was restarted"]
    return Tried(0.0, {"refusals": refusals}, broken)


def _refusal(client: SegmentationClient, images: list[bytes]) -> str:
    try:
        client.segment_batch(images)
    except SegmentationError as error:
        return f"{type(error).__name__}: {without_names(str(error))}"
    return ""


def on_a_disk(mode: str, pattern: str, repository: Path) -> Tried:
    """Build and promote on a disk that is ``full`` (with no room or too little), or ``read-only``."""
    del repository
    tried = _on_a_disk(mode)
    failed = [one for one in tried if one["status"] != 0]
    errors = sorted({line for one in failed for line in one["error"].splitlines() if line.startswith("error:")})
    broken = []
    for one in tried:
        name = f"{one['command']} with {one.get('pages', 'no')} pages of room"
        if one.get("fixed") and one["status"] != 0:
            broken.append(f"{one['command']} fails with room again: {one['error']}")
        elif one["status"] != 0 and (one["status"] != 1 or not re.search(pattern, one["error"])):
            broken.append(f"{name} ends with {one['status']}: {one['error'][-300:]}")
        if one["status"] != 0 and one["changed"]:
            broken.append(f"{name} failed and changed {one['changed']}")
        if one["faults"]:
            broken.append(f"{name} left faults: {one['faults']}")
        if one.get("fixed") and one["leftovers"]:
            broken.append(f"{name} left {one['leftovers']} half-written files")
    if {one["command"] for one in failed} != {"build", "promote"}:
        broken.append("not both of build and promote failed: it was no fault")
    return Tried(None, {"tried": len(tried), "failed": len(failed), "errors": errors}, broken)


def _on_a_disk(mode: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as text, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(text)
        (folder / "images").mkdir()
        (folder / "disk").mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / "0.png"), pixels)
        exports = [_export(folder / f"{number}.onnx", factor) for number, factor in enumerate((1.0, 0.5, 0.25))]
        for export in exports[:2]:
            _build_quietly(folder / "repository", export, folder / "images")
        arguments = [mode, folder / "repository", exports[2], folder / "images", folder / "disk"]
        result = subprocess.run(
            [*IN_OWN_MOUNTS, sys.executable, "-m", "tests.chaos.faults_disk", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    if result.returncode:
        raise RuntimeError(f"the disk could not be tried: {result.stderr}")
    return list(json.loads(result.stdout.splitlines()[-1]))


def _export(path: Path, factor: float) -> Path:
    """A small network; another factor makes another one."""
    model = onnx.load(segmentation_export(path))
    weight = next(entry for entry in model.graph.initializer if entry.name == "head8.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    onnx.save(model, path)
    return path


def _build_quietly(repository: Path, export: Path, images: Path) -> None:
    options = ["--onnx", str(export), "--verify-images", str(images), "--precisions", "fp32"]
    with contextlib.redirect_stdout(io.StringIO()):
        status = builder(["build", "--profile", "cpu", *options, "--repository", str(repository)])
    if status:
        raise RuntimeError("the repository to try with could not be built")
