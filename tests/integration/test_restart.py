"""``python -m serving run`` with a server that dies: started again where it was, or given up with a clear message."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import tritonclient.grpc

from repository.live import GRPC_ADMIN_HEADER

pytestmark = pytest.mark.server

SECRET = "0123456789abcdef0123456789abcdef"
# Far longer than any machine takes to end a process.
LONG_PAUSES = """
import sys
from serving.restarts import RestartPolicy
RestartPolicy.pause_s = lambda policy, restart: 600.0
from serving.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


class Run:
    """The command, and what it has said so far."""

    def __init__(self, repository, folder, *options, program=("-m", "serving")):
        (folder / "secret").write_text(SECRET)
        places = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--admin-secret-file={folder / 'secret'}"]
        self.process = subprocess.Popen(
            [
                sys.executable,
                *program,
                "run",
                "--repository",
                str(repository),
                "--precisions=int8",
                *places,
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.said(r"gRPC (127\.0\.0\.1:\d+)").group(1)

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def said(self, pattern, times=1, within_s=180):
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            found = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            if len(found) >= times:
                return found[times - 1]
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.05)
        raise AssertionError(f"{pattern!r} was not said {times} times:\n{''.join(self.lines)}")

    @property
    def server_pid(self):
        (server,) = (
            child.pid for child in psutil.Process(self.process.pid).children() if child.name() == "tritonserver"
        )
        return int(server)

    def kill_server(self):
        os.kill(self.server_pid, signal.SIGKILL)

    def answers(self):
        client = tritonclient.grpc.InferenceServerClient(self.url)
        try:
            index = client.get_model_repository_index(headers={GRPC_ADMIN_HEADER: SECRET}, client_timeout=10)
            return "segment_int8" in [model.name for model in index.models if model.state == "READY"]
        finally:
            client.close()


@pytest.fixture
def run(repository, tmp_path):
    started = []

    def make(*options, **more):
        started.append(Run(repository, tmp_path, *options, **more))
        return started[-1]

    yield make
    for each in started:
        each.process.kill()
        each.process.wait()


def test_a_killed_server_comes_back_on_the_same_ports_with_the_same_secret(run):
    running = run()
    assert running.answers()
    before = running.server_pid
    running.kill_server()
    running.said("tritonserver ended by signal SIGKILL; starting it again")
    running.said("tritonserver is ready again")
    assert running.server_pid != before
    assert running.answers()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(40) == 0


def test_a_server_that_cannot_stay_up_is_given_up(run):
    running = run("--restarts=1")
    running.kill_server()
    running.said("tritonserver is ready again")
    running.kill_server()
    assert running.process.wait(40) == 1
    running.said("error: tritonserver ended by signal SIGKILL, 2 times without staying up for 60 s; giving up")


def test_a_signal_ends_a_pause_at_once(run):
    running = run("--restarts=5", program=("-c", LONG_PAUSES))
    running.kill_server()
    running.said(r"starting it again in \d{3,}\.\d s \(restart 1 of 5\)")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
