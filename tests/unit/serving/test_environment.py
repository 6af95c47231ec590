"""What the server needs of a machine: each lack is one line that names the fault and the remedy."""

from __future__ import annotations

import os
import re
import socket
import sys
from types import SimpleNamespace

import pytest

from serving.environment import (
    check_platform,
    check_ports,
    check_python,
    check_shared_memory,
    find_libpython,
    free_ports,
    is_free,
    resolve_host,
)
from serving.errors import EnvironmentFault, PortInUse

LIBPYTHON = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


@pytest.fixture
def listener():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("glibc", ["2.35", "2.36", "2.41.9000", "3.0"])
def test_a_machine_that_fits_passes(machine, glibc):
    check_platform("Linux", machine, glibc)


@pytest.mark.parametrize(
    ("system", "machine", "glibc", "message"),
    [
        ("Darwin", "arm64", "", "this is Darwin.*Linux"),
        ("Linux", "riscv64", "2.41", "riscv64; allowed: x86_64, aarch64"),
        ("Linux", "x86_64", "2.34", r"glibc 2\.34.*2\.35 or newer"),
        ("Linux", "x86_64", "2.9", r"glibc 2\.9;.*2\.35"),  # not newer than 2.35, though 9 is more than 3
        ("Linux", "x86_64", "", "not glibc"),
    ],
)
def test_a_machine_that_does_not_fit_is_refused_with_why_and_what_to_do(system, machine, glibc, message):
    with pytest.raises(EnvironmentFault, match=message) as caught:
        check_platform(system, machine, glibc)
    assert "\n" not in str(caught.value)
    assert "docker compose up" in str(caught.value)


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
def test_pythons_with_a_stub_pass(version):
    check_python(version, "1.26.4")


@pytest.mark.parametrize("version", [(3, 9), (3, 13), (4, 0)])
def test_other_pythons_are_refused(version):
    with pytest.raises(EnvironmentFault, match=rf"Python {version[0]}\.{version[1]}; .*3\.10, 3\.11 or 3\.12"):
        check_python(version, "1.26.4")


@pytest.mark.parametrize("numpy", ["2.0.0", "2.3.1", "10.0"])
def test_numpy_2_is_refused_with_the_command_that_helps(numpy):
    with pytest.raises(EnvironmentFault, match="numpy<2"):
        check_python((3, 11), numpy)


def test_libpython_is_found_in_the_first_folder_that_has_it(tmp_path):
    for name in ("empty", "first", "second"):
        (tmp_path / name).mkdir()
    for name in ("first", "second"):
        (tmp_path / name / LIBPYTHON).touch()
    (tmp_path / "empty" / "libpython2.7.so.1.0").touch()
    assert find_libpython(tmp_path / name for name in ("empty", "first", "second")) == tmp_path / "first"


def test_a_missing_libpython_names_the_package(tmp_path):
    with pytest.raises(EnvironmentFault, match=rf"{LIBPYTHON}.*apt-get install libpython3\.\d+"):
        find_libpython([tmp_path])


def test_libpython_is_looked_for_on_the_library_path(tmp_path, monkeypatch):
    for variable in ("LIBDIR", "LIBPL"):
        monkeypatch.setitem(__import__("sysconfig").get_config_vars(), variable, None)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "nothing"))
    monkeypatch.setattr("serving.environment.platform.machine", lambda: "no-such-machine")
    monkeypatch.setattr("serving.environment._linker_folders", list)
    (tmp_path / LIBPYTHON).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert find_libpython() == tmp_path


def test_the_linkers_folders_are_read(tmp_path, monkeypatch):
    from serving.environment import _linker_folders

    ldconfig = tmp_path / "ldconfig"
    ldconfig.write_text(
        "#!/bin/sh\n"
        'printf "2 libs found\\n\\tlibpython3.11.so.1.0 (libc6,x86-64) => /some/where/libpython3.11.so.1.0\\n"\n'
        'printf "\\tlibz.so.1 (libc6,x86-64) => /else/libz.so.1\\n"\n'
    )
    ldconfig.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [str(folder) for folder in _linker_folders()] == ["/some/where"]


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0")],  # noqa: S104
)
def test_a_host_becomes_an_ipv4_address(host, address):
    assert resolve_host(host) == address


@pytest.mark.parametrize("host", ["::1", "256.1.1.1.1", "a..b", "x" * 70])
def test_a_host_without_ipv4_address_is_refused(host):
    with pytest.raises(EnvironmentFault, match=r"no IPv4 address.*--host"):
        resolve_host(host)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(EnvironmentFault, match=r"192\.0\.2\.1 is not an address of this machine.*--host"):
        resolve_host("192.0.2.1")  # TEST-NET-1, RFC 5737: nobody's


def test_free_ports_and_zero_pass():
    http, grpc = free_ports("127.0.0.1", 2)
    check_ports("127.0.0.1", {"--http-port": http, "--grpc-port": grpc, "--metrics-port": 0})
    check_ports("127.0.0.1", {"--http-port": 0, "--grpc-port": 0, "--metrics-port": 0})


def test_a_port_in_use_names_its_option(listener):
    assert not is_free("127.0.0.1", listener)
    with pytest.raises(PortInUse, match=f"port {listener} on 127.0.0.1 is in use; .*--grpc-port"):
        check_ports("127.0.0.1", {"--http-port": 0, "--grpc-port": listener})


def test_a_port_asked_for_twice_is_refused():
    (port,) = free_ports("127.0.0.1", 1)
    with pytest.raises(PortInUse, match=f"port {port} is asked for by --http-port and --metrics-port"):
        check_ports("127.0.0.1", {"--http-port": port, "--grpc-port": 0, "--metrics-port": port})


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(EnvironmentFault, match=f"port {port} is out of range; give 1 to 65535.*--http-port"):
        check_ports("127.0.0.1", {"--http-port": port})


def test_free_ports_differ_and_avoid_those_taken():
    first = free_ports("127.0.0.1", 3)
    second = free_ports("127.0.0.1", 3, first)
    assert len(set(second)) == 3
    assert not set(first) & set(second)
    assert all(is_free("127.0.0.1", port) for port in second)


@pytest.mark.parametrize(
    ("megabytes", "message"),
    [(64, "64 of 128 MB are free .*will be refused.*--shm-size=2g.*shm_size"), (511, "511 of 128"), (512, "^$")],
)
def test_little_shared_memory_is_said_with_what_helps(monkeypatch, megabytes, message):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=megabytes, f_blocks=128, f_frsize=1 << 20))
    assert re.search(message, check_shared_memory(), re.DOTALL)


def test_too_little_shared_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=15, f_blocks=64, f_frsize=1 << 20))
    with pytest.raises(EnvironmentFault, match=r"15 of 64 MB are free.*--shm-size=2g"):
        check_shared_memory()
    monkeypatch.undo()
    with pytest.raises(EnvironmentFault, match="cannot be used for shared memory"):
        check_shared_memory(tmp_path / "missing")
