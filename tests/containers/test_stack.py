"""``docker compose up`` and all that is promised of it, in a real engine."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.request
from datetime import datetime

import pytest
import tritonclient.grpc
import yaml
from tritonclient.utils import InferenceServerException

from client import SegmentationClient
from repository.live import GRPC_ADMIN_HEADER
from tests.containers.conftest import ROOT, docker, stack_of, wait_for
from tests.dockerfiles import stages

INT8 = "network_int8"


def answers(stack, photograph, protocol="grpc", precision="int8"):
    url = stack.url("GRPC_PORT" if protocol == "grpc" else "HTTP_PORT")
    with SegmentationClient(url, protocol, precision) as client:
        return client.segment(photograph)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_photographs_from_the_host(stack, reference, protocol, precision):
    assert [len(answers(stack, one, protocol, precision)) for one in reference.photographs] == [1, 3, 2, 1, 1]


def test_photographs_through_the_stacks_client(stack):
    stack.compose("run", "--rm", "client", "/images", "--out", "/out", "--json", "/out/result.json")
    result = json.loads((stack.folder / "out/result.json").read_text())
    assert len(result["annotations"]) == 8
    written = stack.folder / "out/images"
    assert len(list(written.iterdir())) == 5
    assert {path.stat().st_uid for path in written.iterdir()} == {4321}


def test_the_messages_name_the_published_ports(stack):
    assert f"gRPC {stack.url('GRPC_PORT')}" in stack.logs()


def test_what_the_server_may_do_as_seen_from_inside(stack):
    status = dict(line.split(":", 1) for line in stack.inside("cat /proc/1/status").splitlines())
    assert status["Uid"].split() == ["4321"] * 4
    assert all(int(status[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"))
    assert status["NoNewPrivs"].strip() == "1"
    for place in ("/", "/opt/segmentation", "/models"):
        assert "cannot" in stack.inside(f"touch {place}/x 2>&1 || true"), place
    limits = stack.container()["HostConfig"]
    assert limits["Memory"] == 16 << 30
    assert limits["PidsLimit"] == 4096
    # The kernel ends tritonserver and its processes before what starts them again.
    supervisor, server = stack.pids("-m serving run")[-1], stack.pids("tritonserver --")[-1]
    scores = [int(stack.inside(f"cat /proc/{pid}/oom_score_adj")) for pid in (supervisor, server)]
    assert scores == [0, 500]


def test_control_needs_the_secret(stack):
    with tritonclient.grpc.InferenceServerClient(stack.url("GRPC_PORT")) as control:
        with pytest.raises(InferenceServerException, match="expecting header"):
            control.get_model_repository_index()
        secret = stack.inside("cat /run/segmentation/admin_secret").strip()
        assert control.get_model_repository_index(headers={GRPC_ADMIN_HEADER: secret}).models


class Traffic:
    """Two callers; each failed request is kept."""

    def __init__(self, stack, photograph):
        self.failed, self.answered = [], 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(stack, photograph, protocol)) for protocol in ("grpc", "http")
        ]

    def _call(self, stack, photograph, protocol):
        url = stack.url("GRPC_PORT" if protocol == "grpc" else "HTTP_PORT")
        with SegmentationClient(url, protocol, "int8") as client:
            while not self._stop.is_set():
                try:
                    client.segment(photograph)
                    self.answered += 1
                except Exception as error:
                    self.failed.append(repr(error))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_version_is_built_promoted_and_rolled_back_under_traffic(stack, reference):
    """The commands are those of a machine without containers."""
    few = ("--calibration-scenes", "8", "--verification-scenes", "8", "--precisions", "int8")
    stack.compose("run", "--rm", "builder", "build", "--profile=cpu", *few)
    assert f"{INT8}/2" in stack.compose("run", "--rm", "builder", "list").stdout.replace("│", "/").replace(" ", "")
    with Traffic(stack, reference.photographs[0]) as traffic:
        promoted = stack.compose("run", "--rm", "builder", "promote", f"{INT8}/2").stdout
        back = stack.compose("run", "--rm", "builder", "rollback", INT8).stdout
        before = traffic.answered
        wait_for(lambda: traffic.answered > before, 30, "answers after the rollback")
    assert f"{INT8}/2 is served" in promoted
    assert f"{INT8}/1 is served" in back
    assert traffic.failed == []

    # What was promoted is no part of the image: the next start leaves the server alone.
    stack.compose("run", "--rm", "builder", "promote", f"{INT8}/2")
    before = stack.container()
    stack.compose("up", "--detach", "--wait")
    after = stack.container()
    assert (after["Image"], after["State"]["StartedAt"]) == (before["Image"], before["State"]["StartedAt"])


@pytest.mark.parametrize(
    ("victim", "pattern"),
    [("a process of a model", "preprocess/1/model.py"), ("tritonserver", "tritonserver --"), ("what watches it", "")],
)
def test_what_is_killed_comes_back(stack, reference, victim, pattern):
    if pattern:
        (pid, *_) = stack.pids(pattern)
        stack.inside(f"kill -9 {pid}")
    else:
        started = stack.container()["State"]["StartedAt"]
        stack.inside(f"kill -9 {stack.pids('-m serving run')[-1]}", check=False)
        wait_for(lambda: stack.container()["State"]["StartedAt"] != started, 60, "the container to be started again")

    def answered():
        try:
            return len(answers(stack, reference.photographs[0])) == 1
        except Exception:
            return False

    wait_for(answered, 90, f"an answer after {victim} was killed")
    wait_for(lambda: stack.health() == "healthy", 90, "the health check")


def test_load_by_two_workers(stack):
    done = stack.compose("--profile", "load", "up", "--detach", "--scale", "load-worker=2", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = f"http://{stack.url('LOCUST_PORT')}"

    def stats():
        try:
            with urllib.request.urlopen(f"{page}/stats/requests", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return {}

    wait_for(lambda: len(stats().get("workers", [])) == 2, 90, "two workers")
    form = b"user_count=2&spawn_rate=2&user_classes=GrpcUser"
    urllib.request.urlopen(urllib.request.Request(f"{page}/swarm", form), timeout=10).read()
    wait_for(lambda: stats()["stats"][-1]["num_requests"] > 10, 60, "requests")
    assert stats()["fail_ratio"] == 0
    stack.compose("--profile", "load", "stop", "load-master", "load-worker", "--timeout", "5")


@pytest.fixture
def prometheus_image():
    """The name that the stack asks for; where it is not there, Debian's package under it, for as long as the test."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    name = services["prometheus"]["image"]
    made = docker("image", "inspect", name, check=False).returncode != 0
    if made:
        text = f"""
            FROM {stages(ROOT / "serving/Dockerfile")[0].base}
            RUN apt-get update -q && apt-get install -qy --no-install-recommends prometheus wget \\
                && install -d -m 775 -o 65534 -g 65534 /prometheus
            WORKDIR /prometheus
            ENTRYPOINT ["/usr/bin/prometheus"]
        """
        docker("build", "--quiet", "--tag", name, "-", input=text)
    yield name
    if made:
        docker("rmi", "--force", name)


