"""A version of the network in the profile ``cuda``: encoded images in, masks out, one process for the whole way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from base.cpus import usable_cpus
from pipeline.decode import Detections
from pipeline.errors import ImageError
from pipeline.letterbox import Geometry
from pipeline.parameters import RequestParameters
from steps.admission import Admission, state_path
from steps.classes import class_count
from steps.gpu.preprocess import Examined
from steps.gpu.requests import Answers, Decoding, gpu_number, image_limits
from steps.gpu.segmenter import Batch, open_segmenter
from steps.metrics import SessionTime
from steps.python_backend import (
    answer,
    config_parameter,
    fills_input,
    heartbeat,
    log,
    mark_finished,
    request_limits,
    request_parameters,
)


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
        limits = image_limits(config)
        processes = sum(int(group["count"]) for group in config["instance_group"])
        self._segmenter, problems = open_segmenter(
            path / args["model_version"] / "model.onnx",
            gpu_number(args),
            config_parameter(config, "gpu_batch_size", 64),
            threads=max(1, usable_cpus() // processes),
            limits=limits,
            stretch=fills_input(config),
        )
        for problem in problems:
            log("warn", f"CUDA: {problem}")
        self._admission = Admission(state_path(), max_latency_s=0.0)  # this step admits nothing
        self._decoding = Decoding(args["model_name"], self._admission, limits, self._segmenter.examine)
        self._answers_of = Answers(args["model_name"], self._admission, self._segmenter.rows)
        self._time = SessionTime(args["model_name"], args["model_version"])

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
        for counts in (self._decoding, self._answers_of, self._time):
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
            work.images = self._decoding.examined(request)
        except Exception as error:  # raised again where the request is answered
            work.fault = error
        return work

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
        places = self._decoding.sound([one if isinstance(one, ImageError) else one[0] for one in work.found])
        detections = [one[1] for one in work.found if not isinstance(one, ImageError)]
        return self._answers_of.tensors(work.request, work.parameters, batch, work.first, places, detections)
