"""Versions on disk: whole, tagged, immutable, and never half written."""

import json
import shutil

import cv2
import numpy as np
import pytest
from rich.console import Console

from builder import build as build_module
from builder.build import BuildSettings, build_cpu
from builder.calibration import augmented_set, calibration_set
from builder.errors import BuilderError, CalibrationError, RepositoryError
from builder.manifest import Manifest, sha256_of
from builder.progress import Steps
from builder.repository import ModelRepository, read_config
from pipeline import contract
from tests.exports import segmentation_export


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    return folder


def quiet():
    return Steps(Console(quiet=True))


def settings(tmp_path, **changes):
    onnx = changes.pop("onnx", None) or segmentation_export(tmp_path / "export.onnx")
    return BuildSettings(onnx=onnx, repository=tmp_path / "repository", **changes)


def test_all_precisions_are_written_tagged_and_served(tmp_path, photographs):
    built = build_cpu(settings(tmp_path), calibration_set([photographs]), quiet())
    repository = ModelRepository.open(tmp_path / "repository")
    assert [entry.manifest.precision for entry in built] == list(contract.PRECISIONS)
    for entry in built:
        precision = entry.manifest.precision
        assert entry.folder == tmp_path / "repository" / f"segmentation_{precision}" / "1"
        assert not entry.existed
        assert entry.promoted
        manifest = Manifest.read(entry.folder)
        assert manifest == entry.manifest
        assert set(manifest.files) == {"model.onnx", "model.py"}
        for name, file in manifest.files.items():
            assert sha256_of(entry.folder / name) == file.sha256
            assert not (entry.folder / name).stat().st_mode & 0o222
        digest = manifest.files["model.onnx"].sha256[:8]
        assert manifest.tag.startswith(f"export-{precision}-ort")
        assert manifest.tag.endswith(f"-cpu-{digest}")
        assert repository.promoted(precision, "cpu") == [1]
        assert not list(entry.folder.parent.glob(".building-*"))
    assert built[2].manifest.calibration["images"] == 3
    assert built[2].manifest.layers["convolutions"]["int8"] > 0


def test_an_equal_build_is_found_again(tmp_path, photographs):
    calibration = calibration_set([photographs])
    first = build_cpu(settings(tmp_path), calibration, quiet())
    second = build_cpu(settings(tmp_path), calibration, quiet())
    assert all(entry.existed for entry in second)
    assert [entry.manifest for entry in second] == [entry.manifest for entry in first]


def test_a_later_version_is_not_served_until_promoted(tmp_path, photographs):
    build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    (built,) = build_cpu(settings(tmp_path, precisions=("fp32",), name="other"), None, quiet())
    assert built.manifest.version == 2
    assert not built.promoted
    repository = ModelRepository.open(tmp_path / "repository")
    assert repository.promoted("fp32", "cpu") == [1]
    repository.promote("fp32", "cpu", 2)
    assert repository.promoted("fp32", "cpu") == [2]
    with pytest.raises(RepositoryError, match="version 9"):
        repository.promote("fp32", "cpu", 9)


def test_a_truncated_version_is_built_again(tmp_path):
    (built,) = build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    file = built.folder / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(b"broken")
    (again,) = build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    assert again.manifest.version == 2


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def fail(path):
        raise BuilderError("the disk is on fire")

    monkeypatch.setattr(build_module, "_check_runs", fail)
    with pytest.raises(BuilderError, match="on fire"):
        build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    folder = tmp_path / "repository" / "segmentation_fp32"
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.pbtxt", "configs"]


def test_what_a_killed_builder_left_is_swept(tmp_path):
    ModelRepository.open(tmp_path / "repository")
    leftover = tmp_path / "repository" / "segmentation_fp32" / ".building-dead"
    leftover.mkdir()
    (leftover / "model.onnx").write_bytes(b"half")
    build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    assert not leftover.exists()


def test_sizes_of_the_network_go_into_the_configurations(tmp_path):
    onnx = segmentation_export(tmp_path / "wide.onnx", height=96, width=160, coefficients=16)
    build_cpu(settings(tmp_path, onnx=onnx, precisions=("fp32",), top_k=40), None, quiet())
    repository = tmp_path / "repository"
    found = {}
    for name in ("preprocess", "postprocess", "segmentation_int8"):
        config = read_config(repository / name / "config.pbtxt")
        found.update({tensor.name: list(tensor.dims) for tensor in [*config.input, *config.output]})
    assert found["images"] == [96, 160, 3]
    assert found["candidates"] == [40, 22]
    assert found["prototypes"] == [16, 24, 40]


def test_a_network_of_another_shape_is_refused(tmp_path):
    build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    other = segmentation_export(tmp_path / "other.onnx", height=96, width=96)
    with pytest.raises(RepositoryError, match="--repository"):
        build_cpu(settings(tmp_path, onnx=other, precisions=("fp32",)), None, quiet())


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "letters.txt").write_text("mine")
    with pytest.raises(RepositoryError, match="not a model repository"):
        build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    assert (tmp_path / "repository" / "letters.txt").read_text() == "mine"


def test_int8_without_images_is_refused(tmp_path):
    with pytest.raises(BuilderError, match="--images"):
        build_cpu(settings(tmp_path), None, quiet())


def test_calibration_images_are_checked(tmp_path, photographs):
    with pytest.raises(CalibrationError, match="no such file"):
        calibration_set([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="no images"):
        calibration_set([tmp_path / "empty"])
    assert "500" in (calibration_set([photographs]).warning or "")
    (photographs / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(CalibrationError, match=r"bad\.png"):
        build_cpu(settings(tmp_path, precisions=("int8",)), calibration_set([photographs]), quiet())


def test_augmented_variants_are_the_same_every_time(photographs):
    images = [augmented_set([photographs]) for _ in range(2)]
    first, second = ([image.tobytes() for image in one.letterboxed(64, 64)] for one in images)
    assert first == second
    assert len(first) == len(images[0]) == 3 * 8
    assert len(set(first)) == len(first)
    assert "too few for production" in (images[0].warning or "")


@pytest.mark.parametrize("damage", ["{", "[]", json.dumps({"format_version": 99}), json.dumps({"format_version": 1})])
def test_broken_manifests_are_named(tmp_path, damage):
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(RepositoryError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_versions_with_broken_manifests_do_not_stop_a_build(tmp_path):
    (built,) = build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    (built.folder / "manifest.json").chmod(0o644)
    (built.folder / "manifest.json").write_text("{")
    (again,) = build_cpu(settings(tmp_path, precisions=("fp32",)), None, quiet())
    assert again.manifest.version == 2
    shutil.rmtree(again.folder)
