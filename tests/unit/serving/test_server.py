"""What is decided before tritonserver starts, and what is made of a program that is not a server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.server
import os
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from base.errors import OperatorError
from base.names import ADMIN_HEADER
from repository.live import GRPC_ADMIN_HEADER
from repository.store import ModelRepository, read_config
from serving import server as server_module
from serving.errors import ServingError
from serving.front import HttpFront
from serving.hidden_arguments import STAND_IN, CannotHide
from serving.safe_names import SafeNames
from serving.server import ServerOptions, TritonServer
from serving.tritonserver import Installation
from tests.unit.serving.repositories import tiny_repository


@pytest.fixture
def repository(tmp_path):
    return tiny_repository(tmp_path / "repository")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a script on PATH in place of tritonserver."""
    monkeypatch.setenv("TRITON_SEGMENTATION_CACHE", str(tmp_path / "cache"))

    def make(text: str) -> None:
        script = tmp_path / "opt" / "bin" / "tritonserver"
        script.parent.mkdir(parents=True)
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        (tmp_path / "opt" / "backends" / "python").mkdir(parents=True)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")

    return make


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"http_port": 70000}, "port 70000 is out of range.*--http-port"),
        ({"host": "::1"}, "'::1' has no IPv4 address"),
        ({"host": "192.0.2.1"}, "not an address of this machine"),
        ({"precisions": ("fp16",)}, "network_fp16.*python -m builder build"),
        (
            {"profile": "cuda", "resample": "bilinear"},
            "--resample is 'bilinear'.*cuda resizes images on the GPU.*allowed there: area.*another profile",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_fetched(repository, monkeypatch, options, message):
    monkeypatch.setattr(server_module, "find_tritonserver", lambda: pytest.fail("looked for the server first"))
    with pytest.raises(OperatorError, match=message):
        TritonServer(ServerOptions(repository, **options)).start()


def test_the_servers_folder_in_shared_memory_is_its_users_before_its_name_is_known(repository, program):
    program('stat --printf "%F %a %u\\n" "/dev/shm/${TRITON_SEGMENTATION_SHM_PREFIX}state"')
    lines = []
    server = TritonServer(ServerOptions(repository), lines.append)
    server.start()
    folder = server.state_folder
    server.wait(10)
    server.stop()
    assert lines == [f"directory 700 {os.geteuid()}"]
    assert not folder.exists()


def test_compiled_code_is_removed_before_a_version_is_served(repository, program):
    program("exit 0")
    planted = repository / "network_int8" / "1" / "__pycache__" / "model.cpython-311.pyc"
    planted.parent.mkdir()
    planted.write_bytes(b"hostile")
    server = TritonServer(ServerOptions(repository))
    server.start()
    assert not planted.exists()
    server.wait(10)
    server.stop()


def test_a_profile_that_the_server_has_no_backend_for_is_refused(repository, program):
    program("exit 0")
    (repository / "network_int8" / "1" / "model.plan").touch()
    with pytest.raises(ServingError, match="has no tensorrt backend"):
        TritonServer(ServerOptions(repository, profile="tensorrt")).start()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("echo 'E1 no such thing' >&2; exit 3", r"with status 3\)\. Its log ends:\n  E1 no such thing$"),
        (
            "echo 'E1 no matter'; echo 'terminate called'; kill -ABRT $$",
            r"by signal SIGABRT\).*no matter\n  terminate called$",
        ),
        (
            "echo 'E1 libfoo.so: cannot open'; seq 20; kill -SEGV $$",
            r"by signal SIGSEGV\). Its log ends:\n  E1 libfoo.so: cannot open\n  17\n  18\n  19\n  20$",
        ),
    ],
)
def test_a_program_that_ends_at_once_is_reported_with_its_last_lines(repository, program, tmp_path, end, said):
    program(f"echo 'E1 CudaDriverHelper has not been initialized.'\necho 'I1 starting'\n{end}")
    server = TritonServer(ServerOptions(repository))
    with pytest.raises(ServingError, match=r"(?s)ended before it was ready \(" + said), server:
        pytest.fail("it became ready")
    assert server.pid is None
    assert list((tmp_path / "cache" / "servers").iterdir()) == []


