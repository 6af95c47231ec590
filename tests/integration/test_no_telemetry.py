"""Nothing that is started here calls anybody: every address that is connected or sent to, seen by strace."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r'sin_port=htons\((\d+)\), sin_addr=inet_addr\("([^"]+)"\)')
ADDRESS_6 = re.compile(r'sin6_port=htons\((\d+)\).*?inet_pton\(AF_INET6, "([^"]+)"')
DNS = 53
SESSION = """
import {package}, onnxruntime, sys, time
session = onnxruntime.InferenceSession(sys.argv[1])
time.sleep(15)  # it asks for the host eight seconds after the session was made
"""


@pytest.fixture
def watch(tmp_path):
    """Starts programs under strace; its second call gives whom these and their children called."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing; after apt-get install strace, make test runs it")
    logs = []

    def start(*command, **options):
        logs.append(tmp_path / f"calls-{len(logs)}")
        traced = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-e", "signal=none"]
        return subprocess.Popen([*traced, "-o", str(logs[-1]), *map(str, command)], cwd=ROOT, **options)

    def called():
        text = "".join(log.read_text(errors="replace") for log in logs)
        found = ADDRESS.findall(text) + ADDRESS_6.findall(text)
        # A resolver may listen on loopback: to ask one is to ask the world.
        return {(address, int(port)) for port, address in found if not is_loopback(address) or int(port) == DNS}

    return start, called


def is_loopback(address):
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback  # IPv4 may be called by way of IPv6


def without_the_switch():
    return {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}


def test_strace_sees_a_question_to_a_resolver(watch):
    start, called = watch
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('127.0.0.1', 53))"
    assert start(sys.executable, "-c", code).wait(30) == 0
    assert called() == {("127.0.0.1", DNS)}


def test_onnx_runtime_reports_nothing_once_a_package_is_imported(watch, reference):
    start, called = watch
    environment = without_the_switch()
    programs = [SESSION.format(package=package) for package in ("steps", "repository", "serving", "builder", "load")]
    started = [start(sys.executable, "-c", program, reference.onnx, env=environment) for program in programs]
    assert [process.wait(120) for process in started] == [0] * len(started)
    assert not called()


@pytest.mark.server
def test_server_client_builder_and_load_call_nobody(watch, repository, reference, tmp_path):
    start, called = watch
    # strace is the tracer of every process, so the server cannot hide its secret.
    script = r"""
set -e
python=$1 photographs=$2 repository=$3 out=$4 ports="--http-port 0 --grpc-port 0 --metrics-port 0"
$python -m serving run --visible-secret --repository $repository $ports >$out/said & server=$!
until grep -q 'Ctrl-C stops' $out/said; do sleep 0.2; kill -0 $server; done
http=$(sed -n 's/.* HTTP \([^ ]*\) .*/\1/p' $out/said) grpc=$(sed -n 's/.* gRPC \([^ ]*\) .*/\1/p' $out/said)
$python -m client $photographs --url $grpc --json $out/grpc.json
$python -m client $photographs --url $http --protocol http --json $out/http.json
short="--users 1 --rounds 1 --duration 1 --precisions int8"
$python -m load compare --url-grpc $grpc --url-http $http $short --out $out/load
few="--calibration-scenes 8 --verification-scenes 8"
$python -m builder build --precisions int8 --repository $out/new $few || test $? = 1
kill $server; wait $server
"""
    photographs = reference.photographs[0]
    words = ["sh", "-c", script, "sh", sys.executable, photographs, repository, tmp_path]
    process = start(*words, env=without_the_switch(), stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert process.wait(900) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "load" / "report.json").is_file()
    assert not called()
