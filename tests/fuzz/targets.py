"""What is fuzzed: functions of bytes that may end in a documented error, and in nothing else.

Each target has seeds, from which a fuzzer starts. ``tests/unit/test_fuzz.py`` replays them with simple mutations.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import onnx
import tritonclient.grpc
import tritonclient.http
import yaml
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.web import RequestPayloadError
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from base.errors import OperatorError
from builder.errors import BuilderError
from builder.export import inspect
from builder.families import recognize
from builder.families.metadata import class_names, facts_of, model_name
from builder.settings import load_settings
from client.coco import CocoDocument
from client.errors import SegmentationError, answer_errors
from client.request import parse_response
from client.transport import _tensors
from gateway.bodies import Bodies
from gateway.errors import Refusal
from gateway.kserve import parse_infer
from gateway.limits import Limits
from pipeline import contract
from pipeline.decode_work import check_decode_work
from pipeline.errors import ImageError
from pipeline.images import ImageLimits, decode_for, decode_image
from pipeline.mask_formats import check_masks, decode_mask, encode_masks
from pipeline.masks import MaskRuns
from pipeline.overlay import draw_overlay
from repository.integrity import misfit_of, version_faults
from repository.manifest import MANIFEST_NAME, other_classes
from repository.networks import mixture
from repository.promotions import read_promotions, rollback_target
from repository.signatures import TrustedKeys
from repository.store import PROMOTIONS_NAME, SHIPPED_REPOSITORY, ModelRepository, read_config
from tests.chaos import protocol
from tests.chaos.corpus_valid import valid_images
from tests.exports import segmentation_export
from tests.unit.repository.helpers import H100, run
from tests.versions import H100_PLAN, PASSED, add_version

_SEED_BYTES: Final = 16 << 10
_ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "\0",
    "\ud800",
    "\x1b[2J",
    "../x",
    "9" * 5000,
    [],
    {},
    [[]],
    [None],
    [1, "x"],
    {"x": {}},
    {"": None},
)
"""Values that a document may hold where another is expected."""


@dataclass(frozen=True)
class Target:
    """One thing to fuzz."""

    run: Callable[[bytes], object]  # takes any bytes; an exception is a finding
    seeds: Callable[[], list[bytes]]  # makes inputs to start from


def _patched(document: Any, data: bytes) -> Any:
    """A copy of a document of JSON in which up to four places, which the bytes choose, hold something else."""
    for place, value in list(zip(data[0::2], data[1::2], strict=False))[:4]:
        document = json.loads(json.dumps(document))
        places = list(_places(document))
        if not places:
            return document
        holder, key = places[place % len(places)]
        if value == 255:
            del holder[key]
        elif value >= 128 and isinstance(holder, dict):
            holder[f"more {value}"] = holder[key]
        else:
            holder[key] = _ODD[value % len(_ODD)]
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = range(len(document)) if isinstance(document, list) else list(document) if isinstance(document, dict) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@functools.cache
def _folder() -> Path:
    """A folder for files that targets read; in memory, and removed at the end."""
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# The gateway.

_REQUEST: Final = {
    "id": "7",
    "parameters": {"confidence": 0.5, "classes": "0,2", "binary_data_output": True},
    "inputs": [
        {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}},
        {"name": "size", "shape": [2, 2], "datatype": "INT32", "data": [[1, 2], [3, 4]]},
        {"name": "half", "shape": [2], "datatype": "FP16", "parameters": {"binary_data_size": 4}},
    ],
    "outputs": [{"name": "masks", "parameters": {"binary_data": False, "classification": 3}}],
}
_BINARY: Final = b"\5\0\0\0image" + b"half"


def _gateway(data: bytes) -> None:
    """One body. What passes is protobuf that holds each input's data."""
    kind, rest = data[:1], data[1:]
    header: str | None = None
    if kind == b"P":
        text = json.dumps(_patched(_REQUEST, rest), ensure_ascii=False).encode(errors="surrogatepass")
        body, header = text + _BINARY, str(len(text))
    elif kind == b"H":
        header, body = rest[:4].decode("latin-1"), rest[4:]
    else:
        body = rest
    try:
        call = parse_infer("model", "", body, header)
    except Refusal:
        return
    sent = service_pb2.ModelInferRequest.FromString(call.serialized())
    if [b"".join(raw) for raw in call.raw] != list(sent.raw_input_contents) or len(sent.inputs) != len(call.raw):
        raise AssertionError("the inputs are not those of the request")


