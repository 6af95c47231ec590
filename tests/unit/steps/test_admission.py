import fcntl
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from base.files import private_folder
from base.names import SHM_PREFIX, SHM_PREFIX_VARIABLE, STATE_NAME
from pipeline.errors import BUSY, OverloadError
from steps import admission as steps_admission
from steps.admission import FLOOR_IMAGES, Admission, state_folder, state_path
from tests.strangers import belongs_to_another
from tests.unit.clock import Clock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "admission"


def serve(admission, images, seconds_per_image):
    """Let images in at once, and finish them at a steady rate, as a server that is full does."""
    tickets = [admission.admit(1) for _ in range(images)]
    for ticket in tickets:
        time.sleep(seconds_per_image)
        admission.finish(ticket)


def admitted_at_once(admission, most=200):
    tickets = []
    try:
        while len(tickets) < most:
            tickets.append(admission.admit(1))
    except OverloadError:
        pass
    return tickets


def test_a_few_callers_are_admitted_however_slow_the_server_is(path):
    admission = Admission(path, max_latency_s=1e-3)
    assert len(admitted_at_once(admission)) == FLOOR_IMAGES


def test_the_bound_follows_the_measured_speed(path):
    admission = Admission(path, max_latency_s=0.5)
    for _ in range(4):
        serve(admission, 8, 0.02)
    # 0.5 s at 20 ms an image is 25; the samples of a server that was not full yet lie above its time per image.
    assert 12 <= len(admitted_at_once(admission)) <= 30


def test_long_work_is_refused_for_what_has_waited_too_long(path):
    steps = Admission(path, max_latency_s=0.0)
    assert steps.bound_s == steps.allowed_s == float("inf")
    steps.check_in_time(None, 1e6)
    ticket = Admission(path, max_latency_s=2.0).admit(1)
    assert (steps.bound_s, steps.allowed_s) == (2.0, 1.5)
    steps.check_in_time(ticket, 1.5)
    ticket[1] -= int(1e9)
    steps.check_in_time(ticket, 0.5)
    with pytest.raises(
        OverloadError, match=rf"^{BUSY}: after 1.0 s, this request would take about 1.5 s more; allowed: 2 s in all"
    ):
        steps.check_in_time(ticket, 1.5)
    ticket[1] -= int(60e9)
    steps.check_in_time(ticket, 0.01)  # ordinary work is done however late it is
    ticket[1] = 2**62  # a caller of the step itself may write anything into its ticket
    with pytest.raises(OverloadError):
        steps.check_in_time(ticket, 2.5)


def test_a_full_request_of_ordinary_images_is_no_more_work_than_allowed_whatever_the_bound(path):
    assert Admission(path, max_latency_s=1e-3).allowed_s == 0.5


def test_a_refusal_says_that_the_server_is_busy_and_costs_nothing(path):
    admission = Admission(path, max_latency_s=1e-3)
    admitted_at_once(admission)
    before = admission.images_under_way
    with pytest.raises(
        OverloadError, match=rf"^{BUSY}: with the 8 images under way.* allowed: 0.001 s. Try again later"
    ):
        admission.admit(1)
    assert admission.images_under_way == before


def test_one_stalled_request_does_not_close_the_door(path):
    admission = Admission(path, max_latency_s=0.4)
    for _ in range(4):
        serve(admission, 8, 0.005)
    slow = admission.admit(1)
    time.sleep(0.3)
    admission.finish(slow)
    assert len(admitted_at_once(admission)) > 2 * FLOOR_IMAGES


def test_a_full_request_is_admitted_when_nothing_else_is_under_way(path):
    admission = Admission(path, max_latency_s=1e-3)
    ticket = admission.admit(100)
    assert admission.images_under_way == 100
    with pytest.raises(OverloadError):
        admission.admit(1)
    admission.finish(ticket)
    admission.admit(100)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("steps.admission.time", clock)
    return clock


def test_a_lost_request_stops_counting_once_it_is_late_and_a_later_one_was_answered(path, clock):
    admission = Admission(path, max_latency_s=2.0)
    admission.admit(4)
    clock.now += 20.0
    assert admission.images_under_way == 4  # late, but so may all be
    ticket = admission.admit(1)
    clock.now += 0.1
    admission.finish(ticket)
    assert admission.images_under_way == 0


def test_a_request_that_is_overtaken_by_little_counts_on(path, clock):
    admission = Admission(path, max_latency_s=2.0)
    admission.admit(4)
    clock.now += 0.9
    ticket = admission.admit(1)
    clock.now += 5.0
    admission.finish(ticket)
    assert admission.images_under_way == 4


def test_a_request_of_which_nothing_is_heard_is_given_up(path, clock):
    admission = Admission(path, max_latency_s=2.0)
    admission.admit(4)
    clock.now += 29.0
    assert admission.images_under_way == 4
    clock.now += 2.0
    assert admission.images_under_way == 0


