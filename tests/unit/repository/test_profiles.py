"""Each profile gets its own: cpu and cuda load model.onnx, tensorrt loads plans, and cuda needs a GPU."""

from __future__ import annotations

import contextlib
import shutil
from types import SimpleNamespace

import pytest

from builder.__main__ import main as builder
from builder.settings import SettingsError, load_settings
from pipeline import contract
from repository import versions
from repository.errors import RepositoryError
from repository.integrity import verify
from repository.plans import Machine
from repository.profiles import BUILT_PROFILES, GPU_STEPS, PROFILES
from repository.servable import models_to_load
from repository.store import SHIPPED_REPOSITORY, ModelRepository, read_config
from repository.versions import PromotionError
from serving import preflight as looking
from serving.__main__ import main as serving
from serving.preflight import check, preflight
from tests.unit.repository.helpers import H100, NO_GPU, FakeServer, add_versions
from tests.versions import H100_PLAN, add_version, promote_one, rollback_one

RTX_PLAN = {**H100_PLAN, "flavor": "tensorrt-rtx"}


@pytest.fixture
def repository(tmp_path):
    return ModelRepository.open(tmp_path / "repository")


@pytest.fixture
def machine(monkeypatch):
    """Sets what is taken for this machine, as a server of this machine is promoted on."""

    def set_machine(found):
        monkeypatch.setattr(versions, "find_machine", lambda: found)

    return set_machine


def live(monkeypatch, repository, profile):
    server = FakeServer(repository, profile)
    monkeypatch.setattr(versions, "running_servers", lambda path: [SimpleNamespace(profile=profile)])
    monkeypatch.setattr(versions.LiveServer, "of", lambda state: contextlib.nullcontext(server))


def test_the_profiles_are_those_of_the_contract_and_of_the_shipped_models():
    assert sorted(PROFILES) == sorted([*contract.PROFILES, GPU_STEPS])  # which nobody is offered
    assert BUILT_PROFILES == ("cpu", "tensorrt")
    for precision in contract.PRECISIONS:
        for profile in PROFILES.values():
            config = read_config(SHIPPED_REPOSITORY / contract.network_model(precision) / profile.config_name)
            assert (config.backend == "python") != profile.loads_plans
            assert {group.Kind.Name(group.kind) for group in config.instance_group} <= (
                {"KIND_GPU", "KIND_AUTO"} if profile.needs_gpu else {"KIND_CPU"}
            )


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "plans", [None, {"model-portable.rtxplan": RTX_PLAN}], ids=["built for cpu", "with a plan of RTX"]
)
def test_a_live_server_that_loads_model_onnx_needs_no_plan(monkeypatch, repository, machine, profile, plans):
    add_versions(repository, 2, plans=plans)
    repository.promote("int8", profile, 1)
    live(monkeypatch, repository, profile)
    machine(NO_GPU)
    with pytest.raises(PromotionError, match=r"ONNX Runtime does not run its model.onnx"):
        promote_one(repository, "int8", 2, profile)
    monkeypatch.setattr(versions, "onnx_network", lambda content: lambda images: None)
    done = promote_one(repository, "int8", 2, profile)
    assert (done.version, done.profile, done.servers) == (2, profile, ("the fake",))
    assert rollback_one(repository, "int8", profile).version == 1


def test_a_live_server_of_the_profile_tensorrt_needs_a_plan_that_runs_here(monkeypatch, repository, machine):
    add_versions(repository, 2, plans={"model-sm90.plan": H100_PLAN})
    repository.promote("int8", "tensorrt", 1)
    live(monkeypatch, repository, "tensorrt")
    machine(Machine((10, 16, 1), "a test", H100.gpu))
    with pytest.raises(PromotionError, match=r"built by TensorRT 10.13.0; this machine has 10.16.1"):
        promote_one(repository, "int8", 2, "tensorrt")
    machine(H100)
    assert promote_one(repository, "int8", 2, "tensorrt").servers == ("the fake",)


@pytest.mark.parametrize(
    ("plans", "words"),
    [(None, "holds no TensorRT plan"), ({"model-portable.rtxplan": RTX_PLAN}, "one of TensorRT-RTX, which Triton's")],
)
def test_what_the_profile_tensorrt_cannot_serve_is_reported_with_what_can(repository, plans, words):
    add_version(repository, plans=plans)
    with pytest.raises(RepositoryError, match=words) as caught:
        promote_one(repository, "int8", 1, "tensorrt")
    assert "promote network_int8/1 --profile cpu|cuda" in str(caught.value)


