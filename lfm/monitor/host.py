"""The daemon's side of one template: starts it, hands calls to its slots, hears what became of them.

Never blocks, never unpickles.  ``fileno()`` is readable when ``receive()`` has something to do; ``deadline()``
says when ``tick()`` is due.  Standard library only, so that a worker, ``lfm.monitored`` and ``lfm monitor`` run
the very same code.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lfm.monitor import page, sandbox, template, wire
from lfm.monitor.seat import Job, Key, Seat

CACHED = 1 << 20  # bytes read and written from which a group counts files that no process shows
WATCH_AFTER = 0.010  # seconds that a call runs before its monitor is woken to watch it
LEAVE_WITHIN = 0.1  # seconds that the next call waits for the process of one that is over
END_WITHIN = 0.5  # seconds that the process of a call which is over may take to end: what goes on forged its answer
IDLE_OTHERS = 8  # idle slots with other functions loaded; the longest idle goes for a new one
FUNCTIONS = 1000  # remembered
LONGEST_TMPDIR = 75  # bytes: with multiprocessing's /pymp-xxxxxxxx/listener-xxxxxxxx what a socket's address can hold
BEGIN_WITHIN = 60.0  # seconds that a call's process may take to begin it; then it is lost, and its slot goes with it
IDLE_AFTER = 30.0  # seconds after which a slot beyond the first is let go
KEPT = ("HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "SSL_CERT_FILE", "SSL_CERT_DIR")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Began(NamedTuple):
    id: int


class Over(NamedTuple):
    """A call is over.  Nothing of it is left; or it has said all there is to tell, and its process is about to end.
    ``lost``: its monitor or template died, for this reason."""

    id: int
    result: wire.Result | None
    report: wire.Report | None
    lost: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    fault: bytes = b""
    disk: int = 0
    wall_s: float = 0.0  # from its dispatch to the report
    unsent: bool = False  # its work did not reach its monitor: it surely never began


class Near(NamedTuple):
    id: int
    measured: int
    limit: int


class Gone(NamedTuple):
    """The template itself has ended."""

    reason: str


News = Began | Over | Near | Gone


class Host:
    """One template process and its slots."""

    def __init__(
        self,
        python: Path | str,
        runtime: Path | str,
        preload: Sequence[str] = (),
        *,
        sandboxes: Path | str = "",
        clone: bool = True,
        session: bool = True,
        namespace: bool = True,
        groups: bool = True,
        begin_within: float = BEGIN_WITHIN,
        environ: dict[str, str] | None = None,
    ) -> None:
        """``sandboxes``: an existing folder, in which calls get their directories (commands need none).
        ``clone``, ``namespace``, ``groups``: whether to use them where they are possible (``told`` says what came of it).
        ``session``: False leaves the calls in the starter's session and process group."""
        self._slots: dict[int, Seat] = {}
        self._by_fd: dict[int, Seat] = {}
        self._by_channel: dict[int, Seat] = {}
        self._unoffered: deque[Seat] = deque()  # that the template has yet to hear of
        self._idle: deque[Seat] = deque()
        self._running: dict[int, Seat] = {}
        self._leaving: deque[Seat] = deque()  # whose call is over, and its process not yet; oldest first
        self._late: deque[tuple[float, int]] = deque()  # when a call has waited long enough for one of these
        self._young: deque[tuple[float, Seat]] = deque()  # when a call began there that is not watched yet; oldest first
        self._loaded: dict[Key, bool] = {}  # functions that a call has loaded well: True; that a forker could not: False
        self._next = 1
        self._news: list[News] = []
        self._urgent = False  # whether some of it should be told now: that a call began can wait
        self._gone = ""
        self._sandboxes = str(sandboxes)
        self._buffer = bytearray(wire.DATAGRAM)
        self.told: dict[str, Any] = {}
        config = {
            "runtime": str(runtime),
            "preload": list(preload),
            "skip": {},
            # else the kernel would end it with the thread that has started it; it is left to see its channel close
            "parent": os.getpid() if threading.get_native_id() == os.getpid() else 0,
            "session": session,
            "clone": clone,
            "namespace": namespace,
            "groups": groups,
            "begin_within": begin_within,
        }
        with contextlib.ExitStack() as undo:
            self._epoll = undo.enter_context(select.epoll())
            self._log = os.memfd_create("template-log", os.MFD_CLOEXEC)
            undo.callback(os.close, self._log)
            self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._control.close)
            self._control.setblocking(False)
            self._epoll.register(self._control, select.EPOLLIN)
            with its:
                self._process = subprocess.Popen(
                    template.command(str(python), its.fileno(), config),
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=(its.fileno(),),
                    env=_environ(str(python)) | (environ or {}),
                    start_new_session=session,
                    cwd="/",
                )
            undo.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        """Whether the template is gone."""
        return bool(self._gone)

    def fileno(self) -> int:
        return self._epoll.fileno()

    # -- calls

    def start(
        self, work: wire.Work, limits: wire.Limits = wire.Limits(), fds: Sequence[int] = (), hurry: bool = True  # noqa: B008
    ) -> None:  # fmt: skip
        """Run it as soon as a slot is there; ``Began`` and ``Over`` will tell.

        A call's directory is its slot's, and is empty again at its end.  A command's directory is only its working
        directory, and is never removed.  ``hurry``: say what it gave before its process has ended, if that is all there is
        to tell; where the next call waits already, one wake-up for both costs less.
        """
        if self._gone:
            self._say(Over(work.id, None, None, self._gone, unsent=True))
            return
        job = Job(work, limits, tuple(fds), hurry)
        seat = self._choose((work.code, work.overlay))
        if seat.leaving:
            seat.next, self._running[work.id] = job, seat
            self._late.append((time.monotonic() + LEAVE_WITHIN, work.id))
        else:
            self._give(seat, job)

    def _give(self, seat: Seat, job: Job) -> None:
        if not job.work.command:
            try:
                job = job._replace(work=_in_sandbox(job.work, seat.box.take().path))
            except OSError:
                self._vacate(seat)
                raise
        self._dispatch(seat, job)

    def _give_next(self, job: Job, seat: Seat | None = None) -> None:
        """What has waited for a slot gets it, or a new one."""
        self._running.pop(job.work.id, None)
        try:
            if self._gone:
                raise OSError(self._gone)
            self._give(seat or self._new_slot(), job)
        except OSError as error:
            self._say(Over(job.work.id, None, None, f"the worker cannot start it: {error}", unsent=True))

    def _waits(self, id: int) -> Seat | None:
        """Where a call waits for the end of another's process."""
        seat = self._running.get(id)
        return seat if seat is not None and seat.next is not None and seat.next.work.id == id else None

    def kill(self, id: int) -> None:
        if (seat := self._waits(id)) is not None:
            seat.next = None
            del self._running[id]
            self._say(Over(id, None, wire.quiet(id)._replace(flags=0, verdict=wire.VERDICTS.index("killed"))))
        elif (slot := self._running.get(id)) is not None:
            self._tell(slot, wire.simple(wire.KILL, id))

    def raise_memory(self, id: int, memory: int) -> None:
        slot = self._running.get(id)
        if slot is not None and slot.job is not None:  # nobody can have seen one that waits for a slot grow
            slot.job = slot.job._replace(limits=slot.job.limits._replace(memory=memory))
            if slot.watched:
                self._tell(slot, wire.raise_memory(id, memory))

    def output(self, id: int, stdout_from: int = 0, stderr_from: int = 0) -> list[tuple[int, bytes]]:
        """What a running call has printed from these positions on, each with where it begins; [] if it runs no more."""
        slot = self._running.get(id)
        if slot is None or slot.job is None:  # one that waits for a slot has not printed what was printed there
            return []
        return slot.output(stdout_from, stderr_from)

    def _choose(self, key: Key) -> Seat:
        """An idle slot that has this function loaded, else one that has none, else one whose call's process is about to
        end, else a new one.

        Of equals the second that became idle last: its next process is surely made by now, while surplus slots
        stay idle until they are let go.
        """
        fits = [slot for slot in self._idle if slot.key == key] or [slot for slot in self._idle if slot.key is None]
        if not fits:
            if leaving := [slot for slot in self._leaving if slot.next is None and slot.key in (key, None)]:
                return leaving[-1]  # of older ones one may be stuck
            while len(self._idle) >= IDLE_OTHERS:
                self._retire(self._idle[0])
            return self._new_slot()
        slot = fits[-2] if len(fits) > 1 else fits[-1]
        self._idle.remove(slot)
        return slot

    def _new_slot(self) -> Seat:
        slot = Seat(self._next, self._sandboxes)
        self._next += 1
        self._slots[slot.number] = slot
        self._by_fd[slot.control.fileno()] = slot
        self._by_channel[slot.channel.fileno()] = slot
        self._epoll.register(slot.control, select.EPOLLIN)
        self._unoffered.append(slot)
        self._offer_slots()
        return slot

    def _offer_slots(self) -> None:
        """Tell the template of its slots, as many as there is room for: it may be busy for a while."""
        while self._unoffered:
            slot = self._unoffered[0]
            try:
                if slot.files:  # else it was let go meanwhile
                    slot.offer(self._control)
            except BlockingIOError:
                break
            except ConnectionError:
                pass  # the template is dying: its end will be heard, and the call be told lost
            except OSError as error:
                self._drop(slot, f"no monitor could be made for it: {error.strerror}")
            self._unoffered.popleft()
        self._epoll.modify(self._control, select.EPOLLIN | (select.EPOLLOUT if self._unoffered else 0))

    def _dispatch(self, slot: Seat, job: Job) -> None:
        slot.job, slot.watched, slot.over, slot.result = job, False, None, None
        self._running[job.work.id] = slot
        self._listen(slot, job.hurry)
        try:
            slot.channel.send(wire.work(job.work))
            if job.fds:
                socket.send_fds(slot.channel, [b"fds"], job.fds)
        except OSError as error:
            lost = f"its work could not be sent: {error.strerror}"
            self._drop(slot, lost, Over(job.work.id, None, None, lost, unsent=not job.fds))
            return
        if slot.ready:
            self._begin(slot)

    def _begin(self, slot: Seat) -> None:
        assert slot.job is not None
        slot.began = time.monotonic()
        key = (slot.job.work.code, slot.job.work.overlay)
        if slot.key is None and self._loaded.get(key):
            slot.key = key
            self._tell(slot, wire.simple(wire.WARM, 0, marshal.dumps(key, 4)))
        if slot.job.work.command:
            slot.watched = True
            self._tell(slot, wire.watch(slot.job.work.id, slot.began, slot.job.limits, slot.job.work.sandbox))
        self._young.append((slot.began, slot))
        self._news.append(Began(slot.job.work.id))

    def _say(self, news: News) -> None:
        self._news.append(news)
        self._urgent = True

    def _tell(self, slot: Seat, data: bytes) -> None:
        try:
            slot.control.send(data)
        except OSError:
            pass  # its monitor is gone, which is heard on its own

    # -- time

    def deadline(self) -> float | None:
        """When ``tick()`` is due (monotonic); None: not before something happens."""
        if self._urgent:
            return 0.0
        while self._young and not self._is_young(*self._young[0]):
            self._young.popleft()
        due = self._young[0][0] + WATCH_AFTER if self._young else None
        if (left := next((slot.left_at for slot in self._leaving if slot.left_at), None)) is not None:
            due = left + END_WITHIN if due is None else min(due, left + END_WITHIN)
        while self._late and self._waits(self._late[0][1]) is None:
            self._late.popleft()
        if self._late:
            due = self._late[0][0] if due is None else min(due, self._late[0][0])
        if len(self._idle) > 1:
            idle = self._idle[0].idle_since + IDLE_AFTER
            due = idle if due is None else min(due, idle)
        return due

    def _is_young(self, began: float, slot: Seat) -> bool:
        """Whether the call that began there then still runs, and nobody watches it."""
        return slot.job is not None and slot.began == began and not slot.watched

    def tick(self) -> None:
        now = time.monotonic()
        while self._young and self._young[0][0] + WATCH_AFTER <= now:
            began, slot = self._young.popleft()
            if self._is_young(began, slot) and slot.over is None and (job := slot.job) is not None:
                slot.watched = True
                self._tell(slot, wire.watch(job.work.id, slot.began, job.limits, job.work.sandbox))
        for slot in self._leaving:
            if slot.left_at and slot.left_at + END_WITHIN <= now:
                slot.left_at = 0.0
                self._tell(slot, wire.simple(wire.KILL, slot.leaving))
        while self._late and self._late[0][0] <= now:
            id = self._late.popleft()[1]
            if (seat := self._waits(id)) is not None and (waits := seat.next) is not None:
                seat.next = None
                self._give_next(waits)
        while len(self._idle) > 1 and self._idle[0].idle_since + IDLE_AFTER <= now:
            self._retire(self._idle.popleft())

    # -- news

    def receive(self) -> list[News]:
        """What has happened since; never waits."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._control.fileno():
                self._hear_template()
                if self._unoffered:
                    self._offer_slots()
            elif (slot := self._by_channel.get(fd)) is not None:
                self._hear_call(slot)
            elif (slot := self._by_fd.get(fd)) is not None:
                self._hear_slot(slot)
        news, self._news, self._urgent = self._news, [], False
        return news

    def _hear_template(self) -> None:
        while True:
            try:
                data = self._control.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._template_gone()
                return
            if data[0] == template.READY:
                self.told = json.loads(data[1:])
            elif data[0] == template.GONE:
                _, number = template.SLOT.unpack_from(data)
                status = struct.unpack_from("<i", data, template.SLOT.size)[0]
                slot = self._slots.get(number)
                if slot is not None:
                    while self._hear_slot(slot):
                        pass
                    if slot.number in self._slots:
                        what = "its monitor died" if slot.ready else "no monitor could be made for it"
                        said = self._said().splitlines()[-1:] if os.WIFEXITED(status) else []
                        self._drop(slot, f"{what} ({': '.join([_how(status), *said])})")

    def _hear_slot(self, slot: Seat) -> bool:
        """Take one message of its monitor's; whether there was one."""
        try:
            data = slot.control.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:  # the template will say GONE when it has swept up, or its own end is heard
            if self._by_fd.pop(slot.control.fileno(), None) is not None:
                self._epoll.unregister(slot.control)
            return False
        kind = data[0]
        if kind == wire.ENDED:
            self._over(slot, wire.quiet(wire.read_simple(data)[0]), quiet=True)
        elif kind == wire.REPORT:
            self._over(slot, wire.read_report(data))
        elif kind == wire.READY:
            slot.ready, slot.pid = True, wire.read_simple(data)[0]
            if slot.job is not None:
                self._begin(slot)
        elif kind == wire.COLD:
            if slot.key is not None:
                self._loaded[slot.key] = False
            slot.key = None
        elif kind == wire.NEAR and slot.job is not None:
            _, measured, limit = wire.read_near(data)  # whose number is the page's, where a call could write another's
            self._say(Near(slot.job.work.id, measured, limit))
        elif kind == wire.CLEANED:
            slot.box.forget()
            if slot.over is not None:
                self._finish(slot, slot.over._replace(disk=wire.read_simple(data)[0]))
            elif slot.leaving:
                self._vacate(slot)
        return bool(slot.files)

    def _hear_call(self, slot: Seat) -> None:
        """The call has said what came of it.  If that is all there is to tell it is over, though its process has yet to end."""
        job = slot.job
        if job is None or slot.result is not None or not self._take_result(slot, job.work.id):
            self._listen(slot, False)  # more than it has to say, and so it could go on: the rest is read at its end
            return
        result = slot.result
        if result is None or slot.watched or not self._is_all_told(result) or not slot.box.untouched():
            return
        slot.leaving, slot.left_at = job.work.id, time.monotonic()
        self._leaving.append(slot)
        self._learn(slot, job, result)
        self._tell_over(slot, Over(job.work.id, result, wire.quiet(job.work.id, result.figures)))

    def _listen(self, slot: Seat, live: bool) -> None:
        if slot.live != live:
            slot.live = live
            if live:
                self._epoll.register(slot.channel, select.EPOLLIN)
            else:
                self._epoll.unregister(slot.channel)

    def _is_all_told(self, result: wire.Result) -> bool:
        figures = result.figures
        if not figures.quiet:
            return False
        return not self.told.get("cgroup") or sum(page.read_io(figures.io)) < CACHED

    def _over(self, slot: Seat, report: wire.Report, quiet: bool = False) -> None:
        """Nothing of the call is left.  ``quiet``: its own figures are all there is to tell."""
        job = slot.job
        if job is None:
            if slot.leaving:
                self._left(slot, report)
            return  # else an idle process ended; the monitor makes another
        slot.broken |= bool(report.flags & wire.SPOILED)
        result = self._result(slot, job.work.id)
        if quiet and result is not None:
            report = wire.quiet(report.id, result.figures)
        wall = time.monotonic() - slot.began
        if report.stdout or report.stderr or report.fault:
            out, err, fault = slot.take_output(report)
            over = Over(job.work.id, result, report, "", out, err, fault, wall_s=wall)
        else:
            over = Over(job.work.id, result, report, wall_s=wall)
        if report.id != job.work.id:
            lost = "" if report.verdict else "its process died before it began"
            self._drop(slot, lost, over)
            return
        if not job.work.command and not slot.box.untouched():
            if slot.box.is_there():
                # something is in it: its monitor sees to that, so that a busy disk does not hold up the loop of
                # whoever runs us
                slot.over = over
                self._tell(slot, wire.clean(slot.box.take()))
                return
            slot.box.forget()
        self._finish(slot, over)

    def _left(self, slot: Seat, report: wire.Report) -> None:
        """The process of a call that was over before has ended: what else it did is nobody's."""
        self._result(slot, slot.leaving)
        if report.stdout or report.stderr or report.fault:
            slot.take_output(report)
        if report.status or report.flags & wire.STRAY:
            slot.key = None  # its forker was replaced
        slot.broken |= report.id != slot.leaving or bool(report.flags & wire.SPOILED)
        if not slot.box.untouched() and slot.box.is_there():
            self._tell(slot, wire.clean(slot.box.take()))
            return
        self._vacate(slot)

    def _finish(self, slot: Seat, over: Over) -> None:
        assert slot.job is not None and over.report is not None
        if over.report.status or over.report.flags & wire.STRAY:
            slot.key = None  # its forker was replaced
        else:
            self._learn(slot, slot.job, over.result)
        self._tell_over(slot, over)
        self._vacate(slot)

    def _tell_over(self, slot: Seat, over: Over) -> None:
        self._running.pop(over.id, None)
        self._say(over)
        slot.job = slot.over = None

    def _vacate(self, slot: Seat) -> None:
        if slot.leaving:
            slot.leaving = 0
            self._leaving.remove(slot)
        if slot.broken:
            self._forget(slot)
            return
        if (job := slot.next) is not None:
            slot.next = None
            self._give_next(job, slot)
            return
        slot.idle_since = time.monotonic()
        self._idle.append(slot)

    def _learn(self, slot: Seat, job: Job, result: wire.Result | None) -> None:
        """A function that was loaded well may be loaded ahead of need."""
        if result is not None and result.kind == wire.RETURNED:
            self._remember_loaded((job.work.code, job.work.overlay))

    def _remember_loaded(self, key: Key) -> None:
        if key not in self._loaded:
            self._loaded[key] = True
            if len(self._loaded) > FUNCTIONS:
                del self._loaded[next(iter(self._loaded))]

    def _result(self, slot: Seat, id: int) -> wire.Result | None:
        """What the call itself sent: the first message that is one and names it.  Its channel is empty afterwards."""
        while self._take_result(slot, id):
            pass
        found, slot.result = slot.result, None
        return found

    def _take_result(self, slot: Seat, id: int) -> bool:
        """Take one message of the call's; whether there was one."""
        try:
            size = slot.channel.recv_into(self._buffer)
        except OSError:
            return False
        if not size:
            slot.broken = True  # a call has shut its channel down, and so that of all that would follow
            return False
        if slot.result is None:
            try:
                told = wire.read_result(memoryview(self._buffer)[:size])
            except ValueError:
                return True
            if told.id == id:
                slot.result = told
        return True

    # -- ends

    def _retire(self, slot: Seat) -> None:
        """Let a slot go; its monitor ends when its channel closes."""
        self._forget(slot)

    def _forget(self, slot: Seat) -> None:
        self._slots.pop(slot.number, None)
        self._by_fd.pop(slot.control.fileno(), None)
        self._by_channel.pop(slot.channel.fileno(), None)
        for queue in (self._idle, self._leaving):
            if slot in queue:
                queue.remove(slot)
        slot.close()
        if (job := slot.next) is not None:
            slot.next = None
            self._give_next(job)

    def _drop(self, slot: Seat, lost: str, over: Over | None = None) -> None:
        """A slot is of no more use; what ran in it is over."""
        if slot.box.owned is not None:
            sandbox.remove(slot.box.owned)
            slot.box.forget()
        job, over = slot.job, over or slot.over
        if job is not None:
            started = over is not None and over.report is not None and bool(over.report.flags & wire.STARTED)
            if over is None:
                over = Over(job.work.id, self._result(slot, job.work.id), None, lost, *slot.printed(), unsent=not slot.ready)
            elif lost and not started:
                over = over._replace(lost=lost)
            self._running.pop(job.work.id, None)
            self._say(over)
            slot.job = None
        self._forget(slot)

    def _template_gone(self) -> None:
        if self._gone:
            return
        self._epoll.unregister(self._control)
        self._unoffered.clear()
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        log = self._said()
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        last = log.splitlines()[-1:] or [""]
        self._gone = f"the template interpreter ended with {how}. {last[0]}".strip()
        for slot in list(self._slots.values()):
            while self._hear_slot(slot):
                pass
            if slot.number in self._slots:
                self._drop(slot, self._gone)
        self._say(Gone(self._gone + ("\n" + log if log else "")))

    def _said(self) -> str:
        """The last that the template and its monitors wrote: why one of them ended, if it did by an exception."""
        return os.pread(self._log, 8192, max(0, os.fstat(self._log).st_size - 8192)).decode("utf-8", "replace").strip()

    def close(self, timeout: float = 5.0) -> None:
        """End the template and all that runs in it; returns when they are gone."""
        if self._epoll.closed:
            return
        held: list[sandbox.Owned] = []
        for slot in list(self._slots.values()):
            if (slot.job is not None or slot.leaving) and slot.box.owned is not None:
                held.append(slot.box.owned)
                slot.box.forget()  # until nothing runs in it
            slot.next = None
            self._forget(slot)
        self._running.clear()
        self._control.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        for owned in held:  # only now that nothing runs in them
            sandbox.remove(owned)
        self._epoll.close()
        os.close(self._log)
        self._gone = self._gone or "closed"


def _in_sandbox(work: wire.Work, path: str) -> wire.Work:
    """Its directory is where its temporary files go, too, unless sockets there would have names too long to be bound."""
    environ = work.environ
    if len(os.fsencode(path)) <= LONGEST_TMPDIR:
        environ = {**environ, b"TMPDIR": os.fsencode(path)}
    return work._replace(sandbox=path, environ=environ)


def _environ(python: str) -> dict[str, str]:
    """A clean environment: what is the node's stays, what is the starter's goes."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = os.pathsep.join([os.path.dirname(python), os.environ.get("PATH", os.defpath)])
    return {"TMPDIR": tempfile.gettempdir()} | kept | {"PATH": path} | dict.fromkeys(_ONE_THREAD, "1")


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit code {code}"


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("lfm monitors calls on Linux only")
