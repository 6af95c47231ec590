"""Load on a real server: counts that agree with Triton's, faults that are reported, and runs that always end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from load.__main__ import main
from load.generator import run_step
from load.options import UserOptions
from load.payloads import Payload, load_payloads, with_expectations
from load.results import Load, StepResult, StepSpec
from load.triton_statistics import TritonStatistics, difference
from serving.environment import free_ports
from serving.server import ServerOptions, TritonServer
from tests.chaos.faults_service import settled
from tests.processes import below

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
LOCUST = [sys.executable, "-m", "locust", "-f", str(ROOT / "load" / "locustfile.py")]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def server(patient_repository):
    """One that refuses nothing for being late: what the tests count must not depend on who else has the cores."""
    with TritonServer(ServerOptions(patient_repository)) as running:
        yield running


@pytest.fixture(scope="module")
def int8_server(repository):
    """A separate server of int8 only: a test stops it, and it lacks the other precisions."""
    options = ServerOptions(repository, precisions=("int8",))
    with TritonServer(options) as running:
        yield running


@pytest.fixture(scope="module")
def comparison(server, tmp_path_factory):
    """A small comparison of a server that runs: exit status, folder, report."""
    out = tmp_path_factory.mktemp("comparison")
    status = main(
        [
            *("compare", "--precisions", "fp32,int8", "--users", "1,2", "--rounds", "1", "--duration", "1.5"),
            *("--warm-up", "0.3", "--url-grpc", server.grpc_url, "--url-http", server.http_url, "--out", str(out)),
            *("--fail-if", "int8.error_rate > 0", "--fail-if", "int8.mask_iou < 0.5"),
        ]
    )
    return status, out, json.loads((out / "report.json").read_text())


def test_comparison_ends_well(comparison):
    status, out, report = comparison
    assert status == 0
    assert report["warnings"] == []
    assert (out / "report.html").stat().st_size > 50_000
    assert len(report["steps"]) == 2 * 2 * 2
    assert sorted(report["expected_detections"]["images"].values()) == [1, 1, 1, 2, 3]
    assert {version["precision"]: bool(version["tag"]) for version in report["versions"]} == {
        "fp32": True,
        "int8": True,
    }
    assert all(0.9 < version["mask_iou"] <= 1.0 for version in report["versions"])
    assert not any(condition["holds"] for condition in report["conditions"])


def test_users_count_what_the_server_counts(comparison):
    _, _, report = comparison
    for step in report["steps"]:
        ensemble = step["server"][f"segment_{step['precision']}"]
        assert step["requests"] == ensemble["success"] > 0
        assert ensemble["failed"] == step["failures"] == 0
        assert all(counters["success"] == step["requests"] for counters in step["server"].values())
        network = step["server"][f"network_{step['precision']}"]
        assert sum(int(size) * count for size, count in network["batches"].items()) == step["requests"]
        assert network["compute_infer_ms"] > 1


def test_machine_is_watched(comparison):
    _, _, report = comparison
    assert all(0 < step["metrics"]["cpu_utilization"]["mean"] <= 1 for step in report["steps"])
    assert report["machine"]["cores"] >= 1


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing; after apt-get install chromium, make test runs it")
def test_charts_are_seen_in_a_browser(comparison, tmp_path):
    _, out, _ = comparison
    shot = tmp_path / "report.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1250,2600"]
    page = (out / "report.html").as_uri()
    subprocess.run([*command, f"--screenshot={shot}", page], check=True, timeout=120, capture_output=True)
    pixels = cv2.imread(str(shot)).astype(int)
    for name, bgr in {"fp32": (178, 114, 0), "int8": (115, 158, 0), "network": (0, 94, 213)}.items():
        seen = (np.abs(pixels - bgr).max(axis=2) < 12).sum()
        assert seen > (2000 if name == "network" else 150), f"{name}'s color covers {seen} pixels"


def step_of(server, protocol, payloads, precision="int8", options=None, load=None, duration_s=1.5):
    """One step, and what the server counted meanwhile."""
    url = server.grpc_url if protocol == "grpc" else server.http_url
    spec = StepSpec(
        precision, protocol, url, load or Load(2), 0, 0.0, duration_s, tuple(payloads), options or UserOptions()
    )
    statistics = TritonStatistics(protocol, url)
    statistics.calibrate(precision)
    before = statistics.read(precision)
    result = StepResult.of(spec, run_step(spec))

    def agree():
        result.server = difference(before, statistics.read(precision))
        return result.disagreement() is None

    with contextlib.suppress(AssertionError):  # the test asserts on a disagreement that stays
        wait_for(agree, 20)
    statistics.close()
    return result


def test_refused_requests_are_failures_on_both_sides(server, protocol):
    good = load_payloads(UserOptions())[0]
    result = step_of(server, protocol, [good, Payload("noise", b"no image", (10, 10), 0)])
    assert result.kinds["ok"] > 0
    assert result.kinds["refused"] > 0
    assert result.disagreement() is None
    assert result.server["segment_int8"].counts["fail"] == result.kinds["refused"]
    assert result.first_errors["refused"]


def test_a_prompt_wrong_answer_is_a_failure(server, protocol):
    payload = load_payloads(UserOptions())[0]
    expecting_more = Payload(payload.name, payload.data, payload.image_size, 3)
    result = step_of(server, protocol, [expecting_more])
    assert set(result.kinds) == {"wrong"}
    assert "1 detections; expected 3" in result.first_errors["wrong"]
    assert result.disagreement() is None


def test_sizes_batches_parameters_and_open_loop(server, url, protocol):
    parameters = {"confidence": 0.3, "mask_format": "polygon"}
    options = UserOptions(megapixels=(0.2, 1.0), batch_sizes=(1, 3), parameters=parameters)
    payloads = with_expectations(load_payloads(options), protocol, url, "fp32", options)
    assert len(payloads) == 10
    result = step_of(server, protocol, payloads, "fp32", options, Load(1, 4.0), duration_s=3.0)
    assert set(result.kinds) == {"ok"}, result.first_errors
    assert result.disagreement() is None
    assert result.server["segment_fp32"].counts["images"] > result.requests


def test_missing_model_is_reported_before_anything_starts(int8_server, tmp_path, capsys):
    urls = ["--url-grpc", int8_server.grpc_url, "--url-http", int8_server.http_url]
    assert main(["compare", "--precisions", "fp16", "--duration", "1", "--out", str(tmp_path), *urls]) == 1
    assert "segment_fp16 is not served there; nothing was started" in capsys.readouterr().err
    for user in ("GrpcUser", "HttpUser"):
        ended = locust(user, "--headless", "-u", "1", "-t", "5s", "--precision", "fp16", *urls)
        assert ended.returncode == 1
        assert "segment_fp16 is not served there; nothing was started" in ended.stderr


def test_no_server_is_reported(capsys, tmp_path):
    port = free_ports("127.0.0.1", 1)[0]
    out = ["--out", str(tmp_path / "out")]
    assert main(["compare", "--protocols", "grpc", "--url-grpc", f"127.0.0.1:{port}", *out]) == 1
    assert f"127.0.0.1:{port} (grpc) is not available" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_workers_together_count_what_the_server_counts(server, tmp_path):
    common = ["--url-grpc", server.grpc_url, "--url-http", server.http_url, "--precision", "int8"]
    common += ["--think-time-s", "3"]
    port = str(free_ports("127.0.0.1", 1)[0])
    master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2"]
    # Workers prepare themselves within the run time, which a busy machine takes long for.
    master += ["--headless", "-u", "4", "-r", "4", "-t", "30s", "--json-file", str(tmp_path / "two")]
    worker = [*LOCUST, "GrpcUser", "HttpUser", "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    statistics = TritonStatistics("grpc", server.grpc_url)

    def served():
        return statistics.read("int8")["segment_int8"].counts["success"]

    before = settled(served)  # what an earlier test gave up may still be under way
    workers = [
        subprocess.Popen([*worker, *common], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    try:
        ended = locust("GrpcUser", "HttpUser", *master, *common)
        assert [process.wait(60) for process in workers] == [0, 0]
    finally:
        for process in workers:
            process.kill()
    assert ended.returncode == 0, ended.stderr
    together = total(tmp_path / "two.json")
    assert settled(served) - before == together
    # Each of the four users asks at least once.
    assert together >= 4
    statistics.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_web_page_drives_users_and_ends_when_it_is_asked_to(server, number):
    """Started as a shell's ``command &`` is: with SIGINT ignored, which Python leaves as it is."""
    port = free_ports("127.0.0.1", 1)[0]
    command = [sys.executable, "-m", "load", "ui", "--web-port", str(port)]
    command += ["--url-grpc", server.grpc_url, "--url-http", server.http_url, "--", "--precision", "int8"]
    page = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert "Locust" in wait_for(lambda: get(page + "/"), 120)
        form = {"user_count": 2, "spawn_rate": 2, "user_classes": "GrpcUser", "precision": "fp32", "confidence": "0.4"}
        assert json.loads(get(page + "/swarm", urllib.parse.urlencode(form).encode()))["success"]

        def enough():
            totals = [
                one for one in json.loads(get(page + "/stats/requests"))["stats"] if one["name"] == "segment_fp32"
            ]
            return totals[0] if totals and totals[0]["num_requests"] >= 3 else None

        assert wait_for(enough, 120)["num_failures"] == 0
        started = below(process.pid)
        assert started
        process.send_signal(number)
        # Its users finish the requests that they are at; the command itself waits 40 s for that.
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert not [each for each in started if each.is_running()]
    finally:
        process.kill()
        process.communicate()


