"""Versions on disk: whole, tagged, immutable, and never half written."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import onnx
import pytest
from rich.console import Console

from base.files import sha256_of
from base.progress import Steps
from builder import __main__ as command
from builder import cpu_profile
from builder.build import build
from builder.datasets import CalibrationSet
from builder.errors import BuilderError, CalibrationError, ExportError, GateError
from builder.settings import load_settings
from builder.surgery import graft_ends
from pipeline import contract
from repository.errors import RepositoryError
from repository.integrity import version_faults
from repository.manifest import Manifest
from repository.signatures import make_key
from repository.store import ModelRepository, read_config
from steps.onnx_cpu import onnx_runtime_engine
from steps.openvino_cpu import EngineError
from tests.exports import segmentation_export


def noise(folder, count, cells, size):
    """Images of ``size``, rows x columns, that show random ``cells``."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        image = rng.integers(0, 256, (*cells, 3), dtype=np.uint8)
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


@pytest.fixture
def photographs(tmp_path):
    return noise(tmp_path / "photographs", 5, (50, 70), (50, 70))


@pytest.fixture
def smooth(tmp_path):
    """Images on which fp16 gives masks that are not exactly those of fp32."""
    return noise(tmp_path / "smooth", 5, (12, 16), (240, 320))


def quiet():
    return Steps(Console(quiet=True))


OPEN_GATES = {"fp16": {"f1": 0, "mask_iou": 0}, "int8": {"f1": 0, "mask_iou": 0}}


@pytest.fixture(scope="module")
def kept():
    """Changes of the settings to a copy of the repository, where it was built, and what was built."""
    return {}


@pytest.fixture
def make(tmp_path, photographs, kept, tmp_path_factory):
    """Builds a small export with random weights, whose accuracy means nothing: the gates stand open."""

    def run(**changes):
        entries = {
            "onnx": tmp_path / "export.onnx",
            "repository": tmp_path / "repository",
            "calibration.images": (photographs,),
            "gates": OPEN_GATES,
            "report": tmp_path / "report",
            **changes,
        }
        if not entries["onnx"].exists():
            segmentation_export(entries["onnx"], height=32, width=32)
        # Many tests begin with the same build: it is made once and copied.
        key = repr(changes)
        again = key in kept and not entries["repository"].exists()
        if again:
            shutil.copytree(kept[key][0], entries["repository"])
            return [
                dataclasses.replace(entry, folder=entries["repository"] / entry.folder.relative_to(kept[key][1]))
                for entry in kept[key][2]
            ]
        first = str(tmp_path) not in key and not entries["repository"].exists()
        built = build(load_settings(None, entries), quiet())
        if first:
            copy = shutil.copytree(entries["repository"], tmp_path_factory.mktemp("kept") / "repository")
            kept[key] = (copy, entries["repository"], built)
        return built

    return run


def test_all_precisions_are_written_tagged_and_served(tmp_path, make):
    built = make()
    repository = ModelRepository.open(tmp_path / "repository")
    assert [entry.manifest.precision for entry in built] == list(contract.PRECISIONS)
    for entry in built:
        precision = entry.manifest.precision
        assert entry.folder == tmp_path / "repository" / f"network_{precision}" / "1"
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


@pytest.fixture
def openvino(monkeypatch):
    """A machine that runs fp16 versions in the engine given, as OpenVINO 9.1."""

    def use(engine):
        monkeypatch.setattr(cpu_profile, "usable_openvino", lambda: "9.1")
        monkeypatch.setattr(cpu_profile, "openvino_engine", engine)

    return use


@pytest.fixture
def without_openvino(monkeypatch):
    def unusable():
        raise EngineError("this processor has none of amx_bf16, avx512_bf16")

    monkeypatch.setattr(cpu_profile, "usable_openvino", unusable)


def blind(path, threads):
    """An engine that sees nothing."""
    run = onnx_runtime_engine(path, threads)
    return lambda image: tuple(map(np.zeros_like, run(image)))


def broken(path, threads):
    raise RuntimeError("no implementation of an operation")


