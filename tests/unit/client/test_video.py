"""Frames in order through a transport whose answers come out of order; files that OpenCV reads back."""

import asyncio

import cv2
import numpy as np
import pytest

from client import AsyncSegmentationClient, RequestError, ServerUnavailableError
from client.video import VideoError, VideoInput, VideoSettings, segment_video
from pipeline import rle
from pipeline.postprocess import ImageSegmentation, pack_response
from tests.unit.client.results import disc

FRAMES, HEIGHT, WIDTH = 24, 96, 128


def brightness(frame):
    return float(np.asarray(frame).mean())


class OutOfOrderTransport:
    """Answers after a random time, with the frame's brightness as the score of one disc."""

    def __init__(self, refuse=(), gone_after=None):
        self.seen, self.working, self.most = 0, 0, 0
        self._refuse, self._gone_after = refuse, gone_after
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
        mask = rle.encode(disc(HEIGHT, WIDTH, 64, 48, 20))
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


def run(path, transport, output=None, in_flight=5, stop_after=None):
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
            settings = VideoSettings(output=output, in_flight=in_flight)
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
    # The disc is drawn: blue and red differ inside it, and nowhere in the grey source.
    assert all(abs(float(frame[48, 64, 0]) - float(frame[48, 64, 2])) > 20 for frame in frames)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["overlay.mp4"]


def test_a_refused_frame_stays_and_is_counted(video_path, tmp_path):
    last, _ = run(video_path, OutOfOrderTransport(refuse=(7,)), tmp_path / "overlay.mp4")
    assert (last.frames, last.failed) == (FRAMES, 1)
    assert last.last_error.startswith("frame 8: ")
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
