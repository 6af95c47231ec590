"""Promoting, rolling back, pruning and verifying versions, without a server."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from base.gpu import Gpu
from builder.__main__ import main
from pipeline import contract
from repository import versions
from repository.errors import RepositoryError
from repository.integrity import verify
from repository.plans import Machine, library_version, plan_misfit
from repository.promotions import Promotion, append_promotion, read_promotions, rollback_target
from repository.shim import RECORDED_SHA256, SHIM
from repository.store import PROMOTIONS_NAME, SHIPPED_REPOSITORY, ModelRepository, read_config
from repository.versions import PromotionError, VersionRef, prune
from serving.preflight import preflight
from tests.exports import segmentation_export
from tests.unit.repository.helpers import H100, L4, NO_GPU, FakeServer, add_versions, run
from tests.versions import FAILED, H100_PLAN, PASSED, add_version, promote_one, rewrite, rollback_one

CHOSEN = {"8.9": "model-sm89.plan", "9.0": "model-sm90.plan"}


@pytest.fixture
def repository(tmp_path):
    return ModelRepository.open(tmp_path / "repository")


def served(repository, precision="int8", profile="cpu"):
    return read_config(repository.config_path(precision, profile)).version_policy.specific.versions


# Promotion and rollback.


def test_promotions_are_undone_one_by_one(repository):
    add_versions(repository, 3)
    assert promote_one(repository, "int8", 2).previous == 1
    assert promote_one(repository, "int8", 3).previous == 2
    assert promote_one(repository, "int8", 3).previous == 3  # nothing changes, nothing is logged
    assert [rollback_one(repository, "int8").version for _ in range(2)] == [2, 1]
    assert list(served(repository)) == [1]
    with pytest.raises(RepositoryError, match="no version of network_int8 was served before"):
        rollback_one(repository, "int8")
    promote_one(repository, "int8", 3)
    assert rollback_one(repository, "int8").version == 1
    assert len(read_promotions(repository.model_folder("int8"))) == 6


def test_profiles_are_promoted_apart(repository):
    add_versions(repository, 2, plans={"model-sm90.plan": H100_PLAN})
    assert promote_one(repository, "int8", 2).profile == "tensorrt"
    assert promote_one(repository, "int8", 2, "cpu").profile == "cpu"
    with pytest.raises(RepositoryError, match=r"--profile cpu or tensorrt$"):
        rollback_one(repository, "int8")
    assert rollback_one(repository, "int8", "tensorrt").version == 1
    assert list(served(repository, profile="cpu")) == [2]


@pytest.mark.parametrize(("verification", "reason"), [(FAILED, "f1 0.5, needed 0.97"), (None, "never verified")])
def test_a_gate_that_did_not_pass_needs_force(repository, verification, reason):
    add_version(repository)
    add_version(repository, verification=verification)
    with pytest.raises(RepositoryError, match=reason) as caught:
        promote_one(repository, "int8", 2)
    assert "promote network_int8/2 --force" in str(caught.value)
    assert list(served(repository)) == [1]
    promote_one(repository, "int8", 2, force=True)
    assert list(served(repository)) == [2]
    assert read_promotions(repository.model_folder("int8"))[-1].forced


def test_fp32_is_the_reference_and_needs_no_gate(repository):
    add_version(repository, "fp32", verification=None)
    assert promote_one(repository, "fp32", 1).version == 1


@pytest.mark.parametrize(
    ("version", "profile", "message"),
    [
        (7, None, "no such version.*there are 1, 2"),
        (2, None, "cannot be served: model.onnx"),
        (1, "tensorrt", "cannot be served"),
    ],
)
def test_what_cannot_be_promoted_is_refused(repository, version, profile, message):
    add_versions(repository, 2)
    rewrite(repository.model_folder("int8") / "2" / "model.onnx", b"NETWORK2")
    with pytest.raises(RepositoryError, match=message):
        promote_one(repository, "int8", version, profile)
    assert list(served(repository)) == [1]


def test_a_rollback_to_a_version_that_is_gone_is_refused(repository):
    add_versions(repository, 2)
    promote_one(repository, "int8", 2)
    shutil.rmtree(repository.model_folder("int8") / "1")
    with pytest.raises(RepositoryError, match="network_int8/1: no such version"):
        rollback_one(repository, "int8")
    assert list(served(repository)) == [2]


@pytest.fixture
def any_network(monkeypatch):
    """Takes the contents of these tests' model.onnx for a network."""
    monkeypatch.setattr(versions, "onnx_network", lambda content: lambda images: None)


