import numpy as np

from pipeline import contract
from pipeline.letterbox import Geometry
from pipeline.parameters import RequestParameters
from pipeline.postprocess import pack_response, postprocess


def network_outputs(rng, count):
    """Candidates and prototypes of ``count`` instances."""
    candidates = np.zeros((1000, 38), np.float32)
    candidates[:count, 0] = np.sort(rng.uniform(0.3, 1, count))[::-1]
    candidates[:count, 1:3] = rng.uniform(100, 540, (count, 2))
    candidates[:count, 3:5] = rng.uniform(10, 150, (count, 2))
    candidates[:count, 5] = rng.integers(0, 80, count)
    candidates[:count, 6:] = rng.standard_normal((count, 32))
    return candidates, rng.standard_normal((32, 160, 160)).astype(np.float16)


def test_the_same_answer_alone_and_in_a_batch():
    rng = np.random.default_rng(3)
    sizes = [(480, 640), (1080, 1920), (50, 60)]
    inputs = [
        (*network_outputs(rng, count), Geometry.fit(*size, 640, 640))
        for count, size in zip((5, 0, 40), sizes, strict=True)
    ]
    together = pack_response([postprocess(*values, RequestParameters()) for values in inputs])
    for index, values in enumerate(inputs):
        alone = pack_response([postprocess(*values, RequestParameters())])
        n = int(alone["num_detections"][0, 0])
        assert together["num_detections"][index, 0] == n
        for name in ("boxes", "scores", "class_ids", "masks"):
            np.testing.assert_array_equal(together[name][index, :n], alone[name][0, :n])
        np.testing.assert_array_equal(together["image_size"][index], sizes[index])


def test_response_has_the_tensors_of_the_contract():
    rng = np.random.default_rng(4)
    inputs = [(*network_outputs(rng, count), Geometry.fit(300, 400, 640, 640)) for count in (2, 0)]
    response = pack_response([postprocess(*values, RequestParameters(mask_format="none")) for values in inputs])
    assert list(response) == [spec.name for spec in contract.RESPONSE_TENSORS]
    kinds = {"FP32": np.float32, "INT32": np.int32, "BYTES": np.object_}
    for spec in contract.RESPONSE_TENSORS:
        array = response[spec.name]
        assert array.dtype == kinds[spec.dtype]
        assert array.shape[0] == 2
        assert all(wanted in (-1, size) for wanted, size in zip(spec.shape, array.shape[1:], strict=True))
    assert response["masks"][1].tolist() == [b""] * response["masks"].shape[1]
    assert not response["boxes"][1].any()


def test_an_image_without_detections_still_has_a_row():
    rng = np.random.default_rng(5)
    response = pack_response([postprocess(*network_outputs(rng, 0), Geometry.fit(9, 9, 640, 640), RequestParameters())])
    assert response["num_detections"].tolist() == [[0]]
    assert response["boxes"].shape == (1, 1, 4)
