"""What holds for every strategy, whatever it has seen."""

from math import isfinite

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lfm_manager.sizing import RESOURCES, STRATEGIES, Sizer, make

names = st.sampled_from(sorted(STRATEGIES))
resources = st.sampled_from(RESOURCES)
categories = st.sampled_from(["a", "b", "c", "d", "e", "f"])
amounts = st.floats(0, 1e12) | st.sampled_from([0.0, 1.0, 5e8, 1e9])
odd = st.floats()  # also endless, negative, absent
caps = st.floats(1, 1e12)
hints = st.none() | st.floats(0, 1e13)
histories = st.lists(st.tuples(categories, amounts | odd, amounts | odd, amounts | odd, hints), max_size=60)


def taught(name: str, resource: str, history: list[tuple[str, float, float, float, float | None]]) -> Sizer:
    sizer = make(name, resource)
    for category, x, measured, wall_s, hint in history:
        sizer.succeeded(category, x, measured, wall_s, hint=hint)
    return sizer


@given(names, resources, histories, categories, amounts | odd, hints, caps, st.integers(0, 9), amounts)
def test_first_allocation_within_cap_and_hint(
    name, resource, history, category, x, hint, cap, in_flight, share
) -> None:
    size = taught(name, resource, history).predict(category, x, hint, cap, in_flight=in_flight, share=share)
    assert 0 < size <= cap
    if hint and name != "whole-worker":
        assert size <= hint


@example("exhaustive-bucketing", "cores", [], "a", 1, 1.0, 8.9e307, None, 1.0)
@given(names, resources, histories, categories, st.integers(1, 20), caps, amounts | odd, hints, caps)
def test_retry_grows_within_cap(
    name, resource, history, category, attempt, allocation, measured, hint, cap
) -> None:
    sizer = taught(name, resource, history)
    larger = sizer.exhausted(category, attempt, allocation, measured, cap, hint=hint)
    if larger is None:
        return
    assert allocation < larger <= cap
    if isfinite(measured):
        assert larger >= measured


@given(names.filter(lambda name: name != "fixed"), resources, histories, categories, hints, st.floats(1, 1e12))
def test_every_ladder_ends_at_the_cap(name, resource, history, category, hint, cap) -> None:
    sizer = taught(name, resource, history)
    allocation = sizer.predict(category, 0, hint, cap)
    for attempt in range(1, 4000):
        larger = sizer.exhausted(category, attempt, allocation, allocation, cap, hint=hint)
        if larger is None:
            break
        allocation = larger
    assert larger is None
    assert allocation == cap


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_one_sample_is_enough_to_size_by(name: str) -> None:
    sizer = make(name, "memory")
    sizer.succeeded("a", 5, 2e9, 3)
    assert 0 < sizer.predict("a", 5, None, 64e9) <= 64e9
