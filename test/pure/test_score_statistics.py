"""The statistics of scores, against others' code, hand-worked numbers, and their own promises."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from clamp_ros.contract.errors import ConfigError
from clamp_ros.score.seeds import parse_seeds, ranges, seeds_text, within
from clamp_ros.score.statistics import Paired, mcnemar_exact, wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(8, 10), (0, 10), (10, 10), (40, 50), (1, 1), (0, 1), (613, 1000)])
def test_wilson_interval(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_interval_without_trials_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="3 successes of 2"):
        wilson_interval(3, 2)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_sign_test_of_the_pairs_that_differ(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, abs=1e-12)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_pairs_are_counted_on_common_seeds_only():
    first = {1: True, 2: True, 3: False, 4: False, 9: True}
    second = {1: True, 2: False, 3: True, 4: False, 8: True}
    assert Paired.of(first, second) == Paired(1, 1, 1, 1)
    assert Paired.of({1: True}, {2: True}) == Paired(0, 0, 0, 0)
    assert Paired(0, 0, 0, 0).interval() == (-1.0, 1.0)


def test_the_paired_interval_of_a_hand_worked_table():
    """21 pairs, of which 1 and 7 differ: (2/23, 8/23), centre 6/23, variance (10/23 - 36/529) / 23."""
    pair = Paired(both=1, only_first=1, only_second=7, neither=12)
    assert pair.difference == pytest.approx(6 / 21)
    half = 1.959964 * math.sqrt((10 / 23 - 36 / 529) / 23)
    assert pair.interval() == pytest.approx((6 / 23 - half, 6 / 23 + half), abs=1e-6)
    assert pair.p_value == pytest.approx(2 * (1 + 8) / 2**8)


@given(*[st.integers(0, 40)] * 4)
def test_exchanging_the_two_turns_the_interval_round(both, b, c, neither):
    low, high = Paired(both, b, c, neither).interval()
    assert Paired(both, c, b, neither).interval() == pytest.approx((-high, -low))
    assert -1.0 <= low <= high <= 1.0


@pytest.mark.parametrize(("p_first", "p_second"), [(0.1, 0.1), (0.3, 0.1), (0.05, 0.02), (0.4, 0.2)])
def test_the_paired_interval_covers_the_truth_as_often_as_it_says(p_first, p_second):
    """Exact coverage over every table of 20 seeds, by the probability of each."""
    n, covered = 20, 0.0
    truth = p_second - p_first
    table = multinomial(n, [p_first, p_second, 1.0 - p_first - p_second])
    for b, c in itertools.product(range(n + 1), repeat=2):
        if b + c <= n:
            low, high = Paired(n - b - c, b, c, 0).interval()
            covered += (low <= truth <= high) * table.pmf([b, c, n - b - c])
    assert covered > 0.94


def test_seeds_as_people_write_them():
    assert parse_seeds(["10-12", "7,3-4"]) == [10, 11, 12, 7, 3, 4]
    assert seeds_text([3, 4, 7, 10, 11, 12]) == "3-4, 7, 10-12"
    assert within([1, 5, 9], [(0, 4), (9, 9)]) == [1, 9]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["10-20", "15-30"], "the seeds 15-30 and 10-20 overlap"),
        (["7", "5-9"], "5-9 and 7 overlap"),
        (["9-5"], "end before they begin; expected 5-9"),
        (["-3"], "neither a seed nor a range"),
        (["ten"], "'ten' is neither"),
        (["1,,2"], "'' is neither"),
        ([], "no seeds"),
    ],
)
def test_bad_seeds(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_seeds(words)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_ranges_hold_the_seeds_and_no_other(seeds):
    assert set(parse_seeds([seeds_text(seeds)])) == seeds
    assert {seed for a, b in ranges(seeds) for seed in range(a, b + 1)} == seeds