def _gateway_seeds() -> list[bytes]:
    text = _json(_REQUEST)
    image = protocol.infer_body(b"image")
    return [
        b"P",
        b"P\3\5",
        b"P\x09\xff\x0c\x11",
        b"H%04d" % len(text) + text + _BINARY,
        b"H%04d" % image[1] + image[0],
        b"B" + _json({"inputs": [{"name": "a", "shape": [2], "datatype": "BYTES", "data": ["x", "y\\u00e4"]}]}),
        b"B" + _json({"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP64", "data": [[1e300, -2]]}]}),
        *(b"B" + body[:_SEED_BYTES] for body in protocol.HOSTILE_BODIES.values()),
    ]


_BODY_LIMITS: Final = replace(
    Limits(), body_bytes=4000, all_bodies_bytes=6000, first_chunks=4, chunk_bytes=16, slow_grace_s=60.0
)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


def _bodies(data: bytes) -> None:
    """One body in parts and chunks; what is read is what was sent, and nothing counts as held afterwards."""
    _loop().run_until_complete(_read_body(data))


async def _read_body(data: bytes) -> None:
    loop = asyncio.get_running_loop()
    connection = BaseProtocol(loop)
    connection.connection_made(
        cast("Any", SimpleNamespace(pause_reading=bool, resume_reading=bool, get_extra_info=lambda name: None))
    )
    stream = StreamReader(connection, 2**16, loop=loop)
    length = int.from_bytes(data[:2], "big") if data[:1] != b"\xff" else None
    headers = {"Content-Encoding": data[2:10].decode("latin-1")} if data[1:2] == b"\xfe" else {}
    request = cast("Any", SimpleNamespace(content=stream, headers=headers, content_length=length))
    sent = bytearray()

    async def feed() -> None:
        position, in_chunk = 2, False
        while position < len(data):
            order, position = data[position], position + 1
            if order < 200:
                if length is None and not in_chunk:
                    stream.begin_http_chunk_receiving()
                    in_chunk = True
                part = data[position : position + 8 * order]
                position += len(part)
                if part:
                    stream.feed_data(part)
                    sent.extend(part)
            elif order < 225 and in_chunk:
                stream.end_http_chunk_receiving()
                in_chunk = False
            elif order < 230:
                stream.set_exception((RequestPayloadError, ConnectionResetError)[order % 2]("broken"))
                return
            else:
                await asyncio.sleep(0)
        if in_chunk:
            stream.end_http_chunk_receiving()
        stream.feed_eof()

    bodies = Bodies(_BODY_LIMITS)
    feeding = loop.create_task(feed())
    try:
        async with bodies.read(request) as body:
            await feeding
            if body != bytes(sent):
                raise AssertionError("the body is not what was sent")
    except Refusal:
        pass
    finally:
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeding
    if bodies._held_bytes != 0:
        raise AssertionError(f"{bodies._held_bytes} bytes are still held")


def _bodies_seeds() -> list[bytes]:
    return [
        b"\0\x10\x02" + bytes(16),
        b"\xff\0" + b"".join(b"\x01" + bytes(8) + b"\xc8" for _ in range(10)),
        b"\xff\xfegzip    \x02" + bytes(16),
        b"\xff\0\x20" + bytes(256) + b"\xe7\x20" + bytes(256) + b"\xc8",
        b"\0\x10\x01" + bytes(8) + b"\xe1",
    ]


# The client.

_IMAGE_SIZE: Final = (12, 16)
_BLACK: Final = np.zeros((*_IMAGE_SIZE, 3), np.uint8)


