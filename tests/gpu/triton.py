"""What the Python backend gives its processes, without Triton."""

import json
import sys
import types

import numpy as np

from pipeline import contract

_USERS = ("steps.checks", "steps.gpu.model", "steps.gpu.ensemble")  # they import what imports the module


class Tensor:
    """Holds an array of the host, or what :meth:`steps.gpu.device.Device.share` gives."""

    def __init__(self, name, array, on_gpu=False):
        self.name, self.array, self._on_gpu = name, array, on_gpu

    @classmethod
    def from_dlpack(cls, name, capsule):
        return cls(name, capsule, on_gpu=True)

    def is_cpu(self):
        return not self._on_gpu

    def to_dlpack(self):
        return self.array

    def as_numpy(self):
        return self.array


class Request:
    """Encoded images, or tensors by name."""

    def __init__(self, images=(), tensors=(), **parameters):
        self.images, self._parameters = images, parameters
        self.tensors = {tensor.name: tensor for tensor in tensors}

    def parameters(self):
        return json.dumps(self._parameters)


class Response:
    def __init__(self, output_tensors, error=None):
        self.tensors, self.error = {tensor.name: tensor.array for tensor in output_tensors}, error
        self.output_tensors = output_tensors

    def has_error(self):
        return self.error is not None


class TritonError:
    INVALID_ARG, UNAVAILABLE, INTERNAL, CANCELLED = range(4)

    def __init__(self, message, code):
        self.message, self.code = message, code


class Counter:
    def increment(self, value):
        pass


class Family:
    COUNTER = 0

    def __init__(self, **_):
        pass

    def Metric(self, labels):
        return Counter()


def stand_in(monkeypatch, prefix):
    """The module ``triton_python_backend_utils``, put where the steps import it anew."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError, module.MetricFamily = (
        Tensor,
        Response,
        TritonError,
        Family,
    )
    module.get_input_tensor_by_name = lambda request, name: (
        Tensor(name, np.array(request.images, object)[:, None])
        if name == contract.IMAGE.name
        else request.tensors.get(name)
    )
    module.logged = []
    module.Logger = types.SimpleNamespace(log_warn=module.logged.append, log_error=module.logged.append)
    for name in [
        name
        for name, loaded in sys.modules.items()
        if name.startswith("steps.") and (hasattr(loaded, "pb_utils") or name in _USERS)
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("TRITON_SEGMENTATION_SHM_PREFIX", f"test_{prefix}_")
    return module
