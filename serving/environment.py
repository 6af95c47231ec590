"""What the server needs from a machine, checked before it starts."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from base.names import SHARED_MEMORY
from serving.errors import EnvironmentFault, PortInUse

MIN_GLIBC: Final = (2, 35)
PYTHON_VERSIONS: Final = ((3, 10), (3, 12))
ARCHITECTURES: Final = ("x86_64", "aarch64")
MAX_PORT: Final = 65535
LEAST_SHARED_MEMORY_BYTES: Final = 16 << 20
"""Free when a server starts: with three precisions it takes 8 MB before the first request."""
ENOUGH_SHARED_MEMORY_BYTES: Final = 512 << 20
"""Each process has a pool of shared memory, which grows to its largest request."""


def check_platform(system: str | None = None, machine: str | None = None, glibc: str | None = None) -> None:
    """Check operating system, architecture and C library; None takes this machine's.

    Raises:
        EnvironmentFault: the embedded server does not run here.
    """
    system = system or platform.system()
    machine = machine or platform.machine()
    remedy = "use `docker compose up` or a machine that fits"
    if system != "Linux":
        raise EnvironmentFault(f"this is {system}; the embedded tritonserver runs on Linux: {remedy}")
    if machine not in ARCHITECTURES:
        raise EnvironmentFault(f"this machine is {machine}; allowed: {', '.join(ARCHITECTURES)}: {remedy}")
    glibc = glibc if glibc is not None else _glibc()
    version = tuple(int(part) for part in glibc.split(".")[:2]) if glibc else ()
    if version < MIN_GLIBC:
        wanted = ".".join(map(str, MIN_GLIBC))
        raise EnvironmentFault(
            f"the C library is {f'glibc {glibc}' if glibc else 'not glibc'}; the embedded tritonserver needs glibc "
            f"{wanted} or newer (Ubuntu 22.04, Debian 12): {remedy}"
        )


def check_python(version: tuple[int, int] | None = None, numpy_version: str | None = None) -> None:
    """Check the Python that the models will run in.

    Raises:
        EnvironmentFault: the server's Python backend does not work with it.
    """
    version = version or sys.version_info[:2]
    lowest, highest = PYTHON_VERSIONS
    if not lowest <= version <= highest:
        raise EnvironmentFault(
            f"this is Python {version[0]}.{version[1]}; the server's Python backend needs 3.10, 3.11 or 3.12. "
            "Set the environment up again with `make base PYTHON=python3.12`"
        )
    if numpy_version is None:
        import numpy as np

        numpy_version = np.__version__
    if int(numpy_version.split(".", maxsplit=1)[0]) >= 2:
        raise EnvironmentFault(
            f"NumPy is {numpy_version}; the server's Python backend needs 1.26. Install with `pip install 'numpy<2'`"
        )


def find_libpython(folders: Iterable[Path] | None = None) -> Path:
    """The folder that holds this Python's shared library, which the Python backend's stub is linked to.

    Raises:
        EnvironmentFault: it is not there (a Python without it, or a package not installed).
    """
    major, minor = sys.version_info[:2]
    name = f"libpython{major}.{minor}.so.1.0"
    for folder in folders if folders is not None else _library_folders():
        if (folder / name).is_file():
            return folder
    raise EnvironmentFault(
        f"{name} was not found; the server's Python backend is linked to it. On Debian and Ubuntu: "
        f"`apt-get install libpython{major}.{minor}`; with pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared"
    )


def check_shared_memory(folder: Path = SHARED_MEMORY) -> str:
    """Check that the server and its Python models have room to exchange tensors.

    Args:
        folder: where shared memory is.

    Returns:
        What will fail and what helps, where little is free; else an empty text.

    Raises:
        EnvironmentFault: there is none, or too little to start a server.
    """
    remedy = (
        "give the container 1 GB or more: `docker run --shm-size=2g`, `shm_size` in Compose (SHM_SIZE in .env), a "
        "volume of medium Memory on Kubernetes"
    )
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise EnvironmentFault(f"{folder} cannot be used for shared memory ({error.strerror}); {remedy}") from error
    free, size = (blocks * found.f_frsize for blocks in (found.f_bavail, found.f_blocks))
    room = f"{free >> 20} of {size >> 20} MB are free in {folder}"
    if free < LEAST_SHARED_MEMORY_BYTES:
        raise EnvironmentFault(f"{room}, too little shared memory to start a server; {remedy}")
    if free < ENOUGH_SHARED_MEMORY_BYTES:
        return (
            f"{room}: large images and batches will be refused with 'Failed to increase the shared memory pool size'; "
            f"{remedy}"
        )
    return ""


def resolve_host(host: str) -> str:
    """The IPv4 address to listen on; tritonserver spells IPv6 addresses differently for each protocol.

    Args:
        host: an address of this machine, ``0.0.0.0`` for all of them, or a name such as ``localhost``.

    Raises:
        EnvironmentFault: the name has no IPv4 address, or it is not one of this machine.
    """
    remedy = "give an IPv4 address of this machine with --host, such as 127.0.0.1"
    try:
        address = str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise EnvironmentFault(f"{host!r} has no IPv4 address; {remedy}") from error
    if _bind_error(address, 0) == errno.EADDRNOTAVAIL:
        raise EnvironmentFault(f"{host} is not an address of this machine; {remedy}")
    return address


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Check that the ports differ and that each can be listened on; 0 is ignored.

    Args:
        host: IPv4 address to bind to.
        ports: option name, such as ``--http-port``, to port.

    Raises:
        EnvironmentFault: a port is out of range, or may not be used by this user.
        PortInUse: something listens on it, or two options ask for it.
        Both name the port and the option that changes it.
    """
    asked: dict[int, str] = {}
    for option, port in ports.items():
        if not 0 <= port <= MAX_PORT:
            raise EnvironmentFault(
                f"port {port} is out of range; give 1 to {MAX_PORT}, or 0 for a free one, with {option}"
            )
        if port == 0:
            continue
        if port in asked:
            raise PortInUse(f"port {port} is asked for by {asked[port]} and {option}; choose another one with {option}")
        asked[port] = option
        fault = _bind_error(host, port)
        if fault == errno.EADDRINUSE:
            raise PortInUse(f"port {port} on {host} is in use; choose another one with {option}")
        if fault:
            raise EnvironmentFault(
                f"port {port} on {host} may not be used ({os.strerror(fault)}); choose another one with {option}"
            )


