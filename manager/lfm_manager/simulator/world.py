"""The shipped manager core and scheduler, driven by a trace in virtual time.

Plays everybody else: one client that submits all calls at once, the workers of a plan, the shell that builds
environments and stores blobs.  Chance comes from a seed only: the same arguments give the same run.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from random import Random

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import Blob, Exhausted, Inline, Killed, Outcome, Returned
from lfm.protocol.resources import Request, Usage
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.manager import ManagerCore
from lfm_manager.simulator.ledger import Ledger
from lfm_manager.simulator.node import Node, Running
from lfm_manager.simulator.plan import Plan, Stay
from lfm_manager.simulator.trace import Call
from lfm_manager.sizing import make

CLIENT = PeerId(0)
ENVIRONMENT = EnvironmentKey("simulated")
TARBALL = Digest("simulated")
NOTHING = Inline(b"")
ORACLE = "oracle"

Asks = Callable[[Call], Request]
After = Callable[[ManagerCore, float], None]


def simulate(calls: Sequence[Call], plan: Plan, strategy: str, after: After | None = None) -> Ledger:
    """A run under a strategy.  "oracle" is told every size; "fixed" what the trace's author asked."""
    if strategy == ORACLE:
        return World(calls, plan, "fixed", asks_the_truth(plan), after).run()
    asks = asks_as_hinted(plan) if strategy == "fixed" else asks_for_cores(plan)
    return World(calls, plan, strategy, asks, after).run()