def _answer(mask_format: str, detections: int = 2) -> Any:
    """A right answer over gRPC."""
    pixels = np.zeros(_IMAGE_SIZE, bool)
    pixels[2:9, 3:11] = True
    masks = encode_masks([MaskRuns.from_image(pixels)] * detections, mask_format)
    answer = service_pb2.ModelInferResponse(model_name="segment_int8", model_version="1")
    boxes = np.array([[3, 2, 11, 9]] * detections, np.float32)
    scores = np.linspace(1, 0, detections, dtype=np.float32)
    texts = b"".join(len(mask).to_bytes(4, "little") + mask for mask in masks)
    for spec, shape, raw in (
        (contract.NUM_DETECTIONS, [1, 1], np.int32(detections).tobytes()),
        (contract.BOXES, [1, detections, 4], boxes.tobytes()),
        (contract.SCORES, [1, detections], scores.tobytes()),
        (contract.CLASS_IDS, [1, detections], np.arange(detections, dtype=np.int32).tobytes()),
        (contract.MASKS, [1, detections], texts),
        (contract.IMAGE_SIZE, [1, 2], np.array(_IMAGE_SIZE, np.int32).tobytes()),
    ):
        answer.outputs.add(name=spec.name, datatype=spec.dtype, shape=shape)
        answer.raw_output_contents.append(raw)
    return answer


def _json_answer() -> dict[str, Any]:
    answer = _answer("rle")
    result = tritonclient.grpc.InferResult(answer)
    outputs = []
    for output in answer.outputs:
        values = result.as_numpy(output.name).ravel().tolist()
        data = [value.decode() if isinstance(value, bytes) else value for value in values]
        outputs.append({"name": output.name, "datatype": output.datatype, "shape": list(output.shape), "data": data})
    return {"model_name": "segment_int8", "model_version": "1", "outputs": outputs}


def _client(data: bytes) -> None:
    """One answer, over either protocol. What passes has masks of the image's size, or none that can be decoded."""
    kind, rest = data[:1], data[2:]
    mask_format = contract.MASK_FORMATS[int.from_bytes(data[1:2], "big") % len(contract.MASK_FORMATS)]
    try:
        with answer_errors("host:1", "http"):
            tensors = _tensors(_http_answer(kind, rest) if kind in b"JPB" else _grpc_answer(rest))
            results = parse_response(tensors, 1, mask_format, [_IMAGE_SIZE])
    except (SegmentationError, _Unread):
        return
    for result in results:
        json.dumps([result.boxes.tolist(), result.scores.tolist(), result.class_ids.tolist()], allow_nan=False)
        for index in range(min(len(result), 3)):
            with contextlib.suppress(ValueError):
                if result.mask(index).shape != _IMAGE_SIZE:
                    raise AssertionError("a mask of another size")
        for use in (functools.partial(CocoDocument({}).add, "x"), functools.partial(draw_overlay, _BLACK)):
            try:
                use(result)
            except ValueError:  # found when a mask is decoded
                if mask_format in ("rle", "none"):
                    raise


class _Unread(Exception):
    """Bytes that the transport, not this project, reads and refuses."""


def _http_answer(kind: bytes, rest: bytes) -> Any:
    if kind == b"P":
        rest = json.dumps(_patched(_json_answer(), rest)).encode()
    length = int.from_bytes(rest[:2], "big") if kind == b"B" else None
    return tritonclient.http.InferResult.from_response_body(rest[2:] if kind == b"B" else rest, False, length)


def _grpc_answer(rest: bytes) -> Any:
    try:
        return tritonclient.grpc.InferResult(service_pb2.ModelInferResponse.FromString(rest))
    except DecodeError:
        raise _Unread from None


def _client_seeds() -> list[bytes]:
    text = _json(_json_answer())
    formats = [
        bytes([kind, number]) + _answer(name).SerializeToString()
        for kind in b"G"
        for number, name in enumerate(contract.MASK_FORMATS)
    ]
    return [
        *formats,
        b"G\0" + _answer("rle", 0).SerializeToString(),
        b"J\0" + text,
        b"P\0",
        b"P\0\x07\x02",
        b"B\0\0\x20" + text,
    ]


