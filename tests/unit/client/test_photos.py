"""Image files through the client: failures kept apart, overlays written. The transport is the test's."""

import asyncio

import cv2
import numpy as np
import pytest

from client import AsyncSegmentationClient, RequestError, ServerError
from client.photos import PhotoSettings, segment_photos
from pipeline import rle
from pipeline.image_files import find_images
from pipeline.postprocess import ImageSegmentation, pack_response
from tests.unit.client.results import disc

HEIGHT, WIDTH = 60, 80


class PickyTransport:
    """Finds one disc per image; refuses a request that holds text, fails on one that holds the word 'crash'."""

    async def class_names(self, model):
        return ("disc",)

    def __init__(self):
        self.batches = []

    async def infer(self, model, images, parameters):
        batch = images[:, 0].tolist()
        self.batches.append(len(batch))
        if any(image == b"crash" for image in batch):
            raise ServerError("the server failed")
        if any(image == b"text" for image in batch):
            raise RequestError("not an image")
        mask = rle.encode(disc(HEIGHT, WIDTH, 40, 30, 20))
        box = np.array([[20, 10, 61, 51]], np.float32)
        found = ImageSegmentation(box, np.ones(1, np.float32), np.zeros(1, np.int32), [mask], HEIGHT, WIDTH)
        answer = pack_response([found] * len(batch))
        for index, image in enumerate(batch):
            if image == b"infinite":
                answer["boxes"][index, 0, 0] = -np.inf
        return answer

    async def close(self):
        pass


@pytest.fixture
def folder(tmp_path):
    """Eight images a.png to h.png."""
    path = tmp_path / "in"
    path.mkdir()
    for name in "abcdefgh":
        cv2.imwrite(str(path / f"{name}.png"), np.full((HEIGHT, WIDTH, 3), 100, np.uint8))
    return path


def run(folder, **settings):
    transport = PickyTransport()

    async def collect():
        client = AsyncSegmentationClient()
        client._opened = transport
        return [outcome async for outcome in segment_photos(client, find_images([folder]), PhotoSettings(**settings))]

    return asyncio.run(asyncio.wait_for(collect(), 60)), transport


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_bad_image_fails_alone(folder, batch_size, concurrency):
    (folder / "c.png").write_bytes(b"text")
    outcomes, _ = run(folder, batch_size=batch_size, concurrency=concurrency)
    assert [outcome.source.name for outcome in outcomes] == [f"in/{name}.png" for name in "abcdefgh"]
    assert [outcome.error for outcome in outcomes] == [None, None, "not an image", *[None] * 5]
    assert [outcome.result is None for outcome in outcomes] == [False, False, True, *[False] * 5]


def test_batches_are_as_large_as_asked_for(folder):
    assert sorted(run(folder, batch_size=3)[1].batches) == [2, 3, 3]


def test_a_failed_server_is_not_asked_again(folder):
    (folder / "b.png").write_bytes(b"crash")
    outcomes, transport = run(folder, batch_size=4)
    assert [outcome.error for outcome in outcomes] == ["the server failed"] * 4 + [None] * 4
    assert transport.batches == [4, 4]


def test_a_wrong_answer_is_the_error_of_its_image(folder, tmp_path):
    (folder / "b.png").write_bytes(b"infinite")
    outcomes, _ = run(folder, batch_size=4, out=tmp_path / "out")
    assert [outcome.source.name for outcome in outcomes if outcome.error] == ["in/b.png"]
    assert "does not lie inside the image" in outcomes[1].error


def test_an_image_that_vanished_fails_alone(folder):
    sources = find_images([folder])
    (folder / "a.png").unlink()

    async def collect():
        client = AsyncSegmentationClient()
        client._opened = PickyTransport()
        return [outcome async for outcome in segment_photos(client, sources, PhotoSettings(batch_size=8))]

    outcomes = asyncio.run(collect())
    assert [outcome.error for outcome in outcomes] == ["cannot be read: No such file or directory", *[None] * 7]


def test_overlays_are_written(folder, tmp_path):
    run(folder, out=tmp_path / "out", batch_size=2)
    written = sorted((tmp_path / "out" / "in").iterdir())
    assert [path.name for path in written] == [f"{name}.png" for name in "abcdefgh"]
    overlay = cv2.imread(str(written[0]))
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    assert overlay[30, 40, 0] > 120 > overlay[30, 40, 2]  # the first color is blue
    assert overlay[55, 75].tolist() == [100, 100, 100]


def test_an_overlay_that_cannot_be_written_is_an_error_of_its_image(folder, tmp_path):
    (tmp_path / "out" / "in" / "b.png").mkdir(parents=True)
    outcomes, _ = run(folder, out=tmp_path / "out")
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.source.name for outcome in failed] == ["in/b.png"]
    assert "not written" in failed[0].error
    assert failed[0].result is not None
    assert sorted(path.name for path in (tmp_path / "out" / "in").iterdir()) == [f"{n}.png" for n in "abcdefgh"]


@pytest.mark.parametrize(
    ("names", "fault"),
    [({"batch_size": 9}, "1 to 8"), ({"batch_size": 0}, "1 to 8"), ({"concurrency": 0}, "1 or more")],
)
def test_numbers_out_of_range(names, fault):
    with pytest.raises(ValueError, match=fault):
        PhotoSettings(**names)
