"""What a manager's death leaves: a record of what was committed, and the blobs on its disk.  Stands in for SQLite."""

from __future__ import annotations

from dataclasses import dataclass

from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, EnvironmentKey, TaskId
from lfm.protocol.outcomes import Payload
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.payloads import SMALL, inline_bytes, inline_size, without_arguments, without_value

LAZY = 7  # calls that are forgotten together, as in the real one


@dataclass(slots=True)
class Saved:
    session: str
    submit: m.Submit
    attempt: int = 0
    worker: str = ""
    finished: m.Finished | None = None


class Store:
    def __init__(self) -> None:
        self.tasks: dict[TaskId, Saved] = {}
        self.sessions: dict[str, m.ClientHello] = {}
        self.declared: list[m.DeclareEnvironment | m.DeclareFunction] = []
        self.committed: set[TaskId] = set()  # that were ever accepted
        self.blobs: dict[Digest, None] = {}
        self.kept: set[EnvironmentKey] = set()  # environments that clients made
        self._waiting: list[c.Command] = []
        self._forgotten: list[TaskId] = []

    def write(self, command: c.Command) -> None:
        self._waiting.append(command)

    def lose(self) -> None:
        """The manager dies before it has committed."""
        self._waiting.clear()
        self._forgotten.clear()

    def commit(self, forget: bool = False) -> None:
        for command in self._waiting:
            self._apply(command)
        self._waiting.clear()
        if forget or len(self._forgotten) >= LAZY:
            self.close()

    def close(self) -> None:
        for task in self._forgotten:
            self.tasks.pop(task, None)
        self._forgotten.clear()

    def _apply(self, command: c.Command) -> None:
        match command:
            case c.SaveSession(key, hello):
                self.sessions[key] = hello
            case c.ForgetSession(key):
                self.sessions.pop(key, None)
            case c.SaveDeclared(declared):
                self.declared.append(declared)
            case c.ForgetDeclared(name):
                self.declared = [d for d in self.declared if name not in (getattr(d, "function", ""), getattr(d, "key", ""))]
            case c.SaveTask(session, submit, copy_of):
                if submit.task in self._forgotten:
                    self._forgotten.remove(submit.task)
                    self.tasks.pop(submit.task, None)
                if copy_of is not None:
                    submit = submit.but(arguments=self.arguments(copy_of))
                self.tasks.setdefault(submit.task, Saved(session, submit))
                self.committed.add(submit.task)
            case c.SaveAttempt(task, attempt, worker):
                self.tasks[task].attempt, self.tasks[task].worker = attempt, worker
            case c.SaveResult(finished):
                self.tasks[finished.task].finished = finished
            case c.ForgetTask(task):
                self._forgotten.append(task)
            case _:
                raise AssertionError(f"the store does not know {command}")

    def arguments(self, task: TaskId) -> Payload:
        waiting = [w.submit for w in self._waiting if isinstance(w, c.SaveTask) and w.submit.task == task]
        return (waiting[0] if waiting else self.tasks[task].submit).arguments

    def finished(self, task: TaskId) -> m.Finished:
        waiting = [w.finished for w in self._waiting if isinstance(w, c.SaveResult) and w.finished.task == task]
        found = waiting[0] if waiting else self.tasks[task].finished
        assert found is not None
        return found

    def recovered(self) -> e.Recovered:
        self.tasks = {task: saved for task, saved in self.tasks.items() if saved.session in self.sessions}
        tasks: dict[str, list[e.SavedTask]] = {key: [] for key in self.sessions}
        for saved in self.tasks.values():
            tasks[saved.session].append(_read(saved))
        return e.Recovered(
            tuple(d for d in self.declared if isinstance(d, m.DeclareEnvironment)),
            tuple(d for d in self.declared if isinstance(d, m.DeclareFunction)),
            tuple(e.SavedSession(key, hello, tuple(tasks[key])) for key, hello in self.sessions.items()),
            tuple(self.blobs),
        )


def _read(saved: Saved) -> e.SavedTask:
    """A row as the real store gives it: what is large stays there."""
    submit, finished, size = saved.submit, saved.finished, inline_size(saved.submit.arguments)
    kept = finished is not None and inline_bytes(finished) > SMALL
    if size > SMALL:
        submit = without_arguments(submit)
    if kept and finished is not None:
        finished = without_value(finished)
    return e.SavedTask(submit, saved.attempt, saved.worker, finished, size if size > SMALL else 0, kept)