# Images and masks.

_LIMITS: Final = ImageLimits(max_pixels=1 << 18, max_bytes=1 << 18)


def _images(data: bytes) -> None:
    """One encoded image; decoded, it has the size that its header says."""
    try:
        check_decode_work([data], 1.0, _LIMITS)
        image = decode_image(data, _LIMITS)
    except ImageError:
        return
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise AssertionError(f"{image.dtype} {image.shape}")
    _, height, width = decode_for(data, 32, 32, _LIMITS)
    if (height, width) != image.shape[:2]:
        raise AssertionError(f"{height}x{width} for the network, {image.shape} as an image")


def _images_seeds() -> list[bytes]:
    return [data for data in valid_images().values() if len(data) <= _SEED_BYTES]


def _masks(data: bytes) -> None:
    """One mask. What passes the check has the image's size when it is decoded, if it can be."""
    mask_format = contract.MASK_FORMATS[int.from_bytes(data[:1], "big") % len(contract.MASK_FORMATS)]
    height, width = (1 + value for value in data[1:3].ljust(2, b"\0"))
    try:
        check_masks([data[3:]], mask_format, height, width)
    except ValueError:
        passed = False
    else:
        passed = True
    try:
        mask = decode_mask(data[3:], mask_format, height, width)
    except ValueError:
        if passed and mask_format == "rle":
            raise
        return
    if mask.shape != (height, width) or mask.dtype != np.bool_:
        raise AssertionError(f"{mask.dtype} {mask.shape}")


def _masks_seeds() -> list[bytes]:
    pixels = np.zeros((30, 40), bool)
    pixels[3:20, 5:30] = True
    pixels[6:9, 8:12] = False
    masks = [MaskRuns.from_image(pixels), MaskRuns.from_image(~pixels), MaskRuns.from_image(pixels & False)]
    return [
        bytes([number, 29, 39]) + encoded
        for number, name in enumerate(contract.MASK_FORMATS)
        for encoded in encode_masks(masks, name)
    ]


# The builder and the repository.


def _onnx(data: bytes) -> None:
    """One file, read and checked; it is not run."""
    path = _folder() / "export.onnx"
    path.write_bytes(data)
    try:
        found = inspect(path, None)
    except BuilderError:
        return
    outputs = {value.name: (1, 37, 84) for value in found.model.graph.output}
    with contextlib.suppress(BuilderError):
        recognize(found.seen(outputs), None)
    class_names(found.metadata, 3)
    model_name(found.metadata)
    facts_of(found.metadata)


def _onnx_seeds() -> list[bytes]:
    path = _folder() / "seed.onnx"
    found = []
    for names in ("{0: 'cat', 1: 'dog', 2: 'cow'}", "['a', 'b', 'c']"):
        segmentation_export(path, height=32, width=32, metadata={"names": names, "task": "segment"})
        model = onnx.load(path)
        for tensor in model.graph.initializer:  # the weights' values mean nothing here
            if len(tensor.raw_data) > 1024:
                tensor.ClearField("raw_data")
                tensor.dims[:] = [1]
                tensor.raw_data = bytes(4)
        found.append(model.SerializeToString())
    return found


@functools.cache
def _repository() -> tuple[ModelRepository, list[Any]]:
    """A repository with a version of the cpu profile and one of the tensorrt profile, and their manifests."""
    repository = ModelRepository.open(_folder() / "repository")
    add_version(repository, verification={**PASSED, "classes": [{"name": "cat", "f1": 1.0}]})
    add_version(repository, plans={"model-sm90.plan": {**H100_PLAN, "batches": [1, 8, 16]}})
    paths = [repository.version_folder("int8", version) / MANIFEST_NAME for version in (1, 2)]
    for path in paths:
        path.chmod(0o644)
    return repository, [json.loads(path.read_text()) for path in paths]


def _documents(data: bytes) -> None:
    """One manifest, log of promotions, configuration, settings file, list of class names, or file of keys."""
    kind, rest = data[:1], data[1:]
    with contextlib.suppress(OperatorError):
        _DOCUMENTS.get(kind, _manifest)(rest)


