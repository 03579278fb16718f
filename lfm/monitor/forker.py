"""Where a slot's call processes come from: made one ahead of need by a process that does nothing else.

The forker is cloned from the monitor and clones calls that are the *monitor's* children (CLONE_PARENT).  A
process that forks pays a copy fault for every page that it touches afterwards: the forker touches a few dozen,
and the monitor, which never forks, none.  It sees no call's data, so no call finds another's in its memory.
Where a bare clone is not known to be sound, the monitor forks the calls itself, with ``os.fork``.
"""

from __future__ import annotations

import faulthandler
import gc
import marshal
import mmap
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from lfm.monitor import answer, call, linux, wire
from lfm.monitor.processes import OwnChildren

ASKED = b"f"
OOM_SCORE = 500


@dataclass(frozen=True, slots=True)
class Ends:
    """What a slot's processes inherit: the call's channel, the shared page, where its output goes."""

    channel: int
    page: mmap.mmap
    stdout: int
    stderr: int
    fault: int
    private: tuple[int, ...]  # the monitor's own, closed at once
    session: bool  # whether a slot's calls form a session (and process group) of their own
    hooks: list[linux.Hook]  # at-fork handlers that a bare clone does not run


def _prepare(ends: Ends, parent: int) -> None:
    """Turn a fresh copy of the monitor into what calls are made of."""
    linux.die_with_parent(parent)
    for fd in ends.private:
        os.close(fd)
    if ends.session:
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.dup2(ends.stdout, 1)
    os.dup2(ends.stderr, 2)
    faulthandler.enable(file=ends.fault)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(OOM_SCORE))
    except OSError:
        pass


class CloneForker:
    """A forker process of its own."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._fork_self = linux.cloner(0, signal.SIGUSR1)
        self._socket: socket.socket | None = None
        self.pid = 0

    def ask(self, warm: bytes = b"") -> None:
        """Have the next call's process made; its number appears in the shared page.  It may take a while.

        ``warm``: first load a function (marshalled: file, overlay), so that calls find it loaded.  A forker that
        cannot, or is not fit for forking any more, ends.
        """
        if self._socket is None:
            self._start()
        assert self._socket is not None
        try:
            self._socket.send(warm or ASKED)
        except OSError:
            self.drop()
            self._start()
            self._socket.send(ASKED)

    def drop(self) -> None:
        """Forget the forker: it has been killed, or will be."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.pid = 0

    def _start(self) -> None:
        self._ends.page[call.PAGE_BASE_AT : call.PAGE.size] = bytes(call.PAGE.size - call.PAGE_BASE_AT)
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = self._fork_self()
        if pid == 0:
            mine.close()
            _prepare(self._ends, parent)
            _fork_for_ever(self._ends, its.detach(), linux.cloner(linux.CLONE_PARENT, 0))
        its.close()
        self._socket, self.pid = mine, pid


def _fork_for_ever(ends: Ends, asked: int, clone: Callable[[], int]) -> NoReturn:
    """The forker's loop.  What it touches between two clones it must copy: so names are bound beforehand, and
    random sources are reseeded here, where it costs one process less."""
    buffer, warm = bytearray(wire.DATAGRAM), None
    page, parent, at, channel, hooks = ends.page, os.getppid(), call.PAGE_PID_AT, ends.channel, ends.hooks
    pack, read, close, getppid, prctl = call.PAGE_PID.pack_into, os.read, os.close, os.getppid, linux.bare_prctl()
    serve, reseed = call.serve, call.reseed
    while True:
        data = read(asked, 16384)
        if not data:
            os._exit(0)
        if data != ASKED:
            warm = _load(data, ends)
        reseed()
        pid = clone()
        if pid == 0:
            close(asked)
            prctl(linux.PR_SET_PDEATHSIG, 9, 0, 0, 0)
            if getppid() != parent:
                os._exit(1)
            if hooks:
                call.replay(hooks)
            serve(channel, page, buffer, warm)
        pack(page, at, pid)


def _load(data: bytes, ends: Ends) -> call.Warm:
    """A function that calls have loaded well before, loaded once for all that follow.  It is never called here."""
    code, overlay = marshal.loads(data)
    before, fds = _resident(), len(os.listdir("/proc/self/fd"))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        if overlay:
            answer.add_overlay(overlay)
        function = answer.load_function(code)
    except BaseException:
        os._exit(1)
    # a thread, a connection or a child shared by all calls to come would be no isolation
    if linux.threads() > 1 or len(os.listdir("/proc/self/fd")) != fds or OwnChildren().pids():
        os._exit(1)
    os.dup2(ends.stdout, 1)
    os.dup2(ends.stderr, 2)
    gc.collect()
    gc.disable()
    gc.freeze()
    call.PAGE_PID.pack_into(ends.page, call.PAGE_WARM_AT, max(0, _resident() - before))
    return code, function


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


class PlainForker:
    """The monitor itself forks, with all of Python's handlers."""

    pid = 0

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def ask(self, warm: bytes = b"") -> None:
        self._ends.page[call.PAGE_BASE_AT : call.PAGE.size] = bytes(call.PAGE.size - call.PAGE_BASE_AT)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _prepare(self._ends, parent)
            call.reseed()
            call.serve(self._ends.channel, self._ends.page, bytearray(wire.DATAGRAM))
        call.PAGE_PID.pack_into(self._ends.page, call.PAGE_PID_AT, pid)

    def drop(self) -> None:
        pass
