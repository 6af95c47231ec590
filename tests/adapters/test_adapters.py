"""Each adapter's example with the real package, and the answers held against the client's own."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from client import SegmentationClient
from scenes.showcase import draw_showcase
from serving.environment import free_ports
from tests.chaos.faults_service import wait_for

pytestmark = pytest.mark.server


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "table.png"
    cv2.imwrite(str(path), cv2.cvtColor(draw_showcase(1).image, cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture(scope="session")
def result(server, scene):
    with SegmentationClient(server.grpc_url) as client:
        return client.segment(scene)


def test_the_wheel_needs_neither_this_project_nor_its_pins(run, scene, result):
    said = run(
        """
import json, os, sys, numpy, triton_segmentation
from triton_segmentation import AsyncSegmentationClient, SegmentationClient
with SegmentationClient(os.environ["SEGMENTATION_URL"]) as client:
    one = client.segment(sys.argv[1], classes=["card"])
    picture = numpy.zeros((60, 80, 3), numpy.uint8)
    assert len(client.segment(picture)) == 0
with SegmentationClient(os.environ["SEGMENTATION_HTTP_URL"], protocol="http") as client:
    other = client.segment(sys.argv[1], mask_format="png")
assert (one.masks == other.masks).all()
names = [name for name in ("client", "pipeline", "serving") if name in sys.modules]
print(json.dumps([numpy.__version__, sys.version_info[:2], one.boxes.tolist(), [f.class_name for f in one], names]))
""",
        scene,
    )
    assert int(said[0].split(".")[0]) >= 2
    assert np.allclose(said[2], result.boxes)
    assert said[3:] == [["card"] * 5, []]
    print(f"NumPy {said[0]}, Python {said[1]}")


def test_its_command_line(run, python, scene, server, tmp_path):
    command = [scene, "--url", server.grpc_url, "--out", tmp_path / "out", "--json", tmp_path / "out.json"]
    script = "import runpy, sys; sys.argv[0] = 'x'; runpy.run_module('triton_segmentation', run_name='__main__')"
    run(f"import json\ntry:\n    {script}\nexcept SystemExit as end:\n    print(json.dumps(end.code or 0))", *command)
    assert (tmp_path / "out" / "table.png").is_file()
    assert '"name": "card"' in (tmp_path / "out.json").read_text()


def test_supervision(run, scene, result):
    said = run(
        """
import json, os, sys, numpy as np, supervision as sv
from triton_segmentation import SegmentationClient
with SegmentationClient(os.environ["SEGMENTATION_URL"]) as client:
    result = client.segment(sys.argv[1])
    none = client.segment(sys.argv[1], confidence=1.0).to_supervision()
    boxes = client.segment(sys.argv[1], mask_format="none").to_supervision()
detections = result.to_supervision()
dense = detections.mask.to_dense() if hasattr(detections.mask, "to_dense") else detections.mask
assert (np.asarray(dense) == result.masks).all()
assert len(none) == 0 and boxes.mask is None and len(boxes) == len(result)
best = detections[detections.confidence > 0.9]
drawn = sv.MaskAnnotator().annotate(np.zeros((*result.image_size, 3), np.uint8), detections)
print(json.dumps([type(detections.mask).__name__, detections.xyxy.tolist(), list(detections["class_name"]), len(best),
                  bool(drawn.any())]))
""",
        scene,
    )
    kind, boxes, names, best, drawn = said
    assert kind == "CompactMask"
    assert np.allclose(boxes, result.boxes)
    assert names == ["card"] * 5
    assert best == (result.scores > 0.9).sum()
    assert drawn


def test_sahi_sends_tiles_in_batches(run, tmp_path, scene, server):
    small = cv2.imread(str(scene))
    cv2.imwrite(str(tmp_path / "large.png"), np.tile(small, (2, 2, 1)))

    def counts():
        import tritonclient.grpc

        with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
            (one,) = client.get_inference_statistics("segment_int8").model_stats
            return np.array([one.inference_count, one.execution_count])

    before = counts()
    said = run(
        """
import json, os, sys
from sahi.predict import get_sliced_prediction
from triton_segmentation import SegmentationClient
from triton_segmentation.sahi_model import SahiModel
with SegmentationClient(os.environ["SEGMENTATION_URL"]) as client:
    model = SahiModel(client, confidence_threshold=0.5)
    found = get_sliced_prediction(sys.argv[1], model, slice_height=720, slice_width=1080, overlap_height_ratio=0.0,
                                  overlap_width_ratio=0.0, batch_size=8, perform_standard_pred=False, verbose=0)
predictions = found.object_prediction_list
print(json.dumps([[one.category.name, one.bbox.to_xyxy(), int(one.mask.bool_mask.sum())] for one in predictions]))
""",
        tmp_path / "large.png",
    )
    with SegmentationClient(server.grpc_url) as client:
        once = client.segment(scene, confidence=0.5)
    height, width = once.image_size
    tiles = np.array([[x, y, x, y] for y in (0, height) for x in (0, width)])
    expected = sorted((once.boxes[None] + tiles[:, None]).reshape(-1, 4).round().tolist())
    assert len(said) == 4 * len(once)
    assert {name for name, _, _ in said} == {"card"}
    assert np.abs(np.array(sorted(np.round(box).tolist() for _, box, _ in said)) - expected).max() <= 1
    assert sum(area for _, _, area in said) == pytest.approx(4 * once.masks.sum(), rel=0.02)
    images, requests = counts() - before - [1, 1]
    assert images == 4
    assert requests <= 1


def test_tracks_are_stable(run, tmp_path, scene):
    """A picture that moves by 6 pixels a frame: every card keeps its number."""
    image = cv2.imread(str(scene))
    writer = cv2.VideoWriter(str(tmp_path / "moving.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (800, 600))
    for frame in range(12):
        writer.write(image[60:660, 20 + 6 * frame : 820 + 6 * frame])
    writer.release()
    said = run(
        """
