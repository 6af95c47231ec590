"""The stack in a real container engine, from a checkout of its own that belongs to an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scenes.reference import fetch_reference
from serving.environment import free_ports

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "LOCUST_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")


def docker(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    given = {"check": True, "timeout": 900, **options}
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, **given)  # noqa: PLW1510 - given


def engine_fault() -> str:
    """Why no container can be run here; empty if one can."""
    if shutil.which("docker") is None:
        return "no docker"
    done = docker("compose", "version", check=False)
    done = done if done.returncode else docker("info", check=False, timeout=30)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    fault = engine_fault()
    if fault:
        reason = f"no container engine ({fault}); with Docker and Compose, make test-containers runs it"
        for item in items:
            if ROOT / "tests/containers" in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


def wait_for(condition: Callable[[], Any], within_s: float, what: str) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}"
        time.sleep(0.3)
    return found


class Stack:
    """A checkout in which ``docker compose`` is typed as the README says.

    Attributes:
        folder: the checkout.
        ports: by their names in ``.env``.
    """

    def __init__(self, folder: Path, uid: int) -> None:
        self.folder, self.project = folder, f"segmentation-{secrets.token_hex(3)}"
        self.ports = dict(zip(PORTS, free_ports("127.0.0.1", len(PORTS)), strict=True))
        self.env = {
            **self.ports,
            "SEGMENTATION_UID": uid,
            "SEGMENTATION_GID": uid,
            "COMPOSE_PROJECT_NAME": self.project,
        }
        self.write_env()

    def write_env(self, **changes: Any) -> None:
        self.env |= changes
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in self.env.items()))

    def compose(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return docker("compose", *arguments, cwd=self.folder, **options)

    def url(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def logs(self, service: str = "triton") -> str:
        done = self.compose("logs", "--no-color", service)
        return done.stdout + done.stderr

    def container(self, service: str = "triton") -> dict[str, Any]:
        (found,) = json.loads(docker("inspect", self.compose("ps", "--all", "--quiet", service).stdout.strip()).stdout)
        return dict(found)

    def health(self) -> str:
        return str(self.container()["State"].get("Health", {}).get("Status"))

    def inside(self, command: str, service: str = "triton", **options: Any) -> str:
        return self.compose("exec", "--no-TTY", service, "sh", "-c", command, **options).stdout

    def pids(self, pattern: str) -> list[str]:
        """Processes of the server's container by their command lines."""
        script = "for p in /proc/[0-9]*; do echo ${p#/proc/} $(tr '\\0' ' ' <$p/cmdline); done"
        lines = [line.split(maxsplit=1) for line in self.inside(script).splitlines()]
        return [words[0] for words in lines if len(words) == 2 and pattern in words[1]]

    def down(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "5", check=False)


def checkout(uid: int, umask: int = 0o077) -> Path:
    """The tracked files, as a clone of this user under this umask has them; deleted by the caller."""
    folder = Path(tempfile.mkdtemp(prefix="stack-", dir=os.environ.get("CONTAINER_FOLDER")))
    folder.chmod(0o755)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
            (folder / name).chmod(0o666 & ~umask)
    for place in [folder, *folder.rglob("*")]:
        os.chown(place, uid, uid)
        if place.is_dir():
            place.chmod(0o777 & ~umask)
    return folder


@contextlib.contextmanager
def stack_of(uid: int, umask: int = 0o077) -> Iterator[Stack]:
    folder = checkout(uid, umask)
    stack = Stack(folder, uid)
    try:
        yield stack
    finally:
        stack.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def reference() -> Any:
    return fetch_reference()


@pytest.fixture(scope="session")
def stack(reference: Any) -> Iterator[Stack]:
    """The stack as the README starts it: of a user who is not 1000, cloned under umask 077."""
    with stack_of(4321) as stack:
        for photograph in reference.photographs:
            shutil.copy(photograph, stack.folder / "images")
            os.chown(stack.folder / "images" / photograph.name, 4321, 4321)
        started = time.monotonic()
        done = stack.compose("up", "--detach", "--wait", check=False)
        assert done.returncode == 0, done.stderr[-3000:] + stack.logs("builder")[-3000:] + stack.logs()[-3000:]
        print(f"up --wait, images and versions from nothing: {time.monotonic() - started:.0f} s")
        yield stack


@pytest.fixture(scope="session")
def built(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The versions that the stack's builder made."""
    target = tmp_path_factory.mktemp("built") / "model_repository"
    return Path(shutil.copytree(stack.folder / "model_repository", target))
