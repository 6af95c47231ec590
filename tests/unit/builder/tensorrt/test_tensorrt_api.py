"""The builder calls only what TensorRT 10.x, 11.x and TensorRT-RTX all have.

10.x is known from tensorrt-stubs 10.13, TensorRT-RTX from its module, 11.x from NVIDIA's list of what it removed.
tensorrt-stubs is read where it is installed (``pip install --no-deps tensorrt-stubs==10.13.0.35.1``), or in the folder
that the environment variable TENSORRT_STUBS names.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SOURCES = [*sorted((ROOT / "builder" / "tensorrt").glob("*.py")), ROOT / "repository" / "flavor.py"]

# https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/api/migration/tensorrt-10x-to-11x-python-api-reference.html, and
# for the members of Builder and NetworkDefinitionCreationFlag that are gone the class's page:
# https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/_static/python-api/infer/Core/Builder.html
REMOVED_NAMES = {
    "BuilderFlag.FP16",
    "BuilderFlag.INT8",
    "BuilderFlag.FP8",
    "BuilderFlag.BF16",
    "BuilderFlag.INT4",
    "BuilderFlag.FP4",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS",
    "BuilderFlag.DIRECT_IO",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "IAlgorithm",
    "IAlgorithmContext",
    "IAlgorithmIOInfo",
    "IAlgorithmSelector",
    "IAlgorithmVariant",
    "IInt8Calibrator",
    "IInt8EntropyCalibrator",
    "IInt8EntropyCalibrator2",
    "IInt8LegacyCalibrator",
    "IInt8MinMaxCalibrator",
    "CalibrationAlgoType",
    "QuantizationFlag",
}
REMOVED_MEMBERS = {
    "platform_has_fast_fp16",
    "platform_has_fast_int8",
    "platform_has_tf32",
    "algorithm_selector",
    "int8_calibrator",
    "set_calibration_profile",
    "get_calibration_profile",
    "set_quantization_flag",
    "get_quantization_flag",
    "clear_quantization_flag",
    "quantization_flags",
    "device_memory_size",
    "device_memory_size_v2",
    "device_memory_size_for_profile",
    "reset_precision",
    "precision_is_set",
    "set_output_type",
    "reset_output_type",
    "output_type_is_set",
    "set_dynamic_range",
    "reset_dynamic_range",
    "dynamic_range",
}


def dotted(node: ast.Attribute) -> str | None:
    """``A.B`` of ``trt.A.B``; None for an attribute of something else."""
    parts = []
    current: ast.expr = node
    while isinstance(current, ast.Attribute):
        parts.append(current.attr)
        current = current.value
    return ".".join(reversed(parts)) if isinstance(current, ast.Name) and current.id == "trt" else None


def attributes(tree: ast.AST) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def names_used(sources: list[str]) -> set[str]:
    return {name for text in sources for node in attributes(ast.parse(text)) if (name := dotted(node))}


def members_used(sources: list[str]) -> set[str]:
    return {node.attr for text in sources for node in attributes(ast.parse(text)) if dotted(node) is None}


@pytest.fixture(scope="module")
def sources() -> list[str]:
    return [path.read_text() for path in SOURCES]


def repair(text: str) -> str:
    """Repair the generated stubs: parameters called ``in``, and one without a default behind some with."""
    lines = text.splitlines()
    for _ in range(20):
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            index = (error.lineno or 1) - 1
            if "default" in error.msg:
                lines[index] = re.sub(r": (\w+)(?=[,)])", r": \1 = ...", lines[index])
            else:
                lines[index] = re.sub(r"\bin: ", "in_: ", lines[index])
        else:
            return "\n".join(lines) + "\n"
    raise AssertionError("the stubs have further syntax errors")


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    """A folder with repaired stubs of TensorRT 10.13."""
    folder = os.environ.get("TENSORRT_STUBS")
    try:
        source = (
            Path(folder) if folder else Path(str(importlib.metadata.distribution("tensorrt-stubs").locate_file("")))
        )
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tensorrt-stubs is missing; make test-tensorrt runs it")
    target = tmp_path_factory.mktemp("stubs")
    for package in ("tensorrt", "tensorrt_bindings"):
        shutil.copytree(source / package, target / package)
    path = target / "tensorrt_bindings" / "tensorrt.pyi"
    path.write_text(repair(path.read_text()))
    return target


@pytest.fixture(scope="module")
def ten(stubs) -> dict[str, set[str]]:
    """Members of every class of TensorRT 10.13, nested classes included as ``Outer.Inner``."""
    found: dict[str, set[str]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> set[str]:
        names: set[str] = set()
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                found[prefix + statement.name] = visit(statement.body, f"{prefix}{statement.name}.")
                names.add(statement.name)
            elif isinstance(statement, ast.FunctionDef):
                names.add(statement.name)
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                names.add(statement.target.id)
        return names

    found[""] = visit(ast.parse((stubs / "tensorrt_bindings" / "tensorrt.pyi").read_text()).body, "")
    return found


def missing_from_ten(names: set[str], ten: dict[str, set[str]]) -> set[str]:
    return {name for name in names if name.rpartition(".")[2] not in ten.get(name.rpartition(".")[0], set())}


def removed_in_eleven(names: set[str], members: set[str]) -> set[str]:
    return {name for name in names if name in REMOVED_NAMES or name.split(".")[0] in REMOVED_NAMES} | (
        members & REMOVED_MEMBERS
    )


def test_tensorrt_10_has_every_name(sources, ten):
    names = names_used(sources)
    assert {"Builder", "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ILogger.Severity"} <= names
    assert missing_from_ten(names, ten) == set()


def test_tensorrt_11_removed_none_of_them(sources):
    assert removed_in_eleven(names_used(sources), members_used(sources)) == set()


def test_tensorrt_rtx_has_every_name_and_member(sources, ten):
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is missing; make test-tensorrt runs it")
    for name in names_used(sources):
        found: object = rtx
        for part in name.split("."):
            assert hasattr(found, part), f"TensorRT-RTX {rtx.__version__} has no {name}"
            found = getattr(found, part)
    of_ten = set().union(*(members for name, members in ten.items() if name))
    of_rtx = {member for value in vars(rtx).values() if isinstance(value, type) for member in dir(value)}
    assert (members_used(sources) & of_ten) - of_rtx == set()


def test_the_check_finds_what_one_of_them_lacks(ten):
    code = ["config.set_flag(trt.BuilderFlag.FP16)\nconfig.int8_calibrator = trt.IInt8EntropyCalibrator2()\n"]
    assert removed_in_eleven(names_used(code), members_used(code)) == {
        "BuilderFlag.FP16",
        "IInt8EntropyCalibrator2",
        "int8_calibrator",
    }
    assert missing_from_ten(names_used(["trt.LayerType.MOE, trt.BuilderFlag.FP16, trt.Nonsense"]), ten) == {
        "LayerType.MOE",
        "Nonsense",
    }


def test_types_hold_against_the_stubs(stubs):
    pytest.importorskip("mypy", reason="mypy is missing; make test-unit installs it")

    def problems(*extra: str) -> list[str]:
        command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-incremental", *extra]
        environment = {**os.environ, "MYPYPATH": str(stubs)}
        shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert shown.returncode in (0, 1), shown.stderr
        return shown.stdout.splitlines()

    # The stubs have faults too; only the builder's lines count.
    assert [line for line in problems("-p", "builder.tensorrt") if line.startswith("builder/tensorrt/")] == []
    (stubs / "probe.py").write_text("import tensorrt as trt\n\ntrt.Builder(trt.Logger()).nonsense\n")
    assert any('"Builder" has no attribute "nonsense"' in line for line in problems("-m", "probe"))
