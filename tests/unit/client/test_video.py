"""Frames in order through a transport whose answers come out of order; files that OpenCV reads back."""

import asyncio
import functools
import http.server
import os
import threading

import cv2
import numpy as np
import pytest

from client import AsyncSegmentationClient, RequestError, ServerUnavailableError
from client.video import ADDRESS, VideoError, VideoInput, VideoSettings, segment_video
from pipeline import rle
from pipeline.image_files import VIDEO_SUFFIXES
from pipeline.postprocess import ImageSegmentation, pack_response
from tests.unit.client.results import disc

FRAMES, HEIGHT, WIDTH = 24, 96, 128


def brightness(frame):
    return float(np.asarray(frame).mean())


class OutOfOrderTransport:
    """Answers after a random time, with the frame's brightness as the score of one disc."""

    async def class_names(self, model):
        return ("disc",)

    def __init__(self, refuse=(), gone_after=None, mask=None):
        self.seen, self.working, self.most = 0, 0, 0
        self._refuse, self._gone_after, self._mask = refuse, gone_after, mask
        self._rng = np.random.default_rng(0)

    async def infer(self, model, images, parameters):
        index = self.seen
        self.seen += 1
        self.working += 1
        self.most = max(self.most, self.working)
        await asyncio.sleep(self._rng.random() * 0.02)
        self.working -= 1
        if self._gone_after is not None and index >= self._gone_after:
            raise ServerUnavailableError("gone")
        frame = cv2.imdecode(np.frombuffer(images[0, 0], np.uint8), cv2.IMREAD_COLOR)
        if round(brightness(frame) / 10) in self._refuse:
            raise RequestError("refused")
        mask = rle.encode(disc(HEIGHT, WIDTH, 64, 48, 20)) if self._mask is None else self._mask
        found = ImageSegmentation(
            np.array([[44, 28, 85, 69]], np.float32),
            np.array([brightness(frame) / 255], np.float32),
            np.zeros(1, np.int32),
            [mask],
            HEIGHT,
            WIDTH,
        )
        return pack_response([found])

    async def close(self):
        pass


@pytest.fixture
def video_path(tmp_path):
    """Frame n has brightness 10 n."""
    path = tmp_path / "in.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.0, (WIDTH, HEIGHT))
    for index in range(FRAMES):
        writer.write(np.full((HEIGHT, WIDTH, 3), index * 10, np.uint8))
    writer.release()
    return path


def run(path, transport, output=None, in_flight=5, stop_after=None, options=None):
    shown = []

    async def segment():
        client = AsyncSegmentationClient()
        client._opened = transport
        stop = asyncio.Event()

        def on_progress(progress):
            shown.append(progress)
            if progress.frames == stop_after:
                stop.set()

        video = VideoInput(path)
        try:
            settings = VideoSettings(output=output, in_flight=in_flight, options=options or {})
            return await segment_video(client, video, settings, stop, on_progress)
        finally:
            video.close()

    return asyncio.run(asyncio.wait_for(segment(), 60)), shown


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(frame)


def corner(frame):
    return float(frame[80:, :16].mean())


def test_frames_stay_in_order_and_bounded(video_path, tmp_path):
    transport = OutOfOrderTransport()
    last, shown = run(video_path, transport, tmp_path / "out" / "overlay.mp4")
    assert (last.frames, last.failed, last.detections) == (FRAMES, 0, 1)
    assert [progress.frames for progress in shown] == list(range(1, FRAMES + 1))
    assert last.fps > 0
    assert 1 < transport.most <= 5
    frames = read_video(tmp_path / "out" / "overlay.mp4")
    # Half a step of brightness apart at most, after two lossy encodings.
    assert [corner(frame) for frame in frames] == pytest.approx([corner(f) for f in read_video(video_path)], abs=5)
    # The disc is drawn: blue and red differ inside it, and nowhere in the gray source.
    assert all(abs(float(frame[48, 64, 0]) - float(frame[48, 64, 2])) > 20 for frame in frames)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["overlay.mp4"]


def test_names_that_are_not_utf8(video_path, tmp_path):
    """OpenCV's own readers and writers crash on them."""
    folder = tmp_path / os.fsdecode(b"films \xff")
    folder.mkdir()
    source, output = (folder / os.fsdecode(name) for name in (b"in \xff.mp4", b"out \xff.mp4"))
    video_path.rename(source)
    last, _ = run(source, OutOfOrderTransport(), output)
    assert (last.frames, last.failed) == (FRAMES, 0)
    assert set(folder.iterdir()) == {source, output}
    assert len(read_video(output.rename(tmp_path / "out.mp4"))) == FRAMES
    with pytest.raises(VideoError, match="cannot be opened"):
        VideoInput(folder / os.fsdecode(b"none \xff.mp4"))


