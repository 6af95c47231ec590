"""The GPU's steps as models of their own (profile ``tensorrt``): what they pass on stays on the GPU, as DLPack tensors.

Triton copies a tensor once, on the GPU, when it leaves a process; none of the network's tensors visits the host.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from base.cpus import usable_cpus
from pipeline import contract
from pipeline.errors import ImageError
from pipeline.letterbox import Geometry
from pipeline.parameters import RequestParameters
from steps.admission import Admission, state_path
from steps.gpu.decoder import EngineDecoder
from steps.gpu.device import CudaDevice
from steps.gpu.fused_network import FusedNetwork, open_network
from steps.gpu.network import DeviceNetwork
from steps.gpu.postprocess import GpuPostprocess, NetworkOutputs
from steps.gpu.preprocess import Examined, GpuPreprocess, describe_geometry
from steps.gpu.requests import Answers, Decoding, gpu_number, image_limits
from steps.gpu.segmenter import Batch, Places
from steps.gpu.structs import IMAGE
from steps.metrics import SessionTime
from steps.python_backend import answer, fills_input, heartbeat, log, mark_finished, request_limits, request_parameters

_OUTPUTS: Final = (contract.CANDIDATES.name, contract.PROTOTYPES.name)


@dataclass
class _Work:
    """One request on its way.

    Attributes:
        request: as Triton gave it.
        parameters: what was asked.
        first: place of its first image in the batch.
        count: of its images.
        images: encoded.
        places: where the images lie in the network's input, or why one could not be decoded.
        geometry: where they lie, as the step before has said.
        kept: what must live until the batch is done.
        fault: why it is not answered; None while nothing is wrong.
    """

    request: Any
    parameters: RequestParameters = field(default_factory=RequestParameters)
    first: int = 0
    count: int = 0
    images: Sequence[Examined] = ()
    places: Places = field(default_factory=list)
    geometry: Sequence[Geometry] = ()
    kept: Sequence[Any] = ()
    fault: Exception | None = None


class _Step:
    """What the steps share: a GPU, and one batch of all images of a call.

    Subclasses say what is done first with each request (:meth:`_begin`, which returns how many images it has), then
    with all of them together (:meth:`_run`), and what answers each (:meth:`_tensors`). A request at fault fails
    alone; if ``_run`` fails, the whole batch does.
    """

    def __init__(self, args: dict[str, str]) -> None:
        cv2.setNumThreads(1)  # of each thread that decodes
        self.config: dict[str, Any] = json.loads(args["model_config"])
        self.most = int(self.config["max_batch_size"])
        self.device = CudaDevice(gpu_number(args))
        self.warn(self.device.problems)
        self.admission = Admission(state_path(), max_latency_s=0.0)  # these steps admit nothing
        self.counts: tuple[Any, ...] = ()

    def close(self) -> None:
        """Hand over what was counted last."""
        for counts in self.counts:
            counts.close()

    def network(self, args: dict[str, str]) -> FusedNetwork | DeviceNetwork:
        """Open the network of the version that Triton asks for."""
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        network = open_network(path, self.device, self.most)
        self.warn(network.problems)
        return network

    def _begin(self, work: _Work) -> int:
        raise NotImplementedError

    def _run(self, works: Sequence[_Work]) -> None:
        raise NotImplementedError

    def _tensors(self, work: _Work) -> list[Any]:
        raise NotImplementedError

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself."""
        works, filled = [_Work(request) for request in requests], 0
        with heartbeat().busy():
            for work in works:
                work.first = filled
                self._attempt([work], self._begin_first)
                filled += work.count
            sound = [work for work in works if work.fault is None]
            if sound:
                self._attempt(sound, self._run)
            return [answer(work.request, partial(self._answer, work)) for work in works]

    def warn(self, problems: Sequence[str]) -> None:
        """Write what could not be had for its speed to the server's log."""
        for problem in problems:
            log("warn", f"CUDA: {problem}")

    def dims(self, name: str) -> tuple[int, ...]:
        """Dimensions of a tensor of the model, without the batch."""
        tensors = [*self.config["input"], *self.config["output"]]
        return tuple(int(dim) for dim in next(tensor["dims"] for tensor in tensors if tensor["name"] == name))

    def received(self, request: Any, name: str) -> tuple[int, Any]:
        """Address of a request's tensor, on the GPU or where it comes from the host, and what keeps it."""
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor.is_cpu():
            array = np.ascontiguousarray(tensor.as_numpy())
            return int(array.ctypes.data), array
        return self.device.received(tensor.to_dlpack())

    def _begin_first(self, works: Sequence[_Work]) -> None:
        works[0].count = self._begin(works[0])

    def _attempt(self, works: Sequence[_Work], act: Callable[[Sequence[_Work]], None]) -> None:
        try:
            act(works)
        except Exception as error:  # raised again where the requests are answered
            for work in works:
                work.fault = error

    def _answer(self, work: _Work, _: Any) -> list[Any]:
        if work.fault is not None:
            raise work.fault
        return self._tensors(work)


