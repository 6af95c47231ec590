"""A minute of mixed traffic with promotions: every answer right, nothing fails, nothing grows."""

from __future__ import annotations

import pytest

from tests.chaos import soak

pytestmark = pytest.mark.server


def test_a_minute_of_mixed_traffic(patient_repository, tmp_path):
    result = soak.run(patient_repository, tmp_path, minutes=1.0, seed=1)
    assert result["faults"] == []
    assert result["wrong_answers"] == 0
    assert result["switches"] >= 1  # on a busy machine one takes half a minute
    assert result["bad_inputs_refused"] > 10
    assert len(result["requests_by_client"]) == 5
    assert (tmp_path / "soak.json").is_file()
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