def test_a_network_that_does_not_run_is_not_given_to_a_server(repository):
    add_versions(repository, 2)
    server = FakeServer(repository)
    with pytest.raises(PromotionError, match="ONNX Runtime does not run"):
        promote_one(repository, "int8", 2, servers=[server])
    assert not server.loads
    assert list(served(repository)) == [1]


@pytest.mark.usefixtures("any_network")
def test_what_a_server_cannot_serve_is_taken_back_everywhere(repository):
    add_versions(repository, 2)
    servers = [FakeServer(repository), FakeServer(repository, broken=("int8", 2))]
    with pytest.raises(PromotionError, match=r"answers nonsense.*answer as before; until it is restarted"):
        promote_one(repository, "int8", 2, servers=servers)
    assert list(served(repository)) == [1]
    assert [server.serves["network_int8"] for server in servers] == [(1,), (1,)]
    assert not read_promotions(repository.model_folder("int8"))
    servers[1].broken = None
    assert promote_one(repository, "int8", 2, servers=servers).servers == ("the fake", "the fake")
    assert [server.serves["network_int8"] for server in servers] == [(2,), (2,)]


def test_a_server_that_does_not_serve_the_model_is_left_alone(repository):
    add_version(repository)
    server = FakeServer(repository)
    server.serves["network_int8"] = ()
    assert promote_one(repository, "int8", 1, servers=[server]).not_serving == ("the fake",)
    assert not server.loads


# The log.


def line(action, version, previous=None):
    return Promotion("2026-01-01T00:00:00+00:00", "cpu", action, version, previous)


@pytest.mark.parametrize(
    ("log", "current", "target"),
    [
        ([], 1, None),
        ([line("promote", 2, 1)], 2, 1),
        ([line("promote", 2, 1), line("promote", 3, 2)], 3, 2),
        ([line("promote", 2, 1), line("promote", 3, 2), line("rollback", 2, 3)], 2, 1),
        ([line("promote", 2, 1), line("promote", 1, 2)], 1, 2),
        ([line("promote", 2, 1), line("promote", 1, 2), line("rollback", 2, 1)], 2, 1),
        ([line("promote", 2, 1)], 5, 2),  # the configuration was changed by hand, or before a kill
        ([line("promote", 1)], 1, None),
    ],
)
def test_rollback_targets(log, current, target):
    assert rollback_target(log, current) == target


def test_a_log_cut_short_loses_that_line_alone(tmp_path):
    append_promotion(tmp_path, line("promote", 2, 1))
    with (tmp_path / PROMOTIONS_NAME).open("a") as stream:
        stream.write('{"time_utc": "2026')
    append_promotion(tmp_path, line("promote", 3, 2))
    assert [one.version for one in read_promotions(tmp_path)] == [2, 3]
    assert read_promotions(tmp_path, "tensorrt") == []


# Pruning.


def test_prune_keeps_what_is_served_and_where_a_rollback_goes(repository):
    add_versions(repository, 6)
    promote_one(repository, "int8", 2)
    promote_one(repository, "int8", 3)
    doomed = [VersionRef("int8", version) for version in (1, 4, 5)]
    assert prune(repository, 1, dry_run=True) == doomed
    assert repository.versions("int8") == [1, 2, 3, 4, 5, 6]
    assert prune(repository, 1) == doomed
    assert repository.versions("int8") == [2, 3, 6]
    assert rollback_one(repository, "int8").version == 2
    assert not verify(repository).faults
    assert not repository.leftovers("int8")
    with pytest.raises(RepositoryError, match="-1; allowed: 0 or more"):
        prune(repository, -1)


# Verification.