def test_a_refused_frame_stays_and_is_counted(video_path, tmp_path):
    last, _ = run(video_path, OutOfOrderTransport(refuse=(7,)), tmp_path / "overlay.mp4")
    assert (last.frames, last.failed) == (FRAMES, 1)
    assert last.last_error.startswith("frame 8: ")
    assert len(read_video(tmp_path / "overlay.mp4")) == FRAMES


@pytest.mark.parametrize("mask_format", ["rle", "polygon"])  # refused when it comes, and when it is drawn
def test_frames_with_wrong_masks_stay_and_are_counted(video_path, tmp_path, mask_format):
    transport = OutOfOrderTransport(mask=b"[[0,0,9,9]]")
    last, _ = run(video_path, transport, tmp_path / "overlay.mp4", options={"mask_format": mask_format})
    assert (last.frames, last.failed) == (FRAMES, FRAMES)
    assert len(read_video(tmp_path / "overlay.mp4")) == FRAMES


def test_stopping_finishes_the_file(video_path, tmp_path):
    last, _ = run(video_path, OutOfOrderTransport(), tmp_path / "overlay.mp4", stop_after=6)
    assert 6 <= last.frames <= 6 + 5
    assert len(read_video(tmp_path / "overlay.mp4")) == last.frames


def test_a_server_that_goes_away_leaves_what_was_done(video_path, tmp_path):
    with pytest.raises(ServerUnavailableError):
        run(video_path, OutOfOrderTransport(gone_after=9), tmp_path / "overlay.mp4", in_flight=1)
    assert len(read_video(tmp_path / "overlay.mp4")) == 9


def test_what_is_no_video_is_refused(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be opened"):
        VideoInput(path)


def test_rate_and_length_are_read(video_path):
    video = VideoInput(video_path)
    assert (video.fps, video.frame_count) == (12.0, FRAMES)
    video.close()


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".3gp", "mp4v"), (".flv", "FLV1"), (".ts", "mpg2"), (".mkv", "mp4v"), (".mov", "mp4v")]
)
def test_kinds_of_video(tmp_path, suffix, codec):
    path = tmp_path / f"clip{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 25.0, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for index in range(FRAMES):
        writer.write(np.full((HEIGHT, WIDTH, 3), index * 10, np.uint8))
    writer.release()
    assert suffix in VIDEO_SUFFIXES
    last, _ = run(path, OutOfOrderTransport())
    assert last.frames == FRAMES


def faststart(data):
    """An MP4 with its index in front, as it is written for the web: cut off, it can still be opened."""
    boxes, position = [], 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        boxes.append(data[position : position + size])
        position += size
    kinds = [box[4:8] for box in boxes]
    moov = bytearray(boxes[kinds.index(b"moov")])
    place = moov.find(b"stco")
    for index in range(int.from_bytes(moov[place + 8 : place + 12], "big")):
        entry = place + 12 + 4 * index
        moov[entry : entry + 4] = (int.from_bytes(moov[entry : entry + 4], "big") + len(moov)).to_bytes(4, "big")
    first = boxes[kinds.index(b"ftyp")]
    return first + bytes(moov) + b"".join(box for box in boxes if box[4:8] not in (b"ftyp", b"moov"))


def drained(source):
    async def read():
        video = VideoInput(source)
        try:
            return len([frame async for frame in video.frames(asyncio.Event())]), video.shortfall
        finally:
            video.close()

    return asyncio.run(asyncio.wait_for(read(), 60))


@pytest.fixture
def noisy_path(tmp_path):
    path = tmp_path / "noisy.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.0, (WIDTH, HEIGHT))
    rng = np.random.default_rng(0)
    for _ in range(FRAMES):
        writer.write(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    writer.release()
    return path


def test_a_file_that_ends_before_its_header_says(noisy_path):
    whole = faststart(noisy_path.read_bytes())
    noisy_path.write_bytes(whole)
    assert drained(noisy_path) == (FRAMES, None)
    noisy_path.write_bytes(whole[: len(whole) * 6 // 10])
    frames, shortfall = drained(noisy_path)
    assert 2 < frames < FRAMES - 2
    assert f"noisy.mp4 ended after {frames} of the {FRAMES} frames" in shortfall


def test_a_video_on_a_server_of_files(noisy_path):
    noisy_path.write_bytes(faststart(noisy_path.read_bytes()))  # this server cannot give a part of a file
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=noisy_path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{noisy_path.name}"
        assert ADDRESS.fullmatch(address)
        assert drained(address) == (FRAMES, None)
        with pytest.raises(VideoError, match=r"gone\.mp4: cannot be opened"):
            VideoInput(address.replace("noisy", "gone"))
        server.shutdown()


def test_a_camera_address_that_does_not_answer_keeps_its_password():
    with pytest.raises(VideoError, match=r"rtsp://127\.0\.0\.1:9/cam: cannot be opened") as raised:
        VideoInput("rtsp://user:secret@127.0.0.1:9/cam")
    assert "secret" not in str(raised.value)