def test_waiting_until_ready_is_bounded(repository, program):
    program("""echo "I1 successfully loaded 'preprocess'"\necho "I1 loading"\nexec sleep 60""")
    server = TritonServer(ServerOptions(repository, exit_timeout_s=1))
    server.start()
    try:
        started = time.monotonic()
        with pytest.raises(ServingError, match=r"not ready within 1 s.*(?s:.*)I1 loading") as late:
            server.wait_ready(1)
        assert "network_int8 is not loaded" in str(late.value)
        assert "preprocess is not loaded" not in str(late.value)
        assert time.monotonic() - started < 5
    finally:
        server.stop()
    assert server.pid is None


def test_a_reader_of_the_log_that_fails_does_not_block_the_server(repository, program):
    # Far more than a pipe holds: whoever stopped reading would leave the program blocked in a write.
    program("i=0; while [ $i -lt 20000 ]; do echo 'a line of the log'; i=$((i+1)); done; echo done")
    lines = []

    def reader(line: str) -> None:
        lines.append(line)
        raise BrokenPipeError

    server = TritonServer(ServerOptions(repository), log=reader)
    server.start()
    try:
        assert server.wait(30) == 0
    finally:
        server.stop()
    assert len(lines) == 1
    assert server.last_words().endswith("done")