class PreprocessStep(_Step):
    """Decodes and letterboxes."""

    def __init__(self, args: dict[str, str]) -> None:
        super().__init__(args)
        limits, (height, width, channels) = image_limits(self.config), self.dims(contract.IMAGES.name)
        processes = sum(int(group["count"]) for group in self.config["instance_group"])
        threads = max(1, usable_cpus() // (2 * processes))
        decoder = EngineDecoder(self.device.number, self.device.stream, threads)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        shape, stretch = (height, width, channels), fills_input(self.config)
        self._step = GpuPreprocess(self.device, decoder, shape, self.most, pool, limits, stretch=stretch)
        self._decoding = Decoding(args["model_name"], self.admission, limits, self._step.examine)
        self._pixels = self.device.memory(self.most * height * width * channels)
        self._rows = self.device.share(self._pixels, (self.most, height, width, channels), np.uint8)
        self.counts = (self._decoding,)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself, and mark those that end here finished."""
        responses = super().execute(requests)
        for request, response in zip(requests, responses, strict=True):
            if response.has_error():
                mark_finished(self.admission, request, answered=False)
        return responses

    def _begin(self, work: _Work) -> int:
        work.images = self._decoding.examined(work.request)
        return len(work.images)

    def _run(self, works: Sequence[_Work]) -> None:
        images = [image for work in works for image in work.images]
        self._step.images[: len(images)] = 0
        places = self._step.run(images, self._pixels)
        self.device.wait()  # Triton's copies are not on this stream
        for work in works:
            work.places = places[work.first : work.first + work.count]

    def _tensors(self, work: _Work) -> list[Any]:
        geometry = np.stack([place.to_array() for place in self._decoding.sound(work.places)])
        return [
            pb_utils.Tensor.from_dlpack(contract.IMAGES.name, self._rows(work.first, work.count)),
            pb_utils.Tensor(contract.GEOMETRY.name, geometry),
        ]


class PostprocessStep(_Step):
    """Finds the instances.

    Attributes:
        targets: of each tensor that comes on the GPU, where it is put together for a batch, and its bytes an image.
    """

    def __init__(self, args: dict[str, str]) -> None:
        super().__init__(args)
        self._limits = request_limits(self.config)
        self.targets: dict[str, tuple[int, int]] = {}
        outputs = self._open(args)
        self._step = GpuPostprocess(self.device, outputs, self.most)
        self._images = self.device.host(self.most, IMAGE)
        self._address = self.device.memory(self._images.nbytes)
        self._answers = Answers(args["model_name"], self.admission, outputs.rows)
        self.counts = (self._answers,)

    def _open(self, _: dict[str, str]) -> NetworkOutputs:
        (rows, columns), (planes, high, wide) = (self.dims(name) for name in _OUTPUTS)
        sizes = rows * columns * 4, planes * high * wide * 2
        candidates, prototypes = (self.device.memory(self.most * size) for size in sizes)
        self.targets = dict(zip(_OUTPUTS, zip((candidates, prototypes), sizes, strict=True), strict=True))
        return NetworkOutputs(candidates, prototypes, rows, columns, planes, high, wide)

    def _infer(self, count: int) -> None:
        """Queue what lies between the targets and the network's outputs, for so many images."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself, and mark all of them finished."""
        responses = super().execute(requests)
        for request in requests:
            mark_finished(self.admission, request)
        return responses

    def _begin(self, work: _Work) -> int:
        work.parameters = self._limits.applied(request_parameters(work.request))
        geometry = pb_utils.get_input_tensor_by_name(work.request, contract.GEOMETRY.name).as_numpy()
        work.geometry = [Geometry.from_array(row) for row in geometry]
        work.kept = [self.received(work.request, name) for name in self.targets]
        return len(work.geometry)

    def _run(self, works: Sequence[_Work]) -> None:
        images = [(work, index) for work in works for index in range(work.count)]

        def place(numbers: Sequence[int]) -> Places:
            places: Places = []
            for row, number in enumerate(numbers):
                work, index = images[number]
                where = work.geometry[index]
                describe_geometry(self._images[row], where)
                for (target, size), (source, _) in zip(self.targets.values(), work.kept, strict=True):
                    self.device.copy(target + row * size, source + index * size, size)
                places.append(where)
            self.device.upload(self._address, self._images[: len(numbers)])
            self._infer(len(numbers))
            return places

        asked = [work.parameters for work, _ in images]
        self._batch = Batch(self._step, self._images, self._address, asked, place)
        self._found = [found[1] for found in self._batch.wait() if not isinstance(found, ImageError)]

    def _tensors(self, work: _Work) -> list[Any]:
        found = self._found[work.first : work.first + work.count]
        return self._answers.tensors(work.request, work.parameters, self._batch, work.first, work.geometry, found)


class NetworkStep(_Step):
    """The network between the two where no TensorRT plan can be had; ``bench gpu --profile gpu-steps`` does so."""

    def __init__(self, args: dict[str, str]) -> None:
        super().__init__(args)
        self._network = self.network(args)
        outputs = (self._network.outputs.candidates, np.float32), (self._network.outputs.prototypes, np.float16)
        self._rows = [
            self.device.share(address, (self.most, *self.dims(name)), dtype)
            for name, (address, dtype) in zip(_OUTPUTS, outputs, strict=True)
        ]
        self._size = prod(self._network.input_shape)
        self._time = SessionTime(args["model_name"], args["model_version"])
        self.counts = (self._time,)

    def _begin(self, work: _Work) -> int:
        source, owner = self.received(work.request, contract.IMAGES.name)
        work.kept = [owner]
        self.device.copy(self._network.images + work.first * self._size, source, len(owner) * self._size)
        return len(owner)

    def _run(self, works: Sequence[_Work]) -> None:
        count = sum(work.count for work in works)
        with self._time.measured(count):
            self._network.run(count)
            self.device.wait()

    def _tensors(self, work: _Work) -> list[Any]:
        return [
            pb_utils.Tensor.from_dlpack(name, rows(work.first, work.count))
            for name, rows in zip(_OUTPUTS, self._rows, strict=True)
        ]


class SegmentationStep(PostprocessStep):
    """Network and masks in one process: between the steps one tensor is passed, as with a plan inside the server.

    ``bench gpu --profile gpu-steps --masks-with-network`` does so.
    """

    def __init__(self, args: dict[str, str]) -> None:
        super().__init__(args)
        self._time = SessionTime(args["model_name"], args["model_version"])
        self.counts = (*self.counts, self._time)

    def _open(self, args: dict[str, str]) -> NetworkOutputs:
        self._network = self.network(args)
        self.targets = {contract.IMAGES.name: (self._network.images, prod(self._network.input_shape))}
        return self._network.outputs

    def _infer(self, count: int) -> None:
        self._network.run(count)

    def _run(self, works: Sequence[_Work]) -> None:
        with self._time.measured(sum(work.count for work in works)):
            super()._run(works)
