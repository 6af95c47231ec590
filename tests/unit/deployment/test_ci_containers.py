"""CI's step for containers: skipped where no engine can be had, red where a test is."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="root, who alone can start an engine, is missing; as root, make test-unit runs it"
)


def run(tmp_path, engine=None, tests_status=0, uid=0, build="exit 0", ends=False, other=1):
    """The step with commands in place of an engine, which note what was called; returns status, output, calls."""
    commands, calls = tmp_path / "bin", tmp_path / "calls"
    commands.mkdir()
    docker = f'case "$1" in build) {build};; *) [ -n "${{DOCKER_HOST:-}}" ] && [ ! -e {tmp_path}/ended ];; esac'
    make = f"echo make $* >>{calls}; {f'touch {tmp_path}/ended;' if ends else ''} exit {tests_status}"
    for name, script in {"docker": docker, "make": make, "id": f"echo {uid}", "pgrep": f"exit {other}"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "engine.sh").write_text(f"echo $1 >>{calls}; {engine}\n" if engine else "")
    environment = {key: value for key, value in os.environ.items() if key != "DOCKER_HOST"}
    environment |= {"PATH": f"{commands}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    environment["ENGINE_TIMEOUT_S"] = "2"
    environment["ENGINE_SCRIPT"] = str(tmp_path / ("engine.sh" if engine else "none"))
    done = subprocess.run([ROOT / ".ci/containers"], capture_output=True, text=True, env=environment, check=False)
    left = [path.name for path in tmp_path.iterdir() if path.name not in ("bin", "calls", "engine.sh", "ended")]
    assert left == []
    return done.returncode, done.stdout, calls.read_text().split("\n")[:-1] if calls.exists() else []


def test_without_an_engine_it_is_skipped(tmp_path):
    status, output, calls = run(tmp_path)
    assert status == 0
    assert "SKIPPED: no container engine on this machine" in output
    assert calls == []


@needs_root
def test_an_engine_that_does_not_start_is_skipped_and_removed(tmp_path):
    status, output, calls = run(tmp_path, engine="echo no kernel module; [ $1 = down ]")
    assert status == 0
    assert "SKIPPED: no engine could be started: no kernel module" in output
    assert calls == ["up", "down"]


STARTS = "echo 'export DOCKER_HOST=unix:///run/it'"


def test_who_is_not_root_starts_no_engine(tmp_path):
    status, output, calls = run(tmp_path, engine=STARTS, uid=1000)
    assert status == 0
    assert "SKIPPED: no container engine on this machine, and starting one needs root" in output
    assert calls == []


@needs_root
def test_no_second_engine_is_started(tmp_path):
    status, output, calls = run(tmp_path, engine=STARTS, other=0)
    assert status == 0
    assert "SKIPPED: another engine runs on this machine" in output
    assert calls == []


@needs_root
@pytest.mark.parametrize(
    ("options", "reason", "called"),
    [
        ({"engine": "[ $1 = down ] || sleep 60"}, "no engine could be started", ["up", "down"]),
        ({"engine": "echo no export"}, "the engine that was started does not answer", ["up", "down"]),
        (
            {"engine": STARTS, "build": "echo no route to the registry >&2; exit 1"},
            "the engine cannot build on python:3.12.12-slim-bookworm with packages: no route to the registry",
            ["up", "down"],
        ),
        (
            {"engine": STARTS, "tests_status": 2, "ends": True},
            "the engine ended during the tests (their status: 2)",
            ["up", "make test-containers", "down"],
        ),
    ],
    ids=["hangs", "does not answer", "cannot build", "ends during the tests"],
)
def test_a_fault_of_the_engine_is_no_failure(tmp_path, options, reason, called):
    status, output, calls = run(tmp_path, **options)
    assert status == 0
    assert f"SKIPPED: {reason}" in output
    assert calls == called


@needs_root
@pytest.mark.parametrize("tests_status", [0, 2])
def test_the_tests_decide_and_the_engine_is_removed(tmp_path, tests_status):
    status, _, calls = run(tmp_path, engine=STARTS, tests_status=tests_status)
    assert status == tests_status
    assert calls == ["up", "make test-containers", "down"]