class World:
    """``asks`` is what the user says of each call.  ``after`` is called after every event, for checks."""

    def __init__(
        self, calls: Sequence[Call], plan: Plan, strategy: str, asks: Asks, after: After | None = None
    ) -> None:
        self.core = ManagerCore({resource: make(strategy, resource) for resource in ("memory", "disk")})
        self.ledger = Ledger(calls=len(calls))
        self.answers: dict[TaskId, Outcome] = {}
        self.now = 0.0
        self._calls, self._asks, self._after = calls, asks, after
        dice = Random(plan.seed)
        self._peaks = [dice.random() for _ in calls]
        self._nodes: dict[PeerId, Node] = {}
        self._joined = 0
        self._planned = 0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._events: deque[e.Event] = deque()
        for place in plan.places():
            self._expect(place)

    # ------------------------------------------------------------ time

    def run(self) -> Ledger:
        """Until every call is answered, or nothing can happen any more."""
        self._submit_all()
        while self._agenda and len(self.answers) < len(self._calls):
            due = self.core.deadline()
            if due is not None and due < self._agenda[0][0]:
                self._pass_to(due)
                self._handle(e.Ticked())
            else:
                at, _, act = heapq.heappop(self._agenda)
                self._pass_to(at)
                act()
        self.ledger.hopeless += len(self._calls) - len(self.answers)
        return self.ledger

    def _pass_to(self, at: float) -> None:
        self.now = max(self.now, at)
        self.ledger.until(self.now)

    def _at(self, time: float, act: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._agenda, (time, self._planned, act))

    def _handle(self, event: e.Event) -> None:
        """Tell the core, and do what it says; what comes of that at once, it hears at once."""
        self._events.append(event)
        while self._events:
            for command in self.core.handle(self._events.popleft(), self.now):
                self._obey(command)
            if self._after is not None:
                self._after(self.core, self.now)

    def _obey(self, command: c.Command) -> None:
        match command:
            case c.TellWorker(peer, m.Run() as run):
                self._start(self._nodes[peer], run)
            case c.TellClient(_, m.Finished() as finished):
                self._answered(finished)
            case c.TellWorker(peer, m.KillCall() as kill):
                self._kill(self._nodes[peer], kill)
            case c.GetBlob(_, digest):
                self._events.append(e.BlobStored(digest))
            case c.BuildEnvironment(key):
                self._events.append(e.EnvironmentBuilt(key, TARBALL, 1, "", "", ""))
            case _:
                pass  # what is written down, shown to people or dropped is no concern of this world

    # ------------------------------------------------------------ the client

    def _submit_all(self) -> None:
        self._handle(e.ClientJoined(CLIENT, m.ClientHello("simulated", "", "", 0)))
        self._say(m.DeclareEnvironment(ENVIRONMENT, NOTHING, "simulated"))
        for name in dict.fromkeys(call.category for call in self._calls):
            self._say(m.DeclareFunction(FunctionId(name), name, name, ENVIRONMENT, NOTHING, None, ()))
        for number, call in enumerate(self._calls):
            size = int(call.input_bytes)
            arguments = Blob(Digest(str(number)), size) if size else NOTHING
            self._say(m.Submit(TaskId(str(number)), FunctionId(call.category), arguments, self._asks(call)))

    def _say(self, message: m.DeclareEnvironment | m.DeclareFunction | m.Submit) -> None:
        self._handle(e.ClientSaid(CLIENT, message))

    def _answered(self, finished: m.Finished) -> None:
        if finished.task in self.answers:
            raise AssertionError(f"{finished.task} was answered twice")
        self.answers[finished.task] = finished.outcome
        self.ledger.makespan = self.now
        if isinstance(finished.outcome, Returned):
            self.ledger.gave_value(self._calls[int(finished.task)])
        else:
            self.ledger.hopeless += 1
        self._events.append(e.ClientSaid(CLIENT, m.Release((finished.task,))))

    # ------------------------------------------------------------ workers come and go

    def _expect(self, place: Iterator[Stay]) -> None:
        stay = next(place, None)
        if stay is not None:
            self._at(stay.joins, lambda: self._join(stay, place))

    def _join(self, stay: Stay, place: Iterator[Stay]) -> None:
        self._joined += 1
        peer, name = PeerId(self._joined), f"node-{self._joined}"
        node = self._nodes[peer] = Node(peer, stay.offer)
        self.ledger.changed(cores=stay.offer.cores, memory=stay.offer.memory)
        if stay.ends is not None:
            self._at(stay.ends, lambda: self._leave(node, stay, place))
        self._handle(e.WorkerJoined(peer, m.WorkerHello(name, name, name, 0, stay.offer)))

    def _leave(self, node: Node, stay: Stay, place: Iterator[Stay]) -> None:
        for attempt in node.running.values():
            self._vacate(attempt)
            self.ledger.lost += 1
        node.running.clear()
        self.ledger.changed(cores=-stay.offer.cores, memory=-stay.offer.memory)
        del self._nodes[node.peer]
        self._expect(place)
        if stay.says_so:
            self._handle(e.WorkerSaid(node.peer, m.WorkerLeaving("its time is over")))
        else:
            self._handle(e.PeerLost(node.peer, "it was not heard any more"))

    # ------------------------------------------------------------ calls on workers

    def _start(self, node: Node, run: m.Run) -> None:
        number = int(run.task)
        attempt = Running(run, self._calls[number], self.now, self._peaks[number], run.allocation)
        node.take(attempt)
        self.ledger.changed(busy=attempt.allocation.cores, reserved=attempt.limit)
        self._events.append(e.WorkerSaid(node.peer, m.CallStarted(run.task, run.attempt)))
        self._expect_step(node, attempt)

    def _expect_step(self, node: Node, attempt: Running) -> None:
        self._at(attempt.next_step(), lambda: self._step(node, attempt))

    def _step(self, node: Node, attempt: Running) -> None:
        if node.running.get(attempt.key) is not attempt:
            return  # it went with its worker, or was killed
        if attempt.is_over():
            self._end(node, attempt, Returned(NOTHING))
        elif self._grow(node, attempt):
            self._expect_step(node, attempt)
        elif not attempt.near:
            attempt.near = True  # no room now; once more when it stands at the limit
            self._expect_step(node, attempt)
        elif (last := node.last_after(attempt)) is not None:
            self._displace(node, last, attempt)
        else:
            self.ledger.failures += 1
            limit = attempt.limit
            self._end(node, attempt, Exhausted("memory", limit, limit, self.now - attempt.started))

    def _displace(self, node: Node, last: Running, older: Running) -> None:
        """The last makes room for an older one, which has it before anybody hears of it."""
        self.ledger.failures += 1
        node.give_back(last)
        self._vacate(last)
        grown = self._grow(node, older)
        used = min(last.used(self.now), last.limit - 1)
        self._say_ended(node, last, Exhausted("memory", last.limit, used, self.now - last.started))
        if grown:
            self._expect_step(node, older)
        else:
            self._step(node, older)

    def _grow(self, node: Node, attempt: Running) -> bool:
        before = attempt.limit
        if not node.grow(attempt):
            return False
        self.ledger.growths += 1
        self.ledger.changed(reserved=attempt.limit - before)
        raised = m.LimitRaised(attempt.run.task, attempt.run.attempt, attempt.allocation)
        self._handle(e.WorkerSaid(node.peer, raised))
        return True

    def _end(self, node: Node, attempt: Running, outcome: Outcome) -> None:
        node.give_back(attempt)
        self._vacate(attempt)
        self._say_ended(node, attempt, outcome)

    def _say_ended(self, node: Node, attempt: Running, outcome: Outcome) -> None:
        run, call = attempt.run, attempt.call
        spent = self.now - attempt.started
        peak = int(call.memory if isinstance(outcome, Returned) else min(attempt.used(self.now), attempt.limit))
        usage = Usage(wall_s=spent, cpu_s=spent * call.cores, cores=call.cores, memory=peak, memory_by="cgroup")
        self._handle(e.WorkerSaid(node.peer, m.CallEnded(run.task, run.attempt, outcome, usage)))

    def _kill(self, node: Node, kill: m.KillCall) -> None:
        attempt = node.running.get((kill.task, kill.attempt))
        if attempt is not None:
            self._at(self.now, lambda: self._end(node, attempt, Killed()))

    def _vacate(self, attempt: Running) -> None:
        self.ledger.changed(busy=-attempt.allocation.cores, reserved=-attempt.limit)


# ---------------------------------------------------------------- what users say of their calls


def asks_for_cores(plan: Plan) -> Asks:
    """Sizes are found."""
    return lambda call: Request(cores=_cores(call, plan))


def asks_the_truth(plan: Plan) -> Asks:
    return lambda call: Request(cores=_cores(call, plan), memory=min(max(1, ceil(call.memory)), plan.memory))


def asks_as_hinted(plan: Plan) -> Asks:
    """What the trace's author asked; a whole worker where nothing was."""
    return lambda call: Request(cores=_cores(call, plan), memory=int(min(call.hint or plan.memory, plan.memory)))


def _cores(call: Call, plan: Plan) -> float:
    return min(call.cores, plan.cores) or min(1.0, plan.cores)
