"""``python -m client``: segment images, folders, a video or a camera; write overlays and COCO JSON."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from client.commands import run_photos, run_video
from client.errors import SegmentationError
from client.parameter_options import add_parameter_arguments, parameters_given
from client.retry import RetryPolicy
from client.segmentation import AsyncSegmentationClient
from client.transport import DEFAULT_URLS
from client.video import ADDRESS, VideoError, VideoSource, source_name
from pipeline import command_line, contract
from pipeline.api_key import KEY_VARIABLE, read_key
from pipeline.command_line import seconds, whole
from pipeline.errors import ParameterError
from pipeline.image_files import VIDEO_SUFFIXES, SourceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 if an image or frame failed (each is named); 2 if nothing could be tried: a wrong command line, no image,
        no server ready; 130 if interrupted.
    """
    command_line.prepare()
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    untried = (SourceError, SegmentationError, VideoError, ImportError)
    return command_line.exit_status(lambda: asyncio.run(_run(options)), (), wrong_usage=untried)


async def _run(options: argparse.Namespace) -> int:
    video = _video_source(options)
    retry = RetryPolicy(options.retries)
    key = _key(options.api_key_file) if options.api_key_file is not None else None
    client = AsyncSegmentationClient(options.url, options.protocol, options.precision, options.timeout_s, retry, key)
    async with client:
        if video is not None:
            return await run_video(client, video, options)
        return await run_photos(client, options)


def _key(path: Path) -> str:
    try:
        return read_key(path)
    except (ValueError, OSError) as error:
        raise SourceError(str(error)) from error


def _video_source(options: argparse.Namespace) -> VideoSource | None:
    if options.camera is not None:
        return int(options.camera)
    first: Path | str = options.paths[0]
    return first if _is_video(first) else None


def _is_video(given: Path | str) -> bool:
    return isinstance(given, str) or (given.suffix.lower() in VIDEO_SUFFIXES and not given.is_dir())


def _path_or_address(text: str) -> Path | str:
    return text if ADDRESS.fullmatch(text) else Path(text)


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse contradicting options, and what the server would refuse for every image."""
    videos = [source_name(given) for given in options.paths if _is_video(given)]
    if options.camera is not None and options.paths:
        parser.error("give either paths or --camera, not both")
    if options.camera is None and not options.paths:
        parser.error("give an image, a folder, a video or --camera N")
    if videos and len(options.paths) > 1:
        parser.error(f"{videos[0]}: a video cannot be combined with other paths; give it without them")
    if (videos or options.camera is not None) and options.coco_results:
        parser.error("--coco-results is for images; for a video, give --out or --json")
    if options.track and not videos and options.camera is None:
        parser.error("--track follows objects from frame to frame; give a video or --camera N")
    if options.annotations is not None and options.coco_results is None:
        parser.error("--annotations gives the ids of --coco-results; give that too")
    if options.json is not None and options.json == options.coco_results:
        parser.error("--json and --coco-results are two files of different layouts; give them different names")
    try:
        options.request = parameters_given(options)
    except ParameterError as error:
        parser.error(str(error))


def _class_names(text: str) -> dict[int, str]:
    return {index: name.strip() for index, name in enumerate(text.split(","))}


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m client",
        description="Segment images, folders, a video or a camera on a running server.",
        epilog="Exit status: 0; 1 if an image or frame failed; 2 if nothing could be tried (wrong command line, no "
        "image found, no server ready).",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=_path_or_address,
        metavar="PATH",
        help="images, folders of images, or one video: a file, or an address (rtsp://, http://)",
    )
    parser.add_argument("--camera", type=whole(0), metavar="N", help="segment what camera N sees, until Ctrl-C")

    server = parser.add_argument_group("server")
    server.add_argument(
        "--url", metavar="HOST:PORT", help=f"default: {DEFAULT_URLS['grpc']}, http {DEFAULT_URLS['http']}"
    )
    server.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc", help="default: grpc")
    server.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"holds the key that an HTTP front asks for (default: the key in ${KEY_VARIABLE}, if any)",
    )
    server.add_argument("--precision", choices=contract.PRECISIONS, default="int8", help="default: int8")
    server.add_argument(
        "--timeout-s", type=seconds, default=30.0, metavar="S", help="bound on one answer (default: 30)"
    )
    server.add_argument(
        "--retries",
        type=whole(0),
        default=RetryPolicy.retries,
        metavar="N",
        help=f"how often a request that a busy server rejected is sent again (default: {RetryPolicy.retries})",
    )
    server.add_argument(
        "--batch-size",
        type=whole(1, contract.MAX_REQUEST_BATCH),
        default=1,
        metavar="N",
        help=f"images per request, 1 to {contract.MAX_REQUEST_BATCH} (default: 1; video frames are sent one by one)",
    )
    server.add_argument(
        "--concurrency", type=whole(1), default=4, metavar="N", help="requests in flight at once (default: 4)"
    )

    add_parameter_arguments(parser.add_argument_group("what to find"))

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="write overlay pictures, or the overlay video, here")
    output.add_argument(
        "--json", type=Path, metavar="FILE", help="write a COCO dataset: images, annotations with scores, categories"
    )
    output.add_argument(
        "--coco-results",
        type=Path,
        metavar="FILE",
        help="write COCO results for pycocotools' loadRes; ids are those of --annotations, else from 1",
    )
    output.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO annotations whose image and category ids are used"
    )
    output.add_argument(
        "--class-names",
        type=_class_names,
        default={},
        metavar="A,B",
        help="names for labels and JSON in place of the server's, class 0 first",
    )
    output.add_argument(
        "--track",
        action="store_true",
        help="of a video: give objects numbers and colors that last (pip install supervision trackers)",
    )
    output.add_argument(
        "--jpeg-quality", type=whole(1, 100), default=90, metavar="Q", help="of video frames sent (default: 90)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
