"""The command line: what it refuses, in one line and with which exit status."""

import socket

import cv2
import numpy as np
import pytest

from client.__main__ import main


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    return path


@pytest.fixture
def nowhere():
    """A url where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give an image, a folder, a video or --camera"),
        (["x.jpg", "--camera", "0"], "not both"),
        (["x.mp4", "y.jpg"], "a video cannot be combined"),
        (["x.mp4", "--coco-results", "r.json"], "is for images"),
        (["x.png", "--track"], "give a video or --camera N"),
        (["x.jpg", "--confidence", "2"], "'confidence' is '2'; allowed: a number from 0 to 1"),
        (["x.jpg", "--confidence", "high"], "'confidence' is 'high'"),
        (["x.jpg", "--iou", "-0.1"], "'iou' is '-0.1'"),
        (["x.jpg", "--max-detections", "0"], "'max_detections' is '0'"),
        (["x.jpg", "--classes", "0,,2"], "such as card or 0,2"),
        (["x.jpg", "--classes", "99999999"], "'classes' is"),
        (["x.jpg", "--mask-format", "bitmap"], "--mask-format"),
        (["x.jpg", "--precision", "int4"], "--precision"),
        (["x.jpg", "--protocol", "soap"], "--protocol"),
        (["x.jpg", "--batch-size", "9"], "allowed: 1 to 8"),
        (["x.jpg", "--concurrency", "0"], "allowed: 1 or more"),
        (["x.jpg", "--timeout-s", "0"], "seconds above 0"),
        (["x.mp4", "--jpeg-quality", "101"], "allowed: 1 to 100"),
    ],
)
def test_wrong_command_lines(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def one_line_error(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_no_image(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no image in this folder" in one_line_error(capsys)
    assert main([str(tmp_path / "gone[1].jpg")]) == 2
    assert "gone[1].jpg: no such file or folder" in one_line_error(capsys)


def test_wrong_url(photo, capsys):
    assert main([str(photo), "--url", "http://host:8000"]) == 2
    assert "without a scheme" in one_line_error(capsys)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_server(photo, nowhere, protocol, capsys):
    assert main([str(photo), "--url", nowhere, "--protocol", protocol]) == 2
    assert "python -m serving run" in one_line_error(capsys)


def test_overlays_would_overwrite_the_input(photo, nowhere, capsys):
    before = photo.read_bytes()
    assert main([str(photo), "--url", nowhere, "--out", str(photo.parent)]) == 2
    assert "would overwrite" in one_line_error(capsys)
    assert photo.read_bytes() == before


def test_no_video(tmp_path, nowhere, capfd):
    path = tmp_path / "x.mp4"
    path.write_text("no video")
    assert main([str(path), "--url", nowhere]) == 2
    assert "x.mp4: cannot be opened as a video" in capfd.readouterr().err.splitlines()[-1]
    assert main([str(path), "--url", nowhere, "--out", str(tmp_path)]) == 2
    assert "would overwrite" in capfd.readouterr().err.splitlines()[-1]