def test_a_rollback_names_the_profiles_that_have_promotions(repository):
    add_versions(repository, 2)
    promote_one(repository, "int8", 2)
    promote_one(repository, "int8", 1, "cuda")
    promote_one(repository, "int8", 2, "cuda")
    with pytest.raises(
        RepositoryError, match=r"promoted under cpu and cuda; name the profile with --profile cpu or cuda$"
    ):
        rollback_one(repository, "int8")
    assert rollback_one(repository, "int8", "cuda").version == 1


def test_a_damaged_version_is_rolled_back_under_each_profile(repository):
    add_version(repository)
    promote_one(repository, "int8", 1, "cuda")
    (repository.model_folder("int8") / "1" / "model.onnx").chmod(0o644)
    (repository.model_folder("int8") / "1" / "model.onnx").write_bytes(b"network2")
    remedy = verify(repository).faults[0].remedy
    for profile in ("cpu", "cuda"):
        assert f"`python -m builder rollback network_int8 --profile {profile}`" in remedy


# What is said of a profile that the builder makes no versions for.


def test_nothing_is_built_for_cuda_and_the_error_says_what_to_do(capsys):
    with pytest.raises(SystemExit):
        builder(["build", "--profile", "cuda"])
    assert (
        "build with --profile cpu, then `python -m builder promote MODEL/VERSION --profile cuda`"
        in capsys.readouterr().err
    )
    with pytest.raises(SettingsError, match="build with --profile cpu"):
        load_settings(None, {"profile": "cuda"})
    with pytest.raises(SettingsError, match="'gpu' is not a profile that is built for; allowed: cpu, tensorrt"):
        load_settings(None, {"profile": "gpu"})


@pytest.mark.parametrize("profile", contract.PROFILES)
def test_every_build_that_is_advised_can_be_run(repository, profile, capsys):
    """No remedy names a command that the command line refuses."""
    found = preflight(repository, profile, ("int8",), machine=NO_GPU)
    advised = [found.models[0].remedy, repository.build_command("int8", profile)]
    with pytest.raises(RepositoryError) as caught:
        models_to_load(repository, profile)
    for text in (*advised, str(caught.value)):
        build = text[text.index("python -m builder build") :].split(", then")[0].split("`")[0].split(" first")[0]
        with pytest.raises(SystemExit) as ended:
            builder([*build.split()[3:], "--help"])
        assert ended.value.code == 0, build
        assert f"--profile {PROFILES[profile].build_profile}" in build
        assert ("promote" in text) == (not PROFILES[profile].is_built)
    capsys.readouterr()


# Preflight and verify of the profile cuda.


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(looking, "_without_cuda", lambda: None)


def test_cuda_serves_what_was_promoted_for_it(repository, with_gpu):
    add_version(repository)
    status = preflight(repository, "cuda", ("int8",)).models[0]
    assert status.reasons == ("no version is promoted under the profile cuda",)
    assert status.remedy == "python -m builder promote network_int8/1 --profile cuda"
    assert verify(repository).faults == []  # nobody asked for it
    promote_one(repository, "int8", 1, "cuda")
    assert preflight(repository, "cuda", ("int8",)).models[0].ready
    assert check(repository, "cuda").models[2].ready


def test_cuda_without_a_gpu_is_not_ready(repository, capsys):
    """This environment has no CUDA provider, or no GPU."""
    add_version(repository)
    promote_one(repository, "int8", 1, "cuda")
    if looking._without_cuda() is None:
        pytest.skip("this machine has CUDA; make test-unit runs it where that is missing")
    assert (
        serving(["preflight", "--profile", "cuda", "--precisions", "int8", "--repository", str(repository.path)]) == 1
    )
    text = capsys.readouterr().out
    assert "no CUDA provider" in text or "no GPU is available" in text
    assert "python -m serving run --profile cpu" in text


def test_a_version_that_is_gone_or_damaged_is_reported_under_cuda_too(repository, with_gpu):
    add_versions(repository, 2)
    promote_one(repository, "int8", 1, "cuda")
    (repository.model_folder("int8") / "1" / "model.onnx").unlink()
    shutil.rmtree(repository.model_folder("int8") / "2")
    status = preflight(repository, "cuda", ("int8",)).models[0]
    assert status.reasons == ("version 1: model.onnx is missing",)
    add_version(repository)
    shutil.rmtree(repository.model_folder("int8") / "1")
    status = preflight(repository, "cuda", ("int8",)).models[0]
    assert "names the versions [1], which are missing" in status.reasons[0]
    assert any("cuda.pbtxt names the versions [1]" in fault.problem for fault in verify(repository).faults)