def test_fp16_is_gated_in_each_engine_that_may_serve_it(tmp_path, make, openvino, smooth):
    openvino(onnx_runtime_engine)  # whose results pass whatever gate they passed before
    changes = {"repository": tmp_path / "other", "verification.images": (smooth,), "precisions": ("fp32", "fp16")}
    fp32, fp16 = (entry.manifest for entry in make(**changes))
    record = fp16.verification["engines"]["openvino"]
    assert (record["version"], record["passed"], record["failures"]) == ("9.1", True, [])
    assert record["metrics"] == fp16.verification["metrics"]
    assert "-ov9.1-cpu-" in fp16.tag and "-ov" not in fp32.tag
    assert fp32.verification["engines"] == {}
    assert "in openvino 9.1" in (tmp_path / "other/network_fp16/1/report.html").read_text()
    assert [entry.existed for entry in make(**changes)] == [True, True]


@pytest.mark.parametrize(("engine", "gated"), [(blind, True), (broken, False)])
def test_fp16_is_published_for_onnx_runtime_alone_where_another_engine_fails(
    tmp_path, make, openvino, smooth, engine, gated
):
    openvino(engine)
    changes = {
        "repository": tmp_path / "other",
        "verification.images": (smooth,),
        "gates": {"fp16": {"f1": 0.5, "mask_iou": 0.5}},
    }
    (fp16,) = (entry.manifest for entry in make(**changes, precisions=("fp16",)))
    assert fp16.gate_passed and "-ov" not in fp16.tag
    assert [record["passed"] for record in fp16.verification["engines"].values()] == [False] * gated


def test_a_build_for_another_engine_is_another_build(tmp_path, make, openvino, without_openvino):
    changes = {"repository": tmp_path / "other", "precisions": ("fp32", "fp16")}
    assert [entry.manifest.version for entry in make(**changes)] == [1, 1]
    openvino(onnx_runtime_engine)
    assert [(entry.manifest.version, entry.existed) for entry in make(**changes)] == [(1, True), (2, False)]


def test_an_equal_build_is_found_again(make):
    first, second = make(), make()
    assert all(entry.existed for entry in second)
    assert [entry.manifest for entry in second] == [entry.manifest for entry in first]


def test_a_build_signs_what_it_makes_and_nothing_else(tmp_path, make):
    key = tmp_path / "key"
    public = make_key(key)
    make(precisions=("fp32",))  # by somebody without the key, who could have written anything
    for expected in ((2, False), (2, True)):
        (built,) = make(precisions=("fp32",), sign_key=key)
        assert (built.manifest.version, built.existed) == expected
    repository = ModelRepository.existing(tmp_path / "repository", public)
    assert version_faults(repository, "fp32", 2) == []
    assert "is not signed" in version_faults(repository, "fp32", 1)[0].problem
    assert "sign_key" not in built.manifest.settings
    key.chmod(0o644)
    with pytest.raises(RepositoryError, match="can be read by others"):
        make(precisions=("fp32",), sign_key=key)


def test_weights_beside_the_file_that_changed_make_a_new_version(tmp_path, make):
    whole = onnx.load(segmentation_export(tmp_path / "whole.onnx", height=32, width=32))
    path = tmp_path / "best.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="best.onnx.data", size_threshold=0)
    (first,) = make(onnx=path, precisions=("fp32",))
    assert set(first.manifest.source["files"]) == {"best.onnx", "best.onnx.data"}
    data = path.with_name("best.onnx.data")
    values = np.frombuffer(data.read_bytes(), np.float32).copy()
    values[:100] *= 1.01
    data.write_bytes(values.tobytes())
    (second,) = make(onnx=path, precisions=("fp32",))
    assert not second.existed
    assert second.manifest.version == 2
    assert second.manifest.source["sha256"] != first.manifest.source["sha256"]