def test_a_whole_repository_has_no_fault(repository):
    for precision in contract.PRECISIONS:
        add_version(repository, precision)
    (repository.model_folder("fp32") / "1" / "__pycache__").mkdir()  # made by the server
    findings = verify(repository)
    assert (findings.versions, findings.faults, findings.notes) == (3, [], [])


def change_manifest(folder, **changes):
    values = json.loads((folder / "manifest.json").read_text())
    rewrite(folder / "manifest.json", json.dumps({**values, **changes}).encode())


DAMAGES = {
    "hash": (lambda folder: rewrite(folder / "model.onnx", b"NETWORK1"), "another SHA-256"),
    "size": (lambda folder: rewrite(folder / "model.onnx", b"short"), "has 5 bytes"),
    "lost file": (lambda folder: (folder / "model.py").unlink(), "model.py is missing"),
    "extra file": (lambda folder: (folder / "model.plan").write_bytes(b"x"), "model.plan is not in manifest.json"),
    "manifest": (lambda folder: rewrite(folder / "manifest.json", b"{"), "not a readable manifest"),
    "kinds": (lambda folder: change_manifest(folder, plans={"model.plan": 3}), "plans.model.plan is of the kind int"),
    "place": (lambda folder: change_manifest(folder, version=4), "describes network_int8/4"),
    "tag": (lambda folder: change_manifest(folder, tag="x-int8-00000000"), "ends with the hash of none of its files"),
}