@contextlib.contextmanager
def http_server():
    """Something on a port that says it is ready."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in ("/v2/health/ready", "/metrics") else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield listening.server_port
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


@contextlib.contextmanager
def grpc_server(secret):
    """Something on a port that opens its control API to a secret."""

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def RepositoryIndex(self, request, context):
            if dict(context.invocation_metadata()).get(GRPC_ADMIN_HEADER) != secret:
                context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted")
            return service_pb2.RepositoryIndexResponse()

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


def test_only_the_server_that_knows_the_secret_counts_as_ready(repository):
    server = TritonServer(ServerOptions(repository))
    for secret, expected in ((server.admin_secret, True), ("another server's", False)):
        with http_server() as port, grpc_server(secret) as grpc_port:
            server._ports = (port, grpc_port, port)
            assert server.is_ready() is expected
    assert not server.is_ready()  # nothing listens there now


def test_options_of_tritons_own_http_are_refused_behind_the_gateway(repository, program):
    program("sleep 60")
    for option in ("--allow-http=true", "--http-port=8000"):
        server = TritonServer(ServerOptions(repository, extra_arguments=(option,)))
        with pytest.raises(ServingError, match=r"behind --: this server answers HTTP through the gateway only"):
            server.start()
        server.stop()


def test_tritons_own_http_is_off_behind_the_gateway_and_restricted_without(repository, tmp_path):
    server = TritonServer(ServerOptions(repository))
    new = Installation(Path("/s"), Path("/b"), (), "2.60.0")
    assert any(
        option.startswith("--http-restricted-api=model-repository") for option in server._command(new, Path(), [])
    )
    server.front = HttpFront("127.0.0.1", 0, print)
    command = server._command(new, Path(), [])
    server.front.stop()
    assert [option for option in command if option.startswith(server_module._HTTP_OPTIONS)] == ["--allow-http=false"]


def test_all_addresses_are_called_at_loopback(repository):
    server = TritonServer(ServerOptions(repository, host="0.0.0.0"))  # noqa: S104 - what is tested
    server._ports = (1, 2, 3)
    assert (server.http_url, server.grpc_url, server.metrics_url) == ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")


def test_the_environment_leads_to_this_python_and_the_servers_libraries(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    installation = Installation(Path("/s"), Path("/b"), (Path("/lib/one"), Path("/lib/two")))
    environment = server_module._environment(installation, ModelRepository(repository), SafeNames(tmp_path / "names"))
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert environment["LD_LIBRARY_PATH"] == "/lib/one:/mine:/lib/two"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["OPENBLAS_NUM_THREADS"] == "3"  # the caller's choice stands
    assert "CV_IO_MAX_IMAGE_PIXELS" not in environment


def test_a_configured_way_of_resizing_is_refused_on_the_gpu_and_can_be_overruled(repository, tmp_path, monkeypatch):
    path = repository / "preprocess" / "config.pbtxt"
    path.write_text(path.read_text() + 'parameters [ { key: "resample", value: { string_value: "bilinear" } } ]')
    monkeypatch.setattr(server_module, "find_tritonserver", lambda: pytest.fail("looked for the server first"))
    with pytest.raises(ServingError, match=r"'resample' in preprocess/config\.pbtxt is 'bilinear'.*--resample area"):
        TritonServer(ServerOptions(repository, profile="cuda")).start()
    with pytest.raises(OperatorError, match=r"(?s)^(?!.*resample)"):  # of its network, which is not there
        TritonServer(ServerOptions(repository, profile="cuda", resample="area")).start()


def test_the_way_of_resizing_reaches_the_step(repository, tmp_path):
    server = TritonServer(ServerOptions(repository, resample="bilinear", max_latency_ms=5))
    view = server._served_repository(tmp_path / "view")
    found = {model: read_config(view / model / "config.pbtxt").parameters for model in ("preprocess", "admission")}
    assert found["preprocess"]["resample"].string_value == "bilinear"
    assert found["admission"]["max_latency_ms"].string_value == "5"
    assert "resample" not in read_config(repository / "preprocess" / "config.pbtxt").parameters


def test_the_bound_on_pixels_reaches_opencv(repository, tmp_path):
    path = repository / "preprocess" / "config.pbtxt"
    path.write_text(path.read_text() + 'parameters [ { key: "max_image_pixels", value: { string_value: "1234" } } ]')
    installation = Installation(Path("/s"), Path("/b"), ())
    names = SafeNames(tmp_path / "names")
    assert (
        server_module._environment(installation, ModelRepository(repository), names)["CV_IO_MAX_IMAGE_PIXELS"] == "1234"
    )


def test_relative_paths_among_tritons_options_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "certs").mkdir()
    for given, passed in (
        ("--grpc-server-cert=certs/new.pem", f"--grpc-server-cert={tmp_path}/certs/new.pem"),
        ("--grpc-root-cert=/etc/ca.pem", "--grpc-root-cert=/etc/ca.pem"),
        ("--backend-config=tensorrt,version-compatible=true", "--backend-config=tensorrt,version-compatible=true"),
        ("--trace-config=opentelemetry,url=http://host/v1", "--trace-config=opentelemetry,url=http://host/v1"),
        ("--log-info=", "--log-info="),
        ("--strict", "--strict"),
    ):
        assert server_module._with_absolute_path(given) == passed


def test_a_secret_that_others_could_read_needs_consent(repository, program, tmp_path, monkeypatch):
    program('echo "$@"')

    def forbidden(*_, **__):
        raise CannotHide("ptrace(2) is not allowed")

    monkeypatch.setattr(server_module, "start_hidden", forbidden)
    server = TritonServer(ServerOptions(repository))
    with pytest.raises(ServingError, match=r"other users.*ptrace\(2\) is not allowed.*--visible-secret"):
        server.start()
    assert server.pid is None
    assert server.front is None
    assert not server.state_folder.exists()
    assert list((tmp_path / "cache" / "servers").iterdir()) == []
    lines = []
    server = TritonServer(ServerOptions(repository, visible_secret=True), lines.append)
    server.start()
    server.wait(10)
    server.stop()
    assert "other users of this machine can read the admin secret" in lines[0]
    # The program got it, the log did not.
    assert f"{ADMIN_HEADER}={STAND_IN}" in lines[1]
    assert server.admin_secret not in "".join(lines)


def test_a_script_that_shows_the_secret_is_refused(repository, program, monkeypatch):
    program('exec sh -c "sleep 60; :" sh "$@"')
    monkeypatch.setattr(TritonServer, "is_ready", lambda _: True)
    server = TritonServer(ServerOptions(repository, exit_timeout_s=1))
    server.start()
    try:
        deadline = time.monotonic() + 30
        while b"sleep" not in Path(f"/proc/{server.pid}/cmdline").read_bytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ServingError, match=rf"in the arguments of process {server.pid}.*--visible-secret"):
            server.wait_ready()
    finally:
        server.stop()