@pytest.mark.parametrize("batch", [None, 4, 1])
def test_every_precision_is_compared_with_the_file_as_it_came(tmp_path, make, batch):
    changes = {}
    if batch != 1:  # otherwise it is the build that many tests begin with
        changes["onnx"] = segmentation_export(tmp_path / "other.onnx", height=32, width=64, batch=batch)
    if batch is None:
        changes["input_size"] = (32, 64)
    for entry in make(**changes):
        verification = entry.manifest.verification
        assert ("export.onnx" if batch == 1 else "other.onnx") + ", unchanged" in verification["reference"]
        assert verification["fp32_graph"]["box_max_px"] < 0.1
        assert verification["fp32_graph"]["score_max"] < 1e-4
        differences = verification["differences"]
        assert differences["matched"] > 0
        if entry.manifest.precision == "fp32":
            assert verification["metrics"]["f1"] == 1
            assert verification["metrics"]["mask_iou"] > 0.999
            assert 0 < differences["box_max_px"] < 0.1  # not the same numbers compared with themselves
            assert differences["score_max"] < 1e-4
        else:
            assert differences["box_max_px"] > 0


def test_a_network_unlike_its_file_is_refused_before_anything_is_written(tmp_path, make, monkeypatch):
    def other_order(model, export, top_k):
        grafted = graft_ends(model, export, top_k)
        concat = next(node for node in grafted.graph.node if node.name == "ends/features")
        concat.input[0] = "ends/boxes_turned"
        at = list(grafted.graph.node).index(concat)
        order = onnx.numpy_helper.from_array(np.array([1, 0, 2, 3], np.int64), "ends/order")
        grafted.graph.initializer.append(order)
        turn = onnx.helper.make_node("Gather", ["ends/boxes", "ends/order"], ["ends/boxes_turned"], axis=1)
        grafted.graph.node.insert(at, turn)
        return grafted

    monkeypatch.setattr("builder.cpu_profile.graft_ends", other_order)
    with pytest.raises(ExportError, match="Nothing was written"):
        make(precisions=("fp32",), report=tmp_path / "another")  # not the copy of an earlier test's build
    assert not (tmp_path / "repository").exists()


def test_a_later_version_is_not_served_until_promoted(tmp_path, make):
    make(precisions=("fp32",))
    (built,) = make(precisions=("fp32",), name="other")
    assert built.manifest.version == 2
    assert not built.promoted
    repository = ModelRepository.open(tmp_path / "repository")
    assert repository.promoted("fp32", "cpu") == [1]
    repository.promote("fp32", "cpu", 2)
    assert repository.promoted("fp32", "cpu") == [2]
    with pytest.raises(RepositoryError, match=r"network_fp32/9 .*no such version"):
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

    monkeypatch.setattr("builder.publication._check_runs", fail)
    with pytest.raises(BuilderError, match="on fire"):
        make(precisions=("fp32",), name="burning")
    folder = tmp_path / "repository" / "network_fp32"
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.pbtxt", "configs"]


def test_what_a_killed_builder_left_is_swept(tmp_path, make):
    ModelRepository.open(tmp_path / "repository")
    leftover = tmp_path / "repository" / "network_fp32" / ".building-dead"
    leftover.mkdir()
    (leftover / "model.onnx").write_bytes(b"half")
    make(precisions=("fp32",))
    assert not leftover.exists()


