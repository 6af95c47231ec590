"""What leaves the network to boxes, scores and masks, on the GPU: :func:`pipeline.postprocess.postprocess` for a batch.

Nothing but the answer is copied to the host: the last kernel writes it there, so that a batch is waited for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.contract import DEFAULT_TOP_K, FIRST_COEFFICIENT_COLUMN
from pipeline.decode import Detections
from pipeline.mask_formats import encode_masks
from pipeline.masks import MaskRuns
from pipeline.parameters import RequestParameters
from steps.gpu.device import Device
from steps.gpu.structs import FOUND, INSTANCE, TOTALS

_THREADS: Final = 256  # THREADS in structs.cuh
_MOST_COEFFICIENTS: Final = 256  # MOST_COEFFICIENTS in masks.cu
_CLASS_LIST: Final = 4096
_DELIVERING_BLOCKS: Final = 32
_BLOCKS_PER_MULTIPROCESSOR: Final = 4
_EDGES: Final = 4 << 20  # of a batch's masks, 16 MB: 64 images of 8 instances with 2,000 pixel columns each
_BYTES: Final = 8 << 20
_ALL: Final = -1
_MOST_ATTEMPTS: Final = 3  # as the pools are; room for the edges first, then for their text
_NO_MASKS, _EDGES_ONLY, _TEXT = range(3)  # `masks` in structs.cuh
_NO_COEFFICIENTS: Final = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class NetworkOutputs:
    """Where the network leaves a batch on the GPU.

    Attributes:
        candidates: address of float32 [batch, rows, columns], sorted by falling score.
        prototypes: address of float16 [batch, planes, cells_high, cells_wide].
        rows: candidates per image.
        columns: of a candidate.
        planes: prototypes, one per coefficient of a candidate; or ready masks.
        cells_high: rows of a prototype.
        cells_wide: columns of a prototype.
    """

    candidates: int
    prototypes: int
    rows: int
    columns: int
    planes: int
    cells_high: int
    cells_wide: int

    @property
    def coefficients(self) -> int:
        """Of a candidate."""
        return self.columns - FIRST_COEFFICIENT_COLUMN

    @property
    def has_ready_masks(self) -> bool:
        """See :func:`pipeline.masks.holds_ready_masks`."""
        return self.coefficients == 1 < self.planes


class GpuPostprocess:
    """Finds the instances of batches of images.

    Args:
        device: where the network's outputs lie.
        outputs: of the network; always the same buffers.
        max_batch_size: most images that come together.

    Raises:
        ValueError: the network has more mask coefficients than the kernels hold, or another number than prototypes.
    """

    def __init__(self, device: Device, outputs: NetworkOutputs, max_batch_size: int) -> None:
        coefficients = outputs.coefficients
        if not 1 <= coefficients <= _MOST_COEFFICIENTS:
            raise ValueError(f"the network has {coefficients} mask coefficients; allowed: 1 to {_MOST_COEFFICIENTS}")
        if coefficients != outputs.planes and not outputs.has_ready_masks:
            raise ValueError(f"the network has {coefficients} mask coefficients for {outputs.planes} prototypes")
        self._device, self._outputs = device, outputs
        self._blocks = device.multiprocessors * _BLOCKS_PER_MULTIPROCESSOR
        most = max_batch_size * DEFAULT_TOP_K
        self._corners = device.memory(max_batch_size * outputs.rows * 16)
        self._scratch = device.memory(self._blocks * outputs.cells_high * outputs.cells_wide * 4)
        self._found = device.memory(max_batch_size * FOUND.itemsize)
        self._instances = device.memory(most * INSTANCE.itemsize + 16)
        self._totals = device.memory(TOTALS.itemsize)
        self._host_totals = device.host(1, TOTALS)
        self._host_found = device.host(max_batch_size, FOUND)
        self._host_instances = device.host(most, INSTANCE)
        self._edges, self._text = _Pool(device, _EDGES, np.int32), _Pool(device, _BYTES, np.uint8)
        self._images = self._count = 0
        self._overflowed = False
        self._mark: Any = None
        self._places = np.zeros(0, FOUND)
        self._instances_found = np.zeros(0, INSTANCE)
        self._found_text, self._found_edges = b"", np.zeros(0, np.int32)
        self._classes = device.host(_CLASS_LIST, np.int32)
        self._class_address = device.memory(self._classes.nbytes)

    def ask(self, images: NDArray[Any], parameters: Sequence[RequestParameters]) -> None:
        """Write what is asked of each image of a batch into its structure.

        Args:
            images: :data:`steps.gpu.structs.IMAGE` [n], all 0.
            parameters: n.
        """
        lists: dict[frozenset[int], tuple[int, int]] = {}
        filled = 0
        for image, asked in zip(images, parameters, strict=True):
            # At 1 nothing is suppressed; a quotient of rounded areas may be a little greater.
            image["confidence"], image["iou"] = asked.confidence, asked.iou if asked.iou < 1 else 2.0
            image["max_detections"], image["classes"] = asked.max_detections, -1
            image["masks"] = {"none": _NO_MASKS, "rle": _TEXT}.get(asked.mask_format, _EDGES_ONLY)
            if asked.classes is None:
                continue
            if asked.classes not in lists:
                wanted = sorted(asked.classes)
                if filled + len(wanted) > len(self._classes):
                    self._classes = self._larger(self._classes, filled + len(wanted))
                self._classes[filled : filled + len(wanted)] = wanted
                lists[asked.classes] = filled, len(wanted)
                filled += len(wanted)
            image["first_class"], image["classes"] = lists[asked.classes]
        if filled:
            self._device.upload(self._class_address, self._classes[:filled])

    def _larger(self, classes: NDArray[np.int32], least: int) -> NDArray[np.int32]:
        grown = self._device.host(max(least, 2 * len(classes)), np.int32)
        grown[: len(classes)] = classes
        self._class_address = self._device.memory(grown.nbytes)
        return grown

    def start(self, images: int, count: int, *, with_edges: bool) -> None:
        """Queue the kernels behind the network.

        Args:
            images: address of the batch's :data:`steps.gpu.structs.IMAGE`.
            count: of the batch's images.
            with_edges: some of them are to be answered in other formats than ``rle`` and ``none``.
        """
        outputs = self._outputs
        self._images, self._count = images, count
        self._device.clear(self._totals, TOTALS.itemsize)
        self._device.launch(
            "suppress",
            (count,),
            (_THREADS,),
            (
                *map(np.uint64, (images, self._class_address, outputs.candidates)),
                *map(np.int32, (outputs.rows, outputs.columns, outputs.cells_high, outputs.cells_wide)),
                *map(np.uint64, (self._corners, self._found, self._instances, self._totals)),
            ),
            shared=outputs.rows,
        )
        self._mask(0, _ALL, with_edges=with_edges)
        self._mark = self._device.mark()

    @property
    def overflowed(self) -> bool:
        """Whether the masks of a batch of several images had no room together; those of one image always have."""
        return self._overflowed and self._count > 1

    def wait(self) -> list[Detections]:
        """Wait for the batch: the detections of each image, without mask coefficients.

        What :meth:`last_score` and :meth:`masks` give is of this batch until the next one is started.
        """
        self._device.wait(self._mark)
        totals = self._host_totals[0]
        self._overflowed = not (self._edges.holds(totals["edges"]) and self._text.holds(totals["bytes"]))
        self._instances_found = found = self._host_instances[: totals["instances"]].copy()
        self._places = self._host_found[: self._count].copy()
        if not self._overflowed:
            self._keep()
        boxes, scores, class_ids = (np.ascontiguousarray(found[name]) for name in ("box", "score", "class_id"))
        parts = [slice(first, first + count) for first, count in zip(*self._bounds(), strict=True)]
        return [Detections(boxes[part], scores[part], class_ids[part], _NO_COEFFICIENTS) for part in parts]

    def last_score(self, index: int) -> float:
        """Score of the last candidate of an image that left the network; see :func:`pipeline.decode.may_be_cut`."""
        return float(self._places["last_score"][index])

    def mask_boxes(self, index: int) -> NDArray[np.float32]:
        """The pixels that the masks of an image may reach: float32 [n, 4] of x1, y1, x2, y2."""
        first, count = (int(self._places[name][index]) for name in ("first", "count"))
        x, y = (self._instances_found[name][first : first + count] for name in ("x", "y"))
        sides = x["first"], y["first"], x["first"] + x["count"], y["first"] + y["count"]
        boxes: NDArray[np.float32] = np.stack(sides, axis=1).astype(np.float32)
        return boxes

    def masks(self, index: int, height: int, width: int, mask_format: str) -> list[bytes]:
        """The encoded masks of one image.

        Args:
            index: of the image in its batch.
            height: of the image, in pixels.
            width: likewise.
            mask_format: as was asked for it.

        Raises:
            RuntimeError: see :attr:`overflowed`.
        """
        if self.overflowed:
            raise RuntimeError("the masks of the batch had no room together; run its images one by one")
        first, count = (int(self._places[name][index]) for name in ("first", "count"))
        if mask_format == "none" or not count:
            return [b""] * count
        if self._overflowed:
            self._grow(first + count)
        part = self._instances_found[first : first + count]
        if mask_format == "rle":
            bounds = zip(part["first_byte"].tolist(), part["bytes"].tolist(), strict=True)
            return [self._found_text[place : place + size] for place, size in bounds]
        runs = []
        for place, size in zip(part["first_edge"].tolist(), part["edges"].tolist(), strict=True):
            edges = self._found_edges[place : place + size].astype(np.int64)
            runs.append(MaskRuns(edges[0::2], edges[1::2], height, width))
        return encode_masks(runs, mask_format)

    def _bounds(self) -> tuple[list[int], list[int]]:
        return self._places["first"].tolist(), self._places["count"].tolist()

    def _keep(self) -> None:
        """Take over what was delivered, before the next delivery."""
        totals = self._host_totals[0]
        self._found_text = self._text.host[: totals["bytes"]].tobytes()
        self._found_edges = self._edges.host[: totals["edges"]]

    def _grow(self, instances: int) -> None:
        """Make the masks of a batch of one image anew, in pools that grow as they need."""
        for _ in range(_MOST_ATTEMPTS):
            self._device.clear(self._totals, TOTALS.itemsize)
            self._mask(0, instances, with_edges=True)
            self._device.wait()
            totals = self._host_totals[0]
            edges_fit, text_fits = self._edges.fits(totals["edges"]), self._text.fits(totals["bytes"])
            if edges_fit and text_fits:
                break
        else:
            raise RuntimeError(f"the masks of one image take {totals['edges']} edges and {totals['bytes']} bytes")
        # Nothing else was delivered: the instances lie where they lay, with other places of their edges.
        found = self._host_instances[:instances]
        self._device.download(found, self._instances)
        self._instances_found = found.copy()
        self._overflowed = False
        self._keep()

    def _mask(self, begin: int, end: int, *, with_edges: bool) -> None:
        outputs, edges, text = self._outputs, self._edges, self._text
        self._device.launch(
            "masks",
            (self._blocks,),
            (_THREADS,),
            (
                *map(np.uint64, (self._images, self._instances)),
                *map(np.int32, (begin, end)),
                *map(np.uint64, (self._totals, outputs.candidates)),
                *map(np.int32, (outputs.rows, outputs.columns)),
                np.uint64(outputs.prototypes),
                *map(np.int32, (outputs.planes, outputs.cells_high, outputs.cells_wide)),
                *map(np.uint64, (self._scratch, edges.address)),
                np.int32(edges.capacity),
                np.uint64(text.address),
                np.int32(text.capacity),
            ),
        )
        hosts = (self._host_totals, self._host_found, self._host_instances)
        self._device.launch(
            "deliver",
            (_DELIVERING_BLOCKS,),
            (_THREADS,),
            (
                *map(np.uint64, (self._totals, self._found)),
                np.int32(self._count),
                *map(np.uint64, (self._instances, edges.address)),
                np.int32(edges.capacity),
                np.uint64(text.address),
                np.int32(text.capacity),
                *(np.uint64(array.ctypes.data) for array in hosts),
                np.uint64(edges.host.ctypes.data if with_edges else 0),
                np.uint64(text.host.ctypes.data),
            ),
        )


class _Pool:
    """Memory on the GPU that the masks of a batch share, and as much on the host."""

    def __init__(self, device: Device, capacity: int, dtype: Any) -> None:
        self._device, self._dtype = device, dtype
        self._make(capacity)

    def _make(self, capacity: int) -> None:
        self.capacity = capacity
        self.host = self._device.host(capacity, self._dtype)
        self.address = self._device.memory(self.host.nbytes + 16)

    def holds(self, needed: int) -> bool:
        """Whether so many elements have room; negative where their number was too large for 32 bits."""
        return 0 <= int(needed) <= self.capacity

    def fits(self, needed: int) -> bool:
        """Whether so many had room; grows where they had not."""
        if not self.holds(needed):
            if needed < 0:
                raise RuntimeError("the masks of one image have more edges than 32 bits can count")
            self._make(int(needed))
            return False
        return True
