"""One request: its payload and parameters on the way out, its tensors on the way back."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from client.errors import AnswerError, RequestError
from client.images import ImageInput, encoded_image, image_name
from pipeline import contract
from pipeline.decode_work import REQUEST_DECODE_S, decode_seconds
from pipeline.errors import ImageError
from pipeline.image_structure import read_header
from pipeline.images import ImageLimits
from pipeline.mask_formats import check_masks
from pipeline.parameters import MAX_CLASS_ID, RequestParameters
from pipeline.result import Segmentation

if TYPE_CHECKING:
    from typing_extensions import Unpack

Parameters: TypeAlias = "dict[str, float | int | str]"
Tensors: TypeAlias = "Mapping[str, NDArray[Any]]"

_SERVER_DEFAULTS: Final = RequestParameters()
_MOST_BYTES: Final = 64 * 1024 * 1024  # half of what the server accepts over HTTP; one image may have as many
_MOST_PIXELS: Final = ImageLimits().max_pixels  # of an image whose header cannot be read here
_BORDER_PIXELS: Final = 0.01  # how far a box may leave the image, by rounding in FP32


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        images: encoded images, 1 to :data:`pipeline.contract.MAX_REQUEST_BATCH`.
        names: what messages call them.
        parameters: KServe request parameters; missing ones are the server's defaults.
        decode_s: about how long the server decodes them, in seconds.
    """

    images: tuple[bytes, ...]
    names: tuple[str, ...]
    parameters: Parameters
    decode_s: float = 0.0

    @classmethod
    def cut(cls, images: Sequence[ImageInput], parameters: Parameters) -> list[Request]:
        """Read and encode images, and split them into as few requests as the server accepts.

        A request of several images takes at most :data:`pipeline.decode_work.REQUEST_DECODE_S` to decode, by estimate,
        and has at most 64 MiB.

        Raises:
            RequestError: one cannot be read or is no image; names it.
        """
        requests: list[Request] = []
        held: list[tuple[bytes, str, float]] = []
        for image in images:
            data, name = encoded_image(image), image_name(image)
            one = data, name, decode_seconds(data)
            if held and not _fits([*held, one]):
                requests.append(cls._holding(held, parameters))
                held = []
            held.append(one)
        return [*requests, cls._holding(held, parameters)] if held else requests

    @classmethod
    def _holding(cls, held: Sequence[tuple[bytes, str, float]], parameters: Parameters) -> Request:
        images, names, seconds = zip(*held, strict=True)
        return cls(images, names, parameters, sum(seconds))

    def tensor(self) -> NDArray[np.object_]:
        """The input ``image``: object [N, 1] of bytes."""
        tensor = np.empty((len(self.images), *contract.IMAGE.shape), dtype=np.object_)
        tensor[:, 0] = self.images
        return tensor

    def parse(self, tensors: Tensors, class_names: tuple[str, ...] = ()) -> list[Segmentation]:
        """The results in its answer; see :func:`parse_response`."""
        mask_format = str(self.parameters.get("mask_format", _SERVER_DEFAULTS.mask_format))
        sizes = [_upright_size(data) for data in self.images]
        return parse_response(tensors, len(self.images), mask_format, sizes, class_names)

    def named(self, error: RequestError) -> RequestError:
        """The server's refusal, prefixed with the names of the images."""
        of = f"{len(self.names)} images ({', '.join(self.names)})" if len(self.names) > 1 else self.names[0]
        return RequestError(f"{of}: {error}", error.status)


class SegmentOptions(TypedDict, total=False):
    """What may be asked of one request; what is missing or None is left to the server's default.

    Meaning, ranges and defaults: :class:`pipeline.parameters.RequestParameters`.
    """

    confidence: float | None
    iou: float | None
    max_detections: int | None
    mask_format: str | None
    classes: Iterable[int | str] | None


def parameters_of(**options: Unpack[SegmentOptions]) -> Parameters:
    """KServe request parameters. Only types are checked here; the server checks ranges.

    Raises:
        RequestError: a value of another type; names it.
        TypeError: an unknown option.
    """
    unknown = options.keys() - _CONVERTERS.keys()
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; allowed: {', '.join(_CONVERTERS)}")
    return {name: _CONVERTERS[name](name, value) for name, value in options.items() if value is not None}


def named_classes(options: SegmentOptions) -> list[int | str] | None:
    """The classes asked for, if one of them is a name, which only the server's names make an index of; else None.

    Raises:
        RequestError: a text where a list is expected.
    """
    classes = options.get("classes")
    if isinstance(classes, (str, bytes)):
        raise RequestError(f"parameter 'classes' is {classes!r}; allowed: names or indices, such as ['card'] or [0, 2]")
    given = list(classes or ())
    return given if any(isinstance(one, str) for one in given) else None


def chunks(images: Sequence[ImageInput]) -> Iterator[Sequence[ImageInput]]:
    """Split a sequence of images into pieces that are read at once, as many as a request may hold.

    Raises:
        RequestError: a single image where a sequence is expected.
    """
    if isinstance(images, (str, bytes, bytearray, memoryview)):
        raise RequestError(f"one {image_name(images)}; allowed: a sequence of images. For one image, call segment")
    for start in range(0, len(images), contract.MAX_REQUEST_BATCH):
        yield images[start : start + contract.MAX_REQUEST_BATCH]


