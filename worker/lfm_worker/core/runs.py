"""What runs here: calls wait for room, are placed in a template, begin, grow into what is free, and end.

Owns the calls, the worker's cores and memory, and the templates that calls are forked from; refuses to know where
what they need comes from (``Supply``), and who says what is to run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, FunctionId, TaskId
from lfm.protocol.outcomes import Crashed, Exhausted, Inline, Killed, Lost, Outcome
from lfm.protocol.resources import MAKES_ROOM_BEFORE, Resources, Usage
from lfm_worker.core import commands as c
from lfm_worker.core import events as e
from lfm_worker.core.calls import Call, Function, Placed, Waiting
from lfm_worker.core.pool import Pool
from lfm_worker.core.room import Room
from lfm_worker.core.stock import Stock

QUIET = 0.02  # seconds that a call runs before that is worth a word: many have ended by then
TOO_LONG = 0.5  # that a call which was sent ahead waits for room, before it is handed back
STEP_SHARE, STEP_LEAST = 0.1, 64 << 20  # by how much a limit grows at a time: of itself, and bytes
WORTH_GROWING = 0.02  # of the limit must be free: a full node gives its last bit rather than kill
MAKES_ROOM = "made room for an older call"


class Runs:
    def __init__(
        self, offer: Resources, cpus: tuple[int, ...], gpus: bool, calls: dict[int, Call], pool: Pool, stock: Stock,
        out: list[c.Command],
    ) -> None:
        """``gpus``: the node has some, so that every call is told which are its own, or none."""
        self.functions: dict[FunctionId, Function] = {}
        self.calls = calls
        self.room = Room(offer, cpus)
        self._gpus, self._pool, self._stock, self._out = gpus, pool, stock, out
        self._numbers: dict[tuple[TaskId, int], int] = {}
        self._last = 0
        self._lacking: dict[int, Call] = {}  # those that wait for items, or have not been looked at
        self._stalled: dict[int, Call] = {}  # and for room alone
        self._pressed: dict[int, e.LimitNeared] = {}  # those that stand still until another has made room
        self._untold: dict[int, float] = {}  # calls that began, and when to say so

    def number(self, task: TaskId, attempt: int) -> int | None:
        """Of an attempt that is here."""
        return self._numbers.get((task, attempt))

    @property
    def ahead(self) -> int:
        """How many calls have all but room."""
        return len(self._stalled)

    def deadline(self) -> float | None:
        """When somebody has waited, or been quiet, for long enough."""
        told = next(iter(self._untold.values()), None)
        ahead = self._first_ahead()
        late = self._stalled[ahead].since + TOO_LONG if ahead is not None else None
        return told if late is None else late if told is None else min(told, late)

    # ------------------------------------------------------------ to begin

    def forget(self, function: FunctionId) -> None:
        """No call needs it any more: nor, if no other function has it, the file with its code."""
        gone = self.functions.pop(function, None)
        if gone is not None and isinstance(code := gone.defined.code, Inline) and all(code != f.defined.code for f in self.functions.values()):
            self._out.append(c.DropCode(code))

    def accept(self, run: m.Run, function: Function, now: float) -> None:
        self._last += 1
        self._numbers[run.task, run.attempt] = self._last
        self.calls[self._last] = self._lacking[self._last] = Call.of(run, function, now)

    def start_all(self, provide: Callable[[Call], bool], now: float) -> None:
        """Start what can start; hand back what was sent ahead and waits in vain.  ``provide``: whether a call lacks nothing."""
        for number, call in list(self._lacking.items()):
            if call.needs <= self._stock.ready or provide(call):
                self._stalled[number] = self._lacking.pop(number)
        if not self.room.is_full:
            for number in list(self._stalled):
                if self._start(number, now) and self.room.is_full:
                    break
        while (ahead := self._first_ahead()) is not None and now >= self._stalled[ahead].since + TOO_LONG:
            self.end(ahead, Lost("there was no room for it", started=False), now)

    def _first_ahead(self) -> int | None:
        for number, call in self._stalled.items():
            if call.run.ahead:
                return number
        return None

    def _start(self, number: int, now: float) -> bool:
        call = self.calls[number]
        grant = self.room.take(number, call.run.allocation)
        if grant is None:
            return False
        template = self._pool.pick(call.environment, call.function.defined.preload)
        if template is None:
            template = self._start_template(call.environment, now)
        call.state = Placed(template)
        del self._stalled[number]
        self._pool.enter(template, number)
        self._out.append(call.start(number, template, grant, self._gpus))
        return True

    def _start_template(self, environment: Digest, now: float) -> int:
        wanted = {p for f in self.functions.values() if f.environment == environment for p in f.defined.preload}
        template = self._pool.add(environment, tuple(sorted(wanted)), now)
        self._out.append(c.StartTemplate(template, environment, tuple(sorted(wanted))))
        return template

    def began(self, number: int, now: float) -> None:
        call = self.calls.get(number)
        if call is not None and isinstance(call.state, Placed) and not call.began:
            call.state = Placed(call.state.template, began=True)
            self._pool.began(call.state.template)
            self._untold[number] = now + QUIET

    def announce(self, now: float) -> None:
        """Say which calls run, of those that have for a while."""
        while self._untold and (number := next(iter(self._untold))) and self._untold[number] <= now:
            del self._untold[number]
            run = self.calls[number].run
            self._tell(m.CallStarted(run.task, run.attempt))

    def announce_again(self) -> None:
        """All that have begun: nobody remembers."""
        self._untold.clear()
        for call in self.calls.values():
            if call.began:
                self._tell(m.CallStarted(call.run.task, call.run.attempt))

    # ------------------------------------------------------------ to end

    def stopped(self, event: e.CallStopped, now: float) -> Outcome | None:
        """Its process has ended; as what it counts, None if it is not here."""
        call = self.calls.get(event.call)
        if call is None:
            return None
        outcome = event.outcome
        if isinstance(call.state, Placed) and not (isinstance(outcome, Lost) and not outcome.started):
            self._pool.began(call.state.template)  # a short call's beginning is not told
        if call.doomed and isinstance(outcome, Killed | Crashed):
            outcome = _displaced(call, event.usage) if call.doomed == MAKES_ROOM else Lost(call.doomed, started=True)
        self.end(event.call, outcome, now, event.usage, event.stdout, event.stderr)
        return outcome

    def template_ended(self, template: int, reason: str, now: float) -> None:
        """It ended by itself, and all calls in it."""
        for number in list(self._pool.templates[template].calls):
            call = self.calls[number]
            self.end(number, Lost(call.doomed or reason, started=call.began), now)

    def end_waiting(self, reason: str, now: float | None = None, environment: Digest | None = None) -> None:
        """Hand back what has not been placed: all of it, or all of an environment."""
        for number, call in list(self.calls.items()):
            if isinstance(call.state, Waiting) and environment in (None, call.environment):
                self.end(number, Lost(reason, started=False), now)

    def kill(self, number: int, now: float) -> None:
        call = self.calls[number]
        if isinstance(call.state, Placed):
            self._out.append(c.StopCall(number, call.state.template))
        else:
            self.end(number, Killed(), now)

    def kill_all(self, reason: str) -> None:
        for number, call in self.calls.items():
            if isinstance(call.state, Placed) and not call.doomed:
                call.doomed = reason
                self._out.append(c.StopCall(number, call.state.template))

    def end(
        self, number: int, outcome: Outcome, now: float | None = None, usage: Usage | None = None,
        stdout: bytes = b"", stderr: bytes = b"",
    ) -> None:
        call = self.calls.pop(number)
        self._lacking.pop(number, None)
        self._stalled.pop(number, None)
        self._untold.pop(number, None)
        del self._numbers[call.run.task, call.run.attempt]
        self.room.give_back(number)
        if isinstance(call.state, Placed) and now is not None:
            self._pool.leave(call.state.template, number, now)
            self._stock.use(call.needs, now)
        self._pressed.pop(number, None)
        for pressed in list(self._pressed.values()):  # before anybody hears of the room
            del self._pressed[pressed.call]
            self.grow(pressed)
        self._tell(m.CallEnded(call.run.task, call.run.attempt, outcome, usage, stdout, stderr))

    # ------------------------------------------------------------ to grow

    def grow(self, event: e.LimitNeared) -> None:
        """A running call is near its memory limit: let it grow into what is free, if it may and it is worth it.

        In steps: half of the calls that come near their limit never exceed it.  One that has, stands still until it
        is told a limit, were it the same as before.  Where there is no room the last to come makes some.
        """
        call = self.calls.get(event.call)
        if call is None or event.resource != "memory" or not isinstance(call.state, Placed) or call.doomed:
            return
        limit, free = call.allocation.memory, self.room.memory_free
        step = max(int(limit * STEP_SHARE), STEP_LEAST, int(event.measured * (1 + STEP_SHARE)) - limit)
        more = min(call.run.growth - limit, free, step)
        if more <= 0 or free < limit * WORTH_GROWING:
            if event.measured > limit < call.run.growth and self._displace(event.call):
                self._pressed[event.call] = event
            elif event.measured > limit:
                self._out.append(c.RaiseLimit(event.call, call.state.template, limit))
            return
        self.room.grow(event.call, more)
        call.allocation = replace(call.allocation, memory=limit + more)
        self._out.append(c.RaiseLimit(event.call, call.state.template, limit + more))
        self._tell(m.LimitRaised(call.run.task, call.run.attempt, call.allocation))

    def _displace(self, number: int) -> bool:
        """End the last of those that came after a call, which has least to lose; False if there is none.

        The oldest is never ended, so that something always comes to its end.
        """
        for other in reversed(self.calls):
            call = self.calls[other]
            if other <= number:
                return False
            if isinstance(call.state, Placed) and call.run.growth and call.run.attempt < MAKES_ROOM_BEFORE and not call.doomed:
                call.doomed = MAKES_ROOM
                self._out.append(c.StopCall(other, call.state.template))
                return True
        return False

    def _tell(self, message: c.News) -> None:
        self._out.append(c.Tell(message))


def _displaced(call: Call, usage: Usage | None) -> Exhausted:
    """How a call ended that made room: of memory, though it had not used up its own."""
    measured, lived = (usage.memory, usage.wall_s) if usage is not None else (0, 0.0)
    return Exhausted("memory", call.allocation.memory, min(measured, call.allocation.memory - 1), lived)