def test_when_all_that_counts_is_lost_one_request_finds_that_out(path, clock):
    admission = Admission(path, max_latency_s=0.5)
    lost = admitted_at_once(admission)
    assert len(lost) == FLOOR_IMAGES
    clock.now += 1.1
    probe = admission.admit(1)
    with pytest.raises(OverloadError):
        admission.admit(1)  # one alone
    clock.now += 0.2
    admission.finish(probe)
    assert admission.images_under_way == 0
    admission.admit(1)


def steady(admission, clock, seconds_per_image, rate, seconds):
    """A server that does one image after the other, and callers at random moments; latencies of the answers."""
    moments = random.Random(0)  # noqa: S311 - no secret
    due, free, latencies, ends = [], 0.0, [], clock.now + seconds
    while clock.now < ends:
        moment = clock.now + moments.expovariate(rate)
        while due and due[0][0] <= moment:
            end, started, ticket = due.pop(0)
            clock.now = end
            admission.finish(ticket)
            latencies.append(end - started)
        clock.now = moment
        try:
            ticket = admission.admit(1)
        except OverloadError:
            continue
        free = max(free, moment) + seconds_per_image
        due.append((free, moment, ticket))
    return latencies


def test_a_slow_server_is_not_flooded(path, clock):
    """What is late is not taken for lost: that would let more in, and make all of them later still."""
    slow = 1.5  # seconds per image, of which a new server knows nothing: it assumes 0.1
    latencies = steady(Admission(path, max_latency_s=2.0), clock, slow, 4 / slow, 120.0)
    assert len(latencies) > 0.9 * 120 / slow
    assert max(latencies) < 1.5 * FLOOR_IMAGES * slow


def test_an_overloaded_server_keeps_the_bound(path, clock):
    latencies = steady(Admission(path, max_latency_s=2.0), clock, 0.06, 4 / 0.06, 60.0)
    assert len(latencies) > 0.9 * 60 / 0.06
    assert np.percentile(latencies, 99) < 1.2 * 2.0


@pytest.mark.parametrize("ticket", [(0, 0, 0), (-1, 1, 1), (10**6, 5, 1), (0, 12345, 1)])
def test_unknown_tickets_are_ignored(path, ticket):
    admission = Admission(path, max_latency_s=1.0)
    admission.admit(1)
    admission.finish(np.array(ticket, np.int64))
    assert admission.images_under_way == 1


def test_finishing_twice_counts_once(path):
    admission = Admission(path, max_latency_s=1.0)
    first = admission.admit(1)
    admission.finish(first)
    second = admission.admit(1)
    assert second[0] == first[0]  # the same slot
    admission.finish(first)
    assert admission.images_under_way == 1


def test_processes_share_the_count(path):
    mine = Admission(path, max_latency_s=60.0)
    ticket = mine.admit(3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(_admit_and_finish, (path, ticket))
    assert mine.images_under_way == 2


def _admit_and_finish(path, ticket):
    other = Admission(path, max_latency_s=60.0)
    assert other.images_under_way == 3
    other.admit(2)
    other.finish(ticket)


def test_a_process_that_is_killed_inside_the_lock_blocks_nobody(path):
    context = multiprocessing.get_context("spawn")
    holds = context.Event()
    process = context.Process(target=_hold, args=(path, holds))
    process.start()
    assert holds.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    Admission(path, max_latency_s=1.0).admit(1)


def _hold(path, holds):
    admission = Admission(path, max_latency_s=1.0)
    with admission._locked():
        holds.set()
        time.sleep(60)


def test_the_state_is_readable_by_its_owner_alone(path):
    Admission(path, max_latency_s=1.0)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(steps_admission, "SHARED_MEMORY", tmp_path)
    return tmp_path


@pytest.mark.parametrize("started", ["by serving run", "by hand"])
def test_another_user_who_makes_and_locks_the_state_first_stops_nothing(shared_memory, monkeypatch, started):
    name = "segmentation_0123abcd_"
    if started == "by hand":
        monkeypatch.delenv(SHM_PREFIX_VARIABLE, raising=False)
        pid = os.getppid()
        name = f"segmentation_{pid}_{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}_"
    else:
        monkeypatch.setenv(SHM_PREFIX_VARIABLE, name)
        private_folder(shared_memory / f"{name}{STATE_NAME}")  # before anybody can know the name
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the state waits for another user's lock"))
    with (shared_memory / f"{name}admission").open("w") as squatted:
        fcntl.flock(squatted, fcntl.LOCK_EX)
        signal.alarm(5)
        try:
            Admission(state_path(), max_latency_s=1.0).admit(1)
        finally:
            signal.alarm(0)


def test_another_users_state_is_not_trusted(shared_memory, monkeypatch):
    belongs_to_another(monkeypatch, state_folder())
    with pytest.raises(PermissionError, match="nobody else can enter"):
        state_path()


def test_the_processes_of_one_server_share_its_folder(shared_memory, monkeypatch):
    monkeypatch.delenv(SHM_PREFIX_VARIABLE, raising=False)
    assert state_folder() == state_folder()
    assert SHM_PREFIX.match(state_folder().name)
    assert state_folder().stat().st_mode & 0o777 == 0o700
