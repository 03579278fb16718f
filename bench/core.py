"""What the manager's core costs without a network: ``python bench/core.py [--waiting 10000 1000000] [--simulate]``.

Events a second of CPU time with so many calls waiting: a call starts, ends, is released; another is submitted.
``--clients``: the same with 10,000 calls of so many clients.  ``--joining``: what each of so many workers costs that
come.  ``--simulate``: 100,000 calls on 1,000 workers in virtual time.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from typing import Any

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, FunctionId, PeerId, TaskId
from lfm.protocol.outcomes import Inline, Returned
from lfm.protocol.resources import Request, Resources, Usage
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.manager import ManagerCore
from lfm_manager.simulator.loads import draw
from lfm_manager.simulator.plan import Plan
from lfm_manager.simulator.world import simulate
from lfm_manager.sizing import RESOURCES, make

ENV = EnvironmentKey("env")
FIRST_WORKER = 1_000_000  # whatever is below is a client
WORKERS, CORES, CATEGORIES = 100, 16, 5
USAGE = Usage(wall_s=2.0, cpu_s=1.9, cores=0.95, memory=300 << 20, memory_by="cgroup", disk=1000)


class Desk:
    def __init__(self, clients: int = 1) -> None:
        self.clients = clients
        self.core = ManagerCore({resource: make("auto", resource) for resource in RESOURCES})
        self.now, self.count, self.events = 0.0, 0, 0
        self.running: list[tuple[PeerId, TaskId, int]] = []
        for n in range(clients):
            self.say(e.ClientJoined(PeerId(n), m.ClientHello(f"s{n}", "me", "here", 1)))
        self.say(e.ClientSaid(PeerId(0), m.DeclareEnvironment(ENV, Inline(b"{}"), "numpy")))
        for n in range(CATEGORIES):
            function = m.DeclareFunction(FunctionId(f"f{n}"), f"f{n}", f"f{n}", ENV, Inline(b"c"), None, ())
            self.say(e.ClientSaid(PeerId(0), function))
        self.say(e.EnvironmentBuilt(ENV, Digest("t" * 64), 1000, "3.11.7", "x86_64", "glibc 2.31"))

    def say(self, event: e.Event) -> None:
        self.events += 1
        for command in self.core.handle(event, self.now):
            if isinstance(command, c.TellWorker) and isinstance(command.message, m.Run):
                self.running.append((command.peer, command.message.task, command.message.attempt))

    def join(self, number: int) -> None:
        amount = Resources(CORES, 64 * 10**9, 10**12 - number)  # no two disks are equally full
        hello = m.WorkerHello(f"w{number}", f"w{number}", "node", 1, amount)
        self.say(e.WorkerJoined(PeerId(FIRST_WORKER + number), hello))

    def submit(self) -> None:
        self.count += 1
        client = self.count % self.clients
        function = FunctionId(f"f{self.count % CATEGORIES}")
        task = m.Submit(TaskId(f"s{client}-{self.count}"), function, Inline(b"x"), Request(disk=0))
        self.say(e.ClientSaid(PeerId(client), task))

    def turn(self) -> None:
        """One call's life."""
        self.now += 0.01
        peer, task, attempt = self.running.pop(0)
        self.say(e.WorkerSaid(peer, m.CallStarted(task, attempt)))
        self.say(e.WorkerSaid(peer, m.CallEnded(task, attempt, Returned(Inline(b"v")), USAGE)))
        client = PeerId(int(task[1:].partition("-")[0]))
        self.say(e.ClientSaid(client, m.Release((task,))))
        self.submit()


def joining(workers: int) -> tuple[float, float]:
    """Microseconds that each of so many costs: of the first tenth, and of the last."""
    desk = Desk()
    gc.collect()
    gc.freeze()
    tenth = max(1, workers // 10)
    marks = []
    for n in range(workers):
        if n in (0, tenth, workers - tenth):
            marks.append(time.process_time())
        desk.join(n)
    first, last = marks[1] - marks[0], time.process_time() - marks[-1]
    return first / tenth * 1e6, last / tenth * 1e6


def events_a_second(waiting: int, clients: int = 1, turns: int = 5000) -> float:
    desk = Desk(clients)
    for n in range(WORKERS):
        desk.join(n)
    for _ in range(waiting + WORKERS * CORES):
        desk.submit()
    for _ in range(turns):
        desk.turn()
    gc.collect()
    gc.freeze()
    best = 0.0
    for _ in range(3):
        before, start = desk.events, time.process_time()
        for _ in range(turns):
            desk.turn()
        best = max(best, (desk.events - before) / (time.process_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waiting", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 10, 500])
    parser.add_argument("--joining", type=int, default=10_000, help="0: none")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {"schema": "lfm.bench.core/2"}
    found["events_per_s"] = {count: events_a_second(count) for count in options.waiting}
    found["events_per_s_by_clients"] = {count: events_a_second(10_000, count) for count in options.clients}
    if options.joining:
        found["join_us"] = dict(zip(("first", "last"), joining(options.joining), strict=True))
    if options.simulate:
        start = time.process_time()
        simulate(draw("drug-screening", 100_000), Plan(1000, CORES, 64 * 10**9), "auto")
        found["simulation_s"] = time.process_time() - start
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for count, rate in found["events_per_s"].items():
        print(f"core: {rate:,.0f} events a second of CPU with {count:,} calls waiting")
    for count, rate in found["events_per_s_by_clients"].items():
        print(f"core: {rate:,.0f} events a second of CPU with 10,000 calls of {count:,} clients waiting")
    if options.joining:
        print("core: {:,} workers come: {first:.0f} us each at first, {last:.0f} us at last".format(options.joining, **found["join_us"]))
    if options.simulate:
        print(f"core: 100,000 calls on 1,000 workers simulated in {found['simulation_s']:.1f} s of CPU")


if __name__ == "__main__":
    main()
