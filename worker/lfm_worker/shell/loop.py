"""The worker daemon: one poller loop that turns the world into events for the core, and its commands into deeds.

Owns descriptors, child processes and directories.  Never imports or unpickles anything of a user's, never
waits for a disk, a child or the network: each of these is a descriptor in the poller.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

import zmq

from lfm.blobs import BlobStore
from lfm.connection import Dialer
from lfm.errors import ConnectionFailed, ProtocolError
from lfm.protocol import messages as m
from lfm.protocol.resources import format_duration
from lfm.run import ConnectionFile
from lfm_worker.core import commands as c
from lfm_worker.core import events as e
from lfm_worker.core.items import Item
from lfm_worker.core.outbox import Outbox
from lfm_worker.core.worker import Settings, WorkerCore
from lfm_worker.shell.interpreters import Interpreters
from lfm_worker.shell.peers import Peers
from lfm_worker.shell.places import Cache, Home
from lfm_worker.shell.prepare import InThread, Preparation, cause_of
from lfm_worker.shell.processes import Signals, become_subreaper, kill_orphans, notify
from lfm_worker.shell.transfers import LOOK_EVERY, Ask, Transfers
from lfm_worker.shell.unpack import is_ready

log = logging.getLogger(__name__)

FAREWELL = 10.0  # seconds that the last messages may take
SILENCE = 3.0  # seconds of them without a sign of the manager
SERVE_AGAIN = 0.5  # seconds between tries to read what the manager asked for
RETRY_ORPHANS = 0.05
HOME_EVERY = 5.0  # seconds between looks whether the worker's own directory is still there
FAR_EVERY = 1.0  # seconds between two words on how far environments are, and before the first
SMALL_OVERLAY = 1 << 20  # bytes
SCAN_EVERY = 30.0  # seconds between two looks at the node's cache, where only overlays come
RESTART = 20.0  # seconds that a manager which was stopped may take to be there again
TOGETHER = 0.02  # seconds that the end of a call may wait for others


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides.  Times are seconds."""

    connect_timeout: float = 30.0
    grace: float = 20.0  # from SIGTERM until what still runs is killed
    on_manager_lost: str = "finish"  # "finish": what runs; "stop": at once
    manager_lost_after: float = 300.0  # without the manager and without a running call
    stdin_eof: bool = False  # stop when stdin closes
    peers: bool = True  # large blobs may go from worker to worker
    shelf: Path | None = None  # where a manager on this machine has its tarballs


