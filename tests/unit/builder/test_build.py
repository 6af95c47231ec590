"""Versions on disk: whole, tagged, immutable, and never half written."""

import json
import shutil

import cv2
import numpy as np
import pytest
from rich.console import Console

from builder import build as build_module
from builder.artefact import Artefact
from builder.build import build
from builder.calibration import calibration_set
from builder.errors import BuilderError, CalibrationError, GateError, RepositoryError
from builder.manifest import Manifest, sha256_of
from builder.progress import Steps
from builder.repository import ModelRepository, read_config
from builder.settings import load_settings
from pipeline import contract
from tests.exports import segmentation_export


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    return folder


def quiet():
    return Steps(Console(quiet=True))


OPEN_GATES = {"fp16": {"f1": 0, "mask_iou": 0}, "int8": {"f1": 0, "mask_iou": 0}}


@pytest.fixture
def make(tmp_path, photographs):
    """Builds a small export with random weights, whose accuracy means nothing: the gates stand open."""

    def run(**changes):
        replace = changes.pop("replace_profile", None)
        entries = {
            "onnx": tmp_path / "export.onnx",
            "repository": tmp_path / "repository",
            "calibration.images": (photographs,),
            "gates": OPEN_GATES,
            **changes,
        }
        if not entries["onnx"].exists():
            segmentation_export(entries["onnx"])
        return build(load_settings(None, entries), quiet(), replace)

    return run


def test_all_precisions_are_written_tagged_and_served(tmp_path, make):
    built = make()
    repository = ModelRepository.open(tmp_path / "repository")
    assert [entry.manifest.precision for entry in built] == list(contract.PRECISIONS)
    for entry in built:
        precision = entry.manifest.precision
        assert entry.folder == tmp_path / "repository" / f"segmentation_{precision}" / "1"
        assert not entry.existed
        assert entry.promoted
        manifest = Manifest.read(entry.folder)
        assert manifest == entry.manifest
        assert set(manifest.files) == {"model.onnx", "model.py", "report.html"}
        for name, file in manifest.files.items():
            assert sha256_of(entry.folder / name) == file.sha256
            assert not (entry.folder / name).stat().st_mode & 0o222
        digest = manifest.files["model.onnx"].sha256[:8]
        assert manifest.tag.startswith(f"export-{precision}-ort")
        assert manifest.tag.endswith(f"-cpu-{digest}")
        assert repository.promoted(precision, "cpu") == [1]
        assert not list(entry.folder.parent.glob(".building-*"))
    assert built[2].manifest.calibration["images"] == 4
    assert built[2].manifest.layers["convolutions"]["int8"] > 0


def test_an_equal_build_is_found_again(make):
    first, second = make(), make()
    assert all(entry.existed for entry in second)
    assert [entry.manifest for entry in second] == [entry.manifest for entry in first]


def test_a_later_version_is_not_served_until_promoted(tmp_path, make):
    make(precisions=("fp32",))
    (built,) = make(precisions=("fp32",), name="other")
    assert built.manifest.version == 2
    assert not built.promoted
    repository = ModelRepository.open(tmp_path / "repository")
    assert repository.promoted("fp32", "cpu") == [1]
    repository.promote("fp32", "cpu", 2)
    assert repository.promoted("fp32", "cpu") == [2]
    with pytest.raises(RepositoryError, match="version 9"):
        repository.promote("fp32", "cpu", 9)


def test_a_truncated_version_is_built_again(make):
    (built,) = make(precisions=("fp32",))
    file = built.folder / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(b"broken")
    (again,) = make(precisions=("fp32",))
    assert again.manifest.version == 2


def test_a_failed_build_leaves_nothing(tmp_path, make, monkeypatch):
    def fail(path):
        raise BuilderError("the disk is on fire")

    monkeypatch.setattr(build_module, "_check_runs", fail)
    with pytest.raises(BuilderError, match="on fire"):
        make(precisions=("fp32",))
    folder = tmp_path / "repository" / "segmentation_fp32"
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.pbtxt", "configs"]


def test_what_a_killed_builder_left_is_swept(tmp_path, make):
    ModelRepository.open(tmp_path / "repository")
    leftover = tmp_path / "repository" / "segmentation_fp32" / ".building-dead"
    leftover.mkdir()
    (leftover / "model.onnx").write_bytes(b"half")
    make(precisions=("fp32",))
    assert not leftover.exists()


def test_sizes_of_the_network_go_into_the_configurations(tmp_path, make):
    onnx = segmentation_export(tmp_path / "wide.onnx", height=96, width=160, coefficients=16)
    make(onnx=onnx, precisions=("fp32",), top_k=40)
    repository = tmp_path / "repository"
    found = {}
    for name in ("preprocess", "postprocess", "segmentation_int8"):
        config = read_config(repository / name / "config.pbtxt")
        found.update({tensor.name: list(tensor.dims) for tensor in [*config.input, *config.output]})
    assert found["images"] == [96, 160, 3]
    assert found["candidates"] == [40, 22]
    assert found["prototypes"] == [16, 24, 40]


