"""Device clocks mapped to the host's, and new frames told from frozen ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.camera.stamps import DeviceClock, FrameWatch

MS = 1_000_000
PERIOD = 33_333_333
OFFSET = 7_000_000_000_000
"""Of the host's clock to the device's."""
QUICKEST = 8 * MS


def run(delays_ns: list[int], drift: float = 0.0, offset: int = OFFSET, synchronised: bool = False) -> list[int]:
    """Errors of the stamps in ns, less the quickest delay, of frames that come `delays_ns` after they are taken.

    A frame does not overtake the one before it.
    """
    clock, errors, arrival = DeviceClock(), [], -(10**18)
    for i, delay in enumerate(delays_ns):
        device = 5_000_000_000 + i * PERIOD
        taken = device + offset + round(i * PERIOD * drift)
        arrival = max(arrival + 1, taken + delay)
        errors.append(clock.host_ns(device, arrival, synchronised) - taken - QUICKEST)
    return errors


def test_a_steady_delay_is_all_that_is_left():
    assert run([QUICKEST] * 100) == [0] * 100


def test_late_frames_move_no_stamp():
    rng = np.random.default_rng(1)
    late = [QUICKEST] + [QUICKEST + int(d) for d in rng.exponential(80 * MS, 300)]
    assert max(map(abs, run(late))) < 3 * MS, "10 s at 200 ppm is 2 ms"


def test_a_slow_start_is_mended_without_running_back():
    errors = run([200 * MS] * 3 + [QUICKEST] * 100)
    assert errors[0] == 192 * MS and errors[-1] == 0
    assert all(0 <= e <= 192 * MS for e in errors)
    assert all(b - a > -PERIOD for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("drift", [-100e-6, 100e-6])
def test_drift_is_followed(drift: float):
    rng = np.random.default_rng(2)
    delays = [QUICKEST + int(d) for d in rng.exponential(3 * MS, 18_000)]
    errors = run(delays, drift)
    assert max(map(abs, errors[30:])) < 2 * MS, "ten minutes at 100 ppm would be 60 ms"


@given(
    st.lists(st.tuples(st.integers(1, 2_000 * MS), st.integers(1, 2_000 * MS)), min_size=2, max_size=60),
    st.integers(-(10**15), 10**15),
    st.booleans(),
)
def test_stamps_increase_and_are_never_after_the_arrival(steps, offset, synchronised):
    clock, device, arrival, last = DeviceClock(), 10**9, 10**9 + offset, None
    for device_step, arrival_step in steps:
        device, arrival = device + device_step, arrival + arrival_step
        stamp = clock.host_ns(device, arrival)
        assert stamp <= arrival
        assert last is None or stamp > last
        assert clock.delay_ns >= 0
        last = stamp
        assert DeviceClock().host_ns(device, arrival, synchronised) <= arrival


def test_the_delay_says_how_much_later_than_the_quickest_a_frame_came():
    clock = DeviceClock()
    for i in range(10):
        clock.host_ns(i * PERIOD, i * PERIOD + QUICKEST)
    clock.host_ns(10 * PERIOD, 10 * PERIOD + QUICKEST + 70 * MS)
    assert clock.delay_ns == pytest.approx(70 * MS, abs=MS)


def test_a_device_clock_that_begins_anew_is_mapped_anew():
    clock = DeviceClock()
    first = clock.host_ns(4_294_967 * MS, OFFSET + QUICKEST)
    second = clock.host_ns(10 * MS, OFFSET + PERIOD + QUICKEST)
    assert second - first == PERIOD


def test_stamps_in_host_time_are_taken_as_they_are_if_they_fit_the_arrivals():
    assert run([QUICKEST + 5 * MS, QUICKEST, QUICKEST + 30 * MS], offset=0, synchronised=True) == [-QUICKEST] * 3


@pytest.mark.parametrize("offset", [-3_600_000 * MS, 500 * MS])
def test_stamps_said_to_be_host_time_that_are_not_are_mapped(offset: int):
    assert run([QUICKEST] * 5, offset=offset, synchronised=True) == [0] * 5


def test_frames_are_new_by_number_and_by_stamp():
    watch = FrameWatch()
    assert watch.lost_before(10, 100) == 0, "nobody knows what came before the first"
    assert watch.lost_before(11, 133) == 0
    assert watch.lost_before(11, 166) is None, "the number repeats"
    assert watch.lost_before(12, 133) is None, "the stamp repeats"
    assert watch.lost_before(12, 120) is None, "the stamp runs back"
    assert watch.lost_before(14, 200) == 2 - 0, "12 was never new, and 13 never came"


def test_a_device_that_begins_anew_has_lost_nothing():
    watch = FrameWatch()
    watch.lost_before(5000, 60_000 * MS)
    assert watch.lost_before(1, 33 * MS) == 0
    assert watch.lost_before(2, 66 * MS) == 0


def test_numbers_that_fall_while_time_goes_on_are_no_loss():
    watch = FrameWatch()
    watch.lost_before(5000, 100 * MS)
    assert watch.lost_before(3, 133 * MS) == 0
