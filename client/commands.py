"""What the command line runs: progress goes to standard error, results to standard output."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from client.coco import CocoDocument, CocoIds, CocoResults
from client.errors import ServerUnavailableError
from client.photos import Outcome, PhotoSettings, check_overlays, segment_photos
from client.segmentation import AsyncSegmentationClient
from client.tracking import Tracker
from client.video import VideoError, VideoInput, VideoProgress, VideoSettings, VideoSource, segment_video
from pipeline.command_line import markup
from pipeline.image_files import SourceError, find_images, listed
from pipeline.result import Segmentation

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


async def run_photos(client: AsyncSegmentationClient, options: argparse.Namespace) -> int:
    """Segment images and folders.

    Returns:
        The exit status: 0, or 1 if anything failed.

    Raises:
        SourceError: there is nothing to segment, or overlays would overwrite it.
        SegmentationError: no server is ready.
    """
    notes = Console(stderr=True)
    ids = _annotated_ids(options.annotations)
    left_out: Counter[str] = Counter()
    sources = find_images(options.paths, skip=options.out, left_out=left_out)
    if left_out:
        notes.print(f"left out: {markup(listed(left_out))}", highlight=False, soft_wrap=True)
    if options.out is not None:
        check_overlays(sources, options.out)
    await client.wait_ready(0)
    documents = _documents(client, options, ids)
    settings = PhotoSettings(options.out, options.batch_size, options.concurrency, options.request, options.class_names)
    table, failed = _table(), 0
    with _progress(notes, MofNCompleteColumn()) as progress:
        task = progress.add_task("segment", total=len(sources))
        async with aclosing(segment_photos(client, sources, settings)) as outcomes:
            async for outcome in outcomes:
                error = outcome.error
                for document in documents.values():
                    error = await asyncio.to_thread(_add, document, outcome) or error
                if error is not None:
                    failed += 1
                    _print_error(notes, f"{outcome.source.path}: {error}")
                table.add_row(*_row(outcome, error, options.class_names))
                progress.advance(task)
    for path, document in documents.items():
        try:
            document.write(path)
        except OSError as error:
            _print_error(notes, f"{path}: cannot be written: {error.strerror or error}")
            failed += 1
    Console().print(table)
    return EXIT_FAILED if failed else 0


async def run_video(client: AsyncSegmentationClient, source: VideoSource, options: argparse.Namespace) -> int:
    """Segment a video file, or a camera until Ctrl-C; the first Ctrl-C finishes the overlay video.

    Returns:
        The exit status: 0, 1 if a frame failed or the file is shorter than its header says, 130 if interrupted before
        the end.

    Raises:
        VideoError: the video cannot be opened.
        SegmentationError: no server is ready.
        SourceError: the overlay video would overwrite its source.
    """
    notes = Console(stderr=True)
    output = _video_output(source, options.out)
    video = VideoInput(source)
    try:
        await client.wait_ready(0)
        document = CocoDocument(_run_info(client, options), options.class_names) if options.json is not None else None
        settings = VideoSettings(
            output,
            options.concurrency,
            options.jpeg_quality,
            options.request,
            options.class_names,
            Tracker(video.fps) if options.track else None,
            document,
        )
        stop, last = asyncio.Event(), VideoProgress()
        broke_off = False
        with _stopped_by_interrupt(stop), _progress(notes, TextColumn("{task.fields[state]}")) as progress:
            task = progress.add_task("segment", total=video.frame_count, state="")

            def show(now: VideoProgress) -> None:
                nonlocal last
                if now.failed > last.failed and now.last_error is not None:
                    _print_error(notes, now.last_error)
                last = now
                state = f"{now.frames} frames  {now.fps:.1f} frames/s  {now.detections} detections"
                progress.update(task, completed=now.frames, state=state)

            try:
                await segment_video(client, video, settings, stop, show)
            except (ServerUnavailableError, VideoError) as error:
                broke_off = True
                _print_error(notes, f"after frame {last.frames}: {error}")
        if video.shortfall is not None:
            broke_off = True
            _print_error(notes, video.shortfall)
    finally:
        video.close()
    if document is not None and last.frames:
        document.write(options.json)
    rate = last.frames / last.elapsed_s if last.elapsed_s else 0.0
    where = f", overlay in {output}" if output is not None and last.frames else ""
    line = f"{last.frames} frames in {last.elapsed_s:.1f} s: {rate:.1f} frames/s, {last.failed} failed{where}"
    Console().print(markup(line), highlight=False, soft_wrap=True)
    if broke_off or last.failed or not last.frames:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if stop.is_set() and video.frame_count is not None else 0


def _video_output(source: VideoSource, out: Path | None) -> Path | None:
    if out is None:
        return None
    if isinstance(source, int):
        stem = f"camera{source}"
    else:
        stem = (source if isinstance(source, Path) else Path(urlsplit(source).path)).stem or "stream"
    output = out / f"{stem}.mp4"
    if isinstance(source, Path) and output.resolve() == source.resolve():
        raise SourceError(f"the overlay video would overwrite {source}; give another folder with --out")
    return output


@contextmanager
def _stopped_by_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """Let the first Ctrl-C set ``stop``; a second one interrupts as usual."""
    loop = asyncio.get_running_loop()

    def finish() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, finish)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _progress(console: Console, *columns: MofNCompleteColumn | TextColumn) -> Progress:
    # In a log file, a bar would only leave empty lines.
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _run_info(client: AsyncSegmentationClient, options: argparse.Namespace) -> dict[str, object]:
    return {
        "description": "instance segmentation",
        "model": client.model,
        "precision": client.precision,
        "protocol": client.protocol,
        "parameters": options.request,
    }


def _annotated_ids(path: Path | None) -> CocoIds | None:
    try:
        return None if path is None else CocoIds.read(path)
    except ValueError as error:
        raise SourceError(str(error)) from error


def _documents(
    client: AsyncSegmentationClient, options: argparse.Namespace, ids: CocoIds | None
) -> dict[Path, CocoDocument | CocoResults]:
    """What is written, by path."""
    documents: dict[Path, CocoDocument | CocoResults] = {}
    if options.json is not None:
        documents[options.json] = CocoDocument(_run_info(client, options), options.class_names)
    if options.coco_results is not None:
        documents[options.coco_results] = CocoResults(ids, options.class_names)
    return documents


def _add(coco: CocoDocument | CocoResults, outcome: Outcome) -> str | None:
    """Add an answered image to a document; says what failed."""
    if outcome.result is None:
        return None
    try:
        coco.add(outcome.source.name, outcome.result)
    except ValueError as error:
        return f"not written: {error}"
    return None


def _table() -> Table:
    table = Table()
    table.add_column("image", overflow="fold")
    for name in ("detections", "best score", "ms"):
        table.add_column(name, justify="right")
    table.add_column("classes", overflow="fold")
    return table


def _row(outcome: Outcome, error: str | None, names: Mapping[int, str]) -> tuple[str, ...]:
    name = markup(outcome.source.name)
    if outcome.result is None:
        return name, "[red]failed[/red]", "", "", ""
    count = str(len(outcome.result)) if error is None else f"[red]{len(outcome.result)}, not written[/red]"
    best = f"{outcome.result.scores[0]:.3f}" if len(outcome.result) else ""
    milliseconds = f"{outcome.request_ms:.0f}" if outcome.request_ms is not None else ""
    return name, count, best, milliseconds, markup(_classes_found(outcome.result, names))


def _classes_found(result: Segmentation, names: Mapping[int, str]) -> str:
    """How many of each class: ``2 card, 1 stamp``; the most frequent first."""
    counts = Counter(names.get(found.class_id, found.class_name) for found in result)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _print_error(console: Console, text: str) -> None:
    console.print(f"[red]error:[/red] {markup(text)}", highlight=False, soft_wrap=True)
