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
import struct
from dataclasses import dataclass
from typing import NoReturn

from lfm.monitor import answer, call, contain, linux, native, page, variables, wire
from lfm.monitor.group import SlotGroup

WARM = b"w"  # a function to load comes next
OOM_SCORE = 500
_SAID = struct.Struct("<Bq")  # what a forker says to its monitor: the first process of its namespace, ...
_INIT, _LOADED = 1, 2  # ... and bytes that it holds for a function that it has loaded
LOOKS = 3  # at the own memory, which to look at may change: some heaps then grow and shrink each time, for ever
MOST_MEMORY = 512 << 20  # bytes of a template beyond which nobody looks for the pages that calls write to


@dataclass(frozen=True, slots=True)
class Ends:
    """What a slot's processes inherit: the call's channel, the shared page, where its output goes."""

    channel: int
    page: mmap.mmap
    stdout: int
    stderr: int
    fault: int
    private: list[int]  # the monitor's own, closed at once
    session: bool  # whether a slot's calls form a session (and process group) of their own
    namespace: bool  # whether they live in a PID namespace
    hooks: list[linux.Hook]  # at-fork handlers that a bare clone does not run
    group: SlotGroup | None  # the control group that they are born in


def _prepare(ends: Ends, parent: int) -> None:
    """Turn a fresh copy of the monitor into what calls are made of."""
    linux.die_with_parent(parent)
    for fd in ends.private:
        os.close(fd)
    if ends.group is not None:
        ends.group.join()
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
    """A forker process of its own; in the best tier the parent of a PID namespace, where all its calls live."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._fork_self = linux.cloner(0, signal.SIGUSR1)
        self._socket: socket.socket | None = None
        self._known = page.Known(ends.page)
        self.pid = 0
        self._init = self._loaded = 0
        self._loading = False

    @property
    def init(self) -> int:
        """The first process of the namespace, whose death ends all others in it; 0: there is none (yet).

        The forker says it where no call can: who is ended must not be a number in a page that calls write to.
        """
        if not self._init and self._ends.namespace:
            self._listen()
        return self._init

    @property
    def loaded(self) -> int:
        """Bytes that it holds for a function that it has loaded."""
        if self._loading:
            self._listen()
        return self._loaded

    def _listen(self) -> None:
        while self._socket is not None:
            try:
                said = self._socket.recv(_SAID.size, socket.MSG_DONTWAIT)
            except OSError:  # not yet, or never
                return
            if not said:
                return
            what, number = _SAID.unpack(said)
            if what == _INIT:
                self._init = number
            else:
                self._loaded, self._loading = number, False

    def ask(self, warm: bytes = b"") -> None:
        """Have the next call's process made; its number appears in the shared page.  It may take a while.

        ``warm``: first load a function (marshalled: file, overlay), so that calls find it loaded.  A forker that
        cannot, or is not fit for forking any more, ends.
        """
        if self._socket is None:
            self._start()
        assert self._socket is not None
        if warm:
            self._known.forget()
            self._loading = True
        self._known.write(self.loaded)
        try:
            if warm:
                self._socket.send(WARM)
                self._socket.send(warm)
            self._socket.send(native.FORK)
        except OSError:
            self.drop()
            self._start()
            self._socket.send(native.FORK)

    def drop(self) -> None:
        """Forget the forker: it has been killed, or will be."""
        if self._socket is not None:
            _ = self.init  # while it can still be heard
            self._socket.close()
            self._socket = None
        self.pid = self._loaded = 0
        self._loading = False

    def learn(self, peak: int) -> None:
        """A call has ended well whose process held this many bytes at most: what it found out is for all to come."""
        self._known.take(peak, self._writable)

    def _writable(self) -> list[tuple[int, int]]:
        try:
            with open(f"/proc/{self.pid}/maps", "rb") as file:
                return _writable(file.read())
        except OSError:
            return []

    def drop_init(self) -> None:
        """Forget the namespace: it has ended."""
        self._init = 0

    def _start(self) -> None:
        page.forget(self._ends.page)
        self._known.forget()
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = self._fork_self()
        if pid == 0:
            mine.close()
            _prepare(self._ends, parent)
            own = _Own()
            if self._ends.namespace:
                _make_namespace(self._ends, its.fileno())
            _fork_for_ever(self._ends, its.detach(), own)
        its.close()
        self._socket, self.pid = mine, pid


class _Own:
    """A forker's own files in /proc, opened before /proc shows the namespace that the forker itself is not in."""

    def __init__(self) -> None:
        self._task = os.open("/proc/self/task", os.O_RDONLY | os.O_CLOEXEC)
        self._fd = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._children = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)

    def traits(self) -> tuple[int, int, bytes]:
        """Threads, descriptors, children: what a loaded function must not have changed."""
        return len(os.listdir(self._task)), len(os.listdir(self._fd)), os.pread(self._children, 4096, 0)

    def writable(self) -> list[tuple[int, int]]:
        """Where private, writable memory lies; nothing if it is so much that to look at all of it takes too long."""
        found: list[tuple[int, int]] = []
        for _ in range(LOOKS):
            before, data, at = found, [], 0
            while part := os.pread(self._maps, 1 << 16, at):
                data.append(part)
                at += len(part)
            found = _writable(b"".join(data))
            if found == before:
                break
        return found if sum(end - start for start, end in found) < MOST_MEMORY else []

    def resident(self) -> int:
        return int(os.pread(self._statm, 256, 0).split()[1]) * mmap.PAGESIZE