@pytest.mark.parametrize(("harm", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_each_damage_is_named_with_its_remedy(repository, capsys, harm, problem):
    add_versions(repository, 2)
    harm(repository.model_folder("int8") / "2")
    (fault,) = verify(repository, "int8").faults
    assert fault.subject == "network_int8/2"
    assert problem in fault.problem
    assert "rm -r" in fault.remedy
    assert run(repository, "verify") == 1
    assert problem in capsys.readouterr().out
    assert run(repository, "verify", "network_int8/1") == 0
    assert run(repository, "verify", "network_fp32") == 0


def test_configurations_are_compared_too(repository):
    add_versions(repository, 2)
    path = repository.config_path("int8", "cpu")
    text = path.read_text()
    path.write_text(text.replace("[ 1 ]", "[ 9 ]", 1))
    (fault,) = verify(repository).faults
    assert "names the versions [9]" in fault.problem
    assert "promote network_int8/2 --profile cpu" in fault.remedy
    path.write_text(text.replace("1000, 38", "900, 38"))
    (fault,) = verify(repository).faults
    assert "candidates is [900, 38]" in fault.problem
    path.write_text("nonsense {")
    (fault,) = verify(repository).faults
    assert "not a model configuration" in fault.problem


def test_leftovers_are_named_and_tolerated(repository):
    version = repository.model_folder("int8") / str(add_version(repository).version)
    for name in (".plan-dead", ".manifest.json-dead"):
        (version / name).write_text("half")
    (repository.model_folder("int8") / ".building-dead").mkdir()
    (repository.model_folder("int8") / "configs" / ".cpu.pbtxt-dead").write_text("half")
    findings = verify(repository)
    assert not findings.faults
    assert sum("killed" in note for note in findings.notes) == 4
    with repository.locked():
        assert "a builder is writing" in verify(repository, "int8").notes[0]
    add_version(repository)
    assert not repository.leftovers("int8")


# What is no version, and what does not come from the builder.


def link_out_of_the_repository(path):
    outside = path.parents[2] / "outside"
    outside.mkdir(exist_ok=True)
    (outside / ".precious-file").write_text("mine")
    path.symlink_to(outside)


STRAYS = [
    pytest.param(lambda path: path.symlink_to("1"), id="link to a version"),
    pytest.param(lambda path: path.symlink_to("nowhere"), id="link to nothing"),
    pytest.param(link_out_of_the_repository, id="link out of the repository"),
    pytest.param(lambda path: path.write_text(""), id="file like a version"),
]


@pytest.mark.parametrize("stray", STRAYS)
def test_what_is_no_version_is_ignored_and_reported(repository, capsys, stray):
    add_versions(repository, 2)
    stray(repository.model_folder("int8") / "3")
    assert repository.versions("int8") == [1, 2]
    assert run(repository, "promote", "network_int8/2") == 0
    assert "warning: network_int8: '3' is a " in capsys.readouterr().out
    with pytest.raises(RepositoryError, match="network_int8/3: no such version"):
        promote_one(repository, "int8", 3)
    assert add_version(repository).version == 4
    for _ in range(2):
        assert run(repository, "prune", "--keep", "0") == 0
        assert "warning: network_int8: '3' is a " in capsys.readouterr().out
    assert repository.versions("int8") == [1, 2]  # served, and where a rollback goes
    findings = verify(repository)
    assert findings.faults == []
    assert len(findings.notes) == 1
    assert "'3' is a " in findings.notes[0]
    assert not repository.leftovers("int8")
    outside = repository.path.parent / "outside"
    assert not outside.exists() or (outside / ".precious-file").read_text() == "mine"


def test_a_link_that_a_killed_or_older_prune_hid_is_swept(repository):
    add_version(repository)
    (repository.model_folder("int8") / ".building-removed-2").symlink_to("1")
    assert add_version(repository).version == 2
    assert repository.versions("int8") == [1, 2]
    assert not repository.leftovers("int8")


@pytest.mark.parametrize("name", ["9" * 30, "9" * 5000, "\uff13", "01", "old", "-1", "1\n", "\x1b[2J"])
def test_odd_names_are_no_versions_and_are_printed_in_ascii(repository, capsys, name):
    add_version(repository)
    try:
        (repository.model_folder("int8") / name).mkdir()
    except OSError:
        name = name[:200]
        (repository.model_folder("int8") / name).mkdir()
    assert repository.versions("int8") == [1]
    assert add_version(repository).version == 2
    assert run(repository, "list") == 0
    assert f"network_int8: {name!a} is a folder, not a version" in capsys.readouterr().out


def test_the_highest_number_leaves_no_other(repository):
    add_version(repository)
    (repository.model_folder("int8") / "1").rename(repository.model_folder("int8") / ("9" * 18))
    with pytest.raises(RepositoryError, match="9 has the highest number that a version can have"):
        repository.next_version("int8")


def test_a_link_that_the_configuration_names_is_a_fault(repository):
    add_version(repository)
    (repository.model_folder("int8") / "2").symlink_to("1")
    path = repository.config_path("int8", "cpu")
    path.write_text(path.read_text().replace("[ 1 ]", "[ 1, 2 ]", 1))
    assert repository.promoted("int8", "cpu") == [1]
    (fault,) = verify(repository).faults
    assert "network_int8/2 is a link, not a version, and cpu.pbtxt names it" in fault.problem
    assert "promote network_int8/VERSION --profile cpu" in fault.remedy


HOSTILE = "import os\nos.system('id')\n"


def change_code(folder):
    rewrite(folder / "model.py", HOSTILE.encode())
    list_in_manifest(folder, "model.py", folder / "model.py")


def link_code(folder):
    hostile = folder.parents[2] / "hostile.py"
    hostile.write_text(HOSTILE)
    (folder / "model.py").unlink()
    (folder / "model.py").symlink_to(hostile)
    list_in_manifest(folder, "model.py", hostile)


def add_module(folder):
    (folder / "triton_python_backend_utils.py").write_text(HOSTILE)
    list_in_manifest(folder, "triton_python_backend_utils.py", folder / "triton_python_backend_utils.py")


def link(folder, name):
    elsewhere = (folder / name).rename(folder.parents[2] / f"elsewhere-{name}")
    (folder / name).symlink_to(elsewhere)


def list_in_manifest(folder, name, path):
    """What an attacker does who changes a file: the manifest fits it."""
    content = path.read_bytes() if path.is_file() else b""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    change_manifest(folder, files=files)


ATTACKS = {
    "code": (change_code, "model.py is other code than the builder writes"),
    "linked code": (link_code, "model.py is a link, not a file"),
    "module": (add_module, "triton_python_backend_utils.py is code that the server could import"),
    "file elsewhere": (
        lambda folder: list_in_manifest(folder, "../../config.pbtxt", folder / "../../config.pbtxt"),
        "names '../../config.pbtxt'; allowed: files of the version's own folder",
    ),
    "absolute path": (
        lambda folder: list_in_manifest(folder, "/etc/hostname", Path("/etc/hostname")),
        "names '/etc/hostname'; allowed: files of the version's own folder",
    ),
    "linked network": (lambda folder: link(folder, "model.onnx"), "model.onnx is a link, not a file"),
    "linked manifest": (lambda folder: link(folder, "manifest.json"), "manifest.json: not a regular file"),
    "nesting": (lambda folder: rewrite(folder / "manifest.json", b"[" * 100_000), "not a readable manifest"),
}


@pytest.mark.parametrize(("harm", "problem"), ATTACKS.values(), ids=ATTACKS)
def test_a_manifest_that_was_rewritten_proves_nothing(repository, harm, problem):
    add_versions(repository, 2)
    harm(repository.model_folder("int8") / "2")
    assert any(problem in fault.problem for fault in verify(repository, "int8", 2).faults)
    with pytest.raises(RepositoryError, match=re.escape(problem)):
        promote_one(repository, "int8", 2, force=True)
    assert list(served(repository)) == [1]
    repository._name_versions("int8", "cpu", [2])  # by hand
    status = {one.model: one for one in preflight(repository, "cpu").models}["network_int8"]
    assert any(problem in reason for reason in status.reasons)


def test_code_beside_the_versions_is_refused(repository):
    add_version(repository)
    (repository.model_folder("int8") / "triton_python_backend_utils.py").write_text(HOSTILE)
    (repository.model_folder("int8") / "onnxruntime").mkdir()
    (repository.model_folder("int8") / "onnxruntime" / "__init__.py").write_text(HOSTILE)
    (fault,) = verify(repository).faults
    assert "could import 'onnxruntime', 'triton_python_backend_utils.py' beside the versions" in fault.problem
    with pytest.raises(RepositoryError, match="could import"):
        promote_one(repository, "int8", 1)


def test_the_shim_is_recorded():
    assert hashlib.sha256(SHIM.encode()).hexdigest() in RECORDED_SHA256, "add it, and keep those of earlier releases"


def test_compiled_code_in_place_of_the_shim_is_removed_before_it_is_served(repository, tmp_path):
    add_versions(repository, 2)
    cache = repository.model_folder("int8") / "2" / "__pycache__"
    cache.mkdir()
    planted = cache / "model.cpython-311.pyc"
    planted.write_bytes(b"hostile")
    promote_one(repository, "int8", 2)
    assert not planted.exists()
    cache.rmdir()
    planted = tmp_path / "model.x.pyc"
    planted.touch()
    cache.symlink_to(tmp_path)
    repository.drop_compiled(repository.version_folder("int8", 2))
    assert planted.exists()
    assert not cache.is_symlink()


# Plans.


@pytest.mark.parametrize(
    ("plans", "machine", "reason"),
    [
        ({"model-sm90.plan": H100_PLAN}, H100, None),
        ({"model-sm90.plan": H100_PLAN, "model-sm89.plan": {**H100_PLAN, "compute_capability": "8.9"}}, L4, None),
        ({"model-sm90.plan": H100_PLAN}, L4, "there is no model-sm89.plan"),
        ({"model-sm89.plan": H100_PLAN}, L4, "built for compute capability 9.0"),
        ({"model-sm89.plan": {**H100_PLAN, "hardware_compatible": True}}, L4, None),
        ({"model.rtxplan": {**H100_PLAN, "flavor": "tensorrt-rtx"}}, H100, "only plans of TensorRT-RTX"),
        ({}, H100, "holds no TensorRT plan"),
        ({"model-sm90.plan": {**H100_PLAN, "tensorrt": "10.12.0.36"}}, H100, "built by TensorRT 10.12.0.36"),
        ({"model-sm90.plan": {**H100_PLAN, "tensorrt": "10.13.0.35"}}, H100, None),
        ({"model-sm90.plan": {**H100_PLAN, "tensorrt": "10.12.0", "version_compatible": True}}, H100, None),
        ({"model-sm90.plan": {**H100_PLAN, "tensorrt": "10.14.0", "version_compatible": True}}, H100, "10.14.0"),
        ({"model-sm90.plan": {**H100_PLAN, "tensorrt": "9.3.0", "version_compatible": True}}, H100, "9.3.0"),
        ({"model-sm90.plan": H100_PLAN}, NO_GPU, "no GPU is available"),
        ({"model-sm90.plan": H100_PLAN}, Machine(None, "no library", H100.gpu), "cannot be compared"),
        ({"model-sm90.plan": {**H100_PLAN, "compute_capability": None}}, H100, "does not say which GPU"),
    ],
)
def test_plans_are_compared_with_the_machine(plans, machine, reason):
    misfit = plan_misfit(plans, CHOSEN, "model.plan", machine)
    if reason is None:
        assert misfit is None
    else:
        assert reason in misfit.reason


@pytest.mark.parametrize(
    ("number", "version"), [(101300, (10, 13, 0)), (110201, (11, 2, 1)), (100001, (10, 0, 1)), (8601, (8, 6, 1))]
)
def test_the_version_of_the_library_is_read(number, version):
    assert library_version(number) == version


def test_a_promoted_plan_that_does_not_fit_is_a_fault_others_are_noted(repository):
    add_versions(repository, 2, plans={"model-sm90.plan": H100_PLAN})
    assert not verify(repository, machine=H100).faults
    findings = verify(repository, machine=L4)
    assert [fault.subject for fault in findings.faults] == ["network_int8/1"]
    assert "model-sm89.plan" in findings.faults[0].problem
    assert "add-plan network_int8/1" in findings.faults[0].remedy
    other = Machine((11, 2, 1), "a test", H100.gpu)
    assert "--profile tensorrt --precisions fp32,fp16,int8" in verify(repository, machine=other).faults[0].remedy
    assert any("network_int8/2" in note for note in findings.notes)
    assert len(verify(repository, "int8", 2, L4).faults) == 1
    unknown = verify(repository, machine=NO_GPU)
    assert not unknown.faults
    assert any("no GPU is available" in note for note in unknown.notes)


def test_a_tensorrt_rtx_plan_may_not_pass_for_one_of_triton(repository):
    add_version(repository, plans={"model-sm90.plan": {**H100_PLAN, "flavor": "tensorrt-rtx"}})
    (fault,) = verify(repository, machine=H100).faults
    assert "TensorRT-RTX plan under a name" in fault.problem


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_shipped_configurations_name_a_plan_per_architecture(precision):
    path = SHIPPED_REPOSITORY / contract.network_model(precision) / "config.pbtxt"
    names = read_config(path).cc_model_filenames
    assert {"7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"} <= set(names)
    assert all(name == f"model-{Gpu('', capability).architecture}.plan" for capability, name in names.items())


# The command line.


def test_hostile_manifests_are_shown_harmlessly_or_refused(repository, capsys):
    add_version(repository, verification=PASSED)
    path = repository.path / "network_int8/1/manifest.json"
    path.chmod(0o644)
    text = path.read_text()
    values = json.loads(text)
    values["source"]["class_names"] = ["\x9b2J\x1b[2J größe"]
    path.write_text(json.dumps(values, ensure_ascii=False))
    for more in ((), ("--json",)):
        assert run(repository, "show", "network_int8/1", *more) == 0
        shown = capsys.readouterr().out
        assert not any(not one.isprintable() and one != "\n" for one in shown)
    assert json.loads(shown)["source"] == values["source"]
    for broken in (text.replace("{", '{"x": NaN, ', 1), '{"format_version": ' + "[" * 100_000):
        path.write_text(broken)
        with pytest.raises(RepositoryError, match="not a readable manifest"):
            repository.manifest("int8", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"verification": []},
        {"verification": {"passed": False, "gate": 3}},
        {"verification": {"passed": False, "metrics": [1]}},
        {"verification": {"passed": True, "engines": {"openvino": "2026"}}},
        {"source": {"tensor_sizes": {"images": 3}}},
        {"source": {"tensor_sizes": {"images": [None]}}},
        {"source": []},
        {"created_utc": 3},
        {"version": True},
        {"files": {"model.onnx": {"sha256": "a", "size_bytes": "x"}}},
        {"files": {"model.onnx": {"sha256": "a", "size_bytes": 10**400}}},
        {"files": {"model.onnx": 3}},
        {"plans": {"model.plan": {"tensorrt": 3}}},
        {"plans": {"model.plan": {"batches": "x"}}},
        {"settings": {"plan": 3}},
        {"excluded_nodes": "x"},
        {"unknown": 3},
    ],
)
def test_a_manifest_with_entries_of_other_kinds_is_refused(repository, changes, capsys):
    add_version(repository)
    change_manifest(repository.version_folder("int8", 1), **changes)
    with pytest.raises(RepositoryError, match="not a readable manifest"):
        repository.manifest("int8", 1)
    assert run(repository, "list") == 0
    assert "not a readable manifest" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"\xff\xfe", b'name: "\xb1"', b"no_such_field: 1", b"parameters {" * 5000])
