"""The benchmark of GPU machines, tried without one: the same server, load and figures, with the profile cpu."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from base.names import SHARED_MEMORY
from repository.running import running_servers
from repository.store import read_config, write_config
from tests.chaos.faults_service import wait_for
from tests.processes import below


def test_the_gpu_benchmark_measures_what_it_says(repository, tmp_path):
    command = [sys.executable, "-m", "bench", "gpu", "--profile", "cpu", "--repository", str(repository)]
    command += ["--precisions", "int8", "--in-flight", "1,3", "--seconds", "2", "--processes", "1"]
    command += ["--network-instances", "1", "--out", str(tmp_path)]

    def measure():
        done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "by step, ms waiting + ms working: " in done.stdout
        return json.loads((tmp_path / "gpu-int8.json").read_text())

    result = measure()
    assert all(rate > 0 for rate in result["bounds"].values())
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
        assert {"preprocess", "postprocess", "network_int8"} <= usage["steps_ms"].keys()
        assert usage["by_process_ms"]["network_int8"] >= usage["session_ms"] > 0
        (share,) = load["of_bounds"].values()
        assert share == pytest.approx(load["images_per_s"] / max(result["bounds"].values()))
    assert (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


def slow_at_first(result):
    """Batch sizes whose first request took far longer than the second."""
    times = result["requests_after_start"].items()
    return {size for size, one in times if one["first_ms"] >= 5 * one["second_ms"]}


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["bench", "ensemble", "--rounds", "1"], -signal.SIGTERM),
        (["load", "compare", "--precisions", "int8"], 130),
    ],
    ids=["bench", "compare"],
)
def test_a_command_that_is_ended_leaves_nothing_behind(repository, tmp_path, command, status):
    command = [sys.executable, "-m", *command, "--repository", str(repository), "--out", str(tmp_path / "out")]
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


def test_a_busy_machine_does_not_end_the_benchmark_and_a_dead_server_loses_no_results(repository, tmp_path):
    """Its servers have no bound on latency: with the bound of this repository, hardly any request would be admitted."""
    strict = tmp_path / "strict"
    shutil.copytree(repository, strict, symlinks=True)
    config = read_config(strict / "admission/config.pbtxt")
    config.parameters["max_latency_ms"].string_value = "1"
    write_config(strict / "admission/config.pbtxt", config)
    written = tmp_path / "ensemble.json"
    command = [sys.executable, "-m", "bench", "ensemble", "--repository", str(strict), "--precision", "int8"]
    command += ["--in-flight", "8", "--rounds", "3", "--seconds", "0.5", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as bench:
        try:
            wait_for(lambda: rounds_of("8 in flight", written) or bench.poll(), 500, "a round that was written")
            for server in below(bench.pid, "tritonserver"):
                server.kill()
            error = bench.communicate(timeout=200)[1]
        finally:
            bench.kill()
    assert bench.returncode == 1, error
    assert f"What was measured is in {tmp_path}" in error
    assert 1 <= rounds_of("8 in flight", written) < 3


def rounds_of(case, path):
    """Of a case in a report; 0 if it is not there."""
    if not path.is_file():
        return 0
    return max(
        (figure["rounds"] for figure in json.loads(path.read_text())["figures"] if figure["case"] == case), default=0
    )


def server_of(pid):
    """The server below a process, once it has a process of the Python backend."""
    servers = [process.pid for process in below(pid, "tritonserver")]
    started = [server for server in running_servers() if server.pid in servers]
    return started[0] if started and below(started[0].pid) else None
