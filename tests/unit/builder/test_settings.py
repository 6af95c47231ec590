from pathlib import Path

import pytest
import yaml

from builder.settings import BuildSettings, SettingsError, load_settings

SHIPPED = Path(__file__).resolve().parents[3] / "builder" / "builder.yaml"


def test_the_shipped_file_documents_every_entry_with_its_default():
    assert load_settings(SHIPPED, {}) == BuildSettings()

    def entries(values, prefix=""):
        for name, value in values.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from entries(value, f"{prefix}{name}.")

    assert set(entries(yaml.safe_load(SHIPPED.read_text()))) == set(entries(BuildSettings().model_dump()))


def test_the_command_line_goes_first(tmp_path):
    path = tmp_path / "builder.yaml"
    path.write_text("plan: {max_batch: 32}\nprecisions: [int8, fp32]\n")
    assert load_settings(path, {}).plan.max_batch == 32
    settings = load_settings(path, {"plan.max_batch": 64, "plan.opt_batch": None, "top_k": 50})
    assert (settings.plan.max_batch, settings.plan.opt_batch, settings.top_k) == (64, 8, 50)
    assert settings.precisions == ("fp32", "int8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gates: {int8: {f1: 3, mask_iou: 0.9}}", ("gates.int8.f1", "3")),
        ("plan: {max_batch: many}", ("plan.max_batch", "many")),
        ("plan: {min_batch: 9}", ("plan", "must not fall")),
        ("plan: {min_batch: 0}", ("plan.min_batch", "greater than or equal to 1")),
        ("plan: {opt_batch: 32}", ("plan", "opt_batch 32, max_batch 16 must not fall")),
        ("plan: {max_batch: 1000}", ("plan.max_batch", "less than or equal to 256")),
        ("plan: {workspace_mib: 0}", ("plan.workspace_mib", "greater than or equal to 16")),
        ("plan: {hardware_compatible: all}", ("plan.hardware_compatible", "same_compute_capability")),
        ("plan: {optimization_level: 6}", ("plan.optimization_level", "less than or equal to 5")),
        ("profil: cpu", ("profil", "Extra inputs")),
        ("precisions: [fp32, fp8]", ("precisions", "fp32, fp16, int8")),
        ("profile: gpu", ("profile", "gpu")),
        ("calibration: {method: random}", ("calibration.method", "random")),
        ("- a list", ("expected entries",)),
        ("a: [", ("not YAML",)),
    ],
)
def test_faults_name_the_entry(tmp_path, text, words):
    path = tmp_path / "builder.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {})
    for word in (str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xf6", b"[" * 20_000, b"a: 2026-99-99", b"\x00", b"? [" * 2000])
def test_what_is_no_yaml_is_refused(tmp_path, content):
    path = tmp_path / "builder.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"not YAML"):
        load_settings(path, {})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml"):
        load_settings(tmp_path / "none.yaml", {})


def test_a_section_that_is_no_section(tmp_path):
    path = tmp_path / "builder.yaml"
    path.write_text("plan: 3")
    with pytest.raises(SettingsError, match="plan"):
        load_settings(path, {"plan.max_batch": 4})


def test_the_manifest_gets_names_of_paths_alone(tmp_path):
    plain = load_settings(None, {"onnx": tmp_path / "a.onnx", "calibration.images": (tmp_path / "b",)}).plain()
    assert plain["onnx"] == "a.onnx"
    assert plain["calibration"]["images"] == ["b"]
    assert str(tmp_path) not in str(plain)
