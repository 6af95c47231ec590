"""Promoting and rolling back on the real server under traffic: no request fails, and the right version answers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import cv2
import numpy as np
import onnx
import pytest
import tritonclient.grpc
from onnx import numpy_helper

from builder.__main__ import main
from client.segmentation import SegmentationClient
from repository.integrity import verify
from repository.live import LiveServer
from repository.promotions import read_promotions
from repository.store import ModelRepository, read_config, write_config
from repository.versions import PromotionError
from serving.server import ServerOptions, TritonServer
from tests.chaos.background import Background
from tests.exports import segmentation_export
from tests.versions import copy_version, promote_one, rollback_one

pytestmark = pytest.mark.server

PRECISION = "fp32"
MODEL = "network_fp32"
SWITCHES = 50
LIMIT_S = 300  # half a minute on two free cores

FAILS_TO_LOAD = "raise RuntimeError('no such network')\n"
FAILS_TO_ANSWER = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("no answer")) for _ in requests]
"""

STANDS_IN = """
import numpy as np
import triton_python_backend_utils as pb_utils
from pipeline.postprocess import ImageSegmentation, pack_response

NOTHING = ImageSegmentation(np.zeros((0, 4)), np.zeros(0), np.zeros(0), [], height=480, width=640)

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(len(pb_utils.get_input_tensor_by_name(each, "image").as_numpy())) for each in requests]

    def _answer(self, images):
        arrays = pack_response([NOTHING] * images)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])
"""