def is_free(host: str, port: int) -> bool:
    """Whether the port can be listened on."""
    return _bind_error(host, port) == 0


def free_ports(host: str, count: int, taken: Collection[int] = ()) -> list[int]:
    """Ports that nothing listens on now, all different and none of ``taken``."""
    probes = [socket.socket(socket.AF_INET) for _ in range(count + len(taken))]
    try:
        for probe in probes:
            probe.bind((host, 0))
        found = [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
    return [port for port in found if port not in taken][:count]


def _bind_error(host: str, port: int) -> int:
    """Number of the error of binding to a port, as in :mod:`errno`; 0 if it works."""
    with socket.socket(socket.AF_INET) as probe:
        # As tritonserver does: connections of an earlier server may still be closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno or errno.EIO
        return 0


def _glibc() -> str:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    except (ValueError, OSError):
        return ""


def _library_folders() -> list[Path]:
    multiarch = f"{platform.machine()}-linux-gnu"
    named = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL")]
    folders = [Path(folder) for folder in named if folder]
    folders += [Path(sys.base_prefix) / "lib", Path(f"/usr/lib/{multiarch}"), Path(f"/lib/{multiarch}")]
    folders += [Path("/usr/lib64"), Path("/usr/lib"), Path("/usr/local/lib")]
    folders += [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    return folders + _linker_folders()


def _linker_folders() -> list[Path]:
    """Folders of the libpythons that the dynamic linker knows."""
    # /sbin is not on the PATH of ordinary users on Debian.
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if ldconfig is None:
        return []
    try:
        listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [Path(file).parent for file in re.findall(r"libpython\S+ .*=> (\S+)", listing)]