def test_sizes_of_the_network_go_into_the_configurations(tmp_path, make):
    onnx = segmentation_export(tmp_path / "wide.onnx", height=96, width=160, coefficients=16)
    (built,) = make(onnx=onnx, precisions=("fp32",), top_k=40)
    assert built.manifest.verification["images_beyond_top_k"] == built.manifest.verification["images"]
    repository = tmp_path / "repository"
    found = {}
    for name in ("preprocess", "postprocess", "network_int8"):
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
        CalibrationSet.of([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="no image in"):
        CalibrationSet.of([tmp_path / "empty"])
    assert "500" in (CalibrationSet.of([photographs]).warning or "")
    (photographs / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(CalibrationError, match=r"bad\.png"):
        make(precisions=("int8",))


@pytest.mark.parametrize(("precision", "verified"), [("int8", 1), ("fp32", 5)])
def test_a_part_of_the_images_is_held_back_if_int8_is_calibrated(make, precision, verified):
    (built,) = make(precisions=(precision,))
    assert built.manifest.verification["images"] == verified
    assert (built.manifest.calibration or {"images": 0})["images"] == (4 if precision == "int8" else 0)


def test_images_of_the_calibration_are_never_verified_on(tmp_path, photographs, make):
    shutil.copytree(photographs, tmp_path / "again")
    with pytest.raises(CalibrationError, match="no image is left to verify on"):
        make(precisions=("int8",), **{"verification.images": (tmp_path / "again",)})


def test_a_failed_gate_writes_nothing_and_says_what_to_do(tmp_path, make):
    impossible = {"int8": {"f1": 1, "mask_iou": 1}}
    with pytest.raises(GateError) as caught:
        make(gates=impossible, precisions=("int8",), **{"fallback.max_restorations": 1})
    message = str(caught.value)
    for words in ("int8 does not pass its gate", "after restoring", "mask IoU", "--images", "keep fp16", "sensitivity"):
        assert words in message
    assert "TensorRT" not in message
    assert not ModelRepository(tmp_path / "repository").versions("int8")
    # The layers that it names are accepted.
    (line,) = [line for line in message.splitlines() if "--exclude" in line]
    names = line.split("--exclude ")[1].split()
    (built,) = make(precisions=("int8",), exclude=tuple(names))
    assert set(names) <= set(built.manifest.excluded_nodes)


@pytest.mark.parametrize("precisions", [("int8",), ("fp32",)])
def test_unknown_layers_to_exclude_are_refused_with_close_ones(make, precisions):
    with pytest.raises(BuilderError, match=r"called 'sten8' to exclude; close to it: stem8"):
        make(precisions=precisions, exclude=("head8", "sten8"))


def test_excluding_every_layer_is_refused(make):
    every = tuple(f"{part}{stride}" for part in ("stem", "head") for stride in (8, 16, 32))
    with pytest.raises(BuilderError, match="none of the 7 convolutions is left in int8"):
        make(precisions=("int8",), exclude=(*every, "output1"))


IMPOSSIBLE = {"f1": 1, "mask_iou": 1, "class_f1": 1, "class_mask_iou": 1}
OPEN = {"f1": 0, "mask_iou": 0}


@pytest.mark.parametrize(
    ("gates", "failed", "finished"),
    [
        ({"fp16": IMPOSSIBLE, "int8": OPEN}, ["fp16"], ["fp32", "int8"]),
        ({"fp16": OPEN, "int8": IMPOSSIBLE}, ["int8"], ["fp32", "fp16"]),
        ({"fp16": IMPOSSIBLE, "int8": IMPOSSIBLE}, ["fp16", "int8"], ["fp32"]),
    ],
)
def test_a_precision_that_fails_does_not_keep_others_from_being_finished(
    tmp_path, make, smooth, gates, failed, finished
):
    with pytest.raises(GateError) as caught:
        make(gates=gates, **{"fallback.max_restorations": 0, "calibration.images": (smooth,)})
    repository = ModelRepository(tmp_path / "repository")
    for precision in contract.PRECISIONS:
        assert repository.versions(precision) == ([1] if precision in finished else [])
        assert (f"{precision} does not pass its gate" in str(caught.value)) == (precision in failed)
        assert (tmp_path / "report" / f"export-{precision}.html").exists() == (precision in failed)


def test_the_command_shows_what_was_finished_and_fails(tmp_path, smooth, capsys):
    export = segmentation_export(tmp_path / "export.onnx", height=32, width=32)
    config = tmp_path / "builder.yaml"
    config.write_text("gates: {fp16: {f1: 1, mask_iou: 1}, int8: {f1: 0, mask_iou: 0}}\n")
    options = ["--onnx", export, "--config", config, "--images", smooth, "--repository", tmp_path / "repository"]
    assert command.main(["build", *map(str, options), "--report", str(tmp_path / "there")]) == 1
    captured = capsys.readouterr()
    assert [line.split("\t")[0] for line in captured.out.splitlines()] == ["fp32", "int8"]
    assert "fp16 does not pass its gate" in captured.err
    assert str(tmp_path / "there" / "export-fp16.html") in captured.err


def test_a_failed_gate_leaves_a_report_that_says_why(tmp_path, make):
    names = {"names": "{0: 'apple', 1: 'pear', 2: 'plum'}"}
    export = segmentation_export(tmp_path / "fruit.onnx", metadata=names)
    with pytest.raises(GateError, match=r"Report, with pictures: .*fruit-int8\.html"):
        make(onnx=export, gates={"int8": IMPOSSIBLE}, precisions=("int8",), **{"fallback.max_restorations": 2})
    page = (tmp_path / "report" / "fruit-int8.html").read_text()
    for words in ("gate not passed", "no version written", "apple, pear, plum", "64 x 64", "What to do", "--exclude"):
        assert words in page
    for words in ("<td>apple</td>", "comes closest", "data:image/jpeg;base64,", "only this group", "int8 finds"):
        assert words in page
    assert not list((tmp_path / "repository" / "network_int8").glob("[0-9]*"))


def test_a_report_that_cannot_be_written_does_not_hide_the_failure(tmp_path, make):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(GateError, match="int8 does not pass its gate") as caught:
        make(gates={"int8": IMPOSSIBLE}, precisions=("int8",), report=tmp_path / "taken")
    assert "Report" not in str(caught.value)


def test_fp32_is_compared_with_the_export_in_its_report(make):
    (built,) = make(precisions=("fp32",))
    page = (built.folder / "report.html").read_text()
    assert "fp32 against the export" in page
    assert page.count("data:image/jpeg") == 2 * page.count("<figure>") > 0


def test_fp32_is_built_where_the_images_show_nothing(make):
    changes = {"verification.confidence": 1.0}
    (built,) = make(precisions=("fp32",), **changes)
    verification = built.manifest.verification
    assert verification["passed"]
    assert verification["metrics"]["reference_detections"] == 0
    assert "the export finds nothing in the 5 verification image(s)" in verification["warnings"][0]
    assert "the export finds nothing" in (built.folder / "report.html").read_text()
    with pytest.raises(GateError, match="finds nothing") as caught:
        make(precisions=("fp16",), **changes)
    assert "--verify-images" in str(caught.value)
    assert "restor" not in str(caught.value)


def test_few_images_and_instances_are_said_everywhere(tmp_path, make, photographs, capsys):
    (built,) = make(precisions=("fp32",))
    (warning,) = built.manifest.verification["warnings"]
    assert warning.startswith("verified on 5 image(s)")
    assert "verified on 5 image(s)" in (built.folder / "report.html").read_text()
    options = ["--onnx", tmp_path / "export.onnx", "--images", photographs, "--repository", tmp_path / "other"]
    assert command.main(["build", "--precisions", "fp32", *map(str, options)]) == 0
    assert "verified on 5 image(s)" in capsys.readouterr().err


def test_costly_layers_are_restored_until_the_gate_holds(tmp_path, make):
    (built,) = make(
        onnx=segmentation_export(tmp_path / "larger.onnx"),
        precisions=("int8",),
        gates={"int8": {"f1": 0.9, "mask_iou": 0.9}},
        **{"fallback.max_restorations": 12},
    )
    verification = built.manifest.verification
    first, *_, last = verification["trades"]
    assert first["failures"]
    assert not last["failures"]
    assert verification["passed"]
    assert verification["metrics"]["f1"] >= 0.9
    assert verification["restored"] == last["restored"]
    assert last["int8_convolutions"] < first["int8_convolutions"]
    costs = [entry["cost"] for entry in verification["sensitivity"]]
    assert costs == sorted(costs, reverse=True)
    assert all(entry["convolutions"] for entry in verification["sensitivity"])
    assert "data:image/png;base64," in (built.folder / "report.html").read_text()
    restored = {name for name in built.manifest.excluded_nodes if name in last["restored"]}
    assert restored == set(last["restored"])


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
