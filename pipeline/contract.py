"""The tensor contract: every model name, tensor name, dtype and shape, written once.

Shapes leave the batch axis out, as Triton's ``config.pbtxt`` does; -1 is an axis that varies. ``H`` and ``W``
are the network's input height and width in pixels (640 x 640 for the reference model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PRECISIONS: Final = ("fp32", "fp16", "int8")
"""The precisions, in the order in which they are built and verified."""

PROFILES: Final = ("cpu", "tensorrt", "cuda")
"""Where the network runs: ONNX Runtime in the Python backend on the CPU, Triton's TensorRT backend, or ONNX Runtime in
the Python backend on an NVIDIA GPU."""

ADMISSION_MODEL: Final = "admission"
PREPROCESS_MODEL: Final = "preprocess"
POSTPROCESS_MODEL: Final = "postprocess"
SHARED_MODELS: Final = (ADMISSION_MODEL, PREPROCESS_MODEL, POSTPROCESS_MODEL)
"""The steps that the ensembles of all precisions share, in their order."""


def network_model(precision: str) -> str:
    """Name of the model that runs the network in ``precision``, such as ``network_int8``.

    Example:
        >>> network_model("int8")
        'network_int8'
    """
    return f"network_{precision}"


def ensemble_model(precision: str) -> str:
    """Name of the ensemble that callers use for ``precision``, such as ``segment_int8``.

    Example:
        >>> ensemble_model("int8")
        'segment_int8'
    """
    return f"segment_{precision}"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the contract.

    Attributes:
        name: the tensor's name in requests and in ``config.pbtxt``.
        dtype: KServe v2 name of the element type (``FP32``, ``INT32``, ``UINT8``, ``FP16``, ``BYTES``).
        shape: dimensions without the batch axis; -1 varies.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


# What callers send and receive (ensembles ``segment_<precision>``).
IMAGE: Final = TensorSpec("image", "BYTES", (1,))
NUM_DETECTIONS: Final = TensorSpec("num_detections", "INT32", (1,))
BOXES: Final = TensorSpec("boxes", "FP32", (-1, 4))
SCORES: Final = TensorSpec("scores", "FP32", (-1,))
CLASS_IDS: Final = TensorSpec("class_ids", "INT32", (-1,))
MASKS: Final = TensorSpec("masks", "BYTES", (-1,))
IMAGE_SIZE: Final = TensorSpec("image_size", "INT32", (2,))

RESPONSE_TENSORS: Final = (NUM_DETECTIONS, BOXES, SCORES, CLASS_IDS, MASKS, IMAGE_SIZE)

BATCH_DIMENSION: Final = "batch"
"""Name of the network's first dimension in its ONNX graph."""

# What moves between the steps of an ensemble. -1 in IMAGES and PROTOTYPES: set by the network.
IMAGES: Final = TensorSpec("images", "UINT8", (-1, -1, 3))
GEOMETRY: Final = TensorSpec("geometry", "FP32", (6,))  # pipeline.letterbox.Geometry
CANDIDATES: Final = TensorSpec("candidates", "FP32", (-1, -1))
PROTOTYPES: Final = TensorSpec("prototypes", "FP16", (-1, -1, -1))
ADMISSION: Final = TensorSpec("admission", "INT64", (3,))  # slot, moment, images under way: see steps.admission

# Columns of one row of ``candidates``; the mask coefficients follow.
SCORE_COLUMN: Final = 0
BOX_COLUMNS: Final = slice(1, 5)  # cx, cy, w, h in pixels of the network's input
CLASS_COLUMN: Final = 5
FIRST_COEFFICIENT_COLUMN: Final = 6
# A network without prototypes sends ready masks in their place; then one column follows, the number of the row's mask.

DEFAULT_TOP_K: Final = 1000
"""Anchors that leave the network per image, best score first. TensorRT's TopK allows 3840 at most."""
MAX_TOP_K: Final = 3840

MAX_REQUEST_BATCH: Final = 8
"""Images that one request to an ensemble may hold."""

MASK_FORMATS: Final = ("rle", "polygon", "png", "none", "png_base64")
