"""The Dockerfiles: the linter's verdict, what they copy and install."""

import fnmatch
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.dockerfiles import DOCKERFILES, ROOT, stages
from tests.tools import hadolint

STAGES = [(path, stage) for path in DOCKERFILES for stage in stages(path)]
IDS = [f"{path.parent.name}-{stage.name or 'only'}" for path, stage in STAGES]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_the_linter_has_no_complaint(path):
    result = subprocess.run([hadolint(), path], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(("path", "stage"), STAGES, ids=IDS)
def test_every_copied_file_is_there_tracked_and_not_ignored(path, stage):
    ignored = ignore_rules()
    for sources, _ in stage.copies():
        for source in [source for source in sources if not source.startswith(("--from", "/opt", "."))]:
            assert (ROOT / source).exists(), source
            assert not is_ignored(source.rstrip("/"), ignored), source
            tracked = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True, check=True)
            assert tracked.stdout, source


def test_built_versions_and_secrets_stay_out_of_the_images():
    rules = ignore_rules()
    for name in (".env", ".git", "out", ".cache", "images", "tests", "model_repository/network_int8/1"):
        assert is_ignored(name, rules), name
    # What a promotion writes, so that it changes no image.
    for name in ("config.pbtxt", "configs/cpu.pbtxt", ".config.pbtxt.base", "configs/.cpu.pbtxt.base"):
        assert is_ignored(f"model_repository/network_int8/{name}", rules), name
    assert not is_ignored("model_repository/network_int8/configs/cpu.pbtxt.in", rules)
    assert not is_ignored("model_repository/segment_int8/1/.gitkeep", rules)  # Triton wants the folder


@pytest.mark.parametrize(("path", "stage"), STAGES, ids=IDS)
def test_packages_come_from_the_lock_with_hashes(path, stage):
    commands = [command for run in stage.all("RUN") for command in run.split("&&")]
    installs = [command for command in commands if {"pip", "install"} <= {*command.split()}]
    if stage.name in ("trimmed", "tritonserver", "cpu"):  # they take what another stage has installed
        assert not installs
        return
    locked = [command for command in installs if "--require-hashes" in command]
    assert len(locked) == 1
    lock = locked[0].split("-r ")[1].strip()
    assert (ROOT / lock).is_file()
    for command in installs:
        if command not in locked:
            assert "torch==2.13.0" in command  # it is installed beside the lock everywhere
    assert "torch==2.13.0" in (ROOT / "requirements/install.sh").read_text()


@pytest.mark.parametrize(("path", "stage"), STAGES, ids=IDS)
def test_nothing_runs_as_root_and_bases_are_pinned(path, stage):
    if stage.all("ENTRYPOINT"):  # the others are not run
        assert stage.all("USER") == ["1000:1000"]
    assert ":" in stage.base or stage.base in [each.name for each in stages(path)]
    assert not stage.base.endswith(":latest")


def test_server_and_builder_stand_on_the_same_month_and_every_file_names_it():
    """A plan runs only on the TensorRT that built it. ``ARG MONTH`` of ``serving/Dockerfile`` is what others follow."""
    months = {stage.base.rsplit(":", 1)[1] for _, stage in STAGES if stage.base.startswith("nvcr.io")}
    assert len(months) == 1
    month = months.pop().removesuffix("-py3")
    compose = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())
    for name in ("triton", "builder"):
        assert compose["services"][name]["build"]["args"]["MONTH"] == f"${{TRITON_MONTH:-{month}}}"
    named = re.compile(r"(?:MONTH(?:=|:-)|newTag: \"|segmentation-(?:triton|builder):)(2\d\.\d\d)")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found = {}
    for file in files:
        if not file.startswith("tests/") and Path(file).suffix in ("", ".yml", ".yaml", ".md", ".example"):
            numbers = named.findall((ROOT / file).read_text())
            found |= {file: set(numbers)} if numbers else {}
    assert {"compose.gpu.yaml", ".env.example", "docs/scaling.md"} <= set(found)
    assert set.union(*found.values()) == {month}, found


def ignore_rules():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def is_ignored(name, rules):
    """As Docker reads .dockerignore: the last rule that fits the path or a folder above it decides."""
    above = ["/".join(name.split("/")[: depth + 1]) for depth in range(name.count("/") + 1)]
    ignored = False
    for rule in rules:
        pattern = rule.lstrip("!").replace("**/", "*")
        if any(part.count("/") >= pattern.count("/") and fnmatch.fnmatch(part, pattern) for part in above):
            ignored = not rule.startswith("!")
    return ignored


@pytest.mark.parametrize(("path", "stage"), STAGES, ids=IDS)
def test_onnx_runtimes_telemetry_is_off(path, stage):
    if stage.all("ENTRYPOINT"):
        assert stage.environment()["ORT_DISABLE_TELEMETRY"] == "1"
