"""One more GPU architecture for a version: what is written, and in which order. The compile step is not the subject."""

import json

import pytest
from rich.console import Console

from base.files import sha256_of, write_atomically
from base.gpu import Gpu
from base.progress import Steps
from builder import add_plan as module
from builder.add_plan import add_plan
from builder.tensorrt.compile import CompiledPlan
from builder.tensorrt.layers import LayerCounts
from repository.errors import RepositoryError
from repository.flavor import Flavor
from repository.manifest import Manifest
from repository.store import ModelRepository

L4 = Gpu("NVIDIA L4", "8.9")
FLAVOR = Flavor("tensorrt", (10, 13, 0), json)  # any module: nothing is compiled here


@pytest.fixture
def repository(tmp_path):
    """A version of the tensorrt profile with a plan for another GPU."""
    repository = ModelRepository.open(tmp_path / "repository")
    folder = repository.model_folder("int8") / "1"
    folder.mkdir()
    for name, content in (("model.onnx", b"network"), ("model-sm90.plan", b"plan for sm90")):
        (folder / name).write_bytes(content)
    manifest = Manifest(
        tag="m-int8-trt10.13.0-sm90-00000000",
        model="network_int8",
        version=1,
        precision="int8",
        profile="tensorrt",
        created_utc="2026-01-01T00:00:00+00:00",
        build_key="k",
        source={},
        toolchain={},
        settings={},
        files={name: module.FileEntry.of(folder / name) for name in ("model.onnx", "model-sm90.plan")},
        plans={"model-sm90.plan": {"compute_capability": "9.0", "batches": [1, 4, 32]}},
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return repository


@pytest.fixture
def compiled(monkeypatch):
    """What was asked of the compile step."""
    asked = []

    def compile_plan(path, settings, flavor):
        asked.append((path.name, *settings.batches))
        counts = LayerCounts("strongly typed network", {}, {})
        return CompiledPlan(b"plan for sm89", counts, flavor.name, "10.13.0", settings.batches, False, ())

    monkeypatch.setattr(module, "compile_plan", compile_plan)
    return asked


def run(repository, gpu=L4):
    return add_plan(repository, "int8", 1, FLAVOR, gpu, Steps(Console(quiet=True)))


def test_the_plan_stands_beside_the_others(repository, compiled):
    folder = repository.model_folder("int8") / "1"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    manifest = run(repository)
    assert compiled == [("model.onnx", 1, 4, 32)]
    assert set(manifest.plans) == {"model-sm90.plan", "model-sm89.plan"}
    assert manifest.plans["model-sm89.plan"]["compute_capability"] == "8.9"
    assert manifest.plans["model-sm89.plan"]["gpu"] == "NVIDIA L4"
    assert Manifest.read(folder) == manifest
    assert (folder / "model-sm89.plan").read_bytes() == b"plan for sm89"
    for name, entry in manifest.files.items():
        assert sha256_of(folder / name) == entry.sha256
    assert all((folder / name).read_bytes() == content for name, content in before.items())


def test_a_plan_that_is_there_is_never_replaced(repository, compiled):
    with pytest.raises(RepositoryError, match=r"model-sm90\.plan already"):
        run(repository, Gpu("NVIDIA H100", "9.0"))
    assert compiled == []


def test_a_run_that_was_cut_short_is_finished_by_the_next(repository, compiled, monkeypatch):
    def cut_short(path, data, mode):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write_atomically(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", cut_short)
        with pytest.raises(KeyboardInterrupt):
            run(repository)
    assert "model-sm89.plan" not in Manifest.read(repository.model_folder("int8") / "1").plans
    assert "model-sm89.plan" in run(repository).plans


def test_a_version_of_another_profile_is_refused(repository, compiled):
    path = repository.model_folder("int8") / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"profile": "tensorrt"', '"profile": "cpu"'))
    with pytest.raises(RepositoryError, match="--profile tensorrt"):
        run(repository)