import json, os, sys
from triton_segmentation.__main__ import main
code = main([sys.argv[1], "--url", os.environ["SEGMENTATION_URL"], "--track", "--out", "out", "--json", "tracks.json"])
document = json.load(open("tracks.json"))
frames = {}
for one in document["annotations"]:
    frames.setdefault(one["image_id"], []).append([one.get("track_id"), one["bbox"]])
print(json.dumps([code, len(document["images"]), list(frames.values())]))
""",
        tmp_path / "moving.mp4",
    )
    code, count, frames = said
    assert (code, count) == (0, 12)
    assert (tmp_path / "out" / "moving.mp4").stat().st_size
    places = {}
    for number, frame in enumerate(frames):
        for track, (left, top, _, _) in frame:
            if track is not None and left > 5:  # the frame does not cut it
                places.setdefault(track, []).append((number, left, top))
    long = [path for path in places.values() if len(path) >= 6]
    assert len(long) >= 3
    for path in long:
        steps = np.diff(np.array(path), axis=0)
        assert np.abs(steps[:, 1] / steps[:, 0] + 6).max() < 6, path  # it goes left by 6 a frame
        assert np.abs(steps[:, 2] / steps[:, 0]).max() < 6, path


CONFIG = "<View><Image name='image' value='$photo'/><{0} name='label' toName='image'><Label value='Card'/></{0}></View>"


class Storage(http.server.BaseHTTPRequestHandler):
    """What Label Studio is to the backend: it gives uploaded pictures to who has its token."""

    def do_GET(self):
        allowed = (self.path, self.headers["Authorization"]) == ("/data/upload/1/table.png", "Token studio")
        body = self.server.picture.read_bytes() if allowed else b""
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def studio(scene):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage) as running:
        running.picture = scene
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def label_studio(python, server, tmp_path):
    """The backend's server, as the document starts it; returns what posts to it."""
    (port,) = free_ports("127.0.0.1", 1)
    code = f"""
from label_studio_ml.api import init_app
from triton_segmentation.label_studio import SegmentationBackend

init_app(SegmentationBackend).run(port={port})
"""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SEGMENTATION_URL": server.grpc_url}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([python, "-c", code], cwd=tmp_path, env=environment, stdout=log, stderr=log)

    def post(path, document):
        data = json.dumps(document).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[-3000:] + (tmp_path / "log").read_text()[-3000:]) from error

    def is_up():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return json.load(answer)["status"] == "UP"
        except OSError:
            return False

    try:
        wait_for(is_up, 60, "the backend")
        yield post
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["PolygonLabels", "BrushLabels", "RectangleLabels"])
def test_label_studio(label_studio, studio, run, result, kind):
    """The calls of Label Studio itself, to the backend's real server."""
    project = {"project": "1.1700000000", "schema": CONFIG.format(kind), "hostname": studio, "access_token": "studio"}
    assert label_studio("/setup", project)["model_version"]
    task = {"id": 7, "data": {"photo": "/data/upload/1/table.png"}}
    call = {"tasks": [task], "project": project["project"], "label_config": project["schema"]}
    answer = label_studio("/predict", {**call, "params": {"login": None, "password": None, "context": None}})
    (said,) = answer["results"]
    height, width = result.image_size
    assert said["model_version"] == "segment_int8"
    shapes = said["result"]
    assert {shape["type"] for shape in shapes} == {kind.lower()}
    assert all(shape["value"][kind.lower()] == ["Card"] for shape in shapes)
    if kind == "BrushLabels":
        areas = run(
            """
import json, sys
from label_studio_sdk.converter.brush import decode_rle
print(json.dumps([int((decode_rle(rle).reshape(-1, 4)[:, 3] > 0).sum()) for rle in json.loads(sys.argv[1])]))
""",
            json.dumps([shape["value"]["rle"] for shape in shapes]),
        )
        assert areas == [mask.sum() for mask in result.masks]
    elif kind == "PolygonLabels":
        drawn = np.zeros((height, width), np.uint8)
        for shape in shapes:
            points = np.array(shape["value"]["points"]) * [width / 100, height / 100]
            cv2.fillPoly(drawn, [points.round().astype(np.int32)], 1)
        overlap = (drawn.astype(bool) & result.masks.any(axis=0)).sum() / (drawn | result.masks.any(axis=0)).sum()
        assert overlap > 0.98
    else:
        first = shapes[0]["value"]
        x1, y1, x2, y2 = result.boxes[0]
        assert [first[name] for name in ("x", "y", "width", "height")] == pytest.approx(
            [100 * x1 / width, 100 * y1 / height, 100 * (x2 - x1) / width, 100 * (y2 - y1) / height], abs=1e-3
        )


@pytest.mark.parametrize(
    ("use", "package"),
    [
        ("result.to_supervision()", "supervision"),
        ("import triton_segmentation.sahi_model", "sahi"),
        ("from triton_segmentation.tracking import Tracker; Tracker()", "trackers"),
        ("import triton_segmentation.label_studio", "label-studio-ml"),
    ],
)
def test_a_missing_package_is_said_in_one_line(run, use, package):
    said = run(
        f"""
import json, sys
import numpy as np
for name in ("supervision", "sahi", "trackers", "label_studio_ml"):
    sys.modules[name] = None  # as if it were not installed
from triton_segmentation import Segmentation
result = Segmentation(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), (), "rle", (2, 3))
try:
    {use}
except ImportError as error:
    print(json.dumps(str(error)))
"""
    )
    assert "\\n" not in said
    assert f"pip install {package}" in said or (package == "trackers" and "pip install supervision trackers" in said)
