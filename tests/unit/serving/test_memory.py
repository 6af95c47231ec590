"""Deaths for lack of memory, from the files in which the kernel counts them."""

import subprocess
import sys

import pytest

from serving.memory import FIRST_TO_END, MemoryDeaths

VERSION_1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
VERSION_2 = "low 0\nhigh 0\nmax 7\noom {0}\noom_kill {0}\noom_group_kill 0\n"


@pytest.mark.parametrize("text", [VERSION_1, VERSION_2])
def test_deaths_are_counted_once_and_the_limit_is_named(tmp_path, text):
    events, limit = tmp_path / "events", tmp_path / "limit"
    events.write_text(text.format(3))
    limit.write_text(f"{1 << 30}\n")
    deaths = MemoryDeaths(((tmp_path / "not there", limit), (events, limit)))
    assert deaths.cause() == ""
    events.write_text(text.format(5))
    cause = deaths.cause()
    assert "2 process(es): out of memory, the limit is 1.0 GiB" in cause
    assert "MEMORY_LIMIT" in cause
    assert deaths.cause() == ""


def test_a_container_without_a_limit(tmp_path):
    events, limit = tmp_path / "events", tmp_path / "limit"
    events.write_text("oom_kill 0\n")
    limit.write_text("max\n")
    deaths = MemoryDeaths(((events, limit),))
    events.write_text("oom_kill 1\n")
    assert "out of memory; raise it" in deaths.cause()


def test_a_process_asks_to_be_the_first_to_end():
    code = "from serving.memory import end_first; end_first(); print(open('/proc/self/oom_score_adj').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == FIRST_TO_END
