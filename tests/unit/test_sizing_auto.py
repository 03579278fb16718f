"""The auto sizer against cases that were worked out by hand."""

from math import exp, inf, log, nan
from random import Random

import pytest

from lfm_manager.sizing import make
from lfm_manager.sizing.experts import Points
from lfm_manager.sizing.pool import Pool
from lfm_manager.sizing.ratios import Ratios, cheapest
from lfm_manager.sizing.sizer import Foreseeing

GB = 1e9
CAP = 128 * GB


def window(*ratios: float, seconds: float = 1.0, size: int = 256, discount: float = 1.0) -> Ratios:
    made = Ratios(size, discount)
    for ratio in ratios:
        made.add(ratio, seconds, seconds)
    return made


def test_factor_of_one_observation() -> None:
    # n=1, top=2: sg = 0.05*2*2/3; F=2; G=0.5
    scale = 0.05 * 2 * 2 / 3
    reach = scale * log((2 + 0.5) * 2 / (scale * 2))
    one = window(2.0)
    assert one.factor(2.0) == pytest.approx(2 + reach)
    assert one.rung == pytest.approx(2 + reach)
    tail = 0.5 * exp(-reach / scale) * 2.5 * (2 + reach)  # nx = T/(n+1) = 1/2
    assert one.cost == pytest.approx((2 + reach) - 2 + tail)


def test_factor_of_two_modes_takes_the_lower_when_the_higher_is_rare() -> None:
    many = window(*[1.0] * 60, 10.0)
    assert many.factor(1.0) == 1.0
    assert many.rung == 10  # a tail that would cost more than it saves
    assert window(*[10.0] * 60, 1.0).factor(1.0) > 10


def test_inner_candidate_is_charged_by_hand() -> None:
    ratios = window(*[1.0] * 60, 10.0)
    ratios.factor(1.0)
    median, upper = 1.0, (30 * 1.0 - 1.0 + 10.0) / 30  # the middle one of 61 is in neither half
    scale = ((upper - median) * 61 + 0.05 * 10 * 2) / 63
    rung = 10 + scale * log(max(1.0, 1.5 * 10 / (scale * 62)))
    unseen = 61 / 62
    cost = 1 * (61 - 1) - (70 - 10) + 1 * (1 + unseen) + (rung - 10) + unseen * 0.5 * 10
    assert ratios.rung == pytest.approx(rung)
    assert ratios.cost == pytest.approx(cost / 61)


def test_factor_above_looks_only_at_what_is_larger() -> None:
    ratios = window(*[1.0] * 50, *[2.0] * 30, 40.0)
    assert ratios.factor_above(1.0, 1.0) == 2.0  # not the largest: few are beyond 2
    assert ratios.factor_above(0.0, 1.0) == ratios.factor(1.0)
    beyond = ratios.factor_above(2.0, 1.0)
    assert beyond is not None and beyond >= 40
    assert ratios.factor_above(40.0, 1.0) is None


def test_window_forgets_the_oldest_whichever_it_is() -> None:
    ratios = window(9.0, 1.0, 1.0, size=3)
    assert ratios.largest == 9.0
    ratios.add(1.5, 1.0, 1.0)
    assert ratios.ratios == [1.0, 1.0, 1.5]
    assert ratios.weights == [1.0, 1.0, 1.0]


def test_window_tells_equal_ratios_apart_by_weight() -> None:
    ratios = Ratios(2, 1.0)
    ratios.add(1.0, 7.0, 1.0)
    ratios.add(1.0, 3.0, 1.0)
    ratios.add(2.0, 1.0, 1.0)
    assert ratios.weights == [3.0, 1.0]


def test_discounted_weights_never_overflow() -> None:
    ratios = Ratios(8, 0.5)  # the unit doubles with every observation
    for k in range(5000):
        ratios.add(1.0 + k % 3, 1.0, 1.0)
    assert all(0 < w < 1e70 for w in ratios.weights)
    assert 1 <= ratios.factor(1.0) < 4


def test_neighbours() -> None:
    points = Points()
    for x in range(1, 21):
        points.add(float(x), 100.0 * x)
    assert points.near(10.5) == pytest.approx(1050)  # of 9, 10, 11, 12
    assert points.far(10.5) == 1500  # of 6..15
    assert points.near(0.5) == pytest.approx(150)  # only two above
    assert points.near(99) == pytest.approx(1950)


def test_upper_line_runs_along_the_upper_edge() -> None:
    points = Points()
    for x in range(1, 11):
        points.add(float(x), 2.0 * x)
        points.add(float(x), 1.0 * x)
    assert points.upper(20.0) == pytest.approx(40, rel=0.05)
    assert points.upper(1e-9) == pytest.approx(0.7, rel=0.5)  # never below 0.7 of the smallest


