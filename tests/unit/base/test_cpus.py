import os

import pytest

from base.cpus import usable_cpus

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", CORES),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", min(2, CORES)),
        ("99999999 100000", CORES),
        ("nonsense", CORES),
        ("100000 0", CORES),
    ],
)
def test_a_containers_bound_counts(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", CORES), ("100000", 1)])
def test_the_older_control_groups_too(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == expected


def test_without_control_groups_the_affinity_counts(tmp_path):
    assert usable_cpus(tmp_path) == CORES
