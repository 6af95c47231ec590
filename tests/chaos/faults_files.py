"""Files that are damaged, a disk that is full, a repository that cannot be written to."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
from onnx import numpy_helper

from base.errors import OperatorError
from builder.__main__ import main as builder
from client import SegmentationClient
from pipeline import contract
from repository.integrity import verify
from repository.store import ModelRepository
from repository.versions import promote
from scenes.reference import fetch_reference
from serving.preflight import check
from serving.server import ServerOptions, TritonServer
from tests.chaos.expected import fingerprint
from tests.chaos.faults_record import PRECISION, Record
from tests.chaos.faults_service import IN_OWN_MOUNTS, Service
from tests.exports import segmentation_export
from tests.versions import H100_PLAN, add_version, copy_version, rewrite

MODEL: Final = contract.network_model(PRECISION)


@dataclass
class Told:
    """What the tools say of a damaged repository, and whether the server went on.

    Attributes:
        promote: the refusal of a promotion; None if there was none.
        verify: the first fault that the check of the repository finds.
        start: why a server would not be started; None if it would.
        answers_as_before: whether the server that was running did.
    """

    promote: str | None
    verify: str | None
    start: str | None
    answers_as_before: bool


def corrupt_network(repository: Path) -> Record:
    """Change one byte of the next version's ``model.onnx``, then of the served one's."""
    with _served(repository) as (copy, server):
        second = copy_version(copy, PRECISION, 1, {}).version
        _flip(copy.model_folder(PRECISION) / str(second) / "model.onnx")
        told = _tell(copy, server, second)
        _flip(copy.model_folder(PRECISION) / "1" / "model.onnx")
        told.start = _tell(copy, server, second).start
    return _record("one byte of model.onnx is wrong", told, "another SHA-256 than manifest.json says", start=True)


def corrupt_plan(repository: Path) -> Record:
    """Change one byte of a TensorRT plan."""
    with _served(repository) as (copy, server):
        second = add_version(copy, PRECISION, plans={"model.plan": dict(H100_PLAN)}).version
        copy.promote(PRECISION, "tensorrt", second)  # another profile's configuration than the one that is served
        _flip(copy.model_folder(PRECISION) / str(second) / "model.plan")
        told = _tell(copy, server, second, "tensorrt")
    return _record("one byte of a TensorRT plan is wrong", told, "model.plan has another SHA-256", start=True)


def corrupt_manifest(repository: Path) -> Record:
    """Cut the manifests of the next version and of the served one short."""
    with _served(repository) as (copy, server):
        second = copy_version(copy, PRECISION, 1, {}).version
        for version in (second, 1):
            path = copy.model_folder(PRECISION) / str(version) / "manifest.json"
            rewrite(path, path.read_bytes()[:-100])
        told = _tell(copy, server, second)
    return _record("manifest.json is cut short", told, "not a readable manifest", start=True)


def corrupt_config(repository: Path) -> Record:
    """Make a model's configuration unreadable."""
    with _served(repository) as (copy, server):
        second = copy_version(copy, PRECISION, 1, {}).version
        rewrite(copy.config_path(PRECISION, "cpu"), b'name: "network_int8" max_batch_size: [')
        told = _tell(copy, server, second)
    return _record("a model's config.pbtxt is unreadable", told, "not a model configuration", start=True)


