"""The shipped model repository against the contract, and through the protobuf that Triton reads it with."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline import contract
from repository.store import SHIPPED_REPOSITORY, write_config

CONFIGS = sorted(SHIPPED_REPOSITORY.rglob("*.pbtxt"))
TYPES = {
    "BYTES": "TYPE_STRING",
    "FP32": "TYPE_FP32",
    "FP16": "TYPE_FP16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "UINT8": "TYPE_UINT8",
}
SPECS = {
    spec.name: spec
    for spec in (
        contract.IMAGE,
        contract.IMAGES,
        contract.GEOMETRY,
        contract.ADMISSION,
        contract.CANDIDATES,
        contract.PROTOTYPES,
        *contract.RESPONSE_TENSORS,
    )
}


def parse(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def test_every_model_is_there():
    names = {path.parent.name for path in CONFIGS if path.name == "config.pbtxt"}
    expected = set(contract.SHARED_MODELS)
    for precision in contract.PRECISIONS:
        expected |= {contract.network_model(precision), contract.ensemble_model(precision)}
    assert names == expected
    for precision in contract.PRECISIONS:
        assert (SHIPPED_REPOSITORY / contract.network_model(precision) / "configs" / "cpu.pbtxt").is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(SHIPPED_REPOSITORY)))
def test_configuration_round_trips(path, tmp_path):
    config = parse(path)
    write_config(tmp_path / "config.pbtxt", config)
    assert parse(tmp_path / "config.pbtxt") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(SHIPPED_REPOSITORY)))
def test_tensors_are_those_of_the_contract(path):
    config = parse(path)
    folder = path.parent.parent if path.parent.name == "configs" else path.parent
    assert config.name == folder.name
    assert config.max_batch_size >= contract.MAX_REQUEST_BATCH
    for tensor in [*config.input, *config.output]:
        spec = SPECS[tensor.name]
        assert model_config_pb2.DataType.Name(tensor.data_type) == TYPES[spec.dtype]
        assert len(tensor.dims) == len(spec.shape)
        assert all(wanted in (-1, size) for wanted, size in zip(spec.shape, tensor.dims, strict=True))


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_ensembles_chain_the_steps(precision):
    config = parse(SHIPPED_REPOSITORY / contract.ensemble_model(precision) / "config.pbtxt")
    assert [step.model_name for step in config.ensemble_scheduling.step] == [
        contract.ADMISSION_MODEL,
        contract.PREPROCESS_MODEL,
        contract.network_model(precision),
        contract.POSTPROCESS_MODEL,
    ]
    assert [tensor.name for tensor in config.output] == [spec.name for spec in contract.RESPONSE_TENSORS]
    assert config.max_batch_size == contract.MAX_REQUEST_BATCH


@pytest.mark.parametrize("model", [contract.network_model, contract.ensemble_model])
def test_the_precisions_have_one_configuration(model):
    """Each file differs only in the precision, and in the versions that were promoted since."""

    def config_of(path, precision):
        config = text_format.Parse(path.read_text().replace(precision, "PRECISION"), model_config_pb2.ModelConfig())
        config.ClearField("version_policy")
        return config

    places = ("config.pbtxt", "configs/cpu.pbtxt", "configs/cuda.pbtxt")
    for place in places if model is contract.network_model else places[:1]:
        configs = [config_of(SHIPPED_REPOSITORY / model(one) / place, one) for one in contract.PRECISIONS]
        assert configs[0] == configs[1] == configs[2], place


@pytest.mark.parametrize("precision", contract.PRECISIONS)
def test_both_profiles_have_the_same_tensors(precision):
    folder = SHIPPED_REPOSITORY / contract.network_model(precision)
    tensorrt, cpu = parse(folder / "config.pbtxt"), parse(folder / "configs" / "cpu.pbtxt")
    assert list(tensorrt.input) == list(cpu.input)
    assert list(tensorrt.output) == list(cpu.output)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(SHIPPED_REPOSITORY)))
def test_no_queue_of_triton_is_bounded(path):
    """Before 26.03 an ensemble never answers a request whose step's queue is full; admission control sheds load."""
    batching = parse(path).dynamic_batching
    assert batching.default_queue_policy.max_queue_size == 0
    assert batching.default_queue_policy.default_timeout_microseconds == 0
    assert not batching.priority_queue_policy


def test_the_latency_bound_is_configured():
    parameters = parse(SHIPPED_REPOSITORY / "admission" / "config.pbtxt").parameters
    assert int(parameters["max_latency_ms"].string_value) > 0
