"""The same image gives the same answer, bit for bit: alone, in any batch, over any protocol, after any reload."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
import tritonclient.grpc

from client.request import parameters_of
from client.segmentation import SegmentationClient
from pipeline import contract
from repository.live import GRPC_ADMIN_HEADER, LiveServer
from serving.server import ServerOptions, TritonServer
from tests.chaos.background import Background
from tests.chaos.expected import Case, Network, fingerprint, pictures

pytestmark = pytest.mark.server

FORMATS = contract.MASK_FORMATS
MODELS = contract.SHARED_MODELS


@pytest.fixture(scope="module")
def images():
    """Eight pictures of different sizes and file formats, with and without something in them."""
    found = pictures(megapixels=(0.1, 0.3))
    names = sorted(found)
    return [found[name] for name in [*names[::2][:7], "noise.png"]]


@pytest.fixture(scope="module")
def expected(repository, images):
    """Precision and mask format to the fingerprint of each picture's answer, found without a server."""
    answers = {}
    for precision in contract.PRECISIONS:
        network = Network(repository / contract.network_model(precision) / "1" / "model.onnx")
        for mask_format in FORMATS:
            asked = parameters_of(confidence=0.05, mask_format=mask_format)
            answers[precision, mask_format] = [network.answer(Case("", image, asked)) for image in images]
    return answers


@pytest.fixture(scope="module")
def live(repository):
    """A server of this module's own: it is restarted."""
    with TritonServer(ServerOptions(repository)) as server:
        yield server


def url_of(server, protocol):
    return server.grpc_url if protocol == "grpc" else server.http_url


def answers(client, images, mask_format):
    return [fingerprint(one) for one in client.segment_batch(images, confidence=0.05, mask_format=mask_format)]


def rotated(values, by):
    return [*values[by:], *values[:by]]


def check_all(server, images, expected):
    """Every picture in every precision, over both protocols, alone and in a full batch."""
    for protocol in ("grpc", "http"):
        for precision in contract.PRECISIONS:
            with SegmentationClient(url_of(server, protocol), protocol, precision) as client:
                assert answers(client, images, "rle") == expected[precision, "rle"]
                assert [answers(client, [image], "rle")[0] for image in images[:3]] == expected[precision, "rle"][:3]


def test_the_pictures_and_precisions_differ(expected):
    """So that equal answers say something."""
    assert all(len(set(found)) >= 6 for found in expected.values())
    assert len({tuple(found) for found in expected.values()}) == len(expected)


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_in_any_batch_at_any_place(live, protocol, precision, images, expected):
    with SegmentationClient(url_of(live, protocol), protocol, precision) as client:
        # The network's kernels differ by batch size; the protocol only carries it.
        for size in range(1, 9) if protocol == "grpc" else (1, 8):
            mask_format = FORMATS[size % len(FORMATS)]
            assert answers(client, images[:size], mask_format) == expected[precision, mask_format][:size]
        for place in (1, 4):
            mask_format = FORMATS[place % len(FORMATS)]
            batch, right = rotated(images, place), rotated(expected[precision, mask_format], place)
            assert answers(client, batch, mask_format) == right


# At most eight images are under way with the one of the test itself: nobody is refused.
OTHERS = (*[(1, "grpc", "int8")] * 3, (1, "http", "int8"), (2, "http", "int8"), (1, "grpc", "fp16"))


class Others(Background):
    """Other callers, whose requests share the network's batches: their answers must be right, too."""

    def __init__(self, server, images, expected):
        self.wrong, self.right = [], 0
        self._images, self._expected = images, expected
        super().__init__(
            *(partial(self._run, url_of(server, on), on, precision, size) for size, on, precision in OTHERS)
        )

    def _run(self, url, protocol, precision, size):
        turn = 0
        try:
            with SegmentationClient(url, protocol, precision) as client:
                while not self.stopped.is_set():
                    turn = (turn + 3) % len(self._images)
                    mask_format = FORMATS[turn % len(FORMATS)]
                    found = answers(client, rotated(self._images, turn)[:size], mask_format)
                    if found != rotated(self._expected[precision, mask_format], turn)[:size]:
                        self.wrong.append((protocol, precision, turn, mask_format))
                    self.right += 1
        except Exception as error:  # of any kind: it is not the right answer
            self.wrong.append(repr(error))


def batch_sizes(server, model):
    """Batch size to how often the server ran the model with it."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        (statistics,) = client.get_inference_statistics(model).model_stats
        return {entry.batch_size: entry.compute_infer.count for entry in statistics.batch_stats}


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_while_others_share_the_batches(live, precision, images, expected):
    before = batch_sizes(live, "network_int8")
    with (
        Others(live, images, expected) as others,
        SegmentationClient(live.grpc_url, "grpc", precision) as client,
    ):
        ends = time.monotonic() + 4
        while time.monotonic() < ends:
            for turn, image in enumerate(images):
                mask_format = FORMATS[turn % len(FORMATS)]
                assert answers(client, [image], mask_format) == [expected[precision, mask_format][turn]]
    assert others.wrong == []
    assert others.right > 10
    if precision == "int8":  # no caller sends more than two pictures, so a larger batch is of several callers
        after = batch_sizes(live, "network_int8")
        grown = {size for size, count in after.items() if count > before.get(size, 0)}
        assert max(grown) > 2, grown


def test_after_a_reload_of_every_model(live, images, expected):
    models = [*MODELS, *map(contract.network_model, contract.PRECISIONS)]
    with LiveServer(live.grpc_url, live.admin_secret) as server:
        for model in models:
            config = server.config(model)
            # Triton loads a model again only if its configuration has changed.
            config.setdefault("parameters", {})["reloaded_by_a_test"] = {"string_value": "1"}
            server.reload(model, json.dumps(config))
    check_all(live, images, expected)


def test_after_unloading_and_loading(live, images, expected):
    headers = {GRPC_ADMIN_HEADER: live.admin_secret}
    with tritonclient.grpc.InferenceServerClient(live.grpc_url) as client:
        for precision in contract.PRECISIONS:
            ensemble = contract.ensemble_model(precision)
            client.unload_model(ensemble, headers=headers, unload_dependents=True)
        for precision in contract.PRECISIONS:
            client.load_model(contract.ensemble_model(precision), headers=headers)
        assert all(client.is_model_ready(contract.ensemble_model(precision)) for precision in contract.PRECISIONS)
    check_all(live, images, expected)


def test_after_a_restart(live, images, expected):
    live.restart()
    live.wait_ready()
    check_all(live, images, expected)