class Worker:
    """One worker, from hello to goodbye."""

    def __init__(
        self, file: Callable[[], ConnectionFile], settings: Settings, cache: Cache, name: str,
        labels: dict[str, str], options: Options,
    ) -> None:
        self._settings, self._options, self._cache, self._file = settings, options, cache, file
        self._name, self._labels = name, labels
        self._session = secrets.token_hex(8)
        self._core = WorkerCore(settings, cache.scan(time.monotonic()))
        self._outbox = Outbox()
        self._home: Home
        self._transfers: Transfers
        self._interpreters: Interpreters
        self._dialer = Dialer(file, self._hello)
        self._events: deque[e.Event] = deque()
        self._poller = zmq.Poller()
        self._peers = Peers(file, lambda: self._dialer.address, self._poller) if options.peers else None
        self._preparations: dict[int, Preparation | InThread] = {}  # by descriptor
        self._readers: dict[int, Callable[[], None]] = {}
        self._terminated = False
        self._orphans = False
        self._look_at = self._serve_at = self._say_far_at = self._scan_at = self._home_at = 0.0
        self._speak_at = math.inf  # when what is to be said has waited long enough
        self._reason: str | None = None  # why it left
        self._lost: float | None = None  # since when the manager is, as it was last said
        self._cut = False  # and there is nobody to tell

    # ------------------------------------------------------------ life

    def run(self) -> str:
        """Work until there is a reason to leave; the reason.  ConnectionFailed or ProtocolError if there is no manager."""
        become_subreaper()
        self._dialer.connect(self._options.connect_timeout)  # until then nothing of ours is on the disk
        self._home = Home(self._cache, self._name)
        self._transfers = Transfers(BlobStore(self._home / "blobs"), BlobStore(self._home / "results"), self._cache.blobs, self._peers, self._options.shelf)
        self._interpreters = Interpreters(
            self._home, self._cache, self._transfers, max(1, int(self._settings.offer.cores)),
            tell=self._handle, watch=self._watch, unwatch=self._unwatch,
        )  # fmt: skip
        with Signals() as signals:
            try:
                self._dialer.register(self._poller)
                self._watch(signals.fileno(), lambda: self._signalled(signals))
                if self._options.stdin_eof:
                    self._watch(0, self._stdin)
                notify("READY=1")
                self._handle(e.Ticked())  # time counts from now on: an idle worker may have to leave
                while self._reason is None:
                    self._turn()
                notify("STOPPING=1")
                if self._peers is not None:
                    self._peers.shut()
                self._farewell()
                return self._reason
            finally:
                self._close()

    def _turn(self) -> None:
        due, spoken = self._deadline(), False
        for socket_, _ in self._poller.poll(_milliseconds(due - time.monotonic())):
            if not isinstance(socket_, int):
                spoken = True
            elif (reader := self._readers.get(socket_)) is not None:
                reader()
        self._speak()
        now = time.monotonic()
        if spoken or now >= due:
            self._link(now)
            self._moved(*self._transfers.turn())
        if now >= due:
            self._look_at_clocks(now)
        self._say_how_far(now)
        if self._orphans:
            self._orphans = not kill_orphans(self._known())
        self._speak()

    def _look_at_clocks(self, now: float) -> None:
        """Do what is due."""
        if (ticks := self._core.deadline()) is not None and now >= ticks:
            self._handle(e.Ticked())
        self._interpreters.tick(now)
        if now >= self._home_at:
            self._home_at = now + HOME_EVERY
            if not self._home.is_there():
                self._handle(e.StopAsked(f"its work directory {self._home.path} was removed"))
        if self._transfers.elsewhere and now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._moved(*self._transfers.look())
        if self._transfers.owing and now >= self._serve_at:
            self._serve_at = now + SERVE_AGAIN
            for chunk in self._transfers.serve_again():
                self._tell(chunk)

    def _speak(self) -> None:
        """Say what is to be said, once as many calls have ended as wait, or it has waited long enough."""
        if self._speak_at < math.inf and (self._dialer.waiting >= self._core.ahead or self._speak_at <= time.monotonic()):
            self._dialer.flush()
            self._speak_at = math.inf

    def _deadline(self) -> float:
        now = time.monotonic()
        due = [self._dialer.deadline(), self._speak_at, now + 3600.0]
        if (core := self._core.deadline()) is not None:
            due.append(core)
        if (interpreters := self._interpreters.deadline()) is not None:
            due.append(interpreters)
        if (transfers := self._transfers.deadline()) is not None:
            due.append(transfers)
        if self._orphans:
            due.append(now + RETRY_ORPHANS)
        if self._transfers.elsewhere:
            due.append(self._look_at)
        if self._transfers.owing:
            due.append(self._serve_at)
        if self._dialer.lost_since is not None:
            due.append(now + 1.0)
        return min(due)

    def _farewell(self) -> None:
        """The last messages leave, and the manager confirms them, if it is still there."""
        poller = zmq.Poller()  # of the link alone: nobody reads the others any more
        self._dialer.register(poller)
        now = time.monotonic()
        end, silent = now + FAREWELL, now + SILENCE
        while not self._cut and self._dialer.unacknowledged and now < min(end, silent) and self._manager_lives():
            left = self._dialer.unacknowledged
            self._dialer.flush()
            poller.poll(_milliseconds(min(end, silent, now + 0.5, self._dialer.deadline()) - now))
            try:
                for message in self._dialer.receive():
                    if isinstance(message, m.FetchBlob):
                        self._serve(message)
                if time.monotonic() >= self._dialer.deadline():
                    self._dialer.tick()
            except (ConnectionFailed, ProtocolError):
                return
            now = time.monotonic()
            if self._dialer.unacknowledged != left:
                silent = now + SILENCE

    def _is_published(self) -> bool:
        try:
            self._file()
        except ConnectionFailed:
            return False
        return True

    def _manager_lives(self) -> bool:
        """False if it ran on this very machine and is surely gone, or has taken its connection file back."""
        try:
            file = self._file()
        except ConnectionFailed:
            return False
        return file.host != socket.gethostname() or not file.pid or Path(f"/proc/{file.pid}").exists()

    def _close(self) -> None:
        self._interpreters.close()
        for preparation in self._preparations.values():
            preparation.close()
        end = time.monotonic() + 5.0
        while not kill_orphans(()) and time.monotonic() < end:
            time.sleep(0.01)
        self._transfers.close()
        if self._peers is not None:
            self._peers.close()
        self._dialer.close(goodbye=True)
        self._home.remove()
        self._cache.close()

    # ------------------------------------------------------------ the manager

    def _hello(self) -> m.WorkerHello:
        offer = self._settings.offer
        if self._settings.end is not None:
            left = max(0.0, self._settings.end - time.monotonic())
            offer = replace(offer, wall_time=left)
        return m.WorkerHello(
            session=self._session, name=self._name, host=socket.gethostname(), pid=os.getpid(), offer=offer,
            gpu_devices=self._settings.gpu_devices, labels=self._labels,
            environments=self._core.environments(), running=(*self._core.running(), *self._outbox.running()),
        )

    def _link(self, now: float) -> None:
        """Take what the manager said, keep the connection alive, and notice when it is lost."""
        try:
            due = now >= self._dialer.deadline()
            for message in self._dialer.receive():
                self._said(message)
            if due:
                self._dialer.tick()
        except (ConnectionFailed, ProtocolError) as error:
            self._reason, self._cut = str(error), True
            return
        now = time.monotonic()
        self._outbox.confirmed(self._dialer.unacknowledged, now)
        self._bear_loss(now)

    def _bear_loss(self, now: float) -> None:
        """Say once that the manager is lost, or back; leave when there is no reason to wait any longer."""
        lost, known = self._dialer.lost_since, self._lost
        self._lost = lost
        if lost is None:
            if known is not None:
                log.info("the manager is back")
            return
        # A manager that stops takes its connection file back, and may be on its way to start again; one that crashed leaves it.
        patience = self._options.manager_lost_after if self._is_published() else min(RESTART, self._options.manager_lost_after)
        stop = self._options.on_manager_lost == "stop"
        if known is None and not stop:
            log.warning(
                "the manager has not answered for %s; %d calls go on here, and without any it is waited for until %s",
                format_duration(now - lost), len(self._core.calls),
                time.strftime("%H:%M:%S", time.localtime(time.time() + patience - (now - lost))),
            )  # fmt: skip
        if stop or (not self._core.calls and now - lost > patience):
            self._reason, self._cut = f"the manager has not answered for {format_duration(now - lost)}", True

    def _said(self, message: m.Message) -> None:
        match message:
            case m.DefineFunction() | m.ForgetFunction() | m.Run() | m.KillCall() | m.Drain() | m.ForgetBlob() | m.AskOutput():
                self._handle(e.Told(message))
            case m.BlobChunk():
                self._moved(*self._transfers.came(message))
            case m.BlobMissing():
                self._moved(*self._transfers.missing(message))
            case m.BlobSource():
                self._moved(*self._transfers.named(message))
            case m.FetchBlob():
                self._serve(message)
            case m.Welcome():
                self._outbox.welcomed()
                if not message.resumed:
                    self._start_over()
            case _:
                log.warning("the manager said %s, which is nothing for a worker", type(message).__name__)

    def _start_over(self) -> None:
        """The manager knows nothing of this session's past: say again what it must know."""
        ends, self._outbox = self._outbox.again(), Outbox()
        for ended in ends:
            self._tell(ended)
        self._ask(self._transfers.again())
        self._handle(e.Welcomed(resumed=False))

    def _tell(self, message: m.Message) -> None:
        """It leaves with this turn; the end of a call with others, where the next ones are here already."""
        self._speak_at = min(self._speak_at, time.monotonic() + (TOGETHER if isinstance(message, m.CallEnded) else 0.0))
        self._dialer.send(message)
        self._outbox.said(message)

    def _serve(self, wanted: m.FetchBlob) -> None:
        if (chunk := self._transfers.serve(wanted)) is not None:
            self._tell(chunk)

    def _ask(self, asks: list[Ask]) -> None:
        for ask in asks:
            self._tell(ask)

    def _moved(self, asks: list[Ask], events: list[e.Event]) -> None:
        self._ask(asks)
        for event in events:
            self._handle(event)

    # ------------------------------------------------------------ the core's commands

    def _handle(self, event: e.Event) -> None:
        """One event after the other: what a command brings about waits until its siblings are carried out."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            for command in self._core.handle(self._events[0], time.monotonic()):
                self._carry_out(command)
            self._events.popleft()

    def _carry_out(self, command: c.Command) -> None:
        match command:
            case c.Tell():
                self._tell(command.message)
            case c.Fetch():
                self._moved(*self._transfers.fetch(command.digest, command.size))
            case c.Prepare():
                self._prepare(command.item, command.data)
            case c.StartTemplate():
                self._interpreters.start(command)
            case c.CloseTemplate():
                self._interpreters.close_one(command.template)
            case c.StartCall():
                self._interpreters.call(command, hurry=not self._core.ahead)
            case c.StopCall():
                self._interpreters.kill(command)
            case c.RaiseLimit():
                self._interpreters.raise_limit(command)
            case c.ReadOutput():
                self._tell(self._interpreters.output(command))
            case c.Drop():
                self._drop(command.item)
            case c.DropCode():
                self._interpreters.forget(command.code)
            case c.DropResult():
                self._transfers.results.drop(command.digest)
            case c.Leave():
                self._reason = command.reason
            case _:
                assert_never(command)

    def _drop(self, item: Item) -> None:
        if item.kind == "blob":
            self._ask(self._transfers.drop(item.digest))
        self._cache.drop(item)

    # ------------------------------------------------------------ environments and overlays

    def _prepare(self, item: Item, data: bytes | None) -> None:
        try:
            self._cache.use(item)
            into = self._cache.into(item.kind)
            there = is_ready(item.digest, into) if item.kind == "environment" else self._cache.path(item).is_dir()
            if there and (size := self._cache.size(item)):
                self._cache.touch(item)
                self._handle(e.Prepared(item, size, 0.0))
                return
            if data is None and item.kind == "overlay":
                data = self._small(item)
            preparation: Preparation | InThread = (
                Preparation(item, self._transfers.own.path(item.digest), into) if data is None else InThread(item, data, into)
            )
        except Exception as error:
            self._handle(e.PrepareFailed(item, f"{item.kind} cannot be unpacked: {error}", cause_of(error)))
            return
        self._preparations[preparation.fileno()] = preparation
        self._watch(preparation.fileno(), lambda: self._progress(preparation))

    def _small(self, overlay: Item) -> bytes | None:
        """The archive of one that takes less to unpack than a process to start; None if it is larger."""
        archive = self._transfers.own.path(overlay.digest)
        return archive.read_bytes() if archive.exists() and archive.stat().st_size <= SMALL_OVERLAY else None

    def _progress(self, preparation: Preparation | InThread) -> None:
        fd = preparation.fileno()
        event = preparation.receive()
        if event is None:
            return
        self._unwatch(fd)
        del self._preparations[fd]
        if isinstance(event, e.Prepared):
            self._prepared(event)
        else:
            self._handle(event)

    def _say_how_far(self, now: float) -> None:
        """For whoever waits: how far environments are that take long.  Without a timer: what moves wakes us."""
        far = self._transfers.far()
        if not (far or self._preparations):
            self._say_far_at = now + FAR_EVERY
        elif now >= self._say_far_at:
            self._say_far_at = now + FAR_EVERY
            awaited = self._core.awaited()
            ways = [m.EnvironmentComing(digest, "send", done, total) for digest, done, total in far if digest in awaited]
            for preparation in self._preparations.values():
                if preparation.far is not None and preparation.item.digest in awaited:
                    ways.append(m.EnvironmentComing(preparation.item.digest, "unpack", *preparation.far))
            for way in ways:
                self._tell(way)

    def _prepared(self, event: e.Prepared) -> None:
        self._cache.note_size(event.item, event.size)
        self._handle(event)
        now = time.monotonic()
        if event.item.kind == "environment" or now >= self._scan_at:  # overlays are many and small
            self._scan_at = now + SCAN_EVERY
            self._handle(e.CacheScanned(self._cache.scan(now)))

    # ------------------------------------------------------------ signals, stdin, descriptors

    def _signalled(self, signals: Signals) -> None:
        for number in signals.take():
            if number == signal.SIGCHLD:
                self._orphans = True
            elif number == signal.SIGINT or (number == signal.SIGTERM and self._terminated):
                self._handle(e.StopAsked(f"stopped by {number.name}"))
            else:
                self._terminated |= number == signal.SIGTERM
                grace = self._options.grace if number in (signal.SIGTERM, signal.SIGHUP) else None
                self._handle(e.DrainAsked(f"told to leave by {number.name}", within=grace))

    def _stdin(self) -> None:
        if not os.read(0, 4096):
            self._unwatch(0)
            self._handle(e.StopAsked("its owner has gone"))

    def _known(self) -> set[int]:
        return self._interpreters.pids() | {p.pid for p in self._preparations.values() if isinstance(p, Preparation)}

    def _watch(self, fd: int, reader: Callable[[], None]) -> None:
        self._readers[fd] = reader
        self._poller.register(fd, zmq.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._readers.pop(fd, None) is not None:
            self._poller.unregister(fd)


def _milliseconds(seconds: float) -> int:
    return max(0, int(seconds * 1000) + 1)  # not less: it would be polled twice


def default_name(batch: str, job: str) -> str:
    """What people see: the batch job, else the process."""
    host = socket.gethostname().split(".")[0]
    return f"{batch}-{job}" if job else f"{host}-{os.getpid()}"
