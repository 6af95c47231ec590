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

from base.cache import CACHE_VARIABLE, cache_dir
from base.files import is_private, open_private, private_folder, write_atomically
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
        """Write the state file, readable only by this user.

        Raises:
            RepositoryError: another user made the folder for it.
        """
        path = _made_folder() / f"{self.pid}.json"
        write_atomically(path, json.dumps(asdict(self), indent=2, allow_nan=False), mode=0o600)
        return path


def running_servers(repository: Path | None = None) -> list[RunningServer]:
    """Servers of this user that are alive, of one repository or of all.

    What dead ones left is removed: shared memory stays when a server and its parent were both killed, and processes of
    its Python backend may stay for seconds more. Files that another user could have written are ignored.
    """
    found: list[RunningServer] = []
    folder = _folder()
    if not is_private(folder):
        return found
    for path in sorted(folder.glob("*.json")):
        try:
            with os.fdopen(open_private(path, os.O_RDONLY), encoding="utf-8") as stream:
                server = RunningServer(**json.load(stream))
        except (OSError, ValueError, TypeError, RecursionError):
            continue
        if not _is_alive(server.pid):
            clear_after(server.shm_prefix)
            path.unlink(missing_ok=True)
        elif repository is None or Path(server.repository) == repository.resolve():
            found.append(server)
    return found


def scratch_folder(prefix: str) -> Path:
    """Folder for a server's own files, under a name that tritonserver can use; see :func:`clear_after`.

    Raises:
        RepositoryError: no usual folder for temporary files has such a name and is writable.
    """
    _made_folder()
    folder = next((one for one in _scratch_parents() if is_safe(one) and os.access(one, os.W_OK)), None)
    if folder is None:
        raise RepositoryError(
            "no folder for temporary files has a path of only ASCII letters, digits and ._/+@,=-, which tritonserver "
            "needs; set TMPDIR to one that is writable"
        )
    return folder / f"{prefix}files"


def is_safe(path: Path) -> bool:
    """Whether tritonserver can use a path: it starts its Python processes through a shell, without quotes."""
    return _SAFE.fullmatch(str(path)) is not None


def clear_after(prefix: str) -> None:
    """Remove what a dead server left: processes of its Python backend, shared memory and its own files.

    Anything but the prefix of one server is ignored. So is what another user put under it.
    """
    if SHM_PREFIX.fullmatch(prefix):
        _kill_orphans(prefix)
        for region in SHARED_MEMORY.glob(f"{prefix}*"):
            if is_private(region):
                shutil.rmtree(region, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # another user's, or gone
                    region.unlink()
        for folder in _scratch_parents():
            shutil.rmtree(folder / f"{prefix}files", ignore_errors=True)


def _kill_orphans(prefix: str) -> None:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                program, *arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if STUB_NAME in program and any(argument.startswith(prefix) for argument in arguments):
                    os.kill(int(process.name), signal.SIGKILL)


def _folder() -> Path:
    """Where state files lie; a second name where another user made the first one in a cache that they share."""
    first = cache_dir() / "servers"
    return first if is_private(first) or not os.path.lexists(first) else cache_dir() / f"servers-{os.geteuid()}"


def _made_folder() -> Path:
    try:
        return private_folder(_folder())
    except PermissionError as error:
        raise RepositoryError(
            f"{error.filename}: {error.strerror}; set {CACHE_VARIABLE} to a folder that only you can write to"
        ) from error


def _scratch_parents() -> list[Path]:
    return [_folder(), Path(tempfile.gettempdir()), *map(Path, ("/tmp", "/var/tmp"))]  # noqa: S108


def _is_alive(pid: int) -> bool:
    process = Path(f"/proc/{pid}")
    # A process that is just starting has a program before it has a command line. Where tritonserver is a script, or of
    # another user namespace, only the command line names it. A dead process has neither.
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