def _patched_manifest(rest: bytes, version: int = 1) -> None:
    _manifest(json.dumps(_patched(_repository()[1][version - 1], rest)).encode(), version)


def _manifest(text: bytes, version: int = 1) -> None:
    repository, _ = _repository()
    folder = repository.version_folder("int8", version)
    (folder / MANIFEST_NAME).write_bytes(text)
    version_faults(repository, "int8", version)
    mixture(repository, "cpu")
    manifest = repository.manifest("int8", version)
    json.loads(manifest.to_json())
    misfit_of(repository, manifest, H100)
    other_classes(manifest.class_names, ["cat", "dog"])
    for command in (["list"], ["show", f"network_int8/{version}"]):
        with contextlib.redirect_stdout(io.StringIO()):
            run(repository, *command)


def _settings(text: bytes) -> None:
    path = _folder() / "settings.yaml"
    path.write_bytes(text)
    load_settings(path, {"plan.max_batch": 4})


def _patched_settings(rest: bytes) -> None:
    _settings(yaml.safe_dump(_patched(_default_settings(), rest)).encode(errors="surrogatepass"))


@functools.cache
def _default_settings() -> Any:
    return yaml.safe_load((SHIPPED_REPOSITORY.parent / "builder/builder.yaml").read_text())


def _configuration(text: bytes) -> None:
    path = _folder() / "config.pbtxt"
    path.write_bytes(text)
    read_config(path)


def _promotions(text: bytes) -> None:
    (_folder() / PROMOTIONS_NAME).write_bytes(text)
    rollback_target(read_promotions(_folder(), "cpu"), 2)


def _names(text: bytes) -> None:
    names, _ = class_names({"names": text.decode(errors="surrogateescape")}, 3)
    if len(names) != 3:
        raise AssertionError(names)


def _keys(text: bytes) -> None:
    path = _folder() / "keys.pem"
    path.write_bytes(text)
    path.chmod(0o600)
    TrustedKeys.read(path, _folder() / "repository")


_DOCUMENTS: Final[dict[bytes, Callable[[bytes], None]]] = {
    b"M": _manifest,
    b"P": _patched_manifest,
    b"Q": functools.partial(_patched_manifest, version=2),
    b"S": _settings,
    b"T": _patched_settings,
    b"C": _configuration,
    b"L": _promotions,
    b"N": _names,
    b"K": _keys,
}


def _documents_seeds() -> list[bytes]:
    _, (manifest, _) = _repository()
    log = {"time_utc": "2026", "profile": "cpu", "action": "promote", "version": 2, "previous": 1, "forced": False}
    letters = b"MCowBQYDK2VwAyEAzbDkVUHjeGuZ8+2fF+MbrknDc30CzgpXYdj+IIBn5d0="
    key = b"-----BEGIN PUBLIC KEY-----\n" + letters + b"\n-----END PUBLIC KEY-----\n"
    return [
        b"M" + _json(manifest),
        *(b"P" + bytes([place, place % 23]) for place in range(64)),
        *(b"Q" + bytes([place, place % 23]) for place in range(64)),
        b"S" + yaml.safe_dump(_default_settings()).encode(),
        b"T\5\3",
        *(b"C" + path.read_bytes() for path in sorted((SHIPPED_REPOSITORY / "network_int8").rglob("*.pbtxt.in"))),
        b"L" + _json(log) + b"\n" + _json({**log, "action": "rollback", "version": 1, "previous": 2}),
        b"N{0: 'cat', 1: 'dog', 2: 'cow'}",
        b"N['a', \"b\", 'c']",
        b"K" + key * 2,
    ]


TARGETS: Final[dict[str, Target]] = {
    "gateway": Target(_gateway, _gateway_seeds),
    "bodies": Target(_bodies, _bodies_seeds),
    "client": Target(_client, _client_seeds),
    "images": Target(_images, _images_seeds),
    "masks": Target(_masks, _masks_seeds),
    "onnx": Target(_onnx, _onnx_seeds),
    "documents": Target(_documents, _documents_seeds),
}
