"""The worker's core: whole lists of commands, so that an unexpected one fails the test by itself."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, FunctionId, TaskId
from lfm.protocol.outcomes import Blob, Crashed, Exhausted, Inline, Killed, Lost, Returned
from lfm.protocol.resources import Resources, Usage
from lfm_worker.core import commands as c
from lfm_worker.core import events as e
from lfm_worker.core.items import Item, evict
from lfm_worker.core.outbox import KEEP_S, Outbox
from lfm_worker.core.room import Room
from lfm_worker.core.runs import QUIET, TOO_LONG
from lfm_worker.core.stock import Stock
from lfm_worker.core.worker import Settings, WorkerCore

GB = 10**9
ENV = Blob(Digest("e" * 64), 30_000_000)
ENV_ITEM = Item("environment", ENV.digest)
OVERLAY = Inline(b"overlay")
OVERLAY_ITEM = Item("overlay", Digest(hashlib.sha256(b"overlay").hexdigest()))
FIT = m.DefineFunction(FunctionId("f" * 64), "fit", ENV, Inline(b"code"), None, ("numpy",))
DONE = Returned(Inline(b"42"))


def run(n: int = 1, attempt: int = 1, function: m.DefineFunction = FIT, **more: object) -> m.Run:
    facts = {"arguments": Inline(b"()"), "allocation": Resources(1.0, GB)} | more
    return m.Run(TaskId(f"t-{n}"), attempt, function.function, **facts)  # type: ignore[arg-type]


def lost(n: int, reason: str, started: bool = False) -> c.Tell:
    return c.Tell(m.CallEnded(TaskId(f"t-{n}"), 1, Lost(reason, started), None))


def fresh(**settings: object) -> WorkerCore:
    facts = {"offer": Resources(2.0, 4 * GB), "cpus": (4, 5)} | settings
    return WorkerCore(Settings(**facts))  # type: ignore[arg-type]


def warm(**settings: object) -> WorkerCore:
    """A worker whose environment is ready and whose template runs, idle."""
    core = fresh(**settings)
    core.handle(e.Told(FIT), 0.0)
    core.handle(e.Told(run(0)), 0.0)
    core.handle(e.Fetched(ENV.digest, ENV.size), 0.0)
    core.handle(e.Prepared(ENV_ITEM, 1000, 0.5), 0.0)
    core.handle(e.CallBegan(1), 0.0)
    core.handle(e.CallStopped(1, DONE, None), 0.0)
    return core


def started(commands: list[c.Command]) -> list[int]:
    return [command.call for command in commands if isinstance(command, c.StartCall)]


def test_first_call_of_a_function_from_tarball_to_end() -> None:
    core = fresh()
    assert core.handle(e.Told(FIT), 0.0) == []
    assert core.handle(e.Told(run()), 1.0) == [c.Fetch(ENV.digest, ENV.size)]
    assert core.handle(e.Fetched(ENV.digest, ENV.size), 2.0) == [c.Prepare(ENV_ITEM)]
    assert core.handle(e.Prepared(ENV_ITEM, 90_000_000, 1.5), 3.0) == [
        c.Tell(m.EnvironmentReady(ENV.digest, 1.5)),
        c.StartTemplate(1, ENV.digest, ("numpy",)),
        c.StartCall(
            call=1, template=1, name="fit", function=FIT.function, code=FIT.code, arguments=Inline(b"()"), overlay=None,
            cpus=(4,), threads=1, memory=GB, disk=None, wall_time=None, processes=None,
            environ={"LFM_TASK": "t-1", "LFM_ATTEMPT": "1", "LFM_CORES": "1", "LFM_MEMORY": str(GB)},
        ),
    ]
    assert core.running() == (m.Running(TaskId("t-1"), 1, Resources(1.0, GB), started=False),)
    assert core.handle(e.CallBegan(1), 3.1) == []  # it may have ended before the manager hears
    assert core.deadline() == 3.1 + QUIET
    assert core.handle(e.Ticked(), 3.1 + QUIET) == [c.Tell(m.CallStarted(TaskId("t-1"), 1))]
    usage = Usage(wall_s=1.0)
    assert core.handle(e.CallStopped(1, DONE, usage, b"out", b"err"), 4.0) == [
        c.Tell(m.CallEnded(TaskId("t-1"), 1, DONE, usage, b"out", b"err"))
    ]
    assert core.running() == ()


def test_functions_that_nobody_needs_any_more_are_forgotten_and_their_code_with_the_last_of_them() -> None:
    core = warm()
    twin = FIT.but(function=FunctionId("g" * 64))  # the same code in another environment, say
    core.handle(e.Told(twin), 1.0)
    assert core.handle(e.Told(m.ForgetFunction(FIT.function)), 1.0) == []
    assert core.handle(e.Told(m.ForgetFunction(twin.function)), 1.0) == [c.DropCode(Inline(b"code"))]
    assert core.handle(e.Told(m.ForgetFunction(twin.function)), 1.0) == [] and not core._runs.functions
    assert core.handle(e.Told(run(1)), 1.0) == [lost(1, "its function was never defined here")]
    core.handle(e.Told(FIT), 1.0)
    assert started(core.handle(e.Told(run(2)), 1.0)) == [2]


def test_second_call_needs_nothing() -> None:
    commands = warm().handle(e.Told(run(1)), 1.0)
    assert [type(command) for command in commands] == [c.StartCall]


def test_an_environment_on_the_node_is_not_fetched() -> None:
    core = WorkerCore(Settings(Resources(2.0, 4 * GB)), {ENV_ITEM: (1000, -5.0)})
    assert core.environments() == (ENV.digest,)
    core.handle(e.Told(FIT), 0.0)
    assert core.handle(e.Told(run()), 0.0) == [c.Prepare(ENV_ITEM)]
    # Another worker removed it in between: then it is fetched after all.
    assert core.handle(e.PrepareFailed(ENV_ITEM, "no tarball", "gone"), 0.0) == [c.Fetch(ENV.digest, ENV.size)]


def test_how_much_is_here_is_known_without_looking() -> None:
    """It is asked for everything that comes, and a node may hold tens of thousands of blobs."""
    blobs = [Item("blob", Digest(f"{n:064x}")) for n in range(4)]
    stock = Stock({blobs[0]: (5, 0.0)})
    assert stock.exceeds(4) and not stock.exceeds(5)
    stock.arrive(blobs[1], 7, 1.0)
    stock.arrive(blobs[1], 8, 2.0)  # again, and larger
    assert stock.exceeds(12) and not stock.exceeds(13)
    stock.scan({blobs[0]: (5, 0.0), blobs[1]: (0, 0.0), blobs[2]: (20, 0.0)})  # of its own it knows better
    assert stock.exceeds(32) and not stock.exceeds(33)
    stock.drop(blobs[1])
    stock.drop(blobs[3])  # which is not here
    stock.fail(blobs[2], "gone")
    assert stock.exceeds(4) and not stock.exceeds(5)


def test_every_blob_and_the_overlay_are_awaited() -> None:
    code, big, handle = (Blob(Digest(x * 64), 100_000) for x in "abc")
    function = FIT.but(function=FunctionId("g" * 64), code=code, overlay=OVERLAY)
    core = warm()
    core.handle(e.Told(function), 1.0)
    commands = core.handle(e.Told(run(1, function=function, arguments=big, blobs=(handle,))), 1.0)
    assert commands == [
        c.Fetch(code.digest, code.size), c.Fetch(big.digest, big.size), c.Fetch(handle.digest, handle.size),
        c.Prepare(OVERLAY_ITEM, b"overlay"),
    ]
    for blob in (code, big, handle):
        assert core.handle(e.Fetched(blob.digest, blob.size), 2.0) == []
    [start] = core.handle(e.Prepared(OVERLAY_ITEM, 7, 0.0), 3.0)
    assert isinstance(start, c.StartCall)
    assert (start.overlay, start.code, start.arguments, start.blobs) == (OVERLAY_ITEM.digest, code, big, (handle.digest,))


def test_a_blob_is_fetched_once_however_many_wait() -> None:
    core = fresh()
    core.handle(e.Told(FIT), 0.0)
    assert core.handle(e.Told(run(1)), 0.0) == [c.Fetch(ENV.digest, ENV.size)]
    assert core.handle(e.Told(run(2)), 0.0) == []


def test_a_run_said_twice_runs_once() -> None:
    core = warm()
    assert started(core.handle(e.Told(run(1)), 1.0)) == [2]
    assert core.handle(e.Told(run(1)), 1.0) == []


def test_an_undefined_function_is_handed_back() -> None:
    assert fresh().handle(e.Told(run(1)), 0.0) == [lost(1, "its function was never defined here")]


class TestRoom:
    def test_cpus_are_given_out_once_and_come_back(self) -> None:
        room = Room(Resources(2.0, 10), (4, 5))
        first, second = room.take(1, Resources(1.0, 5)), room.take(2, Resources(1.0, 5))
        assert first is not None and second is not None
        assert (first.cpus, second.cpus) == ((4,), (5,))
        assert room.take(3, Resources(1.0, 0)) is None
        room.give_back(1)
        third = room.take(3, Resources(1.0, 5))
        assert third is not None and third.cpus == (4,)

    def test_a_fraction_of_a_core_shares(self) -> None:
        grant = Room(Resources(2.0, 10), (4, 5)).take(1, Resources(0.5, 5))
        assert grant is not None and grant.cpus == ()

    def test_alone_a_call_gets_more_than_there_is(self) -> None:
        assert Room(Resources(2.0, 10), (4, 5)).take(1, Resources(8.0, 99)) is not None

    def test_calls_wait_for_room_in_order(self) -> None:
        core = warm()
        assert started(core.handle(e.Told(run(1)), 1.0)) == [2]
        assert started(core.handle(e.Told(run(2)), 1.0)) == [3]
        assert started(core.handle(e.Told(run(3)), 1.0)) == []
        assert started(core.handle(e.CallStopped(2, DONE, None), 2.0)) == [4]


class TestLimits:
    def test_a_limit_grows_in_steps_into_what_is_free(self) -> None:
        core = warm()
        [start] = core.handle(e.Told(run(1, growth=3 * GB)), 1.0)
        assert isinstance(start, c.StartCall) and start.grow
        grown = Resources(1.0, GB + GB // 10)
        assert core.handle(e.LimitNeared(2, "memory", 960_000_000, GB), 2.0) == [
            c.RaiseLimit(2, 1, grown.memory), c.Tell(m.LimitRaised(TaskId("t-1"), 1, grown)),
        ]  # fmt: skip
        assert core.running()[0].allocation == grown
        # What has jumped far is followed; never beyond what the manager allows.
        assert core.handle(e.LimitNeared(2, "memory", 2 * GB, grown.memory), 2.1)[0] == c.RaiseLimit(2, 1, 2_200_000_000)
        assert core.handle(e.LimitNeared(2, "memory", 3 * GB, 2_200_000_000), 2.2)[0] == c.RaiseLimit(2, 1, 3 * GB)
        assert core.handle(e.LimitNeared(2, "memory", 3 * GB, 3 * GB), 2.3) == []
        # beyond it, it stands still until it is answered
        assert core.handle(e.LimitNeared(2, "memory", 3 * GB + 1, 3 * GB), 2.4) == [c.RaiseLimit(2, 1, 3 * GB)]
        core.handle(e.CallStopped(2, DONE, None), 3.0)
        assert core.room.memory_free == 4 * GB

    def test_a_users_own_limit_never_grows(self) -> None:
        core = warm()
        [start] = core.handle(e.Told(run(1)), 1.0)
        assert isinstance(start, c.StartCall) and not start.grow
        assert core.handle(e.LimitNeared(2, "memory", 960_000_000, GB), 2.0) == []

    def test_no_growth_on_a_full_node(self) -> None:
        core = warm()
        core.handle(e.Told(run(1, growth=3 * GB)), 1.0)
        core.handle(e.Told(run(2, allocation=Resources(1.0, 3 * GB - 10**7))), 1.0)
        assert core.handle(e.LimitNeared(2, "memory", 960_000_000, GB), 2.0) == []

    def test_on_a_full_node_the_last_to_come_makes_room_for_who_stands_at_its_limit(self) -> None:
        core = warm()
        for n, memory in ((1, GB), (2, GB), (3, 2 * GB)):
            core.handle(e.Told(run(n, growth=4 * GB, allocation=Resources(0.5, memory))), 1.0)
        assert core.handle(e.LimitNeared(2, "memory", 960_000_000, GB), 2.0) == []  # it may never pass it
        assert core.handle(e.LimitNeared(2, "memory", GB + 5, GB), 2.1) == [c.StopCall(4, 1)]
        assert core.handle(e.LimitNeared(3, "memory", GB + 5, GB), 2.2) == [c.RaiseLimit(3, 1, GB)]  # nobody came later
        usage = Usage(wall_s=1.5, memory=GB // 2)
        out = core.handle(e.CallStopped(4, Killed(), usage), 2.5)
        grown = Resources(0.5, int((GB + 5) * 1.1))
        assert out[:3] == [  # who stood still has it before the manager can give it to others
            c.RaiseLimit(2, 1, grown.memory), c.Tell(m.LimitRaised(TaskId("t-1"), 1, grown)),
            c.Tell(m.CallEnded(TaskId("t-3"), 1, Exhausted("memory", 2 * GB, GB // 2, 1.5), usage)),
        ]  # fmt: skip
        assert core.room.memory_free == 4 * GB - GB - grown.memory

    def test_who_has_made_room_often_who_has_a_users_limit_and_who_came_first_stay(self) -> None:
        core = warm()
        core.handle(e.Told(run(1, growth=4 * GB, allocation=Resources(0.5, 2 * GB), attempt=9)), 1.0)
        core.handle(e.Told(run(2, growth=4 * GB, allocation=Resources(0.5, GB))), 1.0)
        core.handle(e.Told(run(3, growth=4 * GB, allocation=Resources(0.5, GB // 2), attempt=3)), 1.0)
        core.handle(e.Told(run(4, allocation=Resources(0.5, GB // 2))), 1.0)
        assert core.handle(e.LimitNeared(3, "memory", GB + 5, GB), 2.1) == [c.RaiseLimit(3, 1, GB)]

    def test_who_may_not_grow_any_more_displaces_nobody(self) -> None:
        core = warm()
        core.handle(e.Told(run(1, growth=2 * GB, allocation=Resources(0.5, 2 * GB))), 1.0)
        core.handle(e.Told(run(2, growth=2 * GB, allocation=Resources(0.5, 2 * GB))), 1.0)
        assert core.handle(e.LimitNeared(2, "memory", 2 * GB + 5, 2 * GB), 2.1) == [c.RaiseLimit(2, 1, 2 * GB)]


class TestKill:
    def test_a_waiting_call_ends_at_once(self) -> None:
        core = fresh()
        core.handle(e.Told(FIT), 0.0)
        core.handle(e.Told(run(1)), 0.0)
        told = core.handle(e.Told(m.KillCall(TaskId("t-1"), 1)), 1.0)
        assert told == [c.Tell(m.CallEnded(TaskId("t-1"), 1, Killed(), None))]

    def test_a_running_call_is_stopped(self) -> None:
        core = warm()
        core.handle(e.Told(run(1)), 1.0)
        assert core.handle(e.Told(m.KillCall(TaskId("t-1"), 1)), 2.0) == [c.StopCall(2, 1)]
        [end] = core.handle(e.CallStopped(2, Killed(), None), 3.0)
        assert end == c.Tell(m.CallEnded(TaskId("t-1"), 1, Killed(), None))

    def test_an_old_attempt_is_not_the_new_one(self) -> None:
        core = warm()
        core.handle(e.Told(run(1, attempt=2)), 1.0)
        assert core.handle(e.Told(m.KillCall(TaskId("t-1"), 1)), 2.0) == []


class TestTrouble:
    def test_a_corrupt_tarball_is_fetched_again_and_then_given_up(self) -> None:
        core = fresh()
        core.handle(e.Told(FIT), 0.0)
        core.handle(e.Told(run(1)), 0.0)
        for _ in range(2):
            core.handle(e.Fetched(ENV.digest, ENV.size), 1.0)
            assert core.handle(e.PrepareFailed(ENV_ITEM, "damaged", "corrupt"), 1.0) == [
                c.Drop(Item("blob", ENV.digest)), c.Fetch(ENV.digest, ENV.size),
            ]  # fmt: skip
        core.handle(e.Fetched(ENV.digest, ENV.size), 1.0)
        assert core.handle(e.PrepareFailed(ENV_ITEM, "damaged", "corrupt"), 1.0) == [
            c.Drop(Item("blob", ENV.digest)), c.Tell(m.EnvironmentUnusable(ENV.digest, "damaged")), lost(1, "damaged"),
        ]  # fmt: skip

    def test_calls_of_an_unusable_environment_are_handed_back(self) -> None:
        core = fresh()
        core.handle(e.Told(FIT), 0.0)
        core.handle(e.Told(run(1)), 0.0)
        core.handle(e.Fetched(ENV.digest, ENV.size), 1.0)
        commands = core.handle(e.PrepareFailed(ENV_ITEM, "glibc too old"), 1.0)
        told = c.Tell(m.EnvironmentUnusable(ENV.digest, "glibc too old"))
        assert commands == [c.Drop(Item("blob", ENV.digest)), told, lost(1, "glibc too old")]
        assert core.handle(e.Told(run(2)), 2.0) == [lost(2, "glibc too old")]
        assert core.handle(e.Welcomed(resumed=False), 3.0) == [told]  # a manager that has forgotten would go on giving them

    def test_a_full_disk_drops_what_is_not_used_and_tries_once_more(self) -> None:
        core = fresh()
        old = Item("environment", Digest("0" * 64))
        core.handle(e.CacheScanned({old: (500, -100.0)}), 0.0)
        core.handle(e.Told(FIT), 0.0)
        core.handle(e.Told(run(1)), 0.0)
        core.handle(e.Fetched(ENV.digest, ENV.size), 1.0)
        assert core.handle(e.PrepareFailed(ENV_ITEM, "disk full", "full"), 1.0) == [c.Drop(old), c.Prepare(ENV_ITEM)]
        commands = core.handle(e.PrepareFailed(ENV_ITEM, "disk full", "full"), 1.0)
        told = c.Tell(m.EnvironmentUnusable(ENV.digest, "disk full", passing=True))
        assert commands == [c.Drop(Item("blob", ENV.digest)), told, lost(1, "disk full")]

    def test_arguments_that_cannot_be_had_cost_only_their_call(self) -> None:
        core = warm()
        core.handle(e.Told(run(1, arguments=Blob(Digest("a" * 64), 9))), 1.0)
        assert core.handle(e.FetchFailed(Digest("a" * 64), "gone"), 2.0) == [lost(1, "gone")]

    def test_a_template_crash_costs_the_calls_in_it_and_the_next_starts_a_new_one(self) -> None:
        core = warm()
        core.handle(e.Told(run(1)), 1.0)
        core.handle(e.Told(run(2)), 1.0)
        core.handle(e.CallBegan(2), 1.0)
        assert core.handle(e.TemplateEnded(1, "killed by signal 9"), 2.0) == [
            lost(1, "killed by signal 9", started=True), lost(2, "killed by signal 9"),
        ]  # fmt: skip
        commands = core.handle(e.Told(run(3)), 3.0)
        assert [type(command) for command in commands] == [c.StartTemplate, c.StartCall]
        assert commands[0] == c.StartTemplate(2, ENV.digest, ("numpy",))

    def test_what_was_sent_ahead_starts_when_there_is_room_and_else_is_handed_back(self) -> None:
        core = warm()
        for n in (1, 2):
            core.handle(e.Told(run(n)), 1.0)
        for n in (3, 4):
            assert core.handle(e.Told(run(n, ahead=True)), 1.0) == []
        assert core.ahead == 2
        commands = core.handle(e.CallStopped(2, DONE, None), 1.1)
        assert started(commands) == [4] and core.ahead == 1
        assert core.deadline() == 1.0 + TOO_LONG
        assert core.handle(e.Ticked(), 1.0 + TOO_LONG) == [lost(4, "there was no room for it")]
        assert core.ahead == 0

    def test_an_interpreter_that_never_runs_a_call_is_given_up(self) -> None:
        core = fresh()
        core.handle(e.CacheScanned({ENV_ITEM: (1000, 0.0)}), 0.0)
        core.handle(e.Told(FIT), 0.0)
        for attempt in (1, 2, 3):
            core.handle(e.Told(run(1, attempt=attempt)), 0.0)
            if attempt == 1:
                core.handle(e.Prepared(ENV_ITEM, 1000, 0.0), 0.0)
            commands = core.handle(e.TemplateEnded(attempt, "exit code 1"), 1.0)
        reason = "its interpreter does not start here: exit code 1"
        assert commands[-1] == c.Tell(m.EnvironmentUnusable(ENV.digest, reason))


    def test_an_interpreter_that_cannot_be_started_for_now_is_tried_again(self) -> None:
        core = fresh()
        core.handle(e.CacheScanned({ENV_ITEM: (1000, 0.0)}), 0.0)
        core.handle(e.Told(FIT), 0.0)
        for attempt in range(1, 9):
            core.handle(e.Told(run(1, attempt=attempt)), 0.0)
            if attempt == 1:
                core.handle(e.Prepared(ENV_ITEM, 1000, 0.0), 0.0)
            commands = core.handle(e.TemplateEnded(attempt, "no descriptors", passing=True), 1.0)
            assert not [x for x in commands if isinstance(x, c.Tell) and isinstance(x.message, m.EnvironmentUnusable)]


class TestTemplates:
    def test_one_with_more_preloaded_takes_over(self) -> None:
        core = warm()
        core.handle(e.Told(run(1)), 1.0)
        more = FIT.but(function=FunctionId("g" * 64), preload=("scipy",))
        core.handle(e.Told(more), 1.0)
        commands = core.handle(e.Told(run(2, function=more)), 1.0)
        assert commands[0] == c.StartTemplate(2, ENV.digest, ("numpy", "scipy"))
        assert core.handle(e.CallStopped(2, DONE, None), 2.0)[-1] == c.CloseTemplate(1)

    def test_an_idle_one_is_closed_after_a_while(self) -> None:
        core = warm(template_idle=10.0)
        assert core.deadline() == 10.0
        assert core.handle(e.Ticked(), 10.0) == [c.CloseTemplate(1)]
        assert core.deadline() is None


class TestLeaving:
    def test_drain_hands_back_finishes_and_leaves(self) -> None:
        core = warm()
        core.handle(e.Told(run(1)), 1.0)
        core.handle(e.Told(run(2, arguments=Blob(Digest("a" * 64), 9))), 1.0)
        assert core.handle(e.Told(m.Drain("asked")), 2.0) == [
            c.Tell(m.OfferChanged(Resources(2.0, 4 * GB), draining=True)), lost(2, "asked"),
        ]  # fmt: skip
        assert core.handle(e.Told(run(3)), 2.0) == [lost(3, "asked")]
        assert core.handle(e.CallStopped(2, DONE, None), 3.0) == [
            c.Tell(m.CallEnded(TaskId("t-1"), 1, DONE, None)), c.CloseTemplate(1),
            c.Tell(m.WorkerLeaving("asked")), c.Leave("asked"),
        ]  # fmt: skip
        assert core.handle(e.Ticked(), 9.0) == []

    def test_large_results_are_served_before_leaving(self) -> None:
        core = warm()
        core.handle(e.Told(run(1)), 1.0)
        core.handle(e.DrainAsked("SIGTERM", within=20.0), 2.0)
        value = Blob(Digest("d" * 64), 10**6)
        assert len(core.handle(e.CallStopped(2, Returned(value), None), 3.0)) == 1
        commands = core.handle(e.Told(m.ForgetBlob(value.digest)), 4.0)
        assert commands[0] == c.DropResult(value.digest)
        assert commands[-1] == c.Leave("SIGTERM")

    def test_what_does_not_end_in_time_is_killed_and_was_not_at_fault(self) -> None:
        core = warm()
        core.handle(e.Told(run(1)), 1.0)
        core.handle(e.CallBegan(2), 1.0)
        core.handle(e.DrainAsked("SIGTERM", within=20.0), 2.0)
        assert core.deadline() == 22.0
        assert core.handle(e.Ticked(), 22.0) == [c.StopCall(2, 1)]
        commands = core.handle(e.CallStopped(2, Killed(), None), 22.1)
        assert commands[0] == lost(1, "SIGTERM", started=True)
        assert commands[-1] == c.Leave("SIGTERM")

    def test_the_end_of_the_allotment_drains(self) -> None:
        core = warm(end=100.0, margin=10.0)
        core.handle(e.Told(run(1)), 1.0)
        assert core.deadline() == 90.0
        assert core.handle(e.Ticked(), 90.0) == [c.Tell(m.OfferChanged(Resources(2.0, 4 * GB), draining=True))]
        assert core.deadline() == 98.0

    def test_idle_for_too_long(self) -> None:
        core = warm(idle_timeout=30.0)
        assert core.handle(e.Ticked(), 29.0) == []
        assert core.handle(e.Ticked(), 30.0)[-1] == c.Leave("idle for 30 s")

    def test_a_manager_that_forgot_us_is_told_what_its_hello_did_not_say(self) -> None:
        core = warm()
        core.handle(e.Told(run(1)), 1.0)
        core.handle(e.CallBegan(2), 1.0)
        core.handle(e.Told(m.Drain("asked")), 2.0)
        assert core.handle(e.Welcomed(resumed=False), 3.0) == [
            c.Tell(m.CallStarted(TaskId("t-1"), 1)), c.Tell(m.OfferChanged(Resources(2.0, 4 * GB), draining=True)),
        ]  # fmt: skip
        assert core.handle(e.Welcomed(resumed=True), 3.0) == []


class TestCache:
    def test_least_recently_used_goes_first_and_never_one_in_use(self) -> None:
        a, b, d = (Item("blob", Digest(x * 64)) for x in "abd")
        held = {a: (10, 1.0), b: (10, 2.0), d: (10, 3.0)}
        assert evict(held, set(), 30) == []
        assert evict(held, set(), 25) == [a]
        assert evict(held, {a}, 15) == [b, d]

    def test_its_idle_templates_are_closed_before_an_environment_goes(self) -> None:
        core = warm(cache=1500)
        other = Item("environment", Digest("1" * 64))
        commands = core.handle(e.CacheScanned({other: (1400, 99.0)}), 99.0)
        assert commands == [c.CloseTemplate(1), c.Drop(ENV_ITEM)]

    @given(
        held=st.dictionaries(st.integers(0, 20), st.tuples(st.integers(0, 100), st.floats(0, 10)), max_size=12),
        used=st.sets(st.integers(0, 20)), limit=st.integers(0, 500),
    )  # fmt: skip
    def test_evict_is_enough_and_no_more(self, held: dict[int, tuple[int, float]], used: set[int], limit: int) -> None:
        items = {Item("blob", Digest(f"{n:064}")): v for n, v in held.items()}
        in_use = {Item("blob", Digest(f"{n:064}")) for n in used}
        gone = evict(items, in_use, limit)
        assert not set(gone) & in_use
        rest = sum(size for item, (size, _) in items.items() if item not in gone)
        if rest > limit:
            assert all(item in in_use or not items[item][0] for item in items if item not in gone)
        if gone:
            assert rest + items[gone[-1]][0] > limit


class TestOutbox:
    def test_unconfirmed_ends_are_said_again(self) -> None:
        box = Outbox()
        first, second = (m.CallEnded(TaskId(f"t-{n}"), 1, DONE, None) for n in (1, 2))
        for message in (first, m.CallStarted(TaskId("t-2"), 1), second):
            box.said(message)
        box.confirmed(1, now=0.0)
        assert [r.task for r in box.running()] == ["t-1", "t-2"]
        box.welcomed()
        box.confirmed(1, now=KEEP_S + 1)  # the first is surely stored by now
        assert box.again() == [second]
        assert box.again() == []


@pytest.mark.parametrize("gpus, seen", [(("2",), "2"), ((), "")])
def test_a_call_sees_only_its_own_gpus(gpus: tuple[str, ...], seen: str) -> None:
    core = warm(gpu_devices=("1", "2"))
    [start] = core.handle(e.Told(run(1, gpu_devices=gpus)), 1.0)
    assert isinstance(start, c.StartCall) and start.environ["CUDA_VISIBLE_DEVICES"] == seen


class Life:
    """A worker's shell reduced to what must hold: random events in, every command checked."""

    def __init__(self) -> None:
        self.core = fresh()
        self.core.handle(e.Told(FIT), 0.0)
        self.now = 0.0
        self.asked: set[tuple[int, int]] = set()
        self.answered: list[tuple[str, int]] = []
        self.live: dict[int, int] = {}  # call: template
        self.templates: set[int] = set()
        self.pending: list[c.Fetch | c.Prepare] = []

    def happen(self, event: e.Event) -> None:
        self.now += 1.0
        for command in self.core.handle(event, self.now):
            match command:
                case c.StartCall():
                    assert command.template in self.templates
                    self.live[command.call] = command.template
                case c.StartTemplate():
                    self.templates.add(command.template)
                case c.CloseTemplate():
                    assert command.template not in self.live.values()
                    self.templates.remove(command.template)
                case c.Tell(m.CallEnded() as end):
                    self.answered.append((end.task, end.attempt))
                case c.Fetch() | c.Prepare():
                    self.pending.append(command)
                case _:
                    pass

    def settle(self, good: bool, cause: e.Cause) -> None:
        match self.pending.pop(0):
            case c.Fetch(digest, size):
                self.happen(e.Fetched(digest, size) if good else e.FetchFailed(digest, "no", cause))
            case c.Prepare(item):
                self.happen(e.Prepared(item, 5, 0.1) if good else e.PrepareFailed(item, "no", cause))

    def crash(self, template: int) -> None:
        self.templates.remove(template)
        self.live = {call: t for call, t in self.live.items() if t != template}
        self.happen(e.TemplateEnded(template, "died"))

    def stop(self, call: int, event: e.CallStopped) -> None:
        del self.live[call]
        self.happen(event)


