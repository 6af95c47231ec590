"""Versions that a trusted key signed, and everything that is refused where one is asked for."""

import base64
import shutil
import subprocess

import pytest

from base.progress import Steps
from builder import add_plan as plans
from builder.__main__ import main
from builder.tensorrt.compile import CompiledPlan
from builder.tensorrt.layers import LayerCounts
from repository.errors import RepositoryError
from repository.flavor import Flavor
from repository.integrity import sign, verify, version_faults
from repository.signatures import SIGNATURE_NAME, TRUSTED_KEYS_VARIABLE, SigningKey, TrustedKeys, make_key
from repository.store import SHIPPED_REPOSITORY, ModelRepository, read_config, write_config
from serving.errors import ServingError
from serving.preflight import preflight
from serving.server import ServerOptions, TritonServer
from tests.unit.repository.helpers import L4, run
from tests.versions import H100_PLAN, add_version, promote_one, rewrite, rollback_one


@pytest.fixture
def key(tmp_path):
    make_key(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def public(key):
    return key.with_name("mine.pub")


@pytest.fixture
def repository(tmp_path, key, public):
    """Version 1 is signed, and only such versions are accepted."""
    ModelRepository.open(tmp_path / "repository")
    repository = ModelRepository.existing(tmp_path / "repository", public)
    add_version(repository)
    put_signature(repository, key)
    return repository


def put_signature(repository, key, version=1):
    return sign(repository, "int8", version, SigningKey.read(key, repository.path))


def folder(repository, version=1):
    return repository.version_folder("int8", version)


def is_refused_everywhere(repository, public, problem, version=1):
    """By verify, promote, rollback, preflight and the server's start."""
    assert any(problem in str(fault) for fault in verify(repository, "int8", version).faults)
    with pytest.raises(RepositoryError, match=problem):
        promote_one(repository, "int8", version)
    with pytest.raises(RepositoryError, match=problem):
        rollback_to(repository, version)
    repository.promote("int8", "cpu", version)
    status = next(one for one in preflight(repository, "cpu").models if one.precision == "int8")
    assert any(problem in reason for reason in status.reasons)
    with pytest.raises(ServingError, match=problem):
        TritonServer(ServerOptions(repository.path, trusted_keys=public)).start()
    return True


def rollback_to(repository, version):
    """Roll back from a later version, which is promoted without being asked about."""
    careless = ModelRepository(repository.path)
    later = add_version(careless).version
    promote_one(careless, "int8", version)
    promote_one(careless, "int8", later)
    rollback_one(repository, "int8")


def test_a_signed_version_is_accepted(repository):
    assert verify(repository).faults == []
    assert promote_one(repository, "int8", 1).version == 1
    status = next(one for one in preflight(repository, "cpu").models if one.precision == "int8")
    assert status.ready


def test_openssl_agrees(repository, key, public, tmp_path):
    """Its signature is ours, and the other way round."""
    manifest, signature = folder(repository) / "manifest.json", folder(repository) / SIGNATURE_NAME
    command = ["openssl", "pkeyutl", "-rawin", "-in", str(manifest)]
    subprocess.run(
        [*command, "-verify", "-pubin", "-inkey", public, "-sigfile", signature], check=True, capture_output=True
    )
    theirs = tmp_path / "theirs"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", theirs], check=True)
    subprocess.run(["openssl", "pkey", "-in", theirs, "-pubout", "-out", f"{theirs}.pub"], check=True)
    (tmp_path / "signature").touch()
    subprocess.run([*command, "-sign", "-inkey", theirs, "-out", tmp_path / "signature"], check=True)
    rewrite(signature, (tmp_path / "signature").read_bytes())
    assert (
        ModelRepository.existing(repository.path, tmp_path / "theirs.pub").trusted.problem(folder(repository)) is None
    )
    assert version_faults(repository, "int8", 1)


def test_unsigned(repository, public):
    add_version(repository)
    assert is_refused_everywhere(repository, public, "is not signed", version=2)


def test_without_keys_everything_is_as_before(repository):
    add_version(repository)
    careless = ModelRepository.existing(repository.path)
    assert verify(careless).faults == []
    assert promote_one(careless, "int8", 2).version == 2


def test_another_key(repository, public, tmp_path):
    make_key(tmp_path / "other")
    put_signature(repository, tmp_path / "other")
    assert is_refused_everywhere(repository, public, "not the signature of this manifest.json by a key of")
    public.write_bytes(public.read_bytes() + (tmp_path / "other.pub").read_bytes())  # now either is trusted
    assert verify(ModelRepository.existing(repository.path, public), "int8", 1).faults == []


def test_a_tampered_manifest(repository, public):
    manifest = folder(repository) / "manifest.json"
    rewrite(manifest, manifest.read_bytes().replace(b'"images": 3', b'"images": 9'))
    assert verify(ModelRepository.existing(repository.path), "int8", 1).faults == []  # it is plausible
    assert is_refused_everywhere(repository, public, "not the signature of this manifest.json")


def test_a_version_with_other_files_and_a_manifest_that_fits_them(repository, public):
    add_version(repository, content=b"another network")
    shutil.copyfile(folder(repository) / SIGNATURE_NAME, folder(repository, 2) / SIGNATURE_NAME)
    assert is_refused_everywhere(repository, public, "not the signature of this manifest.json", version=2)


def test_the_signature_of_another_version(repository, public, key):
    add_version(repository)
    put_signature(repository, key, 2)
    rewrite(folder(repository) / SIGNATURE_NAME, (folder(repository, 2) / SIGNATURE_NAME).read_bytes())
    assert is_refused_everywhere(repository, public, "not the signature of this manifest.json")


def test_a_signed_version_under_another_number(repository):
    shutil.copytree(folder(repository), folder(repository, 2))
    with pytest.raises(RepositoryError, match="describes network_int8/1"):
        promote_one(repository, "int8", 2)


@pytest.mark.parametrize("name", ["model.onnx", "model.py"])
def test_every_file_is_covered(repository, name):
    rewrite(folder(repository) / name, b"x" * (folder(repository) / name).stat().st_size)
    assert any(name in fault.problem for fault in version_faults(repository, "int8", 1))


@pytest.mark.parametrize("name", ["more", ".hidden.plan", "manifest.json.sig.old", "sub/model.onnx"])
def test_nothing_lies_beside_what_is_signed(repository, key, name):
    (folder(repository) / name).parent.mkdir(exist_ok=True)
    (folder(repository) / name).write_text("x")
    assert [fault.problem.partition(" ")[0] for fault in version_faults(repository, "int8", 1)] == [name.split("/")[0]]
    with pytest.raises(RepositoryError, match="is not signed"):
        put_signature(repository, key)


@pytest.mark.parametrize("content", [b"", b"x" * 63, b"\0" * 64, b"x" * 1000])
def test_a_signature_that_is_none(repository, content):
    rewrite(folder(repository) / SIGNATURE_NAME, content)
    assert [fault.problem.startswith(SIGNATURE_NAME) for fault in version_faults(repository, "int8", 1)] == [True]


def test_a_signature_is_a_separate_file(repository, tmp_path):
    path = folder(repository) / SIGNATURE_NAME
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert version_faults(repository, "int8", 1)


def test_a_plan_that_is_added_needs_another_signature(repository, public, key, monkeypatch):
    add_version(repository, plans={"model-sm90.plan": H100_PLAN})
    put_signature(repository, key, 2)
    plan = CompiledPlan(b"plan", LayerCounts("a test", {}, {}), "tensorrt", "10.13.0", (1, 8, 16), False, ())
    monkeypatch.setattr(plans, "compile_plan", lambda *_: plan)
    before = (folder(repository, 2) / SIGNATURE_NAME).read_bytes()
    plans.add_plan(repository, "int8", 2, Flavor("tensorrt", (10, 13, 0), None), L4.gpu, Steps())
    assert "is not signed" in version_faults(repository, "int8", 2)[0].problem
    (folder(repository, 2) / SIGNATURE_NAME).write_bytes(before)
    assert "not the signature of this manifest.json" in version_faults(repository, "int8", 2)[0].problem
    put_signature(repository, key, 2)
    assert version_faults(repository, "int8", 2) == []


def test_what_is_damaged_is_not_signed(repository, key):
    rewrite(folder(repository) / "model.onnx", b"NETWORK1")
    with pytest.raises(RepositoryError, match=r"is not signed: model\.onnx has another SHA-256"):
        put_signature(repository, key)


# What lies beside the versions.


def other_code(repository):
    (repository.path / "admission/1/model.py").write_text("import os")


def shadowing_code(repository):
    (repository.path / "preprocess/1/numpy.py").write_text("import os")


def another_version(repository):
    (repository.path / "postprocess/2").mkdir()
    (repository.path / "postprocess/2/model.py").write_text("import os")


def library(repository):
    (repository.path / "segment_int8/libtriton_ensemble.so").write_bytes(b"\x7fELF")


def link(repository):
    path = repository.path / "admission/1"
    path.rename(repository.path / "elsewhere")
    path.symlink_to(repository.path / "elsewhere")


def another_environment(repository):
    change_config(repository, "admission/config.pbtxt", lambda config: config.parameters["EXECUTION_ENV_PATH"])


def another_plan(repository):
    change_config(
        repository, "network_int8/config.pbtxt", lambda config: config.cc_model_filenames.update({"9.0": "../../x"})
    )


def another_backend(repository):
    change_config(repository, "network_int8/configs/cpu.pbtxt", lambda config: setattr(config, "runtime", "libx.so"))


def change_config(repository, name, change):
    config = read_config(repository.path / name)
    change(config)
    write_config(repository.path / name, config)


@pytest.mark.parametrize(
    "change",
    [
        other_code,
        shadowing_code,
        another_version,
        library,
        link,
        another_environment,
        another_plan,
        another_backend,
    ],
)
def test_a_server_would_run_nothing_but_signed_versions_and_shipped_steps(repository, change):
    change(repository)
    assert verify(repository).faults
    assert not preflight(repository, "cpu").models[-1].ready
    assert verify(ModelRepository.existing(repository.path)).faults == []


def test_what_an_operator_sets_is_no_fault(repository):
    def change(config):
        config.instance_group[0].count = 9
        config.parameters["max_latency_ms"].string_value = "9000"
        config.max_batch_size = 4

    change_config(repository, "admission/config.pbtxt", change)
    assert verify(repository).faults == []


# Keys.


def test_the_command_line(tmp_path, capsys, monkeypatch):
    repository = ModelRepository.open(tmp_path / "repository")
    add_version(repository)
    key = tmp_path / "key"
    assert main(["keygen", str(key)]) == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert main(["keygen", str(key)]) == 1
    assert "give another name" in capsys.readouterr().err
    where = ["--repository", str(repository.path)]
    trust = ["--trusted-keys", f"{key}.pub"]
    assert main(["verify", *where, *trust]) == 1
    assert "python -m builder sign network_int8/1 --key FILE" in capsys.readouterr().out
    assert main(["sign", "network_int8/1", "--key", str(key), *where]) == 0
    for command in (["verify"], ["promote", "network_int8/1"]):
        assert main([*command, *where, *trust]) == 0
    (folder(repository) / SIGNATURE_NAME).unlink()
    assert run(repository, "verify") == 0
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, f"{key}.pub")
    assert run(repository, "verify") == 1
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, str(tmp_path / "missing"))
    assert main(["verify", *where]) == 1
    assert "the key cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_private_key_that_others_can_read_is_refused(repository, key, mode):
    key.chmod(mode)
    with pytest.raises(RepositoryError, match=f"can be read by others.*chmod 600 {key}"):
        SigningKey.read(key, repository.path)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_trusted_keys_that_others_can_write_to_are_refused(repository, public, mode):
    public.chmod(mode)
    with pytest.raises(RepositoryError, match="others can write"):
        TrustedKeys.read(public, repository.path)


