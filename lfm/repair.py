"""Calls whose environment lacked a module that this client has: the environment is made anew, the call said again.

It may have been lacking when the environment was tried, when the call imported it, or when a package that did without
it so far said that it now needs it.

One repair per function and module, in a thread of its own, as to pack may take seconds; whoever else breaks in
the same way waits for it, or finds it done.  The session's thread's own, but for that one.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.function.optional import asks_to_install
from lfm.protocol.ids import FunctionId
from lfm.protocol.messages import Finished
from lfm.protocol.outcomes import EnvironmentBroken, Impossible, Outcome, Raised

if TYPE_CHECKING:
    from lfm.future import Future
    from lfm.outgoing import Described, Outgoing

MOST = 5  # modules that one call may turn out to lack
_FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)  # of a traceback
_UNBUILT = re.compile(r"the environment lacks '(?P<module>[\w.]+)', which (?P<importer>[\w.]+) imports")
_UNTRIED = re.compile(r"(?P<importer>[\w.]+) cannot be imported from the packed environment: (?P<text>.*)", re.DOTALL)


@dataclass(slots=True)
class Repair:
    """A function's new environment, when it is there; and who waits for it."""

    function: FunctionId
    module: str
    where: str
    waiting: list[tuple[Future[Any], Finished]] = field(default_factory=list)
    done: bool = False
    better: Described | None = None  # None: there is nothing better

    def take(self) -> list[tuple[Future[Any], Finished]]:
        """Who has waited."""
        waited, self.waiting = self.waiting, []
        return waited


class Repairs:
    """All of a session's."""

    def __init__(self, outgoing: Outgoing, over: Callable[[Repair], object]) -> None:
        """``over`` is called, in the repair's thread, when it is done."""
        self._outgoing, self._over = outgoing, over
        self._known: dict[tuple[FunctionId, str], Repair] = {}

    @property
    def waiting(self) -> list[tuple[Future[Any], Finished]]:
        """Calls that are said again when their environment is there."""
        return [one for repair in list(self._known.values()) for one in list(repair.waiting)]

    def want(self, future: Future[Any], finished: Finished) -> Repair | None:
        """The repair of a broken call, begun or done; None if it cannot be repaired."""
        submit = future._submit
        if submit is None or len(future._lacked) >= MOST:
            return None
        module, where = self._lacks(finished.outcome, submit.function)
        if not module or module in future._lacked or not is_here(module):
            return None
        repair = self._known.get((submit.function, module))
        if repair is None:
            repair = Repair(submit.function, module, where)
            try:
                threading.Thread(target=self._work, args=(repair,), name="lfm-repair", daemon=True).start()
            except RuntimeError:  # the interpreter is about to end and starts no more threads
                return None
            self._known[submit.function, module] = repair
        if not repair.done:
            repair.waiting.append((future, finished))
        return repair

    def _lacks(self, outcome: Outcome, function: FunctionId) -> tuple[str, str]:
        """The module for want of which a call failed, and where; empty where it failed for another reason."""
        match outcome:
            case EnvironmentBroken(module, file, line):
                return module, f"{Path(file).name}:{line}" if file else ""
            case Raised(text=text, traceback=trace) if asks_to_install(text):
                *_, (file, number) = _FRAME.findall(trace) or [("", "")]
                return self._outgoing.asked_for(function, text) or "", f"{Path(file).name}:{number}" if file else ""
            case Impossible("environment", reason) if found := _UNBUILT.search(reason):
                return found["module"], found["importer"]
            case Impossible("environment", reason) if (found := _UNTRIED.search(reason)) and asks_to_install(reason):
                return self._outgoing.asked_for(function, found["text"]) or "", found["importer"]
            case _:
                return "", ""

    def give_up(self, future: Future[Any]) -> Finished | None:
        """How a call that waits for a repair had broken; it waits no longer.  None: it did not wait."""
        for repair in self._known.values():
            for one in repair.waiting:
                if one[0] is future:
                    repair.waiting.remove(one)
                    return one[1]
        return None

    def clear(self) -> None:
        """Nobody waits any more."""
        for repair in self._known.values():
            repair.take()

    def _work(self, repair: Repair) -> None:
        try:
            repair.better = self._outgoing.repair(repair.function, repair.module, repair.where)
        except Exception:  # the call then ends as it did: its environment lacks the module
            repair.better = None
        self._over(repair)


def is_here(module: str) -> bool:
    """Whether this interpreter could import it, as far as can be told without importing anything."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