@settings(max_examples=200)
@given(st.data())
def test_every_run_is_answered_once_whatever_happens(data: st.DataObject) -> None:
    """Random events; at the end everything is over, answered exactly once, and nothing is held."""
    life = Life()
    for _ in range(data.draw(st.integers(1, 25))):
        kind = data.draw(st.sampled_from(["run", "settle", "stop", "began", "kill", "crash", "drain"]))
        if kind == "run":
            attempt = (data.draw(st.integers(1, 8)), data.draw(st.integers(1, 2)))
            if attempt not in life.asked:
                life.asked.add(attempt)
                life.happen(e.Told(run(*attempt)))
        elif kind == "settle" and life.pending:
            life.settle(data.draw(st.booleans()), data.draw(st.sampled_from(["corrupt", "full", "gone", "other"])))
        elif kind == "stop" and life.live:
            call = data.draw(st.sampled_from(sorted(life.live)))
            outcome = data.draw(st.sampled_from([DONE, Killed(), Crashed(9, None)]))
            life.stop(call, e.CallStopped(call, outcome, None))
        elif kind == "began" and life.live:
            life.happen(e.CallBegan(data.draw(st.sampled_from(sorted(life.live)))))
        elif kind == "kill":
            life.happen(e.Told(m.KillCall(TaskId(f"t-{data.draw(st.integers(1, 8))}"), 1)))
        elif kind == "crash" and life.templates:
            life.crash(data.draw(st.sampled_from(sorted(life.templates))))
        elif kind == "drain" and data.draw(st.integers(0, 5)) == 0:
            life.happen(e.DrainAsked("bye"))
    life.happen(e.StopAsked("end"))
    for call in list(life.live):
        life.stop(call, e.CallStopped(call, Killed(), None))
    assert sorted(life.answered) == sorted((f"t-{n}", a) for n, a in life.asked)
    assert life.core.left and not life.core.calls and not life.templates
    assert (life.core.room.cores_free, life.core.room.memory_free) == (2.0, 4 * GB)


