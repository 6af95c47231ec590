"""Serve, call, build and measure where people really are: behind proxies, in odd folders, without a home."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from base.cache import cache_dir
from base.names import SHARED_MEMORY
from repository.running import running_servers

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "http://127.0.0.1:9"  # discard: a proxy there refuses every connection
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
COMMANDS = ("serving", "client", "builder", "load", "bench", "demo")
LIBRARIES = ("base", "pipeline", "repository", "scenes", "steps")


@dataclass
class Place:
    """Where commands run."""

    repository: Path  # model repository that they serve
    photographs: Path  # folder of two images, one of which has a name that is no UTF-8
    cwd: Path = ROOT  # working folder
    python: Path = Path(sys.executable)  # of the environment
    changed: dict[str, str | None] = field(default_factory=dict)  # environment variables; None unsets one
    umask: int = 0o022  # of the processes
    installed: bool = False  # call the installed commands instead of ``python -m``

    def options(self, command, *arguments):
        environment = {name: value for name, value in os.environ.items() if name.lower() not in ("no_proxy", *PROXIES)}
        for name, value in self.changed.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        start = [self.python.parent / f"segmentation-{command}"] if self.installed else [self.python, "-m", command]
        return {
            "args": [*map(os.fspath, start), *map(os.fspath, arguments)],
            "cwd": self.cwd,
            "env": environment,
            "umask": self.umask,
            "stdin": subprocess.DEVNULL,
        }

    def run(self, command, *arguments):
        done = subprocess.run(
            **self.options(command, *arguments),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
        return done.stdout

    @contextmanager
    def served(self):
        """A server of int8; its urls by protocol."""
        ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
        options = self.options("serving", "run", "--repository", self.repository, "--precisions", "int8", *ports)
        with tempfile.TemporaryFile() as log:
            server = subprocess.Popen(**options, stdout=subprocess.PIPE, stderr=log, text=True, errors="replace")
            try:
                urls = {}
                for line in server.stdout:
                    urls |= {name.lower(): url for name, url in re.findall(r"(HTTP|gRPC) (127\.0\.0\.1:\d+)", line)}
                    if "Ctrl-C stops" in line:
                        break
                log.seek(0)
                assert set(urls) == {"http", "grpc"}, log.read()[-2000:].decode(errors="replace")
                yield urls
            finally:
                server.terminate()
                try:
                    assert server.wait(30) == 0
                finally:
                    server.kill()


def moved(folder, repository):
    """This project's files in another folder, with this environment and cache, and a repository below it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "model_repository/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".cache").symlink_to(cache_dir())
    shutil.copytree(repository, folder / "model_repository", symlinks=True)
    return folder


def in_folder(name):
    def prepare(place, tmp_path):
        place.cwd = moved(tmp_path / name, place.repository)
        place.repository = place.cwd / "model_repository"
        place.python = place.cwd / ".venv" / "bin" / "python"

    return prepare


def with_variables(**changed):
    return lambda place, _: place.changed.update(changed)


def with_umask(place, _):
    place.umask = 0o077


def with_linked_repository(place, tmp_path):
    (tmp_path / "link").symlink_to(place.repository)
    place.repository = tmp_path / "link"


def with_odd_repository(place, tmp_path):
    target = tmp_path / "models (é), $HOME; it's mine"
    shutil.copytree(place.repository, target)
    place.repository = target


def among_other_modules(place, tmp_path):
    """Another project's modules, some of which have the names of the commands."""
    place.cwd = tmp_path / "other"
    place.cwd.mkdir()
    for name in (*COMMANDS, *LIBRARIES, "tests", "monitoring"):
        (place.cwd / f"{name}.py").write_text(f"raise SystemExit('{name}.py of another project')\n")
    place.installed = True


DEAD_PROXIES = with_variables(**dict.fromkeys(PROXIES, NOBODY))
# Independent conditions share a run where each would fail in a way that names it.
ENVIRONMENTS = {
    "locale C, é in the path": (with_variables(LC_ALL="C", LANG=None, PYTHONUTF8="0"), in_folder("prüfung é")),
    "umask 077, blank, é and what a shell reads in the path": (with_umask, in_folder("Prüfung (2), it's $HOME & é")),
    "no home, odd repository, other modules": (with_variables(HOME=None), with_odd_repository, among_other_modules),
    "home that cannot be made, linked repository, proxies": (
        with_variables(HOME="/proc/nohome", XDG_CACHE_HOME=None),
        with_linked_repository,
        DEAD_PROXIES,
    ),
}


