"""The page in a real Chromium, before the real server."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from client import SegmentationClient
from scenes.showcase import draw_showcase
from serving.server import ServerOptions, TritonServer

pytestmark = pytest.mark.server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PICTURES = os.environ.get("PAGE_PICTURES")  # a folder: the screenshots of the documents are written there
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

if CHROMIUM is None:
    pytest.skip("chromium is missing; after apt-get install chromium, make test runs it", allow_module_level=True)


@pytest.fixture(scope="module")
def server(patient_repository):
    with TritonServer(ServerOptions(patient_repository)) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Drawn cards, which may be shown to anybody."""
    path = tmp_path_factory.mktemp("scene") / "table.jpg"
    cv2.imwrite(str(path), cv2.cvtColor(draw_showcase(1).image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return path


@pytest.fixture(scope="module")
def found(server, scene):
    with SegmentationClient(server.grpc_url, precision="int8") as client:
        return client.segment(scene, confidence=0.05)


@pytest.fixture(params=[(1280, 860), (390, 844)], ids=["desktop", "phone"])
def size(request):
    return request.param


@pytest.fixture
def page(browser, server, size):
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 500)
    context.grant_permissions(["clipboard-read", "clipboard-write", "camera"], origin=f"http://{server.http_url}")
    page = context.new_page()
    page.set_default_timeout(60_000)
    faults, calls = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    refused = "Failed to load resource"  # how Chromium notes a refusal, which the page shows
    page.on("request", lambda request: calls.append(request.url))
    page.goto(f"http://{server.http_url}/")
    page.locator("#precisions input").first.wait_for()
    yield page
    assert not [fault for fault in faults if refused not in fault]
    assert all(call.startswith((f"http://{server.http_url}/", "blob:", "data:")) for call in calls), calls
    context.close()


def shot(page, name=None):
    """The picture as the browser shows it; kept under a name where pictures are wanted."""
    data = page.screenshot()
    if PICTURES and name:
        Image.open(io.BytesIO(data)).convert("RGB").save(Path(PICTURES) / f"{name}.jpg", quality=86, optimize=True)
    return Image.open(io.BytesIO(data)).convert("RGB")


def canvas(page):
    return np.asarray(Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")).astype(int)


def show(page, path):
    page.set_input_files("#file", path)
    page.locator("#summary", has_text="object").wait_for()


def count(page):
    return int(re.match(r"(\d+) object", page.locator("#summary").text_content()).group(1))


def slide(page, name, value):
    page.locator(name).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", str(value)
    )


def test_a_picture_its_masks_and_the_sliders(page, scene, found):
    show(page, scene)
    assert count(page) == sum(found.scores >= 0.25) == 5
    assert page.locator("#objects tr").count() == 5
    assert "1080\N{MULTIPLICATION SIGN}720" in page.locator("#summary").text_content()
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"
    drawn = canvas(page)
    slide(page, "#opacity", 0)
    clear = canvas(page)
    # The opacity changes pixels inside of masks, and nothing far from boxes and names.
    scale = drawn.shape[1] / found.image_size[1]
    inside = cv2.resize(found.masks[: count(page)].any(axis=0).astype(np.uint8), drawn.shape[1::-1]) > 0
    changed = np.abs(drawn - clear).max(axis=2) > 12
    assert changed[inside].mean() > 0.9
    assert changed[~cv2.dilate(inside.astype(np.uint8), np.ones((9, 9))).astype(bool)].mean() < 0.02
    assert scale > 0.2
    slide(page, "#opacity", 0.5)
    slide(page, "#confidence", 0.95)
    assert count(page) == sum(found.scores >= 0.95) < 5
    slide(page, "#confidence", 0.05)
    assert count(page) == len(found)
    slide(page, "#confidence", 0.25)
    page.locator("#classes label", has_text="card").click()
    assert count(page) == 0
    page.locator("#classes label", has_text="card").click()
    assert count(page) == 5


def test_two_precisions_side_by_side(page, size, scene, server):
    width = "phone" if size[0] < 500 else "desktop"
    show(page, scene)
    page.select_option("#other", "fp32")
    page.locator("#divider").wait_for()
    with SegmentationClient(server.grpc_url, precision="fp32") as client:
        exact = client.segment(scene, confidence=0.25, iou=0.45)
    with SegmentationClient(server.grpc_url, precision="int8") as client:
        fast = client.segment(scene, confidence=0.25, iou=0.45)
    text = page.locator("#comparison").text_content()
    assert "5 of 5 objects in both" in text
    one, other = exact.masks.any(axis=0), fast.masks.any(axis=0)
    share = 100 * (one ^ other).sum() / (one | other).sum()
    assert f"masks differ in {share:.1f}% of their pixels" in text
    # Paired by rank of overlap; the scores' order may differ between precisions.
    overlaps = [max((a & b).sum() / (a | b).sum() for b in exact.masks) for a in fast.masks]
    assert f"mean mask IoU {np.mean(overlaps):.3f}" in text
    page.evaluate("() => scrollTo(0, 0)")
    shot(page, f"page-{width}")
    slide(page, "#wipe", 100)
    left = canvas(page)
    slide(page, "#wipe", 0)
    right = canvas(page)
    slide(page, "#wipe", 50)
    both, middle = canvas(page), left.shape[1] // 2
    assert np.abs(left - right).max() > 50
    assert np.abs(both[:, 60 : middle - 20] - left[:, 60 : middle - 20]).max() < 40
    assert np.abs(both[:, middle + 20 : -60] - right[:, middle + 20 : -60]).max() < 40
    page.locator("#wipe").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#wipe").input_value() == "50.5"
    if size[0] > 500:  # pulled on the picture itself
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
        page.mouse.up()
        assert float(page.locator("#wipe").input_value()) == pytest.approx(25, abs=1)
    page.check("#difference")
    page.locator("#comparison", has_text="only in fp32").wait_for()
    page.evaluate("() => scrollTo(0, 0)")
    shot(page, f"page-{width}-difference")
    seen = canvas(page)
    assert (np.ptp(seen, axis=2) > 60).any(), "no color shows a difference"


def test_dropped_pasted_and_taken_pictures(page, scene):
    data = base64.b64encode(scene.read_bytes()).decode()
    send = """([data, kind]) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), moved = new DataTransfer();
        moved.items.add(new File([bytes], "<img src=x onerror=alert(1)>.jpg", { type: "image/jpeg" }));
        document.dispatchEvent(kind === "drop" ? new DragEvent("drop", { dataTransfer: moved, bubbles: true })
            : new ClipboardEvent("paste", { clipboardData: moved, bubbles: true }));
    }"""
    page.evaluate(send, [data, "drop"])
    page.locator("#summary", has_text="5 objects").wait_for()
    assert "<img src=x onerror=alert(1)>.jpg" in page.locator("#code").text_content()
    assert page.locator("#code img").count() == 0
    page.evaluate(send, [data, "paste"])
    page.locator("#code", has_text="pasted.png").wait_for()
    page.locator("#summary", has_text="5 objects").wait_for()
    page.locator("#under .camera").click()
    page.locator("#take").click()
    page.locator("#code", has_text="camera.jpg").wait_for()
    page.locator("#summary", has_text="object").wait_for()


def test_faults_are_said_and_the_next_picture_works(page, scene, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    page.set_input_files("#file", tmp_path / "text.jpg")
    page.locator("#error", has_text="the bytes are not an image of an accepted format").wait_for()
    Image.open(scene).save(tmp_path / "table.tif")  # which Chromium does not show
    page.set_input_files("#file", tmp_path / "table.tif")
    page.locator("#error", has_text="The server has drawn the picture").wait_for()
    assert count(page) == 5
    show(page, scene)
    assert page.locator("#error").is_hidden()
    assert count(page) == 5


def test_the_same_call_can_be_copied_and_run(page, scene, server, found):
    import subprocess
    import sys

    show(page, scene)
    slide(page, "#confidence", 0.95)
    page.click("#copy")
    page.locator("#copy", has_text="Copied").wait_for()
    command = page.evaluate("() => navigator.clipboard.readText()")
    assert command == page.locator("#code").text_content()
    answer = subprocess.run(["sh", "-c", command], cwd=scene.parent, check=True, capture_output=True)
    (image,) = json.loads(answer.stdout)["images"]
    assert len(image["detections"]) == sum(found.scores >= 0.95)
    page.locator("#languages span", has_text="Python").click()
    script = page.locator("#code").text_content()
    said = subprocess.run([sys.executable, "-c", script], cwd=scene.parent, check=True, capture_output=True, text=True)
    assert said.stdout.count("card") == sum(found.scores >= 0.95)


def test_everything_by_keyboard(page, scene):
    show(page, scene)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    wanted = {
        "save",
        "other",
        "confidence",
        "iou",
        "opacity",
        "masks",
        "boxes",
        "labels",
        "code",
        "copy",
        "TR",
        "BUTTON",
    }
    assert wanted <= reached


def test_the_documents_of_the_api(page, server, size):
    page.goto(f"http://{server.http_url}/docs")
    page.locator("article").first.wait_for()
    assert page.locator("article h2").count() == 5
    text = page.locator("#doc").text_content()
    assert f"curl -F image=@photo.jpg http://{server.http_url}/v1/segment" in text
    assert "parameter 'confidence' is '2'; allowed: a number from 0 to 1" in text
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_steps_have_times_though_they_are_counted_after_the_answer(page, scene):
    readings = []

    def counted_late(route):
        """The first two readings after the answer show what was counted before it."""
        answer = route.fetch()
        readings.append(answer.text())
        route.fulfill(response=answer, body=readings[0 if len(readings) <= 3 else -1])

    page.route("**/v2/models/stats", counted_late)
    show(page, scene)
    text = page.locator("#times").text_content()
    assert [step for step in ("admission", "preprocess", "network", "postprocess") if step not in text] == [], text
    assert len(readings) >= 4