@pytest.fixture(autouse=True)
def any_code(monkeypatch):
    """Versions with other code than the builder's are served here, to fail in their own ways."""
    monkeypatch.setattr("repository.integrity.is_shim", lambda path: True)


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory, image):
    """A repository with two versions of a small network that answer differently; the first one is promoted."""
    folder = tmp_path_factory.mktemp("two-versions")
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(image)
    first = segmentation_export(folder / "first.onnx")
    model = onnx.load(first)
    weight = next(entry for entry in model.graph.initializer if entry.name == "head8.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.5), weight.name))
    onnx.save(model, folder / "second.onnx")
    for name in ("first", "second"):
        options = ["--onnx", str(folder / f"{name}.onnx"), "--verify-images", str(folder / "images")]
        options += ["--precisions", PRECISION, "--repository", str(folder / "repository")]
        assert main(["build", "--profile", "cpu", *options]) == 0
    repository = ModelRepository.existing(folder / "repository")
    assert repository.versions(PRECISION) == [1, 2]
    assert repository.promoted(PRECISION, "cpu") == [1]
    return repository


@pytest.fixture(scope="module")
def live(two_versions):
    options = ServerOptions(two_versions.path, precisions=(PRECISION,))
    with TritonServer(options) as server:
        yield server


class Traffic(Background):
    """Requests without a pause: to the ensemble over gRPC and HTTP, and to the network itself over gRPC."""

    def __init__(self, server, image):
        self.answers = Counter()
        self.failures = []
        self._server, self._image = server, image
        callers = (("grpc", self._ensemble), ("http", self._ensemble), ("network", self._network))
        super().__init__(*(partial(self._run, requests, name) for name, requests in callers))

    def _run(self, requests, name):
        try:
            for answer in requests(name):
                self.answers[(name, answer)] += 1
        except Exception as error:  # of any kind: the request failed
            self.failures.append(f"{name}: {error!r}")

    def _ensemble(self, protocol):
        url = self._server.grpc_url if protocol == "grpc" else self._server.http_url
        with SegmentationClient(url, protocol, PRECISION) as client:
            while not self.stopped.is_set():
                yield ensemble_answer(client, self._image)

    def _network(self, name):
        del name
        with tritonclient.grpc.InferenceServerClient(self._server.grpc_url) as client:
            while not self.stopped.is_set():
                yield network_answer(client)
                time.sleep(0.005)  # leaves the processor to the ensemble


def ensemble_answer(client, image):
    return tuple(round(float(one.score), 4) for one in client.segment(image))


def network_answer(client, image=None):
    """Number of the version that answers a request that names none; a network that decodes is sent an image."""
    tensor = tritonclient.grpc.InferInput("images", [1, 64, 64, 3], "UINT8")
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    if image is not None:
        tensor, pixels = tritonclient.grpc.InferInput("image", [1, 1], "BYTES"), np.array([[image]], object)
    tensor.set_data_from_numpy(pixels)
    return int(client.infer(MODEL, [tensor]).get_response().model_version)


def test_fifty_switches_under_traffic_fail_no_request(two_versions, live, image):
    started = time.monotonic()
    expected = {}
    with (
        SegmentationClient(live.grpc_url, "grpc", PRECISION) as client,
        tritonclient.grpc.InferenceServerClient(live.grpc_url) as network,
        Traffic(live, image) as traffic,
    ):
        expected[1] = ensemble_answer(client, image)
        for switch in range(SWITCHES):
            done = promote_one(two_versions, PRECISION, 2) if switch % 2 == 0 else rollback_one(two_versions, PRECISION)
            assert done.version == (2 if switch % 2 == 0 else 1)
            assert len(done.servers) == 1
            assert network_answer(network) == done.version
            assert network.is_model_ready(MODEL, str(done.version))
            assert ensemble_answer(client, image) == expected.setdefault(done.version, ensemble_answer(client, image))
            assert not traffic.failures
    took_s = time.monotonic() - started
    assert traffic.failures == []
    assert expected[1] != expected[2]
    assert expected[1]
    names = {name for name, _ in traffic.answers}
    assert names == {"grpc", "http", "network"}
    for (name, answer), count in traffic.answers.items():
        # Every answer is whole, of one version or the other, and both versions answered on every path.
        assert answer in ((1, 2) if name == "network" else tuple(expected.values()))
        assert count > 5
    assert len(traffic.answers) == 6
    assert len(read_promotions(two_versions.model_folder(PRECISION))) == SWITCHES
    assert verify(two_versions).faults == []
    assert took_s < LIMIT_S


@pytest.mark.parametrize(("code", "reason"), [(FAILS_TO_LOAD, "no such network"), (FAILS_TO_ANSWER, "no answer")])
def test_a_version_that_does_not_work_is_taken_back(two_versions, live, code, reason):
    before = two_versions.config_path(PRECISION, "cpu").read_text()
    bad = copy_version(two_versions, PRECISION, 1, {"model.py": code})
    with pytest.raises(PromotionError, match=f"(?s){reason}.*answer as before"):
        promote_one(two_versions, PRECISION, bad.version)
    assert two_versions.config_path(PRECISION, "cpu").read_text() == before
    with tritonclient.grpc.InferenceServerClient(live.grpc_url) as network:
        assert network_answer(network) == 1
        assert network.is_model_ready("segment_fp32")
    assert verify(two_versions).faults == []


def test_the_command_line_reaches_the_server(two_versions, live, tmp_path):
    def builder(*arguments):
        command = [sys.executable, "-m", "builder", *arguments, "--repository", str(two_versions.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    result = builder("promote", f"{MODEL}/2")
    assert result.returncode == 0, result.stderr
    assert f"the server at {live.grpc_url}" in result.stdout
    assert "answers with it" in result.stdout
    secret = tmp_path / "secret"
    secret.write_text(f"{live.admin_secret}\n")
    result = builder("rollback", MODEL, "--url", live.grpc_url, "--admin-secret-file", str(secret))
    assert result.returncode == 0, result.stderr
    secret.write_text("wrong")
    result = builder("promote", f"{MODEL}/2", "--url", live.grpc_url, "--admin-secret-file", str(secret))
    assert result.returncode == 1
    assert "could not list its models" in result.stderr
    with tritonclient.grpc.InferenceServerClient(live.grpc_url) as network:
        assert network_answer(network) == 1


def test_a_server_that_was_not_reloaded_is_a_fault(two_versions, live):
    path = two_versions.config_path(PRECISION, "cpu")
    before = path.read_text()
    two_versions.promote(PRECISION, "cpu", 2)  # as a promotion that was killed before the reload
    (fault,) = verify(two_versions).faults
    assert re.search(r"serves \[1\], the configuration names \[2\]", fault.problem)
    assert f"promote {MODEL}/2" in fault.remedy
    path.write_text(before)
    with LiveServer(live.grpc_url, live.admin_secret) as server:
        assert server.ready_versions(MODEL) == (1,)


@pytest.fixture(scope="module")
def cuda_on_a_processor(two_versions, tmp_path_factory):
    """The repository with two more versions, which find nothing, and need no GPU under the profile cuda."""
    path = tmp_path_factory.mktemp("cuda") / "repository"
    shutil.copytree(two_versions.path, path, symlinks=True)
    repository = ModelRepository.existing(path)
    versions = [copy_version(repository, PRECISION, 1, {"model.py": STANDS_IN}).version for _ in range(2)]
    config = read_config(repository.config_path(PRECISION, "cuda"))
    del config.instance_group[:]
    config.instance_group.add(kind="KIND_CPU", count=1)
    write_config(repository.config_path(PRECISION, "cuda"), config)
    return repository, versions


def test_a_live_server_of_the_profile_cuda_is_promoted_and_rolled_back(cuda_on_a_processor, image):
    repository, (first, second) = cuda_on_a_processor
    assert promote_one(repository, PRECISION, first, "cuda").servers == ()
    options = ServerOptions(repository.path, profile="cuda", precisions=(PRECISION,))
    with TritonServer(options) as server, tritonclient.grpc.InferenceServerClient(server.grpc_url) as network:
        assert network_answer(network, image) == first
        done = promote_one(repository, PRECISION, second, "cuda")
        assert (done.profile, done.previous, len(done.servers)) == ("cuda", first, 1)
        assert network_answer(network, image) == second
        assert rollback_one(repository, PRECISION, "cuda").version == first
        assert network_answer(network, image) == first
        assert verify(repository).faults == []
        # The server of another profile is not asked, and what the profile cpu serves is not changed.
        assert promote_one(repository, PRECISION, 2, "cpu").servers == ()
        assert network_answer(network, image) == first
