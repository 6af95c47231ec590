"""The whole path: build, serve, segment five photographs in every precision over both protocols, stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from base.progress import Steps
from builder.build import build
from builder.settings import BuildSettings
from client.coco import CocoDocument
from client.files import write_atomically
from client.images import encode_pixels
from client.segmentation import SegmentationClient
from pipeline import contract
from pipeline.command_line import markup
from pipeline.images import decode_image
from pipeline.overlay import draw_overlay
from pipeline.result import Segmentation
from scenes import draw_showcase
from scenes.reference import Reference, fetch_reference
from serving.server import ServerOptions, TritonServer

PROTOCOLS: Final = ("grpc", "http")


@dataclass(frozen=True)
class _Row:
    photograph: Path
    precision: str
    protocol: str
    result: Segmentation
    milliseconds: float


def run_demo(repository: Path, out: Path, ports: tuple[int, int, int] = (0, 0, 0)) -> int:
    """Build what is missing, serve it, segment the reference photographs, write the results.

    ``out`` gets ``<precision>/<photograph>.png``, COCO JSON, ``<precision>.json``, and ``scene.jpg``, a drawn scene
    before and after. Ports are of HTTP, gRPC and metrics; 0 takes a free one.

    Returns:
        0; 1 if the two protocols do not agree.

    Raises:
        OperatorError: the build failed, or the server could not be run.
        SegmentationError: a request failed.
    """
    steps = Steps()
    with steps.step("fetch reference model"):
        reference = fetch_reference()
    for built in build(BuildSettings(repository=repository), steps):
        if not built.promoted:
            steps.warn(
                f"{built.manifest.model}/{built.manifest.version} is {built.state}; the version served before is shown"
            )
    server = TritonServer(ServerOptions(repository, http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2]))
    try:
        with steps.step("start tritonserver"):
            server.start()
            server.wait_ready()
        count = len(contract.PRECISIONS) * len(PROTOCOLS) * len(reference.photographs)
        with steps.step("segment", "photographs x precisions x protocols", count) as advance:
            rows = _segment(server, reference, advance)
        with steps.step("write overlays and JSON", str(out)):
            _write(rows, out)
            _write_scene(server, out / "scene.jpg")
    finally:
        with steps.step("stop tritonserver"):
            server.stop()
    _show(rows, out)
    return 0 if _protocols_agree(rows) else 1


def _segment(server: TritonServer, reference: Reference, advance: Callable[[], None]) -> list[_Row]:
    rows = []
    urls = {"grpc": server.grpc_url, "http": server.http_url}
    for precision in contract.PRECISIONS:
        for protocol in PROTOCOLS:
            with SegmentationClient(urls[protocol], protocol=protocol, precision=precision) as client:
                client.segment(reference.photographs[0])  # the first request of a model prepares its kernels
                for photograph in reference.photographs:
                    started = time.perf_counter()
                    result = client.segment(photograph)
                    milliseconds = (time.perf_counter() - started) * 1e3
                    rows.append(_Row(photograph, precision, protocol, result, milliseconds))
                    advance()
    return rows


def _write(rows: list[_Row], out: Path) -> None:
    for precision in contract.PRECISIONS:
        document = CocoDocument({"precision": precision, "model": contract.ensemble_model(precision)})
        for row in rows:
            if row.precision == precision and row.protocol == PROTOCOLS[0]:
                document.add(row.photograph.name, row.result)
                picture = draw_overlay(decode_image(row.photograph.read_bytes()), row.result)
                write_atomically(out / precision / f"{row.photograph.stem}.png", encode_pixels(picture))
        document.write(out / f"{precision}.json")


def _write_scene(server: TritonServer, path: Path) -> None:
    """A drawn scene without any real card, before and after, for showing to others."""
    scene = draw_showcase(1)
    with SegmentationClient(server.grpc_url, protocol="grpc", precision="int8") as client:
        result = client.segment(scene.image)
    pair = np.hstack([scene.image, draw_overlay(scene.image, result, class_names={0: "card"})])
    half = cv2.resize(pair, None, fx=2 / 3, fy=2 / 3, interpolation=cv2.INTER_AREA)
    write_atomically(path, encode_pixels(np.asarray(half, np.uint8), jpeg_quality=88))


def _show(rows: list[_Row], out: Path) -> None:
    table = Table(
        "photograph", "precision", "protocol", "detections", "best score", "ms", title="one request at a time"
    )
    for photograph in dict.fromkeys(row.photograph for row in rows):
        for row in rows:
            if row.photograph == photograph:
                best = f"{row.result.scores[0]:.3f}" if len(row.result) else "-"
                cells = (row.precision, row.protocol, str(len(row.result)), best, f"{row.milliseconds:.0f}")
                table.add_row(markup(photograph.name), *cells)
        table.add_section()
    console = Console()
    console.print(table)
    console.print(
        f"overlays: {markup(out)}/<precision>/<photograph>.png   COCO JSON: {markup(out)}/<precision>.json",
        soft_wrap=True,
    )


def _protocols_agree(rows: list[_Row]) -> bool:
    answers: dict[tuple[str, str], tuple[bytes, ...]] = {}
    for row in rows:
        answer = (row.result.boxes.tobytes(), row.result.scores.tobytes(), *row.result.encoded_masks)
        if answers.setdefault((row.photograph.name, row.precision), answer) != answer:
            Console(stderr=True).print(
                f"[red]gRPC and HTTP differ on {markup(row.photograph.name)} in {row.precision}[/red]"
            )
            return False
    return True