def test_a_configuration_that_is_none_is_refused(repository, content):
    path = repository.config_path("int8", "cpu")
    path.write_bytes(content)
    with pytest.raises(RepositoryError, match=f"^{path}: not a model configuration"):
        repository.promoted("int8", "cpu")


def test_lines_of_the_log_that_are_none_are_ignored(repository):
    path = repository.model_folder("int8") / PROMOTIONS_NAME
    good = Promotion("2026", "cpu", "promote", 2, 1)
    append_promotion(path.parent, good)
    for bad in (b"\xff\xaf\n", b"[" * 100_000 + b"\n", b"null\n"):
        path.write_bytes(bad + path.read_bytes())
    assert read_promotions(path.parent) == [good]


def test_commands_print_what_they_did(repository, capsys):
    add_version(repository, verification=PASSED)
    add_version(repository, verification=FAILED)
    assert run(repository, "list") == 0
    text = capsys.readouterr().out
    assert [word in text for word in ("test-int8-ort1-cpu-", "passed", "FAILED")] == [True] * 3
    assert run(repository, "promote", "network_int8/2", "--force") == 0
    assert "network_int8/2 is served under the profile cpu (before: 1)" in capsys.readouterr().out
    assert run(repository, "show", "network_int8/2") == 0
    text = capsys.readouterr().out
    for expected in ("served under: cpu", "f1 0.5, needed 0.97", "images: 640, 640, 3", "1 -> 2, forced"):
        assert expected in text
    assert run(repository, "show", "network_int8/2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2
    assert run(repository, "rollback", "network_int8") == 0
    assert run(repository, "prune", "--keep", "0", "--dry-run") == 0
    assert "would remove network_int8/2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("promote", "network_int8"),
        ("promote", "segment_int8/1"),
        ("show", "network_int8/0"),
        ("prune",),
        ("rollback", "network_int8/2"),
        ("verify", "network_int8/x"),
    ],
)
def test_wrong_command_lines(repository, arguments):
    with pytest.raises(SystemExit) as caught:
        run(repository, *arguments)
    assert caught.value.code == 2


