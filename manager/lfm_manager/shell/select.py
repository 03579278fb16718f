"""Which calls a person means: by id, by number, by what they have in common.  Reads the core, changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lfm.protocol.ids import TaskId
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.past import Ended
from lfm_manager.core.tasks import Task
from lfm_manager.shell.explain import state_name

STATES = ("waiting", "ready", "placed", "running", "collecting", "done", "failed")
Call = Task | Ended
_NUMBERS = re.compile(r"(?:(?P<session>[\w.-]+):)?(?P<first>\d{1,9})(?:-(?P<last>\d{1,9}))?")


class NoAnswer(Exception):
    """The question cannot be answered: one line, and a hint."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


def find(core: ManagerCore, wanted: str) -> Call:
    """The one call of that id, or of a beginning, an end or a number of it that only one has."""
    known = core.calls.tasks.get(TaskId(wanted)) or core.calls.past.calls.get(TaskId(wanted))
    if known is not None:
        return known
    found = list(_part(core, wanted))
    if len(found) != 1:
        which = "no call is" if not found else f"{len(found)} calls are"
        raise NoAnswer(f"{which} named {wanted!r}", "see: lfm tasks; of those that are over only the last are remembered, and none by a manager that was started again")
    return found[0]


@dataclass(frozen=True, slots=True)
class Chosen:
    calls: list[Call]
    named: bool  # one by one, by id or number; else by what they have in common


def choose(core: ManagerCore, arguments: Mapping[str, Any], *, past: bool) -> Chosen:
    """What ``selection``, ``state`` and ``category`` mean together.  NoAnswer if a name means nothing."""
    selection, of_state, of_category = (str(arguments.get(name) or "") for name in ("selection", "state", "category"))
    chosen = select(core, selection, past=past)
    calls = [c for c in chosen.calls if of_state in ("", state(c)) and of_category in ("", category(c))]
    return Chosen(calls, chosen.named)


def select(core: ManagerCore, selection: str, *, past: bool) -> Chosen:
    """Calls by "all", a category, a state, a session, or parts separated by commas: ids, numbers, ranges of numbers.

    ``past``: also those that their clients have, as far as they are remembered; by id or number they are found anyway.
    """
    calls = list(everything(core, past))
    if selection in ("", "all"):
        return Chosen(calls, False)
    common = [c for c in calls if selection in (category(c), state(c), *_sessions(c))]
    if common or selection in STATES:
        return Chosen(common, False)
    found: dict[TaskId, Call] = {}
    for part in selection.split(","):
        part = part.strip()
        some = list(_part(core, part))
        if not some or (len(some) > 1 and _NUMBERS.fullmatch(part) is None):
            find(core, part)  # says what is wrong
        found |= {c.id: c for c in some}
    return Chosen(list(found.values()), True)


def everything(core: ManagerCore, past: bool) -> Iterator[Call]:
    """Those that are over and remembered first."""
    if past:
        yield from core.calls.past.calls.values()
    yield from core.calls.tasks.values()


def state(call: Call) -> str:
    return call.state if isinstance(call, Ended) else state_name(call)


def category(call: Call) -> str:
    return call.category if isinstance(call, Ended) else call.category.name


def _sessions(call: Call) -> tuple[str, ...]:
    """The session as its client named it, and as it is known here."""
    key = call.session if isinstance(call, Ended) else call.session.key
    return key, key.rpartition("/")[2]


def _part(core: ManagerCore, part: str) -> Iterator[Call]:
    if not part:
        return
    exact = core.calls.tasks.get(TaskId(part)) or core.calls.past.calls.get(TaskId(part))
    if exact is not None:
        yield exact
        return
    numbers = _NUMBERS.fullmatch(part)
    if numbers is None:
        yield from (c for c in everything(core, True) if c.id.endswith(part) or c.id.startswith(part))
        return
    first, session = int(numbers["first"]), numbers["session"]
    last = int(numbers["last"] or first)
    for call in everything(core, True):
        owner, _, number = call.id.rpartition("-")
        if number.isdecimal() and first <= int(number) <= last and (
            session is None or owner.startswith(session) or session in _sessions(call)
        ):
            yield call
