"""Whether the promoted versions can be served here: what is said of each model, and the command that fixes it."""

import shutil

import pytest

from pipeline import contract
from repository.plans import Machine
from repository.store import ModelRepository
from serving.__main__ import main
from serving.errors import ServingError
from serving.preflight import check, preflight
from serving.tritonserver import Installation
from tests.unit.repository.helpers import H100, L4, NO_GPU
from tests.versions import FAILED, H100_PLAN, add_version, promote_one, rewrite


@pytest.fixture
def repository(tmp_path):
    return ModelRepository.open(tmp_path / "repository")


@pytest.fixture
def container(tmp_path):
    """A server with a TensorRT backend."""
    backends = tmp_path / "backends"
    (backends / "tensorrt").mkdir(parents=True)
    return Installation(tmp_path / "tritonserver", backends, (), "2.60.0")


def status(repository, profile="cpu", precision="int8", **changes):
    found = preflight(repository, profile, **changes)
    return {one.precision: one for one in found.models}[precision]


def plan_status(repository, machine, installation):
    return status(repository, "tensorrt", machine=machine, installation=installation)


def test_whole_promoted_versions_are_ready(repository, capsys):
    for precision in contract.PRECISIONS:
        add_version(repository, precision)
    found = preflight(repository, "cpu")
    assert all(one.ready for one in found.models)
    assert [one.versions for one in found.models] == [(1,)] * 3
    assert main(["preflight", "--repository", str(repository.path)]) == 0
    assert "ready      network_int8/1" in capsys.readouterr().out


def test_what_is_not_built_names_the_build(repository, capsys):
    add_version(repository, "fp32")
    assert status(repository, precision="fp32").ready
    missing = status(repository)
    assert missing.reasons == ("no version for the profile cpu is built",)
    assert f"build --profile cpu --precisions fp32,fp16,int8 --repository {repository.path}" in missing.remedy
    assert main(["preflight", "--repository", str(repository.path)]) == 1
    assert "not ready  network_int8" in capsys.readouterr().out
    assert main(["preflight", "--repository", str(repository.path), "--precisions", "fp32"]) == 0


def test_a_promoted_version_that_is_gone_names_another(repository):
    add_version(repository)
    add_version(repository)
    shutil.rmtree(repository.model_folder("int8") / "1")
    found = status(repository)
    assert "names the versions [1], which are missing" in found.reasons[0]
    assert found.remedy == "python -m builder promote network_int8/2 --profile cpu"


def test_what_is_no_version_is_a_warning_unless_the_configuration_names_it(repository):
    add_version(repository)
    link = repository.model_folder("int8") / "2"
    link.symlink_to("1")
    found = status(repository)
    assert found.ready
    assert found.warnings == ("network_int8: '2' is a link, not a version; it is ignored. Move it elsewhere",)
    path = repository.config_path("int8", "cpu")
    path.write_text(path.read_text().replace("[ 1 ]", "[ 1, 2 ]", 1))
    found = status(repository)
    assert found.reasons == ("network_int8/2 is a link, not a version, and cpu.pbtxt names it",)
    assert "move it elsewhere" in found.remedy


def test_a_missing_network_is_named(repository):
    add_version(repository)
    (repository.model_folder("int8") / "1" / "model.onnx").unlink()
    found = status(repository)
    assert found.reasons == ("version 1: model.onnx is missing",)
    assert found.built
    assert "build --profile cpu" in found.remedy


def test_a_damaged_version_names_a_whole_one_or_the_build(repository):
    add_version(repository)
    rewrite(repository.model_folder("int8") / "1" / "model.onnx", b"NETWORK1")
    found = status(repository)
    assert "another SHA-256" in found.reasons[0]
    assert "python -m builder build" in found.remedy
    add_version(repository)
    assert status(repository).remedy == "python -m builder promote network_int8/2 --profile cpu"


@pytest.mark.parametrize("name", ["manifest.json", "configs/cpu.pbtxt"])
def test_broken_files_are_named(repository, name):
    add_version(repository)
    folder = repository.model_folder("int8")
    path = folder / name if name.startswith("configs") else folder / "1" / name
    rewrite(path, b"{")
    found = status(repository)
    assert path.name in found.reasons[0]
    assert found.remedy
    assert status(repository, precision="fp32").reasons == ("no version for the profile cpu is built",)