def test_no_line_through_one_size() -> None:
    points = Points()
    for y in range(1, 10):
        points.add(5.0, float(y))
    assert points.upper(5.0) is None


def test_points_are_bounded() -> None:
    points = Points()
    for k in range(2500):
        points.add(float(k % 50), float(k))
    assert len(points.sizes) == len(points.values) == 2000
    assert min(points.values) == 500
    assert points.sizes == sorted(points.sizes)


def test_first_call_of_all() -> None:
    assert make("auto", "memory").predict("a", 0, None, CAP) == GB
    assert make("auto", "memory").predict("a", 0, 0.3 * GB, CAP) == 0.3 * GB
    assert make("auto", "memory").predict("a", 0, None, 0.5 * GB) == 0.5 * GB
    assert make("auto", "cores").predict("a", 0, None, 64) == 1


def test_fair_share_lifts_the_first_call_only() -> None:
    sizer = make("auto", "memory")
    assert sizer.predict("a", 0, None, CAP, share=4 * GB) == 4 * GB
    assert sizer.predict("a", 0, 2 * GB, CAP, share=4 * GB) == 2 * GB
    sizer.succeeded("a", 0, 0.1 * GB, 10)
    assert sizer.predict("a", 0, None, CAP, share=4 * GB) < GB


def test_an_unseen_category_starts_from_the_pool() -> None:
    sizer = make("auto", "memory")
    for name in "abc":
        sizer.succeeded(name, 0, 5 * GB, 100)
    assert 5 * GB < sizer.predict("new", 0, None, CAP) < 6 * GB
    assert sizer.predict("new", 0, 3 * GB, CAP) == 3 * GB


def test_pool_learns_how_far_hints_are_off() -> None:
    sizer = make("auto", "memory")
    for k in range(5):
        sizer.succeeded(f"c{k}", 0, 1 * GB, 100, hint=10 * GB)
    size = sizer.predict("new", 0, 4 * GB, CAP)
    assert 0.4 * GB <= size < 0.5 * GB


def test_crowd_starts_at_a_quantile_of_the_pool() -> None:
    pool = Pool(overhead=0.0)
    for k, size in enumerate([1.0] * 9 + [100.0]):
        pool.add(f"c{k}", size, 1.0, None)
    # q=1: 9 x 0 + (1 x 1 + 0.05 x 100) = 6; q=100: 9 x 99
    assert pool.first(None, 7.0, crowd=True) == 1.0


def test_crowd_before_the_pool_knows_anything() -> None:
    sizer = make("auto", "memory")
    assert sizer.predict("a", 0, 9 * GB, CAP, in_flight=1) == GB
    assert sizer.predict("a", 0, 0.5 * GB, CAP, in_flight=1) == 0.5 * GB


def test_only_three_calls_of_a_category_enter_the_pool() -> None:
    pool = Pool(overhead=0.0)
    for _ in range(100):
        pool.add("same", 1.0, 1.0, None)
    for k in range(8):
        pool.add(f"c{k}", 1.5, 1.0, None)
    # three of 1 and eight of 1.5: 0.5 x 3 unused is less than 8 x 1 lost; of a hundred it would not be
    assert pool.first(None, 7.0, crowd=False) >= 1.5


def test_ladder_of_an_unseen_category_doubles_and_stops_at_the_hint() -> None:
    sizer = make("auto", "memory")
    assert sizer.exhausted("a", 1, GB, GB, CAP) == 2 * GB
    assert sizer.exhausted("a", 1, GB, GB, CAP, hint=1.5 * GB) == 1.5 * GB
    assert sizer.exhausted("a", 2, GB, GB, CAP, hint=8 * GB) == 2 * GB
    assert sizer.exhausted("a", 2, 8 * GB, 8 * GB, CAP, hint=8 * GB) == 16 * GB


def test_ladder_of_a_seen_category_jumps_to_what_was_seen() -> None:
    sizer = make("auto", "memory")
    sizer.succeeded("a", 0, 4 * GB, 10)
    sizer.succeeded("a", 0, 2 * GB, 10)
    rung = sizer.exhausted("a", 1, 2.5 * GB, 2.5 * GB, CAP)
    assert rung is not None and 4 * GB <= rung < 6 * GB
    assert sizer.exhausted("a", 1, 10 * GB, 10 * GB, CAP) == 15 * GB
    assert sizer.exhausted("a", 3, 10 * GB, 10 * GB, CAP) == 20 * GB


def test_retry_is_larger_than_what_was_measured_at_the_kill() -> None:
    sizer = make("auto", "memory")
    assert sizer.exhausted("a", 1, GB, 7 * GB, CAP) == pytest.approx(7.35 * GB)
    assert sizer.exhausted("a", 1, 100 * GB, 100 * GB, CAP) == CAP
    assert sizer.exhausted("a", 1, CAP, CAP, CAP) is None
    assert sizer.exhausted("a", 1, GB, 2 * CAP, CAP) is None


