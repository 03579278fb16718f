"""What calls print: of running ones asked of their worker for somebody who looks, of ended ones cut from what is known.

Owns the questions on their way.  Nobody asks: nothing is done.
"""

from __future__ import annotations

import itertools
import re
from codecs import getincrementaldecoder
from dataclasses import dataclass
from typing import Any

from lfm.monitor.capture import HEAD, TAIL
from lfm.protocol import messages as m
from lfm.protocol.ids import PeerId, TaskId

PATIENCE = 5.0  # seconds that a worker may take
AT_ONCE = 256  # questions on their way: each answer may have some hundred kB
_GAP = re.compile(rb"\n\[\.\.\. (\d+) bytes left out \.\.\.\]\n")


@dataclass(frozen=True, slots=True)
class _Asked:
    viewer: PeerId
    question: int
    worker: PeerId
    task: TaskId
    attempt: int
    stdout_from: int
    stderr_from: int
    until: float


Reply = tuple[PeerId, m.Answer]


class Outputs:
    """The questions that wait for workers."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}

    def ask(
        self, viewer: PeerId, question: int, worker: PeerId, task: TaskId, attempt: int, since: tuple[int, int], now: float
    ) -> m.AskOutput | None:
        """What to ask the worker; None: too many ask."""
        if len(self._asked) >= AT_ONCE:
            return None
        number = next(self._numbers)
        self._asked[number] = _Asked(viewer, question, worker, task, attempt, *since, now + PATIENCE)
        return m.AskOutput(number, task, attempt, *since)

    def came(self, peer: PeerId, said: m.OutputSoFar) -> Reply | None:
        """The answer for the one who asked; None if nobody waits for it any more."""
        asked = self._asked.get(said.number)
        if asked is None or asked.worker != peer:
            return None
        del self._asked[said.number]
        return self._reply(asked, (said.stdout_from, said.stdout), (said.stderr_from, said.stderr))

    def gone(self, peer: PeerId) -> list[Reply]:
        """A worker or a viewer left: the answers for those who still wait, as far as there are any."""
        left = [number for number, asked in self._asked.items() if peer in (asked.worker, asked.viewer)]
        return [self._nothing(asked) for number in left if (asked := self._asked.pop(number)).viewer != peer]

    def deadline(self) -> float | None:
        """When ``overdue`` is to be called; monotonic."""
        return next((asked.until for asked in self._asked.values()), None)

    def overdue(self, now: float) -> list[Reply]:
        """The answers for those who have waited too long."""
        late = [number for number, asked in self._asked.items() if asked.until <= now]
        return [self._nothing(self._asked.pop(number)) for number in late]

    def _nothing(self, asked: _Asked) -> Reply:
        return self._reply(asked, (asked.stdout_from, b""), (asked.stderr_from, b""))

    @staticmethod
    def _reply(asked: _Asked, stdout: tuple[int, bytes], stderr: tuple[int, bytes]) -> Reply:
        since = (asked.stdout_from, asked.stderr_from)
        return asked.viewer, m.Answer(asked.question, body(asked.task, "running", asked.attempt, since, stdout, stderr))


def body(
    task: TaskId, state: str, attempt: int, since: tuple[int, int], stdout: tuple[int, bytes], stderr: tuple[int, bytes]
) -> dict[str, Any]:
    """What ``lfm logs --json`` prints.  ``_next``: the position to ask from the next time."""
    answer: dict[str, Any] = {"schema": "lfm.logs/1", "task": task, "state": state, "attempt": attempt}
    for name, asked, (begins, data) in (("stdout", since[0], stdout), ("stderr", since[1], stderr)):
        decoder = getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data, final=state != "running")
        answer[name] = (f"\n[... {begins - asked} bytes left out ...]\n" if begins > asked else "") + text
        answer[name + "_next"] = begins + len(data) - len(decoder.getstate()[0])
    return answer


def since(printed: bytes, position: int) -> tuple[int, bytes]:
    """What an ended call printed from ``position`` of its whole output on, and where that begins: later, if it is gone.

    ``printed``: head and tail, and between them, where it was too much, how many bytes were left out.
    """
    gap = _GAP.match(printed, HEAD) if len(printed) > HEAD + TAIL else None
    if gap is None or position <= HEAD:
        return position, printed[position:]
    tail = HEAD + int(gap[1])
    begins = max(position, tail)
    return begins, printed[gap.end() + begins - tail :]