def test_keys_do_not_lie_in_the_repository(repository, key, public, tmp_path):
    for file, read in ((key, SigningKey.read), (public, TrustedKeys.read)):
        inside = repository.path / file.name
        shutil.copy(file, inside)
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(inside)
        for path in (inside, link):
            with pytest.raises(RepositoryError, match="lies in the repository"):
                read(path, repository.path)


def openssl_key(path, *algorithm):
    subprocess.run(["openssl", "genpkey", "-algorithm", *algorithm, "-out", path], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", path, "-pubout", "-out", f"{path}.pub"], check=True, capture_output=True)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\xff\xfe", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_refused(repository, tmp_path, content):
    path = tmp_path / "file"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(RepositoryError, match=r"no private key in PEM.*keygen"):
        SigningKey.read(path, repository.path)
    path.write_bytes(content.replace(b"PRIVATE", b"PUBLIC"))
    with pytest.raises(RepositoryError, match=r"0 public keys|is broken"):
        TrustedKeys.read(path, repository.path)


def test_a_key_of_another_kind_is_refused(repository, tmp_path):
    openssl_key(tmp_path / "ec", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    (tmp_path / "ec").chmod(0o600)
    with pytest.raises(RepositoryError, match="another kind; allowed: Ed25519"):
        SigningKey.read(tmp_path / "ec", repository.path)
    with pytest.raises(RepositoryError, match="1 public keys, 0 of them Ed25519"):
        TrustedKeys.read(tmp_path / "ec.pub", repository.path)
    (tmp_path / "both").write_bytes((tmp_path / "ec.pub").read_bytes() + (tmp_path / "mine.pub").read_bytes())
    with pytest.raises(RepositoryError, match="2 public keys, 1 of them"):
        TrustedKeys.read(tmp_path / "both", repository.path)


def test_a_public_key_of_an_unknown_kind_is_refused(repository, public, tmp_path):
    der = base64.b64decode(b"".join(public.read_bytes().splitlines()[1:-1]))
    text = base64.b64encode(der.replace(b"\x2b\x65\x70", b"\x2b\x55\x70"))
    (tmp_path / "odd").write_bytes(b"-----BEGIN PUBLIC KEY-----\n" + text + b"\n-----END PUBLIC KEY-----\n")
    with pytest.raises(RepositoryError, match="is broken"):
        TrustedKeys.read(tmp_path / "odd", repository.path)


def test_the_shipped_repository_is_as_shipped(public):
    from repository.shipped import foreign_parts

    assert list(foreign_parts(SHIPPED_REPOSITORY)) == []
