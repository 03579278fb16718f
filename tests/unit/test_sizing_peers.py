"""The published strategies against cases that were worked out by hand from their formulae."""

import pytest

from lfm_manager.sizing import make
from lfm_manager.sizing.exhaustive_bucketing import exhaustive, expected_waste
from lfm_manager.sizing.first_allocation import least_waste, most_throughput
from lfm_manager.sizing.greedy_bucketing import greedy

MB = 1e6
CAP = 64_000 * MB


def test_least_waste_by_hand() -> None:
    # tau = 1.  a=1: 1 + 10 x 0.1 = 2;  a=10: 10
    assert least_waste({1: (90, 90.0), 10: (10, 10.0)}, 10) == 1
    # a=1: 1 + 10 x 0.95 = 10.5;  a=10: 10
    assert least_waste({1: (5, 5.0), 10: (95, 95.0)}, 10) == 10


def test_least_waste_weighs_by_time() -> None:
    # half of the calls are large, but short: tau = 5.05, a=1: 5.05 + 10 x 0.05 = 5.55; a=10: 50.5
    assert least_waste({1: (50, 500.0), 10: (50, 5.0)}, 10) == 1


def test_most_throughput_by_hand() -> None:
    # tau = 1.  a=4: (50 x 10/4 + 50) / (1 + .5) = 116.7;  a=10: 100 / 1
    assert most_throughput({4: (50, 50.0), 10: (50, 50.0)}, 10) == 4
    # a=8: (50 x 10/8 + 50) / 1.5 = 75;  a=10: 100
    assert most_throughput({8: (50, 50.0), 10: (50, 50.0)}, 10) == 10


def test_of_equals_the_first_wins() -> None:
    histogram = {5: (50, 50.0), 10: (50, 50.0)}
    assert least_waste(histogram, 10) == 5  # 5 + 10 x .5 = 10, and 10
    assert most_throughput(histogram, 10) == 5  # (100 + 50) / 1.5 = 100, and 100


def test_first_allocation_waits_for_steadiness() -> None:
    sizer = make("first-allocation-waste", "memory")
    for k in range(26):
        assert sizer.predict("a", 0, None, CAP) == CAP, k
        assert sizer.predict("a", 0, 3e9, CAP) == 3e9
        sizer.succeeded("a", 0, 900 * MB, 10)
    assert sizer.predict("a", 0, None, CAP) == 1000 * MB


def test_a_new_largest_starts_the_count_again() -> None:
    sizer = make("first-allocation-waste", "memory")
    for _ in range(20):
        sizer.succeeded("a", 0, 900 * MB, 10)
    for k in range(26):
        assert sizer.predict("a", 0, None, CAP) == CAP, k
        sizer.succeeded("a", 0, 1900 * MB, 10)
    assert sizer.predict("a", 0, None, CAP) < CAP


def test_first_allocation_climbs_to_the_largest_seen_then_to_the_worker() -> None:
    sizer = make("first-allocation-waste", "memory")
    sizer.succeeded("a", 0, 8000 * MB, 1)
    for _ in range(100):
        sizer.succeeded("a", 0, 900 * MB, 10)
    assert sizer.predict("a", 0, None, CAP) == 1000 * MB
    assert sizer.exhausted("a", 1, 1000 * MB, 1000 * MB, CAP) == 8000 * MB
    assert sizer.exhausted("a", 2, 8000 * MB, 8000 * MB, CAP) == CAP
    assert sizer.exhausted("a", 3, CAP, CAP, CAP) is None


def test_max_seen_rounds_up_with_a_third_of_a_bucket_of_slack() -> None:
    sizer = make("max-seen", "memory")
    assert sizer.predict("a", 0, None, CAP) == CAP
    assert sizer.predict("a", 0, 2e9, CAP) == 2e9
    sizer.succeeded("a", 0, 100 * MB, 1)
    assert sizer.predict("a", 0, None, CAP) == 250 * MB
    sizer.succeeded("a", 0, 200 * MB, 1)
    assert sizer.predict("a", 0, None, CAP) == 500 * MB
    sizer.succeeded("a", 0, 10 * MB, 1)
    assert sizer.predict("a", 0, None, CAP) == 500 * MB
    assert sizer.exhausted("a", 1, 500 * MB, 500 * MB, CAP) == CAP


def test_greedy_cuts_between_two_modes() -> None:
    # a cut after the 1s costs pq(10 - 1 + 1 + 10 - 10) = 2.5, none costs 10 - 5.5 = 4.5
    assert greedy([(1.0, 1.0), (1.0, 1.0), (10.0, 1.0), (10.0, 1.0)]) == [(1.0, 0.5), (10.0, 0.5)]


