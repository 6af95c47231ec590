"""The benchmark of GPU machines, tried without one: the same server, load and figures, with the profile cpu."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil
import pytest

from serving.state import SHARED_MEMORY, running_servers
from tests.chaos.faults_service import wait_for
from tests.processes import below


def test_the_gpu_benchmark_measures_what_it_says(repository, tmp_path):
    command = [sys.executable, "-m", "load", "bench", "gpu", "--profile", "cpu", "--repository", str(repository)]
    command += ["--precisions", "int8", "--in-flight", "1,3", "--seconds", "2", "--processes", "1"]
    command += ["--preprocess-instances", "1", "--postprocess-instances", "1", "--out", str(tmp_path)]

    def measure():
        done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "by step, ms waiting + ms working: " in done.stdout
        return json.loads((tmp_path / "gpu-int8.json").read_text())

    result = measure()
    assert all(rate > 0 for rate in result["bare"].values())
    # Every batch size that a request may have, and no first request that waits for what is done but once.
    assert list(result["requests_after_start"]) == [str(size) for size in range(1, 9)]
    slow = slow_at_first(result)
    if slow:  # another program may take the cores in the one moment that counts, but not at the same size again
        slow &= slow_at_first(measure())
    assert not slow
    for load in result["loads"]:
        usage = load["usage"]
        images = sum(int(size) * count for size, count in usage["batches"].items())
        assert images == usage["images"] > 0
        assert {"preprocess", "postprocess", "segmentation_int8"} <= usage["steps_ms"].keys()
        assert usage["by_process_ms"]["segmentation_int8"] >= usage["session_ms"] > 0
        (share,) = load["of_bare"].values()
        assert share == pytest.approx(load["images_per_s"] / max(result["bare"].values()))
    assert (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


def slow_at_first(result):
    """Batch sizes whose first request took far longer than the second."""
    times = result["requests_after_start"].items()
    return {size for size, one in times if one["first_ms"] >= 5 * one["second_ms"]}


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["bench", "precision", "--rounds", "1"], -signal.SIGTERM),
        (["compare", "--precisions", "int8"], 130),
    ],
    ids=["bench", "compare"],
)
def test_a_command_that_is_ended_leaves_nothing_behind(repository, tmp_path, command, status):
    command = [sys.executable, "-m", "load", *command, "--repository", str(repository), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as ended:
        # It does little else until its server is there, which a busy machine may take a minute for.
        server = wait_for(lambda: server_of(ended.pid), 180, "a server of the command")
        started = below(ended.pid)
        assert list(SHARED_MEMORY.glob(f"{server.shm_prefix}*"))
        ended.terminate()
        assert ended.wait(60) == status
    _, left = psutil.wait_procs(started, timeout=60)
    assert not left
    assert not list(SHARED_MEMORY.glob(f"{server.shm_prefix}*"))


def server_of(pid):
    """The server below a process, once it has a process of the Python backend."""
    servers = [process.pid for process in below(pid, "tritonserver")]
    started = [server for server in running_servers() if server.pid in servers]
    return started[0] if started and below(started[0].pid) else None
