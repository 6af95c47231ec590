"""Runs a plan through TensorRT's own runtime, for verification on a machine that has the GPU.

Written against the documented API that TensorRT 10, 11 and TensorRT-RTX share. It has not been run on a GPU yet: where
the plan cannot be deserialized, the ONNX it was built from is measured instead, and the manifest says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.tensorrt.errors import TensorRTError
from builder.tensorrt.lazy import trt, use
from pipeline import contract
from repository.flavor import Flavor
from repository.network import Network


def plan_network(plan: bytes, flavor: Flavor) -> Network:
    """A network that runs a plan on the first GPU; memory through PyTorch.

    Args:
        plan: serialized plan.
        flavor: the TensorRT that built it.

    Raises:
        TensorRTError: there is no GPU, or the plan cannot be deserialized.
    """
    import torch

    use(flavor)
    if not torch.cuda.is_available():
        raise TensorRTError("PyTorch sees no GPU, so the plan cannot be run; install PyTorch's CUDA build")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise TensorRTError("TensorRT does not deserialize the plan on this machine")
    context: Any = engine.create_execution_context()
    outputs = {contract.CANDIDATES.name: torch.float32, contract.PROTOTYPES.name: torch.float16}

    def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        device_images = torch.from_numpy(np.ascontiguousarray(images)).cuda()
        context.set_input_shape(contract.IMAGES.name, tuple(images.shape))
        context.set_tensor_address(contract.IMAGES.name, device_images.data_ptr())
        buffers = {}
        for name, kind in outputs.items():
            buffers[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
            context.set_tensor_address(name, buffers[name].data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise TensorRTError("TensorRT failed to run the plan")
        stream.synchronize()
        candidates, prototypes = (buffers[name].cpu().numpy() for name in outputs)
        return candidates, prototypes

    return run