def test_greedy_leaves_equal_sizes_together() -> None:
    assert greedy([(3.0, 1.0), (3.0, 2.0), (3.0, 3.0)]) == [(3.0, 1.0)]


def test_greedy_share_is_of_weight() -> None:
    assert greedy([(1.0, 1.0), (10.0, 3.0)]) == [(1.0, pytest.approx(0.25)), (10.0, pytest.approx(0.75))]


def test_expected_waste_of_buckets_by_hand() -> None:
    assert expected_waste([(10.0, 1.0)], [7.0]) == 3
    # needs small, draws small: 0; small, large: 9; large, large: 0; large, small: 1 + 0
    assert expected_waste([(1.0, 0.5), (10.0, 0.5)], [1.0, 10.0]) == pytest.approx(0.25 * 9 + 0.25 * 1)
    # three: needs 3rd, draws 2nd: 2;  draws 1st: 1 + (2 + 0) / 2 = 2;  needs 2nd, draws 1st: 1 + (0 + 2) / 2 = 2
    assert expected_waste([(1.0, 0.5), (2.0, 0.25), (4.0, 0.25)], [1.0, 2.0, 4.0]) == pytest.approx(
        0.5 * (0.25 * 1 + 0.25 * 3) + 0.25 * (0.5 * 2 + 0.25 * 2) + 0.25 * (0.5 * 2 + 0.25 * 2)
    )


def test_exhaustive_finds_the_two_modes() -> None:
    points = [(100.0, 1.0)] * 5 + [(1000.0, 1.0)] * 5
    assert exhaustive(points) == [(100.0, pytest.approx(0.5)), (1000.0, pytest.approx(0.5))]


def test_exhaustive_of_equal_sizes_is_one_bucket() -> None:
    assert exhaustive([(700.0, 1.0)] * 12) == [(700.0, pytest.approx(1.0))]


@pytest.mark.parametrize("name", ["greedy-bucketing", "exhaustive-bucketing"])
def test_bucketing_samples_by_doubling(name: str) -> None:
    sizer = make(name, "memory")
    assert sizer.predict("a", 0, None, CAP) == 1000 * MB
    assert sizer.exhausted("a", 1, 1000 * MB, 1000 * MB, CAP) == 2000 * MB
    assert sizer.exhausted("a", 2, 2000 * MB, 3000 * MB, CAP) == 4000 * MB
    for _ in range(9):
        sizer.succeeded("a", 0, 300 * MB, 1)
    assert sizer.predict("a", 0, None, CAP) == 1000 * MB
    sizer.succeeded("a", 0, 300 * MB, 1)
    assert sizer.predict("a", 0, None, CAP) == 300 * MB
    assert sizer.exhausted("a", 1, 300 * MB, 300 * MB, CAP) == 500 * MB  # nothing larger seen: doubling again


@pytest.mark.parametrize("name", ["greedy-bucketing", "exhaustive-bucketing"])
def test_bucketing_draws_by_share_and_retries_above(name: str) -> None:
    sizer = make(name, "memory")
    for k in range(200):
        sizer.succeeded("a", 0, 4000 * MB if k % 4 == 0 else 500 * MB, 1)
    drawn = [sizer.predict("a", 0, None, CAP) for _ in range(100)]
    assert set(drawn) == {500 * MB, 4000 * MB}
    assert 70 <= drawn.count(500 * MB) <= 80
    assert sizer.exhausted("a", 1, 500 * MB, 500 * MB, CAP) == 4000 * MB


def test_recent_results_weigh_more() -> None:
    sizer = make("greedy-bucketing", "memory")
    for size in [500] * 100 + [4000] * 100:
        sizer.succeeded("a", 0, size * MB, 1)
    drawn = [sizer.predict("a", 0, None, CAP) for _ in range(100)]
    assert 70 <= drawn.count(4000 * MB) <= 80  # 15050 of 20100


def test_fixed_is_what_was_asked() -> None:
    sizer = make("fixed", "memory")
    assert sizer.predict("a", 0, 3e9, CAP) == 3e9
    assert sizer.predict("a", 0, None, CAP) == CAP
    assert sizer.exhausted("a", 1, 3e9, 3e9, CAP) is None


def test_whole_worker() -> None:
    sizer = make("whole-worker", "memory")
    assert sizer.predict("a", 0, 3e9, CAP) == CAP
    assert sizer.exhausted("a", 1, 3e9, 3e9, CAP) == CAP
    assert sizer.exhausted("a", 1, CAP, CAP, CAP) is None