def test_sizes_of_the_other_steps_are_compared(repository):
    add_version(repository)
    path = repository.path / "postprocess" / "config.pbtxt"
    path.write_text(path.read_text().replace("1000, 38", "500, 38"))
    assert "postprocess: candidates is [500, 38]" in status(repository).reasons[0]


def test_a_gate_that_did_not_pass_is_reported(repository):
    add_version(repository, verification=FAILED)
    found = status(repository)
    assert "f1 0.5, needed 0.97" in found.reasons[0]
    assert "promote network_int8/1 --profile cpu --force" in found.remedy
    promote_one(repository, "int8", 1, force=True)
    found = status(repository)
    assert found.ready
    assert "promoted with --force" in found.warnings[0]


def test_a_version_that_was_never_verified_is_served_with_a_warning(repository):
    add_version(repository, verification=None)
    assert "never verified" in status(repository).warnings[0]


@pytest.mark.parametrize(
    ("changes", "machine", "reason"),
    [
        ({}, H100, None),
        ({}, Machine((10, 16, 1), "a test", H100.gpu), "built by TensorRT 10.13.0; this machine has 10.16.1"),
        ({"compute_capability": "8.9"}, H100, "built for compute capability 8.9"),
        ({}, NO_GPU, "no GPU is available"),
    ],
)
def test_plans_are_compared_with_this_machine(repository, container, changes, machine, reason):
    add_version(repository, plans={"model-sm90.plan": {**H100_PLAN, **changes}})
    found = plan_status(repository, machine, container)
    if reason is None:
        assert found.ready
        assert not found.warnings
    else:
        assert reason in found.reasons[0]
        assert "python -m builder build --profile tensorrt" in found.remedy


def test_another_gpu_architecture_is_added_to_the_version(repository, container):
    add_version(repository, plans={"model-sm90.plan": H100_PLAN})
    found = plan_status(repository, L4, container)
    assert "there is no model-sm89.plan" in found.reasons[0]
    assert found.remedy == f"python -m builder add-plan network_int8/1 --repository {repository.path}"


def test_an_unknown_tensorrt_is_a_warning(repository, container):
    add_version(repository, plans={"model-sm90.plan": H100_PLAN})
    found = plan_status(repository, Machine(None, "no libnvinfer", H100.gpu), container)
    assert found.ready
    assert "cannot be compared" in found.warnings[0]


def test_tensorrt_rtx_plans_are_not_for_triton(repository, container):
    add_version(repository, plans={"model.rtxplan": {**H100_PLAN, "flavor": "tensorrt-rtx"}})
    found = plan_status(repository, H100, container)
    assert "only plans of TensorRT-RTX" in found.reasons[0]
    assert "--profile tensorrt" in found.remedy


def test_version_compatible_plans_need_an_option(repository, container):
    add_version(repository, plans={"model-sm90.plan": {**H100_PLAN, "version_compatible": True}})
    found = plan_status(repository, Machine((10, 16, 1), "a test", H100.gpu), container)
    assert found.ready
    assert "version-compatible=true" in found.warnings[0]


def test_the_embedded_server_has_no_tensorrt_backend(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    add_version(repository, plans={"model-sm90.plan": H100_PLAN})
    found = plan_status(repository, H100, None)
    assert "the embedded one has no TensorRT backend" in found.reasons[0]
    assert "docker compose" in found.remedy


def test_run_refuses_what_is_promoted_and_cannot_be_served(repository, capsys):
    add_version(repository, "fp32")
    add_version(repository, "int8", verification=FAILED)
    arguments = ["run", "--repository", str(repository.path), "--http-port", "0", "--grpc-port", "0"]
    assert main([*arguments, "--metrics-port", "0"]) == 1
    text = capsys.readouterr().err
    assert "not ready  network_int8: version 1: its gate did not pass" in text
    assert "--precisions fp32" in text
    assert check(repository, "cpu", ("fp32",)).models[0].ready
    with pytest.raises(ServingError, match="no version for the profile cpu is built"):
        check(repository, "cpu", ("fp16",))


def test_little_shared_memory_is_a_warning_and_none_a_refusal(repository, monkeypatch):
    add_version(repository, "int8")
    monkeypatch.setattr("serving.preflight.check_shared_memory", lambda: "64 of 64 MB are free in /dev/shm: …")
    found = preflight(repository, "cpu")
    assert "warning: 64 of 64 MB are free in /dev/shm: …" in found.lines()
    assert {one.precision: one for one in found.models}["int8"].ready
