"""What the GPU's steps do before a GPU is used, and what they say where there is none."""

import ctypes

import onnxruntime as ort
import pytest

from steps.gpu.device import sleep_while_waiting
from steps.gpu.network import batch_sizes, cuda_session


def test_sizes_are_powers_of_two_and_the_largest():
    assert batch_sizes(16) == (1, 2, 4, 8, 16)
    assert batch_sizes(12) == (1, 2, 4, 8, 12)
    assert batch_sizes(1) == (1,)
    with pytest.raises(ValueError, match="1 or more"):
        batch_sizes(0)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(),
    reason="this ONNX Runtime has CUDA; make test-unit runs it with the one of the lock files",
)
def test_without_the_provider_the_error_says_what_to_install():
    with pytest.raises(RuntimeError, match="onnxruntime-gpu in place of onnxruntime"):
        cuda_session(b"", 0, 1, {})


def test_why_threads_spin_is_said(monkeypatch):
    assert "no such library" in sleep_while_waiting(0, ("no such library",))[0]

    class Runtime:
        flags = 0

        def cudaSetDevice(self, number):
            return number

        def cudaSetDeviceFlags(self, flags):
            self.flags = flags
            return 0

    runtime = Runtime()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: runtime)
    assert sleep_while_waiting(0) == [] and runtime.flags == 4
    assert "returned 101" in sleep_while_waiting(101)[0]
