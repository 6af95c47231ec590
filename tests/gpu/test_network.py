"""ONNX Runtime on the GPU computes what it does on the processor."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from steps.gpu.network import cuda_session


@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
def test_float32_is_computed_in_float32(gpu, operator):
    """With TF32 the results differ by a thousandth."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("onnxruntime-gpu is missing; where it is: make test-gpu")
    rng = np.random.default_rng(0)
    shapes = {"MatMul": ((256, 256), (256, 256)), "Conv": ((1, 64, 32, 32), (64, 64, 3, 3))}[operator]
    images, weights = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, images.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    (found,) = cuda_session(model, gpu.number, 1, {}).run(None, {"x": images})
    (wanted,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": images})
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
