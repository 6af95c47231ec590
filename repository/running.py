"""Which servers run on this machine, and the secret that opens their model-control API."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from base.cache import cache_dir
from base.names import SHARED_MEMORY, SHM_PREFIX, STUB_NAME
from repository.errors import RepositoryError

_SAFE: Final = re.compile(r"[A-Za-z0-9._/+@,=-]+")


@dataclass(frozen=True)
class RunningServer:
    """A server that ``python -m serving run`` started.

    Attributes:
        pid: of tritonserver.
        profile: cpu, tensorrt or cuda.
        repository: its model repository, absolute.
        http: host and port of its HTTP endpoint.
        grpc: host and port of its gRPC endpoint.
        metrics: host and port of its metrics endpoint.
        admin_secret: value of the header that opens the restricted APIs.
        shm_prefix: beginning of the names of its shared memory regions.
    """

    pid: int
    profile: str
    repository: str
    http: str
    grpc: str
    metrics: str
    admin_secret: str
    shm_prefix: str = ""

    def write(self) -> Path:
        """Write the state file, whole or not at all, readable by this user alone."""
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{self.pid}.json"
        beside = folder / f".{self.pid}"
        beside.unlink(missing_ok=True)  # of a process that had this number before
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(self), stream, indent=2)
        return beside.replace(path)


def running_servers(repository: Path | None = None) -> list[RunningServer]:
    """Servers of this user that are alive, of one repository or of all.

    What dead ones left behind is removed: shared memory stays when both a server and its parent were killed, and at
    times processes of its Python backend stay for seconds more.
    """
    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            server = RunningServer(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if not _is_alive(server.pid):
            clear_after(server.shm_prefix)
            path.unlink(missing_ok=True)
        elif repository is None or Path(server.repository) == repository.resolve():
            found.append(server)
    return found


def find_server(repository: Path) -> RunningServer:
    """The one server of a repository.

    Raises:
        RepositoryError: none runs, or more than one.
    """
    found = running_servers(repository)
    if len(found) != 1:
        raise RepositoryError(
            f"{len(found)} servers of {repository} run on this machine; expected: 1. Start one with "
            f"`python -m serving run --repository {repository}`"
        )
    return found[0]


def scratch_folder(prefix: str) -> Path:
    """Where a server may keep files of its own, under a name that tritonserver can use; see :func:`clear_after`.

    Raises:
        RepositoryError: none of the usual folders for temporary files has such a name and can be written to.
    """
    _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = next((one for one in _scratch_parents() if is_safe(one) and os.access(one, os.W_OK)), None)
    if folder is None:
        raise RepositoryError(
            "no folder for temporary files has a path of ASCII letters, digits and ._/+@,=- alone, which tritonserver "
            "needs; set TMPDIR to one that can be written to"
        )
    return folder / f"{prefix}files"


def is_safe(path: Path) -> bool:
    """Whether tritonserver can use a path: it starts its Python processes through a shell, without quotes."""
    return _SAFE.fullmatch(str(path)) is not None


def clear_after(prefix: str) -> None:
    """Remove what a server that has ended leaves: processes of its Python backend, shared memory and its own files."""
    if SHM_PREFIX.fullmatch(prefix):
        _kill_orphans(prefix)
        remove_shared_memory(prefix)
        for folder in _scratch_parents():
            shutil.rmtree(folder / f"{prefix}files", ignore_errors=True)


def remove_shared_memory(prefix: str, folder: Path = SHARED_MEMORY) -> None:
    """Remove a dead server's shared memory regions; anything but the prefix of one server is ignored."""
    if SHM_PREFIX.fullmatch(prefix):
        for region in folder.glob(f"{prefix}*"):
            region.unlink(missing_ok=True)


def _kill_orphans(prefix: str) -> None:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
                program, *arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if STUB_NAME in program and any(argument.startswith(prefix) for argument in arguments):
                    os.kill(int(process.name), signal.SIGKILL)


def _folder() -> Path:
    return cache_dir() / "servers"


def _scratch_parents() -> list[Path]:
    return [_folder(), Path(tempfile.gettempdir()), *map(Path, ("/tmp", "/var/tmp"))]  # noqa: S108


def _is_alive(pid: int) -> bool:
    process = Path(f"/proc/{pid}")
    # The program is known a moment before the command line of a process that is being started is; where tritonserver is
    # a script, or of another user namespace, only the command line names it. A dead process has neither.
    try:
        if (process / "exe").readlink().name.startswith("tritonserver"):
            return True
    except PermissionError:
        pass
    except OSError:
        return False
    try:
        return b"tritonserver" in (process / "cmdline").read_bytes()
    except OSError:
        return False
