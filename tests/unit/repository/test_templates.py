"""A checkout stays clean after a promotion, and takes new templates without losing what was promoted; judged by git."""

import shutil
import subprocess
from pathlib import Path

import pytest

from repository.store import ModelRepository, read_config
from tests.unit.repository.helpers import add_versions
from tests.versions import promote_one

ROOT = Path(__file__).resolve().parents[3]


def git(folder, *arguments):
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def origin(tmp_path):
    """A repository of git with this checkout's models and what is ignored."""
    folder = tmp_path / "origin"
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", ".gitignore", "model_repository")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


@pytest.fixture
def clone(origin, tmp_path):
    git(tmp_path, "clone", "--quiet", str(origin), "clone")
    return tmp_path / "clone"


def opened(clone):
    return ModelRepository.open(clone / "model_repository")


def config(clone, name="network_int8/configs/cpu.pbtxt"):
    return read_config(clone / "model_repository" / name)


def change(origin, name, old, new):
    path = origin / "model_repository" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    git(origin, "commit", "--quiet", "--all", "--message=a release")


def test_a_fresh_clone_becomes_a_repository_of_shipped_configurations(clone):
    assert not (clone / "model_repository/admission/config.pbtxt").exists()
    opened(clone)
    for template in (clone / "model_repository").rglob("*.pbtxt.in"):
        assert template.with_suffix("").read_text() == template.read_text()
    assert git(clone, "status", "--porcelain") == ""


def test_a_promotion_leaves_git_clean_and_outlives_a_pull(origin, clone):
    repository = opened(clone)
    add_versions(repository, 2)
    promote_one(repository, "int8", 2)
    assert git(clone, "status", "--porcelain") == ""

    change(origin, "network_int8/configs/cpu.pbtxt.in", "preferred_batch_size: [ 4 ]", "preferred_batch_size: [ 6 ]")
    git(clone, "pull", "--quiet", "--ff-only")
    opened(clone)
    assert list(config(clone).dynamic_batching.preferred_batch_size) == [6]
    assert list(config(clone).version_policy.specific.versions) == [2]
    assert git(clone, "status", "--porcelain") == ""


def test_a_configuration_that_a_release_no_longer_has_is_removed_by_a_pull(origin, clone):
    opened(clone)
    mine = clone / "model_repository/segment_int8/configs/mine.pbtxt"
    mine.write_text("# written by hand")
    git(origin, "rm", "--quiet", "model_repository/segment_int8/configs/cuda.pbtxt.in")
    git(origin, "commit", "--quiet", "--message=a release without it")
    git(clone, "pull", "--quiet", "--ff-only")
    opened(clone)
    assert [path.name for path in mine.parent.iterdir()] == ["mine.pbtxt"]


def test_a_network_of_other_sizes_and_classes_outlives_a_pull(origin, clone):
    repository = opened(clone)
    repository.fit_network({"images": [320, 320, 3]}, ["cat", "dog"])
    name = "network_int8/config.pbtxt"
    fitted = config(clone, name)
    assert git(clone, "status", "--porcelain") == ""

    change(origin, f"{name}.in", "max_batch_size: 16", "max_batch_size: 12")
    git(clone, "pull", "--quiet", "--ff-only")
    opened(clone)
    after = config(clone, name)
    assert after.max_batch_size == 12
    assert list(after.input[0].dims) == [320, 320, 3]
    assert after.parameters == fitted.parameters


def test_every_step_that_decodes_stretches_where_the_network_wants_it(clone):
    repository = opened(clone)
    for stretch in (True, False):
        repository.fit_network({}, ["cat"], {"least_iou": 1.0}, stretch=stretch)
        fits = {
            str(path.relative_to(repository.path)): config(clone, path.relative_to(repository.path)).parameters
            for path in repository.path.rglob("*.pbtxt")
        }
        stretched = {name for name, found in fits.items() if "image_fit" in found}
        cuda = {f"network_{precision}/configs/cuda.pbtxt" for precision in ("fp32", "fp16", "int8")}
        assert stretched == ({"preprocess/config.pbtxt", *cuda} if stretch else set())
        assert {name for name, found in fits.items() if "least_iou" in found} == {"postprocess/config.pbtxt", *cuda}


def test_what_a_person_changed_stays(origin, clone):
    opened(clone)
    path = clone / "model_repository/admission/config.pbtxt"
    path.write_text(path.read_text().replace('"2000"', '"900"'))
    assert config(clone, "admission/config.pbtxt").parameters["max_latency_ms"].string_value == "900"
    template = origin / "model_repository/admission/config.pbtxt.in"
    template.write_text(template.read_text() + 'parameters [ { key: "new", value: { string_value: "1" } } ]\n')
    git(origin, "commit", "--quiet", "--all", "--message=a release")
    git(clone, "pull", "--quiet", "--ff-only")
    ModelRepository.existing(clone / "model_repository")  # what serves alone takes the new templates, too
    parameters = config(clone, "admission/config.pbtxt").parameters
    assert parameters["max_latency_ms"].string_value == "900"
    assert parameters["new"].string_value == "1"


def test_a_configuration_of_unknown_origin_is_kept(clone):
    repository = opened(clone)
    add_versions(repository, 2)
    promote_one(repository, "int8", 2)
    for base in (clone / "model_repository").rglob(".*.base"):
        base.unlink()
    opened(clone)
    assert list(config(clone).version_policy.specific.versions) == [2]


def test_a_copy_has_the_shipped_configurations_and_no_templates(tmp_path):
    folder = ModelRepository.open(tmp_path / "repository").path
    names = [path.name for path in folder.rglob("*")]
    assert "config.pbtxt" in names
    assert not [name for name in names if name.endswith((".in", ".base"))]
