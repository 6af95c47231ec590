"""OpenVINO as the engine of a served fp16 version: chosen at the start, as exact as gated, replaced if it dies."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from client import SegmentationClient
from pipeline import contract
from repository.manifest import Manifest
from serving.errors import ServingError
from serving.server import ServerOptions, TritonServer
from steps.cpu_engines import ENGINE_VARIABLE
from steps.openvino_cpu import NAME, EngineError, usable_openvino
from tests.chaos.expected import fingerprint
from tests.chaos.faults_service import Service, wait_for
from tests.integration.reference_masks import mask_iou

pytestmark = pytest.mark.server

MODEL = contract.network_model("fp16")


def version_here():
    with contextlib.suppress(EngineError):
        return usable_openvino()
    return None


needs_bfloat16 = pytest.mark.skipif(
    version_here() is None,
    reason="bfloat16 in the processor, or OpenVINO, is missing; make test runs it with both",
)


@pytest.fixture
def photographs(reference):
    return [path.read_bytes() for path in reference.photographs]


def segment(service, images, precision="fp16"):
    with SegmentationClient(service.server.grpc, precision=precision) as client:
        return client.segment_batch(images)


@needs_bfloat16
def test_fp16_runs_in_openvino_alike_in_any_batch_and_after_its_process_was_killed(repository, photographs):
    manifest = Manifest.read(repository / MODEL / "1")
    assert manifest.verification["engines"][NAME]["passed"] is True
    assert f"-ov{version_here()}-cpu-" in manifest.tag
    with Service(repository, "--precisions=fp32,fp16") as service:
        said = f"{MODEL} version 1 runs in OpenVINO {version_here()} in bfloat16"
        service.wait_said(said, 10)
        service.wait_said("network_fp32 version 1 runs in ONNX Runtime", 10)
        together = segment(service, photographs)
        expected = list(map(fingerprint, together))
        assert list(map(fingerprint, segment(service, photographs))) == expected
        with ThreadPoolExecutor(5) as pool:  # batches of whatever size comes together
            alone = list(pool.map(lambda image: segment(service, [image])[0], photographs * 4))
        assert list(map(fingerprint, alone)) == expected * 4
        exact = segment(service, photographs, "fp32")
        assert list(map(fingerprint, exact)) != expected
        for mine, its in zip(together, exact, strict=True):
            assert len(mine) == len(its)
            np.testing.assert_allclose(mine.boxes, its.boxes, atol=4)
            assert all(mask_iou(*pair) >= 0.98 for pair in zip(mine.masks, its.masks, strict=True))

        (victim,) = service.stubs(MODEL)
        victim.kill()
        wait_for(lambda: victim not in service.stubs(MODEL), 30, "the process to be gone")
        wait_for(lambda: sum(said in line for line in service.lines) == 2, 60, "another process in OpenVINO")
        assert list(map(fingerprint, segment(service, photographs))) == expected


@needs_bfloat16
def test_fp16_runs_in_onnx_runtime_where_that_is_asked_for(repository, photographs, monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "onnxruntime")
    with Service(repository, "--precisions=fp16") as service:
        service.wait_said(f"{MODEL} version 1 runs in ONNX Runtime", 10)
        assert all(len(found) for found in segment(service, photographs))


def test_an_unknown_engine_keeps_the_server_from_starting_and_the_message_says_what_is_allowed(repository, monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "fastest")
    with (
        pytest.raises(ServingError, match=f"{ENGINE_VARIABLE} is 'fastest'; allowed: auto, onnxruntime, openvino"),
        TritonServer(ServerOptions(repository, precisions=("fp16",))),
    ):
        pass
