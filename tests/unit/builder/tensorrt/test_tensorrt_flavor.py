from __future__ import annotations

from types import ModuleType

import pytest

from repository.errors import FlavorError
from repository.flavor import detect_flavor, parse_version


def importer(**modules: str | None):
    """An importer that knows these modules; None makes an empty package, as type stubs do."""

    def import_module(name: str) -> ModuleType:
        if name not in modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = ModuleType(name)
        if modules[name] is not None:
            module.Builder = object
            module.__version__ = modules[name]
        return module

    return import_module


@pytest.mark.parametrize(
    ("modules", "name", "suffix", "loads"),
    [
        ({"tensorrt": "10.3.0"}, "tensorrt-10", ".plan", True),
        ({"tensorrt": "10.16.1.11"}, "tensorrt-10", ".plan", True),
        ({"tensorrt": "11.4.1"}, "tensorrt-11", ".plan", True),
        ({"tensorrt_rtx": "1.7.1.116"}, "tensorrt-rtx", ".rtxplan", False),
        ({"tensorrt_rtx_bindings": "1.7.1.116"}, "tensorrt-rtx", ".rtxplan", False),
        ({"tensorrt": "11.4.1", "tensorrt_rtx_bindings": "1.7.1"}, "tensorrt-11", ".plan", True),
        ({"tensorrt": None, "tensorrt_rtx_bindings": "1.7.1"}, "tensorrt-rtx", ".rtxplan", False),
    ],
)
def test_the_installed_flavor_is_found(modules, name, suffix, loads):
    flavor = detect_flavor(import_module=importer(**modules))
    assert (flavor.name, flavor.plan_suffix) == (name, suffix)
    assert flavor.is_rtx is not loads


def test_a_preferred_family_is_taken():
    both = importer(tensorrt="11.4.1", tensorrt_rtx_bindings="1.7.1")
    assert detect_flavor("tensorrt-rtx", both).is_rtx
    with pytest.raises(FlavorError, match="no usable tensorrt-rtx is installed"):
        detect_flavor("tensorrt-rtx", importer(tensorrt="11.4.1"))
    with pytest.raises(FlavorError, match="allowed: tensorrt, tensorrt-rtx"):
        detect_flavor("cuda", both)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["8.6.1", "9.2.0.5", "10.0.1", "10.1.0", "10.2.0", "10.2.0.19"])
def test_old_ones_are_refused_with_advice_even_beside_rtx(version):
    with pytest.raises(FlavorError, match=r"(?s)Upgrade TensorRT to 10\.3 or newer, or to 11.*fp16") as caught:
        detect_flavor(import_module=importer(tensorrt=version, tensorrt_rtx_bindings="1.7.1"))
    assert version in str(caught.value)


def test_10_2_is_refused_for_its_int8():
    with pytest.raises(FlavorError, match=r"10\.2\.0 builds INT8 plans that are known to be bad"):
        detect_flavor(import_module=importer(tensorrt="10.2.0"))


def test_unknown_majors_are_refused():
    with pytest.raises(FlavorError, match=r"known to work: TensorRT 10\.x, 11\.x"):
        detect_flavor(import_module=importer(tensorrt="12.0.0"))
    with pytest.raises(FlavorError, match=r"known to work: TensorRT-RTX 1\.x"):
        detect_flavor(import_module=importer(tensorrt_rtx="2.0.0"))


def test_none_installed_names_the_commands():
    with pytest.raises(FlavorError, match="pip install tensorrt-rtx-cu13-libs") as caught:
        detect_flavor(import_module=importer())
    assert "pip install 'tensorrt>=10.3,<12'" in str(caught.value)
    assert "tensorrt: not installed" in str(caught.value)


def test_a_library_that_does_not_load_says_why():
    def broken(name: str) -> ModuleType:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    with pytest.raises(FlavorError, match=r"does not load \(libcudart\.so\.13"):
        detect_flavor(import_module=broken)


def test_versions():
    assert parse_version("10.13.0.35") == (10, 13, 0, 35)
    assert parse_version("10.0.0b6") == (10, 0, 0)
    with pytest.raises(FlavorError, match="not a version number"):
        parse_version("unknown")
    with pytest.raises(FlavorError, match="not a version number"):
        parse_version("9" * 5000)