def test_prometheus_scrapes_and_an_alert_fires_and_clears(stack, prometheus_image):
    stack.compose("--profile", "monitoring", "up", "--detach", "--wait", "prometheus")

    def alerts():
        with urllib.request.urlopen(f"http://{stack.url('PROMETHEUS_PORT')}/api/v1/alerts", timeout=5) as answer:
            found = json.load(answer)["data"]["alerts"]
        return [alert["state"] for alert in found if alert["labels"]["alertname"] == "TritonDown"]

    def is_up():
        with urllib.request.urlopen(
            f"http://{stack.url('PROMETHEUS_PORT')}/api/v1/query?query=up", timeout=5
        ) as answer:
            return [one["value"][1] for one in json.load(answer)["data"]["result"]] == ["1"]

    wait_for(is_up, 60, "a scrape")
    assert alerts() == []
    stack.compose("stop", "triton")
    wait_for(lambda: alerts() == ["firing"], 150, "the alert to fire")
    stack.compose("up", "--detach", "--wait")
    wait_for(lambda: alerts() == [], 60, "the alert to clear")
    stack.compose("--profile", "monitoring", "rm", "--stop", "--force", "prometheus")


def test_stop_ends_the_server_in_time_and_down_leaves_nothing(stack):
    started = time.monotonic()
    stack.compose("stop")
    assert time.monotonic() - started < 45
    assert stack.container()["State"]["ExitCode"] == 0
    stack.compose("--profile", "*", "down", "--volumes")
    label = f"label=com.docker.compose.project={stack.project}"
    for kind in ("container", "network", "volume"):
        assert docker(kind, "ls", "--quiet", "--filter", label).stdout == "", kind


