"""``python -m builder``: fetch the reference model, build versions, list them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from builder.build import BuildSettings, build_cpu
from builder.calibration import CalibrationSet, augmented_set, calibration_set
from builder.errors import BuilderError
from builder.progress import Steps
from builder.reference import REFERENCE_NAME, fetch_reference
from builder.repository import SHIPPED_REPOSITORY, ModelRepository
from pipeline import contract
from serving.errors import ServingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 if it failed (the fault and its remedy are on standard error); 2 for a wrong command line.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (BuilderError, ServingError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


def _fetch(options: argparse.Namespace) -> int:
    del options
    reference = fetch_reference()
    print(reference.onnx)
    for path in reference.photographs:
        print(path)
    return 0


def _build(options: argparse.Namespace) -> int:
    steps = Steps()
    source, name = options.onnx, options.name
    if source is None:
        with steps.step("fetch reference model"):
            source, name = fetch_reference().onnx, name or REFERENCE_NAME
    settings = BuildSettings(
        onnx=source,
        repository=options.repository,
        precisions=options.precisions,
        name=name,
        input_size=options.input_size,
        top_k=options.top_k,
    )
    for built in build_cpu(settings, _calibration(options), steps):
        state = "served" if built.promoted else "not served until promoted"
        print(f"{built.manifest.precision}\t{built.manifest.tag}\t{built.folder}\t{state}")
    return 0


def _calibration(options: argparse.Namespace) -> CalibrationSet | None:
    if "int8" not in options.precisions:
        return None
    if options.images:
        return calibration_set(options.images)
    if options.onnx is not None:
        raise BuilderError(
            "int8 needs images of what your model will see; give them with --images FOLDER, or leave int8 out with "
            "--precisions fp32,fp16"
        )
    return augmented_set(fetch_reference().photographs)


def _list(options: argparse.Namespace) -> int:
    repository = ModelRepository.open(options.repository)
    table = Table("model", "version", "tag", "profile", "MB", "created", "served")
    for precision in contract.PRECISIONS:
        for manifest in repository.manifests(precision):
            size = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
            served = manifest.version in repository.promoted(precision, manifest.profile)
            table.add_row(
                manifest.model,
                str(manifest.version),
                manifest.tag,
                manifest.profile,
                f"{size:.1f}",
                manifest.created_utc,
                "yes" if served else "",
            )
    Console().print(table)
    return 0


def _precisions(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(","))
    unknown = [part for part in chosen if part not in contract.PRECISIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}; allowed: {', '.join(contract.PRECISIONS)}")
    return chosen


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected HEIGHTxWIDTH, such as 640x640")
    return int(match.group(1)), int(match.group(2))


def _top_k(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= contract.MAX_TOP_K:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: 1 to {contract.MAX_TOP_K}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m builder", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="get the reference model and its photographs into the cache")
    fetch.set_defaults(run=_fetch)

    build = commands.add_parser("build", help="build versions from an ONNX export")
    build.add_argument("--profile", choices=["cpu"], default="cpu", help="where the versions will run (default: cpu)")
    build.add_argument(
        "--precisions", type=_precisions, default=contract.PRECISIONS, help="comma-separated (default: fp32,fp16,int8)"
    )
    build.add_argument("--onnx", type=Path, help="your YOLOv8-seg or YOLO11-seg export (default: the reference model)")
    build.add_argument("--name", help="model name for tags (default: from the export)")
    build.add_argument("--images", type=Path, nargs="+", metavar="PATH", help="calibration images: files or folders")
    build.add_argument("--input-size", type=_size, metavar="HxW", help="for an export of dynamic input size")
    build.add_argument(
        "--top-k", type=_top_k, default=contract.DEFAULT_TOP_K, help="anchors that leave the network per image"
    )
    _add_repository(build)
    build.set_defaults(run=_build)

    listing = commands.add_parser("list", help="list the versions in the repository")
    _add_repository(listing)
    listing.set_defaults(run=_list)
    return parser


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository", type=Path, default=SHIPPED_REPOSITORY, help="model repository (default: model_repository)"
    )


if __name__ == "__main__":
    sys.exit(main())