def test_a_network_of_another_shape_is_refused(tmp_path, make):
    make(precisions=("fp32",))
    other = segmentation_export(tmp_path / "other.onnx", height=96, width=96)
    with pytest.raises(RepositoryError, match="--repository"):
        make(onnx=other, precisions=("fp32",))


def test_a_folder_of_something_else_is_refused(tmp_path, make):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "letters.txt").write_text("mine")
    with pytest.raises(RepositoryError, match="not a model repository"):
        make(precisions=("fp32",))
    assert (tmp_path / "repository" / "letters.txt").read_text() == "mine"


def test_a_build_without_images_is_refused(make):
    with pytest.raises(CalibrationError, match="--images"):
        make(**{"calibration.images": ()})


def test_calibration_images_are_checked(tmp_path, photographs, make):
    with pytest.raises(CalibrationError, match="no such file"):
        calibration_set([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="no image in"):
        calibration_set([tmp_path / "empty"])
    assert "500" in (calibration_set([photographs]).warning or "")
    (photographs / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(CalibrationError, match=r"bad\.png"):
        make(precisions=("int8",))


def test_a_part_of_the_images_is_held_back(make):
    (built,) = make(precisions=("int8",))
    assert built.manifest.calibration["images"] == 4
    assert built.manifest.verification["images"] == 1


def test_images_of_the_calibration_are_never_verified_on(tmp_path, photographs, make):
    shutil.copytree(photographs, tmp_path / "again")
    with pytest.raises(CalibrationError, match="no image is left to verify on"):
        make(precisions=("int8",), **{"verification.images": (tmp_path / "again",)})


def test_a_failed_gate_writes_nothing_and_says_what_to_do(tmp_path, make):
    with pytest.raises(GateError) as caught:
        make(gates={"int8": {"f1": 1, "mask_iou": 1}}, precisions=("int8",), **{"fallback.max_restorations": 1})
    for words in ("int8 does not pass its gate", "after restoring", "mask IoU", "--images", "keep fp16", "sensitivity"):
        assert words in str(caught.value)
    assert not ModelRepository(tmp_path / "repository").versions("int8")


class _Spoiled:
    """A profile whose int8 is right only once chosen groups have been taken out of it."""

    def __init__(self, inner, groups):
        self._inner, self._groups, self.name, self.reference = inner, groups, inner.name, inner.reference

    def facts(self, precision):
        return self._inner.facts(precision)

    def make(self, precision, exclude):
        artefact = self._inner.make(precision, exclude)
        if precision != "int8" or self._groups <= exclude:
            return Artefact(**{**artefact.__dict__, "model": self.reference, "quantised": artefact.quantised})
        return artefact


def test_costly_layers_are_restored_until_the_gate_holds(make):
    (built,) = make(
        precisions=("int8",),
        gates={"int8": {"f1": 1, "mask_iou": 1}},
        replace_profile=lambda inner: _Spoiled(inner, frozenset({"stem8"})),
        **{"fallback.max_restorations": 12},
    )
    verification = built.manifest.verification
    assert verification["passed"]
    assert verification["metrics"]["f1"] == 1
    assert "stem8" in verification["trades"][-1]["restored"]
    costs = [entry["cost"] for entry in verification["sensitivity"]]
    assert costs == sorted(costs, reverse=True)
    assert "data:image/png;base64," in (built.folder / "report.html").read_text()
    counts = [trade["int8_convolutions"] for trade in verification["trades"]]
    assert counts == sorted(counts, reverse=True)


def test_the_report_is_one_page_with_pictures(make):
    built = make()
    page = (built[2].folder / "report.html").read_text()
    assert built[2].manifest.tag in page
    assert "data:image/jpeg;base64," in page
    for precision in contract.PRECISIONS:
        assert f"<td>{precision}</td>" in page
    assert "http" not in page.replace("https://www.w3.org", "")


@pytest.mark.parametrize("damage", ["{", "[]", json.dumps({"format_version": 99}), json.dumps({"format_version": 1})])
def test_broken_manifests_are_named(tmp_path, damage):
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(RepositoryError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_versions_with_broken_manifests_do_not_stop_a_build(make):
    (built,) = make(precisions=("fp32",))
    (built.folder / "manifest.json").chmod(0o644)
    (built.folder / "manifest.json").write_text("{")
    (again,) = make(precisions=("fp32",))
    assert again.manifest.version == 2
    shutil.rmtree(again.folder)
