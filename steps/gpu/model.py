"""A version of the network in the profile ``cuda``: encoded images in, masks out, one process for the whole way."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import triton_python_backend_utils as pb_utils

from base.cpus import usable_cpus
from pipeline import contract
from pipeline.decode import Detections, is_cut
from pipeline.decode_work import check_decode_work
from pipeline.errors import ImageError, OverloadError
from pipeline.images import ImageLimits
from pipeline.letterbox import RESAMPLING, Geometry
from pipeline.mask_work import check_mask_work
from pipeline.parameters import RequestParameters
from pipeline.postprocess import ImageSegmentation, pack_response
from steps.admission import Admission, state_path
from steps.classes import class_count
from steps.gpu.preprocess import Examined
from steps.gpu.segmenter import Batch, open_segmenter
from steps.metrics import PostprocessMetrics, PreprocessMetrics, SessionTime
from steps.python_backend import (
    answer,
    config_choice,
    config_parameter,
    heartbeat,
    log,
    mark_finished,
    request_limits,
    request_parameters,
    ticket_of,
)

_LONG_S: Final = 0.5  # shorter work is done however long the request has waited
_CUT: Final = (
    "in {} image(s) of a request, all {} candidates that leave the network lie above confidence {}: instances with "
    "lower scores may be missing. Ask with a higher confidence, or build the network with a larger top_k"
)
_PAUSE_S: Final = 10.0


@dataclass
class _Work:
    """One request on its way.

    Attributes:
        request: as Triton gave it.
        parameters: what was asked.
        images: its images.
        fault: why it is not answered; None while nothing is wrong.
        first: place of its first image in the batch.
        found: of each image, see :meth:`steps.gpu.segmenter.Batch.wait`.
    """

    request: Any
    parameters: RequestParameters
    images: list[Examined]
    fault: Exception | None = None
    first: int = 0
    found: Sequence[tuple[Geometry, Detections] | ImageError] = ()


class _Group:
    """Requests whose images are on the GPU together."""

    def __init__(self) -> None:
        self.works: list[_Work] = []
        self.batch: Batch | None = None

    @property
    def images(self) -> list[Examined]:
        return [image for work in self.works if work.fault is None for image in work.images]

    def fail(self, error: Exception) -> None:
        """Answer none of them."""
        for work in self.works:
            work.fault = work.fault or error


class FusedModel:
    """Answers all requests of one ``execute`` call in one batch; a bad image fails its own request alone."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version that Triton asks for, and prepare every batch size."""
        cv2.setNumThreads(1)  # of each thread that decodes
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"])
        self._repository = path.parent
        self._limits = request_limits(config)
        config_choice(config, "resample", RESAMPLING[:1])  # the kernel has no other way
        processes = sum(int(group["count"]) for group in config["instance_group"])
        self._segmenter, problems = open_segmenter(
            path / args["model_version"] / "model.onnx",
            int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0,
            config_parameter(config, "gpu_batch_size", 64),
            threads=max(1, usable_cpus() // processes),
            limits=ImageLimits(
                max_pixels=config_parameter(config, "max_image_pixels", ImageLimits.max_pixels),
                max_bytes=config_parameter(config, "max_image_bytes", ImageLimits.max_bytes),
            ),
        )
        for problem in problems:
            log("warn", f"CUDA: {problem}")
        self._admission = Admission(state_path(), max_latency_s=0.0)  # this step lets nobody in
        self._decoding, self._masks = PreprocessMetrics(args["model_name"]), PostprocessMetrics(args["model_name"])
        self._time = SessionTime(args["model_name"], args["model_version"])
        self._silent_until = 0.0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself, and count all of them out.

        While a group of requests is on the GPU, the next one is examined and decoded, and the one before answered.
        """
        with heartbeat().busy():
            responses = self._in_groups(requests)
        return [responses[id(request)] for request in requests]

    def _in_groups(self, requests: Sequence[Any]) -> dict[int, Any]:
        responses: dict[int, Any] = {}
        under_way: _Group | None = None
        for group in self._groups(requests):
            self._start(group)
            if under_way is not None:
                responses |= self._answers(under_way)
            under_way = group
        if under_way is not None:
            responses |= self._answers(under_way)
        return responses

    def close(self) -> None:
        """Hand over what was counted last."""
        for counts in (self._decoding, self._masks, self._time):
            counts.close()

    def _groups(self, requests: Sequence[Any]) -> Iterator[_Group]:
        """The requests, examined, in groups that the GPU takes together."""
        group, filled = _Group(), 0
        for request in requests:
            work = self._begin(request)
            if filled + len(work.images) > self._segmenter.max_batch_size:
                yield group
                group, filled = _Group(), 0
            group.works.append(work)
            filled += 0 if work.fault else len(work.images)
        yield group

    def _begin(self, request: Any) -> _Work:
        work = _Work(request, RequestParameters(), [])
        try:
            work.parameters = parameters = self._limits.applied(request_parameters(request))
            if parameters.classes:
                parameters.check_classes(class_count(self._repository))
            encoded = pb_utils.get_input_tensor_by_name(request, contract.IMAGE.name).as_numpy().reshape(-1)
            for index, data in enumerate(encoded):
                try:
                    work.images.append(self._segmenter.examine(data))
                except ImageError as error:
                    raise self._refusal(error, index, len(encoded)) from None
            self._check_decoding(request, work.images)
        except Exception as error:  # raised again where the request is answered
            work.fault = error
        return work

    def _check_decoding(self, request: Any, images: Sequence[Examined]) -> None:
        """Refuse long work of the processor that comes too late, and an image made to keep a decoder busy."""
        encoded = [image.data for image in images if image.jpeg is None]
        if not encoded:
            return
        allowed_s = self._admission.allowed_s
        try:
            seconds = check_decode_work(encoded, allowed_s, self._segmenter.limits)
            if seconds >= _LONG_S:  # one image may take longer than is allowed, if it comes in time
                self._admission.check_in_time(ticket_of(request), min(seconds, allowed_s))
        except ImageError as error:
            self._decoding.image_refused(error.reason)
            raise
        except OverloadError:
            self._decoding.request_refused()
            raise

    def _refusal(self, error: ImageError, index: int, count: int) -> ImageError:
        self._decoding.image_refused(error.reason)
        where = f"image {index + 1} of {count}: " if count > 1 else ""
        return ImageError(f"{where}{error}", error.reason)

    def _start(self, group: _Group) -> None:
        images = group.images
        if not images:
            return
        parameters = [work.parameters for work in group.works if work.fault is None for _ in work.images]
        try:
            with self._time.measured(len(images)):
                group.batch = self._segmenter.start(images, parameters)
        except Exception as error:  # of CUDA and ONNX Runtime; the server must outlive them all
            group.fail(error)

    def _answers(self, group: _Group) -> dict[int, Any]:
        if group.batch is not None:
            try:
                found = group.batch.wait()
            except Exception as error:  # likewise
                group.fail(error)
            first = 0
            for work in group.works:
                if work.fault is None:
                    work.first, work.found = first, found[first : first + len(work.images)]
                    first += len(work.images)
        works = {id(work.request): work for work in group.works}
        requests = [work.request for work in group.works]
        responses = [answer(request, lambda one: self._answer(works[id(one)], group.batch)) for request in requests]
        for request, response in zip(requests, responses, strict=True):
            mark_finished(self._admission, request, answered=not response.has_error())
        return dict(zip(works, responses, strict=True))

    def _answer(self, work: _Work, batch: Batch | None) -> list[Any]:
        if work.fault is not None or batch is None:
            raise work.fault or AssertionError
        places, detections = [], []
        for index, one in enumerate(work.found):
            if isinstance(one, ImageError):
                raise self._refusal(one, index, len(work.found))
            places.append(one[0])
            detections.append(one[1])
        self._decoding.decoded(len(places))
        asked = work.parameters
        if asked.mask_format not in ("rle", "none"):  # those two are done already
            seconds = check_mask_work([one.boxes for one in detections], places, asked, self._admission.allowed_s)
            self._check_masks(work.request, seconds)
        images = [
            ImageSegmentation(
                one.boxes,
                one.scores,
                one.class_ids,
                batch.masks(work.first + index, where),
                where.height,
                where.width,
            )
            for index, (one, where) in enumerate(zip(detections, places, strict=True))
        ]
        self._count(work, batch, images)
        return [pb_utils.Tensor(name, array) for name, array in pack_response(images).items()]

    def _check_masks(self, request: Any, seconds: float) -> None:
        try:
            self._admission.check_in_time(ticket_of(request), seconds)
        except OverloadError:
            self._masks.request_refused()
            raise

    def _count(self, work: _Work, batch: Batch, images: Sequence[ImageSegmentation]) -> None:
        scores = [batch.last_score(work.first + index) for index in range(len(images))]
        cut = sum(is_cut(score, work.parameters) for score in scores)
        if cut:
            self._masks.candidates_cut(cut)
            now = time.monotonic()
            if now >= self._silent_until:  # not more often than it can be read
                self._silent_until = now + _PAUSE_S
                log("warn", _CUT.format(cut, self._segmenter.rows, work.parameters.confidence))
        self._masks.answered(len(image.scores) for image in images)
