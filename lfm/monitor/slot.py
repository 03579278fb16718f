"""The monitor of one slot: one call at a time is its own.  It watches, enforces, reports, and proves.

It sees no call's data: the daemon writes to the call's own channel, output goes from pipe to file inside the
kernel.  It takes the next call only once the kernel lists no process of the last one.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import signal
import socket
import struct
import time
from typing import Any, NoReturn

from lfm.monitor import cgroup, contain, gpu, linux, page, sandbox, wire
from lfm.monitor.capture import Capture
from lfm.monitor.forker import CloneForker, Ends, PlainForker
from lfm.monitor.group import NOTHING, SlotGroup
from lfm.monitor.processes import Children, Reaped, children_by_scan, end_tree, reap
from lfm.monitor.watch import FIRST, Breach, Watch

DETACH_FILTER = 27  # of linux/socket.h; Python has no name for it
WARM_AT_MOST = 20.0  # seconds a forker may take to load a function
MUTE = 0.010  # seconds between looks at the output of a call that prints without end
SIGNALS = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM)
_ENDED = struct.Struct("<12xI12xI")  # of what a signalfd says: whose end it was; with another signal than SIGCHLD it is further on


class Monitor:
    """State of one slot, and what to do when something happens to it."""

    def __init__(
        self, control: socket.socket, channel: socket.socket, files: list[int], config: dict[str, Any], hooks: list[linux.Hook]
    ) -> None:
        linux.become_subreaper()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.control = control
        self.signals = linux.signalfd(SIGNALS)
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.stdout, self.stderr, self.fault = Capture(files[0]), Capture(files[1]), files[2]
        self.children = Children()
        self.inside: Children | None = None  # of the namespace's first process: orphans of the call
        self.poll = select.poll()
        self.group = _group(config)
        self.gpus: gpu.Gpus | None = None
        self.asked_for_gpus = False
        self.private = [control.fileno(), self.signals, self.stdout.read_end, self.stderr.read_end, files[0], files[1]]
        ends = Ends(
            channel.fileno(), self.page, self.stdout.write_end, self.stderr.write_end, self.fault, self.private, config["session"], config["namespace"], hooks, self.group
        )
        self.begin_within: float = config["begin_within"]
        self.channel, self.room = channel, channel.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.forker = CloneForker(ends) if config["clone"] else PlainForker(ends)
        for fd in (control.fileno(), self.signals, self.stdout.read_end, self.stderr.read_end):
            self.poll.register(fd, select.POLLIN)
        self.watch: Watch | None = None
        self.muted = 0.0
        self.printed = False
        self.announced = 0  # whose end was told of, if it was one's alone
        self.stray_cpu = 0.0
        self.last = 0  # the call that was reported last
        self.io = b""
        self.oom_kills = 0  # when the watch began
        self.warm = b""  # what the forker is to load before the next process
        self.warming = 0.0  # until when it may take to do so

    # -- the loop

    def run(self) -> NoReturn:
        self.forker.ask()
        self._say(wire.simple(wire.READY, os.getpid()))
        control, signals = self.control.fileno(), self.signals
        while True:
            ready = self.poll.poll(self._timeout())
            self.printed = False  # the pipes were looked at after the signals: what an ended call printed is seen
            for fd, _ in ready:
                if fd == control:
                    self._hear()
                elif fd != signals:
                    self.printed = True
            if self.printed:
                self._pump()
            for fd, _ in ready:
                if fd == signals:
                    self._signalled()
            self._tick()

    def _timeout(self) -> float | None:
        if not (self.watch or self.muted or self.warming):
            return None
        due = min(self.watch.due() if self.watch else 1e18, self.muted or 1e18, self.warming or 1e18)
        return max(0.0, due - time.monotonic()) * 1000

    def _tick(self) -> None:
        if not (self.watch or self.muted or self.warming):
            return
        now = time.monotonic()
        if self.warming and now >= self.warming:
            self.warming = 0.0
            if self._pid():
                self.warm = b""
            elif self.forker.pid:
                os.kill(self.forker.pid, signal.SIGKILL)  # its end is heard
        if self.muted and now >= self.muted:
            self.muted = 0.0
            for stream in (self.stdout, self.stderr):
                self.poll.modify(stream.read_end, select.POLLIN)
        if self.watch and now >= self.watch.due() and self._has_begun(self.watch, now):
            breach = self.watch.look(now, self._strays())
            if breach and breach.resource == "memory" and self.watch.limits.grow and not self.watch.held:
                self.watch.hold(breach, now)
                self._say(wire.near(self._running(), int(breach.measured), self.watch.limits.memory))
            elif breach:
                self._enforce(breach)
            else:
                self._tell_near()

    def _say(self, data: bytes) -> None:
        try:
            self.control.send(data)
        except OSError:
            self._leave()

    # -- what the daemon says

    def _hear(self) -> None:
        try:
            data = self.control.recv(8192)
        except ConnectionResetError:  # as it is told where something that was sent to the daemon lay there unread
            data = b""
        if not data:
            self._leave()
        kind = data[0]
        if kind == wire.WATCH:
            self._start_watch(data)
        elif kind == wire.RAISE:
            id, memory = wire.read_raise(data)
            if self.watch and id == self._running() and (breach := self.watch.release(memory)):
                self._enforce(breach)
        elif kind == wire.KILL:
            id, _ = wire.read_simple(data)
            if id != self.last:  # else it has ended meanwhile
                self._enforce(Breach("killed", 0.0, 0.0, 0.0))
        elif kind == wire.WARM:
            self.warm = wire.read_simple(data)[1]
        elif kind == wire.CLEAN:
            self._say(wire.simple(wire.CLEANED, sandbox.remove(wire.read_clean(data))))
            if self.group and self.last and not self._running():
                self.group.settle(self._loaded(), self.forker.pid != 0)  # what was cached of the files is gone with them

    def _start_watch(self, data: bytes) -> None:
        id, began, limits, folder = wire.read_watch(data)
        if id == self.last or self.watch is not None:
            return  # it has ended meanwhile
        if self.group:
            self.group.begin(self._loaded())
        else:
            self.oom_kills = contain.oom_kills()
        self.watch = Watch(began, limits, folder, self.group, self._gpus() if limits.gpus else None)

    def _gpus(self) -> gpu.Gpus | None:
        if not self.asked_for_gpus:
            self.asked_for_gpus = True
            self.gpus = gpu.find()
            self.private.extend(self.gpus.descriptors if self.gpus else ())
        return self.gpus

    def _has_begun(self, watch: Watch, now: float) -> bool:
        """Its process may not be made yet, or have come to begin."""
        if not watch.pid:
            if not self._running() or not (pid := self._await_pid()):
                watch.next_look = now + FIRST
                if now >= watch.started + self.begin_within:
                    self._give_up()
                return False
            watch.pid = pid
            _, watch.base, watch.base_files = page.base(self.page)
        return True

    def _give_up(self) -> None:
        """No process begins the call: with it ends who was to make one."""
        self._end_all()
        if self.forker.pid:
            self._drop_forker()
        self._finish(Reaped(0, 0, 0.0, 0), None)

    def _running(self) -> int:
        return int(page.ID.unpack_from(self.page)[0])

    def _tell_near(self) -> None:
        watch = self.watch
        if watch and watch.limits.grow and watch.near_told != watch.limits.memory and watch.near_memory():
            watch.near_told = watch.limits.memory
            self._say(wire.near(self._running(), watch.peaks.memory_low, watch.limits.memory))

    # -- output

    def _pump(self) -> None:
        page.NUMBER.pack_into(self.page, page.PRINTED_AT, 1)  # before: or the call would find the pipes empty
        more = [stream.pump() for stream in (self.stdout, self.stderr)]
        if not any(more):
            self.muted = time.monotonic() + MUTE
            for stream in (self.stdout, self.stderr):
                self.poll.modify(stream.read_end, 0)

    # -- how it ends

    def _strays(self) -> list[int]:
        """Processes of the call that lost their parent and became ours."""
        known = (self._pid(), self.forker.pid, self.forker.init)
        found = [child for child in self.children.pids() if child not in known]
        return found + self._orphans(self.forker.init) if self.forker.init else found

    def _orphans(self, init: int) -> list[int]:
        """Processes in the namespace whose parents have ended."""
        if self.inside is None or self.inside.of != init:
            if self.inside is not None:
                self.inside.close()
            self.inside = Children(init)
        try:
            return self.inside.pids()
        except OSError:  # that process has ended; its number may be another's by now
            self.inside.close()
            self.inside = None
            return children_by_scan(init)

    def _pid(self) -> int:
        return page.pid(self.page)

    def _signalled(self) -> None:
        try:
            pending = os.read(self.signals, 128 * 8)
        except BlockingIOError:
            return
        pid, elsewhere = _ENDED.unpack_from(pending)
        self.announced = (pid or elsewhere) if len(pending) == 128 else 0
        if any(pending[at] == signal.SIGTERM for at in range(0, len(pending), 128)):
            self._leave()
        if page.quiet(self.page):
            self.io = self.page[page.IO_AT : page.IOVEC_AT]
        elif pid := self._pid():
            self.io = _read_io(pid)
        self._after(reap())

    def _after(self, ended: list[Reaped], breach: Breach | None = None) -> None:
        """Sort out who ended: the call (report), the forker (replace), an orphan of the call (count)."""
        over: Reaped | None = None
        stray: Reaped | None = None
        init = self.forker.init
        for one in ended:
            if init and one.pid == init:
                self.forker.drop_init()
            elif one.pid == self.forker.pid:
                self.forker.drop()
                if self.warm and not self._pid():  # it could not load the function: calls will
                    self.warm, self.warming = b"", 0.0
                    self._end_all()
                    self._say(wire.simple(wire.COLD))
                    self.forker.ask()
                elif self._running() == 0:  # nobody knows whether it has made the next process
                    self._end_all()
                    over = Reaped(0, 0, 0.0, 0)
            elif one.pid == (self._pid() or self._await_pid() or one.pid):
                over = one
            else:
                self.stray_cpu += one.cpu
                stray = one
        if over is None and (breach or (stray is not None and self._pid() not in self.children.pids())):
            # all were ended; or the call has written over the page: it was this one, or has ended before
            over = stray or Reaped(0, 0, 0.0, 0)
        if over is not None:
            self._finish(over, breach)

    def _await_pid(self) -> int:
        """The call's living process.  The forker may not have come to write it down yet, or was stopped before it could,
        or the call has written over it: then it is the child that nothing else explains."""
        end = time.monotonic() + 0.2
        while not (pid := self._pid()) and self.forker.pid and time.monotonic() < end:
            os.sched_yield()
        known = (0, self.forker.pid, self.forker.init)
        found = [child for child in self.children.pids() if child not in known]
        return pid if pid in found else next(iter(found), 0)

    def _enforce(self, breach: Breach) -> None:
        if pid := self._await_pid():
            self.io = _read_io(pid)
        self._after(self._end_all(), breach)

    def _finish(self, over: Reaped, breach: Breach | None) -> None:
        id, (base_cpu, base_rss, _) = self._running(), page.base(self.page)
        if over.pid and not (id or over.status or breach):
            self._leave()  # it left of itself, unasked: a call has shut the channel down, and so would all that follow
        flags = wire.STARTED if id else 0
        if not self._empty():
            for one in self._end_all():
                flags |= wire.STRAY
                self.stray_cpu += one.cpu
        if over.status == signal.SIGKILL and not breach and self._oom_killed():
            flags |= wire.OUT_OF_MEMORY
        if not self._is_sound():
            flags |= wire.SPOILED
        # and if the pipes were looked at for another reason than its end, before which it may have printed more
        if self.printed or self.muted or flags & wire.STRAY or breach or over.status or over.pid != self.announced:
            for stream in (self.stdout, self.stderr):
                while stream.pump():
                    pass
        if id and not (breach or over.status or flags & ~wire.STARTED) and self._is_all_told():
            self._say(wire.simple(wire.ENDED, id))
        else:
            self._say(wire.report(self._report(id, over, flags, breach, base_cpu, base_rss)))
        self.last = id or self.last
        clean = not (breach or flags & wire.STRAY) and over.status == 0
        if clean:
            self.forker.learn(over.peak_rss)
        self._reset(clean)
        if self.warm and clean and not self.warming:
            self.warming = time.monotonic() + WARM_AT_MOST
            self.forker.ask(self.warm)
        else:
            self.warm, self.warming = b"", 0.0
            self.forker.ask()

    def _is_all_told(self) -> bool:
        """Whether the call's own figures say all: it says so, and nothing else was seen."""
        if self.watch or self.group or self.stray_cpu or not page.quiet(self.page):
            return False
        return not (self.stdout.total or self.stderr.total or os.lseek(self.fault, 0, os.SEEK_END))

    def _is_sound(self) -> bool:
        """Whether the channel, that is the next calls' too, carries all that it did: a call may have set what it lets in or
        out.  What else can be set makes the next process leave, and so the slot."""
        try:
            self.channel.setsockopt(socket.SOL_SOCKET, DETACH_FILTER, 0)
        except OSError as error:
            return error.errno == errno.ENOENT and self.channel.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == self.room
        return False  # there was one

    def _empty(self) -> bool:
        """Whether the kernel lists no process of the call: a child leaves these lists only by being reaped."""
        forker, init = self.forker.pid, self.forker.init
        if not self.children.known():
            return not [child for child in self.children.pids() if child not in (forker, init)]
        if not init:
            return self.children.raw() == (b"%d " % forker if forker else b"")
        return self.children.raw() == b"%d %d " % (forker, init) and not self._orphans(init)

    def _end_all(self) -> list[Reaped]:
        """End every process of the call.  A namespace ends with its first process, and the forker with it; else
        the forker stays."""
        init, forker = self.forker.init, self.forker.pid
        if not init:
            ended = end_tree(self.children, (forker,) if forker else ())
            if any(one.pid == forker for one in ended):
                self.forker.drop()
            return ended
        os.kill(init, signal.SIGKILL)
        self.forker.drop()
        self.forker.drop_init()
        return [one for one in end_tree(self.children, ()) if one.pid not in (init, forker)]

    def _oom_killed(self) -> bool:
        if self.group:
            return self.group.oom_killed()
        return self.watch is not None and contain.oom_kills() > self.oom_kills  # a short life cannot have taken much

    def _loaded(self) -> int:
        return self.forker.loaded

    def _memory(self) -> tuple[int, int, int]:
        """The peak: a lower and an upper bound, and how they were found."""
        peaks = self.watch.peaks if self.watch else None
        low, high = (peaks.memory_low, peaks.memory_high) if peaks else (0, 0)
        took = self.group.took(self._loaded(), bool(peaks)) if self.group else None
        if took is None:
            return low, high, 1 if peaks else 0
        least, most = took
        if peaks and most - least > NOTHING:  # files were cached: the processes themselves know better
            most = min(most, max(high, least))
        low = max(low, least)
        return low, max(most, low), 2

    def _report(
        self, id: int, over: Reaped, flags: int, breach: Breach | None, base_cpu: float, base_rss: int
    ) -> wire.Report:
        peaks = self.watch.peaks if self.watch else None
        read, written = page.read_io(self.io)
        memory_low, memory_high, memory_by = self._memory()
        cpu = max(0.0, over.cpu - base_cpu) + self.stray_cpu
        if self.group and peaks:  # counts also whom nobody waited for
            cpu = max(cpu, self.group.cpu())
        return wire.Report(
            id=id,
            status=over.status,
            verdict=wire.VERDICTS.index(breach.resource) if breach else 0,
            flags=flags,
            limit=breach.limit if breach else 0.0,
            measured=breach.measured if breach else 0.0,
            at_s=breach.at_s if breach else 0.0,
            cpu_s=cpu,
            cores_peak=peaks.cores if peaks else 0.0,
            memory_low=memory_low,
            memory_high=memory_high,
            disk=peaks.disk if peaks else 0,
            read=read,
            written=written,
            gpu_memory=peaks.gpu_memory if peaks else 0,
            peak_rss=max(0, over.peak_rss - base_rss),
            warm=self._loaded(),
            processes=peaks.processes if peaks else 1,
            threads=peaks.threads if peaks else 1,
            stdout=self.stdout.total,
            stderr=self.stderr.total,
            fault=os.lseek(self.fault, 0, os.SEEK_END),  # also of a call that wrote there and ended well
            memory_by=memory_by,
        )

    def _reset(self, clean: bool) -> None:
        if self.watch:
            self.watch.close()
            self.watch = None
        self.stdout.restart()
        self.stderr.restart()
        self.stray_cpu, self.io = 0.0, b""
        page.NUMBER.pack_into(self.page, page.ID_AT, 0)
        page.NUMBER.pack_into(self.page, page.PID_AT, 0)
        page.NUMBER.pack_into(self.page, page.QUIET_AT, 0)
        page.NUMBER.pack_into(self.page, page.PRINTED_AT, 0)
        if not clean and self.forker.pid:
            # a call that ended badly shared a process group with the forker: take no chance on its state
            self._drop_forker()
        if self.group and self.group.settle(self._loaded(), self.forker.pid != 0):
            self._drop_forker()
            self.group.renew()

    def _drop_forker(self) -> None:
        children = self.children.pids()
        for pid in (self.forker.init, self.forker.pid):
            if pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, linux.WALL)
        self.forker.drop()
        self.forker.drop_init()

    def _leave(self) -> NoReturn:
        """The daemon or the template is gone: take everything along."""
        self.forker.drop()
        end_tree(self.children, ())
        if self.group:
            self.group.close()
        os._exit(0)


def _group(config: dict[str, Any]) -> SlotGroup | None:
    """A control group of this slot's own, named by the template and the slot, where the node allows one."""
    if not config["group"]:
        return None
    try:
        return SlotGroup(cgroup.Place(*config["group"]), f"{cgroup.PREFIX}{os.getppid()}.{config['slot']}")
    except OSError:
        return None


def _read_io(pid: int) -> bytes:
    try:
        fd = os.open(f"/proc/{pid}/io", os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, 512)
    except OSError:
        return b""
    finally:
        os.close(fd)