@pytest.fixture
def other(built):
    """A second stack of user 1000 under the usual umask, with versions already built."""
    with stack_of(1000, umask=0o022) as stack:
        shutil.copytree(built, stack.folder / "model_repository", dirs_exist_ok=True)
        for place in [*(stack.folder / "model_repository").rglob("*"), stack.folder / "model_repository"]:
            os.chown(place, 1000, 1000)
        yield stack


def seconds_between(first, last):
    """Of two times as Docker writes them, in UTC, to the nanosecond."""
    one, other = (datetime.fromisoformat(text[:19]) for text in (first, last))
    return (other - one).total_seconds()


def test_a_repository_of_another_user_is_refused_at_once(other):
    other.write_env(SEGMENTATION_UID=2000)
    done = other.compose("up", "--detach", "--wait", check=False)
    assert done.returncode != 0
    ran = other.container("builder")["State"]
    assert seconds_between(ran["StartedAt"], ran["FinishedAt"]) < 30, "it was noticed after a build"
    said = other.logs("builder")
    assert "belongs to user 1000, and this is user 2000 (in a container: SEGMENTATION_UID=1000 in .env)" in said
    # The remedy, without another image.
    images = docker("images", "--quiet", "segmentation-triton:cpu").stdout
    other.write_env(SEGMENTATION_UID=1000, MEMORY_LIMIT="350m")
    other.compose("up", "--detach")
    assert docker("images", "--quiet", "segmentation-triton:cpu").stdout == images
    # Three precisions do not fit: the log names memory.
    wait_for(lambda: "out of memory, the limit is 0.3 GiB" in other.logs(), 120, "memory to be named")


def test_too_little_shared_memory_is_not_healthy(other):
    other.write_env(SHM_SIZE="32mb")
    done = other.compose("up", "--detach", "--wait", "--wait-timeout", "60", check=False)
    said = other.logs()
    assert done.returncode != 0 or "shared memory" in said
    assert "/dev/shm" in said  # noqa: S108 - of the message


def test_an_image_serves_without_compose(built, stack, reference):
    name = f"{stack.project}-alone"
    port = stack.ports["GRPC_PORT"]
    built.chmod(0o755)
    try:
        docker("run", "--detach", "--name", name, "--shm-size=1g", "--user=0", "--publish", f"127.0.0.1:{port}:8001",
               "--volume", f"{built}:/models:ro", "segmentation-triton:cpu")  # fmt: skip
        wait_for(lambda: "Ctrl-C stops" in docker("logs", name).stdout, 120, "the server")
        assert len(answers(stack, reference.photographs[1])) == 3
    finally:
        docker("rm", "--force", name, check=False)


def test_the_image_is_small_and_says_what_is_in_it():
    size = int(docker("image", "inspect", "--format", "{{.Size}}", "segmentation-triton:cpu").stdout)
    base = stages(ROOT / "serving/Dockerfile")[0].base
    base_size = int(docker("image", "inspect", "--format", "{{.Size}}", base).stdout)
    print(f"segmentation-triton:cpu: {size / 1e6:.0f} MB, {base_size / 1e6:.0f} MB of them the base image")
    assert size - base_size < 540e6  # with the official base image of 125 MB, less than 700 MB
    packages = docker("run", "--rm", "--entrypoint", "cat", "segmentation-triton:cpu", "/opt/venv/packages.txt").stdout
    assert "onnxruntime==" in packages
