"""Batches of fixed sizes, held against real sessions of ONNX Runtime on the CPU, and what is done without a GPU."""

import ctypes

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pipeline import contract
from steps import onnx_cuda
from steps.cuda_runtime import CudaRuntime
from steps.onnx_cuda import FixedSizeNetwork, batch_sizes, cuda_session, fixed_batch_size, network_on_gpu

SIZE = 4


@pytest.fixture(scope="module")
def network_path(tmp_path_factory):
    """A network whose outputs are the largest value of each image."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["float"], ["largest"], axes=[1, 2, 3]),
        helper.make_node("Mul", ["largest", "planes"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["prototypes"], to=TensorProto.FLOAT16),
        helper.make_node("Squeeze", ["largest", "axis"], ["flat"]),
        helper.make_node("Mul", ["flat", "rows"], ["candidates"]),
    ]
    batch = contract.BATCH_DIMENSION
    graph = helper.make_graph(
        nodes,
        "largest",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("candidates", TensorProto.FLOAT, [batch, 5, 38]),
            helper.make_tensor_value_info("prototypes", TensorProto.FLOAT16, [batch, 32, 1, 1]),
        ],
        [
            helper.make_tensor("planes", TensorProto.FLOAT, [32, 1, 1], [1.0] * 32),
            helper.make_tensor("rows", TensorProto.FLOAT, [5, 38], [1.0] * 5 * 38),
            helper.make_tensor("axis", TensorProto.INT64, [1], [3]),
        ],
    )
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Noting:
    """A session that notes its runs."""

    def __init__(self, session, size, runs):
        self._session, self._size, self._runs = session, size, runs

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding):
        self._runs.append(self._size)
        self._session.run_with_iobinding(binding)


class HostMemory(CudaRuntime):
    """The host's memory in the part of the GPU's."""

    def __init__(self):
        super().__init__(())
        self.locked = []

    def lock_pages(self, array):
        self.locked.append(array.nbytes)

    def copy_to_device(self, address, array):
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        return True

    def copy_to_host(self, array, address):
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        return True


def test_sizes_are_powers_of_two_and_the_largest():
    assert batch_sizes(16) == (1, 2, 4, 8, 16)
    assert batch_sizes(12) == (1, 2, 4, 8, 12)
    assert batch_sizes(1) == (1,)
    with pytest.raises(ValueError, match="1 or more"):
        batch_sizes(0)


@pytest.mark.parametrize("runtime", [None, HostMemory(), CudaRuntime(())], ids=["none", "copies", "no library"])
def test_batches_are_padded_to_sessions_of_fixed_sizes(network_path, runtime):
    runs, opened = [], []

    def open_session(size):
        opened.append(size)
        session = ort.InferenceSession(str(network_path), fixed_batch_size(size), providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == [size, SIZE, SIZE, 3]
        return Noting(session, size, runs)

    network = FixedSizeNetwork(open_session, 6, runtime)
    assert sorted(opened) == sorted(set(runs)) == [1, 2, 4, 6]  # every size has run before the first request
    images = [np.full((1, SIZE, SIZE, 3), value, np.uint8) for value in (9, 8, 7, 6, 5)]
    for count, padded in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (1, 1), (3, 4)):
        runs.clear()
        outputs = network.run(images[:count])
        assert runs == [padded]
        assert len(outputs) == count
        for number, (candidates, prototypes) in enumerate(outputs):
            assert (candidates.shape, candidates.dtype) == ((1, 5, 38), np.float32)
            assert (prototypes.shape, prototypes.dtype) == ((1, 32, 1, 1), np.float16)
            assert (candidates == 9 - number).all() and (prototypes == 9 - number).all()
    with pytest.raises(ValueError, match="allowed: 6"):
        network.run(images + images)
    if isinstance(runtime, HostMemory):
        assert runtime.locked == [6 * SIZE * SIZE * 3, 6 * 5 * 38 * 4, 6 * 32 * 2]


def test_a_network_that_takes_no_graph_runs_without_one(network_path, monkeypatch):
    def session(path, device, size, options):
        if options:
            raise ValueError("this network cannot be captured")
        return ort.InferenceSession(str(path), fixed_batch_size(size), providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnx_cuda, "cuda_session", session)
    monkeypatch.setattr(onnx_cuda, "CudaRuntime", lambda: CudaRuntime(("no such library",)))
    monkeypatch.setattr(onnx_cuda, "_DEVICE_TYPE", "cpu")
    network, problems = network_on_gpu(network_path, 0, 2)
    assert len(network.run([np.ones((1, SIZE, SIZE, 3), np.uint8)])) == 1
    assert "cannot be captured" in problems[0] and "no such library" in problems[1]

    monkeypatch.setattr(onnx_cuda, "cuda_session", lambda *_, **__: ort.InferenceSession("/no"))
    with pytest.raises(Exception, match="/no"):
        network_on_gpu(network_path, 0, 2)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(),
    reason="this ONNX Runtime has CUDA; make test-unit runs it with the one of the lock files",
)
def test_without_the_provider_the_error_says_what_to_install(network_path):
    with pytest.raises(RuntimeError, match="onnxruntime-gpu in place of onnxruntime"):
        cuda_session(network_path, 0)


def test_a_copy_that_fails_is_an_error():
    class Broken:
        @staticmethod
        def cudaMemcpy(*_):
            return 700  # cudaErrorIllegalAddress

    runtime = CudaRuntime(())
    runtime._library = Broken()
    with pytest.raises(RuntimeError, match="cudaMemcpy returned 700"):
        runtime.copy_to_device(0, np.zeros(1))
