"""The devices that the GPU's steps are tested on."""

import shutil

import cv2
import numpy as np
import pytest

from steps.gpu.decoder import EngineDecoder, Picture
from tests.gpu.emulated import COMPILER, EmulatedDevice
from tests.gpu.triton import stand_in


class HostDecoder:
    """Decodes by OpenCV to the emulated device's memory."""

    def __init__(self):
        self.calls = []

    def decode(self, encoded):
        self.calls.append(len(encoded))
        return [self._picture(data) for data in encoded]

    def _picture(self, data):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = np.ascontiguousarray(cv2.imdecode(np.frombuffer(data, np.uint8), flags))
        return Picture(pixels.ctypes.data, pixels.strides[0], *pixels.shape[:2], pixels)


@pytest.fixture(scope="session")
def gpu():
    """The first GPU; skips where there is none."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no NVIDIA GPU on this machine (nvidia-smi is missing); on one that has it: make test-gpu")
    from steps.gpu.device import CudaDevice

    return CudaDevice(0)


@pytest.fixture(scope="session", params=["emulated", "cuda"])
def device(request, tmp_path_factory):
    """The emulated device, and the first GPU."""
    if request.param == "cuda":
        return request.getfixturevalue("gpu")
    if COMPILER is None:
        pytest.skip("g++, which compiles the kernels for the host, is missing; where it is: make test-gpu")
    return EmulatedDevice(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def decoder(device):
    """What decodes JPEGs to the device."""
    if isinstance(device, EmulatedDevice):
        return HostDecoder()
    return EngineDecoder(device.number, device.stream)


@pytest.fixture
def put(device):
    """Brings an array to the device and returns its address."""

    def put_array(array):
        staged = device.host(array.shape, array.dtype)
        staged[...] = array
        address = device.memory(staged.nbytes)
        device.upload(address, staged)
        device.wait()
        return address

    return put_array


@pytest.fixture
def get(device):
    """Reads an array from the device."""

    def get_array(address, shape, dtype=np.uint8):
        array = device.host(shape, dtype)
        device.wait()
        device.download(array, address)
        return np.array(array)

    return get_array


@pytest.fixture
def triton(monkeypatch, tmp_path):
    """A stand-in for the module that the Python backend gives its processes."""
    return stand_in(monkeypatch, tmp_path.name)