def test_server_that_stops_ends_the_run(int8_server, tmp_path):
    """The last test of its server."""
    command = [sys.executable, "-m", "load", "compare", "--precisions", "int8", "--users", "2", "--duration", "6"]
    command += ["--url-grpc", int8_server.grpc_url, "--url-http", int8_server.http_url, "--request-timeout-s", "10"]
    process = subprocess.Popen(
        [*command, "--rounds", "20", "--out", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        first = process.stderr.readline()
        assert first.startswith("[1/40]"), first
        time.sleep(3.5)
        int8_server.stop()
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "failed: the comparison ended early" in errors
    assert "requests to int8" in errors
    report = json.loads((tmp_path / "report.json").read_text())
    assert 2 <= len(report["steps"]) < 40
    assert report["steps"][-1]["kinds"]["unavailable"] > 0
    assert "ended early" in report["warnings"][0]
    assert (tmp_path / "report.html").is_file()


def locust(*arguments):
    """Run Locust's own command to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*LOCUST, *arguments], cwd="/", env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def total(path):
    return sum(entry["num_requests"] for entry in json.loads(path.read_text()))


def get(url, data=None):
    with urllib.request.urlopen(url, data, timeout=10) as answer:
        return answer.read().decode()


def wait_for(ask, timeout_s):
    """The first true answer."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if found := ask():
                return found
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"no answer within {timeout_s} s")