@pytest.fixture
def photographs(reference, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path, name in zip(reference.photographs, (b"foto \xff.png", "größe.png".encode()), strict=False):
        shutil.copy(path, os.fsencode(folder) + b"/" + name)
    return folder


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_serve_call_build_and_measure(name, repository, photographs, tmp_path):
    place = Place(repository, photographs)
    for prepare in ENVIRONMENTS[name]:
        prepare(place, tmp_path)
    with place.served() as urls:
        (prefix,) = (server.shm_prefix for server in running_servers() if server.http == urls["http"])
        assert files_of(prefix)
        for protocol, url in urls.items():
            out = tmp_path / f"out {protocol}"
            called = ["--protocol", protocol, "--url", url, "--out", out, "--json", out / "result.json"]
            place.run("client", photographs, *called)
            found = json.loads((out / "result.json").read_text(encoding="utf-8"))
            names = {os.fsencode(image["file_name"]) for image in found["images"]}
            assert names == {b"photographs/foto \xff.png", "photographs/größe.png".encode()}
            assert len(found["annotations"]) >= 2
            assert {os.fsencode(path.name) for path in (out / "photographs").iterdir()} == set(
                map(os.path.basename, names)
            )
        measured = ["--users", "1", "--rounds", "1", "--duration", "1", "--warm-up", "0.2", "--precisions", "int8"]
        given = [f"--url-{protocol}={url}" for protocol, url in urls.items()]
        place.run("load", "compare", *measured, *given, "--images", photographs, "--out", tmp_path / "load")
        assert json.loads((tmp_path / "load" / "report.json").read_text(encoding="utf-8"))
        assert (tmp_path / "load" / "report.html").read_text(encoding="utf-8")
        # The running server is found by its repository, and reloaded over gRPC.
        place.run("builder", "promote", "network_int8/1", "--repository", place.repository)
    assert not files_of(prefix)
    built = place.run(
        "builder", "build", "--precisions", "fp32", "--verification-scenes", "4", "--repository", place.repository
    )
    assert "network_fp32" in built


def files_of(prefix):
    """What a server has made: shared memory, and its files."""
    folders = (Path(tempfile.gettempdir()), cache_dir() / "servers", SHARED_MEMORY)
    return [path for folder in folders for path in folder.glob(f"{prefix}*")]


PORTS = {"HTTP_PORT": "8010", "GRPC_PORT": "8011", "METRICS_PORT": "8012"}


@pytest.mark.parametrize("way", ["command line", "environment", ".env"])
@pytest.mark.parametrize("target", ["serve", "demo", "load", "load-ui"])
def test_make_takes_ports_by_the_names_that_compose_has_for_them(target, way, tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in PORTS}
    words = ["make", "-n", target]
    if way == "command line":
        words += [f"{name}={value}" for name, value in PORTS.items()]
    elif way == "environment":
        environment |= PORTS
    else:
        lines = ["# HTTP_PORT=1", "HTTP_PORT=8010", 'export GRPC_PORT="8011"  # of gRPC', "METRICS_PORT = 8012"]
        (tmp_path / ".env").write_text("\n".join(lines) + "\n")
    last = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    given = dict(re.findall(r"--(http|grpc|metrics)-port (\d+)", last))
    # What starts a server for itself takes free ports, though .env says where the one that stays is.
    if way == ".env" and target != "serve":
        assert not given
    else:
        assert given == {"http": "8010", "grpc": "8011", "metrics": "8012"}
    words.append("HTTP_PORT=8020")
    with_both = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "--http-port 8020" in with_both.stdout


def test_make_serve_listens_where_it_should(repository):
    with Place(repository, ROOT).served() as urls:
        taken = urls["http"].rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "serving", "run", "--repository", repository, "--http-port", taken],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"port {taken} on 127.0.0.1 is in use; choose another one with --http-port (make: HTTP_PORT)" in done.stderr


def test_a_start_that_cannot_work_ends_at_once(repository, tmp_path):
    """No folder of a name that tritonserver can use: said, not waited for."""
    code = (
        "import sys, pathlib, repository.running as state;"
        "state._scratch_parents = lambda: [pathlib.Path('/no (where)')];"
        "from serving.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "--repository", repository, *ports],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "set TMPDIR to one that is writable" in done.stderr
    assert time.monotonic() - started < 30
