"""When the steps around a TensorRT plan run on the GPU, and what is served then."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from repository.store import SHIPPED_REPOSITORY, ModelRepository, read_config
from serving import gpu_steps
from serving import server as server_module
from serving.gpu_steps import obstacle, pool_options, put_on_gpu
from serving.server import ServerOptions, TritonServer
from serving.tritonserver import Installation

TRITON = Installation(Path("/s"), Path("/b"), (), "2.60.0")


@pytest.fixture
def repository(tmp_path):
    target = tmp_path / "repository"
    shutil.copytree(SHIPPED_REPOSITORY, target, ignore=shutil.ignore_patterns("[0-9]*", ".lock"))
    return ModelRepository.open(target)


@pytest.fixture
def probed(monkeypatch):
    """Ends of the probe, in turn; the calls are returned."""
    calls, ends = [], []

    def run(command, **options):
        calls.append((command, options))
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return SimpleNamespace(returncode=end[0], stdout=end[1], stderr=end[2])

    monkeypatch.setattr(gpu_steps.subprocess, "run", run)
    return calls, ends


def with_parameter(repository, text):
    path = repository.path / "preprocess" / "config.pbtxt"
    path.write_text(path.read_text().replace('"area"', '"bilinear"') if text == "bilinear" else path.read_text() + text)


@pytest.mark.parametrize("step", gpu_steps.STEPS)
def test_only_where_and_how_many_at_a_time_differs(repository, step):
    before = read_config(repository.shared_config(step))
    config = read_config(repository.shared_config(step))
    put_on_gpu(config)
    assert config.max_batch_size == 32 and config.HasField("dynamic_batching")
    assert {group.Kind.Name(group.kind) for group in config.instance_group} == {"KIND_GPU"}
    added = {name: value.string_value for name, value in config.parameters.items() if name not in before.parameters}
    assert added == {"device": "gpu", "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
    assert (config.input, config.output) == (before.input, before.output)
    assert all(config.parameters[name] == value for name, value in before.parameters.items())


def test_without_cupy_it_says_so_and_where_to_read(repository, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ModuleNotFoundError(\"No module named 'cupy'\")")
    reason = obstacle(repository, None, {**os.environ, "PYTHONPATH": str(tmp_path)})
    assert reason == "ModuleNotFoundError: No module named 'cupy' (docs/deployment.md says what to install)"


def test_the_probe_decides(repository, probed):
    calls, ends = probed
    ends += [(0, "NVIDIA H100\n", "noise"), (1, "noise\nCudaError: no device\n", ""), (-11, "", "")]
    ends += [subprocess.TimeoutExpired("probe", 120)]
    assert obstacle(repository, None, {"PATH": "/here"}) is None
    assert "CudaError: no device (" in obstacle(repository, "area", {})
    assert "status -11 (" in obstacle(repository, None, {})
    assert obstacle(repository, None, {}) == "opening the GPU took more than 120 s"
    (_, *command), options = calls[0]
    assert (command, options["env"]) == (["-m", "steps.gpu"], {"PATH": "/here"})


def test_what_the_kernels_cannot_do_stays_on_the_processor(repository, probed):
    calls, ends = probed
    assert "resample 'bilinear'" in obstacle(repository, "bilinear", {})
    with_parameter(repository, "bilinear")
    assert "resample 'bilinear'" in obstacle(repository, None, {})
    ends.append((0, "", ""))
    assert obstacle(repository, "area", {}) is None  # overruled
    assert len(calls) == 1


def test_every_gpu_gets_a_pool_by_its_size(monkeypatch):
    monkeypatch.setattr(gpu_steps, "query_gpus", lambda field: [["81920 MiB"], ["16384 MiB"], ["[N/A]"]])
    assert pool_options() == [
        f"--cuda-memory-pool-byte-size=0:{5 << 30}",
        f"--cuda-memory-pool-byte-size=1:{1 << 30}",
    ]


def test_the_server_is_started_accordingly(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "query_gpus", lambda field: [["81920 MiB"]])
    reasons, lines = [None, "no CuPy"], []
    monkeypatch.setattr(server_module, "obstacle", lambda *_: reasons.pop(0))
    server = TritonServer(ServerOptions(repository.path, "tensorrt", postprocess_instances=7), lines.append)
    assert server._can_put_steps_on_gpu(repository, {})
    server._steps_on_gpu = True
    view = server._served_repository(tmp_path / "view")
    found = {model: read_config(view / model / "config.pbtxt") for model in ("admission", "preprocess", "postprocess")}
    counts = {model: config.instance_group[0].count for model, config in found.items()}
    assert counts == {**gpu_steps.COUNTS, "postprocess": 7}
    assert ["device" in config.parameters for config in found.values()] == [False, True, True]
    command = server._command(TRITON, view, [])
    assert [option for option in command if option.startswith(gpu_steps.POOL_OPTION)] == pool_options()
    assert not any(option.startswith("--model-config-name") for option in command)
    mine = f"{gpu_steps.POOL_OPTION}=0:1"
    server.options = ServerOptions(repository.path, "tensorrt", extra_arguments=(mine,))
    command = server._command(TRITON, view, [])
    assert [option for option in command if option.startswith(gpu_steps.POOL_OPTION)] == [mine]
    assert not server._can_put_steps_on_gpu(repository, {})
    assert lines == [
        "preprocess and postprocess run on the GPU",
        "preprocess and postprocess run on the processor: no CuPy",
    ]
