"""One repository serves one network: at build, promotion, listing, verification and preflight, with real exports."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from base.progress import Steps
from builder.build import build
from builder.settings import load_settings
from repository import versions
from repository.errors import RepositoryError
from repository.integrity import verify
from repository.manifest import other_classes
from repository.networks import mixture
from repository.promotions import read_promotions
from repository.servable import models_to_load
from repository.store import ModelRepository, read_config
from repository.versions import PromotionError, VersionRef, promote, rollback
from serving.errors import ServingError
from serving.preflight import check, preflight
from tests.exports import segmentation_export
from tests.unit.repository.helpers import FakeServer, run
from tests.versions import add_version, promote_one, rollback_one

OTHER = {"sha256": "b" * 64, "file": "b.onnx"}
MORE_CLASSES = {**OTHER, "class_names": [f"thing {index}" for index in range(80)]}


@pytest.mark.parametrize(
    ("before", "now", "difference"),
    [
        (["cat"], ["cat"], None),
        (["cat"], ["cat", "dog"], "1 class(es) before, 2 now"),
        (["cat", "dog"], ["dog", "cat"], "class 0 was 'cat' and is 'dog'"),
        (["cat", "dog"], ["class_0", "class_1"], None),  # an export without names
        (["cat", "dog"], ["class_0"], "2 class(es) before, 1 now"),
        ([], ["cat"], None),
    ],
)
def test_classes_are_compared_by_number(before, now, difference):
    assert other_classes(before, now) == difference


# Builds of real files.


@pytest.fixture
def make(tmp_path):
    """Builds an export of some classes into one repository; a retrained one has other weights."""
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        cv2.imwrite(str(images / f"{index}.png"), rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))

    def run_build(name, names, precisions=("fp32",), *, retrained=False):
        metadata = {"task": "segment", "names": str(dict(enumerate(names)))} if names else {"task": "segment"}
        path = segmentation_export(
            tmp_path / f"{name}.onnx", height=32, width=32, classes=len(names) or 2, metadata=metadata
        )
        if retrained:
            model = onnx.load(path)
            weight = next(entry for entry in model.graph.initializer if entry.name == "head8.weight")
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.9), weight.name))
            onnx.save(model, path)
        entries = {
            "onnx": path,
            "precisions": precisions,
            "repository": tmp_path / "repository",
            "verification.images": (images,),
        }
        return build(load_settings(None, entries), Steps(Console(quiet=True)))

    return run_build


def test_a_network_of_other_classes_is_not_built_into_the_repository(make, tmp_path):
    make("first", ["cat", "dog"])
    for names in (["cat", "cow"], ["cat", "dog", "cow"], ["dog", "cat"], ["person"] * 80):
        with pytest.raises(RepositoryError, match=r"One repository serves one network.*--repository FOLDER") as caught:
            make("second", names)
        assert "network_fp32/1 of first.onnx" in str(caught.value)
        assert "2 classes: cat, dog" in str(caught.value)
    assert ModelRepository(tmp_path / "repository").versions("fp32") == [1]


def test_a_retrained_network_is_built_beside_the_old_one_and_promoted_as_a_whole(make, tmp_path, capsys):
    make("old", ["cat", "dog"])
    built = make("new", ["cat", "dog"], ("fp32", "fp16"), retrained=True)
    repository = ModelRepository.existing(tmp_path / "repository")
    # fp16 is the first of its precision, and must not appear beside fp32 of the old weights.
    assert [entry.promoted for entry in built] == [False, False]
    assert "not served until promoted together with" in built[1].state
    command = f"promote network_fp32/2 network_fp16/1 --profile cpu --repository {repository.path}"
    assert command in built[1].state
    assert repository.promoted("fp16", "cpu") == []
    with pytest.raises(RepositoryError, match=r"then the profile cpu mixes networks.*--mix-sources") as caught:
        promote_one(repository, "fp16", 1)
    assert command in str(caught.value)
    assert mixture(repository, "cpu") is None
    assert run(repository, *command.split()[: -len(["--repository", "x"])]) == 0
    assert (repository.promoted("fp32", "cpu"), repository.promoted("fp16", "cpu")) == ([2], [1])
    assert mixture(repository, "cpu") is None
    assert "warning" not in capsys.readouterr().out


def test_an_export_without_class_names_is_the_same_network(make):
    make("first", ["cat", "dog"])
    assert make("second", [], retrained=True)[0].manifest.version == 2


def test_class_names_are_written_into_every_configuration_that_callers_read(make):
    """The shipped configurations name the reference model's classes, which are not this network's."""
    make("first", ["cat", "dog"])
    make("second", [], retrained=True)
    (repository,) = {built.folder.parents[1] for built in make("first", ["cat", "dog"])}
    paths = [path for kind in ("network", "segment") for path in repository.glob(f"{kind}_*/**/*.pbtxt")]
    assert len(paths) == 15
    for path in paths:
        parameters = read_config(path).parameters
        assert parameters["class_names"].string_value == '["cat", "dog"]', path
        assert parameters["metadata"].string_value == "{'task': 'segment', 'names': {0: 'cat', 1: 'dog'}}"
    assert "class_names" not in read_config(repository / "postprocess" / "config.pbtxt").parameters


# Versions in a repository.


@pytest.fixture
def repository(tmp_path):
    """Two precisions of one export, promoted, and the same precisions of a retrained one."""
    repository = ModelRepository.open(tmp_path / "repository")
    for precision in ("fp32", "int8"):
        add_version(repository, precision)
        promote_one(repository, precision, 1)
    for precision in ("fp32", "int8"):
        add_version(repository, precision, source=OTHER)
    return repository


def test_versions_of_two_exports_are_served_beside_each_other_only_when_that_is_asked_for(repository, capsys):
    with pytest.raises(RepositoryError, match=r"network_int8/2 is of b\.onnx \(bbbbbbbb…") as caught:
        promote_one(repository, "int8", 2)
    assert "python -m builder promote network_fp32/2 network_int8/2 --profile cpu" in str(caught.value)
    assert repository.promoted("int8", "cpu") == [1]
    assert run(repository, "promote", "network_int8/2", "--mix-sources") == 0
    assert repository.promoted("int8", "cpu") == [2]
    assert "warning: the profile cpu mixes networks" in capsys.readouterr().out
    # It is said wherever one looks, and is no reason not to serve.
    assert run(repository, "list") == 0
    text = capsys.readouterr().out
    assert "warning: the profile cpu mixes networks" in text
    assert "aaaaaaaa" in text
    findings = verify(repository)
    assert findings.faults == []
    assert any("mixes networks" in note for note in findings.notes)
    found = check(repository, "cpu")
    assert [status.ready for status in found.models if status.built] == [True, True]
    assert all("mixes networks" in status.warnings[0] for status in found.models if status.built)
    assert preflight(repository, "cpu", ("int8",)).models[0].warnings == ()


def test_a_rollback_is_never_held_up_by_the_source(repository):
    promote(repository, [VersionRef("fp32", 2), VersionRef("int8", 2)])
    assert rollback_one(repository, "int8").version == 1
    assert mixture(repository, "cpu") is not None
    promote_one(repository, "int8", 2)
    assert [done.version for done in rollback(repository, ["fp32", "int8"])] == [1, 1]
    assert mixture(repository, "cpu") is None


def test_models_are_named_once_and_for_one_profile(repository):
    with pytest.raises(RepositoryError, match="each once"):
        promote(repository, [VersionRef("int8", 1), VersionRef("int8", 2)])
    add_version(repository, "fp16", plans={"model-sm90.plan": {"flavor": "tensorrt-10"}})
    with pytest.raises(RepositoryError, match=r"network_fp16/1 for tensorrt.*--profile cpu or tensorrt"):
        promote(repository, [VersionRef("int8", 1), VersionRef("fp16", 1)])


def test_versions_that_are_promoted_together_are_taken_back_together(repository, monkeypatch):
    monkeypatch.setattr(versions, "onnx_network", lambda content: lambda images: None)
    server = FakeServer(repository, broken=("int8", 2))
    with pytest.raises(PromotionError, match=r"network_int8/2 is not promoted.*answer as before"):
        promote(repository, [VersionRef("fp32", 2), VersionRef("int8", 2)], servers=[server])
    assert [repository.promoted(precision, "cpu") for precision in ("fp32", "int8")] == [[1], [1]]
    assert server.loads[-2:] == [("network_int8", (1,)), ("network_fp32", (1,))]
    assert read_promotions(repository.model_folder("fp32")) == []
    server.broken = None
    refs = [VersionRef("fp32", 2), VersionRef("int8", 2)]
    assert [done.servers for done in promote(repository, refs, servers=[server])] == [("the fake",)] * 2


@pytest.fixture
def two_networks(tmp_path):
    """What older builders made: 80 classes in fp32 beside two in int8."""
    repository = ModelRepository.open(tmp_path / "two")
    add_version(repository, "fp32", source=MORE_CLASSES)
    add_version(repository, "int8")
    repository.promote("fp32", "cpu", 1)
    repository.promote("int8", "cpu", 1)
    return repository


def test_networks_of_different_classes_are_not_ready(two_networks, capsys):
    found = preflight(two_networks, "cpu", ("fp32", "int8"))
    assert [status.ready for status in found.models] == [False, False]
    for status in found.models:
        assert "80 classes: thing 0, thing 1, thing 2, …" in status.reasons[0]
        assert "2 classes: cat, dog" in status.reasons[0]
        assert "--precisions" in status.remedy
    with pytest.raises(ServingError, match="whose classes differ"):
        check(two_networks, "cpu")
    with pytest.raises(RepositoryError, match="One repository serves one network"):
        models_to_load(two_networks, "cpu")
    assert "segment_int8" in models_to_load(two_networks, "cpu", ("int8",))
    assert check(two_networks, "cpu", ("int8",)).models[0].ready
    (fault,) = verify(two_networks).faults
    assert fault.subject == "profile cpu"
    assert run(two_networks, "list") == 0
    assert "mixes networks" in capsys.readouterr().out


def test_networks_of_different_classes_are_not_promoted_however_one_asks(two_networks):
    add_version(two_networks, "int8")
    with pytest.raises(RepositoryError, match="one network") as caught:
        promote_one(two_networks, "int8", 2, force=True, mix_sources=True)
    assert "--mix-sources" not in str(caught.value)
    # The way out: a version of the other network.
    add_version(two_networks, "int8", source=MORE_CLASSES)
    command = "python -m builder promote network_fp32/1 network_int8/3 --profile cpu"
    assert command in preflight(two_networks, "cpu", ("int8", "fp32")).models[0].remedy
    assert promote_one(two_networks, "int8", 3).version == 3
    with pytest.raises(RepositoryError, match="one network"):
        rollback_one(two_networks, "int8")
    assert verify(two_networks).faults == []
