"""What happens to one request on the way through the GPU's steps, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline import contract
from pipeline.decode import Detections, is_cut
from pipeline.errors import ImageError
from pipeline.images import ImageLimits
from pipeline.letterbox import RESAMPLING, Geometry
from pipeline.mask_work import check_mask_work
from pipeline.parameters import RequestParameters
from pipeline.postprocess import ImageSegmentation, pack_response
from steps.admission import Admission
from steps.checks import CutCandidates, check_decoding, check_in_time
from steps.gpu.preprocess import Examined
from steps.gpu.segmenter import Batch, needs_edges
from steps.metrics import PostprocessMetrics, PreprocessMetrics
from steps.python_backend import config_choice, config_parameter


def gpu_number(args: dict[str, str]) -> int:
    """The GPU of an instance of a model, out of what its ``initialize`` is given."""
    return int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0


def image_limits(config: dict[str, Any]) -> ImageLimits:
    """Bounds on every image, out of the ``parameters`` of a model's configuration that the kernels can work with.

    Raises:
        ValueError: a parameter is wrong, or asks for what the kernels cannot do; names it.
    """
    config_choice(config, "resample", RESAMPLING[:1])  # the kernel has no other way
    return ImageLimits(
        max_pixels=config_parameter(config, "max_image_pixels", ImageLimits.max_pixels),
        max_bytes=config_parameter(config, "max_image_bytes", ImageLimits.max_bytes),
    )


class Decoding:
    """Checks the encoded images of requests, and counts them.

    Args:
        model: name of the model, for the metrics.
        admission: of the server.
        limits: on every image.
        examine: see :meth:`steps.gpu.preprocess.GpuPreprocess.examine`.
    """

    def __init__(
        self, model: str, admission: Admission, limits: ImageLimits, examine: Callable[[bytes], Examined]
    ) -> None:
        self._admission, self._limits, self._examine = admission, limits, examine
        self._metrics = PreprocessMetrics(model)
        self.decoded, self.close = self._metrics.decoded, self._metrics.close

    def examined(self, request: Any) -> list[Examined]:
        """The images of a request.

        Raises:
            ImageError: one is at fault, and which.
            OverloadError: they take the processor long, and come too late for that.
        """
        encoded = pb_utils.get_input_tensor_by_name(request, contract.IMAGE.name).as_numpy().reshape(-1)
        images = []
        for index, data in enumerate(encoded):
            try:
                images.append(self._examine(data))
            except ImageError as error:
                raise self.refusal(error, index, len(encoded)) from None
        if by_processor := [image.data for image in images if image.jpeg is None]:
            check_decoding(request, by_processor, self._limits, self._admission, self._metrics)
        return images

    def refusal(self, error: ImageError, index: int, count: int) -> ImageError:
        """Count an image that is at fault, and say which of its request's it is."""
        self._metrics.image_refused(error.reason)
        where = f"image {index + 1} of {count}: " if count > 1 else ""
        return ImageError(f"{where}{error}", error.reason)

    def sound(self, places: Sequence[Geometry | ImageError]) -> list[Geometry]:
        """Where the images of a request lie in the network's input.

        Raises:
            ImageError: one could not be decoded, and which.
        """
        for index, place in enumerate(places):
            if isinstance(place, ImageError):
                raise self.refusal(place, index, len(places))
        self.decoded(len(places))
        return [place for place in places if isinstance(place, Geometry)]


class Answers:
    """Makes the answers of requests whose images have come through the network, and counts them.

    Args:
        model: name of the model, for the metrics.
        admission: of the server.
        rows: candidates that leave the network per image.
    """

    def __init__(self, model: str, admission: Admission, rows: int) -> None:
        self._admission, self._rows = admission, rows
        self._metrics = PostprocessMetrics(model)
        self.close = self._metrics.close
        self._cut = CutCandidates(self._metrics)

    def tensors(
        self,
        request: Any,
        asked: RequestParameters,
        batch: Batch,
        first: int,
        places: Sequence[Geometry],
        detections: Sequence[Detections],
    ) -> list[Any]:
        """The tensors that answer a request.

        Args:
            request: as Triton gave it.
            asked: its parameters.
            batch: of its images and others; waited for.
            first: place of its first image in the batch.
            places: of its images in the network's input.
            detections: of its images.

        Raises:
            ImageError, OverloadError: its masks are too much work, or come too late.
        """
        if needs_edges(asked):  # else they are done already
            boxes = [batch.mask_boxes(first + index) for index in range(len(detections))]
            seconds = check_mask_work(boxes, places, asked, self._admission.allowed_s)
            check_in_time(request, seconds, self._admission, self._metrics)
        images = [
            ImageSegmentation(
                one.boxes,
                one.scores,
                one.class_ids,
                batch.masks(first + index, where),
                where.height,
                where.width,
            )
            for index, (one, where) in enumerate(zip(detections, places, strict=True))
        ]
        cut = sum(is_cut(batch.last_score(first + index), asked) for index in range(len(images)))
        self._cut.report(cut, self._rows, asked.confidence)
        self._metrics.answered(len(image.scores) for image in images)
        return [pb_utils.Tensor(name, array) for name, array in pack_response(images).items()]
