"""The README's commands, run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compose import PROFILES, resolved
from tests.integration.conftest import keep, kept_repository

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    re.split(r"\s+#", line)[0]
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """The tracked files in a separate folder, with this environment as their ``.venv``."""
    folder = tmp_path_factory.mktemp("checkout") / "repository"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / ".cache").symlink_to(ROOT / ".cache")
    return folder


def run(command, folder, **options):
    environment = {"PATH": f"{folder / '.venv' / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(folder)}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True, timeout=900, **options)


def start(command, folder):
    """Start a server and wait until it has said how to call it."""
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    said = any("Ctrl-C stops" in line for line in server.stdout)
    assert said, f"{command} ended without becoming ready"
    return server


def interrupt(server):
    """Ctrl-C: it goes to the whole process group."""
    os.killpg(server.pid, signal.SIGINT)
    server.wait(60)


def test_every_command_is_known():
    known = ("make ", "curl -F image=@photo.jpg ", "python -m ", "sh requirements/install.sh ", ". .venv/bin/activate")
    known += ("docker compose ",)
    assert COMMANDS
    assert all(command.startswith(known) for command in COMMANDS), COMMANDS


@pytest.mark.parametrize("document", ["README.md", "docs/deployment.md", "docker-compose.yml", ".env.example"])
def test_compose_commands_name_services_and_profiles_that_are_there(document):
    """The services themselves are tried in tests/containers."""
    config = resolved(*PROFILES)["services"]
    # Up to a comment, or to what an aligned list says of it.
    commands = re.findall(r"docker compose (.+?)(?=  |[`\n#\\])", (ROOT / document).read_text())
    assert commands
    for command in commands:
        words = [word.strip('`.,;()"') for word in command.split()]
        profiles = [words[place + 1] for place, word in enumerate(words) if word == "--profile"]
        assert set(profiles) <= {*PROFILES, "*"}, command
        (verb,) = (word for word in words if word in ("run", "up", "down", "stop"))
        named = words[words.index(verb) + 1 :]
        plain = [word for word in named if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)]
        if verb == "run":
            assert plain[0] in config, command
        else:
            assert not plain or plain[0] in config, command


def test_make_targets_exist():
    targets = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert {"demo", "test", "serve"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_demo_then_serve_then_the_client(checkout, reference):
    """One after the other in one checkout: the versions that the demo builds are the ones that are served."""
    assert "make demo" in COMMANDS
    # From nothing whenever the builder, the models or the packages have changed; else with what it built then.
    kept = kept_repository("demonstration")
    if kept.exists():
        shutil.copytree(kept, checkout / "model_repository", dirs_exist_ok=True)
    first = run("make demo", checkout, capture_output=True, text=True)
    assert first.stderr.count("already built") == (3 if kept.exists() else 0)
    if not kept.exists():
        keep(checkout / "model_repository", kept)
    assert first.stdout.count("us_card_rotated.png") == 6
    for precision in ("fp32", "fp16", "int8"):
        assert (checkout / "out" / f"{precision}.json").is_file()
        assert len(list((checkout / "out" / precision).glob("*.png"))) == 5
    assert (checkout / "out" / "scene.jpg").is_file()
    assert subprocess.run(["pgrep", "-f", "--", f"--model-repository={checkout}"], check=False).returncode == 1

    (client,) = (command for command in COMMANDS if command.startswith("python -m client"))
    (checkout / "photographs").mkdir()
    for path in reference.photographs:
        shutil.copy(path, checkout / "photographs")
    (curl,) = (command for command in COMMANDS if command.startswith("curl "))
    shutil.copy(reference.photographs[2], checkout / "photo.jpg")
    server = start(["make", "serve"], checkout)
    try:
        answer = json.loads(run(curl, checkout, capture_output=True, text=True).stdout)
        assert [found["class_name"] for found in answer["images"][0]["detections"]] == ["card", "card"]
        result = run(client, checkout, capture_output=True, text=True)
        assert "mklovin.png" in result.stdout
        assert (checkout / "out" / "result.json").is_file()
    finally:
        interrupt(server)


def test_versions_are_listed_and_checked(checkout):
    """After the demonstration has built some."""
    assert "network_int8" in run("python -m builder list", checkout, capture_output=True, text=True).stdout
    assert "no fault" in run("python -m builder verify", checkout, capture_output=True, text=True).stdout
    ready = run("python -m serving preflight", checkout, capture_output=True, text=True).stdout
    assert ready.count("ready ") == 3
    for command in ("python -m builder list", "python -m builder verify", "python -m serving preflight"):
        assert command in COMMANDS


def test_a_comparison_under_load(checkout):
    """The command behind ``make load``, in a fifth of its time, with the versions that the demonstration has built."""
    assert "make load" in COMMANDS
    command = run("make -n load", checkout, capture_output=True, text=True).stdout
    shorter = command.replace("--duration 2.5", "--duration 0.5").replace("--rounds 3", "--rounds 1")
    assert shorter.count("--duration 0.5") == shorter.count("--rounds 1") == 1
    run(shorter, checkout, capture_output=True, text=True)
    for name in ("report.html", "report.json"):
        assert (checkout / "out" / "load" / name).is_file()


def test_a_users_export(checkout, reference):
    build, serve = (command for command in COMMANDS if "my_repository" in command)
    shutil.copy(reference.onnx, checkout / "my-seg.onnx")
    (checkout / "folder" / "of" / "images").mkdir(parents=True, exist_ok=True)
    for path in reference.photographs:
        shutil.copy(path, checkout / "folder" / "of" / "images")
    result = run(build, checkout, capture_output=True, text=True)
    assert result.stdout.count("served") == 3
    ports = " --http-port 0 --grpc-port 0 --metrics-port 0"
    server = start(["bash", "-c", f"exec .venv/bin/{serve}{ports}"], checkout)
    interrupt(server)
    assert server.returncode == 0