def test_a_repository_that_is_not_there_is_not_made(tmp_path):
    for command in (("list",), ("verify",), ("prune", "--keep", "1")):
        with pytest.raises(RepositoryError, match="not a model repository"):
            run(ModelRepository(tmp_path / "nowhere"), *command)
    assert not (tmp_path / "nowhere").exists()


def test_one_server_needs_url_and_secret(repository, tmp_path):
    add_version(repository)
    with pytest.raises(RepositoryError, match="both"):
        run(repository, "promote", "network_int8/1", "--url", "127.0.0.1:1")
    with pytest.raises(RepositoryError, match="cannot be read"):
        run(
            repository,
            *("promote", "network_int8/1", "--url", "127.0.0.1:1", "--admin-secret-file", str(tmp_path / "none")),
        )


# Builders that are killed.


@pytest.fixture(scope="module")
def build_inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        cv2.imwrite(str(folder / "images" / f"{index}.png"), rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    return segmentation_export(folder / "export.onnx", height=32, width=32), folder / "images"


# Separate processes, forked from one that has imported the builder; each counts what it writes.
BUILDERS = multiprocessing.get_context("forkserver")
BUILDERS.set_forkserver_preload(["builder.build", "builder.cpu_profile", __name__])


def build_killed_at(moment, folder, arguments, writes):
    """Build, and kill this process when it writes, renames or removes below a folder for the n-th time."""
    folder = os.path.realpath(folder)
    changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}

    def count(event, values):
        opened = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR)
        if not (opened or event in changes) or isinstance(values[0], int):  # a pipe of a child process
            return
        if os.path.realpath(os.fsdecode(values[0])).startswith(folder):
            writes.value += 1
            if writes.value == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sys.exit(main(arguments))


