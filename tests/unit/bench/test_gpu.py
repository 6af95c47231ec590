from argparse import Namespace

import pytest

from bench.gpu import copy_repository, draw, host_limit
from repository.profiles import GPU_STEPS
from repository.store import SHIPPED_REPOSITORY, read_config


def result(gpu):
    load = {"client_ms": 1.0, "images_per_s": 800.0, "p50_ms": 20.0, "p99_ms": 40.0}
    usage = {"other_ms": 8.0, "session_ms": 1.0, "by_process_ms": {"preprocess": 6.0, "tritonserver": 3.0}}
    return {
        "precision": "fp16",
        "profile": "cuda",
        "gpu": gpu,
        "cores": 16,
        "bounds": {"network alone, batch 1": 200.0, "network alone, batch 16": 1400.0, "PCIe, the files": 90000.0},
        "loads": [{**load, "in_flight": number, "usage": usage} for number in (1, 16, 64)],
    }


def test_the_host_is_full_when_every_core_is_busy():
    assert host_limit(result("a GPU")) == pytest.approx(16 * 1000 / 10)


@pytest.mark.parametrize(("gpu", "count"), [("a GPU", 2), (None, 1)])
def test_a_picture_is_drawn(tmp_path, gpu, count):
    draw([result(gpu)] * count, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


def test_the_networks_instances_are_set_in_a_copy(tmp_path):
    before = (SHIPPED_REPOSITORY / "network_fp16" / "configs" / "cuda.pbtxt").read_text()
    options = Namespace(repository=SHIPPED_REPOSITORY, profile="cuda", network_instances=3, masks_with_network=False)
    copy = copy_repository(options, tmp_path / "copy")
    (group,) = read_config(copy / "network_fp16" / "configs" / "cuda.pbtxt").instance_group
    assert group.count == 3
    assert (SHIPPED_REPOSITORY / "network_fp16" / "configs" / "cuda.pbtxt").read_text() == before


RESULTS = ["num_detections", "boxes", "scores", "class_ids", "masks", "image_size"]


@pytest.mark.parametrize(
    ("together", "inputs", "outputs", "models"),
    [
        (False, ["images"], ["candidates", "prototypes"], ["preprocess", "network_fp16", "postprocess"]),
        (True, ["images", "geometry", "admission"], RESULTS, ["preprocess", "network_fp16"]),
    ],
)
def test_a_copy_has_the_network_between_steps_on_the_gpu(tmp_path, together, inputs, outputs, models):
    options = Namespace(
        repository=SHIPPED_REPOSITORY, profile=GPU_STEPS, network_instances=2, masks_with_network=together
    )
    copy = copy_repository(options, tmp_path / "copy")
    network = read_config(copy / "network_fp16" / "configs" / "cuda.pbtxt")
    assert [tensor.name for tensor in network.input] == inputs
    assert [tensor.name for tensor in network.output] == outputs
    parameters = {name: network.parameters[name].string_value for name in ("provider", "FORCE_CPU_ONLY_INPUT_TENSORS")}
    assert parameters == {"provider": "cuda", "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
    assert network.instance_group[0].count == 2
    ensemble = read_config(copy / "segment_fp16" / "configs" / "cuda.pbtxt")
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["admission", *models]
    assert sorted(steps[2].input_map) == sorted(inputs)
    assert sorted(steps[-1].output_map) == sorted(tensor.name for tensor in ensemble.output)
