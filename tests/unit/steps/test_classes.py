import json
import os

import pytest

from pipeline.errors import ParameterError
from pipeline.parameters import RequestParameters
from steps.classes import class_count


def manifest(repository, name, text):
    path = repository / name / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_manifests_say_how_many_classes_there_are(tmp_path):
    assert class_count(tmp_path) is None
    manifest(tmp_path, "network_fp32/1", "broken")
    manifest(tmp_path, "network_fp32/2", json.dumps({"source": {}}))
    assert class_count(tmp_path) is None
    path = manifest(tmp_path, "network_int8/3", json.dumps({"source": {"num_classes": 3}}))
    assert class_count(tmp_path) == 3
    path.write_text(json.dumps({"source": {"num_classes": 80}}))
    os.utime(path, ns=(1, 1))
    assert class_count(tmp_path) == 80


def test_classes_that_the_network_does_not_have_are_refused():
    RequestParameters.parse({"classes": "0,2"}).check_classes(3)
    RequestParameters.parse({"classes": "99"}).check_classes(None)
    RequestParameters.parse({}).check_classes(1)
    with pytest.raises(ParameterError, match="names 3, 99, which the network does not have; allowed: 0 to 2"):
        RequestParameters.parse({"classes": "99,1,3"}).check_classes(3)
    with pytest.raises(ParameterError, match="allowed: 0, its only class"):
        RequestParameters.parse({"classes": "99"}).check_classes(1)
