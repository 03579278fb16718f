"""Options: names, units, and which saying wins."""

import pytest

from lfm.options import Options
from lfm.protocol.resources import Expected, Request, Resources


def test_units_are_read():
    read = Options.parse({"memory": "4GB", "wall_time": "1h30m", "cores": 2, "gpus": 1, "disk": 10**6, "processes": 8})
    assert read.request() == Request(2.0, 4 * 10**9, 10**6, 1, 5400.0, 8)


def test_a_typo_names_the_nearest_option():
    with pytest.raises(TypeError, match="'memroy' is not an option; did you mean 'memory'"):
        Options.parse({"memroy": "4GB"})


def test_a_name_like_none_lists_all():
    with pytest.raises(TypeError, match="there are: cores, memory"):
        Options.parse({"xyzzy": 1})


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"memory": "4 bananas"}, ValueError),
        ({"memory": -1}, ValueError),
        ({"memory": 0}, ValueError),
        ({"wall_time": "soon"}, ValueError),
        ({"cores": 0}, ValueError),
        ({"cores": "two"}, TypeError),
        ({"cores": True}, TypeError),
        ({"gpus": 0.5}, TypeError),
        ({"retries": -1}, ValueError),
        ({"category": ""}, TypeError),
        ({"imports": [3]}, TypeError),
        ({"imports": ["not a name"]}, TypeError),
        ({"environment": 7}, TypeError),
        ({"environment": ["numpy", 3]}, TypeError),
        ({"environment": []}, ValueError),
        ({"expect": {"memory": "much"}}, ValueError),
        ({"expect": {"memroy": "1GB"}}, TypeError),
        ({"expect": "4GB"}, TypeError),
        ({"wall_time": float("inf")}, ValueError),
        ({"memory": float("inf")}, ValueError),
        ({"cores": float("inf")}, ValueError),
        ({"priority": float("nan")}, ValueError),
        ({"expect": {"wall_time": float("inf")}}, ValueError),
        ({"expect": Expected(cores=float("nan"))}, ValueError),
        ({"labels": "site=north"}, TypeError),
        ({"labels": {"site": 1}}, TypeError),
        ({"strategy": "best"}, ValueError),
        ({"category": "x" * 201}, TypeError),
        ({"memory": "9000PB"}, ValueError),
        ({"memory": 1 << 63}, ValueError),
        ({"disk": "9" * 400}, ValueError),
        ({"cores": 1e300}, ValueError),
        ({"gpus": 1 << 20}, ValueError),
        ({"wall_time": 10**400}, ValueError),
        ({"wall_time": "9" * 400 + "d"}, ValueError),
        ({"processes": 1 << 63}, ValueError),
        ({"retries": 1 << 70}, ValueError),
        ({"priority": 10**400}, ValueError),
        ({"expect": {"memory": "9000PB"}}, ValueError),
    ],
)
def test_wrong_amounts_name_the_option(said, kind):
    with pytest.raises(kind, match=next(iter(said))):
        Options.parse(said)


def test_none_says_nothing():
    assert Options.parse({"memory": None}) == Options()


def test_later_options_win_and_imports_add_up():
    first = Options.parse({"memory": "1GB", "cores": 2, "imports": ["a"], "gpus": 1})
    second = Options.parse({"memory": "2GB", "imports": ["b", "a"], "gpus": 0})
    both = second.over(first)
    assert (both.memory, both.cores, both.imports, both.gpus) == (2 * 10**9, 2.0, ("a", "b"), 0)


def test_a_single_import_may_be_a_text():
    assert Options.parse({"imports": "openpyxl"}).imports == ("openpyxl",)


def test_what_is_expected_is_told_apart_from_limits():
    read = Options.parse({"expect": {"memory": "4GB", "wall_time": "1h"}, "cores": 2}).request()
    assert (read.memory, read.wall_time, read.expect) == (None, None, Expected(None, 4 * 10**9, None, 3600.0))
    given = Resources(2.0, 10**9, 0, 0, None)  # a future's allocation
    assert Options.parse({"expect": given}).expect == Expected(2.0, 10**9, None, None)


def test_labels_are_sorted_and_replaced():
    first = Options.parse({"labels": {"site": "north", "disk": "fast"}})
    assert first.labels == (("disk", "fast"), ("site", "north"))
    assert Options.parse({"labels": {"site": "south"}}).over(first).labels == (("site", "south"),)
    assert Options.parse({"cores": 1}).over(first).labels == first.labels


def test_strategies_are_those_of_the_manager():
    from lfm.options import STRATEGIES
    from lfm_manager.sizing import STRATEGIES as THERE

    assert tuple(THERE) == STRATEGIES
    assert Options.parse({"strategy": "max-seen"}).request().strategy == "max-seen"


def test_what_the_options_let_pass_the_manager_takes_too():
    from lfm.protocol import messages as m
    from lfm.protocol.codec import decode, encode
    from lfm.protocol.ids import FunctionId, TaskId
    from lfm.protocol.outcomes import Inline
    from lfm_manager.core.sanity import complaint

    most = {"cores": 1e12, "memory": 1 << 62, "disk": 1 << 62, "gpus": 1 << 16, "wall_time": 1e12, "processes": 1 << 31}
    least = {"cores": 5e-324, "memory": 1, "disk": 1, "gpus": 0, "wall_time": 5e-324, "processes": 1}
    for said in (most, least):
        read = Options.parse({**said, "retries": 1 << 31, "priority": -1.7e308, "expect": {"memory": said["memory"]}})
        submit = m.Submit(
            TaskId("t"), FunctionId("f"), Inline(b""), read.request(), retries=read.retries or 0, priority=read.priority or 0.0
        )
        assert decode(encode(submit)) == submit and complaint(submit) == ""
