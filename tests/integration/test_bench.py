"""The benchmark of GPU machines, tried without one: the same server, load and figures, with the profile cpu."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil
import pytest

from serving.state import SHARED_MEMORY
from tests.chaos.faults_service import wait_for


def test_the_gpu_benchmark_measures_what_it_says(repository, tmp_path):
    command = [sys.executable, "-m", "load", "bench", "gpu", "--profile", "cpu", "--repository", str(repository)]
    command += ["--precisions", "int8", "--in-flight", "1,3", "--seconds", "2", "--processes", "1"]
    command += ["--preprocess-instances", "1", "--postprocess-instances", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "by step, ms waiting + ms working: " in done.stdout

    result = json.loads((tmp_path / "gpu-int8.json").read_text())
    assert all(rate > 0 for rate in result["bare"].values())
    # Every batch size that a request may have, and no first request that waits for what is done but once.
    first = result["requests_after_start"]
    assert list(first) == [str(size) for size in range(1, 9)]
    assert all(times["first_ms"] < 5 * times["second_ms"] for times in first.values())
    for load in result["loads"]:
        usage = load["usage"]
        images = sum(int(size) * count for size, count in usage["batches"].items())
        assert images == usage["images"] > 0
        assert {"preprocess", "postprocess", "segmentation_int8"} <= usage["steps_ms"].keys()
        assert usage["by_process_ms"]["segmentation_int8"] >= usage["session_ms"] > 0
        (share,) = load["of_bare"].values()
        assert share == pytest.approx(load["images_per_s"] / max(result["bare"].values()))
    assert (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


def test_a_benchmark_that_is_ended_leaves_nothing_behind(repository, tmp_path):
    before = set(SHARED_MEMORY.iterdir())
    command = [sys.executable, "-m", "load", "bench", "precision", "--repository", str(repository)]
    with subprocess.Popen([*command, "--rounds", "1", "--out", str(tmp_path)], stdout=subprocess.DEVNULL) as bench:
        started = wait_for(lambda: with_a_server(psutil.Process(bench.pid)), 60, "a server of the benchmark")
        bench.terminate()
        assert bench.wait(10) == -signal.SIGTERM
    _, left = psutil.wait_procs(started, timeout=30)
    assert not left
    assert set(SHARED_MEMORY.iterdir()) <= before


def with_a_server(process):
    """All processes under this one, once tritonserver has started one of its own."""
    found = process.children(recursive=True)
    servers = [child for child in found if child.name() == "tritonserver"]
    return found if servers and servers[0].children() else None
