"""A world from its beginning to its end: who lives in it, what befalls them, and what must be true of it.

Three kinds.  ``calm``: nothing goes wrong, and each call runs exactly as often as it must.  ``trouble``: whatever
can die, be cut off or lie does; each call is answered once, by what its own function does.  ``poison``: some calls
kill every worker that they meet; they are stopped and named, and nobody else is blamed.
"""

from __future__ import annotations

from dataclasses import replace

from lfm.protocol.ids import Digest, TaskId
from lfm.protocol.outcomes import Cancelled, Crashed, Exhausted, Impossible, Killed, Raised, Returned
from lfm.protocol.resources import Resources
from lfm_manager.core.policy import Policy
from lfm_worker.core import events as worker
from worlds.client import Nature, Person
from worlds.clock import Clock
from worlds.host import Manager
from worlds.net import DOWN, TRANSPORT_PATIENCE, UP, Dial, Door, Wire
from worlds.node import Node
from worlds.store import Store

MB, GB = 10**6, 10**9
TROUBLED = 240.0  # seconds in which trouble is made
ENDS = 5000.0  # seconds: by then everything is over, or something hangs
SETTLED = 280.0  # seconds after which nobody is missed any more
POLICY = Policy(patience=5.0, recovery=20.0, client_grace=60.0, idle=0)
LENIENT = replace(POLICY, lost_max=1000, refused_max=1000, deaths_before_alone=1000)
STRANGE = ("slow", "mute", "failing", "lying")
TROUBLES = (
    "die", "die", "cut", "cut", "cut", "break", "lose", "lose", "drain", "crash", "crash", "join", "blink", "restart", "cancel", "kill",
)  # fmt: skip


