"""The description of the machine in a report."""

import pytest

from load.machine import describe_machine, gpu_name


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Makes a program of that name the only one there is."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return write


def test_every_gpu_is_named_with_its_driver(nvidia_smi):
    nvidia_smi('echo "NVIDIA H100 80GB HBM3, 580.159.04"; echo "NVIDIA L4, 580.159.04"')
    assert gpu_name() == "NVIDIA H100 80GB HBM3, 580.159.04; NVIDIA L4, 580.159.04"
    assert describe_machine()["gpu"] == gpu_name()


def test_a_program_without_a_driver_is_no_gpu(nvidia_smi):
    nvidia_smi("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9")
    assert gpu_name() is None


def test_a_machine_without_the_program_has_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_machine()["gpu"] == "none"