def corrupt_then_dead(repository: Path) -> Record:
    """Damage the served ``model.onnx``, then kill the server: it cannot come back by itself."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(repository, Path(folder) / "repository"))
        with Service(copy, f"--precisions={PRECISION}", "--restarts=1") as service:
            path = copy / MODEL / "1" / "model.onnx"
            rewrite(path, path.read_bytes()[: path.stat().st_size // 2])
            subprocess.run(["kill", "-9", str(service.server.pid)], check=True)
            status = service.process.wait(60)
            said = service.wait_said("giving up", 5)
            quoted = [line for line in service.lines[service.lines.index(said) :] if "model.onnx" in line]
    broken = [] if status == 1 and said.startswith("error: ") and quoted else [f"status {status}: {service.tail()}"]
    return Record(
        fault="model.onnx is damaged and the server dies",
        lost="the requests under way",
        callers_see="UNAVAILABLE, or a refused connection, at once",
        recovery="needs a person: `serving run` gives up after its restarts and quotes the log, which names the file",
        seconds=None,
        evidence={"status": status, "said": said, "quoted": quoted[:2]},
        broken=broken,
    )


def full_disk(repository: Path) -> Record:
    """Build and promote on a disk with no room, or too little."""
    del repository  # one of small versions serves better
    tried = _on_a_disk("full")
    return _disk_record("the disk is full during build and promote", tried, "No space left on device")


def read_only_repository(repository: Path) -> Record:
    """Build and promote in a read-only repository."""
    del repository
    tried = _on_a_disk("read-only")
    return _disk_record("the repository is read-only during build and promote", tried, "Read-only file system")


@contextlib.contextmanager
def _served(repository: Path) -> Iterator[tuple[ModelRepository, TritonServer]]:
    """A copy, and a server of its version 1."""
    with tempfile.TemporaryDirectory() as folder:
        copy = ModelRepository(Path(shutil.copytree(repository, Path(folder) / "repository")))
        options = ServerOptions(copy.path, precisions=(PRECISION,), http_port=0, grpc_port=0, metrics_port=0)
        with TritonServer(options) as server:
            yield copy, server


def _answer(server: TritonServer) -> str:
    with SegmentationClient(server.grpc_url, precision=PRECISION) as client:
        return fingerprint(client.segment(fetch_reference().photographs[0]))


def _tell(repository: ModelRepository, server: TritonServer, version: int, profile: str = "cpu") -> Told:
    before = _answer(server)
    refusals: list[str | None] = []
    attempts: tuple[Callable[[], object], ...] = (
        lambda: promote(repository, PRECISION, version, profile),
        lambda: check(repository, profile, (PRECISION,)),
    )
    for attempt in attempts:
        try:
            attempt()
            refusals.append(None)
        except OperatorError as error:
            refusals.append(str(error))
    faults = [str(fault) for fault in verify(repository, PRECISION).faults]
    return Told(refusals[0], faults[0] if faults else None, refusals[1], _answer(server) == before)


def _record(fault: str, told: Told, pattern: str, *, start: bool) -> Record:
    broken = [
        f"{name}: {text!r} does not say {pattern!r}"
        for name, text in (
            ("promote", told.promote),
            ("verify", told.verify),
            *([("start", told.start)] if start else []),
        )
        if not re.search(pattern, text or "")
    ]
    if not told.answers_as_before:
        broken.append("the server answers otherwise than before")
    return Record(
        fault=fault,
        lost="nothing",
        callers_see="nothing: the version that is served goes on answering",
        recovery="needs a person: promote, verify and a new start refuse it, name the file and what to do",
        seconds=None,
        evidence=vars(told),
        broken=broken,
    )


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


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


def _disk_record(fault: str, tried: Sequence[dict[str, Any]], pattern: str) -> Record:
    failed = [one for one in tried if one["status"] != 0]
    errors = sorted({line for one in failed for line in one["error"].splitlines() if line.startswith("error:")})
    broken = []
    for one in tried:
        name = f"{one['command']} with {one.get('pages', 'no')} pages of room"
        if one.get("mended") and one["status"] != 0:
            broken.append(f"{one['command']} fails with room again: {one['error']}")
        elif one["status"] != 0 and (one["status"] != 1 or not re.search(pattern, one["error"])):
            broken.append(f"{name} ends with {one['status']}: {one['error'][-300:]}")
        if one["status"] != 0 and one["changed"]:
            broken.append(f"{name} failed and changed {one['changed']}")
        if one["faults"]:
            broken.append(f"{name} left faults: {one['faults']}")
        if one.get("mended") and one["leftovers"]:
            broken.append(f"{name} left {one['leftovers']} half-written files")
    if {one["command"] for one in failed} != {"build", "promote"}:
        broken.append("not both of build and promote failed: it was no fault")
    return Record(
        fault=fault,
        lost="nothing: versions, configurations and the log of promotions are as before",
        callers_see="nothing: the server only reads the repository",
        recovery=f"needs a person: the command ends with '{pattern}'; repeated with room, it works",
        seconds=None,
        evidence={"tried": len(tried), "failed": len(failed), "errors": errors},
        broken=broken,
    )
