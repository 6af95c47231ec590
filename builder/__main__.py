"""``python -m builder``: fetch the reference model, build versions, rank layers, list and promote versions."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from base.errors import OperatorError
from base.paths import local_path
from base.progress import Steps
from builder import versions_cli
from builder.add_plan import add_plan
from builder.build import build
from builder.examples import add_examples
from builder.families import FAMILIES
from builder.inspect_command import run_inspect
from builder.publication import Built
from builder.sensitivity_command import run_sensitivity
from builder.settings import BuildSettings, load_settings, unbuilt_profile
from pipeline import command_line, contract
from pipeline.command_line import markup, say
from repository.store import DEFAULT_REPOSITORY, ModelRepository
from scenes.reference import fetch_reference

_OPTIONS: Final = {
    "profile": "profile",
    "precisions": "precisions",
    "repository": "repository",
    "onnx": "onnx",
    "name": "name",
    "input_size": "input_size",
    "family": "family",
    "class_names": "class_names",
    "top_k": "top_k",
    "exclude": "exclude",
    "report": "report",
    "sign_key": "sign_key",
    "images": "calibration.images",
    "calibration_scenes": "calibration.scenes",
    "verify_images": "verification.images",
    "verification_scenes": "verification.scenes",
    "annotations": "verification.annotations",
    "max_batch": "plan.max_batch",
    "workspace_mib": "plan.workspace_mib",
    "opt_batch": "plan.opt_batch",
    "flavor": "plan.flavor",
}
"""Command-line options to entries of the settings."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 if it failed (fault and remedy are on standard error); 2 for a wrong command line.
    """
    command_line.prepare()
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except OperatorError as error:
        Console(stderr=True).print(f"[red]error:[/red] {markup(error, layout=True)}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


def _fetch(options: argparse.Namespace) -> int:
    del options
    reference = fetch_reference()
    say(reference.onnx)
    for path in reference.photographs:
        say(path)
    return 0


def _settings(options: argparse.Namespace) -> BuildSettings:
    overrides: dict[str, Any] = {entry: getattr(options, name, None) for name, entry in _OPTIONS.items()}
    if options.config is None and overrides["repository"] is None:
        overrides["repository"] = DEFAULT_REPOSITORY
    return load_settings(options.config, overrides)


def _build(options: argparse.Namespace) -> int:
    def show(built: Built) -> None:
        say(f"{built.manifest.precision}\t{built.manifest.tag}\t{built.folder}\t{built.state}")

    build(_settings(options), Steps(), show)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    return run_inspect(
        options.onnx, options.input_size, options.family, options.class_names or (), as_json=options.json
    )


def _sensitivity(options: argparse.Namespace) -> int:
    return run_sensitivity(_settings(options), Steps(), options.out)


def _add_plan(options: argparse.Namespace) -> int:
    from base.gpu import find_gpu
    from repository.flavor import detect_flavor

    repository = ModelRepository.existing(options.repository)
    reference = options.version
    flavor, gpu = detect_flavor(), find_gpu()
    manifest = add_plan(repository, reference.precision, reference.version, flavor, gpu, Steps())
    say(f"{manifest.tag}\t{', '.join(manifest.plans)}")
    return 0


def _built_profile(text: str) -> str:
    problem = unbuilt_profile(text)
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return text


def _names(text: str) -> tuple[str, ...]:
    path = Path(text)
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected HEIGHTxWIDTH, such as 384x640, or one number for both")
    return int(match.group(1)), int(match.group(2) or match.group(1))


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(prog="python -m builder", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="get the reference model and its photographs into the cache")
    fetch.set_defaults(run=_fetch)

    building = commands.add_parser("build", help="build, verify and write versions from an ONNX export")
    _add_settings(building)
    building.add_argument(
        "--precisions",
        type=command_line.names(contract.PRECISIONS),
        help="comma-separated (default: fp32,fp16,int8); built in that order",
    )
    building.add_argument(
        "--report", type=Path, metavar="FOLDER", help="for reports of precisions that fail (default: out/report)"
    )
    building.add_argument(
        "--sign-key", type=local_path, metavar="FILE", help="private key that signs the versions (see keygen)"
    )
    building.set_defaults(run=_build)

    inspecting = commands.add_parser(
        "inspect",
        help="say what an ONNX file is, and whether it can be built",
        description="Run probe images through an ONNX file, and say what it is, with the evidence.\n"
        "The exit code is 0 if it can be built, else 1.",
    )
    inspecting.add_argument("onnx", type=local_path, metavar="FILE")
    inspecting.add_argument("--json", action="store_true", help="for programs")
    _add_recognition(inspecting)
    inspecting.set_defaults(run=_inspect)

    sensitivity = commands.add_parser("sensitivity", help="rank groups of layers by what int8 costs in each")
    _add_settings(sensitivity)
    sensitivity.add_argument(
        "--out",
        type=local_path,
        default=Path("out/sensitivity"),
        help="folder for table and plot (default: out/sensitivity)",
    )
    sensitivity.set_defaults(run=_sensitivity, precisions=("int8",))

    adding = commands.add_parser("add-plan", help="add a plan for this machine's GPU to a version that exists")
    adding.add_argument(
        "version", type=versions_cli.version_reference, metavar="MODEL/VERSION", help="such as network_int8/2"
    )
    adding.add_argument("--repository", type=local_path, default=DEFAULT_REPOSITORY, help="default: model_repository")
    adding.set_defaults(run=_add_plan)

    versions_cli.add_commands(commands)
    add_examples(commands.choices)
    return parser


def _add_recognition(parser: argparse.ArgumentParser) -> None:
    """What says how a file is to be read."""
    parser.add_argument(
        "--input-size", type=_size, metavar="HxW", help="for an export of dynamic input size, such as 640 or 384x640"
    )
    parser.add_argument("--family", choices=list(FAMILIES), help="of the export, where it is not recognized")
    parser.add_argument(
        "--class-names", type=_names, metavar="A,B", help="of a file without names: comma-separated, or a text file"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=local_path, help="settings file; builder/builder.yaml documents every entry")
    parser.add_argument("--profile", type=_built_profile, help="where the versions will run: cpu (default), tensorrt")
    parser.add_argument("--repository", type=local_path, help="model repository (default: model_repository)")
    parser.add_argument("--onnx", type=local_path, help="your segmentation export (default: the reference model)")
    parser.add_argument("--name", help="model name for tags (default: from the export)")
    _add_recognition(parser)
    parser.add_argument("--top-k", type=int, help="anchors that leave the network per image (default: 1000)")
    parser.add_argument(
        "--exclude",
        nargs="+",
        metavar="LAYERS",
        help="further ONNX nodes to keep out of int8, or groups such as model.22.proto",
    )
    parser.add_argument(
        "--images", type=local_path, nargs="+", metavar="PATH", help="calibration images: files or folders"
    )
    parser.add_argument("--verify-images", type=local_path, nargs="+", metavar="PATH", help="images to verify on")
    parser.add_argument(
        "--annotations", type=local_path, help="COCO instances file of the verification images, for mAP"
    )
    parser.add_argument("--calibration-scenes", type=int, metavar="N", help="scenes generated for the reference model")
    parser.add_argument("--verification-scenes", type=int, metavar="N", help="likewise for verification")
    parser.add_argument("--opt-batch", type=int, help="batch that a plan's kernels are chosen for")
    parser.add_argument("--max-batch", type=int, help="largest batch of a plan")
    parser.add_argument("--workspace-mib", type=int, help="scratch memory that a plan's layers may use (default: 2048)")
    parser.add_argument(
        "--flavor", choices=["tensorrt-10", "tensorrt-11", "tensorrt-rtx"], help="TensorRT to build with"
    )


if __name__ == "__main__":
    sys.exit(main())
