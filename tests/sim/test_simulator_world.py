"""The real core in the simulated world: whoever dies, whenever, every call is answered exactly once."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.protocol.ids import TaskId
from lfm.protocol.outcomes import Exhausted, Returned
from lfm.protocol.resources import Request, Resources
from lfm_manager.core.check import check
from lfm_manager.simulator.chart import Line, chart, ticks
from lfm_manager.simulator.cli import simulate as command
from lfm_manager.simulator.ledger import Ledger
from lfm_manager.simulator.loads import LOADS, draw
from lfm_manager.simulator.node import Node, Running
from lfm_manager.simulator.plan import Plan
from lfm_manager.simulator.trace import Call
from lfm_manager.simulator.world import World, asks_for_cores, simulate

GB = 1e9
MB = 1e6


def call(
    memory: float, wall_s: float = 10.0, *, category: str = "a", cores: float = 1, x: float = 0.0
) -> Call:
    return Call(category, x, wall_s, cores, memory, 0.0, None)


def test_one_call_by_hand() -> None:
    run = simulate([call(1 * GB, 100)], Plan(1, 4, int(8 * GB)), "oracle")
    assert (run.makespan, run.failures, run.hopeless) == (100, 0, 0)
    assert run.allocated == pytest.approx(100 * GB)
    assert run.memory_use == pytest.approx(1 / 8)
    assert run.core_use == pytest.approx(1 / 4)


def test_calls_wait_for_cores() -> None:
    run = simulate([call(1 * MB, 10)] * 8, Plan(2, 2, int(8 * GB)), "oracle")
    assert run.makespan == 20


def test_a_whole_worker_each() -> None:
    run = simulate([call(1 * MB, 10)] * 8, Plan(2, 2, int(8 * GB)), "whole-worker")
    assert run.makespan == 40
    assert run.waste_gb_h == pytest.approx(8 * 10 * 8 / 3600, rel=1e-3)


def test_a_limit_grows_while_there_is_room() -> None:
    run = simulate([call(3.5 * GB, 100)], Plan(1, 4, int(16 * GB)), "auto")
    # alone on its node it starts at its core's share, 4 GB; close to that it may take a step, and lives
    assert (run.makespan, run.failures) == (100, 0)


def test_a_full_node_kills_and_the_call_runs_again_larger() -> None:
    calls = [call(0.1 * GB, 10, category="small")] * 5 + [call(7 * GB, 10, category="big")] * 4
    run = simulate(calls, Plan(1, 4, int(8 * GB)), "auto")
    assert run.hopeless == 0
    assert run.makespan > 40  # only one of the large ones fits at a time


def test_the_last_to_come_makes_room_and_the_oldest_is_never_ended() -> None:
    calls = [call(5 * GB, 100, category=name) for name in "abcd"]
    plan = Plan(1, 4, int(8 * GB), seed=3)
    world = World(calls, plan, "auto", asks_for_cores(plan), check)
    run = world.run()
    assert run.hopeless == 0 and 0 < run.failures <= 6
    # one after the other, nearly: none is begun again and again
    assert run.makespan < 4 * 100 + 100


def test_a_call_larger_than_the_worker_fails_for_that_reason() -> None:
    plan = Plan(1, 4, int(8 * GB))
    world = World([call(9 * GB)], plan, "auto", asks_for_cores(plan), check)
    assert world.run().hopeless == 1
    assert isinstance(world.answers[TaskId("0")], Exhausted)


def test_a_users_limit_is_final_and_never_grows() -> None:
    plan = Plan(1, 4, int(8 * GB))
    world = World([call(2 * GB)], plan, "auto", lambda c: Request(memory=int(1 * GB)), check)
    run = world.run()
    assert (run.failures, run.growths, run.hopeless) == (1, 0, 1)


def test_a_worker_that_dies_takes_its_calls_and_they_run_again() -> None:
    run = simulate([call(1 * GB, 100)] * 20, Plan(2, 4, int(8 * GB), lifetime=250), "auto", check)
    assert run.lost > 0
    assert run.hopeless == 0


def test_workers_join_over_time() -> None:
    run = simulate([call(1 * MB, 10)] * 4, Plan(2, 1, int(8 * GB), join_over=40), "oracle")
    assert run.makespan == 30  # 10, 20, and two from 20 on


def test_growth_takes_what_is_free_and_no_more() -> None:
    from lfm.protocol.ids import FunctionId, PeerId
    from lfm.protocol.messages import Run
    from lfm.protocol.outcomes import Inline

    node = Node(PeerId(1), Resources(4, int(2 * GB)))
    run = Run(
        TaskId("0"), 1, FunctionId("f"), Inline(b""), Resources(1, int(1.97 * GB)), growth=int(8 * GB)
    )  # fmt: skip
    attempt = Running(run, call(3 * GB), 0.0, 1.0, run.allocation)
    node.take(attempt)
    assert not node.grow(attempt)  # a sixtieth is free: not worth it
    node.give_back(attempt)
    attempt.allocation = Resources(1, int(1 * GB))
    node.take(attempt)
    assert node.grow(attempt)
    assert attempt.limit == int(1.1 * GB) == node.reserved


loads = st.lists(
    st.builds(
        call,
        st.floats(1e6, 9e9),
        st.floats(0, 500),
        category=st.sampled_from("abc"),
        cores=st.sampled_from([0.5, 1, 2, 9]),
        x=st.sampled_from([0.0, 1e6, 3e7]),
    ),
    min_size=1,
    max_size=25,
)
plans = st.builds(
    Plan,
    st.integers(1, 3),
    st.sampled_from([1, 2, 4.5]),
    st.sampled_from([int(4 * GB), int(10 * GB)]),
    join_over=st.sampled_from([0.0, 100.0]),
    lifetime=st.none() | st.floats(600, 5000),
    seed=st.integers(0, 99),
)


@settings(max_examples=40)
@given(loads, plans, st.sampled_from(["auto", "max-seen", "greedy-bucketing", "whole-worker", "oracle"]))
def test_every_call_is_answered_once_and_the_books_agree(
    calls: list[Call], plan: Plan, strategy: str
) -> None:
    plain = simulate(calls, plan, strategy, check)
    assert plain.hopeless <= len(calls)
    if plan.memory >= 10 * GB and plan.lifetime is None:
        assert plain.hopeless == 0
    assert simulate(calls, plan, strategy) == plain  # the same events, the same commands


@pytest.mark.parametrize("name", sorted(LOADS))
def test_loads_are_drawn_the_same_every_time(name: str) -> None:
    assert draw(name, 50) == draw(name, 50)
    assert draw(name, 50) != draw(name, 50, seed=2)
    assert {c.category for c in draw(name, 500)} == {kind.name for kind in LOADS[name]}


def test_auto_comes_close_to_the_oracle() -> None:
    plan = Plan(4, 16, int(64 * GB))
    calls = draw("genomics", 300)
    auto, oracle, unmanaged = (simulate(calls, plan, s) for s in ("auto", "oracle", "whole-worker"))
    assert auto.makespan < 1.2 * oracle.makespan
    assert unmanaged.makespan > 2 * auto.makespan


def test_ledger_series_is_even_and_true() -> None:
    ledger = Ledger()
    ledger.changed(cores=4, memory=8)
    ledger.until(10)
    ledger.changed(busy=2, reserved=4)
    ledger.until(20)
    series = ledger.series()
    assert [p.busy for p in series if p.at < 10] == [0] * sum(p.at < 10 for p in series)
    assert series[-1].reserved == 4
    assert (ledger.allocated, ledger.offered) == (40, 160)


def test_ticks_are_round() -> None:
    assert ticks(10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.07) == [0, 0.02, 0.04, 0.06]
    assert ticks(1) == [0, 0.2, 0.4, 0.6, 0.8, 1]


def test_chart_is_text_that_escapes() -> None:
    drawn = chart(
        "a < b", "x", "y", [Line("one", [(0, 0), (1, 5)]), Line("two", [(0, 1), (1, 2)], True, True)]
    )
    assert "a &lt; b" in drawn
    assert drawn.count("<path") >= 2


def test_command_runs_a_cluster(tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    arguments = ["hep", "--workers", "3", "--calls", "60", "--json", "-o", str(page)]
    ran = CliRunner().invoke(command, arguments)
    assert ran.exit_code == 0, ran.output
    body = json.loads(ran.stdout)
    assert body["makespan_s"] > 0 and body["oracle_makespan_s"] > 0
    assert body["hopeless"] == 0
    assert len(body["utilisation"]["series"]) > 10
    assert "<svg" in page.read_text()


def test_command_compares_strategies_for_people() -> None:
    ran = CliRunner().invoke(command, ["images", "--workers", "3", "--memory", "64GB", "--calls", "40"])
    assert ran.exit_code == 0, ran.output
    assert all(name in ran.stdout for name in ("auto", "as asked", "unmanaged", "oracle"))
    assert "a worker for each call takes" in ran.stdout and "less than what was asked" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["hep", "--workers", "2", "--in-flight", "3"], 2, "exclude each other"),
        (["hep", "-o", "x.html"], 2, "needs --workers"),
        (["hep", "--workers", "2", "--memory", "3x"], 2, "is not a size"),
        (["hep", "--workers", "1", "--calls", "2", "-o", "x.pdf"], 1, "must end in .html or .png"),
        (["absent.csv"], 1, "cannot be read"),
    ],
)
def test_command_refuses_in_one_line(arguments: list[str], code: int, text: str) -> None:
    ran = CliRunner().invoke(command, arguments)
    assert ran.exit_code == code
    assert text in ran.stderr.replace("\n", " ")


def test_returned_is_the_only_good_end() -> None:
    plan = Plan(1, 1, int(4 * GB))
    world = World([call(1 * GB)], plan, "auto", asks_for_cores(plan))
    world.run()
    assert [type(outcome) for outcome in world.answers.values()] == [Returned]
