"""The manager as a process: one poller loop around the pure core.

Turns what comes from sockets, children, the clock and signals into events, and carries out the core's commands.
One round: take what has come, let the core decide, commit the store, then let messages leave: nothing is said
that a crash could make untrue.  Sleeps until something comes or is due; an idle manager uses no CPU.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, assert_never

import zmq

from lfm.blobs import BlobStore
from lfm.connection import Joined, Left, Listener, Said
from lfm.headroom import Headroom
from lfm.protocol import messages as m
from lfm.protocol.ids import Digest, PeerId, TaskId
from lfm.protocol.outcomes import Blob, Payload
from lfm.protocol.pace import LEASE
from lfm.run import RunDirectory
from lfm_manager import sizing
from lfm_manager.core import commands as c
from lfm_manager.core import events as e
from lfm_manager.core.manager import ManagerCore
from lfm_manager.core.policy import Policy
from lfm_manager.core.sanity import absurd, complaint
from lfm_manager.core.tasks import Task
from lfm_manager.shell import addresses, history, query
from lfm_manager.shell.builds import Builds
from lfm_manager.shell.mail import Mail
from lfm_manager.shell.outputs import Outputs
from lfm_manager.shell.select import choose, find
from lfm_manager.shell.store import Store, StoreFailed
from lfm_manager.shell.transfers import Transfers

log = logging.getLogger(__name__)

NAMED = 100_000  # calls that an answer names: a frame has a largest size
LOOK_EVERY = 5.0  # seconds between looks whether the run directory is still there
IN_MEMORY = 32 << 20  # bytes of waiting calls' arguments, and of results, beyond which they stay in the store
LAST_WORDS = 0.5  # seconds that what was said last may take to be heard
FAREWELL = 2.0  # seconds that workers without calls have to leave, when the manager is stopped; all, when it cannot go on
PACKETS = 64  # of all peers taken in one round: the rest waits in the socket, and answers are not kept back
HEADROOM = 32 << 20  # bytes that one packet may take, with all that comes of it
SHORT_PAUSE = 0.1  # seconds between looks whether there is memory again
FEW, SLOW = 4, 0.05  # at least; seconds for them, after which the next round takes fewer
ONLY_CLIENTS = ("drain", "stop", "shutdown", "cancel", "retry", "leaving")  # questions that change something


@dataclass(frozen=True, slots=True)
class Settings:
    """What a manager is given once."""

    interface: str = addresses.ANY
    ports: tuple[int, ...] = (0,)
    advertise: tuple[str, ...] = ()
    strategy: str = "auto"
    strategies: dict[str, str] = field(default_factory=dict)  # by category, where it is to be another
    ephemeral: bool = False  # nothing is kept: it ends with whoever started it
    stdin_eof: bool = False
    history: bool = True  # learn from earlier runs, and for later ones
    idle_timeout: float | None = None  # seconds without clients, calls and workers' work
    policy: Policy = field(default_factory=Policy)
    lease: float = LEASE  # seconds of a peer's silence after which it is lost


class Manager:
    """Owns the sockets and the store from ``__init__`` to ``close``."""

    def __init__(self, run: RunDirectory, settings: Settings) -> None:
        self.run_directory, self.settings = run, settings
        self.started = time.time()
        self.core = ManagerCore(
            {resource: sizing.make(settings.strategy, resource) for resource in sizing.RESOURCES},
            settings.policy if settings.ephemeral else replace(settings.policy, in_memory=IN_MEMORY), settings.strategies,
        )
        self.store = None if settings.ephemeral else Store(run.path / "lfm.db")
        self.poller = zmq.Poller()
        self.listener = Listener(run, [settings.interface], settings.ports, later=True, lease=settings.lease)
        self.listener.register(self.poller)
        self.builds = Builds(self.poller, run.environments)
        self.outputs = Outputs()
        self.mail = Mail(self.listener, self.store)
        self.transfers = Transfers(BlobStore(run.blobs), self.builds.tarballs, self.mail.send)
        self.addresses = addresses.reachable(settings.interface, self.listener.port, settings.advertise)
        self._roles: dict[PeerId, str] = {}
        self._starts: dict[TaskId, tuple[PeerId, m.Started]] = {}  # to be told at the end of this round
        self._dropped: set[Digest] = set()  # blobs to remove, once no call that is written down refers to them
        self._pending: list[e.Event] = []  # answers to commands that were known at once
        self._look_at = 0.0 if self.store is not None else math.inf  # when to see whether the run directory is there
        self._packets = PACKETS
        self.headroom, self._short = Headroom(HEADROOM), ""  # why nothing is taken now
        self._torn = False  # between what was decided and what was done: neither is written down
        self._noticed = ""  # what people were told last
        self._ending = ""  # why, once it is to end
        self._dismissed: float | None = None  # until when workers that were told to leave may take
        self._due = 0.0  # when the clocks are to be looked at next
        self._busy = time.monotonic()  # when there was last something to do
        self._wake, self._woken = socket.socketpair()
        for one in (self._wake, self._woken):
            one.setblocking(False)
        self.poller.register(self._wake.fileno(), zmq.POLLIN)
        if settings.stdin_eof:
            self.poller.register(0, zmq.POLLIN)
        self.history = history.opened() if settings.history else None
        self._remember()
        self._recover()

    # ------------------------------------------------------------ the loop

    def serve(self, ready: Callable[[], None] = lambda: None) -> str:
        """Until told to end; why it ended."""
        gc.freeze()
        gc.set_threshold(200_000, 50, 50)  # a million waiting calls are no garbage: look for it seldom
        with _Signals(self._woken, self._end):
            self.run_directory.publish(self.addresses)
            ready()
            try:
                while not self._over():
                    self._round(dict(self.poller.poll(self._timeout())))
            except StoreFailed as error:
                self.listener.dismiss(str(error), FAREWELL)
                raise
            except MemoryError:
                self._torn = True
                raise StoreFailed("out of memory; started again on this run directory the manager goes on, nothing is lost") from None
        return self._ending

    def _over(self) -> bool:
        """Told to end, and the workers that were dismissed have gone or had their time."""
        if not self._ending or self._dismissed is None:
            return bool(self._ending)
        idle = all(worker.running for worker in self.core.workers.values())
        return idle or time.monotonic() >= self._dismissed

    def _round(self, readable: dict[Any, int]) -> None:
        began = time.monotonic()
        if self._is_short():
            time.sleep(SHORT_PAUSE)  # what has come still lies in the socket, and nobody is blamed for it
        else:
            for news in self.listener.receive(1 if self.headroom.limited else self._packets, readable):
                self._heard(news)
        slow = time.monotonic() - began > SLOW  # questions may take long, and others wait for the end of the round
        self._packets = max(FEW, self._packets // 2) if slow else min(PACKETS, self._packets * 2)
        for descriptor in readable:
            if isinstance(descriptor, int):
                self._readable(descriptor)
        now = time.monotonic()
        if now >= self._due:
            self._look_at_clocks(now)
        if self._ending == signal.SIGINT.name:
            self._dismiss()  # Ctrl-C is a person; SIGTERM may be a restart, and workers wait for the next manager
        for peer, message in self._starts.values():
            self.mail.send(peer, message)
        self._starts.clear()
        self._deliver(now)
        self.listener.flush()
        self._look_if_idle(now)

    def _look_at_clocks(self, now: float) -> None:
        """Do what is due."""
        if now >= self.listener.deadline() and not self._short:
            for news in self.listener.tick():
                self._heard(news)
        due = self.core.deadline()
        if due is not None and now >= due:
            self._tell(e.Ticked())
        if (due := self.outputs.deadline()) is not None and now >= due:
            for reply in self.outputs.overdue(now):
                self.listener.send(*reply)  # viewers are answered though nothing can be written
        if now >= self.transfers.deadline():
            for stored in self.transfers.retry():
                self._tell(stored)
        if now >= self.builds.deadline():
            for found in self.builds.retry():
                self._tell(found)
        if self.history is not None and (due := self.history.deadline()) is not None and now >= due:
            self.history.write()

    def _is_short(self) -> bool:
        """Whether nothing may be taken, as there is no memory for what comes of it; said once, to everybody."""
        short = self.headroom.lacks()
        if short and not self._short:
            self._short = "the manager is short of memory: what is said to it waits until it has some (see: ulimit -v)"
            log.error("%s", self._short)
            for peer, role in self._roles.items():
                if role == "client":
                    self.listener.send(peer, m.Notice("warning", self._short))
            self.listener.flush()
        elif self._short and not short:
            log.info("the manager has memory again")
            self._short = ""
        return short

    def _timeout(self) -> int:
        """Milliseconds until something is due."""
        due = self.listener.deadline()
        history = self.history.deadline() if self.history is not None else None
        others = self.mail.deadline(), self.transfers.deadline(), self.builds.deadline(), self._look_at
        for other in (self.core.deadline(), history, self.outputs.deadline(), *others):
            due = due if other is None else min(due, other)
        if self.settings.idle_timeout is not None:
            due = min(due, self._busy + self.settings.idle_timeout)
        if self._dismissed is not None:
            due = min(due, self._dismissed)
        self._due = due
        return max(0, math.ceil((due - time.monotonic()) * 1000))

    def _readable(self, descriptor: int) -> None:
        if self.builds.owns(descriptor):
            for news in self.builds.readable(descriptor):
                self._tell(news)
        elif descriptor == self._wake.fileno():
            try:
                self._wake.recv(64)
            except BlockingIOError:
                pass
        elif descriptor == 0 and not os.read(0, 4096):
            self.poller.unregister(0)
            self._end("its starter is gone")

    def _end(self, reason: str) -> None:
        self._ending = self._ending or reason

    def _dismiss(self) -> None:
        """A person ends the run: the workers need not wait for another manager.  Those with calls finish them."""
        if self._dismissed is None:
            self._dismissed = time.monotonic() + FAREWELL
            for worker in list(self.core.workers.values()):
                self._tell(e.DrainAsked(worker.peer, "the manager was stopped"))

    def _look_if_idle(self, now: float) -> None:
        timeout = self.settings.idle_timeout
        if timeout is None:
            return
        if self.core.clients.peers or any(not t.session.over for t in self.core.calls.tasks.values()):
            self._busy = now
        elif now - self._busy >= timeout:
            self._end(f"idle for {timeout:g} s")

    # ------------------------------------------------------------ what comes

    def _heard(self, news: Joined | Said | Left) -> None:
        match news:
            case Said(peer, message):
                self._said(peer, message)
            case Joined(peer, role, hello) if why := complaint(hello):
                self._refuse(peer, role, why)
            case Joined(peer, role, hello):
                self._roles[peer] = role
                if isinstance(hello, m.WorkerHello):
                    log.info("worker %s joined from %s", hello.name, hello.host)
                    self._tell(e.WorkerJoined(peer, hello))
                elif isinstance(hello, m.ClientHello):
                    log.info("client %s joined from %s (process %d)", hello.session, hello.host, hello.pid)
                    self._tell(e.ClientJoined(peer, hello))
            case Left(peer, reason, sure, goodbye):
                role = self._roles.pop(peer, "")
                if role != "viewer":
                    log.info("%s %d left: %s", role, peer, reason)
                self.transfers.gone(peer)
                self.mail.gone(peer)
                for reply in self.outputs.gone(peer):
                    self.listener.send(*reply)
                self._tell(e.PeerLost(peer, reason, sure, goodbye))

    def _refuse(self, peer: PeerId, role: str, why: str) -> None:
        """It says what cannot be: end its session."""
        self.listener.refusals.note(f"{role} {peer}", why)
        self.listener.drop(peer, f"refused: {why}")
        if peer in self._roles:
            self._heard(Left(peer, f"it said what cannot be: {why}", goodbye=True))

    def _said(self, peer: PeerId, message: m.Message) -> None:
        if peer not in self._roles:
            return  # refused a moment ago
        if why := complaint(message):
            self._refuse(peer, self._roles[peer], why)
            return
        if isinstance(message, m.CallEnded) and absurd(message.usage):
            self.listener.refusals.note(f"a measurement of worker {peer}", f"no call can use {message.usage}")
            message = message.but(usage=None)
        match message:
            case m.FetchBlob():
                self.transfers.serve(peer, message)
            case m.BlobChunk():
                self._tell(self.transfers.came(peer, message))
            case m.BlobMissing():
                self._tell(self.transfers.missing(peer, message))
            case m.Query():
                if (answer := self._answer(peer, message)) is not None:
                    self._say(peer, m.Answer(message.number, answer))
            case m.OutputSoFar():
                if (reply := self.outputs.came(peer, message)) is not None:
                    self.listener.send(*reply)
            case (
                m.Submit() | m.Release() | m.Cancel() | m.Kill() | m.DeclareFunction() | m.DeclareEnvironment()
                | m.EnvironmentProgress() | m.EnvironmentMade() | m.EnvironmentNotMade() | m.Goodbye()
            ):
                self._tell(e.ClientSaid(peer, message))
            case (
                m.CallStarted() | m.CallEnded() | m.LimitRaised() | m.EnvironmentReady() | m.EnvironmentComing()
                | m.EnvironmentUnusable() | m.SeekBlob() | m.BlobSought() | m.OfferChanged() | m.WorkerLeaving()
            ):
                self._tell(e.WorkerSaid(peer, message))
            case _:
                log.warning("peer %d says %s, which nobody says to a manager", peer, type(message).__name__)

    def _tell(self, event: e.Event | None) -> None:
        """Let the core decide, and do what it says; also about what that brings at once."""
        if event is None:
            return
        now = time.monotonic()
        for command in self.core.handle(event, now):
            self._do(command)
        while self._pending:
            for command in self.core.handle(self._pending.pop(0), now):
                self._do(command)

    # ------------------------------------------------------------ what is to be done

    def _do(self, command: c.Command) -> None:
        match command:
            case c.TellWorker(peer, message):
                self.mail.send(peer, message)
            case c.RunKept(peer):
                self.mail.send(peer, command)
            case c.TellKept(peer, task):
                self.mail.send_kept(peer, task)
            case c.TellClient(peer, message):
                self._tell_client(peer, message)
            case (
                c.SaveTask() | c.SaveAttempt() | c.SaveResult() | c.ForgetTask() | c.SaveSession() | c.ForgetSession()
                | c.SaveDeclared() | c.ForgetDeclared()
            ):
                if self.store is not None:
                    self.store.write(command)
            case c.SaveMeasurement():
                if self.history is not None:
                    self.history.add(self.run_directory.name, time.time(), command, time.monotonic())
            case c.BuildEnvironment(key, plan):
                self._build(key, plan)
            case c.KeepEnvironment(key, tarball, description):
                log.info("environment %s was made by a client", key[:12])
                self._answered(self.builds.keep(key, self.transfers.store.path(tarball.digest), description))
            case c.GetBlob(peer, digest, size):
                self._dropped.discard(digest)
                self._answered(self.transfers.pull(peer, digest, size))
            case c.DropBlob(digest):
                self._dropped.add(digest)
            case _:
                assert_never(command)

    def _tell_client(self, peer: PeerId, message: Any) -> None:
        """A call that starts and ends within one round did not run for anybody to see."""
        if isinstance(message, m.Notice) and message.text != self._noticed:
            self._noticed = message.text
            log.warning("%s", message.text)
        if isinstance(message, m.Started):
            self._starts[message.task] = (peer, message)
            return
        if isinstance(message, m.Finished):
            self._starts.pop(message.task, None)
        self.mail.send(peer, message)

    def _say(self, peer: PeerId, message: m.Message) -> None:
        """An answer: to a viewer at once, to a client after what it was told before."""
        if self._roles.get(peer) == "viewer":
            self.listener.send(peer, message)
        else:
            self.mail.send(peer, message)

    def _answered(self, event: e.Event | None) -> None:
        if event is not None:
            self._pending.append(event)

    def _build(self, key: Any, plan: Payload) -> None:
        log.info("environment %s is wanted", key[:12])
        self._answered(self.builds.want(key, self.transfers.store.path(plan.digest) if isinstance(plan, Blob) else plan.data))

    def _deliver(self, now: float) -> None:
        """Write down what was decided, and say it.  StoreFailed if what is written goes nowhere: then stop here."""
        if self.store is not None and now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            if not self.store.is_there():
                raise StoreFailed(f"the run directory {self.run_directory.path} was removed; its calls are lost with it")
        if self._dropped and self.store is not None:
            self.store.forget()  # a call that came back without what it refers to could not be answered
        if self.mail.deliver(now):
            for digest in self._dropped:
                self.transfers.drop(digest)
            self._dropped.clear()

    # ------------------------------------------------------------ questions

    def _answer(self, peer: PeerId, asked: m.Query) -> dict[str, Any] | None:
        """None: a worker has to be asked first."""
        try:
            if asked.what == "logs" and self._ask_worker(peer, asked):
                return None
            if asked.what in ONLY_CLIENTS:
                if self._roles.get(peer) != "client":
                    raise query.NoAnswer("this key may only look", "use the client's connection file")
                if asked.what == "leaving":
                    return {"schema": "lfm.leaving/1", "needed": self.core.clients.needed(peer)}
                return self._act(asked.what, asked.arguments)
            return query.answer(
                self.core, self.facts(), asked.what, asked.arguments, time.monotonic(),
                self.store.finished if self.store is not None else lambda task: None,
            )
        except query.NoAnswer as error:
            return {"error": str(error), "hint": error.hint}
        except StoreFailed as error:
            return {"error": str(error)}
        except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
            return {"error": f"the question {asked.what!r} is not understood: {error}"}

    def _ask_worker(self, viewer: PeerId, asked: m.Query) -> bool:
        """Whether somebody who wants to see a call's output is answered by the worker that runs it."""
        call = find(self.core, str(asked.arguments.get("task", "")))
        where = query.asked_of(call)
        if where is None:
            return False
        since = query.since_when(call, asked.arguments)
        ask = self.outputs.ask(viewer, asked.number, where.worker, call.id, where.attempt, since, time.monotonic())
        if ask is not None:
            self.mail.send(where.worker, ask)
        return ask is not None

    def _act(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if what == "shutdown":
            unfinished = sum(query.is_unfinished(t) for t in self.core.calls.tasks.values())
            self._end("somebody said: lfm manager stop")
            if not arguments.get("keep_workers"):
                self._dismiss()
            return {"schema": "lfm.shutdown/1", "pid": os.getpid(), "unfinished": unfinished}
        selection = str(arguments.get("selection", ""))
        if what in ("cancel", "retry"):
            if not any(arguments.get(name) for name in ("selection", "state", "category")):
                raise query.NoAnswer("which calls?", "say: all, a category, a state, or ids")
            return self._cancel(arguments) if what == "cancel" else self._retry(arguments)
        workers = query.select_workers(self.core, selection)
        for worker in workers:
            if what == "drain":
                self._tell(e.DrainAsked(worker.peer, "somebody said: lfm worker drain"))
            else:
                self._tell(e.WorkerSaid(worker.peer, m.WorkerLeaving("somebody said: lfm worker stop")))
                self._deliver(time.monotonic())
                self.listener.flush()
                self.listener.drop(worker.peer, "stopped by: lfm worker stop")
                self._roles.pop(worker.peer, None)
        return {"schema": f"lfm.{what}/1", "workers": [w.name for w in workers]}

    def _cancel(self, arguments: dict[str, Any]) -> dict[str, Any]:
        found = choose(self.core, arguments, past=False).calls
        chosen = [c.id for c in found if isinstance(c, Task) and query.is_unfinished(c)]
        for task in chosen:
            self._tell(e.CancelAsked(task))
        return {"schema": "lfm.cancel/1", "tasks": chosen[:NAMED], "count": len(chosen), "over": len(found) - len(chosen)}

    def _retry(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Failed calls again; those that their user cancelled only if each is named."""
        chosen, again, left = choose(self.core, arguments, past=True), [], Counter[str]()
        for call in chosen.calls:
            if not chosen.named and not query.is_failure(call):
                continue
            if why := self.core.clients.why_not_again(call.id):
                left[why] += 1
            else:
                again.append(call.id)
                self._tell(e.RetryAsked(call.id))
        return {"schema": "lfm.retry/1", "tasks": again[:NAMED], "count": len(again), "left": dict(left)}

    def facts(self) -> dict[str, Any]:
        """About this manager, for people and scripts."""
        return {
            "run": self.run_directory.name, "directory": str(self.run_directory.path), "pid": os.getpid(),
            "host": socket.gethostname(), "addresses": list(self.addresses), "started": self.started,
            "up_s": round(time.time() - self.started, 1), "strategy": self.settings.strategy,
            "store": "none" if self.store is None else str(self.store),
            "log": str(self.run_directory.path / "log"), "refused_packets": self.listener.refusals.total,
            "blob_bytes_sent": self.transfers.sent, "environments_built": self.builds.begun,
            "trouble": self._short or self.mail.trouble or self.transfers.trouble or self.builds.trouble,
        }

    # ------------------------------------------------------------ beginning and end

    def _remember(self) -> None:
        """Tell the core what calls took in earlier runs."""
        if self.history is not None:
            try:
                for measured in self.history.measurements():
                    self._tell(measured)
            except (sqlite3.Error, TypeError) as error:
                log.warning("the history of measurements cannot be read: %s", error)

    def _recover(self) -> None:
        """Take up what an earlier manager of this run left."""
        if self.store is None:
            return
        log.info("the run directory is written in the mode %s", self.store)
        directory = self.transfers.store.directory
        found = tuple(p.name for p in directory.iterdir() if len(p.name) == 64)
        recovered = self.store.recover(found)
        if recovered is not None:
            self._tell(recovered)
            log.info("took up %d calls of the manager before", len(self.core.calls.tasks))
        for path in directory.iterdir():
            if path.name not in self.core.blobs.known:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of everything; the run directory can be taken up again."""
        if not self._torn:
            try:
                self._deliver(time.monotonic())
            except StoreFailed as error:
                log.error("%s", error)
            self.listener.part(LAST_WORDS)
        self.builds.close()
        self.transfers.close()
        self.listener.close()
        if self.history is not None:
            self.history.close()
        if self.store is not None:
            try:
                self.store.close(commit=not self._torn)
            except StoreFailed as error:
                log.error("%s; what was said last is said again by its peers", error)
        for one in (self._wake, self._woken):
            one.close()
        self.run_directory.withdraw()  # last: whoever waits for the end watches these files


class _Signals:
    """SIGTERM, SIGINT and SIGHUP end the loop, wherever it sleeps."""

    NAMES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self, wake: socket.socket, end: Callable[[str], None]) -> None:
        self._wake, self._end = wake, end
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for name in self.NAMES:
            self._before[name] = signal.signal(name, self._came)

    def _came(self, number: int, frame: object) -> None:
        self._end(f"{signal.Signals(number).name}")

    def __exit__(self, *error: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
        signal.set_wakeup_fd(-1)


def remove(directory: Path) -> None:
    """An ephemeral run's directory, with all that is in it."""
    import shutil

    shutil.rmtree(directory, ignore_errors=True)
