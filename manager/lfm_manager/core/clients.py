"""What clients say, and what is to be done when they come, fall silent and go.

Owns the sessions.  A session outlives its connection: it ends when its client says so, or stays away too long.
"""

from __future__ import annotations

import itertools
from heapq import heappop, heappush
from typing import assert_never

from lfm.protocol import messages as m
from lfm.protocol.ids import PeerId, TaskId
from lfm.protocol.outcomes import Blob, Impossible
from lfm_manager.core import events as e
from lfm_manager.core.blobs import Blobs
from lfm_manager.core.calls import Calls
from lfm_manager.core.commands import Command, ForgetSession, SaveDeclared, SaveSession, TellClient, TellKept
from lfm_manager.core.environments import Environments, progress
from lfm_manager.core.functions import Away, Coming, Fetching, Function
from lfm_manager.core.policy import Policy
from lfm_manager.core.sessions import Session, session_key
from lfm_manager.core.sizes import blobs_of
from lfm_manager.core.tasks import Done, Failed, Placed, Task, Waiting


class Clients:
    def __init__(
        self, policy: Policy, calls: Calls, blobs: Blobs, environments: Environments, out: list[Command]
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self.peers: dict[PeerId, Session] = {}
        self._due: list[tuple[float, str]] = []  # a heap: when to look after which session; some of that is out of date
        self._policy, self._calls, self._blobs = policy, calls, blobs
        self._environments, self._out = environments, out

    # ------------------------------------------------------------ coming and going

    def join(self, peer: PeerId, hello: m.ClientHello, capacity: m.Capacity, now: float) -> None:
        key = session_key(hello)
        known = self.sessions.get(key)
        if known is not None and not self._hand_over(known, peer, hello):
            return
        before = known.hello if known is not None and known.hello.session != hello.session else None
        session = self.open(key, hello, peer, now)
        if before is not None:
            session.former = f" (process {before.pid} on {before.host})"
        if session.has_calls_of_others():
            self._watch_orphans(session, now)
        self._out.append(SaveSession(session.key, hello))
        self._out.append(TellClient(peer, capacity))
        for task_id in session.tasks:
            task = self._calls.tasks[task_id]
            if "." in task_id or not task_id.startswith(f"{hello.session}-"):
                self._out.append(TellClient(peer, _yours(task)))
            match task.state:
                case Done() | Failed():
                    self._answer(task, peer)
                case Placed(started=float(), attempt=attempt, allocation=allocation, worker=worker):
                    name = self._calls.worker_name(worker)
                    self._out.append(TellClient(peer, m.Started(task_id, attempt, name, allocation)))
                case _:
                    pass

    def _hand_over(self, session: Session, peer: PeerId, hello: m.ClientHello) -> bool:
        """Another client comes with a session's name: the latest has it, and whoever had it is told.

        False: this is one that had it before, and only comes back from a cut.
        """
        before = session.hello
        if hello.session in session.displaced:
            self._out.append(TellClient(peer, m.SessionTaken(before.host, before.pid)))
            return False
        if before.session != hello.session:
            session.displaced.add(before.session)
            if session.peer is not None:
                self._out.append(TellClient(session.peer, m.SessionTaken(hello.host, hello.pid)))
        return True

    def open(self, key: str, hello: m.ClientHello, peer: PeerId | None, now: float) -> Session:
        """The session of that key, from now on at that peer."""
        session = self.sessions.get(key)
        if session is None:
            session = self.sessions[key] = Session(key, hello, peer)
        else:
            self._part(session, now)
        session.hello, session.peer, session.expires = hello, peer, None
        if peer is not None:
            self.peers[peer] = session
        return session

    def _part(self, session: Session, now: float) -> None:
        """It is not at its peer any more."""
        if session.peer is not None:
            del self.peers[session.peer]
            self._environments.client_gone(session.peer, now)
            session.peer = None

    def lost(self, session: Session, sure: bool, now: float) -> None:
        """Its connection is gone: give it time to come back."""
        self._part(session, now)
        if session.hello.name and session.tasks:
            grace = self._policy.retention
        else:
            grace = 0.0 if sure else self._policy.client_grace
        self.expect(session, now + grace)
        if not grace:
            self.end(session, now)

    def expect(self, session: Session, until: float) -> None:
        """It is over then, unless its client comes back."""
        session.expires = until
        heappush(self._due, (until, session.key))

    def _watch_orphans(self, session: Session, now: float) -> None:
        session.orphans_due = now + self._policy.orphans
        heappush(self._due, (session.orphans_due, session.key))

    def end(self, session: Session, now: float) -> None:
        """The session is over: nobody waits for its calls."""
        session.over = True
        self._part(session, now)
        del self.sessions[session.key]
        for task_id in list(session.tasks):
            task = self._calls.tasks[task_id]
            self._calls.cancel(task, "kill", now)
            if task_id in session.tasks:
                self._calls.release(task)
        for digest in session.held:
            self._blobs.leave(digest)
        for function in session.functions:
            self._calls.leave(self._calls.functions[function])
        for environment in session.environments:
            self._environments.leave(self._environments.known[environment])
        session.held.clear()
        session.functions.clear()
        session.environments.clear()
        self._calls.past.close(session.key)
        self._out.append(ForgetSession(session.key))

    def expire(self, now: float) -> None:
        due = []
        while self._due and self._due[0][0] <= now:
            due.append(heappop(self._due)[1])
        for key in due:
            session = self.sessions.get(key)
            if session is None:
                continue
            if session.expires is not None and session.expires <= now:
                self.end(session, now)
            elif session.orphans_due is not None and session.orphans_due <= now:
                self._give_up_orphans(session, now)

    def _give_up_orphans(self, session: Session, now: float) -> None:
        """What only a client had that another one has followed: who follows has been told of it for a while.

        Looked for again while it has such calls: one that runs now may have to wait for its arguments later.
        """
        for task_id in list(session.tasks):
            task = self._calls.tasks[task_id]
            if what := self.lacks(task):
                text = f"{what} was with the client that submitted it{session.former}, which is gone; submit it again"
                self._calls.give_up(task, Impossible("lost", text), now)
        session.orphans_due = None
        if session.has_calls_of_others():
            self._watch_orphans(session, now)

    def lacks(self, task: Task) -> str:
        """For people: what a call waits for that nobody who is here can give; "" if there is no such thing."""
        if not isinstance(task.state, Waiting):
            return ""
        if any(map(self._blobs.is_nowhere, task.state.blobs)):
            return "an argument"
        environment = task.function.environment
        plan = environment.declared.plan
        match environment.state if task.state.environment else None:
            case Away(peer=None):
                return "what its environment is made of"
            case Fetching() if isinstance(plan, Blob) and self._blobs.is_nowhere(plan.digest):
                return "the description of its environment"
            case _:
                return ""

    def deadline(self) -> float | None:
        while self._due and not self._is_true(*self._due[0]):
            heappop(self._due)
        return self._due[0][0] if self._due else None

    def _is_true(self, at: float, key: str) -> bool:
        session = self.sessions.get(key)
        return session is not None and at in (session.expires, session.orphans_due)

    # ------------------------------------------------------------ what they say

    def said(self, session: Session, event: e.ClientSaid, now: float) -> None:
        message = event.message
        match message:
            case m.Submit():
                self._submit(session, message, now)
            case m.Release(tasks):
                for task_id in tasks:
                    if task_id in session.tasks:
                        self._calls.release(self._calls.tasks[task_id])
            case m.Cancel(tasks) | m.Kill(tasks):
                how = "kill" if isinstance(message, m.Kill) else "cancel"
                for task_id in tasks:
                    if task_id in session.tasks:
                        self._calls.cancel(self._calls.tasks[task_id], how, now)
            case m.DeclareFunction():
                self.declare(message, session.peer, session)
            case m.DeclareEnvironment():
                environment = self._environments.declare(message, session.peer, now)
                if message.key not in session.environments:
                    session.environments.add(message.key)
                    self._environments.use(environment)
            case m.EnvironmentProgress() | m.EnvironmentMade() | m.EnvironmentNotMade():
                self._made(event.peer, message, now)
            case m.Goodbye(detach):
                if detach:
                    self._detach(session, now)
                else:
                    self.end(session, now)
            case _:
                assert_never(message)

    def _made(
        self, peer: PeerId, message: m.EnvironmentProgress | m.EnvironmentMade | m.EnvironmentNotMade, now: float
    ) -> None:
        """News of an environment that this client was asked to make."""
        match message:
            case m.EnvironmentProgress(key, _, stage, done, total, text):
                environment = self._environments.made_where(key, peer)
                if environment is not None:
                    self.tell_all(progress(environment, stage, done, total, text))
            case m.EnvironmentMade():
                environment = self._environments.made_by(peer, message, now)
                if environment is not None:
                    self.tell_all(progress(environment, "upload", 0, message.tarball.size, "sent by its client"))
            case m.EnvironmentNotMade():
                self._environments.not_made_by(peer, message, now)

    def _submit(self, session: Session, submit: m.Submit, now: float) -> None:
        known = self._calls.tasks.get(submit.task)
        if known is not None:
            for blob in known.blobs:
                self._blobs.offer(blob.digest, session.peer)
            self._again(known, session)
            return
        for blob in submit.blobs:
            if blob.digest not in session.held:
                session.held.add(blob.digest)
                self._blobs.use(blob, session.peer)
        if self._calls.submit(session, submit, now) is None and session.peer is not None:
            outcome = Impossible("lost", "its function is not known to the manager")
            self._out.append(TellClient(session.peer, m.Finished(submit.task, outcome, None, None, ())))

    # ------------------------------------------------------------ once more

    def why_not_again(self, wanted: TaskId) -> str:
        """For people: why a call cannot run again; "" if it can."""
        calls, session = self._calls, ""
        submit: m.Submit | None = None
        if (task := calls.tasks.get(wanted)) is not None:
            failed, submit, session = isinstance(task.state, Failed), task.submit, task.session.key
        elif (ended := calls.past.calls.get(wanted)) is not None:
            failed, submit, session = ended.state == "failed", ended.submit, ended.session
        else:
            return "it is not remembered any more"
        if not failed:
            return "it has not failed"
        if session not in self.sessions:
            return "its client is gone"
        known = self._blobs.known
        lost = submit is None or any(b.digest not in known or not known[b.digest].here for b in submit.blobs)
        if submit is None or lost or (isinstance(submit.arguments, Blob) and wanted not in calls.past.kept):
            return "its arguments are not kept any more"
        return ""

    def retry(self, wanted: TaskId, now: float) -> None:
        """Run a failed call again, under another name; its client is told that it is its own."""
        if self.why_not_again(wanted):
            return
        calls = self._calls
        task = calls.tasks.get(wanted)
        if task is not None:
            session, submit = task.session, task.submit
        else:
            ended = calls.past.calls[wanted]
            assert ended.submit is not None
            session, submit = self.sessions[ended.session], ended.submit
        root = wanted.partition(".")[0]
        names = (TaskId(f"{root}.{n}") for n in itertools.count(1))
        name = next(n for n in names if n not in calls.tasks and n not in calls.past.calls)
        if session.peer is not None:
            declared = calls.functions[submit.function].declared
            self._out.append(TellClient(session.peer, m.Yours(name, declared.name, declared.environment)))
        if task is not None and task.kept:
            calls.submit(session, submit.but(task=name), now, like=task)
        else:
            self._submit(session, submit.but(task=name), now)
        if session.peer is None and task is not None:
            calls.release(task)  # who comes back finds the new one instead
        calls.past.spent(wanted)

    def _again(self, task: Task, session: Session) -> None:
        """Submitted a second time, after a cut: an answer that it may have missed is said again, and what we may have
        lost is asked for again."""
        if session.peer is None:
            return
        if isinstance(task.state, Done | Failed):
            self._answer(task, session.peer)
            return
        for blob in task.blobs:
            self._blobs.offer(blob.digest, session.peer)

    def _answer(self, task: Task, peer: PeerId) -> None:
        """Say how it ended, if it has."""
        match task.state:
            case Done(kept=True) | Failed(kept=True):
                self._out.append(TellKept(peer, task.id))
            case Done(finished) | Failed(finished):
                self._out.append(TellClient(peer, finished))
            case _:
                pass

    def declare(
        self, declared: m.DeclareFunction, source: PeerId | None, session: Session | None = None, save: bool = True
    ) -> None:
        blobs = blobs_of(declared.code, declared.overlay)
        if declared.function not in self._calls.functions:
            environment = self._environments.known.get(declared.environment)
            if environment is None:
                return  # its calls are answered that it is unknown
            self._calls.declare(Function(declared, environment, blobs))
            if save:
                self._out.append(SaveDeclared(declared))
        if session is not None and declared.function not in session.functions:
            session.functions.add(declared.function)
            self._calls.use(self._calls.functions[declared.function])
        for blob in blobs:
            self._blobs.offer(blob.digest, source)

    def _detach(self, session: Session, now: float) -> None:
        """Its calls go on without it; a session without a name is found again by its own."""
        self._part(session, now)
        self.expect(session, now + self._policy.retention)

    def tell_all(self, message: m.Capacity | m.EnvironmentProgress | m.Notice) -> None:
        self._out.extend(TellClient(peer, message) for peer in self.peers)

    def needed(self, peer: PeerId) -> int:
        """How many of a client's calls could not run if it left now: something that they need is still with it."""
        session = self.peers.get(peer)
        tasks = (self._calls.tasks[task_id] for task_id in session.tasks) if session is not None else ()
        return sum(_needs_client(task) for task in tasks)


def _yours(task: Task) -> m.Yours:
    declared = task.function.declared
    return m.Yours(task.id, declared.name, declared.environment)


def _needs_client(task: Task) -> bool:
    if not isinstance(task.state, Waiting):
        return False
    return bool(task.state.blobs) or isinstance(task.function.environment.state, Fetching | Away | Coming)