def parse_response(
    tensors: Tensors,
    batch: int,
    mask_format: str,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    class_names: tuple[str, ...] = (),
) -> list[Segmentation]:
    """Check padded response tensors, and cut them to one result per image.

    Nothing of the answer is trusted: what passes can be drawn, decoded with bounded work, and written as JSON.

    Args:
        tensors: name to array, batch axis first; what follows an image's ``num_detections`` is padding.
        batch: images of the request.
        mask_format: encoding of the masks.
        sizes: height and width of the images that were sent, upright; None where unknown.
        class_names: of the model, for the results.

    Raises:
        AnswerError: a tensor is missing, of another dtype or shape than the contract's, or holds what no right answer
            does; the message says what, and in which image.
    """
    arrays = {spec.name: _checked(tensors, spec, batch) for spec in contract.RESPONSE_TENSORS}
    counts, stated = arrays[contract.NUM_DETECTIONS.name][:, 0], arrays[contract.IMAGE_SIZE.name]
    depth = min(arrays[spec.name].shape[1] for spec in _PADDED)
    if batch and not 0 <= counts.min() <= counts.max() <= depth:
        raise AnswerError(f"num_detections says {counts.tolist()} where {depth} detections came")
    results = []
    for index, count in enumerate(counts.tolist()):
        boxes, scores, class_ids, masks = (arrays[spec.name][index, :count] for spec in _PADDED)
        result = Segmentation(
            # Copies: a view would keep the whole response in memory, and refuse to be written to.
            boxes=boxes.copy(),
            scores=scores.copy(),
            class_ids=class_ids.copy(),
            encoded_masks=tuple(masks.tolist()),
            mask_format=mask_format,
            image_size=(int(stated[index, 0]), int(stated[index, 1])),
            class_names=class_names,
        )
        try:
            _check(result, sizes[index] if sizes is not None else None)
        except ValueError as error:
            raise AnswerError(f"the answer for image {index + 1} of {batch} is wrong: {error}") from None
        results.append(result)
    return results


def _check(result: Segmentation, sent: tuple[int, int] | None) -> None:
    """Check one image's result, for an image of the height and width ``sent``, if these are known.

    Raises:
        ValueError: no right answer is like this; says what is wrong.
    """
    height, width = result.image_size
    if sent is not None and result.image_size != sent:
        raise ValueError(f"image_size is {height}x{width}; the image that was sent has {sent[0]}x{sent[1]} pixels")
    if height < 1 or width < 1 or (sent is None and height * width > _MOST_PIXELS):
        raise ValueError(f"image_size is {height}x{width}; allowed: 1 to {_MOST_PIXELS} pixels in all")
    count = len(result)
    if count > contract.DEFAULT_TOP_K:
        raise ValueError(f"{count} detections; allowed: {contract.DEFAULT_TOP_K}")
    if not count:
        return
    low, high = result.boxes[:, :2], result.boxes[:, 2:]
    limit = np.array([width, height], np.float32) + _BORDER_PIXELS
    good = (low >= -_BORDER_PIXELS) & (low <= high) & (high <= limit)  # false for NaN
    if not good.all():
        box = result.boxes[~good.all(axis=1)][0].tolist()
        raise ValueError(f"the box {box} does not lie inside the image of {height}x{width} pixels")
    scores = result.scores
    if not (scores[0] <= 1 and scores[-1] >= 0 and (scores[1:] <= scores[:-1]).all()):  # true for NaN
        raise ValueError("its scores do not fall from 1 or less to 0 or more")
    if result.class_ids.min() < 0 or result.class_ids.max() > MAX_CLASS_ID:
        raise ValueError(f"a class index is not in 0 to {MAX_CLASS_ID}")
    if set(map(type, result.encoded_masks)) != {bytes}:
        raise ValueError("a mask is not of bytes")
    check_masks(result.encoded_masks, result.mask_format, height, width)


def _upright_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of an encoded image, upright; None where its header cannot be read."""
    try:
        return read_header(data).upright_size
    except ImageError:
        return None


_DTYPES: Final = {"INT32": np.dtype(np.int32), "FP32": np.dtype(np.float32), "BYTES": np.dtype(np.object_)}
_PADDED: Final = (contract.BOXES, contract.SCORES, contract.CLASS_IDS, contract.MASKS)


def _fits(held: Sequence[tuple[bytes, str, float]]) -> bool:
    """Whether images may go in one request."""
    return (
        len(held) <= contract.MAX_REQUEST_BATCH
        and sum(seconds for _, _, seconds in held) <= REQUEST_DECODE_S
        and sum(len(data) for data, _, _ in held) <= _MOST_BYTES
    )


def _checked(tensors: Tensors, spec: contract.TensorSpec, batch: int) -> NDArray[Any]:
    array = tensors.get(spec.name)
    if array is None:
        raise AnswerError(f"the answer has no output {spec.name!r}: the model is not one of this project's ensembles")
    expected = (batch, *spec.shape)
    if array.ndim != len(expected) or any(
        want not in (-1, got) for want, got in zip(expected, array.shape, strict=True)
    ):
        raise AnswerError(f"output {spec.name!r} has shape {list(array.shape)}; expected {list(expected)}")
    if array.dtype != _DTYPES[spec.dtype]:
        raise AnswerError(f"output {spec.name!r} is of type {array.dtype}; expected {spec.dtype}")
    return array


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, np.number)):
        raise RequestError(f"parameter {name!r} is {value!r}; allowed: a number from 0 to 1")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Integral, np.integer)):
        raise RequestError(f"parameter {name!r} is {value!r}; allowed: whole numbers")
    return int(value)


def _indices(name: str, value: Any) -> str:
    if isinstance(value, (str, bytes)):
        raise RequestError(f"parameter {name!r} is {value!r}; allowed: class indices, such as [0, 2]")
    return ",".join(str(_whole(name, index)) for index in value)


_CONVERTERS: Final[Mapping[str, Callable[[str, Any], float | int | str]]] = {
    "confidence": _number,
    "iou": _number,
    "max_detections": _whole,
    "mask_format": lambda _, value: str(value),
    "classes": _indices,
}