def build_arguments(repository, name, build_inputs):
    onnx, images = build_inputs
    return [
        *("build", "--profile", "cpu", "--precisions", "fp32", "--name", name),
        *("--onnx", str(onnx), "--verify-images", str(images), "--repository", str(repository)),
    ]


def run_build(repository, name, build_inputs, *, kill_at_write=0):
    """Exit code of a build in its own process, and how often it wrote."""
    writes = BUILDERS.Value("i", 0, lock=False)
    arguments = build_arguments(repository, name, build_inputs)
    process = BUILDERS.Process(target=build_killed_at, args=(kill_at_write, repository, arguments, writes))
    process.start()
    process.join(60)
    return process.exitcode, writes.value


def check_clean(path):
    """No fault, whatever the kill left; a repository that is not whole yet is completed by the next build."""
    try:
        repository = ModelRepository.existing(path)
    except RepositoryError:
        return
    assert verify(repository).faults == []


def check_next_build_works(path, build_inputs):
    assert main(build_arguments(path, "after", build_inputs)) == 0
    findings = verify(ModelRepository.existing(path))
    assert (findings.faults, findings.notes) == ([], [])
    assert findings.versions >= 1


def test_a_builder_killed_while_it_writes_leaves_a_clean_repository(tmp_path, build_inputs):
    """Kills at writes drawn from all that a first and a later build make; the next build works after each."""
    rng = random.Random(21)  # noqa: S311 - moments, not secrets
    path = tmp_path / "repository"
    (first_code, first), (later_code, later) = [run_build(path, name, build_inputs) for name in ("first", "later")]
    assert first_code == later_code == 0
    assert first > later > 5, "the hook does not see what a build writes"
    for attempt, last in enumerate((first // 2, first, first, later, later)):
        killed = tmp_path / f"killed-{attempt}"
        if last == later:
            shutil.copytree(path, killed)
        # Most of a first build's writes copy the shipped repository; the later ones are staging and publishing.
        moment = rng.randint(1, last) if last < first else rng.randint(first - later, last)
        assert run_build(killed, f"build{attempt}", build_inputs, kill_at_write=moment)[0] == -signal.SIGKILL
        check_clean(killed)
        check_next_build_works(killed, build_inputs)


@pytest.mark.parametrize("stray", STRAYS)
def test_a_build_goes_past_what_is_no_version_and_reports_it(tmp_path, build_inputs, capsys, stray):
    repository = ModelRepository.open(tmp_path / "repository")
    stray(repository.model_folder("fp32") / "1")
    assert main(build_arguments(repository.path, "after", build_inputs)) == 0
    assert repository.versions("fp32") == [2]
    assert "network_fp32: '1' is a " in "".join(capsys.readouterr())


def test_a_repository_whose_copy_was_cut_short_is_completed(tmp_path):
    path = tmp_path / "repository"
    ModelRepository.open(path)
    (path / ".copying").touch()
    shutil.rmtree(path / "postprocess")
    with pytest.raises(RepositoryError, match="not a model repository"):
        ModelRepository.existing(path)
    repository = ModelRepository.open(path)
    assert (path / "postprocess" / "config.pbtxt").is_file()
    assert verify(repository).faults == []
