"""What the manager's core costs without a network: ``python bench/core.py [--waiting 10000 1000000] [--simulate]``.

Events a second of CPU time with so many calls waiting: a call starts, ends, is released; another is submitted.
``--simulate``: 100,000 calls on 1,000 workers in virtual time.
"""

from __future__ import annotations

import argparse
import gc
import json
import time

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

CLIENT, ENV = PeerId(1), EnvironmentKey("env")
WORKERS, CORES, CATEGORIES = 100, 16, 5
USAGE = Usage(wall_s=2.0, cpu_s=1.9, cores=0.95, memory=300 << 20, memory_by="cgroup", disk=1000)


class Desk:
    def __init__(self) -> None:
        self.core = ManagerCore({resource: make("auto", resource) for resource in RESOURCES})
        self.now, self.count, self.events = 0.0, 0, 0
        self.running: list[tuple[PeerId, TaskId, int]] = []
        self.say(e.ClientJoined(CLIENT, m.ClientHello("s", "me", "here", 1)))
        self.say(e.ClientSaid(CLIENT, m.DeclareEnvironment(ENV, Inline(b"{}"), "numpy")))
        for n in range(CATEGORIES):
            function = m.DeclareFunction(FunctionId(f"f{n}"), f"f{n}", f"f{n}", ENV, Inline(b"c"), None, ())
            self.say(e.ClientSaid(CLIENT, function))
        self.say(e.EnvironmentBuilt(ENV, Digest("t" * 64), 1000, "3.11.7", "x86_64", "glibc 2.31"))

    def say(self, event: e.Event) -> None:
        self.events += 1
        for command in self.core.handle(event, self.now):
            if isinstance(command, c.TellWorker) and isinstance(command.message, m.Run):
                self.running.append((command.peer, command.message.task, command.message.attempt))

    def submit(self) -> None:
        self.count += 1
        task = m.Submit(TaskId(f"s-{self.count}"), FunctionId(f"f{self.count % CATEGORIES}"), Inline(b"x"), Request(disk=0))
        self.say(e.ClientSaid(CLIENT, task))

    def turn(self) -> None:
        """One call's life."""
        self.now += 0.01
        peer, task, attempt = self.running.pop(0)
        self.say(e.WorkerSaid(peer, m.CallStarted(task, attempt)))
        self.say(e.WorkerSaid(peer, m.CallEnded(task, attempt, Returned(Inline(b"v")), USAGE)))
        self.say(e.ClientSaid(CLIENT, m.Release((task,))))
        self.submit()


def events_a_second(waiting: int, turns: int = 5000) -> float:
    desk = Desk()
    for n in range(WORKERS):
        hello = m.WorkerHello(f"w{n}", f"w{n}", "node", 1, Resources(CORES, 64 * 10**9, 10**12))
        desk.say(e.WorkerJoined(PeerId(100 + n), hello))
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
    parser.add_argument("--waiting", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {count: events_a_second(count) for count in options.waiting}
    seconds = None
    if options.simulate:
        start = time.process_time()
        simulate(draw("drug-screening", 100_000), Plan(1000, CORES, 64 * 10**9), "auto")
        seconds = time.process_time() - start
    if options.json:
        print(json.dumps({"schema": "lfm.bench.core/1", "events_per_s": found, "simulation_s": seconds}, indent=2))
        return
    for count, rate in found.items():
        print(f"core: {rate:,.0f} events a second of CPU with {count:,} calls waiting")
    if seconds is not None:
        print(f"core: 100,000 calls on 1,000 workers simulated in {seconds:.1f} s of CPU")


if __name__ == "__main__":
    main()