def _writable(maps: bytes) -> list[tuple[int, int]]:
    """The private, writable memory in what /proc says of a process's."""
    found = [line.split(b" ", 2)[0].split(b"-") for line in maps.splitlines() if b" rw-p " in line]
    return [(int(start, 16), int(end, 16)) for start, end in found]


def _make_namespace(ends: Ends, asked: int) -> None:
    """All processes that the forker clones from now on live in a PID namespace; its first process only waits.

    It is the monitor's child and dies with it, and with it the kernel ends the whole namespace.  Orphans become
    its children, and are reaped by the kernel, as it ignores their end.
    """
    contain.enter_namespaces()
    pid = linux.cloner(linux.CLONE_PARENT, 0)()
    if pid == 0:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        os.close(asked)
        os.close(ends.channel)
        contain.mount_proc()
        page.NUMBER.pack_into(ends.page, page.PID_AT, -1)  # ready
        while True:
            signal.pause()
    while page.NUMBER.unpack_from(ends.page, page.PID_AT)[0] != -1:
        os.sched_yield()
    os.write(asked, _SAID.pack(_INIT, pid))
    page.NUMBER.pack_into(ends.page, page.PID_AT, 0)


def _fork_for_ever(ends: Ends, asked: int, own: _Own) -> NoReturn:
    """The forker's life.  What a call's process does here it does anew for each: so names are bound beforehand."""
    buffer, warm, parent = bytearray(wire.DATAGRAM), None, 0 if ends.namespace else os.getppid()
    shared, channel, hooks, serve, reseed = ends.page, ends.channel, ends.hooks, call.serve, call.reseed
    native.give_references()
    empty = own.resident()
    while True:
        reseed()  # in full, for what these generators hold besides their state
        spots = native.random_spots()
        answer.pages = pages = native.Pages(own.writable())
        loop, receive, measure, respond = native.make(
            shared, channel, buffer, socket=asked, parent=parent, flags=linux.CLONE_PARENT, spots=spots, pages=pages,
            output=(ends.stdout, ends.stderr),
        )  # fmt: skip
        if not loop():
            break
        if shared[page.SAID_AT] != WARM[0]:
            os._exit(0)  # the monitor is gone, or no process can be had
        shared[page.SAID_AT] = 0
        warm = _load(os.read(asked, 16384), ends, own)
        held = max(0, own.resident() - empty)
        os.write(asked, _SAID.pack(_LOADED, held))
        page.NUMBER.pack_into(shared, page.HELD_AT, held)
    if spots is None:
        reseed()
    if hooks:
        call.replay(hooks)
    serve(receive, measure, respond, channel, shared, buffer, warm)
    os._exit(1)  # not reached


def _load(data: bytes, ends: Ends, own: _Own) -> call.Warm:
    """A function that calls have loaded well before, loaded once for all that follow.  It is never called here."""
    code, overlay = marshal.loads(data)
    traits = own.traits()
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
    if own.traits() != traits:
        os._exit(1)  # a thread, a connection or a child shared by all calls to come would be no isolation
    os.dup2(ends.stdout, 1)
    os.dup2(ends.stderr, 2)
    variables.forget_tmpdir()
    variables.keep()  # it may have set some
    gc.collect()
    gc.disable()
    gc.freeze()
    return code, function


class PlainForker:
    """The monitor itself forks, with all of Python's handlers."""

    pid = init = loaded = 0

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def ask(self, warm: bytes = b"") -> None:
        page.forget(self._ends.page)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _prepare(self._ends, parent)
            call.reseed()
            channel, shared, buffer = self._ends.channel, self._ends.page, bytearray(wire.DATAGRAM)
            path = native.Plain(shared, channel, buffer)
            call.serve(path.receive, path.measure, path.answer, channel, shared, buffer)
        page.NUMBER.pack_into(self._ends.page, page.PID_AT, pid)

    def learn(self, peak: int) -> None:
        pass

    def drop(self) -> None:
        pass

    def drop_init(self) -> None:
        pass
