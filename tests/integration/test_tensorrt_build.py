"""TensorRT-RTX plans of real networks, built without a GPU: staged, counted, gated, and recomputed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from base.progress import Steps
from builder import __main__ as command
from builder.build import build
from builder.datasets import resolve_datasets
from builder.export import load_export
from builder.settings import load_settings
from builder.source import SourceNetwork
from builder.verification import compare, mask_map, segment_set, segment_source
from pipeline import contract
from repository.errors import RepositoryError
from repository.manifest import Manifest
from repository.network import onnx_network
from repository.store import ModelRepository
from scenes.reference import fetch_reference

pytest.importorskip("modelopt", reason="ModelOpt is missing; make test-tensorrt runs it")
pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is missing; make test-tensorrt runs it")

from builder.tensorrt import profile as tensorrt_profile
from builder.tensorrt.compile import PlanBuildError, compile_plan
from builder.tensorrt.errors import LogLine
from builder.tensorrt.fallback import FallbackError
from builder.tensorrt.graph_names import GraphNames
from tests.yolo import export

pytestmark = pytest.mark.tensorrt

QUIET = Console(quiet=True)
OPEN_GATES = {"fp16": {"f1": 0, "mask_iou": 0}, "int8": {"f1": 0, "mask_iou": 0}}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    entries = {
        "profile": "tensorrt",
        "repository": tmp_path_factory.mktemp("reference") / "repository",
        "calibration.scenes": 48,
        "verification.scenes": 48,
        "calibration.method": "max",
        "fallback.sensitivity_images": 12,
        "plan.flavor": "tensorrt-rtx",
    }
    return load_settings(None, entries)


@pytest.fixture(scope="module")
def built(settings):
    return {entry.manifest.precision: entry for entry in build(settings, Steps(QUIET))}


def test_plans_are_built_where_triton_does_not_look(built):
    assert list(built) == list(contract.PRECISIONS)
    for entry in built.values():
        (plan,) = entry.folder.glob("*plan")
        assert plan.suffix == ".rtxplan"
        assert plan.stat().st_size > 1_000_000
        assert entry.manifest.plans[plan.name]["batches"] == [1, 8, 16]
        assert entry.manifest.plans[plan.name]["flavor"] == "tensorrt-rtx"
        assert entry.manifest.tag.endswith(entry.manifest.files[plan.name].sha256[:8])
        assert (entry.folder / "report.html").is_file()
        assert not entry.promoted
        # Promoting it is refused, so that is not what is said.
        assert "until promoted" not in entry.state
        assert "Triton's TensorRT backend does not load" in entry.state
        assert f"promote {entry.manifest.model}/1 --profile cpu|cuda" in entry.state
        assert not list(entry.folder.glob("*.plan"))


def test_layers_are_counted_per_precision(built):
    counts = {precision: entry.manifest.layers["convolutions"] for precision, entry in built.items()}
    assert counts["fp32"] == {"fp32": 76}
    assert counts["fp16"]["fp16"] == 75
    assert counts["int8"]["int8"] >= 60
    assert all(sum(count.values()) == 76 for count in counts.values())
    assert {entry.manifest.layers["source"] for entry in built.values()} == {"strongly typed network"}


def test_gates_are_passed_and_recorded(built):
    for precision in ("fp16", "int8"):
        verification = built[precision].manifest.verification
        metrics, gate = verification["metrics"], verification["gate"]
        assert verification["passed"]
        assert metrics["f1"] >= gate["f1"]
        assert metrics["mask_iou"] >= gate["mask_iou"]
        assert verification["measured"].startswith("model.onnx, run by ONNX Runtime")


def test_metrics_recomputed_from_what_was_written_equal_the_manifest(settings, built):
    """Nothing of the build but the settings, the export and the written version is used."""
    reference = fetch_reference()
    verification = resolve_datasets(settings, reference, Steps(QUIET)).verification
    size = (640, 640)
    source = SourceNetwork(load_export(reference.onnx))
    expected, _ = segment_source(
        source, verification.paths, size, settings.verification, settings.top_k, lambda: None, True
    )
    found = {}
    for precision, entry in built.items():
        network = onnx_network(entry.folder / "model.onnx")
        found[precision] = segment_set(network, verification.paths, size, settings.verification, lambda: None, True)
    for precision, entry in built.items():
        recorded = Manifest.read(entry.folder).verification["metrics"]
        again = compare(expected, found[precision], settings.verification.confidence).as_dict()
        for name in ("f1", "mask_iou", "score_difference", "matched", "detections"):
            assert again[name] == pytest.approx(recorded[name], abs=1e-6), (precision, name)
        map50_95, map50 = mask_map(found[precision], verification.paths, verification.annotations)
        assert map50_95 == pytest.approx(recorded["map50_95"], abs=1e-6)
        assert map50 == pytest.approx(recorded["map50"], abs=1e-6)


def test_a_plan_of_tensorrt_rtx_cannot_be_promoted(settings, built):
    repository = ModelRepository(settings.repository)
    version = built["int8"].manifest.version
    assert not repository.is_servable("int8", version, "tensorrt")
    with pytest.raises(RepositoryError, match="cannot be served under the profile tensorrt"):
        repository.promote("int8", "tensorrt", version)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.mark.parametrize("profile", ["tensorrt", "cpu"])
@pytest.mark.parametrize(
    ("family", "classes", "size", "convolutions"),
    [("yolov8n-seg", 80, (320, 320), 76), ("yolo11n-seg", 5, (256, 320), 100)],
)
def test_other_exports(tmp_path, images, profile, family, classes, size, convolutions):
    entries = {
        "profile": profile,
        "onnx": export(tmp_path / "export.onnx", family, classes, size),
        "repository": tmp_path / "repository",
        "calibration.images": (images,),
        "calibration.method": "max",
        "gates": OPEN_GATES,
    }
    built = build(load_settings(None, entries), Steps(QUIET))
    assert [entry.manifest.precision for entry in built] == list(contract.PRECISIONS)
    for entry in built:
        assert entry.manifest.tag.startswith(family)
        assert entry.manifest.source["num_classes"] == classes
        assert entry.manifest.source["class_names"][1] == "thing 1"
        assert sum(entry.manifest.layers["convolutions"].values()) == convolutions
    assert built[2].manifest.layers["convolutions"]["int8"] >= 0.75 * convolutions


FUSED = "{name} + PWN(PWN({sigmoid}), {name})"
FOREIGN = "{{ForeignNode[{name}...{sigmoid}]}}"


def refuse(monkeypatch, names, forever=False, form=FUSED):
    """Let TensorRT fail, as 8.6 did, while any of the nodes is quantized."""

    def step(path, *arguments):
        graph = GraphNames.from_file(path)
        for name in names:
            if forever or graph.is_quantized(name):
                layer = form.format(name=name, sigmoid=name.replace("conv/Conv", "act/Sigmoid"))
                line = f"Error Code 10: Internal Error (Could not find any implementation for node {layer}.)"
                raise PlanBuildError("no plan", (LogLine("ERROR", line),))
        return compile_plan(path, *arguments)

    monkeypatch.setattr(tensorrt_profile, "compile_plan", step)


PROTO = "/model.22/proto/cv3/conv/Conv"
STEM = "/model.1/conv/Conv"


def small_build(tmp_path, images, **changes):
    entries = {
        "profile": "tensorrt",
        "precisions": ("int8",),
        "onnx": export(tmp_path / "export.onnx", "yolov8n-seg", 3, (256, 256)),
        "repository": tmp_path / "repository",
        "calibration.images": (images,),
        "calibration.method": "max",
        "gates": OPEN_GATES,
        **changes,
    }
    return build(load_settings(None, entries), Steps(QUIET))


@pytest.mark.parametrize("form", [FUSED, FOREIGN], ids=["fused", "foreign"])
def test_a_failed_build_is_tried_again_without_the_nodes_that_failed(tmp_path, images, monkeypatch, form):
    refuse(monkeypatch, [PROTO, STEM], form=form)
    (built,) = small_build(tmp_path, images)
    attempts = built.manifest.attempts
    assert [attempt["succeeded"] for attempt in attempts] == [False, False, True]
    # A ForeignNode is known by its ends alone, so what lies between them in the graph's order goes as well.
    assert PROTO in attempts[0]["added"]
    assert STEM in attempts[1]["added"]
    added = [*attempts[0]["added"], *attempts[1]["added"]]
    assert len(added) == 2 if form is FUSED else len(added) < 10
    assert {PROTO, STEM} <= set(built.manifest.excluded_nodes)
    graph = GraphNames.from_file(built.folder / "model.onnx")
    assert not graph.is_quantized(PROTO)
    assert not graph.is_quantized(STEM)
    assert graph.is_quantized("/model.2/cv1/conv/Conv")


def test_a_build_that_never_succeeds_says_what_to_do_and_writes_nothing(tmp_path, images, monkeypatch, capsys):
    repository = ModelRepository(tmp_path / "repository")
    refuse(monkeypatch, [PROTO], forever=True)
    config = tmp_path / "builder.yaml"
    config.write_text("calibration: {method: max}\ngates: {int8: {f1: 0, mask_iou: 0}}\nplan: {flavor: tensorrt-rtx}\n")
    export(tmp_path / "export.onnx", "yolov8n-seg", 3, (256, 256))
    options = ["--profile", "tensorrt", "--precisions", "int8", "--config", str(config), "--images", str(images)]
    files = ["--onnx", str(tmp_path / "export.onnx"), "--repository", str(tmp_path / "repository")]
    assert command.main(["build", *options, *files]) == 1
    message = capsys.readouterr().err
    for words in (PROTO, "TensorRT-RTX", "Sigmoid", "keep fp16", "upgrade"):
        assert words.lower() in message.lower()
    assert repository.versions("int8") == []
    assert repository.leftovers("int8") == []


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_a_workspace_that_does_not_suffice_is_named_in_every_precision(tmp_path, images, capsys, precision):
    """TensorRT-RTX itself runs out of memory; the message's command then builds."""
    config = tmp_path / "builder.yaml"
    config.write_text("gates: {fp16: {f1: 0, mask_iou: 0}, int8: {f1: 0, mask_iou: 0}}\nplan: {flavor: tensorrt-rtx}\n")
    onnx = export(tmp_path / "export.onnx", "yolov8n-seg", 3, (256, 256))
    options = ["--profile", "tensorrt", "--precisions", precision, "--config", str(config), "--images", str(images)]
    options += ["--onnx", str(onnx), "--repository", str(tmp_path / "repository"), "--workspace-mib", "64"]
    assert command.main(["build", *options, "--max-batch", "64"]) == 1
    message = capsys.readouterr().err
    assert "Error Code 2: OutOfMemory (Requested size was" in message
    for words in ("workspace limit is 64 MiB", "batches of up to 64", "--max-batch 32", "--workspace-mib 128"):
        assert words in message
    for words in ("internal error", "calibrate"):
        assert words not in message.rpartition("error:")[2]
    assert ModelRepository(tmp_path / "repository").versions(precision) == []
    # As the message says: double it while it goes on.
    for workspace_mib in (128, 256, 512):
        if command.main(["build", *options, "--max-batch", "64", "--workspace-mib", str(workspace_mib)]) == 0:
            break
    assert ModelRepository(tmp_path / "repository").versions(precision) == [1]
    assert "not served under the profile tensorrt" in capsys.readouterr().out


def test_a_build_that_goes_on_failing_stops_at_the_bound(tmp_path, images, monkeypatch):
    names = [PROTO, STEM, "/model.2/cv1/conv/Conv"]
    refuse(monkeypatch, names)
    with pytest.raises(FallbackError, match=r"2 builds failed, which is the bound") as caught:
        small_build(tmp_path, images, **{"fallback.max_attempts": 2})
    assert [attempt.succeeded for attempt in caught.value.attempts] == [False, False]
    assert ModelRepository(tmp_path / "repository").versions("int8") == []