def test_what_a_call_prints_is_read_only_while_it_runs() -> None:
    core = fresh()
    asked = m.AskOutput(7, TaskId("t-1"), 1, 10, 20)
    nothing = [c.Tell(m.OutputSoFar(7, 10, b"", 20, b""))]
    assert core.handle(e.Told(asked), 0.0) == nothing
    core.handle(e.Told(FIT), 0.0)
    core.handle(e.Told(run()), 1.0)
    assert core.handle(e.Told(asked), 1.0) == nothing
    core.handle(e.Fetched(ENV.digest, ENV.size), 2.0)
    core.handle(e.Prepared(ENV_ITEM, 90_000_000, 1.5), 3.0)
    assert core.handle(e.Told(asked), 3.0) == [c.ReadOutput(1, 1, asked)]
    core.handle(e.CallStopped(1, DONE, None), 4.0)
    assert core.handle(e.Told(asked), 4.0) == nothing


def test_who_only_waits_for_the_killed_to_end_is_not_woken_for_it() -> None:
    core = warm()
    core.handle(e.Told(run()), 10.0)
    core.handle(e.CallBegan(2), 10.0)
    core.handle(e.DrainAsked("told to", within=5.0), 11.0)
    assert core.deadline() is not None
    core.handle(e.Ticked(), 16.0)
    due = core.deadline()
    assert due is None or due > 16.0, "it would spin until the call is dead"


def test_an_end_that_a_hello_named_is_not_forgotten_before_it_is_said_again() -> None:
    outbox = Outbox()
    ended = m.CallEnded(TaskId("t-1"), 1, DONE, None)
    outbox.said(ended)
    outbox.confirmed(0, 0.0)
    assert outbox.running() == (m.Running(TaskId("t-1"), 1),)
    outbox.confirmed(0, KEEP_S + 1.0)
    assert outbox.again() == [ended]
    outbox.said(ended)
    outbox.confirmed(0, 0.0)
    outbox.running()
    outbox.welcomed()
    outbox.confirmed(0, KEEP_S + 1.0)
    assert outbox.again() == []