class World:
    def __init__(self, seed: int) -> None:
        clock = self.clock = Clock(seed)
        dice = self.dice = clock.dice
        self.kind = dice.choice(["calm", "trouble", "trouble", "trouble", "trouble", "poison"])
        self.rate = 0.0 if self.kind == "calm" else dice.choice([0.1, 0.3, 1.0])  # troubles a second
        self.troubled = TROUBLED
        self.mishaps = 1.0 if self.kind == "trouble" else 0.0
        self.delay = dice.choice([0.001, 0.05, 0.3])
        self.policy = replace(POLICY if self.kind == "poison" else LENIENT, ahead_s=dice.choice([0.05, 30.0]), in_memory=dice.choice([0, 5000, None]))
        self.strange = self.kind == "trouble" and dice.random() < 0.3
        self.natures: dict[TaskId, Nature] = {}
        self.stopped: set[TaskId] = set()  # by their person
        self.killed: set[str] = set()  # client processes
        self.store = Store()
        self.manager: Manager | None = None
        self.managers = 0
        self.nodes: list[Node] = []
        self.born = 0
        self.poisons = 2 if self.kind == "poison" else 0
        self.start_manager()
        for _ in range(dice.randint(1, 4)):
            self.join()
        share = dice.choice([2, 4, 8, 16])
        self.people = [
            Person(clock, f"u{n}", dice.random() < 0.6, share, self.door, self.natures, self.nature, self.mishaps)
            for n in range(dice.randint(1, 2))
        ]
        if self.rate:
            self.next_trouble()

    def door(self) -> Door | None:
        return self.manager.door if self.manager is not None and self.manager.alive else None

    # ------------------------------------------------------------ who lives here

    def start_manager(self) -> None:
        self.managers += 1
        self.clock.tell(f"manager {self.managers} starts")
        self.manager = Manager(self.clock, self.store, self.policy, self.managers, self.delay)

    def crash(self) -> None:
        """kill -9 of the manager: at once, or in the middle of its next round."""
        manager = self.manager
        if manager is None or not manager.alive or manager.fatal:
            return
        where = self.dice.choice(["", "before", "after"])
        self.clock.tell(f"the manager is killed {where}")
        if where:
            manager.fatal = where
        else:
            manager.die()

        def again() -> None:
            if manager.alive:
                self.clock.soon(1.0, again)  # its last round has not come
            else:
                self.start_manager()

        self.clock.soon(self.dice.choice([1.0, 30.0]), again)

    def join(self, like: Node | None = None) -> None:
        """The first node, and whoever replaces it, is large enough for everything and means well."""
        dice, number = self.dice, self.born
        self.born += 1
        cores = dice.choice([1, 2, 4])
        if like is not None:
            offer = like.offer
        elif number == 0:
            offer = Resources(4, 32 * GB, 10 * GB, 2)
        else:
            offer = Resources(cores, cores * dice.choice([1, 2, 4]) * GB, 10 * GB, dice.choice([0, 0, 1]))
        strange = self.strange and number > 0 and offer.memory < 32 * GB and dice.random() < 0.4
        kind = dice.choice(STRANGE) if strange else "honest"
        self.clock.tell(f"w{number} starts: {kind}, {offer}")
        node = Node(
            self.clock, number, offer, self.door, self.natures, kind=kind, near=dice.random() < 0.4, mishaps=self.mishaps, ended=self.ended
        )
        self.nodes.append(node)
        if kind == "mute":  # nobody finds it out but by its end
            self.clock.after(60 + dice.random() * 60, node.die)

    def ended(self, node: Node) -> None:
        self.clock.soon(10.0, lambda: self.join(node))

    def nature(self) -> Nature:
        dice = self.dice
        kind = dice.choice(["fine"] * 12 + ["raises", "raises", "crashes", "endless"])
        if self.poisons and dice.random() < 0.3:
            self.poisons -= 1
            kind = "poison"
        result = Digest(f"res{dice.randrange(5)}") if dice.random() < 0.2 else None
        memory = min(int(dice.lognormvariate(19, 1)), 8 * GB)
        return Nature(kind, memory, dice.choice([0.01, 1.0, 10.0]), kind == "raises" and dice.random() < 0.5, result, bulk=dice.choice([1, 1, 300]))

    # ------------------------------------------------------------ what befalls them

    def next_trouble(self) -> None:
        after = self.dice.expovariate(self.rate)
        if self.clock.now + after < self.troubled:
            self.clock.after(after, self.make_trouble)

    def make_trouble(self) -> None:
        if self.clock.now > self.troubled:
            return
        dice = self.dice
        nodes = [n for n in self.nodes if n.alive]
        kind = dice.choice(TROUBLES if self.kind == "trouble" else ("crash", "break", "lose", "blink", "cancel", "kill"))
        self.clock.tell(f"trouble: {kind}")
        person = dice.choice(self.people)
        match kind:
            case "crash":
                self.crash()
            case "blink":
                self.cut(person.client.dial)
            case "restart":
                self.killed.add(person.client.session)
                person.restart()
            case "cancel" | "kill":
                self.take_back(person, kind)
            case "join":
                if len(nodes) < 6:
                    self.join()
            case _ if not nodes:
                pass
            case "die":
                dice.choice(nodes).die()
            case "drain":
                within = dice.choice([None, 10.0])
                dice.choice(nodes)._handle(worker.DrainAsked("it is told to", within))
            case "cut":
                self.cut(dice.choice(nodes).dial)
            case "break":
                self.break_off(dice.choice([*nodes, person.client]).dial)
            case "lose":
                wire = dice.choice([*nodes, person.client]).dial.wire
                if wire is not None:
                    wire.lose_one(dice.choice([UP, DOWN]))
        self.next_trouble()

    def cut(self, dial: Dial) -> None:
        """Nothing gets through for a while, in one direction or both; a connection bears that only so long."""
        most = 100.0 if self.kind == "trouble" else 40.0
        seconds, ways = self.dice.choice([1.0, 10.0, most]) * self.dice.random(), self.dice.choice([(UP,), (DOWN,), (UP, DOWN)])
        until = self.clock.now + seconds
        dial.cut_until = max(dial.cut_until, until)
        wire = dial.wire
        if wire is None:
            return
        for way in ways:
            wire.cut(way, until)
        if seconds > TRANSPORT_PATIENCE:
            self.clock.after(TRANSPORT_PATIENCE, lambda: self.break_off(dial, wire))

    def break_off(self, dial: Dial, wire: Wire | None = None) -> None:
        if dial.wire is not None and (wire is None or wire is dial.wire):
            dial.broke()

    def take_back(self, person: Person, how: str) -> None:
        futures = [f for f in person.client.futures.values() if not f.done()]
        if futures:
            future = self.dice.choice(futures)
            self.stopped.add(future._id)
            (person.client.kill if how == "kill" else person.client.cancel)(future)

    # ------------------------------------------------------------ what must be true

    def over(self) -> bool:
        """Everybody has been told everything."""
        manager = self.manager
        if manager is None or not manager.alive or manager.fatal:
            return False
        for person in self.people:
            client = person.client
            if person.left or not client.futures or not client.greeted or not all(f.done() for f in client.futures.values()):
                return False
            session = manager.core.clients.sessions.get(person.key)
            if session is not None and not all(task in client.futures for task in session.tasks):
                return False
        return True

    def missing(self) -> str:
        """For people: who still waits for what."""
        assert self.manager is not None
        tasks = self.manager.core.calls.tasks
        waiting = [f._id for p in self.people for f in p.client.futures.values() if not f.done()]
        left = [task for p in self.people if p.named for task, saved in self.store.tasks.items() if saved.session == p.key]
        return str([(task, tasks[task].state if task in tasks else "unknown") for task in (*waiting, *left)])

    def live(self) -> World:
        try:
            while not self.over():
                if self.clock.now > ENDS:
                    raise AssertionError(self.clock.tale(f"it never ends: {self.missing()}"))
                self.clock.step()
            self._answers()
            self._settle()
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(self.clock.tale(repr(error))) from error
        return self

    def _answers(self) -> None:
        """Each call's answer is what its function does."""
        need = self.clock.need
        named = {person.name: person.named for person in self.people}
        lies = any(node.kind == "lying" for node in self.nodes)
        for task, nature in self.natures.items():
            if not nature.outcomes:
                mine = named[task.partition("p")[0]] and task in self.store.committed
                need(not mine or task in self.stopped, f"{task} was accepted and never answered")
                continue
            answer = nature.outcomes[0]
            allowed: tuple[type, ...] = {
                "fine": (Returned,), "raises": (Raised, Returned) if nature.luck else (Raised,), "crashes": (Crashed,),
                "endless": (Killed, Cancelled), "poison": (Impossible,),
            }[nature.kind]  # fmt: skip
            if isinstance(answer, Exhausted) and answer.limit < nature.memory:
                continue  # no larger worker was there at the time
            allowed += (Killed, Cancelled) if task in self.stopped else ()
            if isinstance(answer, Impossible) and any(w in answer.reason for w in ("argument", "description", "submit it again")) and task.rpartition("-")[0] in self.killed:
                continue  # its process was killed before the manager had all of it
            need(lies or isinstance(answer, allowed), f"{task}, which is {nature.kind}, was answered {answer}")
            need(self.kind != "calm" or nature.luck or nature.kind != "fine" or nature.begun <= 4, f"{task} ran {nature.begun} times")
        for person in self.people:
            for future in person.client.futures.values():
                if not future.cancelled() and (error := future._exception) is not None:
                    # a call that was taken, or not wanted, may come back after a crash without its value
                    need(self.natures[future._id].taken or future._id in self.stopped or "lost with the manager" not in str(error), f"{future._id}: {error}")

    def _settle(self) -> None:
        """Everybody says goodbye, and nothing is left of it all."""
        self.troubled = self.clock.now
        end = self.clock.now + SETTLED
        while self.clock.now < end - SETTLED / 2:
            self.clock.step()
        for person in self.people:
            person.client.alive = False
            person.client.dial.close(goodbye=True)
        while self.clock.now < end:
            self.clock.step()
        assert self.manager is not None and self.manager.alive
        core, need = self.manager.core, self.clock.need
        need(not core.calls.tasks, f"calls are left: {[(t.id, t.state) for t in core.calls.tasks.values()]}")
        need(not core.clients.sessions and not core.clients.peers, f"sessions are left: {list(core.clients.sessions)}")
        need(not core.scheduler.queues, "queues are left")
        for known in core.workers.values():
            need(not known.running and not known.collecting, f"{known.name} still has calls in the books")
        left = [d for d in core.blobs.known if not d.startswith(("code", "plan"))]
        need(not left, f"blobs are left: {left}")
        need(all(d in core.blobs.known for d in self.store.blobs), f"files are left: {list(self.store.blobs)}")
        self.store.close()
        need(not self.store.tasks and not self.store.sessions, f"rows are left: {list(self.store.tasks)} {list(self.store.sessions)}")
        for node in self.nodes:
            if node.alive and node.kind in ("honest", "slow") and not node.leaving:
                have = (node.core.calls, node.running, node.results)
                need(not any(have), f"{node.session} still has {have}")
                need(node.core.room.memory_free == node.offer.memory, f"{node.session} has not all its memory")
                need(not node.dial.unacknowledged, f"{node.session} still waits to be heard")