def test_input_size_is_learned() -> None:
    sizer = make("auto", "memory")
    for k in range(40):
        x = (k * 7 % 40 + 1) * 1e6
        sizer.succeeded("linear", x, 100 * x, 30)
    small, large = (sizer.predict("linear", x, None, CAP) for x in (2e6, 38e6))
    assert 2e8 <= small < 4e8
    assert 3.7e9 <= large < 4.5e9


@pytest.mark.parametrize("measured", [nan, inf, -1.0, -inf])
def test_what_is_no_measurement_is_not_learned(measured: float) -> None:
    sizer = make("auto", "memory")
    sizer.succeeded("a", 0, measured, 1)
    sizer.succeeded("a", 0, GB, measured)
    assert sizer.predict("a", 0, None, CAP, in_flight=0) == GB
    assert sizer.exhausted("a", 1, GB, measured, CAP) in (2 * GB, None)


def test_measurements_of_nothing() -> None:
    sizer = make("auto", "memory")
    for x in (0, -5, nan, inf, 3, 4, 5, 6, 7):
        sizer.succeeded("a", x, 0.0, 0.0)
        assert 0 < sizer.predict("a", x, None, CAP) < 1e6
    assert sizer.exhausted("a", 1, 1.0, 1.0, CAP) is not None


def test_same_observations_same_sizes() -> None:
    def sizes() -> list[float]:
        sizer = make("auto", "memory")
        found = []
        for k in range(300):
            found.append(sizer.predict(f"c{k % 3}", k % 17, None, CAP))
            sizer.succeeded(f"c{k % 3}", k % 17, (1 + k * k % 31) * 1e8, 1 + k % 5)
        return found

    assert sizes() == sizes()


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="there are auto"):
        make("guess", "memory")
    with pytest.raises(ValueError, match="memory, disk, cores"):
        make("auto", "luck")


def test_outgrowing_gets_cheap_where_it_costs_nothing() -> None:
    def taught(spent_s: float) -> float:
        sizer = make("auto", "memory")
        dice = Random(1)
        for _ in range(200):
            size = dice.uniform(1, 11) * GB
            if sizer.predict("a", 0, None, CAP) < size and spent_s:
                sizer.exhausted("a", 1, GB, GB, CAP, spent_s=spent_s)
            sizer.succeeded("a", 0, size, 100)
        return sizer.predict("a", 0, None, CAP)

    dear, cheap = taught(100), taught(0)  # killed at its end each time; never killed: it grew in place
    assert cheap < 0.8 * dear
    assert taught(1e9) == dear  # never dearer than a whole call


def test_needs_that_grow_are_followed() -> None:
    sizer = make("auto", "memory")
    for k in range(100):
        sizer.succeeded("a", 0, (1 + 0.1 * k) * GB, 60)
    assert 11 * GB <= sizer.predict("a", 0, None, CAP) < 12 * GB


def test_needs_that_fall_are_followed() -> None:
    sizer = make("auto", "memory")
    for k in range(100):
        sizer.succeeded("a", 30, (11 - 0.1 * k) * GB, 60)  # thirty bytes of input say nothing
    assert sizer.predict("a", 30, None, CAP) < 2 * GB


def test_once_inputs_have_sizes_these_are_what_counts() -> None:
    sizer = make("auto", "memory")
    for k in range(20):
        sizer.succeeded("a", 0, (1 + k) * GB, 60)
    for k in range(60):
        x = (1 + k * 37 % 50) * 1e6
        sizer.succeeded("a", x, 100 * x, 60)
    assert 1e8 <= sizer.predict("a", 1e6, None, CAP) < 1 * GB


def test_what_has_outgrown_more_is_expected_to_come_to_more() -> None:
    sizer = make("auto", "memory")
    assert isinstance(sizer, Foreseeing)
    assert sizer.expected("a", 0, 0) is None
    for n in range(100):
        sizer.succeeded("a", 0, (1 + n % 4) * 1e9, 100)
    foreseen = [sizer.expected("a", 0, at_least) or 0 for at_least in (0, 1.5e9, 2.5e9, 3.5e9, 9e9)]
    assert foreseen == sorted(foreseen)
    assert 2e9 < foreseen[0] < 3e9 and foreseen[3] == pytest.approx(4e9) and foreseen[-1] == pytest.approx(13.5e9)


def test_the_fewer_start_again_the_smaller_the_first_size() -> None:
    ratios = Ratios(256, 1.0)
    for n in range(41, 105):
        ratios.add(float(n), 10.0, 10.0)
    sizes = [cheapest(ratios.ratios, ratios.weights, lost + 0.01, lost)[0] for lost in (0.0, 0.1, 0.5, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] < 50 < 100 < sizes[-1]
